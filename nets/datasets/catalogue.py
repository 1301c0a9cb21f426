"""Files of the data sets: names, usual folders, sources and hashes.

The hashes are those of the official files and are checked for downloads. Files under a root are checked for their
structure only, so that subsets and repacked copies are accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
FASHION = "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/"
CIFAR = "https://www.cs.toronto.edu/~kriz/"
STANFORD = "https://cs231n.stanford.edu/"


@dataclass(frozen=True)
class Remote:
    """A file on a server: its size in bytes and its sha256."""

    url: str
    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's own name."""
        return self.url.rsplit("/", 1)[1]


@dataclass(frozen=True)
class IdxSet:
    """Four idx files, plain or gz, images of ``side``²; ``counts``: official numbers of examples, upper limits."""

    folders: tuple[str, ...]
    remotes: tuple[Remote, ...]
    side: int = 28
    classes: int = 10
    counts: tuple[int, int] = (60_000, 10_000)


@dataclass(frozen=True)
class CifarSet:
    """Files of records: a byte for each kind of ``labels`` (the last is used), 3,072 pixels; at most ``most`` each."""

    folder: str
    archive: Remote
    train: tuple[str, ...]
    test: tuple[str, ...]
    most: dict[str, int]
    labels: tuple[int, ...]


@dataclass(frozen=True)
class TinySet:
    """A tree of JPEGs, ``train/<wnid>/images`` and ``val/images`` with ``val/val_annotations.txt``."""

    folder: str
    archive: Remote
    side: int = 64
    classes: int = 200
    counts: tuple[int, int] = (100_000, 10_000)


IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")
BATCHES = tuple(f"data_batch_{number}.bin" for number in range(1, 6))


def idx_remotes(base: str, *files: tuple[int, str]) -> tuple[Remote, ...]:
    """The four gz files under ``base``, from their sizes and hashes in the order of ``IDX_NAMES``."""
    return tuple(Remote(f"{base}{name}.gz", *file) for name, file in zip(IDX_NAMES, files, strict=True))


IDX_SETS = {
    "mnist": IdxSet(
        ("mnist", "MNIST/raw"),
        idx_remotes(
            MNIST,
            (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
            (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
            (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
            (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
        ),
    ),
    "fashion-mnist": IdxSet(
        ("fashion_mnist", "FashionMNIST/raw"),
        idx_remotes(
            FASHION,
            (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
}

CIFAR_SETS = {
    "cifar-10": CifarSet(
        "cifar-10-batches-bin",
        Remote(
            f"{CIFAR}cifar-10-binary.tar.gz",
            170_052_171,
            "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        ),
        train=BATCHES,
        test=("test_batch.bin",),
        most=dict.fromkeys((*BATCHES, "test_batch.bin"), 10_000),
        labels=(10,),
    ),
    "cifar-100": CifarSet(
        "cifar-100-binary",
        Remote(
            f"{CIFAR}cifar-100-binary.tar.gz",
            168_513_733,
            "58a81ae192c23a4be8b1804d68e518ed807d710a4eb253b1f2a199162a40d8ec",
        ),
        train=("train.bin",),
        test=("test.bin",),
        most={"train.bin": 50_000, "test.bin": 10_000},
        labels=(20, 100),  # coarse, fine
    ),
}

TINY_IMAGENET = TinySet(
    "tiny-imagenet-200",
    Remote(
        f"{STANFORD}tiny-imagenet-200.zip",
        248_100_043,
        "6198c8ae015e2b3e007c7841da39ec069199b9aa3bfa943a462022fe5e43c821",
    ),
)
