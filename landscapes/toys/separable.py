r"""Toys without coupling, f(θ) = Σ_i φ_i(θ_i): saddle, double well, quartic well, egg box, Styblinski–Tang.

Their Hessian and third derivative are diagonal; a ``Separable`` defines these diagonals.
"""

from __future__ import annotations

import itertools
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.errors import MOST, check_count, check_positive, check_real
from landscapes.toys.closed_form import Toy, Window
from landscapes.toys.critical import check_listable, depressed_cubic_roots


class Separable(Toy):
    """f(θ) = Σ_i φ_i(θ_i): H = diag φ'', D³f[u, v] = φ''' u v."""

    @abstractmethod
    def second_diagonal(self, theta: Tensor) -> Tensor:
        """φ''_i(θ_i), shape (..., d)."""

    @abstractmethod
    def third_diagonal(self, theta: Tensor) -> Tensor:
        """φ'''_i(θ_i), shape (..., d)."""

    def curvature(self, theta: Tensor) -> Field:
        second = self.second_diagonal(theta)
        return lambda v: second * v

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return self.third_diagonal(theta) * u * v

    def matrix(self, theta: Tensor) -> Tensor:
        return torch.diag_embed(self.second_diagonal(theta))


@final
@dataclass(frozen=True)
class Saddle(Separable):
    r"""f(x, y) = ½ (a x² − b y²), a, b > 0: the strict saddle, unbounded below along y.

    The normal form of every nondegenerate saddle (Morse); ``DoubleWell`` confines a saddle by a quartic.
    """

    a: float = 1.0
    """Curvature along x, attracting."""
    b: float = 1.0
    """Curvature along y, escaping."""

    def __post_init__(self) -> None:
        check_positive("a", self.a)
        check_positive("b", self.b)

    @property
    def dimension(self) -> int:
        """2."""
        return 2

    def loss(self, theta: Tensor) -> Tensor:
        """½ (a x² − b y²), shape (...,)."""
        x, y = self.check(theta).unbind(-1)
        return (self.a * x * x - self.b * y * y) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """(a x, −b y), shape (..., 2)."""
        x, y = self.check(theta).unbind(-1)
        return torch.stack((self.a * x, -self.b * y), dim=-1)

    def second_diagonal(self, theta: Tensor) -> Tensor:
        """(a, −b)."""
        x, y = theta.unbind(-1)
        return torch.stack((torch.full_like(x, self.a), torch.full_like(y, -self.b)), dim=-1)

    def third_diagonal(self, theta: Tensor) -> Tensor:
        return torch.zeros_like(theta)

    @property
    def window(self) -> Window:
        """±2 along both coordinates."""
        return (-2, 2), (-2, 2)

    @property
    def start(self) -> tuple[float, ...]:
        """Near the ridge: descent approaches the saddle, then leaves it."""
        return 1.0, 0.01

    def critical_positions(self) -> list[list[float]]:
        return [[0, 0]]


