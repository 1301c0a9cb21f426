r"""Toys in closed form, each with its critical points and a window to draw it in.

Here are the three that most comparisons start from: quadratic, Rosenbrock, product. Others by kind: ``separable``,
``surfaces``, ``valleys``, ``linear_nets``, ``spherical``; ``registry.LANDSCAPES`` names all. Parameters are real
numbers, checked on construction (TypeError or ValueError); θ (..., d) may have any floating or complex dtype, on any
device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.errors import check_positive, check_real
from landscapes.toys.closed_form import Toy, Window, cast, check_real_tensor, symmetric_matrix
from landscapes.toys.planar import Partial, Planar


@final
class Quadratic(Toy):
    r"""f(θ) = ½ (θ − m)ᵀ H (θ − m), any d; ``hessian`` H (d, d), ``minimum`` m (d,), zero by default.

    H must be real, finite and symmetric to rounding, else ValueError or TypeError; it may be indefinite, and m is then
    a saddle or a maximum. Where H is singular m represents a flat of critical points.
    """

    def __init__(self, hessian: Tensor, minimum: Tensor | None = None):
        self._matrix = symmetric_matrix("hessian", hessian)
        if self._matrix.ndim != 2:
            raise ValueError(f"hessian must have shape (d, d), got {tuple(hessian.shape)}")
        centre = self._matrix.new_zeros(self.dimension) if minimum is None else check_real_tensor("minimum", minimum)
        self.minimum = centre.detach().clone()
        if self.minimum.shape != (self.dimension,):
            raise ValueError(f"minimum must have shape ({self.dimension},), got {tuple(self.minimum.shape)}")

    @property
    def dimension(self) -> int:
        """d, the number of parameters."""
        return self._matrix.shape[-1]

    def loss(self, theta: Tensor) -> Tensor:
        """½ δᵀHδ with δ = θ − m, shape (...,)."""
        offset = self.check(theta) - cast(self.minimum, theta)
        return (offset * (offset @ cast(self._matrix, theta))).sum(dim=-1) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """H (θ − m), shape (..., d)."""
        return (self.check(theta) - cast(self.minimum, theta)) @ cast(self._matrix, theta)

    def curvature(self, theta: Tensor) -> Field:
        """v ↦ Hv, the same everywhere."""
        matrix = cast(self._matrix, theta)
        return lambda v: v @ matrix

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(theta)

    @property
    def window(self) -> Window:
        """m ± 2 along every coordinate."""
        return tuple((m - 2, m + 2) for m in self.minimum.tolist())

    @property
    def start(self) -> tuple[float, ...]:
        """m + (−0.35, −0.2) in two dimensions (Rosca et al. 2023), m + 1 in others."""
        offset = self.minimum.new_tensor((-0.35, -0.2)) if self.dimension == 2 else 1.0
        return tuple((self.minimum + offset).tolist())

    def critical_positions(self) -> list[list[float]]:
        """The point m."""
        return [self.minimum.tolist()]


@final
@dataclass(frozen=True)
class Rosenbrock(Planar):
    r"""f(x, y) = (a − x)² + b (y − x²)², b > 0: a curved valley with one minimum at (a, a²).

    H = [[2 + 4b(3x² − y), −4bx], [−4bx, 2b]]. Rosenbrock 1960, Computer Journal 3, 175.
    """

    a: float = 1.0
    """The minimum is at (a, a²)."""
    b: float = 100.0
    """Stiffness of the walls."""

    def __post_init__(self) -> None:
        """Check a and b."""
        check_real("a", self.a)
        check_positive("b", self.b)

    def loss(self, theta: Tensor) -> Tensor:
        """(a − x)² + b (y − x²)², shape (...,)."""
        x, y = self.check(theta).unbind(-1)
        return torch.square(self.a - x) + self.b * torch.square(y - x * x)

    def grad(self, theta: Tensor) -> Tensor:
        """(2(x − a − xq), q) with q = 2b (y − x²), shape (..., 2)."""
        x, y = self.check(theta).unbind(-1)
        q = 2 * self.b * (y - x * x)
        return torch.stack((2 * (x - self.a - x * q), q), dim=-1)

    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """2 + 4b(3x² − y), −4bx, 2b."""
        x, y = theta.unbind(-1)
        return 2 + 4 * self.b * (3 * x * x - y), -4 * self.b * x, 2 * self.b

    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """24bx, −4b, 0, 0."""
        return 24 * self.b * theta[..., 0], -4 * self.b, 0.0, 0.0

    @property
    def window(self) -> Window:
        """The bend at the origin and the minimum at (a, a²)."""
        return (-abs(self.a) - 1, abs(self.a) + 1), (-1, self.a**2 + 2)

    @property
    def start(self) -> tuple[float, ...]:
        """On the wall of the valley."""
        return 0.0, 0.5

    def critical_positions(self) -> list[list[float]]:
        """The minimum (a, a²)."""
        return [[self.a, self.a**2]]


@final
@dataclass(frozen=True)
class Product(Planar):
    r"""f(a, b) = ½ (y − a b x)²: the product model, a two-layer linear net of one weight each on one example (x, y).

    Minima fill the hyperbola ab = y/x, flat along it with sharpness x²(a² + b²) across; the origin is a saddle. The
    balanced points of both branches represent the hyperbola. At y = 0 the minima are both axes. x ≠ 0.
    """

    y: float = 1.0
    """Target."""
    x: float = 1.0
    """Input, not zero."""

    def __post_init__(self) -> None:
        """Check y and x."""
        check_real("y", self.y)
        if check_real("x", self.x) == 0:
            raise ValueError(f"x must not be zero, got {self.x!r}: the loss would be constant")

    def loss(self, theta: Tensor) -> Tensor:
        """½ (y − a b x)², shape (...,)."""
        a, b = self.check(theta).unbind(-1)
        return torch.square(self.y - self.x * a * b) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """x (a b x − y) (b, a), shape (..., 2)."""
        a, b = self.check(theta).unbind(-1)
        pull = self.x * (self.x * a * b - self.y)
        return torch.stack((pull * b, pull * a), dim=-1)

    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """x²b², x (2abx − y), x²a²."""
        a, b = theta.unbind(-1)
        return self.x**2 * b * b, self.x * (2 * self.x * a * b - self.y), self.x**2 * a * a

    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """0, 2x²b, 2x²a, 0."""
        a, b = (2 * self.x**2 * theta).unbind(-1)
        return 0.0, b, a, 0.0

    @property
    def window(self) -> Window:
        """Twice the balanced minimum, at least ±2."""
        edge = max(2.0, 2 * math.sqrt(abs(self.y / self.x)))
        return (-edge, edge), (-edge, edge)

    @property
    def start(self) -> tuple[float, ...]:
        """Unbalanced, where the valley is sharp."""
        return 1.8, 0.1

    def critical_positions(self) -> list[list[float]]:
        """The origin, and the balanced minima of both branches (of both axes where y = 0)."""
        if self.y == 0:
            return [[0, 0], [1, 0], [0, 1]]
        a = math.sqrt(abs(self.y / self.x))
        b = math.copysign(a, self.y / self.x)
        return [[0, 0], [a, b], [-a, -b]]
