r"""Valleys in which large steps leave gradient flow: Rosenbrock's, one with barriers, a bumpy basin, two wells."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.errors import MOST, check_count, check_positive, check_real
from landscapes.toys.closed_form import Toy, Window
from landscapes.toys.critical import check_listable, rippled_bowl_roots
from landscapes.toys.planar import Partial, Planar
from landscapes.toys.separable import Separable


@final
@dataclass(frozen=True)
class BarrierValley(Planar):
    r"""f(x, y) = ½ s x² + ½ k y² + A (1 − cos ωx) exp(−y²/2w²), all > 0, 2A < k w²: a valley with barriers.

    The floor y = 0 descends to x = 0 with barriers of height about 2A and width w across the valley. Gradient flow
    reaches the floor and stops at the first barrier; descent with steps near 2/k oscillates between the walls above the
    barriers. Every critical point is on the floor, as 2A < k w². After Xing, Arpit, Tsirigotis & Bengio 2018, A walk
    with SGD, arXiv 1802.08770.
    """

    across: float = 20.0
    """Curvature k of the walls."""
    along: float = 0.5
    """Curvature s of the floor without its barriers."""
    amplitude: float = 0.21
    """A, half the height of a barrier."""
    frequency: float = 2 * math.pi
    """ω; the distance of barriers is 2π/ω."""
    width: float = 0.15
    """w, the width of the barriers across the valley."""

    def __post_init__(self) -> None:
        """Check that all are positive, and that the floor is a minimum across the valley everywhere."""
        for name in ("across", "along", "amplitude", "frequency", "width"):
            check_positive(name, getattr(self, name))
        most = self.across * self.width**2 / 2
        if self.amplitude >= most:
            raise ValueError(
                f"amplitude must be below across·width²/2 = {most:.6g}, got {self.amplitude!r}: "
                "higher barriers would split the floor of the valley in two"
            )

    def barrier(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Height A (1 − cos ωx), its slope and second derivative in x, and exp(−y²/2w²); each (...,)."""
        x, y = theta.unbind(-1)
        phase, force = self.frequency * x, self.amplitude * self.frequency
        # sin² and not 1 − cos, which cancels near the bottom of each well
        height = 2 * self.amplitude * torch.square(torch.sin(phase / 2))
        fade = torch.exp(-torch.square(y / self.width) / 2)
        return height, force * torch.sin(phase), force * self.frequency * torch.cos(phase), fade

    def loss(self, theta: Tensor) -> Tensor:
        """½ s x² + ½ k y² + A (1 − cos ωx) exp(−y²/2w²), shape (...,)."""
        x, y = self.check(theta).unbind(-1)
        height, _, _, fade = self.barrier(theta)
        return (self.along * x * x + self.across * y * y) / 2 + height * fade

    def grad(self, theta: Tensor) -> Tensor:
        """(s x + c' e, y (k − c e/w²)) with c = A (1 − cos ωx), e = exp(−y²/2w²); shape (..., 2)."""
        x, y = self.check(theta).unbind(-1)
        height, slope, _, fade = self.barrier(theta)
        return torch.stack((self.along * x + slope * fade, y * (self.across - height * fade / self.width**2)), dim=-1)

    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """s + c'' e, −c' e y/w², k + c e (y²/w² − 1)/w²."""
        t = theta[..., 1] / self.width
        height, slope, bend, fade = self.barrier(theta)
        f_yy = self.across + height * fade * (t * t - 1) / self.width**2
        return self.along + bend * fade, -slope * fade * t / self.width, f_yy

    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """−ω²c' e, −c'' e t/w, c' e (t² − 1)/w², c e t (3 − t²)/w³ with t = y/w."""
        w, t = self.width, theta[..., 1] / self.width
        height, slope, bend, fade = self.barrier(theta)
        f_xxy, f_xyy = -bend * fade * t / w, slope * fade * (t * t - 1) / w**2
        return -(self.frequency**2) * slope * fade, f_xxy, f_xyy, height * fade * t * (3 - t * t) / w**3

    @property
    def window(self) -> Window:
        """Half a period beyond the last possible critical point and the start."""
        edge = max(self.start[0], self.amplitude * self.frequency / self.along) + math.pi / self.frequency
        return (-edge, edge), (-1.2 * self.start[1], 1.2 * self.start[1])

    @property
    def start(self) -> tuple[float, ...]:
        """Ten widths w up a wall, five half periods along the valley."""
        return 5 * math.pi / self.frequency, 10 * self.width

    def critical_positions(self) -> list[list[float]]:
        """(x, 0) with s x + Aω sin ωx = 0: wells, and the crests of the barriers between them."""
        roots = rippled_bowl_roots(lambda x: self.along * x, lambda x: self.along, self.amplitude, self.frequency)
        return [[x, 0] for x in roots]


