r"""Data sets by name, as tensors: split, limited and standardised reproducibly.

The split is fixed: neither ``seed`` nor ``limit`` moves an example from one part to the other. It is the official
split, if any (for Tiny-ImageNet, whose test images have no labels, train and val), else 80/20 within each class: every
fifth example of a class, in the order of the source, is a test example, independent of random generators.

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

from landscapes.errors import check_choice, check_count, check_flag, check_seed
from nets.datasets.catalogue import CIFAR_SETS, IDX_SETS, TINY_IMAGENET
from nets.datasets.cifar import cifar_part, find_cifar
from nets.datasets.files import check_root
from nets.datasets.idx import find_idx, idx_part
from nets.datasets.parts import Data, DataPart, standardise_values
from nets.datasets.shwartz_ziv import read_shwartz_ziv
from nets.datasets.tiny_imagenet import find_tiny, tiny_part
from nets.datasets.variants import balanced_indices, blocks

POOLED = "-7x7"
POOLED_SIZE = 7


@dataclass(frozen=True)
class Split:
    """The two parts of a data set, read on demand."""

    train: Callable[[], DataPart]
    test: Callable[[], DataPart]


def read_digits() -> DataPart:
    """1,797 handwritten digits, 8×8 pixels of 0 to 16 (Alpaydin & Kaynak 1998), from scikit-learn's wheel."""
    from sklearn.datasets import load_digits  # imported here as scikit-learn loads slowly

    source = load_digits()
    return DataPart(torch.from_numpy(source.images)[:, None].double(), torch.from_numpy(source.target).long(), 10)


def read_breast_cancer() -> DataPart:
    """569 tumours, 30 features, malignant 0 and benign 1 (Wolberg et al. 1995), from scikit-learn's wheel."""
    from sklearn.datasets import load_breast_cancer

    source = load_breast_cancer()
    return DataPart(torch.from_numpy(source.data).double(), torch.from_numpy(source.target).long(), 2)


WHEEL_SETS: dict[str, Callable[[], DataPart]] = {"digits": read_digits, "breast-cancer": read_breast_cancer}
# sets that need no files
WHOLE_SETS: dict[str, Callable[[], DataPart]] = {**WHEEL_SETS, "shwartz-ziv": read_shwartz_ziv}


def idx_split(name: str, root: Path | None) -> Split:
    """MNIST and Fashion-MNIST: 60,000 and 10,000 grey images of 28×28 (LeCun et al. 1998, Xiao et al. 2017)."""
    kind = IDX_SETS[name]
    files = find_idx(name, kind, root)
    return Split(lambda: idx_part(files, kind, train=True), lambda: idx_part(files, kind, train=False))


def pooled_split(name: str, root: Path | None) -> Split:
    """The images of ``idx_split`` averaged over blocks of 4×4 pixels to 7×7."""
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
    "fashion-mnist", "mnist-7x7", "fashion-mnist-7x7", "cifar-10", "cifar-100" and "tiny-imagenet", are searched for in
    the folder ``root`` and its usual subfolders; without a root in the folder named by THALWEG_DATA, or the system's
    cache, to which missing files are downloaded. The structure of files is checked; official hashes are checked for
    downloads only.

    ``limit``: number of examples, balanced over the classes as far as possible and chosen by ``seed``, which has no
    other effect; a larger limit contains the examples of a smaller one. Examples stay in the order of the source.
    ``standardise``: (x − mean)/std with the statistics of the whole training part, one pair a feature, for images one
    pair a channel; a constant feature becomes 0. Without it the values of the source, such as pixels of 0 to 255.

    Raises ValueError for an unknown name, a root for a set without files, a limit above N or below the number of
    classes; TypeError for arguments of the wrong type; DataError, a ValueError, for files that are missing, damaged or
    unreachable, naming the file and the remedy.
    """
    check_choice("name", name, DATA_SETS)
    for flag, value in (("train", train), ("standardise", standardise)):
        check_flag(flag, value)
    check_seed(seed)
    if limit is not None:
        check_count("limit", limit)
    split = find_split(name, root)
    part = split.train() if train else split.test()
    targets, values = part.targets, part.values
    if limit is not None:
        kept = balanced_indices(part, limit, seed)
        targets, values = targets[kept], values[kept]
    if not standardise:
        return Data(values.to(torch.float64) * part.unit, targets, part.classes)
    return Data(standardise_values(values, part.values if train else split.train().values), targets, part.classes)


def find_split(name: str, root: str | PathLike[str] | None) -> Split:
    """The two parts of a set; its files are located, not read."""
    if name in FILE_SETS:
        return FILE_SETS[name](name, check_root(root))
    if root is not None:
        where = "ships inside scikit-learn" if name in WHEEL_SETS else "is generated"
        raise ValueError(f"root must be None for {name!r}, which {where}, got {root!r}; leave it out")
    whole = WHOLE_SETS[name]()
    test = is_test(whole.targets)
    return Split(lambda: subset(whole, ~test), lambda: subset(whole, test))


def subset(whole: DataPart, kept: Tensor) -> DataPart:
    """The examples selected by a boolean mask (N,) or indices."""
    return DataPart(whole.values[kept], whole.targets[kept], whole.classes, whole.unit)


def block_sums(part: DataPart) -> DataPart:
    """Images averaged to 7×7, as integer sums over blocks with the unit that turns them into means."""
    cut = blocks(part.values, POOLED_SIZE)  # (N, C, 7, 4, 7, 4)
    return DataPart(cut.sum((3, 5), dtype=torch.int32), part.targets, part.classes, 1 / (cut.shape[3] * cut.shape[5]))


def is_test(targets: Tensor) -> Tensor:
    """Mask (N,) of the test examples: the third, eighth, ... of each class, a fifth rounded to the nearest integer."""
    test = torch.zeros_like(targets, dtype=torch.bool)
    for label in targets.unique():
        test[(targets == label).nonzero()[2::5, 0]] = True
    return test
