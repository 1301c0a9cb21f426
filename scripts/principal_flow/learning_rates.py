"""Drift-adjusted learning rates compared with fixed ones over batch sizes: loss, accuracy, sharpness, over seeds."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from torch import nn
from tqdm import tqdm

from flows.descents.drift_adjusted import check_adjustment
from landscapes.errors import check_choice, check_count, check_positive, check_seed
from nets import ARCHITECTURES, BatchNorm, Data, build_network, limit_examples, load_data
from nets.data import DATA_SETS, WHOLE_SETS

from ..lab.command_line import check_device
from ..lab.experiment import Common
from ..lab.network import Size
from ..lab.presets import preset_of
from ..lab.store import Store
from .rate_report import RateCell, figure, table
from .rate_runs import RateRule, Training, train_run

All = Literal["all"]
GIVEN = ("width", "examples", "test_examples", "batch_sizes", "epochs", "sharpness_every", "drift", "chunk_size")
NOMINAL = 1.0  # torch's constructor requires a rate; DAL replaces it before the first step


@dataclass(frozen=True)
class GridPlan:
    """A network, its data and a grid; ``examples`` None: all."""

    architecture: str
    data: str
    width: float
    examples: int | None
    test_examples: int | None
    batch_sizes: tuple[int | All, ...]
    epochs: int
    sharpness_every: int
    drift: str
    chunk_size: int = 1000


PLANS: dict[str, GridPlan] = {
    "laptop": GridPlan("walk-mlp", "fashion-mnist", 0.25, 1000, None, (16, 64, 250, "all"), 30, 5, "exact"),
    "paper": GridPlan("resnet-18", "cifar-10", 1.0, None, None, (64, 1024, 8192, "all"), 100, 10, "difference"),
}
"""Quarter width and 1,000 images; the paper's network at full width on all images, from small batches to all."""


