r"""Quantiles of a stream: exact while few samples have been seen, then a sketch that knows its own error.

The sketch is Dunning & Ertl's t-digest (2019, arXiv 1902.04023) with two numbers more. A cell stands for ``weight``
samples of mean ``mean`` that all lie in [``low``, ``high``]. Cells of shares p of the sample hold about
π √(p(1 − p))/K of it, K the ``size``: a fixed part, π√n/(2·1.96·K), of the statistical interval of the quantile at p,
wherever p is. From lows and highs every order statistic is bracketed with certainty,

    x_(r) ≥ the least v with Σ weight[low ≤ v] ≥ r,    x_(r) ≤ the least v with Σ weight[high ≤ v] ≥ r,

so that the distribution-free interval from order statistics holds for the sketch as it does for the sample.
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

from flows.ensembles.statistics import CONFIDENCE, Statistic, check_alike, check_confidence, check_samples, check_seen
from landscapes.errors import check_count, check_real


@dataclass(frozen=True, eq=False)
class Cells:
    """Cells (..., q, K) by their means, those of weight zero last; ``undefined`` (..., q): how many samples are NaN."""

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

    def joined(self, other: Cells) -> Cells:
        """The cells of both, in order."""
        mean, order = torch.cat([self.mean, other.mean], dim=-1).sort(dim=-1, stable=True)
        low, high, weight = (
            torch.cat(pair, dim=-1).gather(-1, order)
            for pair in ((self.low, other.low), (self.high, other.high), (self.weight, other.weight))
        )
        return Cells(self.count + other.count, low, high, mean, weight, self.undefined + other.undefined)

    def compressed(self, size: int) -> Cells:
        r"""At most ``size`` cells: those whose middle share p falls between two values k of K(½ + asin(2p − 1)/π).

        A cell of several has less than twice the share between such values, one of one has what it had.
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
        """Ranks and values (..., q, K + 2) that quantiles are read between: the extremes and the cells' means."""
        # The mean of a cell that holds the samples of ranks c + 1 … c + w stands at rank c + (w + 1)/2.
        ranks = self.weight.cumsum(dim=-1) - (self.weight - 1) / 2
        filled, n = self.weight > 0, float(self.count)
        least = self.low.amin(dim=-1, keepdim=True)
        most = torch.where(filled, self.high, -torch.inf).amax(dim=-1, keepdim=True)
        ranks = torch.cat([torch.ones_like(least), torch.where(filled, ranks, n), torch.full_like(most, n)], dim=-1)
        return ranks, torch.cat([least, torch.where(filled, self.mean, most), most], dim=-1)

    def at_least(self, ranks: Tensor) -> Tensor:
        """A value that the order statistics of these ranks (P,), 1 … n, are not below, (..., q, P)."""
        return reached(self.low, self.weight, ranks)

    def at_most(self, ranks: Tensor) -> Tensor:
        """A value that the order statistics of these ranks (P,), 1 … n, are not above, (..., q, P)."""
        return reached(self.high, self.weight, ranks)


def reached(ends: Tensor, weight: Tensor, ranks: Tensor) -> Tensor:
    """The least of the ends (..., q, K) up to which there is a weight of at least ``ranks`` (P,), (..., q, P)."""
    ends, order = ends.sort(dim=-1)
    total = weight.gather(-1, order).cumsum(dim=-1)
    wanted = ranks.to(total).expand(*total.shape[:-1], len(ranks)).contiguous()
    return ends.gather(-1, torch.searchsorted(total, wanted).clamp(max=ends.shape[-1] - 1))


