r"""``ensemble``: the law of a stochastic flow or descent at every kept time, from many paths, with error bars.

Paths run in blocks as one batched state, and statistics are updated block by block, so that memory does not grow with
the number of paths or of times.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from flows.descent import Descent
from flows.engines.configuration import Configuration, as_json
from flows.engines.endings import InterruptedRun, Status, UnfinishedRunError
from flows.engines.locks import FolderLock
from flows.engines.packing import pack, unpack
from flows.engines.storage import FolderError, load_tensors, read_error, save_tensors, write_text
from flows.engines.trajectory import check_costs, check_mapping, check_notes, check_times
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
    count_diverged,
    course,
    evaluate,
    merge_clocks,
    stack,
)
from flows.ensembles.quantiles import Quantiles
from flows.ensembles.statistics import CONFIDENCE, MOST, Histogram, Moments, Statistic
from flows.flow import Flow
from landscapes.errors import check_count, check_flag, check_seed, short_form

Statistics = tuple[Statistic, ...]
Asked = TypeVar("Asked", bound=Statistic)


@dataclass(frozen=True)
class Observable:
    """φ(θ) with statistics in addition to its mean and covariance: empty ``Quantiles``, ``Histogram``, ….

    ``function``: θ (n, ..., d) ↦ (n, ...) or (n, ..., q), real. Raises TypeError for arguments of other types.
    """

    function: Function
    statistics: Sequence[Statistic] = ()

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(f"function must be a function of theta, got {short_form(self.function)}")
        if not isinstance(self.statistics, Sequence):
            raise TypeError(f"statistics must be a sequence of Statistics, got {short_form(self.statistics)}")
        for statistic in self.statistics:
            if not isinstance(statistic, Statistic):
                raise TypeError(f"statistics must be Statistics such as Quantiles([0.5]), got {short_form(statistic)}")
            if statistic.count:
                raise ValueError(f"statistics must be empty at first, got one with {statistic.count} samples")

    def __call__(self, theta: Tensor) -> Tensor:
        """φ(θ)."""
        return self.function(theta)


@dataclass(frozen=True)
class Ensemble:
    r"""The law of an ensemble along its times.

    ``times`` (T,) float64; ``paths``, their number; ``statistics`` name → for each time (Moments, requested ones),
    over samples (paths, ..., q), with q = 1 for an observable of one number per path. ``diverged`` (...): the number of
    diverged paths; they remain in all statistics, frozen at their last finite position, so that means are not over
    survivors only. ``cost``: summed over the blocks, without observables. ``status``: finished, diverged (all paths had
    diverged at some time, ``times`` ends before it) or interrupted (some paths are missing, more of them at later
    times: ``counts``). ``configuration``: JSON values that identify the run. Raises TypeError or ValueError naming the
    field that is not of this form.
    """

    times: Tensor
    paths: int
    statistics: Mapping[str, Sequence[Statistics]]
    diverged: Tensor
    status: Status
    cost: Mapping[str, float] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    configuration: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_times("times", self.times)
        check_count("paths", self.paths)
        check_mapping("statistics", self.statistics)
        for name, rows in self.statistics.items():
            if len(rows) != len(self.times) or not all(isinstance(s, Statistic) for row in rows for s in row):
                raise ValueError(f"statistics[{name!r}] must be a tuple of Statistics for each of the times")
        if not isinstance(self.diverged, Tensor) or self.diverged.dtype != torch.int64:
            raise TypeError(f"diverged must be a tensor of torch.int64, got {short_form(self.diverged)}")
        if not isinstance(self.status, Status):
            raise TypeError(f"status must be a Status, got {short_form(self.status)}")
        check_costs("cost", self.cost)
        check_notes(self.notes)
        check_mapping("configuration", self.configuration)

    def check_uninterrupted(self) -> Ensemble:
        """The ensemble itself; raises ``InterruptedRun``, a KeyboardInterrupt, if it was interrupted."""
        if self.status == "interrupted":
            raise InterruptedRun(self.status.sentence, self)
        return self

    def check_finished(self, name: str = "the ensemble") -> Ensemble:
        """The ensemble itself, at its last time; paths may have diverged, see ``diverged``.

        Raises ``InterruptedRun`` as above, and ``UnfinishedRunError``, an ArithmeticError, if all paths had diverged.
        """
        if self.check_uninterrupted().status != "finished":
            raise UnfinishedRunError(f"{name} is incomplete ({self.status}): {self.status.sentence}", self)
        return self

    @property
    def counts(self) -> Tensor:
        """The number of paths at each time, (T,)."""
        first = next(iter(self.statistics.values()))
        return torch.tensor([row[0].count for row in first])

    @property
    def mean(self) -> dict[str, Tensor]:
        """Observable → mean (T, ..., q)."""
        return self._of_moments(lambda moments: moments.mean)

    @property
    def standard_error(self) -> dict[str, Tensor]:
        """Observable → standard error of the mean (T, ..., q)."""
        return self._of_moments(lambda moments: moments.standard_error)

    @property
    def covariance(self) -> dict[str, Tensor]:
        """Observable → covariance (T, ..., q, q)."""
        return self._of_moments(lambda moments: moments.covariance)

    @property
    def covariance_error(self) -> dict[str, Tensor]:
        """Observable → standard error of the covariance (T, ..., q, q)."""
        return self._of_moments(lambda moments: moments.covariance_error)

    @property
    def quantiles(self) -> dict[str, Tensor]:
        """Observable → quantiles (T, ..., q, P), for observables with ``Quantiles``."""
        return {name: stack([q.values for q in rows]) for name, rows in self.series(Quantiles).items()}

    def quantile_intervals(self, confidence: float = CONFIDENCE) -> dict[str, tuple[Tensor, Tensor]]:
        """Observable → ends of the distribution-free intervals of its quantiles, both (T, ..., q, P)."""
        ends = {name: [q.interval(confidence) for q in rows] for name, rows in self.series(Quantiles).items()}
        return {name: (stack([a for a, _ in rows]), stack([b for _, b in rows])) for name, rows in ends.items()}

    @property
    def histograms(self) -> dict[str, list[Histogram]]:
        """Observable → a histogram for each time, for observables with a ``Histogram``."""
        return self.series(Histogram)

    def series(self, kind: type[Asked]) -> dict[str, list[Asked]]:
        """Observable → its first statistic of that kind at each time, for observables that have one."""
        if not isinstance(kind, type):
            raise TypeError(f"kind must be a class of statistics, such as Moments, got {short_form(kind)}")
        found = {n: [[s for s in row if isinstance(s, kind)] for row in rows] for n, rows in self.statistics.items()}
        return {name: [row[0] for row in rows] for name, rows in found.items() if all(rows)}

    def __str__(self) -> str:
        return table(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the ensemble into ``folder``/ensemble.safetensors, beside it the table, and return the folder.

        The file holds every statistic whole, and means, covariances, quantiles and histograms with their errors by
        name. Raises FolderError, and UnsupportedError for a statistic that is no dataclass of a module.
        """
        with FolderLock(folder) as lock:
            path = save_tensors(lock.folder, "ensemble", *parts_of_ensemble(self))
            write_text(path / "table.txt", str(self) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Ensemble:
        """Read an ensemble that ``save`` wrote, on the CPU. Raises FolderError; saves of format 1 lack statistics."""
        tensors, text = load_tensors(folder, "ensemble")
        if text["format"] == 1:
            raise FolderError(
                f"folder {str(folder)!r} holds an ensemble of format 1, which has means and errors without the "
                'statistics; read its tensors with load_tensors(folder, "ensemble")'
            )
        try:
            return ensemble_of(tensors, text)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise read_error(Path(folder), "ensemble", error) from error

    def _of_moments(self, read: Callable[[Moments], Tensor]) -> dict[str, Tensor]:
        return {name: stack([read(m) for m in rows]) for name, rows in self.series(Moments).items()}


SHOWN = 4  # notes in a table, as an ensemble of many blocks has many
SAVED = ("mean", "standard_error", "covariance", "covariance_error")


def parts_of_ensemble(found: Ensemble) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An ensemble as named tensors and JSON: results by name, and the statistics whole."""
    tensors: dict[str, Tensor] = {"times": found.times, "counts": found.counts, "diverged": found.diverged}
    parts = {name: getattr(found, name) for name in SAVED}
    quantiles, intervals, histograms = found.quantiles, found.quantile_intervals(), found.histograms
    for i, name in enumerate(found.statistics):
        tensors |= {f"{i}.{part}": values[name] for part, values in parts.items()}
        if name in quantiles:
            low, high = intervals[name]
            tensors |= {f"{i}.quantiles": quantiles[name], f"{i}.quantiles.low": low, f"{i}.quantiles.high": high}
        if name in histograms:
            rows = histograms[name]
            tensors |= {f"{i}.edges": rows[0].bounds, f"{i}.tallies": stack([h.seen for h in rows])}
    states, packed = pack({name: list(rows) for name, rows in found.statistics.items()}, "statistics")
    tensors |= {f"statistic.{j}": tensor for j, tensor in enumerate(packed)}
    text: dict[str, Any] = {"observables": list(found.statistics), "paths": found.paths, "cost": dict(found.cost)}
    text |= {"status": str(found.status), "sentence": found.status.sentence, "notes": list(found.notes)}
    text["probabilities"] = {name: list(rows[0].probabilities) for name, rows in found.series(Quantiles).items()}
    return tensors, text | {"statistics": states, "configuration": as_json(found.configuration)}


def ensemble_of(tensors: Mapping[str, Tensor], text: Mapping[str, Any]) -> Ensemble:
    """The ensemble of ``parts_of_ensemble``. Raises FolderError, KeyError, TypeError or ValueError for other parts."""
    packed = [tensors[f"statistic.{j}"] for j in range(sum(name.startswith("statistic.") for name in tensors))]
    return Ensemble(
        times=tensors["times"],
        paths=text["paths"],
        statistics=unpack(text["statistics"], packed),
        diverged=tensors["diverged"],
        status=Status(text["status"], text["sentence"]),
        cost=text["cost"],
        notes=tuple(check_notes(text["notes"])),
        configuration=text["configuration"],
    )


def ensemble(
    model: Flow | Descent,
    theta0: Tensor,
    times_or_steps: Tensor | Sequence[float] | int,
    *,
    paths: int,
    seed: int,
    observables: Mapping[str, Function | Observable],
    dt: float | None = None,
    method: str | None = None,
    every: int = 1,
    block: int | None = None,
    progress: bool = False,
) -> Ensemble:
    r"""Statistics over ``paths`` runs from θ0 (..., d), of a StochasticFlow along times or a Descent for steps.

    A flow takes ``dt`` and a ``method`` as in ``integrate``; a descent neither. ``observables``: name → θ (n, ..., d) ↦
    (n, ...) or (n, ..., q), or an ``Observable`` with more statistics than moments; they are evaluated at every
    ``every``-th output time or step and the last. Paths run ``block`` at a time, by default so many that a block takes
    some tens of MiB; the same seed and block give the same paths. KeyboardInterrupt ends the run; the result has the
    statistics so far.

    Paths that diverge stay in the statistics, see ``Ensemble``. Raises TypeError or ValueError for invalid arguments,
    and KeyboardInterrupt if interrupted before there are any statistics.
    """
    theta0 = check_start(theta0)
    check_count("paths", paths, maximum=MOST)
    check_seed(seed)
    check_functions(observables)
    way = course(model, times_or_steps, dt, method, every)
    run = EnsembleRun(way, {name: observable_of(value) for name, value in observables.items()}, theta0)
    size = block_size(block, paths, theta0, [model])
    with tqdm(total=paths, unit="path", desc=type(model).__name__, disable=not check_flag("progress", progress)) as bar:
        for part in blocks(theta0, paths, size):
            if not run.take(part, block_seed(seed, part.number)):
                break
            bar.update(part.paths)
    settings = {"dt": dt, "method": method, "every": every, "paths": paths, "seed": seed, "block": size}
    outputs = {"times_or_steps": times_or_steps, "observables": dict(observables)}
    return run.result(paths, Configuration(model, theta0=theta0, **outputs, **settings))


def observable_of(observable: Function | Observable) -> Observable:
    """The function as an ``Observable``; an ``Observable`` is returned unchanged."""
    return observable if isinstance(observable, Observable) else Observable(observable)


class EnsembleRun:
    """The state of an ensemble: statistics at every kept time of the blocks so far, and their cost."""

    def __init__(self, way: Course, observables: Mapping[str, Observable], theta0: Tensor):
        self._way = way
        self._observables = observables
        self._rows = {
            name: [(Moments(), *observable.statistics) for _ in way.kept] for name, observable in observables.items()
        }
        self._clock: list[float] = []
        self._diverged = torch.zeros(theta0.shape[:-1], dtype=torch.int64, device=theta0.device)
        self._paths = 0
        self._cost: dict[str, float] = {}
        self._notes: dict[str, None] = {}
        self._interrupted = False

    def take(self, block: Block, seed: int) -> bool:
        """Run a block; return whether to continue with the next."""
        run, times = self._way.run(block, seed, self._see)
        self._clock = merge_clocks(self._clock, times)
        self._diverged = self._diverged + count_diverged(run.alive)
        self._paths += block.paths
        add_costs(self._cost, run.cost)
        sentences = (run.status.sentence,) if bool(count_diverged(run.alive).any()) else ()
        self._notes |= dict.fromkeys(f"block {block.number}: {note}" for note in (*sentences, *run.notes))
        self._interrupted = run.status == "interrupted"
        return not self._interrupted

    def _see(self, j: int, t: float, theta: Tensor) -> None:
        for name, observable in self._observables.items():
            values = evaluate(name, observable, theta)
            self._rows[name][j] = tuple(statistic.add(values) for statistic in self._rows[name][j])

    def result(self, paths: int, configuration: Mapping[str, Any]) -> Ensemble:
        """The ensemble up to the last time that any path reached."""
        if not self._clock:
            raise KeyboardInterrupt
        rows = {name: series[: len(self._clock)] for name, series in self._rows.items()}
        times = torch.tensor(self._clock, dtype=torch.float64)
        status = self._status(paths)
        notes = tuple(self._notes)
        return Ensemble(times, self._paths, rows, self._diverged, status, self._cost, notes, configuration)

    def _status(self, paths: int) -> Status:
        end, worst = self._clock[-1], int(self._diverged.max())
        entered = f"; {worst} of them diverged and are in every statistic with their last finite position" * (worst > 0)
        if self._interrupted:
            return Status("interrupted", f"interrupted with {self._paths} of {paths} paths started{entered}")
        if len(self._clock) < len(self._way.kept):
            return Status("diverged", f"no path was left after t = {end:.6g}: all {paths} diverged; use a smaller h")
        return Status("finished", f"finished {paths} paths at t = {end:.6g}{entered}")


def table(found: Ensemble) -> str:
    """Mean, standard error and standard deviation of every component at the last time."""
    lines = [f"Ensemble of {found.paths} paths at t = {float(found.times[-1]):.6g} ({len(found.times)} times)"]
    lines.append(f"{'':<24}  {'mean':>14}  {'error':>10}  {'deviation':>12}")
    for name, rows in found.series(Moments).items():
        end = rows[-1]
        columns = (end.mean, end.standard_error, end.variance.sqrt())
        triples = zip(*(x.reshape(-1).tolist() for x in columns), strict=True)
        many = end.mean.numel() > 1
        for i, (mean, error, deviation) in enumerate(triples):
            label = f"{name}[{i}]" if many else name
            lines.append(f"{label:<24}  {mean:>14.6g}  {error:>10.2e}  {deviation:>12.5g}")
    more = len(found.notes) - SHOWN
    rest = [f"and {more} more in notes"] if more > 0 else []
    return "\n".join([*lines, found.status.sentence, *found.notes[:SHOWN], *rest])
