"""Variants of data: random or partly wrong labels, some of the classes, pooled images. Each returns new Data."""

from __future__ import annotations

import numbers
from collections.abc import Sequence

import torch
from torch import Tensor

from landscapes.errors import check_count, check_real, check_seed, short_form
from nets.datasets.parts import Data, DataPart


def random_labels(data: Data, seed: int = 0) -> Data:
    """Every target replaced by a uniform draw from all classes (Zhang et al. 2017, arXiv 1611.03530)."""
    targets = torch.randint(check_data(data).classes, (len(data),), generator=generator_of(seed))
    return Data(data.inputs, targets.to(data.targets), data.classes)


def noisy_labels(data: Data, fraction: float, seed: int = 0) -> Data:
    """round(``fraction``·N) examples, chosen by ``seed``, given a uniformly drawn *other* class.

    A larger fraction contains the wrong labels of a smaller one.
    """
    check_data(data)
    if not 0 <= check_real("fraction", fraction) <= 1:
        raise ValueError(f"fraction must lie in [0, 1], got {fraction!r}")
    if data.classes < 2:
        raise ValueError(f"data must have at least 2 classes for a label to be another, got {data.classes}")
    generator = generator_of(seed)
    # all are drawn for every fraction, which only determines the number used
    chosen = torch.randperm(len(data), generator=generator)[: round(fraction * len(data))].to(data.targets.device)
    shifts = torch.randint(1, data.classes, (len(data),), generator=generator).to(data.targets)
    targets = data.targets.clone()
    targets[chosen] = (targets[chosen] + shifts[chosen]) % data.classes
    return Data(data.inputs, targets, data.classes)


def only_classes(data: Data, classes: Sequence[int]) -> Data:
    """The examples of these classes, in their order, relabelled 0, 1, ... in the given order."""
    wanted = check_classes(classes, check_data(data))
    new = torch.full((data.classes,), -1, dtype=torch.int64)
    new[torch.tensor(wanted)] = torch.arange(len(wanted))
    targets = new.to(data.targets.device)[data.targets]
    kept = targets >= 0
    return Data(data.inputs[kept], targets[kept], len(wanted))


def limit_examples(data: Data, limit: int, seed: int = 0) -> Data:
    """``limit`` examples, balanced as far as possible and chosen by ``seed``; a larger limit contains them."""
    check_count("limit", limit)
    kept = balanced_indices(check_data(data), limit, check_seed(seed))
    return Data(data.inputs[kept], data.targets[kept], data.classes)


def balanced_indices(data: Data | DataPart, limit: int, seed: int) -> Tensor:
    """Ascending indices of ``limit`` examples, taken from the classes in turn.

    Raises ValueError unless the limit is at least the number of classes and at most N.
    """
    if not data.classes <= limit <= len(data):
        raise ValueError(
            f"limit must lie between the {data.classes} classes and the {len(data)} examples, got {limit}; "
            "give None for all"
        )
    generator = torch.Generator().manual_seed(seed)
    turns = torch.empty_like(data.targets)
    for label in range(data.classes):
        members = (data.targets == label).nonzero()[:, 0]
        turns[members] = torch.randperm(len(members), generator=generator)
    # by turn, then by class: exhausted classes are skipped
    order = (turns * data.classes + data.targets).argsort()
    return order[:limit].sort().values


def pool_images(data: Data, size: int) -> Data:
    """Images averaged over equal blocks to ``size`` × ``size`` pixels; both sides must be multiples of ``size``."""
    images = check_data(data).inputs
    check_count("size", size)
    if images.ndim != 4 or images.shape[2] % size or images.shape[3] % size:
        raise ValueError(
            f"size must divide both sides of images (N, C, H, W), got {size} for inputs {tuple(images.shape)}"
        )
    return Data(blocks(images, size).mean((3, 5)), data.targets, data.classes)


def blocks(images: Tensor, size: int) -> Tensor:
    """Images (N, C, H, W) as (N, C, size, H/size, size, W/size)."""
    number, channels, high, wide = images.shape
    return images.reshape(number, channels, size, high // size, size, wide // size)


def check_data(data: Data) -> Data:
    """Return ``data``; raise unless it is Data."""
    if not isinstance(data, Data):
        raise TypeError(f"data must be Data, as returned by load_data, got {type(data).__name__}")
    return data


def check_classes(classes: Sequence[int], data: Data) -> list[int]:
    """Return ``classes`` as a list; raise unless they are distinct, at least one, and each has an example."""
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"classes must be a sequence of whole numbers, got {short_form(classes)}")
    if not all(isinstance(each, numbers.Integral) and not isinstance(each, bool) for each in classes):
        raise TypeError(f"classes must be whole numbers, got {short_form(classes)}")
    wanted = [int(each) for each in classes]
    if not wanted or len({*wanted}) != len(wanted) or not all(0 <= each < data.classes for each in wanted):
        raise ValueError(f"classes must be distinct, at least one, in [0, {data.classes}), got {short_form(classes)}")
    empty = sorted({*wanted} - {*data.targets.tolist()})
    if empty:
        raise ValueError(f"classes must have examples in data, class {empty[0]} has none; leave it out")
    return wanted


def generator_of(seed: int) -> torch.Generator:
    """A new generator with this seed."""
    return torch.Generator().manual_seed(check_seed(seed))
