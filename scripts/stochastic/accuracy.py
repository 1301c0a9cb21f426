r"""Influence of the shape of the gradient noise on a network: true, isotropic and diagonal noise of equal trace.

    descent             θ' = θ − h∇f                              no noise
    SGD                 θ' = θ − h∇f_B                            mini-batches of b
    SDE, its noise      dX = −∇f dt + √h C(X)^{1/2} dW            C = cD the covariance of ∇f_B at every θ
    SDE, diagonal       dX = −∇f dt + √h (diag C(X))^{1/2} dW     its variances without its correlations
    SDE, isotropic      dX = −∇f dt + √(h tr C(X)/d) dW           its strength without a direction

All runs start from the same weights at equal seeds, so that differences to SGD are taken run by run. The traces are
equal at equal θ; along a run the trace is that at the θ of this run, and is recorded.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from scipy import stats
from torch import Tensor

from flows import (
    Descent,
    Flow,
    GradientDescent,
    NoisyModifiedEquation,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    descend,
    integrate,
)
from flows.engines.recorder import Observer
from flows.observers import Evaluation, GradientNorm, Loss, Sharpness
from landscapes import FiniteSum
from landscapes.errors import check_choice, check_count, check_positive, check_seed
from landscapes.noise import DiagonalSurrogate, IsotropicSurrogate, MinibatchNoise
from landscapes.sampling import SAMPLINGS
from nets import NetworkLandscape

from ..lab.command_line import check_device
from ..lab.experiment import align_rows
from ..lab.network import NetGround
from ..lab.store import Store, Tensors
from ..lab.tables import with_error
from .accuracy_figure import accuracy_figure
from .common import Stochastic

GROUND = NetGround("lenet", examples=200)
SGD = "SGD"
Model = Descent | Flow
MODELS: dict[str, Callable[[FiniteSum, float, MinibatchNoise], Model]] = {
    "descent": lambda f, h, noise: GradientDescent(f, h),
    SGD: lambda f, h, noise: StochasticGradientDescent(f, h, noise.batch_size, noise.sampling),
    "SDE, its noise": lambda f, h, noise: StochasticModifiedEquation(f, h, noise.batch_size, 1, noise.sampling),
    "SDE, diagonal": lambda f, h, noise: NoisyModifiedEquation(f, h, DiagonalSurrogate(noise)),
    "SDE, isotropic": lambda f, h, noise: NoisyModifiedEquation(f, h, IsotropicSurrogate(noise)),
}
"""Models by their name in the tables."""
QUANTITIES = {
    "test accuracy": "test accuracy",
    "test loss": "test loss",
    "loss": "training loss",
    "gradient norm": "‖∇f‖",
    "sharpness": "sharpness",
    "noise trace": "tr C",
}
"""Observed quantities by key, with their names in the tables."""
LATE = 0.25  # fraction of the observations, at the end, whose mean is compared


@dataclass
class NoiseTrace:
    """The observer of tr C(θ): "noise trace", (...,)."""

    noise: MinibatchNoise
    every: int
    name: str = "noise trace"

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"noise trace": (...,)}."""
        return {self.name: self.noise.trace(theta)}


