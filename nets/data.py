r"""Real data sets by name, as tensors: split, limited and standardised the same way every time.

The split is fixed: neither ``seed`` nor ``limit`` moves an example from one part to the other. Where none ships with
the data it is 80/20 within each class: every fifth example of a class, in the order of the source, is a test example,
a rule that no version of a random generator can change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike

import torch
from sklearn.datasets import load_breast_cancer, load_digits
from torch import Tensor

from landscapes.errors import check_count


@dataclass(frozen=True, eq=False)
class Data:
    """``inputs`` float64, images (N, C, H, W) or features (N, features); ``targets`` int64 (N,) in [0, classes)."""

    inputs: Tensor
    targets: Tensor
    classes: int

    def __len__(self) -> int:
        """N."""
        return self.targets.shape[0]


def read_digits() -> Data:
    """1,797 handwritten digits, 8×8 pixels of 0 to 16 (Alpaydin & Kaynak 1998), from scikit-learn's wheel."""
    source = load_digits()
    return Data(torch.from_numpy(source.images)[:, None].double(), torch.from_numpy(source.target).long(), 10)


def read_breast_cancer() -> Data:
    """569 tumours, 30 features, malignant 0 and benign 1 (Wolberg et al. 1995), from scikit-learn's wheel."""
    source = load_breast_cancer()
    return Data(torch.from_numpy(source.data).double(), torch.from_numpy(source.target).long(), 2)


WHEEL_SETS: dict[str, Callable[[], Data]] = {"digits": read_digits, "breast-cancer": read_breast_cancer}


def load_data(
    name: str,
    *,
    root: str | PathLike[str] | None = None,
    train: bool = True,
    limit: int | None = None,
    seed: int = 0,
    standardise: bool = True,
) -> Data:
    r"""The training or the test part of a data set by name: inputs (N, C, H, W) or (N, features), targets (N,).

    "digits" and "breast-cancer" ship inside scikit-learn and need no ``root``. ``limit`` keeps that many examples, as
    even over the classes as they allow, chosen by ``seed``, which does nothing else; a larger limit keeps what a
    smaller one keeps. Examples stay in the order of the source. ``standardise``: (x − mean)/std by the statistics of
    the whole training part, one of each a feature, for images one pair over all pixels; a constant feature becomes 0.

    Raises ValueError for an unknown name, a root given to a set that has no use for one, a limit above N or below the
    number of classes; TypeError for arguments of the wrong kind.
    """
    if name not in WHEEL_SETS:
        raise ValueError(f"name must be one of {', '.join(map(repr, WHEEL_SETS))}, got {name!r}")
    if root is not None:
        raise ValueError(f"root must be None for {name!r}, which ships inside scikit-learn, got {root!r}; leave it out")
    for flag, value in (("train", train), ("standardise", standardise)):
        if not isinstance(value, bool):
            raise TypeError(f"{flag} must be True or False, got {value!r}")
    check_count("seed", seed, minimum=0)
    whole = WHEEL_SETS[name]()
    test = is_test(whole.targets)
    inputs = standardised(whole.inputs, whole.inputs[~test]) if standardise else whole.inputs
    part = ~test if train else test
    data = Data(inputs[part], whole.targets[part], whole.classes)
    if limit is None:
        return data
    kept = balanced(data, check_limit(limit, data), seed)
    return Data(data.inputs[kept], data.targets[kept], data.classes)


def is_test(targets: Tensor) -> Tensor:
    """Which examples are for testing, bool (N,): the third, eighth, ... of each class, a fifth to the nearest whole."""
    test = torch.zeros_like(targets, dtype=torch.bool)
    for label in targets.unique():
        test[(targets == label).nonzero()[2::5, 0]] = True
    return test


def standardised(inputs: Tensor, training: Tensor) -> Tensor:
    """(inputs − mean)/std with the training examples' statistics: a feature's own, or one pair for all pixels."""
    over = 0 if inputs.ndim == 2 else tuple(range(inputs.ndim))
    std, mean = torch.std_mean(training, dim=over, correction=0)
    return (inputs - mean) / torch.where(std > 0, std, torch.ones_like(std))


def check_limit(limit: int, data: Data) -> int:
    """Return ``limit``; raise unless it leaves at least one example a class and is at most N."""
    check_count("limit", limit)
    if not data.classes <= limit <= len(data):
        raise ValueError(
            f"limit must lie between the {data.classes} classes and the {len(data)} examples, got {limit}; "
            "give None for all"
        )
    return limit


def balanced(data: Data, limit: int, seed: int) -> Tensor:
    """Places of ``limit`` examples in ascending order, each class in its turn giving one until enough are had."""
    generator = torch.Generator().manual_seed(seed)
    turns = torch.empty_like(data.targets)
    for label in range(data.classes):
        members = (data.targets == label).nonzero()[:, 0]
        turns[members] = torch.randperm(len(members), generator=generator)
    # first by turn, then by class: classes that run out leave their turns to the others
    order = (turns * data.classes + data.targets).argsort()
    return order[:limit].sort().values
