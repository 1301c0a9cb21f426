r"""The noise of variance-reduced gradients: a mini-batch gradient at θ minus the one at a snapshot θ̃.

SVRG's gradient g_B(θ) − g_B(θ̃) + ∇f(θ̃) has the mean ∇f(θ) and the noise of mini-batches of the examples' differences
g_i(θ) − g_i(θ̃), which are the gradients of f_i(θ) − g_i(θ̃)ᵀθ: ``MinibatchNoise`` of that sum. Johnson & Zhang 2013,
NeurIPS 26.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import final

from torch import Tensor

from landscapes.autodiff import release
from landscapes.landscape import Change, FiniteSum, check_finite_sum
from landscapes.noise.base import GradientNoise
from landscapes.noise.minibatch import MinibatchNoise
from landscapes.toys.closed_form import cast, check_real_tensor
from landscapes.wrappers.base import Wrapper


@final
class Differences(Wrapper, FiniteSum):
    r"""f_i(θ) − g_i(θ̃)ᵀθ, whose gradients are g_i(θ) − g_i(θ̃): a finite sum of the same examples."""

    def __init__(self, landscape: FiniteSum, snapshot: Tensor):
        self.landscape = landscape
        self.snapshot = snapshot

    @property
    def size(self) -> int:
        return self.landscape.size

    def with_parts(self, change: Change) -> Differences:
        return self

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_i(θ) − g_i(θ̃)ᵀθ, shape (..., m); holds the m gradients at the snapshot."""
        slopes = self.landscape.example_grads(cast(self.snapshot, theta), index)
        return self.landscape.losses(theta, index) - (slopes @ theta[..., None])[..., 0]

    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ) − ∇f(θ̃), shape (..., d)."""
        return self.landscape.grad(theta) - self.landscape.grad(cast(self.snapshot, theta))

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """g_B(θ) − g_B(θ̃), shape (..., d)."""
        return self.landscape.batch_grad(theta, index) - self.landscape.batch_grad(cast(self.snapshot, theta), index)

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i (g_i(θ) − g_i(θ̃)), shape (..., d)."""
        there = self.landscape.weighted_grad(cast(self.snapshot, theta), weights)
        return release(self.landscape.weighted_grad(theta, weights) - there, theta)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """g_i(θ) − g_i(θ̃) of each example, shape (..., m, d)."""
        there = self.landscape.example_grads(cast(self.snapshot, theta), index)
        return self.landscape.example_grads(theta, index) - there


@final
@dataclass(frozen=True, eq=False)
class VarianceReducedNoise(GradientNoise):
    r"""Noise of SVRG's gradient at the ``snapshot`` θ̃: C(θ) = c·Cov_i(g_i(θ) − g_i(θ̃)), O(‖θ − θ̃‖²); m = N normals.

    c, ``batch_size`` and ``sampling`` are those of ``MinibatchNoise``. ``snapshot`` is (d,), or (..., d), one for each
    member of θ's batch. ``factor`` costs two gradients, with the same weights at θ and θ̃; ``covariance``, ``diagonal``
    and ``trace`` cost two an example. Raises TypeError or ValueError unless the landscape is a FiniteSum, 1 ≤
    batch_size ≤ N, and the snapshot a finite θ of it.
    """

    landscape: FiniteSum
    batch_size: int
    snapshot: Tensor
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        check_finite_sum(self.landscape)
        check_real_tensor("snapshot", self.snapshot)
        self.landscape.check(self.snapshot)
        object.__setattr__(self, "snapshot", self.snapshot.detach().clone())
        self._noise  # noqa: B018  # raises for an invalid batch_size or sampling

    @cached_property
    def _noise(self) -> MinibatchNoise:
        return MinibatchNoise(Differences(self.landscape, self.snapshot), self.batch_size, self.sampling)

    @property
    def dimension(self) -> int:
        return self.landscape.dimension

    @property
    def size(self) -> int:
        return self.landscape.size

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """√(c/N) Σ_i (ξ_i − ξ̄)(g_i(θ) − g_i(θ̃)), shape (..., d), by two backward passes."""
        return self._noise.factor(theta, xi)

    def covariance(self, theta: Tensor) -> Tensor:
        """C(θ), dense, shape (..., d, d)."""
        return self._noise.covariance(theta)

    def diagonal(self, theta: Tensor) -> Tensor:
        """diag C(θ), shape (..., d)."""
        return self._noise.diagonal(theta)

    def trace(self, theta: Tensor) -> Tensor:
        """tr C(θ), shape (...,)."""
        return self._noise.trace(theta)

    def trace_gradient(self, theta: Tensor) -> Tensor:
        """∇tr C(θ), shape (..., d)."""
        return self._noise.trace_gradient(theta)

    def ito_correction(self, theta: Tensor) -> Tensor:
        """¼ ∇tr C(θ), shape (..., d), as the gradients at the snapshot do not depend on θ."""
        return self._noise.ito_correction(theta)
