r"""Label noise: fresh Gaussian noise on the labels of square losses at every step, f_i = ½ ‖m_i(θ) − y_i − ε_i‖².

The gradient's mean is ∇f and its noise −(1/N) Σ_i J_iᵀ ε_i with J_i = ∂m_i/∂θ, exactly, as the gradient is affine in
the labels. For ε of variance s² its covariance is (s²/N)·H at zero loss, and so does not vanish there: it drives
descent along a manifold of minima towards flat minima. Blanc, Gupta, Valiant & Valiant 2020, arXiv 1904.09080; Damian,
Ma & Lee 2021, arXiv 2106.06530.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import gradient
from landscapes.errors import check_count, check_nonnegative
from landscapes.labelled import LabelledSum, labelled_sum_of
from landscapes.landscape import FiniteSum, check_finite_sum
from landscapes.noise.base import GradientNoise, Kind
from landscapes.noise.trace import BLOCK


@final
@dataclass(frozen=True)
class LabelNoise(GradientNoise):
    r"""Noise of labels y_i + ε_i, ε_i ~ N(0, s²I) in R^C, drawn at every step: C(θ) = (s²/bN) Σ_i J_iᵀJ_i, m = N·C.

    s = ``standard_deviation`` ≥ 0, in the labels' unit. ``batch_size`` None is the full batch, b = N, where σ(θ)ξ =
    −(s/N) Σ_i J_iᵀ ξ_i is the exact noise. For a batch of b it is the part of the noise due to the labels, averaged
    over batches, with an independent ε for each draw of an example; the part due to the choice of examples,
    ``MinibatchNoise``, is uncorrelated with it and adds to it.

    The landscape is LinearRegression or a NetworkLandscape with ``nets.square_loss``, also in Regularised or Counted.
    ``factor`` costs one gradient; ``covariance`` (small d), ``diagonal``, ``trace`` and ``ito_correction`` take C
    gradients an example, by blocks. Raises UnsupportedError for losses that are not squares, TypeError or ValueError
    unless 1 ≤ batch_size ≤ N and s ≥ 0.
    """

    landscape: FiniteSum
    standard_deviation: float
    batch_size: int | None = None

    def __post_init__(self) -> None:
        check_finite_sum(self.landscape)
        check_nonnegative("standard_deviation", self.standard_deviation)
        if self.batch_size is not None and check_count("batch_size", self.batch_size) > self.landscape.size:
            raise ValueError(
                f"batch_size must be at most the number of examples, {self.landscape.size}, got {self.batch_size}"
            )
        labelled_sum_of(self.landscape)

    @cached_property
    def _labels(self) -> LabelledSum:
        return labelled_sum_of(self.landscape)

    @property
    def kind(self) -> Kind:
        """Additive if the outputs are linear in θ."""
        return "additive" if self._labels.linear else "general"

    @property
    def dimension(self) -> int:
        return self.landscape.dimension

    @property
    def size(self) -> int:
        """N·C, one for each component of each label."""
        return self.landscape.size * self._labels.label_size

    def _scale(self) -> float:
        """s/√(bN)."""
        N = self.landscape.size
        return self.standard_deviation / math.sqrt((self.batch_size or N) * N)

    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """−(s/√(bN)) Σ_i J_iᵀ ξ_i, shape (..., d), by one backward pass."""
        return self._labels.label_product(theta, self._scale() * self.check_noise(self.check_theta(theta), xi))

    def columns(self, theta: Tensor) -> Tensor:
        """The columns of σ as rows, (..., N·C, d): C gradients an example."""
        return self._scale() * self._labels.label_grads(theta).flatten(-3, -2)

    def covariance(self, theta: Tensor) -> Tensor:
        """(s²/bN) Σ_i J_iᵀJ_i, dense, shape (..., d, d)."""
        total = torch.zeros(*self.check_theta(theta).shape, theta.shape[-1], dtype=theta.dtype, device=theta.device)
        for index in self._blocks(theta):
            rows = self._labels.label_grads(theta, index).flatten(-3, -2)
            total = total + rows.mT @ rows
        return self._scale() ** 2 * total

    def diagonal(self, theta: Tensor) -> Tensor:
        """(s²/bN) Σ_i diag J_iᵀJ_i, shape (..., d)."""
        total = torch.zeros_like(self.check_theta(theta))
        for index in self._blocks(theta):
            total = total + self._labels.label_grads(theta, index).square().sum(dim=(-3, -2))
        return self._scale() ** 2 * total

    def trace_gradient(self, theta: Tensor) -> Tensor:
        r"""(s²/bN) ∇ Σ_i ‖J_i‖², shape (..., d), by blocks, which limits the graph held."""
        total = torch.zeros_like(self.check_theta(theta))
        for index in self._blocks(theta):
            total = total + gradient(partial(self._square, index), theta)
        return self._scale() ** 2 * total

    def _square(self, index: Tensor, theta: Tensor) -> Tensor:
        """Σ ‖J_i‖² over some examples, shape (...,)."""
        return self._labels.label_grads(theta, index).square().sum(dim=(-3, -2, -1))

    def ito_correction(self, theta: Tensor) -> Tensor:
        r"""½ Σ_j (∂σ_j)σ_j = ¼ ∇tr C, as σ's columns are gradients: multiples of ∇m_ic."""
        return self.trace_gradient(theta) / 4

    def _blocks(self, theta: Tensor) -> Iterator[Tensor]:
        """Blocks of examples with about ``BLOCK`` gradients each."""
        yield from torch.arange(self.landscape.size, device=theta.device).split(
            max(1, BLOCK // self._labels.label_size)
        )
