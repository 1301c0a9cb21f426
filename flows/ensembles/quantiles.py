r"""Quantiles of a stream: exact for few samples, then a sketch with rigorous error bounds.

The sketch is Dunning & Ertl's t-digest (2019, arXiv 1902.04023) with two more numbers per cell. A cell represents
``weight`` samples of mean ``mean`` that all lie in [``low``, ``high``]. A cell at the quantile p contains a fraction of
about π √(p(1 − p))/K of the sample, K the ``size``: a fraction π√n/(2·1.96·K) of the statistical interval of the
quantile, the same for every p. Lows and highs bound every order statistic,

    x_(r) ≥ the least v with Σ weight[low ≤ v] ≥ r,    x_(r) ≤ the least v with Σ weight[high ≤ v] ≥ r,

so that the distribution-free interval from order statistics holds for the sketch, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

import numpy as np
import torch
from scipy import stats
from torch import Tensor

from flows.ensembles.statistics import (
    CONFIDENCE,
    MOST,
    Statistic,
    check_alike,
    check_confidence,
    check_kind,
    check_nonempty,
    check_samples,
    numbers_of,
)
from landscapes.errors import check_count, short_form


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells (..., q, K) sorted by mean, those of weight zero last; ``undefined`` (..., q): number of NaN samples."""

    count: int
    low: Tensor
    high: Tensor
    mean: Tensor
    weight: Tensor
    undefined: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> Cells:
        """A cell for each sample (n, ..., q), float64."""
        values = samples.movedim(0, -1).contiguous().sort(dim=-1).values
        return cls(len(samples), values, values, values, torch.ones_like(values), values.isnan().sum(dim=-1))

    def join(self, other: Cells) -> Cells:
        """The cells of both, in order."""
        mean, order = torch.cat([self.mean, other.mean], dim=-1).sort(dim=-1, stable=True)
        low, high, weight = (
            torch.cat(pair, dim=-1).gather(-1, order)
            for pair in ((self.low, other.low), (self.high, other.high), (self.weight, other.weight))
        )
        return Cells(self.count + other.count, low, high, mean, weight, self.undefined + other.undefined)

    def compress(self, size: int) -> Cells:
        r"""At most ``size`` = K cells, merged if K(½ + asin(2p − 1)/π) has the same integer part at their mid-ranks p.

        A merged cell has less than twice the fraction between two such integers; a cell of one is unchanged.
        """
        middle = (self.weight.cumsum(dim=-1) - self.weight / 2) / self.count
        places = (size * (0.5 + (2 * middle - 1).clamp(-1, 1).asin() / math.pi)).long().clamp(0, size - 1)
        shape = (*places.shape[:-1], size)
        none = self.mean.new_full(shape, torch.inf)
        weight = self.mean.new_zeros(shape).scatter_add_(-1, places, self.weight)
        filled = self.weight > 0  # an empty cell's infinite mean would turn its neighbours' into NaN
        sums = torch.where(filled, self.weight * self.mean, 0.0)
        total = self.mean.new_zeros(shape).scatter_add_(-1, places, sums)
        low = none.scatter_reduce(-1, places, torch.where(filled, self.low, torch.inf), "amin")
        high = (-none).scatter_reduce(-1, places, torch.where(filled, self.high, -torch.inf), "amax")
        mean = torch.where(weight > 0, total / weight, torch.inf)
        high = torch.where(weight > 0, high, torch.inf)
        # Weighted means of equal or huge numbers may leave their range by rounding.
        mean = torch.minimum(torch.maximum(mean, low), high)
        mean, order = mean.sort(dim=-1, stable=True)
        low, high, weight = (x.gather(-1, order) for x in (low, high, weight))
        return Cells(self.count, low, high, mean, weight, self.undefined)

    def points(self) -> tuple[Tensor, Tensor]:
        """Ranks and values (..., q, K + 2) for interpolation of quantiles: the extremes and the cells' means."""
        # The mean of a cell with the samples of ranks c + 1 … c + w has the rank c + (w + 1)/2.
        ranks = self.weight.cumsum(dim=-1) - (self.weight - 1) / 2
        filled, n = self.weight > 0, float(self.count)
        least = self.low.amin(dim=-1, keepdim=True)
        most = torch.where(filled, self.high, -torch.inf).amax(dim=-1, keepdim=True)
        ranks = torch.cat([torch.ones_like(least), torch.where(filled, ranks, n), torch.full_like(most, n)], dim=-1)
        return ranks, torch.cat([least, torch.where(filled, self.mean, most), most], dim=-1)

    def at_least(self, ranks: Tensor) -> Tensor:
        """A lower bound of the order statistics of these ranks (P,), 1 … n, (..., q, P)."""
        return least_end(self.low, self.weight, ranks)

    def at_most(self, ranks: Tensor) -> Tensor:
        """An upper bound of the order statistics of these ranks (P,), 1 … n, (..., q, P)."""
        return least_end(self.high, self.weight, ranks)