@final
@dataclass(frozen=True)
class BumpyBasin(Separable):
    r"""f(θ) = Σ_i (θ_i/R)⁴ + A (1 − cos kθ_i), all > 0, any d: a wide basin with bumps on a flat floor.

    Small steps converge to the first local minimum. For hAk² well above 2 gradient descent leaves the outer minima
    (with the defaults from about 3.4), and stays in the middle one up to c = 4.603, √(c² − 1) − arccos(1/c) = π;
    beyond, steps jump between minima. A basin rugged at small scales, as those that Entropy-SGD smooths: Chaudhari et
    al. 2017, arXiv 1611.01838.
    """

    radius: float = 2.0
    """R, at which the basin without bumps has the value 1 for one coordinate."""
    amplitude: float = 0.03
    """A, half the height of a bump."""
    frequency: float = 10.0
    """k; the distance of bumps is 2π/k."""
    dimension: int = 2
    """Number of coordinates."""

    def __post_init__(self) -> None:
        for name in ("radius", "amplitude", "frequency"):
            check_positive(name, getattr(self, name))
        check_count("dimension", self.dimension, maximum=MOST)

    def loss(self, theta: Tensor) -> Tensor:
        """Σ (θ/R)⁴ + 2A sin²(kθ/2), shape (...,)."""
        bumps = 2 * self.amplitude * torch.square(torch.sin(self.frequency / 2 * self.check(theta)))
        return (torch.square(torch.square(theta / self.radius)) + bumps).sum(dim=-1)

    def grad(self, theta: Tensor) -> Tensor:
        """4θ³/R⁴ + Ak sin kθ, shape (..., d)."""
        bumps = self.amplitude * self.frequency * torch.sin(self.frequency * self.check(theta))
        return 4 / self.radius**4 * theta * torch.square(theta) + bumps

    def second_diagonal(self, theta: Tensor) -> Tensor:
        """12θ²/R⁴ + Ak² cos kθ."""
        bumps = self.amplitude * self.frequency**2 * torch.cos(self.frequency * theta)
        return 12 / self.radius**4 * torch.square(theta) + bumps

    def third_diagonal(self, theta: Tensor) -> Tensor:
        """24θ/R⁴ − Ak³ sin kθ."""
        return 24 / self.radius**4 * theta - self.amplitude * self.frequency**3 * torch.sin(self.frequency * theta)

    @property
    def window(self) -> Window:
        """R along every coordinate, or more if critical points can lie beyond."""
        edge = max(self.radius, 1.2 * (self.amplitude * self.frequency * self.radius**4 / 4) ** (1 / 3))
        return ((-edge, edge),) * self.dimension

    @property
    def start(self) -> tuple[float, ...]:
        """On the basin's wall, alternately 0.8 R and 0.6 R."""
        return tuple(self.radius * (0.8 if i % 2 == 0 else 0.6) for i in range(self.dimension))

    def roots(self) -> list[float]:
        """The critical points of one coordinate, ascending."""
        scale = self.radius**-4
        return rippled_bowl_roots(
            lambda x: 4 * scale * x**3, lambda x: 12 * scale * x**2, self.amplitude, self.frequency
        )

    def critical_positions(self) -> list[list[float]]:
        """Every combination of the critical points of one coordinate."""
        roots = self.roots()
        check_listable("dimension", self.dimension, len(roots), self.dimension)
        return [list(point) for point in itertools.product(roots, repeat=self.dimension)]


