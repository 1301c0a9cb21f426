r"""Streamed statistics of many paths: a few numbers per component, independent of the number of paths.

Samples come in blocks (n, ..., q): n paths, q jointly distributed components, and any dimensions between. A statistic
is immutable: a new one is empty, ``add`` returns one with one more block, ``merge`` one of both samples, independent of
the order up to rounding. Sums are float64 on the samples' device; NaN is never ignored. ``Moments`` and ``Histogram``
are defined here, ``Quantiles`` in ``quantiles``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar, final

import torch
from scipy import stats
from torch import Tensor

from landscapes.errors import as_list, check_computable, check_real, short_form

CONFIDENCE = 0.95
MOST = 10**8  # paths, steps, cells: more are a slip, and would run for years or fill the memory

Kind = TypeVar("Kind", bound="Statistic")


class Statistic(ABC):
    """A statistic of a sample that comes in blocks. Subclasses are frozen dataclasses, empty on construction."""

    @property
    @abstractmethod
    def count(self) -> int:
        """n, the number of paths."""

    @abstractmethod
    def add(self: Kind, samples: Tensor) -> Kind:
        """The statistic with ``samples`` (n, ..., q) added."""

    @abstractmethod
    def merge(self: Kind, other: Kind) -> Kind:
        """The statistic of both samples."""


def check_samples(samples: Tensor) -> Tensor:
    """Samples (n, ..., q) in float64, detached; raise unless they are real and of that shape, with n, q ≥ 1."""
    if not isinstance(samples, Tensor):
        raise TypeError(f"samples must be a torch.Tensor, got {type(samples).__name__}; wrap it in torch.tensor(...)")
    if samples.is_complex():
        raise TypeError(f"samples must be real, got {samples.dtype}; take .real, .imag or .abs() of them")
    if samples.ndim < 2 or samples.numel() == 0:
        raise ValueError(
            f"samples must have shape (n, ..., q) with n, q >= 1, got {tuple(samples.shape)}; for one number per path "
            "give samples[..., None]"
        )
    return samples.detach().to(torch.float64)


def check_nonempty(statistic: Statistic) -> None:
    """Raise unless the statistic has samples."""
    if statistic.count == 0:
        raise ValueError(f"{type(statistic).__name__} must have samples first: count is 0; use add(samples)")


def check_alike(name: str, shape: torch.Size, other: torch.Size) -> None:
    """Raise unless the samples of two statistics have the same shape (..., q)."""
    if shape != other:
        raise ValueError(
            f"{name} must be of samples of one shape, got (n, *{tuple(shape)}) and (n, *{tuple(other)}): "
            "use one statistic for each"
        )


def check_kind(statistic: Statistic, other: object) -> None:
    """Raise unless the other statistic, to be merged, is of the same class."""
    if not isinstance(other, type(statistic)):
        raise TypeError(f"other must be a {type(statistic).__name__} to be merged, got {type(other).__name__}")


def check_confidence(confidence: float) -> float:
    """Return ``confidence``; raise unless it lies between 0 and 1."""
    if not 0 < check_real("confidence", confidence) < 1:
        raise ValueError(f"confidence must lie in (0, 1), got {confidence!r}; the usual is {CONFIDENCE}")
    return float(confidence)


@dataclass(frozen=True, eq=False)
class CentralSums:
    r"""Sums over n samples with d = x − mean: ``second`` Σ d_i d_j, ``third`` Σ d_i² d_j, ``fourth`` Σ d_i² d_j².

    ``mean`` (..., q), the sums (..., q, q).
    """

    count: int
    mean: Tensor
    second: Tensor
    third: Tensor
    fourth: Tensor

    @classmethod
    def of(cls, samples: Tensor) -> CentralSums:
        """The sums of samples (n, ..., q), float64."""
        mean = samples.mean(dim=0)
        deviations = samples - mean
        # The mean of numbers far from zero has an error in their last digits; the mean of the deviations corrects it.
        rest = deviations.mean(dim=0)
        deviations = (deviations - rest).movedim(0, -2)  # (..., n, q)
        squares = deviations.square()
        return cls(
            len(samples),
            mean + rest,
            deviations.mT @ deviations,
            squares.mT @ deviations,
            squares.mT @ squares,
        )

    def merge(self, other: CentralSums) -> CentralSums:
        r"""The sums of both samples about the common mean.

        Chan, Golub & LeVeque 1979 for the second moments; Pébay 2008 for higher ones.
        """
        count = self.count + other.count
        gap = other.mean - self.mean
        # Both are shifted by a part of the gap: sums about zero would cancel if the mean is large.
        left, right = self.sums_about(gap * (other.count / count)), other.sums_about(-gap * (self.count / count))
        second, third, fourth = (a + b for a, b in zip(left, right, strict=True))
        return CentralSums(count, self.mean + gap * (other.count / count), second, third, fourth)

    def sums_about(self, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The three sums about mean + ``shift`` s (..., q) in place of the mean; terms with Σ d = 0 are omitted."""
        n = self.count
        i, j = shift[..., :, None], shift[..., None, :]  # s_i, s_j
        squares = self.second.diagonal(dim1=-2, dim2=-1)  # Σ d_i²
        row, column = squares[..., :, None], squares[..., None, :]
        second = self.second + n * i * j
        third = self.third - j * row - 2 * i * self.second - n * i.square() * j
        fourth = self.fourth - 2 * j * self.third - 2 * i * self.third.mT
        fourth = fourth + j.square() * row + i.square() * column + 4 * i * j * self.second + n * (i * j).square()
        return second, third, fourth


