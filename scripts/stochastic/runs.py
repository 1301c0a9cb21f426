"""Runs of SGD, SVAG or an SDE on a network, stored on disk in groups, so that runs can be added."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from flows import Descent, Flow, StochasticFlow
from flows.comparison.laws import LOSS, SQUARED_NORM
from flows.ensembles.blocks import Block, Function, block_seed, count_diverged, course
from flows.observers import Evaluation
from flows.orders.ladder import sharpness_at
from landscapes.errors import check_positive
from nets import NetworkLandscape

from ..lab.network import NetGround
from ..lab.store import Store, Tensors
from ..lab.tables import with_error
from .common import Stochastic

GROUP = 25  # runs in a part on disk
ROUNDING, NOTHING = 1e-12, 1e-24  # of a number; of a variance
SEPARATED = 3  # standard errors that separate two means; a table has many pairs
ACCURACY = "test accuracy"
DISTANCE = "‖θ − θ₀‖"
SHOWN = (LOSS, SQUARED_NORM, ACCURACY, DISTANCE)
DIGITS = 2  # of a rate computed from the curvature, so that it is the same on every machine

Pair = tuple[Tensor, Tensor]
"""A number and its standard error."""


@dataclass(frozen=True, eq=False)
class Curves:
    """Observables of R runs of one model at T times: name → (R, T).

    ``squares`` (R, K): ‖θ − mean of the runs‖² at the K selected times.
    """

    times: Tensor
    values: Mapping[str, Tensor]
    squares: Tensor
    lost: int = 0
    """Runs that became non-finite; they stay at their last finite state."""

    @property
    def runs(self) -> int:
        """R."""
        return len(next(iter(self.values.values())))

    def mean(self, name: str) -> Pair:
        """Mean over the runs and its standard error, (T,) each."""
        return mean_with_error(self.values[name])

    def scatter(self) -> Pair:
        """Σ_j Var θ_j over the runs at the selected times, and its standard error, (K,) each."""
        mean, error = mean_with_error(self.squares)
        unbiased = self.runs / (self.runs - 1)
        return mean * unbiased, error * unbiased


def mean_with_error(values: Tensor) -> Pair:
    """Mean of samples (R, ...) over the first dimension, and its standard error."""
    return values.mean(dim=0), values.std(dim=0) / math.sqrt(len(values))


def extrapolate(coarse: Curves, fine: Curves) -> tuple[Curves, dict[str, Pair]]:
    """Extrapolation dt → 0 of runs at dt and dt/2 along the same noise: 2φ(dt/2) − φ(dt), run by run.

    Also returns observable → E φ(dt/2) less that, (T,), with its standard error.
    """
    limit = {name: 2 * fine.values[name] - coarse.values[name] for name in fine.values}
    left = {name: mean_with_error(coarse.values[name] - fine.values[name]) for name in fine.values}
    squares = 2 * fine.squares - coarse.squares
    return Curves(fine.times, limit, squares, max(coarse.lost, fine.lost)), left


@dataclass(frozen=True)
class NetworkProblem:
    """A network of a study: its loss, the start of its runs, its observables."""

    landscape: NetworkLandscape
    theta0: Tensor
    functions: Mapping[str, Function] = field(repr=False)

    @classmethod
    def from_ground(cls, ground: NetGround, options: Stochastic) -> NetworkProblem:
        """The network of a script's options; accuracy is that on the test part of the data."""
        landscape, theta0 = ground.build(options.seed, options.real, options.device)
        test, targets = ground.test_part(options.seed, options.real, options.device)
        evaluation = Evaluation(test, test.outputs, targets)
        functions: dict[str, Function] = {
            LOSS: landscape.loss,
            SQUARED_NORM: lambda theta: landscape.grad(theta).square().sum(dim=-1),
            ACCURACY: lambda theta: evaluation(0, 0.0, theta)[ACCURACY],
            DISTANCE: lambda theta: torch.linalg.vector_norm(theta - theta0, dim=-1),
        }
        return cls(landscape, theta0, functions)

    @property
    def sharpness(self) -> float:
        """λ, the Hessian's eigenvalue of largest magnitude at the start."""
        return sharpness_at(self.landscape, self.theta0)

    def runs(
        self,
        store: Store,
        name: str,
        model: Flow | Descent,
        course_of: Sequence[float] | int,
        *,
        runs: int,
        seed: int,
        stream: str | None = None,
        dt: float | None = None,
        every: int = 1,
        states: Sequence[int] = (),
    ) -> Curves:
        """Runs of a model; models with the same ``stream`` (default: the name) get the same noise.

        ``states``: indices of the kept times, from the end if negative.
        """
        groups = []
        for first in range(0, runs, GROUP):
            count = min(GROUP, runs - first)
            number = block_seed(seed, zlib.crc32((stream or name).encode()), first)
            compute = self._group(model, course_of, count, number, dt, every, states)
            groups.append(store.part(f"{name}-{first:05d}-{count}", compute))
        values = {key: torch.cat([part[key] for part in groups]).double() for key in self.functions}
        theta = torch.cat([part["theta"] for part in groups]).double()  # (R, K, d)
        squares = (theta - theta.mean(dim=0)).square().sum(dim=-1)
        return Curves(groups[0]["times"], values, squares, sum(int(part["lost"]) for part in groups))

    def _group(
        self,
        model: Flow | Descent,
        course_of: Sequence[float] | int,
        count: int,
        seed: int,
        dt: float | None,
        every: int,
        states: Sequence[int],
    ) -> Callable[[], Tensors]:
        def compute() -> Tensors:
            way = course(model, course_of, dt, None, every)
            kept = {len(way.kept) + j if j < 0 else j for j in states}
            seen: dict[str, list[Tensor]] = {name: [] for name in self.functions}
            thetas: list[Tensor] = []

            def record(j: int, t: float, theta: Tensor) -> None:
                for name, function in self.functions.items():
                    seen[name].append(function(theta).detach().double().cpu())
                if j in kept:
                    thetas.append(theta.detach().float().cpu())  # float32: only the scatter is computed from these

            run, times = way.run(Block(0, self.theta0.expand(count, -1)), seed, record)
            run.check_uninterrupted()
            found = {name: torch.stack(rows, dim=1) for name, rows in seen.items()}
            states_seen = torch.stack(thetas, dim=1) if thetas else torch.zeros(count, 0, len(self.theta0))
            if len(times) < len(way.kept):
                raise ArithmeticError(
                    f"{type(model).__name__}: all {count} runs of a part diverged by t = {times[-1]:.4g}"
                )
            clock = torch.tensor(times, dtype=torch.float64)
            return {"times": clock, "theta": states_seen, "lost": count_diverged(run.alive), **found}

        return compute


def cell(value: float, error: float) -> str:
    """A number with its standard error in table form; numbers and errors of rounding size as 0."""
    if abs(value) < NOTHING:
        return "0"
    return with_error(value, error if error > ROUNDING * abs(value) else 0.0)


def scaled_rate(scaled: float, sharpness: float) -> float:
    """The rate h with hλ = ``scaled``, to two digits."""
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ValueError("scaled needs a Hessian with a positive eigenvalue at the start; choose another --seed")
    return float(f"{check_positive('scaled', scaled) / sharpness:.{DIGITS}g}")


def sde_runs(
    network: NetworkProblem,
    store: Store,
    name: str,
    flow: StochasticFlow,
    times: Sequence[float],
    dt: float,
    *,
    runs: int,
    seed: int,
    states: Sequence[int] = (),
) -> tuple[Curves, dict[str, Pair]]:
    """An SDE by Euler's method at dt and dt/2 along the same noise, extrapolated; and the error of dt/2 alone."""
    levels = [
        network.runs(
            store, f"{name}-{i}", flow, times, runs=runs, seed=seed, stream=name, dt=dt / (i + 1), states=states
        )
        for i in (0, 1)
    ]
    return extrapolate(*levels)
