r"""Mini-batches: the mean of SGD's runs compared with a small rate on modified losses of reshuffling and replacement.

Three predictions, each by gradient descent of rate h = H/r on the mean of m fixed batches:

    "plain"      f
    "norm"       f + ((H − h)/4) ‖∇f‖²                               modified loss of replacement
    "variance"   f + ((H − h)/4) ‖∇f‖² + (H/4m) Σ_k ‖∇f_k − ∇f‖²     modified loss of reshuffling

and the coordinates (a, b) of the mean in their plane, mean ≈ plain + a (norm − plain) + b (variance − norm): a = 1
and b = 1 for reshuffling, a = 1 and b = 0 for replacement, each up to O(H).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flows import GradientDescent, StochasticGradientDescent, descend, integrate
from flows.orders.fit import OrderStudy
from landscapes import FiniteSum
from landscapes.errors import check_count
from landscapes.wrappers.gradient_penalties import GradientPenalty, VariancePenalty
from landscapes.wrappers.modified_losses import LandscapeSum

from ..lab.command_line import check_device
from ..lab.store import Store, Tensors
from .common import OnNetwork, counted_descent, curvature, distance, ladder_table, study
from .exact_means import MOST_SEQUENCES, mean_over_draws, mean_over_orders
from .figures import mini_batch_figure
from .kinds import OWN, PREDICTIONS, SAMPLINGS
from .mini_batch_mean import Mean
from .scatter import ScatteredFlow, scatter_drift

GROUP = 25  # runs in a part on disk
APART = 10**6  # distance of the seeds of the two samplings, so that their runs are independent


@dataclass(frozen=True)
class MiniBatch(OnNetwork):
    """The mean of SGD, with fixed batches reshuffled or drawn with replacement, compared with modified losses."""

    scaled: float = 0.2
    """Hλ, λ the Hessian's eigenvalue of largest magnitude at the start; H is rounded to two digits."""
    batches: int = 4
    """m, fixed mini-batches that partition the examples; exact means over an epoch for m ≤ 5."""
    epochs: int = 8
    """Epochs of the long runs."""
    runs: int = 400
    """Long runs of SGD with each sampling."""
    ladder: tuple[float, ...] = (4, 2, 1, 0.5, 0.25, 0.125, 0.0625)
    """Rungs of the ladder of single epochs, in units of H."""

    def run(self) -> None:
        """Run, compare, print, plot."""
        ladder = self.falling_ladder()
        check_count("batches", self.batches, minimum=2)
        check_count("epochs", self.epochs)
        check_count("runs", self.runs, minimum=3)
        check_device(self.device)
        landscape, theta0 = self.build()
        epoch = in_batches(landscape, self.batches, self.seed)
        sharpness = curvature(epoch, theta0)
        rate = self.large_rate(sharpness)
        study = Epochs(self.open(H=rate), self, epoch, theta0, rate)
        means = {sampling: study.mean(sampling) for sampling in SAMPLINGS}
        heading = f"{self.describe(landscape, rate, sharpness)}, {self.batches} batches"
        blocks = [heading]
        exact: dict[str, dict[str, OrderStudy]] = {}
        if self.batches**self.batches <= MOST_SEQUENCES:
            for sampling in SAMPLINGS:
                exact[sampling] = study.single_epochs([rate * factor for factor in ladder], sampling, sharpness)
                title = f"one epoch from the start, {SAMPLINGS[sampling]}: the exact mean's distance to a small rate on"
                blocks.append(f"{title}\n{ladder_table(exact[sampling])}")
        else:
            blocks.append(f"one epoch: omitted, as its exact mean takes up to {self.batches}^{self.batches} sequences")
        blocks += [*(mean.table() for mean in means.values()), study.costs()]
        study.store.table("\n\n".join(blocks))
        self.draw(study.store, mini_batch_figure(exact, means))

    def configuration(self) -> dict[str, object]:
        """All options except the number of runs, so that runs can be added."""
        return {key: value for key, value in super().configuration().items() if key != "runs"}


def in_batches(landscape: FiniteSum, m: int, seed: int) -> LandscapeSum:
    """The mean over m batches of examples in a random order, of sizes that differ by at most one."""
    if m > landscape.size:
        raise ValueError(f"batches must be at most the number of examples, {landscape.size}, got {m}")
    order = torch.randperm(landscape.size, generator=torch.Generator().manual_seed(seed))
    return LandscapeSum([landscape.restrict(part) for part in order.tensor_split(m)])


def predicted_loss(epoch: FiniteSum, prediction: str, rate: float, small: float) -> FiniteSum:
    """The loss on which a small rate reproduces the large one according to a prediction."""
    if prediction == "plain":
        return epoch
    own = (rate - small) / 4  # the drift of the small rate itself adds small/4
    if prediction == "norm":
        return GradientPenalty(epoch, own)  # type: ignore[return-value]  # a finite sum stays one
    return VariancePenalty(epoch, torch.arange(epoch.size)[:, None], rate / 4, own)


