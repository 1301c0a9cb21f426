"""Examples with their classes, as stored and as returned, and the standardisation between the two."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import check_computable, check_count


@dataclass(frozen=True, eq=False)
class Data:
    """``inputs`` float64, images (N, C, H, W) or features (N, features); ``targets`` int64 (N,) in [0, classes)."""

    inputs: Tensor
    targets: Tensor
    classes: int

    def __post_init__(self) -> None:
        check_count("classes", self.classes)
        for name, tensor in (("inputs", self.inputs), ("targets", self.targets)):
            if check_computable(name, tensor).ndim == 0:
                raise ValueError(f"{name} must have shape (N, ...), got ()")
        if len(self.inputs) != len(self.targets):
            raise ValueError(f"inputs and targets must have one length, got {len(self.inputs)} and {len(self.targets)}")

    def __len__(self) -> int:
        """N."""
        return self.targets.shape[0]


@dataclass(frozen=True, eq=False)
class DataPart:
    """One part of a data set as stored: inputs are ``values · unit``, with values in the integer type of the source.

    Integers save memory, as only requested examples are converted to float64, and have exact statistics.
    """

    values: Tensor
    targets: Tensor
    classes: int
    unit: float = 1.0

    def __len__(self) -> int:
        """N."""
        return self.targets.shape[0]


def statistics(training: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, float64, shaped to broadcast: a pair a feature, for images a pair a channel.

    Moments of integers are computed exactly from counts of values, so that results are correctly rounded for any size.
    The standard deviation is the population's, replaced by 1 if it is 0.
    """
    over = tuple(axis for axis in range(training.ndim) if axis != 1)
    if training.is_floating_point():
        std, mean = torch.std_mean(training, dim=over, correction=0, keepdim=True)
        return mean, torch.where(std > 0, std, torch.ones_like(std))
    pairs = [whole_moments(training[:, column]) for column in range(training.shape[1])]
    shape = [len(pairs) if axis == 1 else 1 for axis in range(training.ndim)]
    mean, std = (torch.tensor(side, dtype=torch.float64).reshape(shape) for side in zip(*pairs, strict=True))
    return mean, std


def whole_moments(values: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of natural numbers, correctly rounded; a deviation of 0 is replaced by 1."""
    counts = torch.bincount(values.flatten())
    places = torch.arange(len(counts))
    number = values.numel()
    # Python's integers do not overflow, and their quotients are rounded once
    first, second = int((counts * places).sum()), int((counts * places * places).sum())
    std = math.sqrt((number * second - first * first) / (number * number))
    return first / number, std or 1.0


def standardise_values(values: Tensor, training: Tensor) -> Tensor:
    """(values − mean)/std, float64, with the training examples' ``statistics``."""
    mean, std = statistics(training)
    return values.to(torch.float64, copy=True).sub_(mean).div_(std)
