r"""Mini-batches with replacement, as subsets, or from reshuffled epochs, at equal h and b: three noises.

One step has the covariance D/b with replacement, (D/b)(N − b)/(N − 1) without. Independent subsets add up like
independent draws; the steps of a reshuffled epoch are anticorrelated and their noises sum to zero, so the noise at the
end of an epoch is the part that the drift has damped within the epoch. Each has its own stochastic equation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from flows import GradientFlow, StochasticGradientDescent, StochasticModifiedEquation, integrate
from flows.comparison.laws import LOSS
from flows.ensembles import ensemble
from flows.flow import StochasticFlow
from flows.steady.additive_laws import AdditiveLaw
from landscapes import NoisyQuadratic
from landscapes.errors import check_count
from landscapes.sampling import SAMPLINGS

from ..lab.command_line import check_device
from ..lab.network import NetGround
from ..lab.store import Store, Tensors
from .common import Stochastic
from .runs import NetworkProblem, scaled_rate, sde_runs
from .sampling_figure import sampling_figure
from .sampling_results import TOY_SIZE, SamplingStudy, SamplingToy, SamplingToyRow, ends, middle_step

MLP = NetGround("mlp")
HESSIAN = ((2.0, 0.5), (0.5, 1.0))
LEFT = 1e-4  # relative distance from the stationary variance at which the toy's runs end


@dataclass(frozen=True)
class SamplingExperiment(Stochastic):
    """Replacement, subsets and reshuffled epochs at equal h and b: variances and losses, SGD's and the equations'."""

    ground: NetGround = MLP
    """Network and data."""
    toy_batch_sizes: tuple[int, ...] = (1, 2, 4, 8, 16)
    """b on the toy, a quadratic with 16 examples and additive noise; all must divide 16."""
    toy_scaled: float = 0.5
    """hλ on the toy."""
    paths: int = 20_000
    """Paths of the toy."""
    substeps: int = 8
    """Euler steps of the toy's equation per step of SGD."""
    batch_sizes: tuple[int, ...] = (15, 30, 60, 150, 300)
    """b on the network; all must divide its examples."""
    scaled: float = 0.2
    """hλ on the network at the start; h is rounded to two digits."""
    steps: int = 80
    """Steps on the network, whole epochs for every b."""
    runs: int = 100
    """Runs of each b and sampling."""
    equation_batch_size: int = 30
    """b at which the network's equations are run."""
    network_substeps: int = 2
    """Euler steps of the network's equation per step of SGD; a run with twice as many gives the extrapolation."""

    def run(self) -> None:
        """Run, compare, print, plot."""
        least = {"paths": 100, "runs": 3, "substeps": 1, "network_substeps": 1, "steps": 1}
        for name, minimum in least.items():
            check_count(name, getattr(self, name), minimum=minimum)
        check_sizes("toy_batch_sizes", self.toy_batch_sizes, TOY_SIZE)
        check_device(self.device)
        store = self.open()
        toy = self.toy(store)
        study = self.study(store)
        store.table("\n\n".join([toy.table(), study.table()]))
        self.draw(store, sampling_figure(toy, study))

    def configuration(self) -> dict[str, Any]:
        """All options except mini-batch sizes and runs, which can be added."""
        ground = asdict(self.ground) | {"chosen": asdict(self.ground.chosen)}
        ground.pop("root")
        added = {"toy_batch_sizes", "batch_sizes", "runs", "equation_batch_size"}
        return {key: value for key, value in (super().configuration() | {"ground": ground}).items() if key not in added}

    def toy(self, store: Store) -> SamplingToy:
        """Mean losses in the middle and at the end of a late epoch, from paths of SGD and of its equations."""
        landscape = NoisyQuadratic(torch.tensor(HESSIAN, dtype=torch.float64), TOY_SIZE, seed=0)
        values = torch.linalg.eigvalsh(torch.tensor(HESSIAN, dtype=torch.float64))
        h = scaled_rate(self.toy_scaled, float(values[-1]))
        if h * float(values[-1]) >= 2:
            raise ValueError(f"toy_scaled must be below 2, where SGD diverges, got {self.toy_scaled}")
        settle = math.ceil(math.log(LEFT) / (2 * math.log(1 - h * float(values[0]))))
        rows = []
        for b in sorted(self.toy_batch_sizes):
            for sampling in SAMPLINGS:
                law = AdditiveLaw(landscape, h, b, sampling)
                k = math.ceil(settle / law.epoch) * law.epoch
                name = f"toy-{sampling}-{b:02d}"
                descent = store.part(name, lambda law=law, k=k: self._descent(law, k))  # type: ignore[misc]
                equation = store.part(f"{name}-sde", lambda law=law, k=k: self._equation(law, k))  # type: ignore[misc]
                rows.append(SamplingToyRow(law, k, descent, equation, self.substeps))
        return SamplingToy(rows)

    def _descent(self, law: AdditiveLaw, k: int) -> Tensors:
        model = StochasticGradientDescent(law.landscape, law.h, law.batch_size, law.sampling)
        return self._paths(model, law, k, every=middle_step(k, law.epoch))

    def _equation(self, law: AdditiveLaw, k: int) -> Tensors:
        model = StochasticModifiedEquation(law.landscape, law.h, law.batch_size, sampling=law.sampling)
        times = [law.h * j for j in dict.fromkeys((0, middle_step(k, law.epoch), k))]
        return self._paths(model, law, times, dt=law.h / self.substeps)

    def _paths(
        self,
        model: StochasticGradientDescent | StochasticFlow,
        law: AdditiveLaw,
        course: int | list[float],
        **how: Any,
    ) -> Tensors:
        theta0 = torch.zeros(law.landscape.dimension, dtype=torch.float64, device=self.device)
        place = 10 * law.batch_size + 2 * list(SAMPLINGS).index(law.sampling) + isinstance(model, StochasticFlow)
        looks: dict[str, Any] = {LOSS: law.landscape.loss}
        seed = self.seed * 10**4 + place
        found = ensemble(model, theta0, course, paths=self.paths, seed=seed, observables=looks, **how)
        found.check_finished(type(model).__name__)
        last = [-2, -1] if law.epoch > 1 else [-1, -1]
        return {"mean": found.mean[LOSS][last, 0], "error": found.standard_error[LOSS][last, 0]}

    def study(self, store: Store) -> SamplingStudy:
        """The network's runs for every b and sampling, and its three equations at one b."""
        network = NetworkProblem.from_ground(self.ground, self)
        size = network.landscape.size
        check_sizes("batch_sizes", self.batch_sizes, size)
        check_sizes("equation_batch_size", (self.equation_batch_size,), size)
        for b in {*self.batch_sizes, self.equation_batch_size}:
            if self.steps % (size // b):
                raise ValueError(f"steps must be whole epochs of {size // b} steps at b = {b}, got {self.steps}")
        sharpness = network.sharpness
        h = scaled_rate(self.scaled, sharpness)
        found, equations, left = {}, {}, {}
        for b in sorted(self.batch_sizes):
            for sampling in SAMPLINGS:
                descent, name = StochasticGradientDescent(network.landscape, h, b, sampling), f"{sampling}-{b:04d}"
                every, states = middle_step(self.steps, size // b), ends(size // b)
                found[b, sampling] = network.runs(
                    store, name, descent, self.steps, runs=self.runs, seed=self.seed, every=every, states=states
                )
        b, dt = self.equation_batch_size, h / self.network_substeps
        times = [h * k for k in dict.fromkeys((0, middle_step(self.steps, size // b), self.steps))]
        for sampling in SAMPLINGS:
            flow, name = (
                StochasticModifiedEquation(network.landscape, h, b, sampling=sampling),
                f"sde-{sampling}-{b:04d}",
            )
            equations[sampling], left[sampling] = sde_runs(
                network, store, name, flow, times, dt, runs=self.runs, seed=self.seed, states=ends(size // b)
            )
        heading = (
            f"{self.ground.architecture} ({network.landscape.dimension:,} weights), {size} examples of "
            f"{self.ground.chosen.data}: h = {h:g}, hλ = {h * sharpness:.3g} at the start, t = {self.steps} h, "
            f"{self.runs} runs"
        )
        compute = partial(self._drift, network, self.steps * h)
        drift = float(store.part("gradient-flow", compute)["loss"])
        return SamplingStudy(heading, size, found, b, equations, left, drift)

    def _drift(self, network: NetworkProblem, time: float) -> Tensors:
        run = integrate(GradientFlow(network.landscape), network.theta0, [0.0, time]).check_finished("gradient flow")
        return {"loss": network.landscape.loss(run.theta[-1])}


def check_sizes(name: str, sizes: Sequence[int], size: int) -> None:
    """Raise ValueError if there is no mini-batch size, or one that does not divide the number of examples."""
    if not sizes:
        raise ValueError(f"{name} must hold at least one number")
    for b in sizes:
        if size % check_count(name, b):
            raise ValueError(f"{name} must divide the {size} examples into whole mini-batches, {b} does not")
