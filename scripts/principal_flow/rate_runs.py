r"""Training at a rule's rates: an ordinary torch loop, and what is measured of it from epoch to epoch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from flows.flow import collect_flags
from flows.observers import Evaluation, Loss, Sharpness
from flows.training.drift_adjusted_rate import DriftAdjustedRate
from nets import Data, NetworkLandscape, cross_entropy

from ..lab.store import Tensors

TOLERANCE = 1e-3  # of the sharpness, far below its changes


@dataclass(frozen=True)
class Rule:
    """Which rates a run takes: one fixed rate, or at a power p > 0 those of DAL-p."""

    rate: float
    power: float = 0.0

    @property
    def fixed(self) -> bool:
        """Whether it is one rate throughout."""
        return self.power == 0

    @property
    def name(self) -> str:
        """What tables and figures call it."""
        return f"h = {self.rate:g}" if self.fixed else f"DAL-{self.power:g}"

    @property
    def stem(self) -> str:
        """What the names of its files begin with."""
        return f"fixed-{self.rate:g}" if self.fixed else f"dal-{self.power:g}"


@dataclass(frozen=True)
class Training:
    """What all runs have in common: network by seed, data on its device, and how to train and to measure."""

    network: Callable[[int], nn.Module]
    train: Data
    test: Data
    epochs: int
    cap: float
    drift: str
    sharpness_every: int
    chunk_size: int

    @property
    def uninformed(self) -> float:
        """The least training loss of outputs that do not depend on the image: the entropy of the classes."""
        shares = torch.bincount(self.train.targets).double() / len(self.train)
        return float(-torch.xlogy(shares, shares).sum())

    def landscape(self, module: nn.Module, data: Data) -> NetworkLandscape:
        """The mean loss of all examples."""
        return NetworkLandscape(module, cross_entropy, data.inputs, data.targets, self.chunk_size)

    def chunk(self, rule: Rule) -> int:
        """Examples of a mini-batch whose graph is held at once: an exact Hg needs the graph of them all."""
        return self.chunk_size if rule.fixed or self.drift == "difference" else len(self.train)


class Measurements:
    """Training loss, test loss and accuracy at the end of every epoch, sharpness at that of some and of the last."""

    def __init__(self, training: Training, module: nn.Module):
        self._module, self._last = module, training.epochs
        train, test = (training.landscape(module, data) for data in (training.train, training.test))
        self._loss = Loss(train, name="training loss")
        self._others = (
            Evaluation(test, test.outputs, training.test.targets),
            Sharpness(train, tolerance=TOLERANCE, every=training.sharpness_every),
        )
        self.seen: dict[str, list[Tensor]] = {}

    def take(self, epoch: int, time: float) -> bool:
        """Measure, after that epoch, unless weights and loss have left the finite numbers: False."""
        theta = nn.utils.parameters_to_vector(self._module.parameters()).detach()
        shown = self._loss(epoch, time, theta)
        if not bool(shown["training loss"].isfinite()):
            return False
        for observer in self._others:
            if epoch % observer.every == 0 or epoch == self._last:
                shown |= observer(epoch, time, theta)
        if "sharpness" in shown:
            shown["sharpness epochs"] = torch.tensor(epoch)
        for name, value in shown.items():
            self.seen.setdefault(name, []).append(value.cpu())
        return True


def trained_at(training: Training, rule: Rule, batch_size: int, seed: int) -> Tensors:
    r"""SGD with that rule's rates: weights and mini-batches come from the seed alone, whatever the rule.

    "training loss", "test loss" and "test accuracy" at the start and after every epoch; "sharpness" and its kin after
    "sharpness epochs"; "rates", one a step. "finished" is False where the loss left the finite numbers: what was
    measured before stays. Raises ValueError where it has none at the start.
    """
    module = training.network(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=rule.rate)
    rate = DriftAdjustedRate(optimizer, power=rule.power, cap=training.cap, drift=training.drift)
    measurements = Measurements(training, module)
    generator = torch.Generator().manual_seed(seed)
    rates: list[float] = []
    with collect_flags():  # whether the sharpness converged is in the results
        finished = measurements.take(0, 0.0)
        if not finished:
            raise ValueError(f"width must give a network with a finite loss at the start, seed {seed} has none")
        for epoch in range(1, training.epochs + 1):
            batches = torch.randperm(len(training.train), generator=generator).split(batch_size)
            finished = run_epoch(training, module, rate, batches, training.chunk(rule), rates)
            finished = finished and measurements.take(epoch, math.fsum(rates))
            if not finished:
                break
    seen = {name: torch.stack(values) for name, values in measurements.seen.items()}
    return seen | {"rates": torch.tensor(rates, dtype=torch.float64), "finished": torch.tensor(finished)}


def run_epoch(
    training: Training,
    module: nn.Module,
    rate: DriftAdjustedRate,
    batches: tuple[Tensor, ...],
    chunk: int,
    rates: list[float],
) -> bool:
    """A step for each mini-batch, its rate noted; False as soon as a loss is not finite."""
    for batch in batches:
        index = batch.to(training.train.targets.device)
        loss = rate.step(partial(mean_loss, module, training.train.inputs[index], training.train.targets[index], chunk))
        if not bool(loss.isfinite()):
            return False
        rate.optimizer.step()
        rates.append(rate.get_last_lr()[0])
    return True


def mean_loss(module: nn.Module, inputs: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """The mini-batch's loss, (); one of several chunks runs them again on the way back, and holds one's graph."""
    if len(targets) <= chunk:
        return cross_entropy(module(inputs), targets).mean()
    sums = [
        checkpoint(summed_loss, module, x, y, use_reentrant=False, preserve_rng_state=False)
        for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.stack(sums).sum() / len(targets)


def summed_loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The sum of the examples' losses, ()."""
    return cross_entropy(module(inputs), targets).sum()
