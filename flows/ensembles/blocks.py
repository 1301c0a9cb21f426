r"""Blocks of paths: many runs of one model as one batched state, of a size that limits memory.

Block i of an ensemble has its own seed, derived from the ensemble's seed and i: equal seeds and block sizes give equal
paths, independent of other computations. A diverged member is frozen by the engine at its last finite position and
observed there until the end, also if the whole block has diverged: no member is dropped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from flows.descent import Descent
from flows.engines.counting import check_theta0
from flows.engines.descend import descend
from flows.engines.integrate import integrate
from flows.engines.output_times import check_times
from flows.engines.trajectory import Trajectory
from flows.ensembles.statistics import MOST
from flows.flow import Flow, StochasticFlow
from landscapes import FiniteSum, UnsupportedError
from landscapes.errors import check_computable, check_count, check_seed, short_form

NUMBERS = 2**22  # default limit for a block's states, noise and examples' gradients: 32 MiB in float64

Function = Callable[[Tensor], Tensor]
See = Callable[[int, float, Tensor], None]


def block_seed(seed: int, *numbers: int) -> int:
    """The seed of a part of a run; parts with different numbers have independent streams."""
    return int(np.random.SeedSequence([check_seed(seed), *numbers]).generate_state(1, np.uint32)[0])


@dataclass(frozen=True)
class Block:
    """Paths that run at once: their common start (n, ..., d) and the number of the block."""

    number: int
    theta0: Tensor

    @property
    def paths(self) -> int:
        """n."""
        return len(self.theta0)


def blocks(theta0: Tensor, paths: int, size: int) -> Iterator[Block]:
    """``paths`` starts at θ0 (..., d) in blocks of ``size``, the last one possibly smaller."""
    for number, first in enumerate(range(0, paths, size)):
        yield Block(number, theta0.expand(min(size, paths - first), *theta0.shape))


def block_size(block: int | None, paths: int, theta0: Tensor, models: Sequence[Flow | Descent], extra: int = 0) -> int:
    """``block`` or, by default, a size such that a block takes about ``NUMBERS``, with ``extra`` more per path."""
    if block is not None:
        return min(check_count("block", block), paths)
    members, d = theta0[..., 0].numel(), theta0.shape[-1]
    widest = 1
    for model in models:
        landscape = getattr(model, "landscape", None)
        examples = landscape.size if isinstance(landscape, FiniteSum) else 1
        noise = model.noise_size if isinstance(model, StochasticFlow) else 0
        widest = max(widest, d * examples + noise)
    return max(1, min(paths, NUMBERS // (members * widest + extra)))


@dataclass(frozen=True)
class Course:
    """A model and its run: a flow along ``outputs``, or a descent for ``steps``; observed at the states ``kept``."""

    model: Flow | Descent
    outputs: tuple[float, ...] = ()
    steps: int = 0
    every: int = 1
    dt: float | None = None
    method: str | None = None

    @property
    def last(self) -> int:
        """The number of the last state."""
        return len(self.outputs) - 1 if self.outputs else self.steps

    @property
    def kept(self) -> list[int]:
        """Numbers of the observed states: every ``every``-th and the last."""
        return [k for k in range(self.last + 1) if k % self.every == 0 or k == self.last]

    def run(self, block: Block, seed: int, see: See) -> tuple[Trajectory, list[float]]:
        """Run a block, with see(j, t, θ) at its j-th kept state; return the run and the times that it reached.

        If all paths diverged before the end, ``see`` is called with the frozen states and the time NaN for the rest; an
        interrupted run stops at its last state.
        """
        watch = Watch(self.kept, see)
        if isinstance(self.model, Flow):
            run = integrate(
                self.model,
                block.theta0,
                self.outputs,
                method=self.method,
                dt=self.dt,
                keep="last",
                observers=[watch],
                seed=seed,
            )
        else:
            run = descend(self.model, block.theta0, self.steps, seed=seed, keep="last", observers=[watch])
        if run.status != "interrupted":
            for j in range(len(watch.times), len(self.kept)):
                see(j, math.nan, run.theta[-1])
        return run, watch.times


class Watch:
    """The observer that passes a run's kept states to ``see``; the trajectory stores none of them."""

    name = "ensemble"
    every = 1

    def __init__(self, kept: Sequence[int], see: See):
        self._kept = {k: j for j, k in enumerate(kept)}
        self._see = see
        self.times: list[float] = []

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """Pass on state k; return no quantities."""
        if k in self._kept:
            self._see(self._kept[k], t, theta)
            self.times.append(t)
        return {}


