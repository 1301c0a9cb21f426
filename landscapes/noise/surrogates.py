r"""Simpler noises: isotropic and diagonal, constant or of the same trace as another noise, and a noise frozen at one θ.

Compared with the true noise they separate the effects of its state dependence, correlations and anisotropy: Zhu et al.
2019, arXiv 1803.00195, compare escapes from minima under noises of equal trace.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import release, transposed_product
from landscapes.errors import MOST, UnsupportedError, check_count, check_flag, check_nonnegative
from landscapes.expansion import spread
from landscapes.noise.analytic import ConstantNoise, SizedNoise
from landscapes.noise.base import GradientNoise, Kind
from landscapes.noise.roots import square_root
from landscapes.toys.closed_form import cast, check_real_tensor


@final
@dataclass(frozen=True)
class IsotropicNoise(SizedNoise):
    r"""σξ = √v ξ with v = ``variance`` ≥ 0 in every direction of R^d, d = ``dimension``: C = v·I, tr C = v·d.

    Raises TypeError or ValueError for invalid arguments.
    """

    variance: float
    dimension: int = field()

    def __post_init__(self) -> None:
        check_nonnegative("variance", self.variance)
        check_count("dimension", self.dimension, maximum=MOST)

    @property
    def kind(self) -> Kind:
        return "additive"

    @property
    def size(self) -> int:  # type: ignore[override]
        return self.dimension

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """√v ξ, shape (..., d)."""
        self.check_noise(self.check_theta(theta), xi)
        return spread(release(math.sqrt(self.variance) * xi, theta), theta)

    def diagonal(self, theta: Tensor) -> Tensor:
        """v in every component, shape (..., d)."""
        return torch.full_like(self.check_theta(theta).detach(), self.variance)


@final
@dataclass(frozen=True, eq=False)
class DiagonalNoise(GradientNoise):
    r"""σξ = √v ∘ ξ with constant ``variances`` v (d,), at least zero: C = diag v.

    Raises TypeError or ValueError for invalid arguments.
    """

    variances: Tensor

    def __post_init__(self) -> None:
        variances = check_real_tensor("variances", self.variances).detach().clone()
        if variances.ndim != 1:
            raise ValueError(f"variances must have shape (d,), got {tuple(variances.shape)}")
        if float(variances.min()) < 0:
            raise ValueError(f"variances must be at least zero, got {float(variances.min()):.6g}")
        object.__setattr__(self, "variances", variances)

    @property
    def kind(self) -> Kind:
        return "additive"

    @property
    def dimension(self) -> int:
        return self.variances.shape[0]

    @property
    def size(self) -> int:
        return self.dimension

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """√v ∘ ξ, shape (..., d)."""
        self.check_noise(self.check_theta(theta), xi)
        return spread(release(cast(self.variances, theta).sqrt() * xi, theta), theta)

    def diagonal(self, theta: Tensor) -> Tensor:
        """v, shape (..., d)."""
        return cast(self.variances, self.check_theta(theta)).expand(theta.shape)


@dataclass(frozen=True)
class Surrogate(GradientNoise):
    """Noise with d normals whose trace is that of ``noise`` at every θ."""

    noise: GradientNoise

    def __post_init__(self) -> None:
        check_gradient_noise(self.noise)

    @property
    def dimension(self) -> int:
        return self.noise.dimension

    @property
    def size(self) -> int:
        return self.dimension

    def check_theta(self, theta: Tensor) -> Tensor:
        """Return θ (..., d); raise if it is complex: the trace does not determine the phase of complex noise."""
        if super().check_theta(theta).is_complex():
            raise UnsupportedError(
                f"a surrogate has the variances of real noise: theta must be real, got {theta.dtype}"
            )
        return theta

    def trace(self, theta: Tensor) -> Tensor:
        """tr C, shape (...,)."""
        return self.noise.trace(theta)

    def trace_gradient(self, theta: Tensor) -> Tensor:
        """∇tr C, shape (..., d)."""
        return self.noise.trace_gradient(theta)


@final
@dataclass(frozen=True)
class IsotropicSurrogate(Surrogate):
    r"""σ(θ)ξ = √(tr C(θ)/d) ξ, ξ in R^d: isotropic, with the trace of ``noise``, of covariance C, at every θ.

    An evaluation costs the trace of ``noise``, for mini-batches one gradient an example; ``freeze`` takes it once. Its
    Itô correction is ¼ ∇tr C/d. Raises TypeError unless ``noise`` is a GradientNoise.
    """

    @property
    def kind(self) -> Kind:
        """Additive if ``noise`` is; each component depends on all of θ, so diagonal for d = 1 only."""
        if self.noise.kind == "additive":
            return "additive"
        return "diagonal" if self.dimension == 1 else "general"

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """√(tr C/d) ξ, shape (..., d)."""
        self.check_noise(self.check_theta(theta), xi)
        return release(root(self.noise.trace(theta) / self.dimension)[..., None] * xi, theta)

    def diagonal(self, theta: Tensor) -> Tensor:
        """tr C/d in every component, shape (..., d)."""
        return (self.noise.trace(theta) / self.dimension)[..., None].expand(theta.shape)

    def ito_correction(self, theta: Tensor) -> Tensor:
        """½ Σ_j (∂σ_j)σ_j = ½ s∇s for s² = tr C/d: ¼ ∇tr C/d, shape (..., d)."""
        return self.noise.trace_gradient(theta) / (4 * self.dimension)


@final
@dataclass(frozen=True)
class DiagonalSurrogate(Surrogate):
    r"""σ(θ)ξ = √(diag C(θ)) ∘ ξ, ξ in R^d: the variances of ``noise``, of covariance C, without its correlations.

    An evaluation costs the diagonal of ``noise``, for mini-batches one gradient an example. Its Itô correction is ¼ ∂_i
    C_ii, by d backward passes through that diagonal (one if the noise is diagonal): for small d. For mini-batches it is
    (c/2N) Σ_j (g_j − g)_i (H_j − H)_ii, and the diagonals of all examples' Hessians need as many passes. Raises
    TypeError unless ``noise`` is a GradientNoise.
    """

    @property
    def kind(self) -> Kind:
        """The kind of ``noise``: C_ii depends on the same θ_j as row i of σ."""
        return self.noise.kind

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """√(diag C) ∘ ξ, shape (..., d)."""
        self.check_noise(self.check_theta(theta), xi)
        return release(root(self.noise.diagonal(theta)) * xi, theta)

    def diagonal(self, theta: Tensor) -> Tensor:
        """diag C, shape (..., d)."""
        return self.noise.diagonal(theta)

    def ito_correction(self, theta: Tensor) -> Tensor:
        """½ s_i ∂_i s_i for s_i² = C_ii: ¼ ∂_i C_ii, shape (..., d), finite also if C_ii is zero."""
        self.check_theta(theta)
        if self.kind == "additive":
            return torch.zeros_like(theta)
        with torch.enable_grad():
            leaf = theta.detach().requires_grad_()
            diagonal = self.noise.diagonal(leaf)
        unit = torch.eye(self.dimension, dtype=theta.dtype, device=theta.device)
        total = torch.zeros_like(theta)
        for direction in unit.sum(dim=0, keepdim=True) if self.kind == "diagonal" else unit:
            # reverse mode: forward mode through a network's fused norms is wrong without an error
            slopes = transposed_product(diagonal, leaf, direction.expand(theta.shape), retain_graph=True)
            total = total + direction * slopes
        return total / 4


@final
@dataclass(frozen=True, eq=False)
class FrozenNoise(GradientNoise):
    r"""σ(θ*)ξ at every θ: ``noise`` evaluated at the fixed point θ* = ``theta`` (d,) in each call.

    Raises TypeError or ValueError unless θ* is one finite θ of the noise.
    """

    noise: GradientNoise
    theta: Tensor

    def __post_init__(self) -> None:
        theta = check_point(check_gradient_noise(self.noise), self.theta)
        object.__setattr__(self, "theta", theta.clone())

    @property
    def kind(self) -> Kind:
        return "additive"

    @property
    def dimension(self) -> int:
        return self.noise.dimension

    @property
    def size(self) -> int:
        return self.noise.size

    def _point(self, theta: Tensor) -> Tensor:
        return cast(self.theta, self.check_theta(theta))

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """σ(θ*)ξ, shape (..., d)."""
        return spread(self.noise.factor(self._point(theta), self.check_noise(theta, xi)), theta)

    def columns(self, theta: Tensor) -> Tensor:
        """The columns of σ(θ*) as rows, (..., m, d)."""
        return self.noise.columns(self._point(theta)).expand(*theta.shape[:-1], self.size, self.dimension)

    def covariance(self, theta: Tensor) -> Tensor:
        """C(θ*), dense, shape (..., d, d)."""
        return self.noise.covariance(self._point(theta)).expand(*theta.shape, self.dimension)

    def diagonal(self, theta: Tensor) -> Tensor:
        """diag C(θ*), shape (..., d)."""
        return self.noise.diagonal(self._point(theta)).expand(theta.shape)

    def trace(self, theta: Tensor) -> Tensor:
        """tr C(θ*), shape (...,)."""
        return self.noise.trace(self._point(theta)).expand(theta.shape[:-1])


def freeze(noise: GradientNoise, theta: Tensor, dense: bool = False) -> GradientNoise:
    r"""The additive noise with the covariance C(θ) of ``noise`` at one θ (d,).

    ``IsotropicNoise`` or ``DiagonalNoise`` for a surrogate; an additive noise unchanged; else ``FrozenNoise``, each
    evaluation of which costs as much as one of ``noise``, for any d. ``dense``: ``ConstantNoise`` with the symmetric
    root of C(θ), by one eigendecomposition now, for small d and many evaluations.

    Raises TypeError or ValueError unless θ is one finite θ of the noise.
    """
    point = check_point(check_gradient_noise(noise), theta)
    if check_flag("dense", dense):
        return ConstantNoise(square_root(noise.covariance(point)))
    if noise.kind == "additive":
        return noise
    if isinstance(noise, IsotropicSurrogate):
        return IsotropicNoise(float(noise.trace(point)) / noise.dimension, noise.dimension)
    if isinstance(noise, DiagonalSurrogate):
        return DiagonalNoise(noise.diagonal(point))
    return FrozenNoise(noise, point)


def root(square: Tensor) -> Tensor:
    """√x, with the derivative zero at x = 0; NaN stays NaN."""
    positive = ~(square <= 0)  # not square > 0: NaN takes the square root and stays NaN
    return torch.where(positive, torch.where(positive, square, 1).sqrt(), 0)


def check_gradient_noise(noise: GradientNoise) -> GradientNoise:
    """Return ``noise``; raise unless it is a GradientNoise."""
    if not isinstance(noise, GradientNoise):
        raise TypeError(
            f"noise must be a GradientNoise, got {type(noise).__name__}; MinibatchNoise(landscape, b) is one"
        )
    return noise


def check_point(noise: GradientNoise, theta: Tensor) -> Tensor:
    """θ detached; raise unless it is one finite real θ (d,) of the noise."""
    check_real_tensor("theta", noise.check_theta(theta))
    if theta.ndim != 1:
        raise ValueError(f"theta must be one point, shape ({noise.dimension},), got {tuple(theta.shape)}")
    return theta.detach()
