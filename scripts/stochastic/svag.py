r"""SVAG at l = 1, 2, 4, …: from SGD (l = 1) to its stochastic differential equation, at a fixed learning rate.

SVAG(l) takes l steps of h/l whose noise is amplified so that they have the mean and the covariance of one SGD step.
E φ tends to that of dX = −∇f dt + √h σ(X) dW with an error O(1/l): where l = 1 is within the error bars of large l, SGD
at that rate behaves as its equation. Li, Malladi & Arora 2021 (arXiv 2102.12470).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Annotated, Literal, cast

import torch
import tyro
from torch import Tensor

from flows import SVAG, StochasticModifiedEquation
from flows.comparison.laws import LOSS, SQUARED_NORM
from flows.ensembles import ensemble
from flows.ensembles.statistics import CONFIDENCE
from flows.ensembles.weak_ladder import WeakOrder, fitted
from flows.steady.second_moments import OFFSET, SecondMoments
from landscapes.errors import check_count, check_positive
from landscapes.sampling import sampling_of
from landscapes.toys.finite_sums import FINITE_SUMS, QuadraticExamples
from scripts.lab.command_line import check_device
from scripts.lab.experiment import aligned
from scripts.lab.network import NetGround
from scripts.lab.store import Store, Tensors
from scripts.stochastic.common import Stochastic
from scripts.stochastic.runs import ACCURACY, TOLD, Curves, Network, Pair, cell, scaled_rate, sde_runs
from scripts.stochastic.svag_figure import svag_figure

TOYS = ("noisy-quadratic", "linear-regression")
MLP = NetGround("mlp")
ON_TOYS = (LOSS, SQUARED_NORM, OFFSET)
ON_NETWORK = (LOSS, SQUARED_NORM, ACCURACY)
Ladder = tuple[int, ...]


@dataclass(frozen=True)
class Svag(Stochastic):
    """SVAG at l = 1, 2, 4, …: does SGD behave as its stochastic differential equation?"""

    ground: NetGround = MLP
    """The network and its data."""
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
    """Euler steps of the network's equation in one of SGD, and twice as many, from which it is extrapolated."""

    def run(self) -> None:
        """Run, compare, print, draw."""
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
        """Without what can be added to: levels and runs."""
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
        assert isinstance(landscape, QuadraticExamples)  # those of TOYS are
        moments = SecondMoments(landscape)
        h = scaled_rate(self.toy_scaled, moments.sharpness)
        c = sampling_of(landscape.size, self.batch_size, self.sampling).variance_factor()
        theta0 = moments.minimum + 1
        time = torch.tensor([self.steps * h], dtype=torch.float64)
        exact = [
            moments.observed(moments.descent(theta0, h / level, level * c, self.steps * level)[-1]) for level in levels
        ]
        equation = moments.observed(moments.equation(theta0, h, c, time)[0])
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
        if found.status == "interrupted":
            raise KeyboardInterrupt(found.status.sentence)
        ends = {name: found.mean[name][-1, 0] for name in ON_TOYS}
        bars = {f"{name} error": found.standard_error[name][-1, 0] for name in ON_TOYS}
        return {**ends, **bars, "lost": found.diverged}

    def on_network(self, store: Store, levels: Ladder) -> NetworkLadder:
        """The ladder on the network, beside the equation."""
        network = Network.of(self.ground, self)
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


