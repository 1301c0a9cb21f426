r"""Sampling of mini-batches of b out of N examples, and the covariance of their gradient under each scheme.

A subset costs O(b) random numbers, whatever N is: b independent draws, of which those that repeat an earlier one are
drawn again until none does. The rule looks at the pattern of repeats only, not at the values, and so commutes with
every permutation of the examples: all ordered b-tuples of different examples are equally likely.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from landscapes.errors import check_choice, check_count

DENSE = 16  # N/b up to which one sort of N = O(b) numbers is faster than a search for repeats


@dataclass(frozen=True)
class Sampling(ABC):
    """Mini-batches of b out of N examples, drawn independently for each batch member."""

    size: int
    batch_size: int

    @abstractmethod
    def draw(self, order: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The examples (..., m) of step k, and the order to pass to the next step."""

    def variance_factor(self) -> float:
        """c in Cov(g_batch) = c·D, D the centred covariance of the examples' gradients."""
        # A batch without replacement, of an epoch or not: (1/b)(N − b)/(N − 1), zero for the full batch.
        return 0.0 if self.size == 1 else (self.size - self.batch_size) / (self.size - 1) / self.batch_size

    def diffusion_factor(self) -> float:
        """c in the diffusion h·c·D of the noise that drives a continuous model; c·D is the covariance of one step."""
        return self.variance_factor()

    def steps_to_zero(self) -> int | None:
        """Number of steps over which the noise sums to zero: an epoch's steps if reshuffled, else None."""
        return None

    def first_order(self, batch: torch.Size, device: torch.device) -> Tensor:
        """The order of the first ``draw``, with the leading shape ``batch``: (..., 0), as independent draws need none.

        For an epoch it is the examples in their given order, (..., N).
        """
        return torch.empty(*batch, 0, dtype=torch.int64, device=device)


@final
@dataclass(frozen=True)
class Replacement(Sampling):
    """Each example drawn uniformly and independently: Cov = D/b."""

    def draw(self, order: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        shape = (*order.shape[:-1], self.batch_size)
        return torch.randint(self.size, shape, generator=generator, device=order.device), order

    def variance_factor(self) -> float:
        """1/b."""
        return 1 / self.batch_size


@final
@dataclass(frozen=True)
class Subset(Sampling):
    """A fresh subset of b different examples at each step: Cov = (D/b)(N − b)/(N − 1)."""

    def draw(self, order: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """b different examples in random order, independent of the step before."""
        return draw_distinct(self.size, self.batch_size, order.shape[:-1], generator, order.device), order


@final
@dataclass(frozen=True)
class Epoch(Sampling):
    """A reshuffled pass over all examples; the last batch of an epoch is smaller if b does not divide N.

    One step has a subset's covariance cD. Over an epoch of m = N/b steps the noise sums to zero: two of its steps have
    the covariance −cD/(m − 1), that of independent increments of covariance cD·m/(m − 1) less their mean.
    """

    def draw(self, order: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The next b examples of the current epoch's order (..., N)."""
        place = k % math.ceil(self.size / self.batch_size)
        if place == 0:
            order = permutation(self.size, order.shape[:-1], generator, order.device)
        return order[..., place * self.batch_size : (place + 1) * self.batch_size], order

    def first_order(self, batch: torch.Size, device: torch.device) -> Tensor:
        return torch.arange(self.size, device=device).expand(*batch, -1)

    def diffusion_factor(self) -> float:
        """c·m/(m − 1) = N/((N − 1) b), before the mean over the epoch is subtracted; zero for the full batch."""
        return 0.0 if self.batch_size == self.size else self.size / (self.size - 1) / self.batch_size

    def steps_to_zero(self) -> int | None:
        """m = N/b. Raises ValueError if b does not divide N: the noise of the last step then differs."""
        if self.size % self.batch_size:
            raise ValueError(
                f"batch_size must divide the {self.size} examples for sampling='epoch' in continuous time, got "
                f"{self.batch_size}: the noise of the last batch of an epoch would differ; drop examples with "
                "restrict, or use sampling='subset'"
            )
        return self.size // self.batch_size


SAMPLINGS: dict[str, type[Sampling]] = {"replacement": Replacement, "subset": Subset, "epoch": Epoch}
"""The three sampling schemes by name."""


def sampling_of(size: int, batch_size: int, sampling: str) -> Sampling:
    """The sampling of that name; raise unless 1 ≤ batch_size ≤ size."""
    kind = SAMPLINGS[check_choice("sampling", sampling, tuple(SAMPLINGS))]
    if check_count("batch_size", batch_size) > size:
        raise ValueError(f"batch_size must be at most the number of examples, {size}, got {batch_size}")
    return kind(size, batch_size)


def permutation(size: int, batch: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """A uniform permutation of ``size`` numbers for each member of the batch, (*batch, size)."""
    # sorting uniforms batches, which torch.randperm does not; float64, as ties of float32 would bias the order
    return torch.rand(*batch, size, generator=generator, device=device, dtype=torch.float64).argsort(dim=-1)


def draw_distinct(size: int, count: int, batch: torch.Size, generator: torch.Generator, device: torch.device) -> Tensor:
    """``count`` different numbers below ``size``, (*batch, count); all ordered tuples are equally likely; O(count)."""
    if size <= DENSE * count:
        return permutation(size, batch, generator, device)[..., :count]
    return redraw_repeats(size, count, batch, generator, device)


def redraw_repeats(
    size: int, count: int, batch: torch.Size, generator: torch.Generator, device: torch.device
) -> Tensor:
    """``draw_distinct`` by independent draws, in which numbers that occur earlier in their row are drawn again."""
    index = torch.randint(size, (batch.numel(), count), generator=generator, device=device)
    rows, part = torch.arange(len(index), device=device), index
    while True:
        values, places = part.sort(dim=-1, stable=True)  # equal numbers stay in the order of their places
        if bool(values.diff(dim=-1).all()):
            return index.view(*batch, count)
        same = values[:, 1:] == values[:, :-1]
        later = torch.zeros_like(part, dtype=torch.bool).scatter_(-1, places[:, 1:], same)  # occurs earlier in its row
        left = same.any(dim=-1)
        rows, part, later = rows[left], part[left], later[left]
        part[later] = torch.randint(size, (int(later.sum()),), generator=generator, device=device)
        index[rows] = part