@final
@dataclass(frozen=True, eq=False)
class Moments(Statistic):
    r"""Mean and covariance of samples (n, ..., q), with the standard errors of both.

    The covariance takes (..., q, q): for large q and variances only, give samples (n, ..., q, 1). Deviations are taken
    from block means, and block means from each other, which avoids cancellation if the mean is much larger than the
    standard deviation. NaN or infinite samples propagate to all results that depend on them. Results of an empty
    statistic raise ValueError; variances of one sample are NaN.
    """

    sums: CentralSums | None = None

    @property
    def count(self) -> int:
        return 0 if self.sums is None else self.sums.count

    def add(self, samples: Tensor) -> Moments:
        """The statistic with the samples (n, ..., q) added."""
        return self.merge(Moments(CentralSums.of(check_samples(samples))))

    def merge(self, other: Moments) -> Moments:
        check_kind(self, other)
        if self.sums is None or other.sums is None:
            return other if self.sums is None else self
        check_alike("Moments", self.sums.mean.shape, other.sums.mean.shape)
        return Moments(self.sums.merge(other.sums))

    @property
    def mean(self) -> Tensor:
        """Mean, (..., q)."""
        return self._nonempty().mean

    @property
    def covariance(self) -> Tensor:
        """Covariance S = Σ d dᵀ/(n − 1), unbiased, (..., q, q)."""
        return divide(self._nonempty().second, self.count - 1)

    @property
    def variance(self) -> Tensor:
        """Diagonal of the covariance, (..., q)."""
        return self.covariance.diagonal(dim1=-2, dim2=-1)

    @property
    def standard_error(self) -> Tensor:
        """Standard error of the mean, √(S_ii/n), (..., q)."""
        return (self.variance / self.count).sqrt()

    @property
    def covariance_error(self) -> Tensor:
        r"""Standard error of the covariance, (..., q, q).

        Var S_ij = (μ_iijj − C_ij²)/n + (C_ii C_jj + C_ij²)/(n(n − 1)), exact for independent samples of any law, with
        estimates of C and of the fourth moments μ_iijj, which are inaccurate for few samples or heavy tails.
        """
        n, covariance, variance = self.count, self.covariance, self.variance
        squares = covariance.square()
        spread = (self._nonempty().fourth / n - squares).clamp(min=0) / n
        products = variance[..., :, None] * variance[..., None, :]
        return (spread + divide(products + squares, n * (n - 1))).sqrt()

    @property
    def variance_error(self) -> Tensor:
        """Standard error of the variance, (..., q)."""
        return self.covariance_error.diagonal(dim1=-2, dim2=-1)

    def interval(self, confidence: float = CONFIDENCE) -> tuple[Tensor, Tensor]:
        """The mean less and plus Student's t times its standard error, both (..., q)."""
        quantile = float(stats.t.ppf((1 + check_confidence(confidence)) / 2, max(self.count - 1, 1)))
        half = quantile * self.standard_error
        return self.mean - half, self.mean + half

    def _nonempty(self) -> CentralSums:
        check_nonempty(self)
        assert self.sums is not None
        return self.sums


def divide(sums: Tensor, count: int) -> Tensor:
    """sums/count; NaN if count is not positive."""
    return sums / count if count > 0 else torch.full_like(sums, torch.nan)


def numbers_of(name: str, values: Sequence[float] | Tensor) -> Tensor:
    """Numbers as a tensor of float64, detached; raise TypeError unless they are a sequence of real numbers."""
    if isinstance(values, Tensor) and check_computable(name, values).ndim and not values.is_complex():
        return values.detach().double()
    if isinstance(values, (Tensor, Mapping)):
        raise TypeError(f"{name} must be a sequence of real numbers, got {short_form(values)}")
    numbers = [number_of(name, x) for x in as_list(name, values, "real numbers")]
    return torch.tensor(numbers, dtype=torch.float64)