@dataclass(frozen=True, eq=False)
class ToyLadder:
    """E φ at the end on one toy: exact for every level and for the equation, and from paths."""

    heading: str
    levels: Ladder
    exact: Sequence[Mapping[str, Tensor]]
    equation: Mapping[str, Tensor]
    found: Mapping[int, Tensors]

    def away(self, name: str) -> list[float]:
        """E φ(SVAG) − E φ(X), exactly, for every level."""
        return [float(values[name] - self.equation[name]) for values in self.exact]

    def measured(self, name: str) -> list[tuple[float, float]]:
        """The same from paths, with standard errors."""
        parts = [self.found[level] for level in self.levels]
        return [(float(part[name] - self.equation[name]), float(part[f"{name} error"])) for part in parts]

    def slopes(self, name: str) -> tuple[WeakOrder, WeakOrder]:
        """Of |measured| in 1/l, and of the exact errors at the same levels with the same weights.

        From the levels above 1, which is SGD, whose exact error is more than two standard errors of the paths.
        """
        rows = zip(self.levels, self.measured(name), self.away(name), strict=True)
        seen = [(1 / level, abs(x), s, abs(e)) for level, (x, s), e in rows if level > 1 and abs(e) > 2 * s]
        rates, errors, bars, exact = ([row[i] for row in seen] for i in range(4))
        same = [bar * e / x for bar, e, x in zip(bars, exact, errors, strict=True)]
        return fitted(rates, errors, bars, CONFIDENCE), fitted(rates, exact, same, CONFIDENCE)

    def exact_slope(self, name: str) -> float:
        """Between the two largest levels; NaN for one."""
        if len(self.levels) < 2:
            return math.nan
        (a, b), (m, n) = self.away(name)[-2:], self.levels[-2:]
        return math.log(abs(a / b)) / math.log(n / m)

    def table(self) -> str:
        """A column for each level and the equation's; rows from paths, exact, and their difference."""
        rows = [["l", *map(str, self.levels), "SDE"]]
        for name in ON_TOYS:
            parts = [self.found[level] for level in self.levels]
            found = [cell(float(part[name]), float(part[f"{name} error"])) for part in parts]
            exact = [f"{float(values[name]):.5f}" for values in (*self.exact, self.equation)]
            rows.append([f"{name}, from paths", *found, ""])
            rows.append([f"{name}, exact", *exact])
            rows.append([f"{name}, exact − SDE", *(f"{away:.2e}" for away in self.away(name)), ""])
        slopes = [["slope in 1/l", "from paths, 95 % interval", "levels", "exact, same levels", "exact, last two"]]
        for name in ON_TOYS:
            measured, same = self.slopes(name)
            beside = [f"{same.order:.3f}" if same.rungs > 1 else "–", f"{self.exact_slope(name):.3f}"]
            slopes.append([name, str(measured), str(measured.rungs), *beside])
        lost = sum(int(part["lost"]) for part in self.found.values())
        note = [f"{lost} paths diverged and stay at their last finite position"] if lost else []
        return "\n".join([self.heading, aligned(rows), aligned(slopes), *note])


@dataclass(frozen=True, eq=False)
class NetworkLadder:
    """Runs of SVAG on a network at every level, and of the equation."""

    heading: str
    levels: Mapping[int, Curves]
    equation: Curves
    left: Mapping[str, Pair]
    names: Sequence[str] = field(default=ON_NETWORK)

    def away(self, level: int, name: str) -> tuple[float, float]:
        """Mean of SVAG less that of the equation at the end, and its standard error."""
        (mean, error), (theirs, bar) = self.levels[level].mean(name), self.equation.mean(name)
        return float(mean[-1] - theirs[-1]), math.hypot(float(error[-1]), float(bar[-1]))

    def agreed(self, name: str) -> int | None:
        """The smallest level from which on all are within three standard errors of the equation, or None."""
        smallest = None
        for level in sorted(self.levels, reverse=True):
            away, error = self.away(level, name)
            if not abs(away) <= TOLD * error:
                break
            smallest = level
        return smallest

    def table(self) -> str:
        """A row for each level: means at the end, and how far from the equation's."""
        rows = [["l", *(f"{name}{what}" for name in self.names for what in ("", " − SDE"))]]
        for level, curves in self.levels.items():
            row = [f"{level}, SGD" if level == 1 else str(level)]
            for name in self.names:
                mean, error = curves.mean(name)
                row += [cell(float(mean[-1]), float(error[-1])), cell(*self.away(level, name))]
            rows.append(row)
        ends = [tuple(float(x[-1]) for x in self.equation.mean(name)) for name in self.names]
        rows.append(["SDE", *(text for mean, error in ends for text in (cell(mean, error), ""))])
        gaps = [f"{name} {cell(*(float(x[-1]) for x in self.left[name]))}" for name in self.names]
        agreed = [f"{name} {'at none' if self.agreed(name) is None else self.agreed(name)}" for name in self.names]
        lost = sum(curves.lost for curves in (*self.levels.values(), self.equation))
        said = [
            f"integration of the SDE at the finer step was off by: {'; '.join(gaps)}; extrapolated here",
            f"within three standard errors of the SDE from l on: {'; '.join(agreed)}",
            *([f"{lost} runs diverged and stay at their last finite position"] if lost else []),
        ]
        return "\n".join([self.heading, aligned(rows), *said])


def check_levels(name: str, levels: Ladder) -> Ladder:
    """The levels, rising; raise unless there is one and they are positive whole numbers, each once."""
    if not levels:
        raise ValueError(f"{name} must hold at least one level, such as 1 2 4")
    for level in levels:
        check_count(name, level)
    if len(set(levels)) < len(levels):
        raise ValueError(f"{name} must hold every level once, got {levels}")
    return tuple(sorted(levels))