@dataclass(frozen=True)
class LearningRates(Common):
    """DAL-p compared with fixed rates over batch sizes: training loss, test accuracy, sharpness, several seeds.

    SGD without momentum, every rule for the same number of epochs. Networks with batch norm get group norm instead:
    with batch norm the loss of a mini-batch is not a part of the training loss whose sharpness is measured.
    """

    preset: Size = "laptop"
    """An MLP of quarter width on 1,000 images, minutes on one core; or the paper's ResNet-18 on all of CIFAR-10."""
    architecture: Annotated[str | None, tyro.conf.arg(help=f"One of {', '.join(ARCHITECTURES)}.")] = None
    data: Annotated[str | None, tyro.conf.arg(help=f"One of {', '.join(DATA_SETS)}; the network's by default.")] = None
    root: Path | None = None
    """Folder with the files of the data; default: THALWEG_DATA if they are there, else they are downloaded."""
    examples: int | All | None = None
    """Class-balanced training examples."""
    test_examples: int | All | None = None
    """Class-balanced test examples."""
    width: float | None = None
    """Factor of the numbers of channels and hidden units."""
    activation: str | None = None
    """relu, tanh, gelu, …; default: that of the architecture."""
    norm: str | None = None
    """group or none (vit: layer or none); default: that of the architecture, group instead of batch."""
    pooling: str | None = None
    """max, average or strided, if the architecture has pooling."""
    rates: tuple[float, ...] = (0.02, 0.05, 0.1, 0.2, 0.5)
    """Fixed learning rates h."""
    powers: tuple[float, ...] = (0.5, 1.0)
    """p of DAL-p: h = min(2/vᵖ, cap), v = ‖Hg‖/‖g‖ of the mini-batch."""
    cap: float = 5.0
    """Upper bound of the rates of DAL-p."""
    drift: Literal["exact", "difference"] | None = None
    """Hg by differentiating twice, or by a difference of two gradients, which needs no graph of the gradient."""
    batch_sizes: tuple[int | All, ...] | None = None
    """Examples per step; all: gradient descent."""
    epochs: int | None = None
    """Passes over the training examples."""
    seeds: int = 3
    """Runs of every rule, seeded seed, seed + 1, …: all rules share weights and mini-batches of a seed."""
    sharpness_every: int | None = None
    """Epochs between measurements of the sharpness."""
    chunk_size: int | None = None
    """Examples per chunk: in measurements, and in training unless Hg is exact."""
    dtype: Literal["float64", "float32"] = "float32"
    """Precision."""

    @property
    def plan(self) -> GridPlan:
        """The preset's plan with the given options in place of its values."""
        plan = PLANS[self.preset]
        if self.architecture is not None:
            check_choice("architecture", self.architecture, tuple(ARCHITECTURES))
            data = preset_of(self.preset, self.architecture).data
            plan = replace(plan, architecture=self.architecture, data=data)
        if self.data is not None:
            plan = replace(plan, data=check_choice("data", self.data, DATA_SETS))
        if self.examples == "all":
            plan = replace(plan, examples=None)
        if self.test_examples == "all":
            plan = replace(plan, test_examples=None)
        given: dict[str, Any] = {name: getattr(self, name) for name in GIVEN}
        return replace(plan, **{name: value for name, value in given.items() if value not in {None, "all"}})

    def configuration(self) -> dict[str, Any]:
        """The settings on which the results depend: the plan replaces the options that it is computed from."""
        plan = asdict(self.plan)
        others = {key: value for key, value in super().configuration().items() if key not in {*plan, "preset"}}
        return others | {"plan": plan}

    @property
    def rules(self) -> list[RateRule]:
        """Fixed rates in rising order, then DAL-p; raises for invalid rates and powers."""
        if not self.rates:
            raise ValueError("rates must name at least one fixed rate to compare with, got none")
        for name in ("rates", "powers"):
            check_distinct(name, getattr(self, name))
        for h in self.rates:
            check_positive("rates", h)
        for p in self.powers:
            check_adjustment(p, self.cap, 1, "exact")
            if p == 0:
                raise ValueError("powers must be above 0, got 0: p = 0 is a fixed rate; name it with --rates")
        return [*(RateRule(h) for h in sorted(self.rates)), *(RateRule(NOMINAL, p) for p in sorted(self.powers))]

    def run(self) -> None:
        """Train every cell of the grid, print, plot."""
        plan, rules = self.plan, self.rules
        check_device(self.device)
        check_count("seeds", self.seeds)
        check_seed(self.seed + self.seeds - 1)
        for name in ("epochs", "sharpness_every", "chunk_size"):
            check_count(name, getattr(plan, name))
        training = self.training(plan)
        sizes = batch_sizes(plan, len(training.train))
        store = self.store()
        cells = self.cells(store, training, rules, sizes)
        store.table(table(cells, training, self.describe(plan, training)))
        self.draw(store, figure(cells, training))

    def training(self, plan: GridPlan) -> Training:
        """Network, data and training settings, on the device."""
        train, test = (self.examples_of(plan, train) for train in (True, False))
        network = partial(self.network, plan, tuple(train.inputs.shape[1:]), train.classes)
        network(self.seed)  # raise for options that the architecture lacks before anything is written
        return Training(network, train, test, plan.epochs, self.cap, plan.drift, plan.sharpness_every, plan.chunk_size)

    def examples_of(self, plan: GridPlan, train: bool) -> Data:
        """Training or test data, limited in number; a preset's number is capped at the size, a given one is not."""
        limit, given = (plan.examples, self.examples) if train else (plan.test_examples, self.test_examples)
        if limit is not None and given is None and plan.data in WHOLE_SETS:
            data = load_data(plan.data, root=self.root, train=train)
            data = limit_examples(data, min(limit, len(data)), self.seed)
        else:
            data = load_data(plan.data, root=self.root, train=train, limit=limit, seed=self.seed)
        return Data(data.inputs.to(self.device, self.real), data.targets.to(self.device), data.classes)

    def network(self, plan: GridPlan, shape: tuple[int, ...], classes: int, seed: int) -> nn.Module:
        """The network with its random weights, and no coupling between the examples of a batch."""
        given = {"activation": self.activation, "norm": self.norm, "pooling": self.pooling}
        build = partial(build_network, plan.architecture, shape, classes, width=plan.width, seed=seed)
        module = build(**given)
        if any(isinstance(layer, BatchNorm) for layer in module.modules()):
            if self.norm is not None:
                raise ValueError(
                    f"norm must be group or none, got {self.norm!r}: with batch norm the loss of a mini-batch is not a "
                    "part of the training loss"
                )
            module = build(**given | {"norm": "group"})
        return module.to(self.device, self.real)

    def cells(self, store: Store, training: Training, rules: list[RateRule], sizes: dict[str, int]) -> list[RateCell]:
        """Every rule at every batch size, with its runs read from disk if present."""
        seeds = [self.seed + i for i in range(self.seeds)]
        N = len(training.train)
        cells = [RateCell(rule, size, N, label, []) for (label, size), rule in itertools.product(sizes.items(), rules)]
        for seed, cell in tqdm(list(itertools.product(seeds, cells)), unit="run", disable=None):
            name = f"{cell.rule.stem}-batch-{cell.label}-seed-{seed}"
            cell.runs.append(store.part(name, partial(train_run, training, cell.rule, cell.batch_size, seed)))
        return cells

    def describe(self, plan: GridPlan, training: Training) -> str:
        """Network, data and training, on one line."""
        weights = sum(p.numel() for p in training.network(self.seed).parameters())
        return (
            f"{plan.architecture} ({weights:,} weights) on {len(training.train):,} images of {plan.data}, "
            f"{len(training.test):,} to test on; epochs: {plan.epochs}, seeds: {self.seeds}, SGD without momentum; "
            f"DAL-p: h = min(2/vᵖ, {self.cap:g}), v = ‖Hg‖/‖g‖ of each mini-batch, Hg {PRODUCTS[plan.drift]}"
        )


PRODUCTS = {"exact": "exact", "difference": "by a difference"}


def batch_sizes(plan: GridPlan, N: int) -> dict[str, int]:
    """Batch sizes by name, rising; raises for an empty list, repeated sizes and sizes above the N examples."""
    if not plan.batch_sizes:
        raise ValueError("batch_sizes must name at least one, got none")
    sizes = [N if size == "all" else check_count("batch_sizes", size) for size in plan.batch_sizes]
    check_distinct("batch_sizes", sizes)
    if max(sizes) > N:
        raise ValueError(f"batch_sizes must be at most the {N} training examples, got {max(sizes)}; 'all' is those")
    return {str(name): size for size, name in sorted(zip(sizes, plan.batch_sizes, strict=True), key=lambda x: x[0])}


def check_distinct(name: str, values: Sequence[float]) -> None:
    """Raise ValueError for a repeated value, whose runs would be the same."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{name} must be distinct, got {value:g} twice; leave one out")
