r"""The spectrum of gradient noise: top or all eigenvalues of its covariance, and its numerical rank with the threshold.

Chaudhari & Soatto 2018, arXiv 1710.11029, define the rank as the number of eigenvalues above λ_max·d·eps(float32), and
report mean and deviation of all d eigenvalues clipped from below at the threshold. Both are given, with the unclipped.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor

from landscapes.errors import MOST, check_choice, check_count, check_positive, check_real
from landscapes.krylov.probes import check_layers
from landscapes.noise.covariance import CovarianceOperator
from landscapes.noise.eigenpairs import MEMORY, check_operator, check_options
from landscapes.noise.plans import METHODS, Plan, choose, guarded_rows, krylov_plan, largest_rank
from landscapes.noise.ritz import check_finite, top_pairs, widened_block

START = 32  # eigenvalues of the first round of a search above a threshold
ROUNDING = 10  # eps: assumed relative error of gradients, and of eigenvalues of the Krylov method


@dataclass(frozen=True)
class SpectrumHistogram:
    """``counts`` (b,) of eigenvalues between logarithmic ``edges`` (b + 1,), which begin at the threshold.

    ``clipped``: the number at or below the threshold, not in ``counts``; drawn as one more bin at the threshold.
    """

    edges: Tensor
    counts: Tensor
    clipped: int


@final
@dataclass(frozen=True)
class NoiseSpectrum:
    r"""Eigenvalues of C (n, n), largest first, with rank, mean and deviation.

    ``eigenvalues``: all min(N − 1, n) that can be nonzero if ``whole``, else all above the threshold and a few below.
    ``threshold``: eigenvalues below count as zero; by default λ_max·n·eps(float32), or the rounding of the gradients if
    larger. ``residual``: the largest ‖Cu − λu‖ of those above, zero for a dense solver; ``converged``, ``method``,
    ``passes``, ``bytes`` as in ``NoiseEigenpairs``.
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
        """The number of eigenvalues above the threshold."""
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
        """Bound on the error of ``std`` by eigenvalues that were not computed; zero if ``whole``."""
        low, high = self._std_range()
        return (high - low) / 2

    def _std_range(self) -> tuple[float, float]:
        """The m missing eigenvalues have a known sum R and are at most λ_last: R²/m ≤ Σλ² ≤ λ_last R."""
        found = float(self.eigenvalues.square().sum())
        missing = 0 if self.whole else max(min(self.size - 1, self.dimension) - len(self.eigenvalues), 0)
        rest = max(self.trace - float(self.eigenvalues.sum()), 0.0) if missing else 0.0
        least, most = rest**2 / max(missing, 1), rest * float(self.eigenvalues[-1])
        bounds = (found + extra for extra in (least, max(most, least)))
        low, high = (math.sqrt(max(total / self.dimension - self.mean**2, 0.0)) for total in bounds)
        return low, high

    @property
    def clipped_mean(self) -> float:
        """Mean of all n eigenvalues, clipped from below at the threshold."""
        above = self.eigenvalues[self.eigenvalues > self.threshold]
        return (float(above.sum()) + (self.dimension - len(above)) * self.threshold) / self.dimension

    @property
    def clipped_std(self) -> float:
        """Deviation of all n eigenvalues, clipped from below at the threshold."""
        above = self.eigenvalues[self.eigenvalues > self.threshold] - self.clipped_mean
        below = (self.threshold - self.clipped_mean) ** 2 * (self.dimension - len(above))
        return math.sqrt((float(above.square().sum()) + below) / self.dimension)

    def histogram(self, bins: int = 50) -> SpectrumHistogram:
        """Logarithmic bins from the threshold to the largest eigenvalue; raise ValueError if none is above."""
        check_count("bins", bins, maximum=MOST)
        above = self.eigenvalues[self.eigenvalues > self.threshold]
        if not len(above) or self.threshold <= 0:
            raise ValueError(
                "a logarithmic histogram needs a threshold above zero and eigenvalues above it, got "
                f"{self.threshold:.3g} and {len(above)} of them"
            )
        low, high = math.log10(self.threshold), math.log10(float(above[0]))
        edges = torch.logspace(low, high, bins + 1, dtype=torch.float64)
        # inner edges only: rounding may put the extreme values outside the first or last edge
        places = (torch.bucketize(above, edges[1:-1])).clamp_max(bins - 1)
        counts = torch.bincount(places, minlength=bins)
        return SpectrumHistogram(edges, counts, self.dimension - len(above))

    def __str__(self) -> str:
        bound = "" if self.whole else f" (to within {self.std_bound:.1g})"
        return (
            f"rank {self.rank} of {self.dimension} ({100 * self.rank_fraction:.3g} %) above {self.threshold:.3g}, "
            f"λ {self.mean:.3g} ± {self.std:.3g}{bound}, clipped {self.clipped_mean:.3g} ± {self.clipped_std:.3g}; "
            f"{self.method}, {self.passes:.3g} passes{'' if self.converged else ', not converged'}"
        )


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
    r"""The spectrum of C: all of it if its matrix or the Gram matrix fits, else every eigenvalue above the threshold.

    "krylov" doubles the number of eigenvalues until the last is below the threshold. ``threshold`` None: the rule of
    the paper. ``method``, ``memory``, ``tolerance``, ``limit`` and ``seed`` as in ``top_eigenpairs``; the limit is for
    all rounds together.

    Raises as ``top_eigenpairs``, and ValueError if the memory is too small for the next round.
    """
    check_operator(operator)
    check_options(method, memory, tolerance, limit, seed)
    if threshold is not None:
        check_positive("threshold", threshold)
    before, most = operator.passes, largest_rank(operator)
    plan = choose(operator, max(most // 50, min(START, most)), method, memory)
    if plan.method == "krylov":
        search = Search(operator, threshold, memory, tolerance, limit, seed)
        values, residual, converged, plan = search.run()
    else:
        values, residual, converged = all_eigenvalues(operator, plan), 0.0, True
    return NoiseSpectrum(
        eigenvalues=values,
        dimension=operator.dimension,
        size=operator.size,
        trace=operator.trace,
        threshold=noise_threshold(operator, float(values[0]), plan.method) if threshold is None else threshold,
        whole=len(values) == most,
        residual=residual,
        converged=converged,
        method=plan.method,
        passes=operator.passes - before,
        bytes=plan.bytes,
    )


def layer_spectra(
    operator: CovarianceOperator, layers: Mapping[str, slice], **options: Any
) -> dict[str, NoiseSpectrum]:
    """The spectrum of every layer's diagonal block, name → coordinates; options as in ``noise_spectrum``.

    Each layer takes its own passes; with ``keep_gradients`` one pass serves all layers.
    """
    check_operator(operator)
    return {name: noise_spectrum(operator.layer(part), **options) for name, part in check_layers(layers).items()}


def noise_threshold(operator: CovarianceOperator, largest: float, method: str = "gram") -> float:
    r"""λ_max·n·eps(float32), Chaudhari & Soatto's threshold, or the level of rounding if larger.

    Relative errors of some eps in the gradients cause eigenvalues of c·(eps)²·(1/N)Σ‖g_i‖², which matters if examples
    have nearly equal gradients; eigenvalues of the Krylov method have errors of some eps of the largest, which matters
    for n < 10.
    """
    check_real("largest", largest)
    check_choice("method", method, METHODS)
    gradients = check_operator(operator).gradients
    length = operator.scale * float(gradients.mean[operator.part].double().square().sum()) + operator.trace
    eps = ROUNDING * torch.finfo(operator.like.dtype).eps
    share = max(operator.dimension * torch.finfo(torch.float32).eps, eps if method == "krylov" else 0.0)
    return max(largest * share, eps**2 * length)


def all_eigenvalues(operator: CovarianceOperator, plan: Plan) -> Tensor:
    """The min(N − 1, n) eigenvalues of C that can be nonzero, largest first, float64 on the CPU."""
    matrix = operator.dense() if plan.method == "dense" else operator.gram(plan.rows * operator.like.nbytes)
    values = torch.linalg.eigvalsh(check_finite(matrix)).flip(0)[: largest_rank(operator)].cpu()
    return values.clamp_min(0)  # negative values are rounding


@dataclass(frozen=True, eq=False)
class Search:
    """All eigenvalues above a threshold by the block Krylov method, in rounds of doubled number."""

    operator: CovarianceOperator
    threshold: float | None
    memory: int
    tolerance: float
    limit: int
    seed: int

    def run(self) -> tuple[Tensor, float, bool, Plan]:
        """Eigenvalues, the largest residual above the threshold, whether they converged, and the last round's plan."""
        most, spent = largest_rank(self.operator), 0
        count, block = min(START, most), self.operator.like.new_empty(0, self.operator.dimension)
        while True:
            plan = self._plan(count)
            start = widened_block(block, guarded_rows(self.operator, count), self.seed + spent)
            pairs = top_pairs(
                self.operator.products,
                start,
                count,
                tolerance=self.tolerance,
                limit=self.limit - spent,
                largest_basis=plan.rows,
            )
            spent, block = spent + pairs.products, pairs.vectors
            values, above = pairs.values[:count], pairs.values[:count] > self._level(pairs.values)
            if not bool(above[-1]) or count == most or spent >= self.limit:
                converged = pairs.converged and (count == most or not bool(above[-1]))
                residual = float(pairs.residuals[:count][above].max()) if bool(above.any()) else 0.0
                return values.clamp_min(0), residual, converged, plan
            count = min(2 * count, most)

    def _level(self, values: Tensor) -> float:
        return noise_threshold(self.operator, float(values[0]), "krylov") if self.threshold is None else self.threshold

    def _plan(self, count: int) -> Plan:
        plan = krylov_plan(self.operator, count, self.memory)
        if plan.bytes > self.memory:
            raise ValueError(
                f"memory must be at least {plan.bytes} bytes to look for {count} eigenvalues above the threshold, got "
                f"{self.memory}; all of the first half are above it"
            )
        return plan
