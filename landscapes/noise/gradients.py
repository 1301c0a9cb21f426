r"""The centred gradients g_i − g of a finite sum's examples at one θ, walked over a block at a time.

Two walks serve everything that is asked of their covariance. One sees gradients of single examples, m × d numbers at a
time. The other never makes them: the slopes g_iᵀv are the derivative of vᵀ Σ_i w_i g_i by the weights, a backward pass
through a weighted gradient (reverse over reverse), and Σ_i w_i g_i is one backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import transposed_product
from landscapes.errors import UnsupportedError, check_count
from landscapes.landscape import FiniteSum, check_finite_sum
from landscapes.noise.trace import BLOCK

BLOCK_BYTES = 2**25  # of the gradients that are held at once, where the caller does not say
CHECKED = 4  # examples whose slopes are held against their gradients


@final
class CentredGradients:
    r"""g_i − g, g_i = ∇f_i(θ), g their mean, of the N examples at one real θ (d,).

    ``block`` examples have their gradients held at once: as many as 32 MiB take, at most 256, where it is None; a
    network's activations come on top, and its ``chunk_size`` limits those. ``keep``: hold all N × d numbers from the
    first walk on, and walk over those.

    ``passes``: gradients of all examples taken so far, the unit that ``Counted`` counts as one "grad".

    Raises TypeError or ValueError unless the landscape is a FiniteSum, θ one real vector and ``block`` at least 1;
    FloatingPointError where the gradient at θ is not finite.
    """

    def __init__(self, landscape: FiniteSum, theta: Tensor, block: int | None = None, keep: bool = False):
        self.landscape = check_finite_sum(landscape)
        landscape.check(theta)
        if theta.ndim != 1 or theta.is_complex():
            raise ValueError(f"theta must be one real vector (d,), got {tuple(theta.shape)} {theta.dtype}")
        self.theta = theta.detach()
        fitting = BLOCK_BYTES // (theta.shape[0] * theta.element_size())
        self.block = min(max(fitting, 1), BLOCK) if block is None else check_count("block", block)
        self.keep = keep
        self.passes = 0.0
        self._checked = False

    @property
    def size(self) -> int:
        """N, the number of examples."""
        return self.landscape.size

    @property
    def dimension(self) -> int:
        """d, the number of parameters."""
        return self.landscape.dimension

    @cached_property
    def mean(self) -> Tensor:
        """g (d,), one pass."""
        self.passes += 1
        mean = self.landscape.grad(self.theta).detach()
        if not bool(mean.isfinite().all()):
            raise FloatingPointError("the gradient is not finite at theta: its noise has no covariance there")
        return mean

    @cached_property
    def squares(self) -> Tensor:
        """(1/N) Σ_i (g_i − g)², (d,) in float64, one pass."""
        total = torch.zeros_like(self.theta, dtype=torch.float64)
        for _, rows in self.blocks():
            total += rows.square().sum(dim=0, dtype=torch.float64)
        return total / self.size

    def blocks(self, start: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Places among the examples from ``start`` on and their rows g_i − g (m, d); one pass from the first."""
        for first in range(start, self.size, self.block):
            place = slice(first, min(first + self.block, self.size))
            yield place, self.rows(place)

    def rows(self, place: slice) -> Tensor:
        """g_i − g of the examples of a slice, (m, d), at the price of m/N passes unless they are kept."""
        return self._kept[place] if self.keep else self._fresh(place)

    def _fresh(self, place: slice) -> Tensor:
        index = torch.arange(place.start, place.stop, device=self.theta.device)
        return self._singles(index) - self.mean

    def _singles(self, index: Tensor) -> Tensor:
        self.passes += len(index) / self.size
        return self.landscape.example_grads(self.theta, index).detach()

    @cached_property
    def _kept(self) -> Tensor:
        kept = self.theta.new_empty(self.size, self.dimension)
        for first in range(0, self.size, self.block):
            place = slice(first, min(first + self.block, self.size))
            kept[place] = self._fresh(place)
        return kept

    def weighted(self, weights: Tensor) -> Tensor:
        """Σ_i w_i (g_i − g) = Σ_i (w_i − w̄) g_i, (..., d) for weights (..., N), one pass a row by a backward pass."""
        centred = (weights - weights.mean(dim=-1, keepdim=True)).to(self.theta)
        if self.keep:
            return centred @ self._kept
        self.passes += weights[..., 0].numel()
        return self.landscape.weighted_grad(self.theta, centred).detach()

    def slopes(self, directions: Tensor) -> Tensor:
        r"""(g_i − g)ᵀv of every example and direction v (k, d): (N, k) in float64, one pass.

        Reverse over reverse, a block's graph at a time, kept for all directions; each takes one backward pass more.
        Raises UnsupportedError where that disagrees with the gradients of the first examples.
        """
        if self.keep:
            slopes = self._kept @ directions.mT
        else:
            slopes = torch.cat([self._block_slopes(index, directions) for index in self._indices()])
            self._check_slopes(slopes, directions)
        slopes = slopes.double()
        return slopes - slopes.mean(dim=0)

    def _indices(self) -> tuple[Tensor, ...]:
        return torch.arange(self.size, device=self.theta.device).split(self.block)

    def _block_slopes(self, index: Tensor, directions: Tensor) -> Tensor:
        """g_iᵀv of some examples, (m, k)."""
        whole = len(index) == self.size
        part = self.landscape if whole else self.landscape.restrict(index)
        self.passes += len(index) / self.size
        with torch.enable_grad():
            weights = self.theta.new_ones(len(index), requires_grad=True)
            pulled = part.weighted_grad(self.theta.clone().requires_grad_(), weights)  # attached to the weights as to θ
        return torch.stack([transposed_product(pulled, weights, v, retain_graph=True) for v in directions], dim=-1)

    def _check_slopes(self, slopes: Tensor, directions: Tensor) -> None:
        """Once: torch's reverse mode through a gradient is wrong for some fused layers, and silently so."""
        if self._checked:
            return
        singles = self._singles(torch.arange(min(CHECKED, self.size), device=self.theta.device))
        gaps = (slopes[: len(singles)] - singles @ directions.mT).abs()
        sizes = torch.linalg.vector_norm(singles, dim=-1)[:, None] * torch.linalg.vector_norm(directions, dim=-1)
        if not bool((gaps <= torch.finfo(slopes.dtype).eps ** 0.5 * sizes).all()):
            raise UnsupportedError(
                "reverse mode through the gradient of this landscape disagrees with the gradients of its first "
                f"examples by {float(gaps.max()):.3g}; use products, which takes gradients of single examples, or "
                "keep_gradients=True"
            )
        self._checked = True
