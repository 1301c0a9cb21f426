r"""Real data sets by name, as tensors: split, limited and standardised the same way every time.

The split is fixed: neither ``seed`` nor ``limit`` moves an example from one part to the other. It is the official one
where one ships with the data (for Tiny-ImageNet, whose test images have no labels, train and val). Elsewhere it is
80/20 within each class: every fifth example of a class, in the order of the source, is a test example, a rule that no
version of a random generator can change.

On disk: "mnist" and "fashion-mnist" as idx files, plain or gz; "cifar-10" and "cifar-100" in their binary version, as
files or in the official tar.gz; "tiny-imagenet" as a folder or in the official zip. Archives are read in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor

from landscapes.errors import check_count, check_seed
from nets.datasets.catalogue import CIFAR_SETS, IDX_SETS, TINY_IMAGENET
from nets.datasets.cifar import cifar_part, find_cifar
from nets.datasets.files import check_root
from nets.datasets.idx import find_idx, idx_part
from nets.datasets.parts import Data, Part, standardised
from nets.datasets.shwartz_ziv import read_shwartz_ziv
from nets.datasets.tiny_imagenet import find_tiny, tiny_part
from nets.datasets.variants import balanced, blocks

POOLED = "-7x7"
POOLED_SIZE = 7


@dataclass(frozen=True)
class Split:
    """The two parts of a data set, each read when it is asked for."""

    train: Callable[[], Part]
    test: Callable[[], Part]


def read_digits() -> Part:
    """1,797 handwritten digits, 8×8 pixels of 0 to 16 (Alpaydin & Kaynak 1998), from scikit-learn's wheel."""
    from sklearn.datasets import load_digits  # here: scikit-learn is slow to import

    source = load_digits()
    return Part(torch.from_numpy(source.images)[:, None].double(), torch.from_numpy(source.target).long(), 10)


def read_breast_cancer() -> Part:
    """569 tumours, 30 features, malignant 0 and benign 1 (Wolberg et al. 1995), from scikit-learn's wheel."""
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    return Part(torch.from_numpy(source.data).double(), torch.from_numpy(source.target).long(), 2)


WHEEL_SETS: dict[str, Callable[[], Part]] = {"digits": read_digits, "breast-cancer": read_breast_cancer}
# sets that are at hand whole, and need no files
WHOLE_SETS: dict[str, Callable[[], Part]] = {**WHEEL_SETS, "shwartz-ziv": read_shwartz_ziv}


def idx_split(name: str, root: Path | None) -> Split:
    """MNIST and Fashion-MNIST: 60,000 and 10,000 grey images of 28×28 (LeCun et al. 1998, Xiao et al. 2017)."""
    kind = IDX_SETS[name]
    files = find_idx(name, kind, root)
    return Split(lambda: idx_part(files, kind, train=True), lambda: idx_part(files, kind, train=False))


def pooled_split(name: str, root: Path | None) -> Split:
    """The same averaged over blocks of 4×4 pixels to 7×7."""
    split = idx_split(name.removesuffix(POOLED), root)
    return Split(lambda: block_sums(split.train()), lambda: block_sums(split.test()))


def cifar_split(name: str, root: Path | None) -> Split:
    """CIFAR-10 and CIFAR-100: 50,000 and 10,000 colour images of 32×32 (Krizhevsky 2009); the fine labels."""
    kind = CIFAR_SETS[name]
    source = find_cifar(name, kind, root)
    return Split(lambda: cifar_part(source, kind, train=True), lambda: cifar_part(source, kind, train=False))


def tiny_split(name: str, root: Path | None) -> Split:
    """Tiny-ImageNet: 100,000 and 10,000 colour images of 64×64, 200 classes (Le & Yang 2015)."""
    kind = TINY_IMAGENET
    source = find_tiny(name, kind, root)
    return Split(lambda: tiny_part(source, kind, train=True), lambda: tiny_part(source, kind, train=False))


