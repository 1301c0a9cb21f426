r"""Observers by the names of the command line, applied to the states of finished runs; a new one is one line here.

An observer needs (k, t, θ) but no integrator, so it is applied after a comparison to the kept states: its cost is not
part of the cost of the run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from flows.comparison.result import Comparison, slug
from flows.engines.recorder import Observer, Recorder
from flows.engines.state import State
from flows.engines.storage import save_tensors
from flows.engines.trajectory import Trajectory
from flows.observers import (
    Drift,
    GradientCurvature,
    GradientNorm,
    GradientPredictions,
    Loss,
    Sharpness,
    StabilityCoefficients,
    TopEigenpairs,
)
from landscapes import Landscape, UnsupportedError
from landscapes.errors import check_choice

from .experiment import align_rows
from .models import Build, Options, build_entry

MOST = 4  # followed modes, and numbers of an observation in a table


def top_eigenpairs(landscape: Landscape) -> TopEigenpairs:
    """The largest eigenpairs."""
    return TopEigenpairs(landscape, min(MOST, landscape.dimension))


OBSERVERS: dict[str, str | Build] = {
    "loss": lambda f, h, options: Loss(f),
    "gradient-norm": lambda f, h, options: GradientNorm(f),
    "gradient-curvature": lambda f, h, options: GradientCurvature(f),
    "sharpness": lambda f, h, options: Sharpness(f),
    "top-eigenpairs": lambda f, h, options: top_eigenpairs(f),
    "stability": lambda f, h, options: StabilityCoefficients(top_eigenpairs(f), h),
    "predictions": lambda f, h, options: GradientPredictions(top_eigenpairs(f), h),
    "drift": lambda f, h, options: Drift(f, h),
}
"""Observers by name, except those that need a folder or test data."""


def observer_by_name(name: str, landscape: Landscape, h: float, options: Options) -> Observer:
    """A new observer of that name; ValueError with the accepted names."""
    return build_entry(OBSERVERS[check_choice("--observers", name, tuple(OBSERVERS))], landscape, h, options)


def observe_states(run: Trajectory, observer: Observer) -> Trajectory:
    """The end of the run with the observations of its kept states, and the cost of the observer."""
    last = len(run.times) - 1
    recorder = Recorder("last", 1, [observer], last)
    for k, (t, theta) in enumerate(zip(run.times.tolist(), run.theta, strict=True)):
        recorder.record(k, t, theta, no_state)
    return recorder.trajectory(run.status, run.alive, dict(run.cost), run.notes)


def no_state() -> State:
    """Raise: the kept positions of a run do not determine its states."""
    raise UnsupportedError("an observer of states runs during a run, not on its saved positions")


def observe_comparison(
    result: Comparison, names: Sequence[str], landscape: Landscape, h: float, options: Options, folder: Path
) -> str:
    """Apply new observers of these names to every run of a comparison; write files next to each run, return a table."""
    runs = {result.name: result.descent}
    runs |= {name: row.trajectory for name, row in result.rows.items() if row.trajectory is not None}
    ends: dict[str, dict[str, Tensor]] = {}
    starts: dict[str, Tensor] = {}
    notes = []
    for run, trajectory in runs.items():
        observations: dict[str, Tensor] = {}
        for name in names:
            try:
                found = observe_states(trajectory, observer_by_name(name, landscape, h, options))
            except UnsupportedError as error:
                notes.append(f"{run}: {error}")
                continue
            for key, (times, values) in found.observations.items():
                observations |= {f"{key} times": times, key: values}
                starts.setdefault(key, mean_over_runs(values[0], trajectory))
                ends.setdefault(key, {})[run] = mean_over_runs(values[-1], trajectory)
        save_tensors(folder / slug(run), "observations", observations, {"observers": list(names)})
    return "\n".join([table(list(runs), starts, ends), *notes])


def mean_over_runs(values: Tensor, run: Trajectory) -> Tensor:
    """Observations at one time, averaged over the leading dimensions, which are those of the runs."""
    batch = tuple(range(run.alive.ndim))
    return (values if values.is_complex() else values.double()).mean(dim=batch) if batch else values


def table(runs: Sequence[str], starts: Mapping[str, Tensor], ends: Mapping[str, Mapping[str, Tensor]]) -> str:
    """A row for each observation: at the start of the descent, and at the end of every run."""
    rows = [["observed", "at the start", *(f"end of {run}" for run in runs)]]
    for key, found in ends.items():
        rows.append([key, numbers(starts[key]), *(numbers(found[run]) if run in found else "–" for run in runs)])
    return align_rows(rows)


def numbers(values: Tensor) -> str:
    """A number, or the first entries of a tensor."""
    flat = values.flatten().tolist()
    return ", ".join(f"{value:.4g}" for value in flat[:MOST]) + (", …" if len(flat) > MOST else "")
