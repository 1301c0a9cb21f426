r"""Training with the rates of a rule: an ordinary torch loop, and measurements from epoch to epoch."""

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

TOLERANCE = 1e-3  # relative tolerance of the sharpness, far below its changes


@dataclass(frozen=True)
class RateRule:
    """The rates of a run: one fixed rate, or for a power p > 0 those of DAL-p."""

    rate: float
    power: float = 0.0

    @property
    def fixed(self) -> bool:
        """Whether the rate is constant."""
        return self.power == 0

    @property
    def name(self) -> str:
        """Name in tables and figures."""
        return f"h = {self.rate:g}" if self.fixed else f"DAL-{self.power:g}"

    @property
    def stem(self) -> str:
        """Prefix of the names of its files."""
        return f"fixed-{self.rate:g}" if self.fixed else f"dal-{self.power:g}"


@dataclass(frozen=True)
class Training:
    """Common settings of all runs: network by seed, data on its device, training and measurements."""

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
        """The least training loss of outputs independent of the image: the entropy of the classes."""
        shares = torch.bincount(self.train.targets).double() / len(self.train)
        return float(-torch.xlogy(shares, shares).sum())

    def landscape(self, module: nn.Module, data: Data) -> NetworkLandscape:
        """The mean loss of all examples."""
        return NetworkLandscape(module, cross_entropy, data.inputs, data.targets, self.chunk_size)

    def chunk(self, rule: RateRule) -> int:
        """Examples of a mini-batch per chunk: all of them for an exact Hg, which needs the whole graph."""
        return self.chunk_size if rule.fixed or self.drift == "difference" else len(self.train)


class Measurements:
    """Training loss, test loss and accuracy after every epoch, sharpness after some epochs and the last."""

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
        """Measure after an epoch; returns False, and stores nothing, if the loss is not finite."""
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


def train_run(training: Training, rule: RateRule, batch_size: int, seed: int) -> Tensors:
    r"""SGD with the rates of a rule: weights and mini-batches depend only on the seed.

    "training loss", "test loss" and "test accuracy" at the start and after every epoch; "sharpness" and its diagnostics
    after "sharpness epochs"; "rates", one per step. "finished" is False if the loss became non-finite; the measurements
    before stay. Raises ValueError if the loss at the start is not finite.
    """
    module = training.network(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=rule.rate)
    rate = DriftAdjustedRate(optimizer, power=rule.power, cap=training.cap, drift=training.drift)
    measurements = Measurements(training, module)
    generator = torch.Generator().manual_seed(seed)
    rates: list[float] = []
    with collect_flags():  # its convergence is stored in the results
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
    """A step for each mini-batch, with its rate appended to ``rates``; False as soon as a loss is not finite."""
    for batch in batches:
        index = batch.to(training.train.targets.device)
        loss = rate.step(partial(mean_loss, module, training.train.inputs[index], training.train.targets[index], chunk))
        if not bool(loss.isfinite()):
            return False
        rate.optimizer.step()
        rates.append(rate.get_last_lr()[0])
    return True


def mean_loss(module: nn.Module, inputs: Tensor, targets: Tensor, chunk: int) -> Tensor:
    """The loss of a mini-batch, (); several chunks are recomputed in the backward pass, which stores one chunk."""
    if len(targets) <= chunk:
        return cross_entropy(module(inputs), targets).mean()
    # the random state is not restored for the recomputation: these networks have no dropout
    sums = [
        checkpoint(summed_loss, module, x, y, use_reentrant=False, preserve_rng_state=False)
        for x, y in zip(inputs.split(chunk), targets.split(chunk), strict=True)
    ]
    return torch.stack(sums).sum() / len(targets)


def summed_loss(module: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """The sum of the examples' losses, ()."""
    return cross_entropy(module(inputs), targets).sum()
