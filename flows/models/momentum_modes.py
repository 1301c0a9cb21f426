r"""One step of momentum in one mode of a quadratic: its regimes in x = hλ, and the logarithm of its 2×2 matrix.

The step v' = βv − h∇f(x + κv), x' = x + v' is heavy ball at κ = 0 and Nesterov's at κ = β. On (θ, v) with θ = x + κv,
the point of the gradient, the matrix of the step in a mode is M = I + X:

    X = [[−(1+κ)x, β − κ(1−β)], [−x, β − 1]],   det X = x,   det M = β − κx,   tr M = 1 + β − (1+κ)x,   x = hλ.

Its roots, the eigenvalues of M, are c ± s with c = tr M/2 and s² = c² − det M. The flow depends on log M through two
numbers per mode, integrals over q(s) = det(I + sX) or divided differences of the logarithm and of φ(y) = log(1 + y)/y,

    L = ∫₀¹ ds/q = log[r₁, r₂],      K = ∫₀¹ s ds/q = −φ[r₁ − 1, r₂ − 1],

both smooth at double roots and at x = 0. All tensors are float64 or complex128.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from flows.models.principal import SINGULAR, principal_coefficient
from landscapes.errors import check_float_tensor, check_real

MOMENTUM_REGIMES = {
    "escape": "hλ < 0: escape from a maximum of the mode, one root above 1",
    "over-damped": "eventually monotonic convergence, both roots real and positive",
    "oscillating": "damped oscillation, the roots a complex pair within the unit circle; log M is real",
    "singular": "|hλ − 1| < 1e-6: both roots vanish, Nesterov's momentum reaches the minimum in two steps",
    "alternating": "convergence with a sign change at every step, a root between −1 and 0; log M is complex",
    "unstable": "no convergence, with a sign change at every step, a root at −1 or below; log M is complex",
    "undefined": "hλ is NaN",
}
"""Regimes of momentum in a mode, in the order of the codes of ``heavy_ball_regimes`` and ``nesterov_regimes``."""


class Edges(NamedTuple):
    """The x = hλ of double roots, ``lower`` < ``upper``, with a complex pair in between, and of a root −1."""

    lower: float
    upper: float
    stability: float


def check_momentum(momentum: float) -> float:
    """Return β as a float; raise unless 0 < β < 1, as at β = 0 a root is 0 in every mode and M has no logarithm."""
    if check_real("momentum", momentum) == 0:
        raise ValueError("momentum must lie in (0, 1), got 0, where the step's matrix is singular: use PrincipalFlow")
    if not 0 < momentum < 1:
        raise ValueError(f"momentum must lie in (0, 1), got {momentum!r}")
    return float(momentum)


def heavy_ball_edges(momentum: float) -> Edges:
    """(1 − √β)² and (1 + √β)², where (1 + β − x)² = 4β; 2(1 + β), where r = −1: 2 + 2β − x = 0."""
    root = math.sqrt(check_momentum(momentum))
    # 1 − √β = (1 − β)/(1 + √β), which does not cancel at β near 1
    return Edges(((1 - momentum) / (1 + root)) ** 2, (1 + root) ** 2, 2 * (1 + momentum))


def nesterov_edges(momentum: float) -> Edges:
    """((1−β)/(1+β))² and 1, where (1+β)²(1−x)² = 4β(1−x); 2(1+β)/(1+2β), where r = −1: 1 + (1+2β)(1−x) = 0."""
    check_momentum(momentum)
    return Edges(((1 - momentum) / (1 + momentum)) ** 2, 1.0, 2 * (1 + momentum) / (1 + 2 * momentum))


def heavy_ball_regimes(x: Tensor, momentum: float) -> Tensor:
    r"""The index in ``MOMENTUM_REGIMES`` of each real x = hλ under heavy ball, int64 of the shape of x.

    over-damped: 0 ≤ x ≤ (1−√β)²; oscillating: up to (1+√β)²; alternating: from there to 2(1+β); unstable: from there.
    """
    return regimes(x, heavy_ball_edges(momentum), singular=False)


def nesterov_regimes(x: Tensor, momentum: float) -> Tensor:
    r"""The index in ``MOMENTUM_REGIMES`` of each real x = hλ under Nesterov's momentum, int64 of the shape of x.

    over-damped: 0 ≤ x ≤ ((1−β)/(1+β))²; oscillating: up to 1; alternating: from there to 2(1+β)/(1+2β); unstable: from
    there; singular: |x − 1| < 1e-6.
    """
    return regimes(x, nesterov_edges(momentum), singular=True)


def regimes(x: Tensor, edges: Edges, singular: bool) -> Tensor:
    """Codes of real x (...,) between the edges; ``singular``: M has no logarithm at the upper edge."""
    if check_float_tensor("x", x).is_complex():
        raise TypeError(f"x must be real, got {x.dtype}: regimes are defined for real eigenvalues")
    names = list(MOMENTUM_REGIMES)
    codes = torch.full_like(x, names.index("unstable"), dtype=torch.int64)
    codes = torch.where(x < edges.stability, names.index("alternating"), codes)
    codes = torch.where(x < edges.upper, names.index("oscillating"), codes)
    codes = torch.where(x <= edges.lower, names.index("over-damped"), codes)
    codes = torch.where(x < 0, names.index("escape"), codes)
    if singular:
        codes = torch.where((x - 1).abs() < SINGULAR, names.index("singular"), codes)
    return torch.where(x.isnan(), names.index("undefined"), codes)


@dataclass(frozen=True)
class MomentumModes:
    """The step's matrix M = I + X in each mode x = hλ (..., n): the quantities that determine log M; complex128.

    ``turned``: past the upper edge, where a root lies on the negative real axis, or near it at complex x. Logarithms of
    roots have arguments in (−π/2, 3π/2) there and in (−π, π) elsewhere; ``log_determinant`` is the sum of the two.
    """

    x: Tensor
    mean: Tensor  # tr X / 2
    square: Tensor  # s²
    log_determinant: Tensor
    turned: Tensor


def heavy_ball_modes(x: Tensor, momentum: float) -> MomentumModes:
    r"""Heavy ball, det M = β.

    A root lies on the negative real axis only at real x ≥ (1+√β)², so that the principal log M is analytic in the
    x-plane cut along this half-line, and real on the real axis before it. Runs past the edge, however, lie on the cut.
    Right of the line Re x = 1 + β both roots lie left of the imaginary axis, and log M = log(−M) + iπ is analytic. No
    logarithm is continuous across the edge: the real one grows before it as π/√(β − c²), as M at the edge is a Jordan
    block at −√β, which has no real logarithm. The point of the switch is arbitrary, since exp of both is M: it is
    1e-6 before the edge, so that rounding of an eigenvalue at the edge does not select the diverging logarithm.
    """
    edges = heavy_ball_edges(momentum)
    x = x.to(torch.complex128)
    turned = x.real >= max(edges.upper - SINGULAR, 1 + momentum)
    log_determinant = torch.complex(torch.full_like(x.real, math.log(momentum)), 2 * torch.pi * turned.to(x.real))
    square = (x - edges.lower) * (x - edges.upper) / 4  # c² − β cancels near the edges
    return MomentumModes(x, -((1 - momentum) + x) / 2, square, log_determinant, turned)


def nesterov_modes(x: Tensor, momentum: float) -> MomentumModes:
    r"""Nesterov's momentum, det M = β(1 − x).

    A root lies on the negative real axis only at real x > 1. With arg(1 − x) in (−π/2, 3π/2), as in the principal flow,
    log M has one cut, where 1 − x is on the negative imaginary axis; no root lies on that axis at Re x > 1.
    """
    edges = nesterov_edges(momentum)
    x = x.to(torch.complex128)
    square = ((1 + momentum) / 2) ** 2 * (x - edges.lower) * (x - edges.upper)
    log_determinant = math.log(momentum) - x * log_quotient(-x)
    return MomentumModes(x, -((1 - momentum) + (1 + momentum) * x) / 2, square, log_determinant, x.real > edges.upper)


def log_integrals(modes: MomentumModes) -> tuple[Tensor, Tensor]:
    r"""L and K (..., n), complex128; error: rounding over the larger root if that is small, for K rounding over 1 − β.

    Just before heavy ball's upper edge both grow as 1/√(edge − x), and so does their sensitivity to rounding of x.
    """
    offset = modes.square.sqrt()
    offset = torch.where((modes.mean.conj() * offset).real < 0, -offset, offset)
    # The eigenvalues of X: the larger in modulus, never 0 at β < 1; the smaller by their product x, as mean − offset
    # cancels.
    far = modes.mean + offset
    near = modes.x / far
    log_far, log_near = logarithms(modes, far, near)
    slope = torch.where(roots_are_close(modes), close_slope(modes), (log_far - log_near) / (2 * offset))
    at_near = torch.where(near.abs() < 0.5, log_quotient(near), log_near / near)
    return slope, (at_near - slope) / far


def logarithms(modes: MomentumModes, far: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + far) and log(1 + near) on the branch: one of the larger root, the other from the determinant."""
    is_far = (1 + far).abs() >= (1 + near).abs()
    larger = torch.where(is_far, far, near)
    log_larger = larger * log_quotient(larger)
    below = ~modes.turned & (log_larger.imag > torch.pi)
    log_larger = torch.where(below, log_larger - 2j * torch.pi, log_larger)
    log_smaller = modes.log_determinant - log_larger
    return torch.where(is_far, log_larger, log_smaller), torch.where(is_far, log_smaller, log_larger)


def log_quotient(y: Tensor) -> Tensor:
    """φ(y) = log(1 + y)/y of complex y, 1 at 0, with the argument of 1 + y in (−π/2, 3π/2)."""
    return -principal_coefficient(-y)


def roots_are_close(modes: MomentumModes) -> Tensor:
    """Whether |s| < |c|/2 and both roots are on one sheet of the logarithm (unless turned: off the negative axis)."""
    centre = 1 + modes.mean
    return (4 * modes.square.abs() < centre.abs().square()) & (modes.turned | (centre.real > 0))


def close_slope(modes: MomentumModes) -> Tensor:
    """L = artanh(s/c)/s, even in s, and thus insensitive to rounding of s at a double root."""
    centre = 1 + modes.mean
    ratio = modes.square.sqrt() / centre
    zero = ratio == 0
    return torch.where(zero, 1, torch.atanh(ratio) / torch.where(zero, 1, ratio)) / centre