@dataclass(frozen=True)
class Accuracy(Stochastic):
    """Test accuracy of a network under true, diagonal and isotropic noise of equal trace, and without noise."""

    dtype: Literal["float64", "float32"] = "float32"
    """Precision."""
    ground: NetGround = GROUND
    """Network and data."""
    h: float = 0.5
    """Learning rate."""
    batch_size: int = 8
    """b."""
    sampling: str = "replacement"
    """replacement or subset."""
    steps: int = 600
    """Steps of h."""
    substeps: int = 1
    """Euler steps of the SDEs in h; with one step, Euler's method is descent with Gaussian noise of this covariance."""
    seeds: int = 6
    """Runs of each model, from as many initial weights."""
    looks: int = 20
    """Number of observations along a run; must divide the steps."""

    def run(self) -> None:
        """Run all models, compare, print, plot."""
        self.check()
        store = self.open()
        runs = {name: [self.train(store, name, seed) for seed in range(self.seeds)] for name in MODELS}
        found = {name: gather_runs(each) for name, each in runs.items()}
        store.table("\n\n".join([self.describe(), end_table(found), difference_table(found), self.notes(found)]))
        self.draw(store, accuracy_figure(found, QUANTITIES))

    def check(self) -> None:
        """Raise ValueError for invalid options."""
        check_choice("sampling", self.sampling, tuple(name for name in SAMPLINGS if name != "epoch"))
        check_positive("h", self.h)
        for name in ("batch_size", "steps", "substeps", "looks"):
            check_count(name, getattr(self, name))
        check_count("seeds", self.seeds, minimum=2)
        if self.steps % self.looks:
            raise ValueError(f"looks must divide the {self.steps} steps, got {self.looks}")
        check_seed(self.seed)
        check_device(self.device)

    def configuration(self) -> dict[str, Any]:
        """All options except the number of seeds, so that seeds can be added."""
        ground = dataclasses.asdict(self.ground) | {"chosen": dataclasses.asdict(self.ground.chosen)}
        ground.pop("root")
        said = super().configuration() | {"ground": ground}
        return {key: value for key, value in said.items() if key != "seeds"}

    @cached_property
    def landscape(self) -> NetworkLandscape:
        """The training loss, on images chosen by the experiment's seed."""
        return self.ground.build(self.seed, self.real, self.device)[0]

    def weights(self, seed: int) -> Tensor:
        """The initial weights of a run, (d,)."""
        module = self.ground.parts(self.seed + seed, self.real, self.device)[0]
        return torch.nn.utils.parameters_to_vector(module.parameters()).detach()

    @cached_property
    def test(self) -> Evaluation:
        """The observer of loss and accuracy on the test images."""
        test, targets = self.ground.test_part(self.seed, self.real, self.device)
        return Evaluation(test, test.outputs, targets, every=self.steps // self.looks)

    @property
    def noise(self) -> MinibatchNoise:
        """The noise of a mini-batch's gradient."""
        return MinibatchNoise(self.landscape, self.batch_size, self.sampling)

    def train(self, store: Store, name: str, seed: int) -> Tensors:
        """One run: its times and observations; "finished" is whether it stayed finite."""

        def compute() -> Tensors:
            landscape, noise, every = self.landscape, self.noise, self.steps // self.looks
            watch: list[Observer] = [Loss(landscape, every), self.test, GradientNorm(landscape, every)]
            watch += [Sharpness(landscape, every=every), NoiseTrace(noise, every)]
            run = self.advance(MODELS[name](landscape, self.h, noise), self.weights(seed), seed, watch)
            seen = {key: run.observations[key][1].double().cpu() for key in QUANTITIES}
            return {
                "times": run.observations["loss"][0],
                **seen,
                "converged": run.observations["sharpness converged"][1],
            }

        return store.part(f"{file_name(name)}-{seed}", compute)

    def advance(self, model: Model, theta0: Tensor, seed: int, watch: list[Observer]) -> Any:
        """The trajectory of a model; ArithmeticError if it becomes non-finite."""
        draws = self.seed * 10**6 + seed
        if isinstance(model, Descent):
            run = descend(model, theta0, self.steps, seed=draws, keep="last", observers=watch)
        else:
            times = torch.arange(self.steps + 1, dtype=torch.float64) * self.h
            dt = self.h / self.substeps
            run = integrate(model, theta0, times, dt=dt, seed=draws, keep="last", observers=watch)
        return run.check_finished(f"{type(model).__name__}, seed {seed},")

    def describe(self) -> str:
        """Network, data and settings, on one line."""
        tested = self.test.landscape
        assert isinstance(tested, FiniteSum)
        return (
            f"{self.ground.architecture} ({self.landscape.dimension:,} weights) on {self.landscape.size} of "
            f"{self.ground.chosen.data}, {tested.size} to test: h = {self.h:g}, b = {self.batch_size} "
            f"({self.sampling}), {self.steps} steps to t = {self.steps * self.h:g}, SDEs with dt = "
            f"{self.h / self.substeps:g}, {self.seeds} runs each"
        )

    def notes(self, found: dict[str, Tensors]) -> str:
        """Explanation of the numbers in the tables."""
        unsure = sum(int((~seen["converged"]).sum()) for seen in found.values())
        average = f"mean of the last {round(LATE * 100)} % of {self.looks} observations"
        said = (
            f"{average} of each run; ± one standard error over the runs; differences run by run, from the same weights"
        )
        return said + (f"\n{unsure} sharpnesses are not converged" if unsure else "")


def file_name(name: str) -> str:
    """The name of a model in file names."""
    return name.replace(",", "").replace(" ", "-")


def gather_runs(runs: list[Tensors]) -> Tensors:
    """The runs of one model as (R, T) for each quantity, with their common times."""
    return {key: runs[0][key] if key == "times" else torch.stack([run[key] for run in runs]) for key in runs[0]}


def mean_at_end(values: Tensor) -> Tensor:
    """The mean of the last observations of each run, (R,) from (R, T)."""
    return values[:, -max(1, math.floor(LATE * values.shape[1])) :].mean(dim=1)


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of values (R,)."""
    return float(values.mean()), float(values.std()) / math.sqrt(len(values))


def end_table(found: dict[str, Tensors]) -> str:
    """A row for each model: means at the end of the runs, with standard errors."""
    rows = [["late in the run", *QUANTITIES.values()]]
    for name, seen in found.items():
        rows.append([name, *(with_error(*mean_and_error(mean_at_end(seen[key]))) for key in QUANTITIES)])
    return align_rows(rows)


def difference_table(found: dict[str, Tensors]) -> str:
    """A row for each model but SGD: its means at the end less SGD's, pair by pair, and the p-value for the accuracy."""
    rows = [["less SGD's, run by run", *QUANTITIES.values(), "p of accuracy"]]
    for name, seen in found.items():
        if name == SGD:
            continue
        apart = {key: mean_at_end(seen[key]) - mean_at_end(found[SGD][key]) for key in QUANTITIES}
        cells = [with_error(*mean_and_error(values)) for values in apart.values()]
        rows.append([name, *cells, p_value(apart["test accuracy"])])
    return align_rows(rows)


def p_value(values: Tensor) -> str:
    """Student's two-sided p-value for the hypothesis of mean zero; a dash if all values are equal."""
    value, error = mean_and_error(values)
    if not error > 0:
        return "–"
    return f"{2 * stats.t.sf(abs(value / error), len(values) - 1):.2g}"
