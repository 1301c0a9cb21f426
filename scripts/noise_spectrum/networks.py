r"""The spectrum of D along training: histogram, mean and deviation, rank with its threshold, layers, noise scale.

Chaudhari & Soatto 2018, arXiv 1710.11029, figure 1, with the numbers of that figure for comparison.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import tyro

from landscapes.errors import check_choice
from nets.data import DATA_SETS

from ..lab.store import Store
from .common import All, Architecture, Spectra, whole_epochs
from .measurements import NoiseMeasurement, measure_at, stored_measurement
from .networks_figure import networks_figure
from .networks_report import PUBLISHED, layer_table, spectrum_table, training_table
from .training import Network, Task


@dataclass(frozen=True)
class SpectrumPlan:
    """Default data and training of an architecture."""

    task: Task
    examples: int
    epochs: int
    images: int
    """Training images over which D is computed."""


PLANS: dict[str, SpectrumPlan] = {
    "small-lenet": SpectrumPlan(Task("mnist"), 10_000, 10, 2000),
    "small-fc": SpectrumPlan(Task("mnist"), 10_000, 20, 4000),
    "tiny-fc": SpectrumPlan(Task("mnist", (0, 1, 2, 3, 4)), 10_000, 20, 10_000),
    "small-allcnn": SpectrumPlan(Task("cifar-10"), 5_000, 10, 1000),
}


@dataclass(frozen=True)
class Networks(Spectra):
    """Spectra of D at fractions of training: histogram, mean ± deviation, rank and its threshold, layers."""

    architectures: tuple[Architecture, ...] = ("small-lenet", "small-fc", "tiny-fc", "small-allcnn")
    """Networks."""
    data: Annotated[str | None, tyro.conf.arg(help=f"One of {', '.join(DATA_SETS)}; default: one per network.")] = None
    classes: tuple[int, ...] | None = None
    """Use these classes only."""
    images: int | None = None
    """Class-balanced training images over which D is computed; default: 2,000, 4,000, 10,000 and 1,000."""
    examples: int | All | None = None
    """Class-balanced training images; default: 10,000, of CIFAR-10 5,000."""
    epochs: int | None = None
    """Epochs of training; default: 10, for the fully connected networks 20."""
    at: tuple[float, ...] = (0.2, 0.4, 1.0)
    """Fractions of training at which D is measured."""

    def run(self) -> None:
        """Train, measure, print, plot."""
        self.check()
        if not self.architectures:
            raise ValueError("architectures must name at least one network")
        if self.data is not None:
            check_choice("data", self.data, DATA_SETS)
        plans = {architecture: self.plan(architecture) for architecture in PLANS}
        epochs = {architecture: whole_epochs(self.at, plan.epochs) for architecture, plan in plans.items()}
        store = self.open(plans={name: dataclasses.asdict(plan) for name, plan in plans.items()})
        found: dict[str, list[list[NoiseMeasurement]]] = {}
        for name in self.architectures:
            seeds = range(self.seed, self.seed + self.seeds)
            found[name] = [self.measurements(store, name, plans[name], epochs[name], seed) for seed in seeds]
        store.table("\n\n".join(self.block(name, plans[name], runs) for name, runs in found.items()))
        self.draw(store, networks_figure(found, self.at))

    def configuration(self) -> dict[str, Any]:
        """All options except the architectures, which have separate parts on disk."""
        return {key: value for key, value in super().configuration().items() if key != "architectures"}

    def plan(self, architecture: str) -> SpectrumPlan:
        """The architecture's plan with the given options in place of its values."""
        plan = PLANS[architecture]
        task = plan.task if self.data is None else Task(self.data)
        if self.classes is not None:
            task = dataclasses.replace(task, classes=self.classes)
        given: dict[str, Any] = {"examples": self.examples, "epochs": self.epochs, "images": self.images}
        return dataclasses.replace(plan, task=task, **{k: value for k, value in given.items() if value is not None})

    def measurements(
        self, store: Store, architecture: str, plan: SpectrumPlan, epochs: Sequence[int], seed: int
    ) -> list[NoiseMeasurement]:
        """The measurements along one training."""
        name = f"{architecture}-seed-{seed}"
        network: list[Network] = []  # built once, and only if a part is missing on disk

        def build() -> Network:
            if not network:
                network.append(self.network(architecture, plan.task, plan.examples, plan.images, seed))
            return network[0]

        def measure(i: int) -> NoiseMeasurement:
            thetas = build().weights_after(store, name, self.h, epochs)
            if i >= len(thetas):
                raise ArithmeticError(f"{architecture}, seed {seed}: SGD became non-finite; try a smaller --h")
            return measure_at(build(), thetas[i], plan.images, layers=i == len(epochs) - 1)

        return [
            stored_measurement(store, f"look-{name}-{epoch:04d}", partial(measure, i)) for i, epoch in enumerate(epochs)
        ]

    def block(self, architecture: str, plan: SpectrumPlan, runs: Sequence[Sequence[NoiseMeasurement]]) -> str:
        """The tables of a network."""
        d = runs[0][0].spectrum.dimension
        classes = "" if plan.task.classes is None else f", classes {', '.join(map(str, plan.task.classes))}"
        caption = (
            f"{architecture} ({d:,} weights) on {plan.task.data}{classes}: {plan.examples} images, {plan.epochs} "
            f"epochs of SGD at h = {self.h:g} in mini-batches of {self.batch_size}, norm {self.norm}; "
            f"D of {plan.images} images, {len(runs)} seeds"
        )
        published = PUBLISHED.get((architecture, plan.task.data)) if plan.task.classes is None else None
        stages = list(zip(*runs, strict=True))
        tables = [training_table(stages, self.at), spectrum_table(stages, self.at, published)]
        return "\n\n".join([caption, *tables, layer_table([run[-1].layers for run in runs])])
