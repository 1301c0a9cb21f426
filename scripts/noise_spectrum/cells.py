r"""A cell: one architecture on one pair of classes, trained at one h with several seeds and measured along training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Annotated, Any

import tyro

from landscapes.errors import check_choice
from nets.data import DATA_SETS

from ..lab.store import Store
from .common import All, Architecture, Spectra
from .measurements import NoiseMeasurement, measure_at, stored_measurement
from .training import Network, Task

CIFAR_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PAIRS = ("cat-dog", "airplane-ship", "automobile-truck", "deer-horse", "bird-frog")


@dataclass(frozen=True)
class Cell:
    """A network and a pair of classes by name."""

    architecture: str
    pair: str


@dataclass(frozen=True)
class OnPairs(Spectra):
    """Options of the experiments on pairs of classes."""

    architectures: tuple[Architecture, ...] = ("small-lenet", "small-fc", "tiny-fc", "small-allcnn")
    """Networks."""
    data: Annotated[str, tyro.conf.arg(help=f"One of {', '.join(DATA_SETS)}.")] = "cifar-10"
    pairs: tuple[str, ...] = PAIRS
    """Pairs of classes, by the names of CIFAR-10 or by number: cat-dog, 3-5."""
    images: int = 500
    """Class-balanced training images over which D is computed."""
    examples: int | All = "all"
    """Class-balanced training images of a pair."""
    epochs: int = 10
    """Epochs of training."""

    def check(self) -> None:
        super().check()
        check_choice("data", self.data, DATA_SETS)
        for name in ("architectures", "pairs"):
            values = getattr(self, name)
            if not values or len({*values}) < len(values):
                raise ValueError(f"{name} must be distinct and at least one, got {values!r}")
        for pair in self.pairs:
            self.task(pair)

    def configuration(self) -> dict[str, Any]:
        """All options except networks and pairs, which have separate parts on disk."""
        options = super().configuration()
        return {key: value for key, value in options.items() if key not in {"architectures", "pairs"}}

    def task(self, pair: str) -> Task:
        """The two classes of a pair; raises ValueError unless it names two."""
        names = pair.split("-")
        known = CIFAR_10 if self.data == "cifar-10" else ()
        if len(names) != 2 or names[0] == names[1] or not all(name in known or name.isdecimal() for name in names):
            listed = f", of {', '.join(known)}" if known else ""
            raise ValueError(f"pairs must each name two classes, as cat-dog or 3-5{listed}, got {pair!r}")
        first, second = (known.index(name) if name in known else int(name) for name in names)
        return Task(self.data, (first, second))

    def describe(self) -> str:
        """The data, on one line."""
        return f"pairs of classes of {self.data}, {self.examples} images of each pair"

    @property
    def cells(self) -> list[Cell]:
        """Every architecture on every pair."""
        return [Cell(architecture, pair) for architecture in self.architectures for pair in self.pairs]


@dataclass(frozen=True, eq=False)
class CellRun:
    """A cell trained at h with one seed; its measurements are read from disk if present."""

    options: OnPairs
    store: Store
    cell: Cell
    h: float
    seed: int

    @cached_property
    def network(self) -> Network:
        """The network with its images."""
        options = self.options
        task = options.task(self.cell.pair)
        return options.network(self.cell.architecture, task, options.examples, options.images, self.seed)

    def measurements(self, epochs: Sequence[int]) -> list[NoiseMeasurement]:
        """Measurements after these numbers of epochs; ArithmeticError if training became non-finite."""
        name = f"{self.cell.architecture}-{self.cell.pair}-h-{self.h:.9g}-seed-{self.seed}"

        def measure(i: int) -> NoiseMeasurement:
            thetas = self.network.weights_after(self.store, name, self.h, epochs)
            if i >= len(thetas):
                raise ArithmeticError(f"{name}: SGD became non-finite; try a smaller --h")
            return measure_at(self.network, thetas[i], self.options.images, layers=False)

        return [
            stored_measurement(self.store, f"look-{name}-{epoch:04d}", partial(measure, i))
            for i, epoch in enumerate(epochs)
        ]