@final
@dataclass(frozen=True)
class DoubleWell(Separable):
    r"""f(x, y, ...) = (x² − 1)²/4 + tilt·x + ½(y² + ...): two wells along x, a parabola along the others; d ≥ 1.

    Without tilt: minima at x = ±1 and a barrier of ¼ at 0. The wells merge at |tilt| = 2/(3√3). In 2-D the potential of
    Chaudhari & Soatto 2018, arXiv 1710.11029, section 4.
    """

    tilt: float = 0.0
    """Slope that raises the right well."""
    dimension: int = 1
    """Number of coordinates; the wells lie along the first."""

    def __post_init__(self) -> None:
        check_real("tilt", self.tilt)
        check_count("dimension", self.dimension, maximum=MOST)

    def loss(self, theta: Tensor) -> Tensor:
        """(x² − 1)²/4 + tilt·x + ½(y² + ...), shape (...,)."""
        x, rest = self.check(theta)[..., 0], theta[..., 1:]
        return torch.square(x * x - 1) / 4 + self.tilt * x + (rest * rest).sum(dim=-1) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """(x³ − x + tilt, y, ...), shape (..., d)."""
        x, rest = self.check(theta)[..., :1], theta[..., 1:]
        return torch.cat((x * (x * x - 1) + self.tilt, rest), dim=-1)

    def second_diagonal(self, theta: Tensor) -> Tensor:
        """(3x² − 1, 1, ...)."""
        x, rest = theta[..., :1], theta[..., 1:]
        return torch.cat((3 * x * x - 1, torch.ones_like(rest)), dim=-1)

    def third_diagonal(self, theta: Tensor) -> Tensor:
        """(6x, 0, ...)."""
        x, rest = theta[..., :1], theta[..., 1:]
        return torch.cat((6 * x, torch.zeros_like(rest)), dim=-1)

    @property
    def window(self) -> Window:
        """Half a unit beyond the outermost critical points along x, ±2 along the others."""
        roots = [position[0] for position in self.critical_positions()]
        return (min(-1.5, *roots) - 0.5, max(1.5, *roots) + 0.5), *[(-2.0, 2.0)] * (self.dimension - 1)

    @property
    def start(self) -> tuple[float, ...]:
        """Just right of the barrier, displaced along the other coordinates."""
        return 0.1, *[1.0] * (self.dimension - 1)

    def critical_positions(self) -> list[list[float]]:
        """The real roots of x³ − x + tilt, the other coordinates zero."""
        return [[x, *[0.0] * (self.dimension - 1)] for x in depressed_cubic_roots(1.0, self.tilt)]


@final
@dataclass(frozen=True)
class QuarticWell(Separable):
    r"""f(x) = (S/2) x² − (Q/4) x⁴, S, Q > 0: sharpness S at the minimum 0, S − 3Qx² away from it.

    The sharpness decreases outwards, so gradient descent with h > 2/S converges to a two-cycle: a one-mode model of the
    edge of stability. Maxima at ±√(S/Q), unbounded below outside. Regis & Chewi 2026, arXiv 2602.01480.
    """

    S: float
    """Sharpness at the bottom."""
    Q: float
    """Rate of decrease of the sharpness."""

    def __post_init__(self) -> None:
        check_positive("S", self.S)
        check_positive("Q", self.Q)

    @property
    def dimension(self) -> int:
        """1."""
        return 1

    def loss(self, theta: Tensor) -> Tensor:
        """(S/2) x² − (Q/4) x⁴, shape (...,)."""
        square = torch.square(self.check(theta)[..., 0])
        return square * (self.S / 2 - self.Q / 4 * square)

    def grad(self, theta: Tensor) -> Tensor:
        """x (S − Q x²), shape (..., 1)."""
        return self.check(theta) * (self.S - self.Q * torch.square(theta))

    def second_diagonal(self, theta: Tensor) -> Tensor:
        """S − 3Q x²."""
        return self.S - 3 * self.Q * torch.square(theta)

    def third_diagonal(self, theta: Tensor) -> Tensor:
        """−6Q x."""
        return -6 * self.Q * theta

    @property
    def window(self) -> Window:
        """1.25 times the positions of the two maxima."""
        edge = 1.25 * math.sqrt(self.S / self.Q)
        return ((-edge, edge),)

    @property
    def start(self) -> tuple[float, ...]:
        """0.3, or a quarter of the distance to a maximum if that is smaller."""
        return (min(0.3, math.sqrt(self.S / self.Q) / 4),)

    def critical_positions(self) -> list[list[float]]:
        """0 and ±√(S/Q)."""
        edge = math.sqrt(self.S / self.Q)
        return [[-edge], [0], [edge]]


