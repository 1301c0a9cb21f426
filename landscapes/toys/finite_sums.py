r"""Stochastic toys: means of N quadratic examples, f = (1/N) Σ_i f_i, in closed form.

All are quadratic in θ, so the Hessian is constant and the third derivative zero; they differ in the source of the
noise: targets and features of a regression, examples with different curvatures and minima, or different minima alone,
placed so that mean and covariance are known exactly.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, final

import torch
from torch import Tensor

from landscapes.autodiff import Field, release
from landscapes.description import describe
from landscapes.errors import MOST, check_count, check_index, check_positive, check_seed
from landscapes.expansion import spread
from landscapes.labelled import LabelledSum
from landscapes.landscape import FiniteSum
from landscapes.toys.closed_form import ClosedForm, cast, check_real_tensor, symmetric_matrix


class QuadraticExamples(FiniteSum, ClosedForm):
    """A finite sum of quadratics: D³f = 0. ``index`` is (m,), shared by the batch, or (..., m); None means all N."""

    def pick(self, theta: Tensor, index: Tensor | None, *data: Tensor) -> list[Tensor]:
        """The examples' rows of each tensor (N, ...), in θ's dtype and device: (..., m, ...)."""
        self.check(theta)
        if index is None:
            return [cast(rows, theta) for rows in data]
        check_index(index, self.size)
        return [cast(rows, theta)[index.to(theta.device)] for rows in data]

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """(1/m) Σ_{i in index} ∇f_i(θ), shape (..., d)."""
        return self.example_grads(theta, index).mean(dim=-2)

    @abstractmethod
    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∇f_i(θ) of each example, shape (..., m, d)."""

    @abstractmethod
    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i ∇f_i(θ), shape (..., d), for weights (..., N)."""

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.zeros_like(theta)


@final
class LinearRegression(QuadraticExamples, LabelledSum):
    r"""f_i(θ) = ½ (x_iᵀθ − y_i)²; ``features`` x (N, d), ``targets`` y (N,), real and finite.

    H = XᵀX/N, applied in two factors so that d > N needs no (d, d) matrix. From θ = 0 gradient methods reach the
    least-norm solution Xᵀ(XXᵀ)⁻¹y if d > N. Raises ValueError or TypeError for invalid shapes or values.
    """

    def __init__(self, features: Tensor, targets: Tensor):
        self.features = check_real_tensor("features", features).detach().clone()
        self.targets = check_real_tensor("targets", targets).detach().clone()
        if features.ndim != 2:
            raise ValueError(f"features must have shape (N, d), got {tuple(features.shape)}")
        if targets.shape != features.shape[:1]:
            raise ValueError(f"targets must have shape ({self.size},), one an example, got {tuple(targets.shape)}")

    @property
    def dimension(self) -> int:
        return self.features.shape[1]

    @property
    def size(self) -> int:
        return self.features.shape[0]

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """½ (x_iᵀθ − y_i)², shape (..., m)."""
        x, y = self.pick(theta, index, self.features, self.targets)
        return torch.square(residuals(x, y, theta)) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """(1/N) Xᵀ(Xθ − y), shape (..., d)."""
        x, y = self.pick(theta, None, self.features, self.targets)
        return residuals(x, y, theta) @ x / self.size

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """(1/m) Σ (x_iᵀθ − y_i) x_i over the index, shape (..., d)."""
        x, y = self.pick(theta, check_index(index, self.size), self.features, self.targets)
        return torch.einsum("...m,...md->...d", residuals(x, y, theta), x) / index.shape[-1]

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """(x_iᵀθ − y_i) x_i, shape (..., m, d)."""
        x, y = self.pick(theta, index, self.features, self.targets)
        return residuals(x, y, theta)[..., None] * x

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Xᵀ(w ∘ (Xθ − y)), shape (..., d)."""
        x, y = self.pick(theta, None, self.features, self.targets)
        w = cast(self.check_weights(weights), self.check(theta))
        return release((w * residuals(x, y, theta)) @ x, theta)

    @property
    def label_size(self) -> int:
        """1."""
        return 1

    @property
    def linear(self) -> bool:
        """True: ∂²f_i/∂θ∂y_i = −x_i for every θ."""
        return True

    def label_product(self, theta: Tensor, cotangent: Tensor) -> Tensor:
        """−Xᵀc for c (..., N), shape (..., d)."""
        (x,) = self.pick(theta, None, self.features)
        product = -(cast(self.check_cotangent(cotangent), theta) @ x)
        return release(spread(product, theta), theta)

    def label_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """−x_i of each example, shape (..., m, 1, d)."""
        (x,) = self.pick(theta, index, self.features)
        batch = torch.broadcast_shapes(theta.shape[:-1], x.shape[:-2])
        return -x[..., None, :].expand(*batch, x.shape[-2], 1, self.dimension)

    def restrict(self, index: Tensor) -> LinearRegression:
        """The regression on the examples in a 1-D ``index``."""
        check_index(index, self.size)
        if index.ndim != 1:
            raise ValueError(f"index must have shape (m,), got {tuple(index.shape)}")
        chosen = index.to(self.features.device)
        return LinearRegression(self.features[chosen], self.targets[chosen.to(self.targets.device)])

    def curvature(self, theta: Tensor) -> Field:
        """v ↦ Xᵀ(Xv)/N."""
        x = cast(self.features, theta)
        return lambda v: v @ x.mT @ x / self.size