@final
@dataclass(frozen=True, eq=False)
class Quantiles(Statistic):
    r"""Quantiles of each component of samples (n, ..., q) at ``probabilities`` (P,) in [0, 1].

    Exact, by linear interpolation of order statistics as numpy and torch have it, while no more than ``size`` samples
    were seen; from then on a sketch of ``size`` cells, 32·size bytes a component, whose certain error ``bracket`` and
    ``resolution`` tell. Its actual error at 10⁵ samples in 50 blocks, measured on 40 normal samples at p = 0.01 … 0.9:
    0.03 to 0.07 of the statistical error in root mean square, at worst 0.25; at a size of 512, 0.06 to 0.17 and 0.64.
    One NaN makes all quantiles of its component NaN. Raises ValueError or TypeError for probabilities out of place.
    """

    probabilities: Sequence[float]
    size: int = 2048
    cells: Cells | None = None

    def __post_init__(self) -> None:
        probabilities = tuple(check_real("probabilities", p) for p in self.probabilities)
        if not probabilities or not all(0 <= p <= 1 for p in probabilities):
            raise ValueError(f"probabilities must be numbers in [0, 1], at least one, got {self.probabilities!r}")
        check_count("size", self.size, minimum=8)
        object.__setattr__(self, "probabilities", probabilities)

    @property
    def count(self) -> int:
        return 0 if self.cells is None else self.cells.count

    @property
    def exact(self) -> bool:
        """Whether every sample is still there."""
        return self.count <= self.size

    def add(self, samples: Tensor) -> Quantiles:
        """With samples (n, ..., q) more."""
        return self.merge(replace(self, cells=Cells.of(check_samples(samples))))

    def merge(self, other: Quantiles) -> Quantiles:
        """Of both samples; raise unless probabilities and size are the same."""
        if (self.probabilities, self.size) != (other.probabilities, other.size):
            raise ValueError("probabilities and size must be the same in Quantiles that are merged; make both alike")
        cells = self.cells if other.cells is None else other.cells
        if self.cells is not None and other.cells is not None:
            check_alike("Quantiles", self.cells.undefined.shape, other.cells.undefined.shape)
            cells = self.cells.joined(other.cells)
        many = cells is not None and cells.mean.shape[-1] > self.size
        return replace(self, cells=cells.compressed(self.size) if cells is not None and many else cells)

    @property
    def values(self) -> Tensor:
        """The quantiles, (..., q, P): by interpolation between cells' means, within the bracket."""
        ranks, means = self._seen().points()
        wanted = self._ranks().expand(*ranks.shape[:-1], -1).contiguous()
        right = torch.searchsorted(ranks, wanted).clamp(max=ranks.shape[-1] - 1)
        left = (right - 1).clamp(min=0)
        (a, b), (r, s) = ((x.gather(-1, left), x.gather(-1, right)) for x in (means, ranks))
        found = between(a, b, ((wanted - r) / (s - r)).nan_to_num(0.0, 0.0, 0.0))
        low, high = self.bracket
        return torch.minimum(torch.maximum(found, low), high)

    @property
    def bracket(self) -> tuple[Tensor, Tensor]:
        """What the quantiles of all samples seen lie between, with certainty, both (..., q, P)."""
        cells, ranks = self._seen(), self._ranks()
        part = ranks.frac()
        low = between(cells.at_least(ranks.floor()), cells.at_least(ranks.ceil()), part)
        high = between(cells.at_most(ranks.floor()), cells.at_most(ranks.ceil()), part)
        return self._defined(low), self._defined(high)

    @property
    def resolution(self) -> Tensor:
        """The share of the sample of which it is not known on which side of ``values`` it lies, (..., q, P)."""
        cells, values = self._seen(), self.values[..., None, :]
        unknown = (cells.low[..., None] <= values) & (cells.high[..., None] > values)  # (..., q, K, P)
        return (unknown * cells.weight[..., None]).sum(dim=-2) / self.count

    def interval(self, confidence: float = CONFIDENCE) -> tuple[Tensor, Tensor]:
        r"""What the law's quantiles lie between, whatever the law, with at least that confidence, both (..., q, P).

        From order statistics: x_(l) ≤ quantile ≤ x_(u) where a binomial number of n trials at p lies in [l, u) with
        that probability, less half of the rest on each side; infinite where n is too small for an end.
        """
        cells, n = self._seen(), self.count
        tail = (1 - check_confidence(confidence)) / 2
        p = np.array(self.probabilities)
        lower = torch.from_numpy(stats.binom.ppf(tail, n, p))
        upper = torch.from_numpy(stats.binom.ppf(1 - tail, n, p)) + 1
        low = torch.where((lower < 1).to(cells.mean.device), -torch.inf, cells.at_least(lower.clamp(min=1)))
        high = torch.where((upper > n).to(cells.mean.device), torch.inf, cells.at_most(upper.clamp(max=n)))
        return self._defined(low), self._defined(high)

    def _ranks(self) -> Tensor:
        """1 + (n − 1)p, (P,): a quantile lies between the order statistics of the whole ranks beside."""
        cells = self._seen()
        return 1 + (self.count - 1) * torch.tensor(self.probabilities, dtype=torch.float64, device=cells.mean.device)

    def _defined(self, quantiles: Tensor) -> Tensor:
        """NaN in place of quantiles of components that have seen NaN."""
        return torch.where(self._seen().undefined[..., None] > 0, torch.nan, quantiles)

    def _seen(self) -> Cells:
        check_seen(self)
        assert self.cells is not None
        return self.cells


def between(a: Tensor, b: Tensor, part: Tensor) -> Tensor:
    """a + part·(b − a) for a ≤ b, where either may be infinite."""
    inside = torch.where(a == b, a, a + part * (b - a))
    return torch.where(part == 0, a, torch.where(part == 1, b, inside))
