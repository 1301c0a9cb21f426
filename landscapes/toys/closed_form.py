r"""Landscapes with explicit derivatives in plain torch operations.

A ``ClosedForm`` defines loss, gradient, v ↦ Hv and D³f[u, v]; ``ClosedExpansion`` evaluates them at one point and
computes shared terms once. Derivatives beyond the third are traced through the formula for the third, unless a class
overrides ``derivative``. All are holomorphic unless stated otherwise, so complex θ is accepted; plain operations also
make ``expand`` usable inside torch.func transforms. A ``Toy`` also lists its critical points.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from landscapes.autodiff import Field, gradient, release
from landscapes.errors import check_float_tensor
from landscapes.expansion import Expansion, SlopeExpansion
from landscapes.landscape import Landscape

Window = tuple[tuple[float, float], ...]
Kind = Literal["minimum", "maximum", "saddle", "degenerate"]


def symmetric_matrix(name: str, value: Tensor) -> Tensor:
    """Return a detached copy of ``value`` (..., d, d); raise unless it is real, finite and symmetric to rounding."""
    check_real_tensor(name, value)
    if value.ndim < 2 or value.shape[-1] != value.shape[-2] or value.shape[-1] == 0:
        raise ValueError(f"{name} must hold square matrices (..., d, d) with d >= 1, got shape {tuple(value.shape)}")
    asymmetry = float((value - value.mT).abs().max())
    tolerance = 100 * value.shape[-1] * torch.finfo(value.dtype).eps * float(value.abs().max())
    if asymmetry > tolerance:
        raise ValueError(f"{name} must be symmetric, got max |H - Hᵀ| = {asymmetry:.3g}; use (H + H.mT) / 2")
    return (value + value.mT).detach() / 2


def check_real_tensor(name: str, value: Tensor) -> Tensor:
    """Return ``value``; raise unless it is a non-empty tensor of finite real floating numbers."""
    check_float_tensor(name, value)
    if value.is_complex():
        raise TypeError(f"{name} must be real, got {value.dtype}; theta may be complex, parameters may not")
    if value.numel() == 0:
        raise ValueError(f"{name} must not be empty, got shape {tuple(value.shape)}")
    if not bool(value.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {int((~value.isfinite()).sum())} entries that are not finite")
    return value


def cast(parameter: Tensor, theta: Tensor) -> Tensor:
    """A parameter of a landscape in θ's dtype, on θ's device."""
    return parameter.to(dtype=theta.dtype, device=theta.device)


class ClosedForm(Landscape):
    """A landscape with explicit derivatives. ``curvature`` and ``third_product`` do not check their arguments."""

    holomorphic = True

    @abstractmethod
    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ), shape (..., d)."""

    @abstractmethod
    def curvature(self, theta: Tensor) -> Field:
        """The map v ↦ H(θ) v for v that broadcasts with θ; terms that depend on θ alone are computed here, once."""

    @abstractmethod
    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """D³f(θ)[u, v], shape (..., d)."""

    def derivative(self, theta: Tensor, *directions: Tensor) -> Tensor:
        """D^{m+1}f(θ)[w_1, …, w_m], shape (..., d), for m ≥ 2 directions (..., d), constants of the product."""
        if len(directions) == 2:
            return self.third_product(theta, directions[0], directions[1])
        *others, last = directions
        alias = theta.view_as(theta)  # directions may depend on θ, but not on its alias: they are constants here
        return gradient(lambda x: (self.derivative(x, *others) * last).sum(dim=-1), alias)

    def matrix(self, theta: Tensor) -> Tensor:
        """H(θ), shape (..., d, d): the products with all unit vectors in one call."""
        d = theta.shape[-1]
        identity = torch.eye(d, dtype=theta.dtype, device=theta.device)
        rows = self.curvature(theta[..., None, :])(identity)  # row i is H eᵢ, and H is symmetric
        return rows.broadcast_to(*theta.shape, d)

    def expand(self, theta: Tensor) -> Expansion:
        """Loss, gradient and products at θ by formulas."""
        return ClosedExpansion(self, self.check(theta))


