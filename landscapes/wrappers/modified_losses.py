r"""Modified losses of SGD over one epoch: their gradient flow follows the mean iterate of m steps to second order in h.

m Euler steps of rate h with batch losses f_1 … f_m, g_k = ∇f_k and H_k at the epoch's start x, give

    x_m = x − h Σ_k g_k + h² Σ_{j<k} H_k g_j + O(h³),

and the flow of f + hR over the time mh gives x − mh ∇f − mh² ∇R + ½(mh)² H∇f + O(h³). Equating the means over the
draws, with E Σ_{j<k} H_k g_j = ½ E[(Σ H_k)(Σ g_j) − Σ H_k g_k] if both orders of a pair are equally likely, gives

    R = ¼ ‖∇f‖² + ¼ [(1/m) Σ_k tr Cov(g_k) − m tr Cov(ḡ)],   f = E f_k averaged over k,   ḡ = (1/m) Σ_k g_k :

the variance of single steps minus m times that of their mean. All statements are for one epoch, m fixed and h → 0: the
mean of x_m agrees with the flow at t = mh up to O(h³). Over 1/h steps independent draws give the iterates a standard
deviation O(√h), which adds the drift −½ D³f[Cov] = O(h) to their mean, unless f is quadratic.

Smith, Dherin, Barrett & De 2021, arXiv 2101.12176.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from landscapes.autodiff import release
from landscapes.errors import as_list, check_count, check_index, check_positive
from landscapes.expansion import Expansion
from landscapes.landscape import Change, FiniteSum, Landscape, check_finite_sum, check_landscape
from landscapes.wrappers.gradient_penalties import Batches, GradientPenalty, VariancePenalty, check_batches, mean


class MeanExpansion(Expansion):
    """Expansion of (1/m) Σ_k f_k from the expansions of f_k."""

    def __init__(self, theta: Tensor, terms: Sequence[Expansion]):
        self.theta = theta
        self._terms = terms

    @cached_property
    def loss(self) -> Tensor:
        """(1/m) Σ_k f_k(θ), shape (...,)."""
        return mean([term.loss for term in self._terms])

    @cached_property
    def grad(self) -> Tensor:
        """(1/m) Σ_k ∇f_k, shape (..., d)."""
        return mean([term.grad for term in self._terms])

    def hvp(self, v: Tensor) -> Tensor:
        """(1/m) Σ_k H_k v, shape (..., d)."""
        return mean([term.hvp(v) for term in self._terms])

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """(1/m) Σ_k D³f_k[u, v], shape (..., d)."""
        return mean([term.third(u, v) for term in self._terms])

    def hessian(self) -> Tensor:
        """(1/m) Σ_k H_k, shape (..., d, d)."""
        return mean([term.hessian() for term in self._terms])

    def along(self, w: Tensor) -> MeanExpansion:
        return MeanExpansion(self.theta, [term.along(w) for term in self._terms])


@final
class LandscapeSum(FiniteSum):
    r"""(1/m) Σ_k f_k(θ): landscapes of the same dimension as examples of a finite sum.

    With ``[f.restrict(batch) for batch in batches]`` its examples are fixed mini-batches of f; SGD with batch_size=1
    and sampling="epoch" reshuffles these batches.

    Raises TypeError or ValueError unless ``landscapes`` holds at least one Landscape, all of the same dimension.
    """

    def __init__(self, landscapes: Sequence[Landscape]):
        self.landscapes = tuple(map(check_landscape, as_list("landscapes", landscapes, "landscapes")))
        if not self.landscapes:
            raise ValueError("landscapes must hold at least one landscape, got none")
        dimensions = {landscape.dimension for landscape in self.landscapes}
        if len(dimensions) > 1:
            raise ValueError(f"landscapes must have one dimension, got {sorted(dimensions)}")

    @property
    def holomorphic(self) -> bool:  # type: ignore[override]
        """Whether every landscape accepts complex θ."""
        return all(landscape.holomorphic for landscape in self.landscapes)

    @property
    def smoothness(self) -> float:
        """The smallest number of continuous derivatives of the landscapes."""
        return min(landscape.smoothness for landscape in self.landscapes)

    @property
    def dimension(self) -> int:
        return self.landscapes[0].dimension

    @property
    def size(self) -> int:
        return len(self.landscapes)

    def with_parts(self, change: Change) -> LandscapeSum:
        return LandscapeSum([change(landscape, 1 / len(self.landscapes)) for landscape in self.landscapes])

    def check(self, theta: Tensor) -> Tensor:
        for landscape in self.landscapes:
            landscape.check(theta)
        return theta

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_k(θ) of the indexed landscapes, shape (..., m)."""
        return self._evaluate(lambda landscape: landscape.loss(theta), self.check(theta), index, 0)

    def grad(self, theta: Tensor) -> Tensor:
        """(1/m) Σ_k ∇f_k(θ), shape (..., d)."""
        self.check(theta)
        return mean([landscape.grad(theta) for landscape in self.landscapes])

    def expand(self, theta: Tensor) -> Expansion:
        self.check(theta)
        return MeanExpansion(theta, [landscape.expand(theta) for landscape in self.landscapes])

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """The mean gradient of the indexed landscapes, shape (..., d)."""
        return self.example_grads(theta, index).mean(dim=-2)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∇f_k(θ) of the indexed landscapes, shape (..., m, d)."""
        return self._evaluate(lambda landscape: landscape.grad(theta), self.check(theta), index, 1)

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_k w_k ∇f_k(θ), shape (..., d), by one gradient of each landscape."""
        w = self.check_weights(weights).to(self.check(theta))
        return release(torch.einsum("...n,...nd->...d", w, self.example_grads(theta)), theta)

    def restrict(self, index: Tensor) -> LandscapeSum:
        """The mean over the landscapes in a 1-D ``index``."""
        check_index(index, self.size)
        if index.ndim != 1:
            raise ValueError(f"index must have shape (m,), got {tuple(index.shape)}")
        return LandscapeSum([self.landscapes[k] for k in index.tolist()])

    def _evaluate(
        self, function: Callable[[Landscape], Tensor], theta: Tensor, index: Tensor | None, inner: int
    ) -> Tensor:
        """``function`` (..., *) of the landscapes in the index (..., m), once each: (..., m, *), ``inner`` sizes *."""
        if index is None:
            return torch.stack([function(landscape) for landscape in self.landscapes], dim=-1 - inner)
        check_index(index, self.size)
        used, place = index.to(theta.device).unique(return_inverse=True)
        rows = torch.stack([function(self.landscapes[k]) for k in used.tolist()], dim=-1 - inner)
        if index.ndim == 1:
            return rows.index_select(-1 - inner, place)
        shape = torch.broadcast_shapes(theta.shape[:-1], index.shape[:-1])
        rows = rows.expand(*shape, *rows.shape[-1 - inner :])
        place = place.expand(*shape, index.shape[-1])
        return torch.take_along_dim(rows, place[(...,) + (None,) * inner], dim=-1 - inner)


