r"""Standard test surfaces of optimisation and chemistry: monkey saddle, Himmelblau, Beale, Müller–Brown."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from landscapes.errors import check_positive
from landscapes.toys.closed_form import Window, cast
from landscapes.toys.critical import refine
from landscapes.toys.planar import Partial, Planar

BEALE = (1.5, 2.25, 2.625)  # c_k
MUELLER_BROWN = torch.tensor(
    [
        [-200.0, -100.0, -170.0, 15.0],  # A
        [-1.0, -1.0, -6.5, 0.7],  # a
        [0.0, 0.0, 11.0, 0.6],  # b
        [-10.0, -10.0, -6.5, 0.7],  # c
        [1.0, 0.0, -0.5, -1.0],  # centre, x
        [0.0, 0.5, 1.5, 1.0],  # centre, y
    ],
    dtype=torch.float64,
)


@final
@dataclass(frozen=True)
class MonkeySaddle(Planar):
    r"""f(x, y) = a (x³ − 3xy²) = a Re (x + iy)³, a = ``scale`` > 0: three valleys and three ridges meet at the origin.

    The only critical point is degenerate with H = 0: escape from it is algebraic in time, not exponential. Gradient
    flow conserves Im (x + iy)³ and diverges in finite time. Hilbert & Cohn-Vossen 1932, Anschauliche Geometrie.
    """

    scale: float = 1.0
    """Height at (1, 0)."""

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    def loss(self, theta: Tensor) -> Tensor:
        """a x (x² − 3y²), shape (...,)."""
        x, y = self.check(theta).unbind(-1)
        return self.scale * x * (x * x - 3 * y * y)

    def grad(self, theta: Tensor) -> Tensor:
        """3a (x² − y², −2xy), shape (..., 2)."""
        x, y = self.check(theta).unbind(-1)
        return 3 * self.scale * torch.stack((x * x - y * y, -2 * x * y), dim=-1)

    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """6a (x, −y, −x)."""
        x, y = (6 * self.scale * theta).unbind(-1)
        return x, -y, -x

    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """6a (1, 0, −1, 0)."""
        return 6 * self.scale, 0.0, -6 * self.scale, 0.0

    @property
    def window(self) -> Window:
        """±1.5 along both coordinates."""
        return (-1.5, 1.5), (-1.5, 1.5)

    @property
    def start(self) -> tuple[float, ...]:
        """Near the crest of a ridge: descent to the saddle, a plateau, escape through a valley."""
        return 1.2, 0.01

    def critical_positions(self) -> list[list[float]]:
        return [[0, 0]]


@final
@dataclass(frozen=True)
class Himmelblau(Planar):
    r"""f(x, y) = (x² + y − 11)² + (x + y² − 7)²: four minima of value 0, four saddles, one maximum.

    All nine roots of ∇f = 0 (Bézout's bound) are real. Himmelblau 1972, Applied nonlinear programming.
    """

    def loss(self, theta: Tensor) -> Tensor:
        """(x² + y − 11)² + (x + y² − 7)², shape (...,)."""
        x, y = self.check(theta).unbind(-1)
        return torch.square(x * x + y - 11) + torch.square(x + y * y - 7)

    def grad(self, theta: Tensor) -> Tensor:
        """(4xp + 2q, 2p + 4yq) with p = x² + y − 11, q = x + y² − 7; shape (..., 2)."""
        x, y = self.check(theta).unbind(-1)
        p, q = x * x + y - 11, x + y * y - 7
        return torch.stack((4 * x * p + 2 * q, 2 * p + 4 * y * q), dim=-1)

    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """12x² + 4y − 42, 4 (x + y), 12y² + 4x − 26."""
        x, y = theta.unbind(-1)
        return 12 * x * x + 4 * y - 42, 4 * (x + y), 12 * y * y + 4 * x - 26

    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """24x, 4, 4, 24y."""
        x, y = (24 * theta).unbind(-1)
        return x, 4.0, 4.0, y

    @property
    def window(self) -> Window:
        """±5 along both coordinates."""
        return (-5, 5), (-5, 5)

    @property
    def start(self) -> tuple[float, ...]:
        """Near the maximum: a small change of h changes the minimum reached."""
        return -0.25, -0.5

    def critical_positions(self) -> list[list[float]]:
        """Minima, the maximum and saddles, in that order."""
        minima = [[3.0, 2.0], [-2.805118, 3.131313], [-3.779310, -3.283186], [3.584428, -1.848127]]
        others = [[-0.270845, -0.923039], [-3.073026, -0.081353], [-0.127961, -1.953715]]
        return refine(self, [*minima, *others, [0.086678, 2.884255], [3.385154, 0.073852]])


@final
@dataclass(frozen=True)
class Beale(Planar):
    r"""f(x, y) = Σ_k (c_k − x (1 − yᵏ))², k = 1, 2, 3, c = (1.5, 2.25, 2.625): plateaus between steep walls.

    Minimum 0 at (3, ½), saddle at (0, 1). Beale 1958, On an iterative method for finding a local minimum of a function
    of more than one variable, Princeton technical report 25.
    """

    def residuals(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Residual r_k = c_k + x p_k, p_k = yᵏ − 1, and p', p'', p''' in y, each (..., 3); last x, shape (..., 1)."""
        x, y = theta[..., :1], theta[..., 1:]
        c = torch.tensor(BEALE, dtype=theta.dtype, device=theta.device)
        p = torch.cat((y - 1, y * y - 1, y * y * y - 1), dim=-1)
        first = torch.cat((torch.ones_like(y), 2 * y, 3 * y * y), dim=-1)
        second = torch.cat((torch.zeros_like(y), 2 * torch.ones_like(y), 6 * y), dim=-1)
        return c + x * p, p, first, second, x

    def loss(self, theta: Tensor) -> Tensor:
        """Σ r_k², shape (...,)."""
        r, *_ = self.residuals(self.check(theta))
        return torch.square(r).sum(dim=-1)

    def grad(self, theta: Tensor) -> Tensor:
        """2 Σ r (p, x p'), shape (..., 2)."""
        r, p, first, _, x = self.residuals(self.check(theta))
        return 2 * torch.stack(((r * p).sum(dim=-1), (r * x * first).sum(dim=-1)), dim=-1)

    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """2 Σ (p², p' (r + xp), x (x p'² + r p''))."""
        r, p, first, second, x = self.residuals(theta)
        terms = (p * p, first * (r + x * p), x * (x * first * first + r * second))
        f_xx, f_xy, f_yy = (2 * term.sum(dim=-1) for term in terms)
        return f_xx, f_xy, f_yy

    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """0 and 2 Σ (2pp', p'' (r + xp) + 2x p'², x (3x p'p'' + r p''')), where only p_3''' = 6 is nonzero."""
        r, p, first, second, x = self.residuals(theta)
        bends = 3 * x * first * second
        f_xxy = 4 * (p * first).sum(dim=-1)
        f_xyy = 2 * (second * (r + x * p) + 2 * x * first * first).sum(dim=-1)
        return 0.0, f_xxy, f_xyy, 2 * x[..., 0] * (bends.sum(dim=-1) + 6 * r[..., 2])

    @property
    def window(self) -> Window:
        """±4.5 along both coordinates, as usual."""
        return (-4.5, 4.5), (-4.5, 4.5)

    @property
    def start(self) -> tuple[float, ...]:
        """(1, 1), the start of Moré, Garbow & Hillstrom 1981, ACM Trans. Math. Softw. 7, 17."""
        return 1.0, 1.0

    def critical_positions(self) -> list[list[float]]:
        r"""(0, 1), and the real roots of one polynomial in y.

        With p = (y − 1) q, f_x = 0 gives x = −Σcq / ((y − 1) Σq²), and f_y = 0 becomes Σcp' Σq² = Σcq Σqp'. On the
        lines y = 1 and x = 0 the only critical point is (0, 1).
        """
        c = BEALE
        q = [Polynomial([1]), Polynomial([1, 1]), Polynomial([1, 1, 1])]
        slopes = [Polynomial([1]), Polynomial([0, 2]), Polynomial([0, 0, 3])]
        cq, cs = sum(a * b for a, b in zip(c, q, strict=True)), sum(a * b for a, b in zip(c, slopes, strict=True))
        qq, qs = sum(a * a for a in q), sum(a * b for a, b in zip(q, slopes, strict=True))
        # y⁶ cancels in exact arithmetic: its rounding would give a spurious large root
        roots = (cs * qq - cq * qs).trim(1e-12).roots()
        real = [float(y.real) for y in roots if abs(y.imag) < 1e-9]
        (x_low, x_high), (y_low, y_high) = self.window
        seeds = [[-cq(y) / ((y - 1) * qq(y)), y] for y in real]
        inside = [[x, y] for x, y in seeds if x_low < x < x_high and y_low < y < y_high]
        return [[0, 1], *refine(self, inside)]


@final
@dataclass(frozen=True)
class MuellerBrown(Planar):
    r"""f(x, y) = Σ_k A_k exp(a_k δx² + b_k δx δy + c_k δy²), δ = θ − centre_k, four terms: wells along a curved path.

    Three minima in a stiff, curved valley, two saddles between them; sharpness up to some thousands. A standard test of
    searches for reaction paths. Müller & Brown 1979, Theor. Chim. Acta 53, 75.
    """

    def terms(self, theta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Each term g_k, E_x and E_y of its exponent E, and E_xx, E_xy, E_yy stacked. All (..., 4)."""
        height, a, b, c, centre_x, centre_y = cast(MUELLER_BROWN, theta)
        dx, dy = theta[..., :1] - centre_x, theta[..., 1:] - centre_y
        g = height * torch.exp(a * dx * dx + b * dx * dy + c * dy * dy)
        return g, 2 * a * dx + b * dy, b * dx + 2 * c * dy, torch.stack((2 * a, b, 2 * c))

    def loss(self, theta: Tensor) -> Tensor:
        """Σ g, shape (...,)."""
        g, *_ = self.terms(self.check(theta))
        return g.sum(dim=-1)

    def grad(self, theta: Tensor) -> Tensor:
        """Σ g (E_x, E_y), shape (..., 2)."""
        g, e_x, e_y, _ = self.terms(self.check(theta))
        return torch.stack(((g * e_x).sum(dim=-1), (g * e_y).sum(dim=-1)), dim=-1)

    def second_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial]:
        """Σ g (E_x² + E_xx, E_x E_y + E_xy, E_y² + E_yy)."""
        g, e_x, e_y, (e_xx, e_xy, e_yy) = self.terms(theta)
        f_xx, f_xy, f_yy = ((g * t).sum(dim=-1) for t in (e_x * e_x + e_xx, e_x * e_y + e_xy, e_y * e_y + e_yy))
        return f_xx, f_xy, f_yy

    def third_partials(self, theta: Tensor) -> tuple[Partial, Partial, Partial, Partial]:
        """Σ g (E_x³ + 3E_x E_xx, E_x² E_y + 2E_x E_xy + E_y E_xx), and both with x and y exchanged."""
        g, e_x, e_y, (e_xx, e_xy, e_yy) = self.terms(theta)
        f_xxx = (g * e_x * (e_x * e_x + 3 * e_xx)).sum(dim=-1)
        f_xxy = (g * (e_x * (e_x * e_y + 2 * e_xy) + e_y * e_xx)).sum(dim=-1)
        f_xyy = (g * (e_y * (e_x * e_y + 2 * e_xy) + e_x * e_yy)).sum(dim=-1)
        return f_xxx, f_xxy, f_xyy, (g * e_y * (e_y * e_y + 3 * e_yy)).sum(dim=-1)

    @property
    def window(self) -> Window:
        """The three minima and their surroundings."""
        return (-1.5, 1.2), (-0.2, 2.0)

    @property
    def start(self) -> tuple[float, ...]:
        """Below the upper saddle: descent along the stiff valley to the middle minimum."""
        return -0.75, 0.55

    def critical_positions(self) -> list[list[float]]:
        """The minima, deepest first, then the saddles from left to right."""
        minima = [[-0.558224, 1.441726], [0.623499, 0.028038], [-0.050011, 0.466694]]
        return refine(self, [*minima, [-0.822002, 0.624313], [0.212487, 0.292988]])