class ClosedExpansion(Expansion):
    """Expansion of a closed form; loss and gradient are computed at first access and cached."""

    def __init__(self, landscape: ClosedForm, theta: Tensor):
        self.theta = theta
        self._landscape = landscape

    @cached_property
    def loss(self) -> Tensor:
        """f(θ), shape (...,)."""
        return self._landscape.loss(self.theta)

    @cached_property
    def grad(self) -> Tensor:
        """∇f(θ), shape (..., d)."""
        return self._landscape.grad(self.theta)

    @cached_property
    def _curvature(self) -> Field:
        return self._landscape.curvature(self.theta)

    def hvp(self, v: Tensor) -> Tensor:
        """H v, shape (..., d)."""
        return release(self._curvature(self.check_vector("v", v)), self.theta)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v], shape (..., d)."""
        self.check_vector("u", u)
        self.check_vector("v", v)
        return release(self._landscape.third_product(self.theta, u, v), self.theta)

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇fᵀw, by formulas as far as available."""
        return ClosedSlope(self._landscape, self, (), w)

    def hessian(self) -> Tensor:
        """H, shape (..., d, d)."""
        return self._landscape.matrix(self.theta)


class ClosedSlope(SlopeExpansion):
    """Expansion of θ ↦ D^m f(θ)[w_1, …, w_m]: a slope of a closed form, or of such a slope, along w = w_m."""

    def __init__(self, landscape: ClosedForm, parent: Expansion, before: tuple[Tensor, ...], w: Tensor):
        super().__init__(parent, w)
        self._landscape = landscape
        self._directions = (*before, w)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D^{m+3}f[w_1, …, w_m, u, v], shape (..., d)."""
        self.check_vector("u", u)
        self.check_vector("v", v)
        return release(self._landscape.derivative(self.theta, *self._directions, u, v), self.theta)

    def along(self, w: Tensor) -> Expansion:
        return ClosedSlope(self._landscape, self, self._directions, w)


@dataclass(frozen=True, eq=False)
class CriticalPoint:
    """∇f = 0 at ``position`` (d,), float64. ``kind`` is the Hessian's signature; degenerate: semidefinite, singular."""

    position: Tensor
    kind: Kind


def signature(hessian: Tensor, scale: float) -> Kind:
    """The kind of a critical point with this Hessian (d, d); eigenvalues within rounding of ``scale`` count as zero."""
    eigenvalues = torch.linalg.eigvalsh(hessian)
    zero = 8 * hessian.shape[-1] * torch.finfo(hessian.dtype).eps * max(scale, float(eigenvalues.abs().max()))
    rises, falls = bool((eigenvalues > zero).any()), bool((eigenvalues < -zero).any())
    if rises and falls:
        return "saddle"
    if bool((eigenvalues.abs() <= zero).any()):
        return "degenerate"
    return "minimum" if rises else "maximum"


class Toy(ClosedForm):
    """A closed form with known critical points, a plotting window and a starting point."""

    @property
    @abstractmethod
    def window(self) -> Window:
        """Plotting window: one interval a coordinate, ((x_min, x_max), ...)."""

    @property
    @abstractmethod
    def start(self) -> tuple[float, ...]:
        """θ0 in the window, d numbers, from which gradient descent shows the toy's typical behaviour."""

    @abstractmethod
    def critical_positions(self) -> list[list[float]]:
        """Coordinates of every isolated critical point in the window, and of representatives of continuous families."""

    def critical_points(self) -> tuple[CriticalPoint, ...]:
        """Critical points in the window with their kinds; one or more representatives for each continuous family."""
        positions = torch.tensor(self.critical_positions(), dtype=torch.float64)
        scale = self.curvature_scale
        return tuple(CriticalPoint(position, signature(self.hessian(position), scale)) for position in positions)

    @property
    def curvature_scale(self) -> float:
        """Scale of the rounding of second derivatives: the largest of them at the start."""
        return float(self.hessian(torch.tensor(self.start, dtype=torch.float64)).abs().max())