class Epochs:
    """Long runs and single epochs of one configuration."""

    def __init__(self, store: Store, options: MiniBatch, epoch: LandscapeSum, theta0: Tensor, rate: float):
        self.store, self.options, self.epoch = store, options, epoch
        self.theta0, self.rate = theta0, rate

    def mean(self, sampling: str) -> Mean:
        """All runs of one sampling, with the predictions for their mean."""
        options, first = self.options, 0
        groups = []
        while first < options.runs:
            count = min(GROUP, options.runs - first)
            groups.append(self._group(sampling, first, count)["theta"])
            first += count
        runs = torch.cat(groups).to(self.theta0.device)
        away = {}
        for name, caption in PREDICTIONS.items():
            run = self._prediction(name, self.rate, options.epochs, f"along-{name}")
            if not bool(run["finished"]):
                raise ArithmeticError(f"the small rate on {caption} became non-finite: give a smaller --rate")
            away[name] = run["theta"].double()
        times = torch.arange(options.epochs + 1, dtype=torch.float64) * options.batches * self.rate
        scattered = self._scattered_mean(sampling, runs, times)
        return Mean(sampling, times, runs.double().cpu(), away, scattered.double())

    def _scattered_mean(self, sampling: str, runs: Tensor, times: Tensor) -> Tensor:
        def compute() -> Tensors:
            loss = predicted_loss(self.epoch, OWN[sampling], self.rate, 0.0)
            flow = ScatteredFlow(loss, times, scatter_drift(self.epoch, runs))
            run = integrate(flow, self.theta0, times, method="rk4", dt=self.rate)
            return {"theta": run.check_finished(flow.name).theta}

        return self.store.part(f"scattered-{sampling}-{len(runs)}", compute)["theta"]

    def _group(self, sampling: str, first: int, count: int) -> Tensors:
        """The states (count, E + 1, d) of some runs at the ends of epochs."""
        m, epochs = self.epoch.size, self.options.epochs
        descent = StochasticGradientDescent(self.epoch, self.rate, 1, sampling)

        def compute() -> Tensors:
            states = []
            for i in range(first, first + count):
                seed = (self.options.seed * len(SAMPLINGS) + list(SAMPLINGS).index(sampling)) * APART + i
                run = descend(descent, self.theta0, m * epochs, seed=seed, every=m)
                states.append(run.check_finished(f"SGD, {SAMPLINGS[sampling]}, at H = {self.rate:g},").theta)
            return {"theta": torch.stack(states)}

        return self.store.part(f"runs-{sampling}-{first:05d}-{count}", compute)

    def _prediction(self, name: str, rate: float, epochs: int, part: str) -> Tensors:
        r, m = self.options.slowdown, self.epoch.size
        small = rate / r

        def build(epoch: FiniteSum) -> GradientDescent:
            return GradientDescent(predicted_loss(epoch, name, rate, small), small)

        return counted_descent(self.store, part, build, self.epoch, self.theta0, m * epochs * r, every=m * r)

    def costs(self) -> str:
        """Cost of the long runs, in passes over all examples."""
        said = [f"SGD {self.options.epochs} and 0"]
        for name, caption in PREDICTIONS.items():
            run = self._prediction(name, self.rate, self.options.epochs, f"along-{name}")
            said.append(f"{caption} {float(run['gradients']):g} and {float(run['products']):g}")
        return f"gradients and HVPs of a run over {self.options.epochs} epochs: {'; '.join(said)}"

    def single_epochs(self, ladder: Sequence[float], sampling: str, sharpness: float) -> dict[str, OrderStudy]:
        """Distance of the exact mean after one epoch to each prediction, along a ladder of H."""
        exact = {"epoch": mean_over_orders, "replacement": mean_over_draws}[sampling]
        errors: dict[str, list[float]] = {name: [] for name in PREDICTIONS}
        for rate in ladder:
            mean = partial(exact, self.epoch, rate, self.theta0)
            part = f"exact-{sampling}-{rate:.12g}"
            truth = self.store.part(part, lambda mean=mean: {"theta": mean()})["theta"]  # type: ignore[misc]
            for name in PREDICTIONS:
                run = self._prediction(name, rate, 1, f"single-{name}-{rate:.12g}")
                ended = bool(run["finished"]) and bool(truth.isfinite().all())
                errors[name].append(float(distance(run["theta"][-1:], truth[None])) if ended else math.nan)
        apart = [0.0] * len(ladder)
        return {
            PREDICTIONS[name]: study(ladder, found, apart, self.theta0, sharpness, name)
            for name, found in errors.items()
        }
