"""Common parts of the experiments on noise spectra: options, folders, tables with error bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from landscapes.errors import check_count, check_positive, check_seed
from nets import Data, limit_examples

from ..lab.command_line import check_device
from ..lab.experiment import Common
from ..lab.store import Store
from ..lab.tables import with_error
from .measurements import SeedStatistic, over_seeds
from .training import Network, Task, load_images

Architecture = Literal["small-lenet", "small-fc", "tiny-fc", "small-allcnn"]
All = Literal["all"]


@dataclass(frozen=True)
class Spectra(Common):
    """Options of every experiment; default of --out: results/noise_spectrum/EXPERIMENT."""

    dtype: Literal["float64", "float32"] = "float32"
    """Precision of the networks; sums of squares are taken in float64."""
    root: Path | None = None
    """Folder with the files of the data; default: THALWEG_DATA if they are there, else they are downloaded."""
    h: float = 0.1
    """Learning rate of SGD, without momentum."""
    batch_size: int = 50
    """Images per mini-batch."""
    norm: Literal["batch", "group", "none"] = "batch"
    """batch: trained with the statistics of each mini-batch, D with their means over the batches held fixed."""
    test_examples: int | All = "all"
    """Class-balanced test images."""
    seeds: int = 3
    """Trainings of each network, with different weights, mini-batches and choice of images."""

    def open(self, **more: Any) -> Store:
        """The result folder."""
        where = self if self.out is not None else replace(self, out=Path("results/noise_spectrum") / self.name)
        return Common.store(where, **more)

    def configuration(self) -> dict[str, Any]:
        """All options except the number of seeds, so that seeds can be added."""
        return {key: value for key, value in super().configuration().items() if key != "seeds"}

    def check(self) -> None:
        """Raise ValueError for invalid options."""
        for name in ("batch_size", "seeds"):
            check_count(name, getattr(self, name))
        check_positive("h", self.h)
        check_seed(self.seed)
        check_device(self.device)

    def network(self, architecture: str, task: Task, examples: int | All, images: int, seed: int) -> Network:
        """A network with its images, ``examples`` of them for training, ``images`` of those for D."""
        train, test = (load_images(task, architecture, part, self.root, seed) for part in (True, False))
        train, test = limit_images(train, examples, seed), limit_images(test, self.test_examples, seed)
        if check_count("images", images, minimum=2) > len(train):
            raise ValueError(f"images must be at most the number of training images, {len(train)}, got {images}")
        return Network(architecture, train, test, self.norm, self.batch_size, seed, self.real, self.device)


def limit_images(data: Data, examples: int | All, seed: int) -> Data:
    """A class-balanced choice of that many images."""
    return data if examples == "all" else limit_examples(data, examples, seed)


def whole_epochs(fractions: Sequence[float], epochs: int) -> list[int]:
    """The epochs at the end of these fractions of training; raises unless they are integers and rising."""
    check_count("epochs", epochs)
    found = [round(fraction * epochs) for fraction in fractions]
    exact = all(
        abs(fraction * epochs - epoch) < 1e-9 * epochs for fraction, epoch in zip(fractions, found, strict=True)
    )
    if not found or not exact or found != sorted({*found}) or not 1 <= found[0] <= found[-1] <= epochs:
        raise ValueError(
            f"at must hold rising fractions of training, in (0, 1], that end whole epochs of {epochs}, got "
            f"{tuple(fractions)!r}"
        )
    return found


def format_seeds(values: Sequence[float], scale: float = 1.0) -> str:
    """Mean over seeds ± standard error."""
    found = over_seeds([scale * value for value in values])
    return format_statistic(found)


def format_statistic(found: SeedStatistic) -> str:
    """A mean with its standard error."""
    return with_error(found.mean, found.error)