def course(
    model: Flow | Descent,
    times_or_steps: Tensor | Sequence[float] | int,
    dt: float | None,
    method: str | None,
    every: int,
) -> Course:
    """The course of a stochastic flow along times or of a descent for steps; raise for a mixture of the two."""
    check_count("every", every)
    if isinstance(model, Flow):
        if not isinstance(model, StochasticFlow):
            raise UnsupportedError(f"model must be a StochasticFlow, {model.name} has no noise: use integrate")
        if isinstance(times_or_steps, (int, np.integer)):
            given = short_form(times_or_steps)
            raise TypeError(f"times must be a sequence, got {given}: a number of steps is for descents")
        return Course(model, tuple(check_times(times_or_steps, dt)), every=every, dt=dt, method=method)
    if not isinstance(model, Descent):
        raise TypeError(f"model must be a StochasticFlow or a Descent, got {type(model).__name__}")
    if dt is not None or method is not None:
        raise ValueError("dt and method are for flows, a descent takes its own steps; leave them out")
    steps = check_count("steps", times_or_steps, maximum=MOST)  # type: ignore[arg-type]
    return Course(model, steps=steps, every=every)


def check_start(theta0: Tensor) -> Tensor:
    """θ0 (..., d) detached; raise unless it is finite and real."""
    theta0 = check_theta0(theta0)
    if theta0.is_complex():
        raise TypeError(f"theta0 must be real, as paths with noise are, got {theta0.dtype}")
    return theta0


def check_functions(observables: Mapping[str, Function]) -> None:
    """Raise unless there is at least one observable, each a function with a name."""
    if not isinstance(observables, Mapping) or not observables:
        given = short_form(observables)
        raise TypeError(f"observables must be a mapping name -> function of theta, at least one, got {given}")
    for name, function in observables.items():
        if not isinstance(name, str) or not callable(function):
            given = f"{short_form(name)}: {short_form(function)}"
            raise TypeError(f"observables must map strings to functions of theta, got {given}")


def evaluate(name: str, function: Function, theta: Tensor) -> Tensor:
    """φ(θ) of θ (n, ..., d) as (n, ..., q) in float64, q = 1 for one number per member; raise for other shapes."""
    values = function(theta)
    if not isinstance(values, Tensor):
        raise TypeError(f"observable {name!r} must return a tensor, got {type(values).__name__}")
    if check_computable(f"observable {name!r}", values).is_complex():
        raise TypeError(f"observable {name!r} must be real, got {values.dtype}; take .real, .imag or .abs() of it")
    values = values.detach().double()
    if values.shape == theta.shape[:-1]:
        values = values[..., None]
    if values.shape[:-1] != theta.shape[:-1] or values.shape[-1] == 0:
        raise ValueError(
            f"observable {name!r} must give shape (n, ...) or (n, ..., q) for theta (n, ..., d): got "
            f"{tuple(values.shape)} for {tuple(theta.shape)}"
        )
    return values


def add_costs(total: dict[str, float], cost: Mapping[str, float]) -> None:
    """Add a run's cost to a tally."""
    for name, value in cost.items():
        total[name] = total.get(name, 0) + value


def count_diverged(alive: Tensor) -> Tensor:
    """The number of a block's paths (n, ...) that are not alive, (...,)."""
    return (~alive).sum(dim=0)


def merge_clocks(clock: list[float], times: Sequence[float]) -> list[float]:
    """The longer of two clocks; raise unless one continues the other."""
    shared = min(len(clock), len(times))
    if not np.allclose(clock[:shared], times[:shared], rtol=1e-9, atol=0):
        raise UnsupportedError("the clock of this descent depends on its path, so that blocks have no common times")
    return clock if len(clock) >= len(times) else list(times)


def stack(rows: Sequence[Tensor]) -> Tensor:
    """Rows of one shape as (T, ...)."""
    return torch.stack(list(rows))
