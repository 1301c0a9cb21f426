r"""Spearman's rank correlation with a bootstrap interval over the random parts: pairs of classes, and seeds in them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor

RESAMPLES = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Correlation:
    """A rank correlation with its percentile interval; NaN if one of the two variables is constant."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isnan(self.value):
            return "–"
        return f"{self.value:+.2f} [{self.low:+.2f}, {self.high:+.2f}]"


def spearman(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Rank correlation along the last axis, ties at their mean rank; NaN if all ranks are equal."""
    one, other = (rankdata(values, axis=-1) for values in (x, y))
    one, other = (ranks - ranks.mean(axis=-1, keepdims=True) for ranks in (one, other))
    scale = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(scale > 0, (one * other).sum(axis=-1) / scale, np.nan)


def pooled_correlation(x: Tensor, y: Tensor) -> np.ndarray:
    """Correlation over all cells: x, y (..., groups, pairs) of means."""
    return spearman(x.flatten(-2).numpy(), y.flatten(-2).numpy())


def inner_correlation(x: Tensor, y: Tensor) -> np.ndarray:
    """Correlation over the pairs of each group, averaged over groups, without the differences between groups."""
    found = spearman(x.numpy(), y.numpy())
    return found.mean(axis=-1)


def correlate(x: Tensor, y: Tensor, inner: bool, seed: int) -> Correlation:
    r"""The correlation of x and y (groups, pairs, seeds), of their means over seeds, with its interval.

    Resamples draw pairs of classes, the same for every group, and seeds within each cell, the same for x and y. The
    groups are architectures, which are fixed, not a random sample.
    """
    measure = inner_correlation if inner else pooled_correlation
    groups, pairs, seeds = x.shape
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(pairs, (RESAMPLES, 1, pairs, 1), generator=generator)
    chosen = torch.randint(seeds, (RESAMPLES, groups, pairs, seeds), generator=generator)
    places = torch.arange(groups)[:, None, None]
    resampled = [values[places, drawn, chosen].mean(dim=-1) for values in (x, y)]  # (resamples, groups, pairs)
    spread = measure(*resampled)
    spread = spread[np.isfinite(spread)]
    value = float(measure(x.mean(dim=-1), y.mean(dim=-1)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(spread, [tail, 100 - tail]) if len(spread) else (math.nan, math.nan)
    return Correlation(value, float(low), float(high))