@final
@dataclass(frozen=True)
class Cosine(Separable):
    r"""f(θ) = Σ_i A (1 − cos kθ_i), A = ``amplitude`` > 0, k = ``frequency`` > 0, any d: an egg box.

    Critical points have every kθ_i a multiple of π: minima for even multiples, maxima for odd ones, else saddles. The
    window contains the 3^d of them with kθ_i in {−π, 0, π}.
    """

    amplitude: float = 1.0
    """A, half the height."""
    frequency: float = 1.0
    """k; the distance of wells is 2π/k."""
    dimension: int = 2
    """Number of coordinates."""

    def __post_init__(self) -> None:
        """Check amplitude, frequency and dimension."""
        check_positive("amplitude", self.amplitude)
        check_positive("frequency", self.frequency)
        check_count("dimension", self.dimension, maximum=MOST)

    def loss(self, theta: Tensor) -> Tensor:
        """Σ_i A (1 − cos kθ_i), as 2A Σ sin²(kθ_i/2), which avoids cancellation; shape (...,)."""
        return 2 * self.amplitude * torch.square(torch.sin(self.frequency / 2 * self.check(theta))).sum(dim=-1)

    def grad(self, theta: Tensor) -> Tensor:
        """A k sin kθ, shape (..., d)."""
        return self.amplitude * self.frequency * torch.sin(self.frequency * self.check(theta))

    def second_diagonal(self, theta: Tensor) -> Tensor:
        """A k² cos kθ."""
        return self.amplitude * self.frequency**2 * torch.cos(self.frequency * theta)

    def third_diagonal(self, theta: Tensor) -> Tensor:
        """−A k³ sin kθ."""
        return -self.amplitude * self.frequency**3 * torch.sin(self.frequency * theta)

    @property
    def window(self) -> Window:
        """A little over one period along every coordinate."""
        edge = 4 / self.frequency
        return ((-edge, edge),) * self.dimension

    @property
    def start(self) -> tuple[float, ...]:
        """Half a radian from the minimum at the origin, along every coordinate."""
        return (0.5 / self.frequency,) * self.dimension

    def critical_positions(self) -> list[list[float]]:
        """Every point with kθ_i in {−π, 0, π}."""
        half = math.pi / self.frequency
        check_listable("dimension", self.dimension, 3, self.dimension)
        return [list(point) for point in itertools.product((-half, 0, half), repeat=self.dimension)]


@final
@dataclass(frozen=True)
class StyblinskiTang(Separable):
    r"""f(θ) = ½ Σ_i (θ_i⁴ − 16θ_i² + 5θ_i), any d: 2^d wells, one of them deepest.

    Global minimum −39.16617 d at θ_i = −2.903534. Styblinski & Tang 1990, Neural Netw. 3, 467.
    """

    dimension: int = 2
    """Number of coordinates."""

    def __post_init__(self) -> None:
        check_count("dimension", self.dimension, maximum=MOST)

    def loss(self, theta: Tensor) -> Tensor:
        """½ Σ (θ² (θ² − 16) + 5θ), shape (...,)."""
        square = torch.square(self.check(theta))
        return (square * (square - 16) + 5 * theta).sum(dim=-1) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """2θ³ − 16θ + 5/2, shape (..., d)."""
        return 2 * self.check(theta) * (torch.square(theta) - 8) + 2.5

    def second_diagonal(self, theta: Tensor) -> Tensor:
        """6θ² − 16."""
        return 6 * torch.square(theta) - 16

    def third_diagonal(self, theta: Tensor) -> Tensor:
        """12θ."""
        return 12 * theta

    @property
    def window(self) -> Window:
        """±4 along every coordinate."""
        return ((-4.0, 4.0),) * self.dimension

    @property
    def start(self) -> tuple[float, ...]:
        """On alternate sides of the barrier: every other coordinate descends into the higher well."""
        return tuple(0.0 if i % 2 == 0 else 0.4 for i in range(self.dimension))

    def critical_positions(self) -> list[list[float]]:
        """Every combination of the three roots of θ³ − 8θ + 5/4."""
        return [list(point) for point in itertools.product(depressed_cubic_roots(8.0, 1.25), repeat=self.dimension)]