def modified_loss(landscape: Landscape, h: float) -> GradientPenalty:
    r"""f + (h/4) ‖∇f‖², the modified loss of gradient descent of rate h, one-step error O(h³); of any landscape.

    Its gradient flow is the modified flow of order 2. There is no modified loss of higher order: the modified field is
    then no gradient, except in one dimension and for quadratics. Barrett & Dherin 2021, arXiv 2009.11162, eq. (5).
    Raises as GradientPenalty does, or for an h that is not positive.
    """
    return GradientPenalty(landscape, check_positive("h", h) / 4)


def replacement_loss(landscape: FiniteSum, h: float) -> GradientPenalty:
    r"""f + (h/4) ‖∇f‖²: the modified loss of SGD with independent steps, drawn with replacement or as subsets.

    For independent steps m tr Cov(ḡ) is the mean of tr Cov(g_k), so R = ¼‖∇f‖² for every batch size, as for gradient
    descent. One-epoch error of the mean over all draws O(h³). Raises TypeError or ValueError for a landscape without
    examples or an h that is not positive.
    """
    return GradientPenalty(check_finite_sum(landscape), check_positive("h", h) / 4)


def reshuffling_loss(landscape: FiniteSum, h: float, batches: Batches) -> LandscapeSum:
    r"""f̄ + (h/4) ‖ḡ‖² + (h/4m) Σ_k ‖∇f_k − ḡ‖², the same as (1/m) Σ_k [f_k + (h/4) ‖∇f_k‖²].

    The modified loss of m fixed batches in a random order, f̄ = (1/m) Σ_k f_k: Σ g_k is fixed, so m tr Cov(ḡ) = 0.
    One-epoch error of the mean over all orders O(h³). f̄ = f if the batches partition the examples evenly; a short last
    batch has the weight of the others, as in an epoch. Smith et al. 2021, arXiv 2101.12176, eq. (1).

    Implemented in the second form, a finite sum of m batches, each with the penalty of its own gradient: mini-batch
    gradients are unbiased and need products of that batch only. ``VariancePenalty`` with both coefficients h/4 is the
    first form, with the whole penalty in every example. A gradient costs one gradient and one HVP of every batch.
    ``batches`` and errors as for ``VariancePenalty``; also raises unless h is positive.
    """
    check_positive("h", h)
    size = check_finite_sum(landscape).size
    members = [landscape.restrict(batch) for batch in check_batches(batches, size)]
    return LandscapeSum([GradientPenalty(member, h / 4) for member in members])


def random_partition_loss(landscape: FiniteSum, h: float, batch_size: int) -> VariancePenalty:
    r"""f + (h/4) (‖∇f‖² + κ tr D), κ = (N − b)/(b (N − 1)) if b divides N: epochs of SGD with new permutations.

    The mean of ``reshuffling_loss`` over all partitions into batches of b = ``batch_size``. With b' < b examples in
    the last batch κ is the mean over the m = ⌈N/b⌉ steps minus (1 − b'/b)² κ(b')/m: the mean of the steps then depends
    on the partition and differs from ∇f by (1 − b'/b)/m times the deviation of the short batch. One-epoch error of the
    mean over all permutations O(h³).

    A gradient costs two gradients and an HVP, one example at a time (see ``VariancePenalty``). Raises TypeError or
    ValueError for a landscape without examples, h ≤ 0 or a batch size outside 1 … N.
    """
    size = check_finite_sum(landscape).size
    check_positive("h", h)
    if check_count("batch_size", batch_size) > size:
        raise ValueError(f"batch_size must be at most the number of examples, {size}, got {batch_size}")
    kappa = epoch_variance(size, batch_size)
    return VariancePenalty(landscape, torch.arange(size)[:, None], kappa * h / 4, mean_coefficient=h / 4)


def epoch_variance(size: int, batch_size: int) -> float:
    r"""κ in (1/m) Σ_k Cov(g_k) − m Cov(ḡ) = κD over the random partitions of N examples into batches of b."""

    def variance_factor(b: int) -> float:
        return 0.0 if size == 1 else (size - b) / (b * (size - 1))

    sizes = [min(batch_size, size - start) for start in range(0, size, batch_size)]
    steps, last = len(sizes), sizes[-1]
    return sum(map(variance_factor, sizes)) / steps - (1 - last / batch_size) ** 2 * variance_factor(last) / steps
