r"""The noise of a mini-batch gradient, with a square root of its covariance that costs one backward pass.

With D(θ) = (1/N) Σ_i (g_i − g)(g_i − g)ᵀ, g_i = ∇f_i, the gradient of a batch of b has the covariance cD; c is 1/b for
independent draws, (1/b)(N − b)/(N − 1) without replacement (a finite population's). G = [g_i − g]/√N has D = GGᵀ, and

    G ξ = Σ_i (ξ_i − ξ̄) g_i / √N

is the gradient of a reweighted loss. Chaudhari & Soatto 2018, arXiv 1710.11029, give D and both c; their printed
correction for draws without replacement has the opposite sign.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import gradient
from landscapes.errors import check_float_tensor
from landscapes.landscape import FiniteSum, check_finite_sum
from landscapes.noise.base import GradientNoise
from landscapes.noise.trace import BLOCK, covariance_diagonal, covariance_matrix, covariance_trace
from landscapes.sampling import Sampling, sampling_of


@final
@dataclass(frozen=True)
class MinibatchNoise(GradientNoise):
    r"""Noise of covariance C(θ) = cD(θ), that of the gradient of ``batch_size`` examples; m = N normals.

    ``sampling``: "replacement", c = 1/b; "subset" and "epoch", c = (1/b)(N − b)/(N − 1), zero at b = N. For an epoch
    this is the covariance of one step; the steps are not independent (``landscapes.sampling.Epoch``). ``factor`` costs
    one gradient. ``covariance`` is for small d; ``diagonal``, ``trace`` and ``ito_correction`` take one gradient an
    example, by blocks.

    Raises TypeError or ValueError unless the landscape is a FiniteSum and 1 ≤ batch_size ≤ N.
    """

    landscape: FiniteSum
    batch_size: int
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        check_finite_sum(self.landscape)
        sampling_of(self.landscape.size, self.batch_size, self.sampling)

    @cached_property
    def sampler(self) -> Sampling:
        """The sampling of the mini-batches."""
        return sampling_of(self.landscape.size, self.batch_size, self.sampling)

    @property
    def dimension(self) -> int:
        return self.landscape.dimension

    @property
    def size(self) -> int:
        return self.landscape.size

    def weights(self, xi: Tensor) -> Tensor:
        """w (..., N) with σ(θ)ξ = Σ_i w_i ∇f_i(θ): √(c/N) (ξ_i − ξ̄)."""
        check_float_tensor("xi", xi)
        if xi.shape[-1:] != (self.size,):
            raise ValueError(f"xi must have shape (..., {self.size}), got {tuple(xi.shape)}")
        scale = math.sqrt(self.sampler.variance_factor() / self.size)
        return scale * (xi - xi.mean(dim=-1, keepdim=True))

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """√c G(θ)ξ, shape (..., d), by one backward pass."""
        return self.landscape.weighted_grad(theta, self.weights(self.check_noise(self.check_theta(theta), xi)))

    def covariance(self, theta: Tensor) -> Tensor:
        """cD(θ), dense, shape (..., d, d)."""
        return self.sampler.variance_factor() * covariance_matrix(self.landscape, self.check_theta(theta))

    def diagonal(self, theta: Tensor) -> Tensor:
        """c·diag D(θ), shape (..., d)."""
        return self.sampler.variance_factor() * covariance_diagonal(self.landscape, self.check_theta(theta))

    def trace(self, theta: Tensor) -> Tensor:
        """c·tr D(θ), shape (...,)."""
        return self.sampler.variance_factor() * covariance_trace(self.landscape, self.check_theta(theta))

    def trace_gradient(self, theta: Tensor) -> Tensor:
        r"""c∇tr D(θ) = (2c/N) Σ_j (H_j − H)(g_j − g), shape (..., d).

        One gradient and one Hessian-vector product an example, by blocks.
        """
        mean = self.landscape.grad(self.check_theta(theta))[..., None, :].detach()
        total = torch.zeros_like(theta)
        for index in torch.arange(self.size, device=theta.device).split(BLOCK):
            total = total + self._hessian_sum(theta, index, mean)
        return 2 * self.sampler.variance_factor() / self.size * total

    def ito_correction(self, theta: Tensor) -> Tensor:
        r"""½ Σ_j (∂σ_j)σ_j = (c/2N) Σ_j (H_j − H)(g_j − g) = ¼ ∇tr C, as the H_j are symmetric."""
        return self.trace_gradient(theta) / 4

    def _hessian_sum(self, theta: Tensor, index: Tensor, mean: Tensor) -> Tensor:
        """Σ_j H_j (g_j − g) over some examples; the sum of H (g_j − g) over all is zero."""

        def slope(x: Tensor) -> Tensor:
            rows = self.landscape.example_grads(x if x.requires_grad else x.requires_grad_(), index)
            # H_j acts on the frozen g_j − g: detached, so that one backward pass gives the product
            return (rows * (rows - mean).detach()).sum(dim=(-2, -1))

        return gradient(slope, theta)