@final
@dataclass(frozen=True)
class SharpFlatWells(Toy):
    r"""f(θ) = q_s q_f / (q_s + q_f), q_i = ½ k_i ‖θ − c_i‖²: a sharp and a flat well, both of minimum 0, any d.

    The Hessians at the minima c_s = (−D/2, 0, ...) and c_f = (D/2, 0, ...) are exactly k_s I and k_f I, the third
    derivatives zero. ∇f = 0 elsewhere requires ∇q_s/q_s² = −∇q_f/q_f²: the only other critical point is the barrier on
    the line between them, at d_f/d_s = (k_s/k_f)^(1/3). After Hochreiter & Schmidhuber 1997, Neural Comput. 9, 1, and
    Keskar et al. 2017, arXiv 1609.04836.
    """

    sharp: float = 20.0
    """Curvature k_s of the well on the left."""
    flat: float = 1.0
    """Curvature k_f of the well on the right."""
    separation: float = 4.0
    """Distance D of the two minima."""
    dimension: int = 2
    """Number of coordinates; the wells lie along the first."""

    def __post_init__(self) -> None:
        """Check the parameters; q_s + q_f > 0 everywhere needs a positive separation."""
        for name in ("sharp", "flat", "separation"):
            check_positive(name, getattr(self, name))
        check_count("dimension", self.dimension, maximum=MOST)

    def pulls(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """∇q_s = k_s (θ − c_s) and ∇q_f, each (..., d)."""
        first, rest = theta[..., :1], theta[..., 1:]
        left = torch.cat((first + self.separation / 2, rest), dim=-1)
        right = torch.cat((first - self.separation / 2, rest), dim=-1)
        return self.sharp * left, self.flat * right

    def weights(self, g_s: Tensor, g_f: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """p = q_f/σ, q = q_s/σ and σ = q_s + q_f, each (..., 1): f = q_s p, ∂f/∂q_s = p², ∂f/∂q_f = q²."""
        q_s = (g_s * g_s).sum(dim=-1, keepdim=True) / (2 * self.sharp)
        q_f = (g_f * g_f).sum(dim=-1, keepdim=True) / (2 * self.flat)
        return q_f / (q_s + q_f), q_s / (q_s + q_f), q_s + q_f

    def loss(self, theta: Tensor) -> Tensor:
        """q_s q_f / (q_s + q_f), shape (...,)."""
        p, q, total = self.weights(*self.pulls(self.check(theta)))
        return (p * q * total)[..., 0]

    def grad(self, theta: Tensor) -> Tensor:
        """p² ∇q_s + q² ∇q_f, shape (..., d)."""
        g_s, g_f = self.pulls(self.check(theta))
        p, q, _ = self.weights(g_s, g_f)
        return p * p * g_s + q * q * g_f

    def curvature(self, theta: Tensor) -> Field:
        """v ↦ Hv, H = (p² k_s + q² k_f) I − (2/σ) n nᵀ with n = p ∇q_s − q ∇q_f."""
        g_s, g_f = self.pulls(theta)
        p, q, total = self.weights(g_s, g_f)
        n, round_part = p * g_s - q * g_f, self.sharp * p * p + self.flat * q * q
        return lambda v: round_part * v - 2 / total * (n * v).sum(dim=-1, keepdim=True) * n

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        r"""(2/σ²) (m_u m_v t + (m_u t_v + m_v t_u) n) − (2/σ) κ ((u·v) n + m_v u + m_u v).

        n as in ``curvature``, t = ∇q_s + ∇q_f, κ = p k_s − q k_f; m_u = n·u, t_u = t·u.
        """
        g_s, g_f = self.pulls(theta)
        p, q, total = self.weights(g_s, g_f)
        n, t, kappa = p * g_s - q * g_f, g_s + g_f, self.sharp * p - self.flat * q
        pairs = ((n, u), (n, v), (t, u), (t, v), (u, v))
        m_u, m_v, t_u, t_v, uv = ((a * b).sum(dim=-1, keepdim=True) for a, b in pairs)
        outer = (m_u * m_v * t + (m_u * t_v + m_v * t_u) * n) / total
        return 2 / total * (outer - kappa * (uv * n + m_v * u + m_u * v))

    @property
    def window(self) -> Window:
        """Both wells with a margin of half their distance."""
        edge = self.separation
        return (-edge, edge), *[(-edge / 2, edge / 2)] * (self.dimension - 1)

    @property
    def start(self) -> tuple[float, ...]:
        """Near the sharp minimum: steps just above 2/k_s oscillate there, steps above 5/k_s reach the flat well."""
        return -0.55 * self.separation, *[0.05 * self.separation] * (self.dimension - 1)

    def critical_positions(self) -> list[list[float]]:
        barrier = self.separation / (1 + (self.sharp / self.flat) ** (1 / 3)) - self.separation / 2
        return [[x, *[0.0] * (self.dimension - 1)] for x in (-self.separation / 2, self.separation / 2, barrier)]


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