def residuals(x: Tensor, y: Tensor, theta: Tensor) -> Tensor:
    """x_iᵀθ − y_i, shape (..., m), for x (..., m, d) and y (..., m)."""
    return torch.einsum("...md,...d->...m", x, theta) - y


@final
class QuadraticSum(QuadraticExamples):
    r"""f_i(θ) = ½ (θ − c_i)ᵀ A_i (θ − c_i); ``hessians`` A (N, d, d), each symmetric, ``minima`` c (N, d).

    H = (1/N) Σ A_i; the noise covariance depends on θ through (A_i − H)θ. Raises ValueError or TypeError for invalid
    shapes or values.
    """

    def __init__(self, hessians: Tensor, minima: Tensor):
        self.hessians = symmetric_matrix("hessians", hessians)
        self.minima = check_real_tensor("minima", minima).detach().clone()
        if hessians.ndim != 3:
            raise ValueError(f"hessians must have shape (N, d, d), got {tuple(hessians.shape)}")
        if minima.shape != hessians.shape[:2]:
            raise ValueError(f"minima must have shape {tuple(hessians.shape[:2])}, got {tuple(minima.shape)}")
        self._mean_hessian = self.hessians.mean(dim=0)
        self._mean_pull = torch.einsum("nij,nj->i", self.hessians, self.minima.to(self.hessians)) / self.size

    @property
    def dimension(self) -> int:
        return self.minima.shape[1]

    @property
    def size(self) -> int:
        return self.minima.shape[0]

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """½ (θ − c_i)ᵀ A_i (θ − c_i), shape (..., m)."""
        a, c = self.pick(theta, index, self.hessians, self.minima)
        offset = theta[..., None, :] - c
        return torch.einsum("...mi,...mij,...mj->...m", offset, a, offset) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """Hθ − (1/N) Σ A_i c_i, shape (..., d)."""
        return self.check(theta) @ cast(self._mean_hessian, theta) - cast(self._mean_pull, theta)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """A_i (θ − c_i), shape (..., m, d)."""
        a, c = self.pick(theta, index, self.hessians, self.minima)
        return torch.einsum("...mij,...mj->...mi", a, theta[..., None, :] - c)

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i A_i (θ − c_i), shape (..., d)."""
        w = cast(self.check_weights(weights), self.check(theta))
        return release(torch.einsum("...n,...nd->...d", w, self.example_grads(theta)), theta)

    def curvature(self, theta: Tensor) -> Field:
        """v ↦ Hv, H = (1/N) Σ A_i."""
        matrix = cast(self._mean_hessian, theta)
        return lambda v: v @ matrix


def TwoQuadratics(ratio: float = 4.0, separation: float = 2.0) -> QuadraticSum:
    r"""Two examples in the plane with different minima: A = diag(r, 1), diag(1, r), minima ∓(s/2, s/2).

    r = ``ratio`` > 0 is the anisotropy (at r = 1 the noise is additive), s = ``separation`` > 0. The mean has
    H = ½(1 + r) I; D(θ) = ¼ (g₁ − g₂)(g₁ − g₂)ᵀ has rank one everywhere and varies with θ.
    """
    r, s = check_positive("ratio", ratio), check_positive("separation", separation)
    curvatures = torch.tensor([[r, 1.0], [1.0, r]], dtype=torch.float64)
    minima = torch.tensor([[-s / 2, -s / 2], [s / 2, s / 2]], dtype=torch.float64)
    return QuadraticSum(torch.diag_embed(curvatures), minima)


@final
class NoisyQuadratic(QuadraticExamples):
    r"""f_i(θ) = ½ (θ − γ_i)ᵀ H (θ − γ_i) − ½ tr H with γ centred and whitened: f = ½ θᵀHθ and D(θ) = H² for all θ.

    ``hessian`` H (d, d) symmetric; ``size`` N ≥ d + 1 examples; γ (N, d) from torch.Generator(``seed``), with mean 0
    and (1/N) Σ γγᵀ = I to rounding. First and second moments are then exactly those for Gaussian γ (Li, Tai & E 2019,
    JMLR 20(40)). Raises ValueError or TypeError for invalid arguments.
    """

    def __init__(self, hessian: Tensor, size: int, seed: int):
        self._matrix = symmetric_matrix("hessian", hessian)
        if self._matrix.ndim != 2:
            raise ValueError(f"hessian must have shape (d, d), got {tuple(hessian.shape)}")
        check_count("size", size, minimum=self.dimension + 1, maximum=max(MOST // self.dimension, self.dimension + 1))
        generator = torch.Generator().manual_seed(check_seed(seed))
        self.centres = whiten(torch.randn(size, self.dimension, generator=generator, dtype=torch.float64))

    def description(self) -> dict[str, Any]:
        return super().description() | {"hessian": describe(self._matrix)}

    @property
    def dimension(self) -> int:
        return self._matrix.shape[0]

    @property
    def size(self) -> int:
        return self.centres.shape[0]

    def loss(self, theta: Tensor) -> Tensor:
        """½ θᵀHθ, shape (...,)."""
        return (self.check(theta) * (theta @ cast(self._matrix, theta))).sum(dim=-1) / 2

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """½ (θ − γ_i)ᵀ H (θ − γ_i) − ½ tr H, shape (..., m)."""
        (centres,) = self.pick(theta, index, self.centres)
        matrix = cast(self._matrix, theta)
        offset = theta[..., None, :] - centres
        return ((offset * (offset @ matrix)).sum(dim=-1) - matrix.trace()) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """Hθ, shape (..., d)."""
        return self.check(theta) @ cast(self._matrix, theta)

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """H (θ − mean of the batch's γ), shape (..., d)."""
        (centres,) = self.pick(theta, index, self.centres)
        return (theta - centres.mean(dim=-2)) @ cast(self._matrix, theta)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """H (θ − γ_i), shape (..., m, d)."""
        (centres,) = self.pick(theta, index, self.centres)
        return (theta[..., None, :] - centres) @ cast(self._matrix, theta)

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """H (θ Σ w_i − Σ w_i γ_i), shape (..., d)."""
        (centres,) = self.pick(theta, None, self.centres)
        w = cast(self.check_weights(weights), self.check(theta))
        return release((theta * w.sum(dim=-1, keepdim=True) - w @ centres) @ cast(self._matrix, theta), theta)

    def curvature(self, theta: Tensor) -> Field:
        matrix = cast(self._matrix, theta)
        return lambda v: v @ matrix


def whiten(samples: Tensor) -> Tensor:
    """Samples (N, d), N > d, transformed to mean 0 and second moment (1/N) Σ γγᵀ = I, to rounding."""
    q, r = torch.linalg.qr(samples - samples.mean(dim=0))
    # signs as if R had a positive diagonal, as in Cholesky's factorisation: a unique result
    return q * r.diagonal().sign() * math.sqrt(len(samples))


def _default_regression() -> LinearRegression:
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(12, 3, generator=generator, dtype=torch.float64)
    return LinearRegression(features, torch.randn(12, generator=generator, dtype=torch.float64))


FINITE_SUMS: dict[str, Callable[[], FiniteSum]] = {
    "linear-regression": _default_regression,
    "two-quadratics": TwoQuadratics,
    "noisy-quadratic": lambda: NoisyQuadratic(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), 8, seed=0),
}
"""Stochastic toys by name, with default parameters."""
