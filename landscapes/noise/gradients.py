r"""The centred gradients g_i − g of a finite sum's examples at one θ, processed by blocks.

Two methods give all functions of their covariance. One forms gradients of single examples, m × d numbers at a time. The
other does not: the slopes g_iᵀv are the derivative of vᵀ Σ_i w_i g_i with respect to the weights, a backward pass
through a weighted gradient (reverse over reverse), and Σ_i w_i g_i is one backward pass.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import transposed_product
from landscapes.errors import UnsupportedError, check_count, check_flag
from landscapes.landscape import FiniteSum, check_finite_sum
from landscapes.noise.trace import BLOCK

BLOCK_BYTES = 2**25  # default limit for the gradients held at once
CHECKED = 4  # examples whose slopes are checked against their gradients


@final
class CentredGradients:
    r"""g_i − g, g_i = ∇f_i(θ), g their mean, of the N examples at one real θ (d,).

    ``block``: number of gradients held at once; None for as many as fit in 32 MiB, at most 256. A network's activations
    come on top; its ``chunk_size`` limits those. ``keep``: store all N × d numbers at the first pass and reuse them.

    ``passes``: gradients of all examples taken so far; ``Counted`` counts one pass as one "grad".

    Raises TypeError or ValueError unless the landscape is a FiniteSum, θ one real vector and ``block`` at least 1;
    FloatingPointError if the gradient at θ is not finite.
    """

    def __init__(self, landscape: FiniteSum, theta: Tensor, block: int | None = None, keep: bool = False):
        self.landscape = check_finite_sum(landscape)
        landscape.check(theta)
        if theta.ndim != 1 or theta.is_complex():
            raise ValueError(f"theta must be one real vector (d,), got {tuple(theta.shape)} {theta.dtype}")
        self.theta = theta.detach()
        fitting = BLOCK_BYTES // (theta.shape[0] * theta.element_size())
        self.block = min(max(fitting, 1), BLOCK) if block is None else check_count("block", block)
        self.keep = check_flag("keep_gradients", keep)
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
            raise FloatingPointError("the gradient is not finite at theta: the covariance of its noise is not defined")
        return mean

    @cached_property
    def squares(self) -> Tensor:
        """(1/N) Σ_i (g_i − g)², (d,) in float64, one pass."""
        total = torch.zeros_like(self.theta, dtype=torch.float64)
        for _, rows in self.blocks():
            total += rows.square().sum(dim=0, dtype=torch.float64)
        return total / self.size

    def blocks(self, start: int = 0) -> Iterator[tuple[slice, Tensor]]:
        """Slices of the examples from ``start`` on and their rows g_i − g (m, d); one pass for all examples."""
        for first in range(start, self.size, self.block):
            place = slice(first, min(first + self.block, self.size))
            yield place, self.rows(place)

    def rows(self, place: slice) -> Tensor:
        """g_i − g of the examples of a slice, (m, d), at the cost of m/N passes unless they are stored."""
        return self._stored[place] if self.keep else self._centred_rows(place)

    def _centred_rows(self, place: slice) -> Tensor:
        index = torch.arange(place.start, place.stop, device=self.theta.device)
        return self._example_grads(index) - self.mean

    def _example_grads(self, index: Tensor) -> Tensor:
        self.passes += len(index) / self.size
        return self.landscape.example_grads(self.theta, index).detach()

    @cached_property
    def _stored(self) -> Tensor:
        stored = self.theta.new_empty(self.size, self.dimension)
        for first in range(0, self.size, self.block):
            place = slice(first, min(first + self.block, self.size))
            stored[place] = self._centred_rows(place)
        return stored

    def weighted_sum(self, weights: Tensor) -> Tensor:
        """Σ_i w_i (g_i − g) = Σ_i (w_i − w̄) g_i, (..., d) for weights (..., N): a backward pass for each row."""
        # centring the weights replaces centring the gradients, which would need each of them
        centred = (weights - weights.mean(dim=-1, keepdim=True)).to(self.theta)
        if self.keep:
            return centred @ self._stored
        self.passes += weights[..., 0].numel()
        return self.landscape.weighted_grad(self.theta, centred).detach()

    def slopes(self, directions: Tensor) -> Tensor:
        r"""(g_i − g)ᵀv of every example and direction v (k, d): (N, k) in float64, one pass.

        Reverse over reverse by blocks; the graph of a block serves all directions, by one more backward pass each.
        Raises UnsupportedError if the slopes disagree with the gradients of the first examples.
        """
        if self.keep:
            slopes = self._stored @ directions.mT
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
            pulled = part.weighted_grad(self.theta.clone().requires_grad_(), weights)  # attached to the weights and θ
        return torch.stack([transposed_product(pulled, weights, v, retain_graph=True) for v in directions], dim=-1)

    def _check_slopes(self, slopes: Tensor, directions: Tensor) -> None:
        """Checked once: torch's reverse mode through a gradient is wrong for some fused layers, without an error."""
        if self._checked:
            return
        singles = self._example_grads(torch.arange(min(CHECKED, self.size), device=self.theta.device))
        gaps = (slopes[: len(singles)] - singles @ directions.mT).abs()
        sizes = torch.linalg.vector_norm(singles, dim=-1)[:, None] * torch.linalg.vector_norm(directions, dim=-1)
        if not bool((gaps <= torch.finfo(slopes.dtype).eps ** 0.5 * sizes).all()):
            raise UnsupportedError(
                "reverse mode through the gradient of this landscape disagrees with the gradients of its first "
                f"examples by {float(gaps.max()):.3g}; use products, which takes gradients of single examples, or "
                "keep_gradients=True"
            )
        self._checked = True
