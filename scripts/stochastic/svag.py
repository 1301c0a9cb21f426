r"""SVAG at l = 1, 2, 4, …: from SGD (l = 1) to its stochastic differential equation, at a fixed learning rate.

SVAG(l) takes l steps of h/l whose noise is amplified so that they have the mean and the covariance of one SGD step.
E φ tends to that of dX = −∇f dt + √h σ(X) dW with an error O(1/l): if l = 1 is within the error bars of large l, SGD
at that rate is described by its equation. Li, Malladi & Arora 2021 (arXiv 2102.12470).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import Annotated, Literal, cast

import torch
import tyro
from torch import Tensor

from flows import SVAG, StochasticModifiedEquation
from flows.ensembles import ensemble
from flows.steady.second_moments import SecondMoments
from landscapes.errors import check_count, check_positive
from landscapes.sampling import sampling_of
from landscapes.toys.finite_sums import FINITE_SUMS, QuadraticExamples

from ..lab.command_line import check_device
from ..lab.network import NetGround
from ..lab.store import Store, Tensors
from .common import Stochastic
from .runs import NetworkProblem, scaled_rate, sde_runs
from .svag_figure import svag_figure
from .svag_ladders import ON_TOYS, Ladder, NetworkLadder, ToyLadder

TOYS = ("noisy-quadratic", "linear-regression")
MLP = NetGround("mlp")


@dataclass(frozen=True)
class Svag(Stochastic):
    """SVAG at l = 1, 2, 4, …: does SGD behave as its stochastic differential equation?"""

    ground: NetGround = MLP
    """Network and data."""
    levels: Ladder = (1, 2, 4, 8, 16, 32, 64)
    """l on the toys."""
    network_levels: Ladder = (1, 2, 4, 8, 16, 32)
    """l on the network."""
    toy_scaled: float = 0.3
    """hλ of SGD on the toys, λ the largest curvature; h is rounded to two digits."""
    scaled: float = 0.5
    """hλ of SGD on the network, λ the largest curvature at the start; h is rounded to two digits."""
    batch_size: int = 1
    """Examples in a mini-batch on the toys."""
    network_batch_size: int = 4
    """Examples in a mini-batch on the network."""
    sampling: Annotated[Literal["replacement", "subset"], tyro.conf.arg(help="How mini-batches are drawn.")] = (
        "replacement"
    )
    steps: int = 12
    """Steps of SGD on the toys."""
    network_steps: int = 24
    """Steps of SGD on the network."""
    paths: int = 400_000
    """Paths of a toy."""
    runs: int = 100
    """Runs of the network at each level."""
    equation_runs: int = 200
    """Runs of the network's equation."""
    substeps: int = 8
    """Euler steps of the network's equation per step of SGD; a run with twice as many gives the extrapolation."""

    def run(self) -> None:
        """Run, compare, print, plot."""
        ladders = [check_levels(name, getattr(self, name)) for name in ("levels", "network_levels")]
        for name, minimum in (
            ("steps", 1),
            ("network_steps", 1),
            ("paths", 100),
            ("runs", 3),
            ("equation_runs", 3),
            ("substeps", 1),
        ):
            check_count(name, getattr(self, name), minimum=minimum)
        for name in ("toy_scaled", "scaled"):
            check_positive(name, getattr(self, name))
        check_device(self.device)
        store = self.open()
        toys = [self.toy(store, name, ladders[0]) for name in TOYS]
        ladder = self.on_network(store, ladders[1])
        store.table("\n\n".join([*(toy.table() for toy in toys), ladder.table()]))
        self.draw(store, svag_figure(toys, ladder))

    def configuration(self) -> dict[str, object]:
        """All options except levels and runs, which can be added."""
        said = super().configuration() | {"ground": asdict(self.ground) | {"chosen": asdict(self.ground.chosen)}}
        cast(dict[str, object], said["ground"]).pop("root")
        return {
            key: value
            for key, value in said.items()
            if key not in {"levels", "network_levels", "runs", "equation_runs"}
        }

    def toy(self, store: Store, name: str, levels: Ladder) -> ToyLadder:
        """The ladder on a toy, exact and from paths."""
        landscape = FINITE_SUMS[name]()
        assert isinstance(landscape, QuadraticExamples)  # all of TOYS are of this class
        moments = SecondMoments(landscape)
        h = scaled_rate(self.toy_scaled, moments.sharpness)
        c = sampling_of(landscape.size, self.batch_size, self.sampling).variance_factor()
        theta0 = moments.minimum + 1
        time = torch.tensor([self.steps * h], dtype=torch.float64)
        exact = [
            moments.expectations(moments.descent(theta0, h / level, level * c, self.steps * level)[-1])
            for level in levels
        ]
        equation = moments.expectations(moments.equation(theta0, h, c, time)[0])
        found = {}
        for level in levels:
            descent = SVAG(landscape, h, self.batch_size, level, self.sampling)
            compute = partial(self._paths, descent, theta0, moments)
            found[level] = store.part(f"{name}-{level:04d}", compute)
        heading = f"{name}: h = {h:g}, hλ = {h * moments.sharpness:.3g}, b = {self.batch_size}, t = {self.steps} h"
        return ToyLadder(heading, levels, exact, equation, found)

    def _paths(self, descent: SVAG, theta0: Tensor, moments: SecondMoments) -> Tensors:
        found = ensemble(
            descent,
            theta0.to(self.device),
            self.steps * descent.level,
            paths=self.paths,
            seed=self.seed * 10**4 + descent.level,
            observables=moments.functions(),  # type: ignore[arg-type]
            every=self.steps * descent.level,
        )
        found.check_finished(type(descent).__name__)
        ends = {name: found.mean[name][-1, 0] for name in ON_TOYS}
        bars = {f"{name} error": found.standard_error[name][-1, 0] for name in ON_TOYS}
        return {**ends, **bars, "lost": found.diverged}

    def on_network(self, store: Store, levels: Ladder) -> NetworkLadder:
        """The ladder on the network, with the equation."""
        network = NetworkProblem.from_ground(self.ground, self)
        sharpness = network.sharpness
        h, b = scaled_rate(self.scaled, sharpness), self.network_batch_size
        curves = {}
        for level in levels:
            descent = SVAG(network.landscape, h, b, level, self.sampling)
            name = f"network-{level:04d}"
            steps = self.network_steps * level
            every = 2 * level
            curves[level] = network.runs(store, name, descent, steps, runs=self.runs, seed=self.seed, every=every)
        flow = StochasticModifiedEquation(network.landscape, h, b, sampling=self.sampling)
        times = [2 * k * h for k in range(self.network_steps // 2 + 1)]
        if self.network_steps % 2:
            times.append(self.network_steps * h)
        dt = h / self.substeps
        equation, left = sde_runs(
            network, store, "network-sde", flow, times, dt, runs=self.equation_runs, seed=self.seed
        )
        heading = (
            f"{self.ground.architecture} ({network.landscape.dimension:,} weights), {network.landscape.size} examples "
            f"of {self.ground.chosen.data}: h = {h:g}, hλ = {h * sharpness:.3g} at the start, b = {b}, "
            f"t = {self.network_steps} h, {self.runs} runs at each l, {self.equation_runs} of the SDE"
        )
        return NetworkLadder(heading, curves, equation, left)


def check_levels(name: str, levels: Ladder) -> Ladder:
    """The levels, rising; raise ValueError if empty, repeated or not positive integers."""
    if not levels:
        raise ValueError(f"{name} must hold at least one level, such as 1 2 4")
    for level in levels:
        check_count(name, level)
    if len(set(levels)) < len(levels):
        raise ValueError(f"{name} must hold every level once, got {levels}")
    return tuple(sorted(levels))
