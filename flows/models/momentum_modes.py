r"""One step of momentum in one mode of a quadratic: its regimes in x = hλ, and the logarithm of its 2×2 matrix.

The step v' = βv − h∇f(x + κv), x' = x + v' is heavy ball at κ = 0 and Nesterov's at κ = β. On θ = x + κv, where the
gradient is taken, and v it moves a mode by X and takes it to M = I + X:

    X = [[−(1+κ)x, β − κ(1−β)], [−x, β − 1]],   det X = x,   det M = β − κx,   tr M = 1 + β − (1+κ)x,   x = hλ.

Its roots, the eigenvalues of M, are c ± s with c = tr M/2 and s² = c² − det M. What the flow needs of log M are two
numbers a mode, integrals over q(s) = det(I + sX) or divided differences of the logarithm and of φ(y) = log(1 + y)/y,

    L = ∫₀¹ ds/q = log[r₁, r₂],      K = ∫₀¹ s ds/q = −φ[r₁ − 1, r₂ − 1],

both smooth where the roots meet and at x = 0. Everything is float64 or complex128.
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
    "escape": "hλ < 0: a maximum of the mode is left, one root above 1",
    "over-damped": "the minimum is approached from one side at last, both roots real and positive",
    "oscillating": "the minimum is circled, the roots a complex pair within the unit circle; log M is real",
    "singular": "|hλ − 1| < 1e-6: both roots vanish, Nesterov's momentum is at the minimum in two steps",
    "alternating": "the minimum is jumped over at every step and approached, a root between −1 and 0; log M is complex",
    "unstable": "the minimum is jumped over at every step and left, a root at −1 or below; log M is complex",
    "undefined": "hλ is NaN",
}
"""What momentum does in a mode, in the order of the codes of ``heavy_ball_regimes`` and ``nesterov_regimes``."""


class Edges(NamedTuple):
    """The x = hλ where the roots meet, ``lower`` < ``upper``, a complex pair in between, and where one leaves at −1."""

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
    r"""The place in ``MOMENTUM_REGIMES`` of each real x = hλ under heavy ball, int64 of the shape of x.

    over-damped: 0 ≤ x ≤ (1−√β)²; oscillating: up to (1+√β)²; alternating: from there to 2(1+β); unstable: from there.
    """
    return regimes(x, heavy_ball_edges(momentum), singular=False)


def nesterov_regimes(x: Tensor, momentum: float) -> Tensor:
    r"""The place in ``MOMENTUM_REGIMES`` of each real x = hλ under Nesterov's momentum, int64 of the shape of x.

    over-damped: 0 ≤ x ≤ ((1−β)/(1+β))²; oscillating: up to 1; alternating: from there to 2(1+β)/(1+2β); unstable: from
    there; singular: |x − 1| < 1e-6.
    """
    return regimes(x, nesterov_edges(momentum), singular=True)


def regimes(x: Tensor, edges: Edges, singular: bool) -> Tensor:
    """Codes of real x (...,) between the edges; ``singular`` where the upper one is a mode without logarithm."""
    if check_float_tensor("x", x).is_complex():
        raise TypeError(f"x must be real, got {x.dtype}: regimes are those of real eigenvalues")
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
class Modes:
    """The step's matrix M = I + X in each mode x = hλ (..., n), by what fixes its logarithm; complex128.

    ``turned``: past the upper edge, where a root lies on the negative real axis, or near it at complex x. Logarithms of
    roots have arguments in (−π/2, 3π/2) there and in (−π, π) elsewhere; ``log_determinant`` is the sum of the two.
    """

    x: Tensor
    mean: Tensor  # tr X / 2
    square: Tensor  # s²
    log_determinant: Tensor
    turned: Tensor


def heavy_ball_modes(x: Tensor, momentum: float) -> Modes:
    r"""Heavy ball, det M = β.

    A root lies on the negative real axis only at real x ≥ (1+√β)², so that the principal log M is analytic in the
    x-plane cut along there, and real on the whole real axis before the cut. But there is where a run lives past the
    edge. Right of the line Re x = 1 + β both roots lie left of the imaginary axis, and log M = log(−M) + iπ is
    analytic. No logarithm is continuous from one to the other: the real one grows before the edge as π/√(β − c²), as M
    is there a Jordan block at −√β, which has no real logarithm. Where one gives way to the other is free, exp of both
    being M: within 1e-6 of the edge, so that eigenvalues on it to rounding are not 1e8 away from smooth.
    """
    edges = heavy_ball_edges(momentum)
    x = x.to(torch.complex128)
    turned = x.real >= max(edges.upper - SINGULAR, 1 + momentum)
    log_determinant = torch.complex(torch.full_like(x.real, math.log(momentum)), 2 * torch.pi * turned.to(x.real))
    square = (x - edges.lower) * (x - edges.upper) / 4  # as c² − β it would cancel
    return Modes(x, -((1 - momentum) + x) / 2, square, log_determinant, turned)


def nesterov_modes(x: Tensor, momentum: float) -> Modes:
    r"""Nesterov's momentum, det M = β(1 − x).

    A root lies on the negative real axis only at real x > 1. With arg(1 − x) in (−π/2, 3π/2), as in the principal flow,
    log M has one cut, where 1 − x is on the negative imaginary axis: no root is, at Re x > 1.
    """
    edges = nesterov_edges(momentum)
    x = x.to(torch.complex128)
    square = ((1 + momentum) / 2) ** 2 * (x - edges.lower) * (x - edges.upper)
    log_determinant = math.log(momentum) - x * log_quotient(-x)
    return Modes(x, -((1 - momentum) + (1 + momentum) * x) / 2, square, log_determinant, x.real > edges.upper)


def log_integrals(modes: Modes) -> tuple[Tensor, Tensor]:
    r"""L and K (..., n), complex128; to rounding over the larger root where that is small, K to rounding over 1 − β.

    Just before heavy ball's upper edge both grow as 1/√(edge − x), and so does what rounding of x does to them.
    """
    offset = modes.square.sqrt()
    offset = torch.where((modes.mean.conj() * offset).real < 0, -offset, offset)
    # The eigenvalues of X: of larger modulus, never 0 at β < 1, and smaller; their product is x, which does not cancel.
    far = modes.mean + offset
    near = modes.x / far
    log_far, log_near = logarithms(modes, far, near)
    slope = torch.where(close(modes), close_slope(modes), (log_far - log_near) / (2 * offset))
    at_near = torch.where(near.abs() < 0.5, log_quotient(near), log_near / near)
    return slope, (at_near - slope) / far


def logarithms(modes: Modes, far: Tensor, near: Tensor) -> tuple[Tensor, Tensor]:
    """log(1 + far) and log(1 + near) on the branch: of the root of larger modulus, the other's from the determinant."""
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


def close(modes: Modes) -> Tensor:
    """Where |s| < |c|/2 and one sheet of the logarithm holds both roots: not about the negative axis unless turned."""
    centre = 1 + modes.mean
    return (4 * modes.square.abs() < centre.abs().square()) & (modes.turned | (centre.real > 0))


def close_slope(modes: Modes) -> Tensor:
    """L = artanh(s/c)/s, even in s, so that it does not matter how s is rounded where the roots meet."""
    centre = 1 + modes.mean
    ratio = modes.square.sqrt() / centre
    zero = ratio == 0
    return torch.where(zero, 1, torch.atanh(ratio) / torch.where(zero, 1, ratio)) / centre
