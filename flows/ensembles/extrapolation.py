r"""E φ(X_t) of a stochastic flow by extrapolation to dt → 0, with its statistical and its integration error.

The weak error of fixed steps expands in dt, E φ(X^{dt}) = E φ(X) + c dt + O(dt²). The same path of noise is run at dt,
dt/2 and dt/4, and Talay and Tubaro's extrapolation, path by path,

    R = 2φ(X^{dt/4}) − φ(X^{dt/2}),      E R = E φ(X) + O(dt²),

is averaged: R of a path is a sample, and its moments give the standard error. 2φ(X^{dt/2}) − φ(X^{dt}) has four times
the error, so that a third of its distance to R is the remaining integration error of R, up to O(dt³). Talay & Tubaro
1990, Stochastic Anal. Appl. 8(4). The levels are halvings of one step, for which equal seeds give one refined path.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flows.engines.trajectory import check_costs, check_mapping, check_times
from flows.ensembles.blocks import (
    Block,
    Course,
    Function,
    add_costs,
    block_seed,
    block_size,
    blocks,
    check_functions,
    check_start,
    course,
    evaluate,
)
from flows.ensembles.statistics import MOST, Moments
from flows.flow import StochasticFlow
from landscapes import UnsupportedError
from landscapes.errors import check_count, check_flag, check_float_tensor, check_positive, check_seed

LEVELS = (1, 2, 4)  # divisors of dt


@dataclass(frozen=True)
class Expectation:
    r"""E φ(X_t) of every observable at every kept time.

    ``times`` (T,); each of the others maps observable → (T, ..., q): ``mean``; its ``standard_error``;
    ``integration``, an estimate of the mean's integration error, and its standard error ``integration_error``.
    ``diverged``: the number of diverged runs, out of three per path; they are included in every mean with their last
    finite position. ``cost`` of all runs. Raises TypeError or ValueError for values that are not along the times.
    """

    times: Tensor
    paths: int
    mean: Mapping[str, Tensor]
    standard_error: Mapping[str, Tensor]
    integration: Mapping[str, Tensor]
    integration_error: Mapping[str, Tensor]
    diverged: int = 0
    cost: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_along_times(self, ("mean", "standard_error", "integration", "integration_error"))

    def __str__(self) -> str:
        lines = [f"E φ from {self.paths} paths at t = {float(self.times[-1]):.6g} ({len(self.times)} times)"]
        lines.append(f"{'φ':<20}{'mean':>14}{'± s.e.':>11}{'integration':>14}{'± s.e.':>11}")
        columns = (self.mean, self.standard_error, self.integration, self.integration_error)
        for name in self.mean:
            rows = zip(*(column[name][-1].reshape(-1).tolist() for column in columns), strict=True)
            for i, (mean, error, left, left_error) in enumerate(rows):
                label = name if self.mean[name][-1].numel() == 1 else f"{name}[{i}]"
                lines.append(f"{label:<20}{mean:>14.6g}{error:>11.1e}{left:>14.2e}{left_error:>11.1e}")
        lost = [f"{self.diverged} runs diverged and stay at their last finite position"] if self.diverged else []
        return "\n".join([*lines, *lost])


def check_along_times(found: Any, parts: Sequence[str]) -> None:
    """Raise unless times, paths, diverged and cost of a result are, and its ``parts`` map names to tensors (T, ...)."""
    check_times("times", found.times)
    check_count("paths", found.paths)
    check_count("diverged", found.diverged, minimum=0)
    check_costs("cost", found.cost)
    for part in parts:
        values = getattr(found, part)
        check_mapping(part, values)
        for name, value in values.items():
            if check_float_tensor(f"{part}[{name!r}]", value).shape[:1] != found.times.shape:
                raise ValueError(
                    f"{part}[{name!r}] must have shape ({len(found.times)}, ...), a value for each time, got "
                    f"{tuple(value.shape)}"
                )


def expectation(
    flow: StochasticFlow,
    theta0: Tensor,
    times: Tensor | Sequence[float],
    *,
    paths: int,
    seed: int,
    observables: Mapping[str, Function],
    dt: float,
    extrapolate: bool = True,
    method: str | None = None,
    every: int = 1,
    block: int | None = None,
    progress: bool = False,
) -> Expectation:
    r"""E φ(X_t) at ``times`` from θ0 (..., d) over ``paths`` paths, each run at dt, dt/2 and dt/4 of one motion.

    ``observables``: name → φ, θ (n, ..., d) ↦ (n, ...) or (n, ..., q), real. ``extrapolate=False`` takes the mean at
    dt/4, and its distance to that at dt/2 as integration error. Other arguments as in ``ensemble``. Raises TypeError or
    ValueError for invalid arguments, and KeyboardInterrupt if interrupted.
    """
    theta0 = check_start(theta0)
    check_count("paths", paths, minimum=2, maximum=MOST)
    check_seed(seed)
    check_functions(observables)
    check_positive("dt", dt)
    if not isinstance(flow, StochasticFlow):
        raise TypeError(f"flow must be a StochasticFlow, got {type(flow).__name__}")
    courses = [course(flow, times, dt / n, method, every) for n in LEVELS]
    levels = Levels(courses, observables, extrapolate)
    size = block_size(block, paths, theta0, [flow], levels.path_size(theta0))
    with tqdm(total=paths, unit="path", desc=flow.name, disable=not check_flag("progress", progress)) as bar:
        for part in blocks(theta0, paths, size):
            levels.take(part, block_seed(seed, part.number))
            bar.update(part.paths)
    kept = torch.tensor([courses[0].outputs[k] for k in courses[0].kept], dtype=torch.float64)
    return Expectation(kept, paths, *levels.results(), diverged=levels.lost, cost=levels.cost)


class Levels:
    """A flow at every level of dt along the same noise, block by block: moments of R and of its integration error."""

    def __init__(self, courses: Sequence[Course], observables: Mapping[str, Function], extrapolate: bool):
        self._courses = courses
        self._observables = dict(observables)
        self._extrapolate = check_flag("extrapolate", extrapolate)
        self._mean, self._left = ({name: Moments() for name in observables} for _ in range(2))
        self._clock = [courses[0].outputs[k] for k in courses[0].kept]
        self.lost = 0
        self.cost: dict[str, float] = {}

    def path_size(self, theta0: Tensor) -> int:
        """Numbers that a path stores until its block ends, for observables of one number."""
        return (len(LEVELS) + 1) * len(self._courses[0].kept) * len(self._observables) * theta0[..., 0].numel()

    def take(self, block: Block, seed: int) -> dict[str, Tensor]:
        """Run a block at every level; observable → R of its paths, (n, T, ..., q)."""
        coarse, middle, fine = (self.values(way, block, seed) for way in self._courses)
        samples = {}
        for name in self._observables:
            one = 2 * fine[name] - middle[name] if self._extrapolate else fine[name]
            other = 2 * middle[name] - coarse[name] if self._extrapolate else middle[name]
            self._mean[name] = self._mean[name].add(one)
            self._left[name] = self._left[name].add((other - one) / (3 if self._extrapolate else 1))
            samples[name] = one
        return samples

    def values(self, way: Course, block: Block, seed: int) -> dict[str, Tensor]:
        """φ along a run, observable → (n, T, ..., q); adds its cost and its diverged paths to the totals."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self._observables}

        def see(j: int, t: float, theta: Tensor) -> None:
            for name, function in self._observables.items():
                seen[name].append(evaluate(name, function, theta))

        run, times = way.run(block, seed, see)
        if not np.allclose(times, self._clock[: len(times)], rtol=1e-9, atol=0):
            raise UnsupportedError("the rate of this descent is not constant, and the flow is observed at equal steps")
        run.check_uninterrupted()
        self.lost += int((~run.alive).sum())
        add_costs(self.cost, run.cost)
        return {name: torch.stack(values, dim=1) for name, values in seen.items()}

    def results(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        """Observable → mean, its standard error, its integration error, and the standard error of the latter."""
        mean, left = self._mean, self._left
        return (
            {name: moments.mean for name, moments in mean.items()},
            {name: moments.standard_error for name, moments in mean.items()},
            {name: moments.mean for name, moments in left.items()},
            {name: moments.standard_error for name, moments in left.items()},
        )