def least_end(ends: Tensor, weight: Tensor, ranks: Tensor) -> Tensor:
    """The least of the ends (..., q, K) with a cumulative weight of at least ``ranks`` (P,), (..., q, P)."""
    ends, order = ends.sort(dim=-1)
    total = weight.gather(-1, order).cumsum(dim=-1)
    wanted = ranks.to(total).expand(*total.shape[:-1], len(ranks)).contiguous()
    return ends.gather(-1, torch.searchsorted(total, wanted).clamp(max=ends.shape[-1] - 1))


@final
@dataclass(frozen=True, eq=False)
class Quantiles(Statistic):
    r"""Quantiles of each component of samples (n, ..., q) at ``probabilities`` (P,) in [0, 1].

    Exact for up to ``size`` samples, by linear interpolation of order statistics as in numpy and torch; beyond, a
    sketch of ``size`` cells, 32·size bytes per component, with rigorous error bounds ``bracket`` and ``resolution``.
    Its actual error for 10⁵ samples in 50 blocks, measured on 40 normal samples at p = 0.01 … 0.9, is 0.03 to 0.07 of
    the statistical error in root mean square and at most 0.25; for a size of 512, 0.06 to 0.17 and 0.64. One NaN makes
    all quantiles of its component NaN. Raises ValueError or TypeError for invalid probabilities.
    """

    probabilities: Sequence[float]
    size: int = 2048
    cells: Cells | None = None

    def __post_init__(self) -> None:
        probabilities = tuple(numbers_of("probabilities", self.probabilities).reshape(-1).tolist())
        if not probabilities or not all(0 <= p <= 1 for p in probabilities):
            given = short_form(self.probabilities)
            raise ValueError(f"probabilities must be numbers in [0, 1], at least one, got {given}")
        check_count("size", self.size, minimum=8, maximum=MOST)
        object.__setattr__(self, "probabilities", probabilities)

    @property
    def count(self) -> int:
        return 0 if self.cells is None else self.cells.count

    @property
    def exact(self) -> bool:
        """Whether every sample is still stored."""
        return self.count <= self.size

    def add(self, samples: Tensor) -> Quantiles:
        """The statistic with the samples (n, ..., q) added."""
        return self.merge(replace(self, cells=Cells.of(check_samples(samples))))

    def merge(self, other: Quantiles) -> Quantiles:
        """The statistic of both samples; raise unless probabilities and size are the same."""
        check_kind(self, other)
        if (self.probabilities, self.size) != (other.probabilities, other.size):
            raise ValueError("probabilities and size must be the same in Quantiles that are merged")
        cells = self.cells if other.cells is None else other.cells
        if self.cells is not None and other.cells is not None:
            check_alike("Quantiles", self.cells.undefined.shape, other.cells.undefined.shape)
            cells = self.cells.join(other.cells)
        many = cells is not None and cells.mean.shape[-1] > self.size
        return replace(self, cells=cells.compress(self.size) if cells is not None and many else cells)

    @property
    def values(self) -> Tensor:
        """The quantiles, (..., q, P): by interpolation between cells' means, within the bracket."""
        ranks, means = self._nonempty().points()
        wanted = self._ranks().expand(*ranks.shape[:-1], -1).contiguous()
        right = torch.searchsorted(ranks, wanted).clamp(max=ranks.shape[-1] - 1)
        left = (right - 1).clamp(min=0)
        (a, b), (r, s) = ((x.gather(-1, left), x.gather(-1, right)) for x in (means, ranks))
        found = interpolate(a, b, ((wanted - r) / (s - r)).nan_to_num(0.0, 0.0, 0.0))
        low, high = self.bracket
        return torch.minimum(torch.maximum(found, low), high)

    @property
    def bracket(self) -> tuple[Tensor, Tensor]:
        """Bounds of the sample quantiles, lower and upper, both (..., q, P)."""
        cells, ranks = self._nonempty(), self._ranks()
        part = ranks.frac()
        low = interpolate(cells.at_least(ranks.floor()), cells.at_least(ranks.ceil()), part)
        high = interpolate(cells.at_most(ranks.floor()), cells.at_most(ranks.ceil()), part)
        return self._mask_undefined(low), self._mask_undefined(high)

    @property
    def resolution(self) -> Tensor:
        """The fraction of the sample in cells that contain ``values``, whose side is thus unknown, (..., q, P)."""
        cells, values = self._nonempty(), self.values[..., None, :]
        unknown = (cells.low[..., None] <= values) & (cells.high[..., None] > values)  # (..., q, K, P)
        return (unknown * cells.weight[..., None]).sum(dim=-2) / self.count

    def interval(self, confidence: float = CONFIDENCE) -> tuple[Tensor, Tensor]:
        r"""Distribution-free confidence interval of the law's quantiles, its two ends, both (..., q, P).

        From order statistics: x_(l) ≤ quantile ≤ x_(u) if a binomial number of n trials with probability p lies in
        [l, u); each side has at most (1 − confidence)/2. An end is infinite if n is too small for it.
        """
        cells, n = self._nonempty(), self.count
        tail = (1 - check_confidence(confidence)) / 2
        p = np.array(self.probabilities)
        lower = torch.from_numpy(stats.binom.ppf(tail, n, p))
        upper = torch.from_numpy(stats.binom.ppf(1 - tail, n, p)) + 1
        low = torch.where((lower < 1).to(cells.mean.device), -torch.inf, cells.at_least(lower.clamp(min=1)))
        high = torch.where((upper > n).to(cells.mean.device), torch.inf, cells.at_most(upper.clamp(max=n)))
        return self._mask_undefined(low), self._mask_undefined(high)

    def _ranks(self) -> Tensor:
        """1 + (n − 1)p, (P,): quantiles interpolate the order statistics at the two neighbouring integers."""
        cells = self._nonempty()
        return 1 + (self.count - 1) * torch.tensor(self.probabilities, dtype=torch.float64, device=cells.mean.device)

    def _mask_undefined(self, quantiles: Tensor) -> Tensor:
        """The quantiles, replaced by NaN in components with NaN samples."""
        return torch.where(self._nonempty().undefined[..., None] > 0, torch.nan, quantiles)

    def _nonempty(self) -> Cells:
        check_nonempty(self)
        assert self.cells is not None
        return self.cells


def interpolate(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """a + part·(b − a) for a ≤ b, either of which may be infinite."""
    # At equal or infinite ends the formula gives ∞ − ∞ or 0·∞: both are NaN, and selected away.
    inside = torch.where(a == b, a, a + part * (b - a))
    return torch.where(part == 0, a, torch.where(part == 1, b, inside))
