r"""The linear scaling rule: h and b scaled together, as SGD's noise depends only on h/b, and its limits.

With replacement dX = −∇f dt + √(h/b) D^{1/2} dW is one equation for all (sh, sb), so SGD's law at time t is the same up
to O(h). The rule fails if that O(h) is large, from hλ ~ 1, and, for mini-batches without replacement, for b near N:
their noise is smaller by (N − b)/(N − 1). Goyal et al. 2017 (arXiv 1706.02677) for the rule.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from flows import GradientFlow, StochasticGradientDescent, StochasticModifiedEquation, integrate
from flows.ensembles import ensemble
from flows.orders.ladder import sharpness_at
from landscapes import NoisyQuadratic
from landscapes.errors import check_count, check_positive
from landscapes.sampling import sampling_of

from ..lab.command_line import check_device
from ..lab.network import NetGround
from ..lab.store import Store, Tensors
from .common import Stochastic
from .linear_scaling_figure import linear_scaling_figure
from .linear_scaling_results import SAMPLINGS, TOY_SIZE, LinearScalingStudy, ScalingToy, ScalingToyRow, Setting
from .runs import NetworkProblem, scaled_rate, sde_runs

MLP = NetGround("mlp")
LEFT = 1e-4  # relative distance from the stationary variance at which a toy's runs end


@dataclass(frozen=True)
class LinearScaling(Stochastic):
    """SGD with (h, b), (2h, 2b), (4h, 4b), … at the same times: the range of the linear scaling rule."""

    ground: NetGround = MLP
    """Network and data."""
    factors: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Factors s: runs have rates sh and mini-batches of sb."""
    scaled: float = 0.04
    """hλ at the factor 1, λ the largest curvature at the start; h is rounded to two digits."""
    batch_size: int = 4
    """b at the factor 1."""
    steps: int = 512
    """Steps at the factor 1; all factors must divide them."""
    looks: int = 8
    """Number of observation times."""
    runs: int = 100
    """Runs of each factor and sampling."""
    equation_runs: int = 200
    """Runs of the equation."""
    coarse: int = 2
    """Euler steps of the equation, in units of h; a second run with half of that gives the extrapolation."""
    toy_factors: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """s on the toy, ½θ² with 32 examples and b = s."""
    toy_scaled: float = 0.06
    """hλ of the toy at the factor 1."""
    paths: int = 10_000
    """Paths of the toy."""

    def run(self) -> None:
        """Run, compare, print, plot."""
        factors = self.check_factors("factors", self.factors)
        toy_factors = self.check_factors("toy_factors", self.toy_factors)
        for name, minimum in (
            ("steps", 1),
            ("looks", 1),
            ("runs", 3),
            ("coarse", 1),
            ("paths", 100),
            ("batch_size", 1),
        ):
            check_count(name, getattr(self, name), minimum=minimum)
        if toy_factors[-1] > TOY_SIZE:
            raise ValueError(
                f"toy_factors must be at most {TOY_SIZE}, the toy's number of examples, got {toy_factors[-1]}"
            )
        if check_positive("toy_scaled", self.toy_scaled) * toy_factors[-1] >= 2:
            raise ValueError(f"toy_scaled must be below {2 / toy_factors[-1]:g}: the largest factor diverges at hλ = 2")
        if self.coarse > 1 and self.steps % (self.coarse * self.looks):
            raise ValueError(
                f"steps must be a multiple of looks · coarse = {self.looks * self.coarse}, got {self.steps}"
            )
        check_device(self.device)
        store = self.open()
        toy = ScalingToy(self.toy(store, toy_factors))
        study = self.study(store, factors)
        store.table("\n\n".join([toy.table(), study.table()]))
        self.draw(store, linear_scaling_figure(toy, study))

    def check_factors(self, name: str, factors: Sequence[int]) -> tuple[int, ...]:
        """Factors, rising; raise if empty, repeated, not positive or, on the network, not dividing the steps."""
        if not factors or len(set(factors)) < len(factors):
            raise ValueError(f"{name} must hold at least one number, each once, got {tuple(factors)}")
        for factor in factors:
            check_count(name, factor)
            if name == "factors" and self.steps % (factor * self.looks):
                message = f"{name} must divide steps / looks = {self.steps / self.looks:g} into whole numbers"
                raise ValueError(f"{message}, {factor} does not")
        return tuple(sorted(factors))

    def configuration(self) -> dict[str, Any]:
        """All options except factors and runs, which can be added."""
        ground = asdict(self.ground) | {"chosen": asdict(self.ground.chosen)}
        ground.pop("root")
        added = {"factors", "toy_factors", "runs", "equation_runs"}
        return {key: value for key, value in (super().configuration() | {"ground": ground}).items() if key not in added}

    def toy(self, store: Store, factors: Sequence[int]) -> list[ScalingToyRow]:
        """Stationary variances on ½θ²."""
        landscape = NoisyQuadratic(torch.eye(1, dtype=torch.float64), TOY_SIZE, seed=0)
        rows = []
        for factor in factors:
            for sampling in SAMPLINGS:
                h = self.toy_scaled * factor
                descent = StochasticGradientDescent(landscape, h, factor, sampling)
                part = store.part(f"toy-{sampling}-{factor:03d}", lambda descent=descent: self._paths(descent))  # type: ignore[misc]
                c = sampling_of(TOY_SIZE, factor, sampling).variance_factor()
                variance, error = float(part["variance"]), float(part["error"])
                rows.append(ScalingToyRow(factor, sampling, h, c, (variance, error)))
        return rows

    def _paths(self, descent: StochasticGradientDescent) -> Tensors:
        kept = abs(1 - descent.h)
        steps = 1 if kept < LEFT else math.ceil(math.log(LEFT) / (2 * math.log(kept)))
        theta0 = torch.zeros(1, dtype=torch.float64, device=self.device)
        seed = self.seed * 10**4 + 10 * descent.batch_size + SAMPLINGS.index(descent.sampling)
        looks: dict[str, Any] = {"theta": lambda theta: theta}
        found = ensemble(descent, theta0, steps, paths=self.paths, seed=seed, observables=looks, every=steps)
        found.check_finished(type(descent).__name__)
        variance, error = found.covariance["theta"][-1, 0, 0], found.covariance_error["theta"][-1, 0, 0]
        return {"variance": variance, "error": error}

    def study(self, store: Store, factors: Sequence[int]) -> LinearScalingStudy:
        """The network's runs, its equation and its gradient flow."""
        network = NetworkProblem.from_ground(self.ground, self)
        sharpness = network.sharpness
        h = scaled_rate(self.scaled, sharpness)
        if factors[-1] * self.batch_size > network.landscape.size:
            raise ValueError(
                f"factors must be at most {network.landscape.size // self.batch_size}, where sb is the number of "
                f"examples, got {factors[-1]}"
            )
        found = {}
        for factor in factors:
            for sampling in SAMPLINGS:
                descent = StochasticGradientDescent(network.landscape, factor * h, factor * self.batch_size, sampling)
                steps, name = self.steps // factor, f"{sampling}-{factor:03d}"
                every, seed = steps // self.looks, self.seed
                curves = network.runs(store, name, descent, steps, runs=self.runs, seed=seed, every=every, states=[-1])
                found[factor, sampling] = curves
        flow = StochasticModifiedEquation(network.landscape, h, self.batch_size)
        times = [self.steps // self.looks * h * j for j in range(self.looks + 1)]
        dt = self.coarse * h
        equation, left = sde_runs(
            network, store, "sde", flow, times, dt, runs=self.equation_runs, seed=self.seed, states=[-1]
        )
        drift = self._drift(store, network, times)
        heading = (
            f"{self.ground.architecture} ({network.landscape.dimension:,} weights), {network.landscape.size} examples "
            f"of {self.ground.chosen.data}: h = {h:g}, b = {self.batch_size}, t = {times[-1]:.4g}, {self.runs} runs "
            f"each, {self.equation_runs} of the SDE; "
            f"λ = {sharpness:.3g} at the start, {float(drift['sharpness']):.3g} at the end of gradient flow"
        )
        setting = Setting(h, self.batch_size, network.landscape.size, max(sharpness, float(drift["sharpness"])))
        return LinearScalingStudy(heading, setting, found, equation, left, drift)

    def _drift(self, store: Store, network: NetworkProblem, times: Sequence[float]) -> Tensors:
        def compute() -> Tensors:
            run = integrate(GradientFlow(network.landscape), network.theta0, times).check_finished("gradient flow")
            seen = {name: function(run.theta).double().cpu() for name, function in network.functions.items()}
            sharpness = torch.tensor(sharpness_at(network.landscape, run.theta[-1]), dtype=torch.float64)
            return {"times": run.times, "sharpness": sharpness, **seen}

        return store.part("gradient-flow", compute)