def number_of(name: str, value: float | Tensor) -> float:
    """A finite real number, or a dense tensor of one, as a float; raise for other values."""
    single = isinstance(value, Tensor) and check_computable(name, value).numel() == 1
    return check_real(name, value.item() if single else value)  # type: ignore[union-attr, arg-type]


@final
@dataclass(frozen=True, eq=False)
class Histogram(Statistic):
    r"""The number of samples in each bin, below, above, and NaN, for each component.

    ``edges`` (B + 1,), strictly increasing, shared by all components. Bins are [a, b), the last one [a, b] as in numpy.
    ``tallies`` (..., q, B + 3): below, the bins, above, undefined. Raises ValueError or TypeError for other edges.
    """

    edges: Sequence[float] | Tensor
    tallies: Tensor | None = None

    def __post_init__(self) -> None:
        edges = numbers_of("edges", self.edges)
        if edges.ndim != 1 or len(edges) < 2:
            raise ValueError(f"edges must have shape (B + 1,) with B >= 1 bins, got {tuple(edges.shape)}")
        if not bool(edges.isfinite().all() and (edges.diff() > 0).all()):
            raise ValueError(f"edges must be finite and strictly increasing, got {edges.tolist()}")
        object.__setattr__(self, "edges", edges)

    @property
    def count(self) -> int:
        return 0 if self.tallies is None else int(self.tallies.reshape(-1, self.tallies.shape[-1])[0].sum())

    @property
    def bounds(self) -> Tensor:
        """The edges (B + 1,), float64, on the device of the samples."""
        edges = torch.as_tensor(self.edges)
        return edges if self.tallies is None else edges.to(self.tallies.device)

    def add(self, samples: Tensor) -> Histogram:
        """The statistic with the samples (n, ..., q) added."""
        values = check_samples(samples).movedim(0, -1).contiguous()  # (..., q, n)
        edges = torch.as_tensor(self.edges).to(values.device)
        bins = len(edges) - 1
        places = torch.searchsorted(edges, values, right=True)
        places = torch.where(values == edges[-1], bins, places)
        places = torch.where(values.isnan(), bins + 2, places)
        tallies = torch.zeros(*values.shape[:-1], bins + 3, dtype=torch.int64, device=values.device)
        return self.merge(replace(self, tallies=tallies.scatter_add_(-1, places, torch.ones_like(places))))

    def merge(self, other: Histogram) -> Histogram:
        """The statistic of both samples; raise unless the edges are the same."""
        check_kind(self, other)
        if not torch.equal(torch.as_tensor(self.edges).cpu(), torch.as_tensor(other.edges).cpu()):
            raise ValueError("edges must be the same in histograms that are merged")
        if self.tallies is None or other.tallies is None:
            return other if self.tallies is None else self
        check_alike("Histogram", self.tallies.shape[:-1], other.tallies.shape[:-1])
        return replace(self, tallies=self.tallies + other.tallies)

    @property
    def counts(self) -> Tensor:
        """Samples in each bin, (..., q, B)."""
        return self.seen[..., 1:-2]

    @property
    def below(self) -> Tensor:
        """Samples below the first edge, (..., q)."""
        return self.seen[..., 0]

    @property
    def above(self) -> Tensor:
        """Samples above the last edge, (..., q)."""
        return self.seen[..., -2]

    @property
    def undefined(self) -> Tensor:
        """Samples that are NaN, (..., q)."""
        return self.seen[..., -1]

    @property
    def density(self) -> Tensor:
        """Fraction of all samples in a bin, over its width, (..., q, B)."""
        return self.counts / self.count / self.bounds.diff()

    @property
    def standard_error(self) -> Tensor:
        """Binomial standard error of the density, √(p(1 − p)/n) over the width, (..., q, B); zero for empty bins."""
        share = self.counts / self.count
        return (share * (1 - share) / self.count).sqrt() / self.bounds.diff()

    def interval(self, confidence: float = CONFIDENCE) -> tuple[Tensor, Tensor]:
        """Clopper and Pearson's interval of the density, both (..., q, B); valid for empty bins, too."""
        tail = (1 - check_confidence(confidence)) / 2
        counts = self.counts.cpu().double().numpy()
        # Beta(0, ·) and Beta(·, 0), NaN in scipy, are the ends 0 and 1.
        low = torch.as_tensor(stats.beta.ppf(tail, counts, self.count - counts + 1)).nan_to_num(0.0)
        high = torch.as_tensor(stats.beta.isf(tail, counts + 1, self.count - counts)).nan_to_num(1.0)
        widths = self.bounds.diff()
        return low.to(widths) / widths, high.to(widths) / widths

    @property
    def seen(self) -> Tensor:
        """The tallies; ValueError if there are no samples."""
        check_nonempty(self)
        assert self.tallies is not None
        return self.tallies