FILE_SETS: dict[str, Callable[[str, Path | None], Split]] = {
    **dict.fromkeys(IDX_SETS, idx_split),
    **dict.fromkeys((f"{name}{POOLED}" for name in IDX_SETS), pooled_split),
    **dict.fromkeys(CIFAR_SETS, cifar_split),
    "tiny-imagenet": tiny_split,
}
DATA_SETS = (*WHOLE_SETS, *FILE_SETS)


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

    "digits", "breast-cancer" and "shwartz-ziv" need no files and take no ``root``. The others, "mnist",
    "fashion-mnist", "mnist-7x7", "fashion-mnist-7x7", "cifar-10", "cifar-100" and "tiny-imagenet", are looked for in
    the folder ``root`` or in the usual folders in it; without a root in the folder that THALWEG_DATA names, or the
    system's cache, where what is missing is downloaded to. Files must have their format's structure, not the official
    hash, which guards the download.

    ``limit`` keeps that many examples, as even over the classes as they allow, chosen by ``seed``, which does nothing
    else; a larger limit keeps what a smaller one keeps. Examples stay in the order of the source. ``standardise``:
    (x − mean)/std by the statistics of the whole training part, one of each a feature, for images one pair over all
    pixels of a channel; a constant feature becomes 0. Without it, values as in the source: pixels of 0 to 255.

    Raises ValueError for an unknown name, a root given to a set that has no use for one, a limit above N or below the
    number of classes; TypeError for arguments of the wrong kind; DataError, a ValueError, for files that are missing,
    damaged or out of reach, with the file and the remedy.
    """
    if name not in DATA_SETS:
        raise ValueError(f"name must be one of {', '.join(map(repr, DATA_SETS))}, got {name!r}")
    for flag, value in (("train", train), ("standardise", standardise)):
        if not isinstance(value, bool):
            raise TypeError(f"{flag} must be True or False, got {value!r}")
    check_seed(seed)
    if limit is not None:
        check_count("limit", limit)
    split = find_split(name, root)
    part = split.train() if train else split.test()
    targets, values = part.targets, part.values
    if limit is not None:
        kept = balanced(part, limit, seed)
        targets, values = targets[kept], values[kept]
    if not standardise:
        return Data(values.to(torch.float64) * part.unit, targets, part.classes)
    return Data(standardised(values, part.values if train else split.train().values), targets, part.classes)


def find_split(name: str, root: str | PathLike[str] | None) -> Split:
    """The two parts of a set whose files have been found, not read."""
    if name in FILE_SETS:
        return FILE_SETS[name](name, check_root(root))
    if root is not None:
        where = "ships inside scikit-learn" if name in WHEEL_SETS else "is generated"
        raise ValueError(f"root must be None for {name!r}, which {where}, got {root!r}; leave it out")
    whole = WHOLE_SETS[name]()
    test = is_test(whole.targets)
    return Split(lambda: subset(whole, ~test), lambda: subset(whole, test))


def subset(whole: Part, kept: Tensor) -> Part:
    """Some of the examples."""
    return Part(whole.values[kept], whole.targets[kept], whole.classes, whole.unit)


def block_sums(part: Part) -> Part:
    """Images averaged to 7×7, as whole sums over blocks and the unit that makes them means."""
    cut = blocks(part.values, POOLED_SIZE)  # (N, C, 7, 4, 7, 4)
    return Part(cut.sum((3, 5), dtype=torch.int32), part.targets, part.classes, 1 / (cut.shape[3] * cut.shape[5]))


def is_test(targets: Tensor) -> Tensor:
    """Which examples are for testing, bool (N,): the third, eighth, ... of each class, a fifth to the nearest whole."""
    test = torch.zeros_like(targets, dtype=torch.bool)
    for label in targets.unique():
        test[(targets == label).nonzero()[2::5, 0]] = True
    return test
