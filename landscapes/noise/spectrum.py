r"""The spectrum of gradient noise: top eigenpairs of its covariance, all of it, and its rank with the threshold said.

Chaudhari & Soatto 2018, arXiv 1710.11029, call rank the number of eigenvalues above λ_max·d·eps(float32), and print
mean and deviation of all d eigenvalues with those below clipped at the threshold. Both are here, beside the unclipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from landscapes.errors import check_choice, check_count, check_positive, check_seed
from landscapes.krylov import random_block
from landscapes.krylov.eigenpairs import NEGLIGIBLE, carried_shortfalls
from landscapes.noise.covariance import CovarianceOperator
from landscapes.noise.plans import METHODS, Plan, choose, guarded, largest_rank
from landscapes.noise.ritz import BlockRitz, RitzPairs, top_pairs, widened_block

MEMORY = 2**30
START = 32  # eigenvalues that are asked for first where those above a threshold are
ROUNDING = 10  # eps of a gradient by which it may be wrong


@dataclass(frozen=True)
class NoiseEigenpairs:
    r"""The largest eigenpairs of C, largest first, and how they were had.

    ``residuals`` ‖Cu − λu‖; ``errors``: |λ − exact| as estimated by min(‖r‖, ‖r‖²/gap). ``converged``: every error is
    within tolerance, relative to its eigenvalue, or rounding. ``method``: "dense", "gram" or "krylov"; ``passes``:
    gradients of all examples taken; ``bytes``: what the method's plan says it held beyond the landscape.
    """

    values: Tensor  # (k,) float64 on the CPU
    vectors: Tensor  # (k, n)
    residuals: Tensor  # (k,) float64 on the CPU
    errors: Tensor  # (k,) float64 on the CPU
    converged: bool
    method: str
    passes: float
    bytes: int


@dataclass(frozen=True)
class SpectrumHistogram:
    """``counts`` (b,) of eigenvalues between logarithmic ``edges`` (b + 1,), which begin at the threshold.

    ``clipped``: how many lie at or below it, none of them in ``counts``: one bin of their own, at the threshold.
    """

    edges: Tensor
    counts: Tensor
    clipped: int


@final
@dataclass(frozen=True)
class NoiseSpectrum:
    r"""Eigenvalues of C (n, n), largest first, and what the papers make of them.

    ``eigenvalues``: all min(N − 1, n) that can differ from zero where ``whole``, else all above the threshold and a few
    below. ``threshold``: below it they count as zero, λ_max·n·eps(float32) unless the caller says otherwise, or what
    rounding of the gradients leaves where that is more. ``residual``: the largest ‖Cu − λu‖ of those above, zero where
    a dense solver gave them; ``converged``, ``method``, ``passes``, ``bytes`` as in ``NoiseEigenpairs``.
    """

    eigenvalues: Tensor  # (r,) float64 on the CPU
    dimension: int
    size: int
    trace: float
    threshold: float
    whole: bool
    residual: float
    converged: bool
    method: str
    passes: float
    bytes: int

    @property
    def rank(self) -> int:
        """How many eigenvalues are above the threshold."""
        return int((self.eigenvalues > self.threshold).sum())

    @property
    def rank_fraction(self) -> float:
        """rank/n."""
        return self.rank / self.dimension

    @property
    def mean(self) -> float:
        """tr C/n, the exact mean of all n eigenvalues."""
        return self.trace / self.dimension

    @property
    def std(self) -> float:
        """Deviation of all n eigenvalues, to within ``std_bound``."""
        low, high = self._std_range()
        return (low + high) / 2

    @property
    def std_bound(self) -> float:
        """The most that eigenvalues which were not found can change ``std`` by; zero where ``whole``."""
        low, high = self._std_range()
        return (high - low) / 2

    def _std_range(self) -> tuple[float, float]:
        """Those not found, m of them, have the sum R and are at most the last: R²/m ≤ Σλ² ≤ λ_last R."""
        found = float(self.eigenvalues.square().sum())
        missing = 0 if self.whole else max(min(self.size - 1, self.dimension) - len(self.eigenvalues), 0)
        rest = max(self.trace - float(self.eigenvalues.sum()), 0.0) if missing else 0.0
        least, most = rest**2 / max(missing, 1), rest * float(self.eigenvalues[-1])
        bounds = (found + extra for extra in (least, max(most, least)))
        low, high = (math.sqrt(max(total / self.dimension - self.mean**2, 0.0)) for total in bounds)
        return low, high

    @property
    def clipped_mean(self) -> float:
        """Mean of all n eigenvalues, those below the threshold taken as the threshold."""
        above = self.eigenvalues[self.eigenvalues > self.threshold]
        return (float(above.sum()) + (self.dimension - len(above)) * self.threshold) / self.dimension

    @property
    def clipped_std(self) -> float:
        """Deviation of all n eigenvalues, those below the threshold taken as the threshold."""
        above = self.eigenvalues[self.eigenvalues > self.threshold] - self.clipped_mean
        below = (self.threshold - self.clipped_mean) ** 2 * (self.dimension - len(above))
        return math.sqrt((float(above.square().sum()) + below) / self.dimension)

    def histogram(self, bins: int = 50) -> SpectrumHistogram:
        """Logarithmic bins from the threshold to the largest eigenvalue; raise ValueError where none is above."""
        check_count("bins", bins)
        above = self.eigenvalues[self.eigenvalues > self.threshold]
        if not len(above) or self.threshold <= 0:
            raise ValueError(
                f"a logarithmic histogram needs a threshold above zero and eigenvalues above it, got {self.threshold:.3g}"
                f" and {len(above)} of them"
            )
        low, high = math.log10(self.threshold), math.log10(float(above[0]))
        edges = torch.logspace(low, high, bins + 1, dtype=torch.float64)
        places = (torch.bucketize(above, edges[1:-1])).clamp_max(bins - 1)  # the ends take what rounding puts outside
        counts = torch.bincount(places, minlength=bins)
        return SpectrumHistogram(edges, counts, self.dimension - len(above))

    def __str__(self) -> str:
        bound = "" if self.whole else f" (to within {self.std_bound:.1g})"
        return (
            f"rank {self.rank} of {self.dimension} ({100 * self.rank_fraction:.3g} %) above {self.threshold:.3g}, "
            f"λ {self.mean:.3g} ± {self.std:.3g}{bound}, clipped {self.clipped_mean:.3g} ± {self.clipped_std:.3g}; "
            f"{self.method}, {self.passes:.3g} passes{'' if self.converged else ', not converged'}"
        )


def top_eigenpairs(
    operator: CovarianceOperator,
    count: int,
    *,
    method: str = "auto",
    memory: int = MEMORY,
    tolerance: float = 1e-4,
    limit: int = 100,
    seed: int = 0,
) -> NoiseEigenpairs:
    r"""The ``count`` largest eigenpairs of C, by its matrix, the Gram matrix or a block Krylov method.

    ``method`` "auto": whichever is expected to be cheapest of those that fit in ``memory`` bytes beyond the landscape's
    own (``landscapes.noise.plans``). ``tolerance`` is relative to each eigenvalue, down to rounding of the largest.
    ``limit``: passes after which the Krylov method stops, not converged; ``seed``: of its first block.

    Raises ValueError or TypeError for arguments out of place, a ``memory`` that no method fits in among them;
    FloatingPointError where gradients are not finite.
    """
    check_pairs_wanted(operator, count)
    check_options(method, memory, tolerance, limit, seed)
    plan, before = choose(operator, count, method, memory), operator.passes
    if plan.method == "krylov":
        start = random_block(operator.like, guarded(operator, count), seed)
        pairs = krylov_pairs(operator, start, count, plan, tolerance, limit)
    else:
        pairs = refined(operator, direct_vectors(operator, count, plan), count, tolerance, seed)
    return NoiseEigenpairs(
        pairs.values[:count],
        pairs.vectors[:count],
        pairs.residuals[:count],
        pairs.errors,
        pairs.converged,
        plan.method,
        operator.passes - before,
        plan.bytes,
    )


def krylov_pairs(
    operator: CovarianceOperator, start: Tensor, count: int, plan: Plan, tolerance: float, limit: int
) -> RitzPairs:
    """The block method from the rows of ``start``."""
    return top_pairs(operator.products, start, count, tolerance=tolerance, limit=limit, largest_basis=plan.rows)


def direct_vectors(operator: CovarianceOperator, count: int, plan: Plan) -> Tensor:
    """The first eigenvectors (count, n) of the matrix, or (g_i − g)ᵀ-images of those of the Gram matrix, by one pass."""
    if plan.method == "dense":
        return torch.linalg.eigh(operator.dense())[1][:, -count:].mT.flip(0).to(operator.like)
    vectors = torch.linalg.eigh(operator.gram(max(plan.rows * operator.like.nbytes, 1)))[1][:, -count:].flip(1)
    total = operator.like.new_zeros(vectors.shape[1], operator.dimension)
    for place, rows in operator.gradients.blocks():
        total += vectors[place].mT.to(rows) @ rows[:, operator.part]
    return total


def refined(operator: CovarianceOperator, vectors: Tensor, count: int, tolerance: float, seed: int) -> RitzPairs:
    """Ritz pairs of the space of ``vectors``, by one pass; where they are fewer, C has no more that are not zero."""
    basis = BlockRitz(operator.products, operator.like.new_empty(0, operator.dimension))
    basis.extend(vectors)
    if len(basis.rows) < count:
        basis.extend(random_block(operator.like, count - len(basis.rows), seed))
    sizes = torch.linalg.vector_norm(basis.residuals(count), dim=-1, dtype=torch.float64).cpu()
    if not bool(sizes.isfinite().all()):
        raise FloatingPointError("gradients of single examples are not finite: their covariance does not exist")
    values = basis.values[:count]
    errors = carried_shortfalls(values, sizes, count)
    rounding = NEGLIGIBLE * torch.finfo(operator.like.dtype).eps * float(values[0].clamp_min(0))
    converged = bool((errors <= (tolerance * values).clamp_min(rounding)).all())
    return RitzPairs(values, basis.vectors(count), sizes, errors, converged, basis.products)


def noise_spectrum(
    operator: CovarianceOperator,
    *,
    method: str = "auto",
    threshold: float | None = None,
    memory: int = MEMORY,
    tolerance: float = 1e-3,
    limit: int = 200,
    seed: int = 0,
) -> NoiseSpectrum:
    r"""The spectrum of C: whole where its matrix or the Gram matrix fits, else every eigenvalue above the threshold.

    "krylov" doubles the number of eigenvalues it asks for until the last is below. ``threshold`` None: the paper's rule.
    ``method``, ``memory``, ``tolerance``, ``limit`` and ``seed`` as in ``top_eigenpairs``; the limit is for all rounds.

    Raises as ``top_eigenpairs``, and ValueError where the memory holds no block for the next round.
    """
    check_options(method, memory, tolerance, limit, seed)
    if threshold is not None:
        check_positive("threshold", threshold)
    before, guess = operator.passes, max(largest_rank(operator) // 50, min(START, largest_rank(operator)))
    plan = choose(operator, guess, method, memory)
    if plan.method == "krylov":
        values, residual, converged, plan = growing_pairs(operator, plan, threshold, memory, tolerance, limit, seed)
    else:
        values, residual, converged = all_eigenvalues(operator, plan), 0.0, True
    level = threshold if threshold is not None else noise_threshold(operator, float(values[0]))
    return NoiseSpectrum(
        eigenvalues=values,
        dimension=operator.dimension,
        size=operator.size,
        trace=operator.trace,
        threshold=level,
        whole=len(values) >= largest_rank(operator),
        residual=residual,
        converged=converged,
        method=plan.method,
        passes=operator.passes - before,
        bytes=plan.bytes,
    )
