r"""The result of a run: times, states, observations, cost, and a status whose sentence states cause and remedy.

On disk a trajectory is one file, ``trajectory.safetensors`` (storage.py). Folders of format 1 are read, too.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.engines.configuration import as_json
from flows.engines.endings import InterruptedRun, Status, UnfinishedRunError
from flows.engines.events import Crossings
from flows.engines.locks import FolderLock
from flows.engines.state import State, parts_of_state, state_of
from flows.engines.storage import load_tensors, read_error, save_tensors
from landscapes import UnsupportedError
from landscapes.errors import short_form

Observations = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trajectory:
    r"""A run on the clock: θ at the kept times.

    ``times`` (T,) float64, finite and never decreasing; ``theta`` (T, ..., d), the kept states; ``observations`` name →
    (times, values); ``cost`` evaluations or steps, and oracle calls in units of one product over the full sum for one
    θ; ``alive`` (...): False for batch members that left the finite numbers, frozen at their last finite state;
    ``notes``: remarks besides the status (unconverged evaluations); ``observer_costs`` observer → its oracle calls in
    this run, which are not in ``cost``; ``configuration``: JSON values that identify the run. States end at the last
    finite one. Raises TypeError or ValueError naming the field that is not of this form; ``load`` also checks that θ
    is finite.

    ``end``: the ``State`` that the run ended with, from which another can continue; None if it is not known, as for a
    run saved by an early version. ``events``: name → ``Crossings``.

    An interrupted or diverged run is returned like any other, and is only a part of the run that was asked for. A
    program that goes on with it calls ``check_uninterrupted`` where divergence is a possible result, as in a table of
    outcomes, and ``check_finished`` where it is none.
    """

    times: Tensor
    theta: Tensor
    status: Status
    alive: Tensor
    cost: Mapping[str, float] = field(default_factory=dict)
    observations: Observations = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    observer_costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    configuration: Mapping[str, Any] = field(default_factory=dict)
    end: State | None = None
    events: Mapping[str, Crossings] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_states(self.times, self.theta, self.alive)
        if not isinstance(self.status, Status):
            raise TypeError(f"status must be a Status, got {short_form(self.status)}")
        check_costs("cost", self.cost)
        check_observations(self.observations)
        check_notes(self.notes)
        check_mapping("observer_costs", self.observer_costs)
        for name, costs in self.observer_costs.items():
            check_costs(f"observer_costs[{name!r}]", costs)
        check_mapping("configuration", self.configuration)
        check_mapping("events", self.events)
        if self.end is not None and not isinstance(self.end, State):
            raise TypeError(f"end must be a State or None, got {kind_of(self.end)}")

    @property
    def complete(self) -> bool:
        """Whether the run finished with every member of the batch alive."""
        return self.status == "finished" and bool(self.alive.all())

    def check_uninterrupted(self) -> Trajectory:
        """The trajectory itself; raises ``InterruptedRun``, a KeyboardInterrupt, if the run was interrupted."""
        if self.status == "interrupted":
            raise InterruptedRun(self.status.sentence, self)
        return self

    def check_finished(self, name: str = "the run") -> Trajectory:
        """The trajectory itself, complete.

        Raises ``InterruptedRun`` as above, and for any other incomplete run ``UnfinishedRunError``, an ArithmeticError
        with the ``name``, the status and its sentence.
        """
        if self.check_uninterrupted().complete:
            return self
        raise UnfinishedRunError(f"{name} is incomplete ({self.status}): {self.status.sentence}", self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the trajectory into ``folder`` (made if needed) and return it. Raises FolderError."""
        with FolderLock(folder):
            return save_tensors(folder, "trajectory", *parts_of(self))

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Trajectory:
        """Read a trajectory that ``save`` wrote, on the CPU. Raises FolderError."""
        tensors, text = load_tensors(folder, "trajectory")
        try:
            return trajectory_of(tensors, text)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise read_error(Path(folder), "trajectory", error) from error


def parts_of(run: Trajectory) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A trajectory as named tensors and JSON."""
    tensors = {"times": run.times, "theta": run.theta, "alive": run.alive}
    for i, pair in enumerate(run.observations.values()):
        tensors |= {f"observation.{i}.times": pair[0], f"observation.{i}.values": pair[1]}
    text: dict[str, Any] = {
        "status": str(run.status),
        "sentence": run.status.sentence,
        "cost": dict(run.cost),
        "notes": list(run.notes),
        "observations": list(run.observations),
        "observer_costs": {name: dict(costs) for name, costs in run.observer_costs.items()},
        "configuration": as_json(run.configuration),
        "events": list(run.events),
    }
    for i, crossings in enumerate(run.events.values()):
        tensors |= {f"event.{i}.{name}": tensor for name, tensor in vars(crossings).items()}
    try:
        text["end"], held = (None, {}) if run.end is None else parts_of_state(run.end)
    except UnsupportedError as error:
        warnings.warn(f"the run is saved without its end state, from which it could continue: {error}", stacklevel=3)
        text["end"], held = None, {}
    return {**tensors, **held}, text


def trajectory_of(tensors: Mapping[str, Tensor], text: Mapping[str, Any]) -> Trajectory:
    """The trajectory of ``parts_of``. Raises KeyError, TypeError or ValueError for parts that are none."""
    names = check_notes(text["observations"], "observations")
    observations = {
        name: (tensors[f"observation.{i}.times"], tensors[f"observation.{i}.values"]) for i, name in enumerate(names)
    }
    if len(observations) != sum(name.startswith("observation.") for name in tensors) // 2:
        raise ValueError(f"observations must have different names, one for each, got {names}")
    if not bool(tensors["theta"].isfinite().all()):
        raise ValueError("theta must be finite")
    return Trajectory(
        times=tensors["times"],
        theta=tensors["theta"],
        status=Status(text["status"], text["sentence"]),
        alive=tensors["alive"],
        cost=text["cost"],
        observations=observations,
        notes=tuple(check_notes(text["notes"])),
        # folders saved before observers counted have no costs, of format 1 no configuration
        observer_costs=text.get("observer_costs", {}),
        configuration=text.get("configuration", {}),
        end=None if text.get("end") is None else state_of(tensors, text["end"]),
        events={
            name: Crossings(*(tensors[f"event.{i}.{part}"] for part in ("times", "states", "members")))
            for i, name in enumerate(check_notes(text.get("events", []), "events"))
        },
    )


def check_states(times: Tensor, theta: Tensor, alive: Tensor) -> None:
    """Raise unless times (T,), θ (T, ..., d) and alive (...) belong together; a few reductions over the times."""
    check_times("times", times)
    if not isinstance(theta, Tensor) or not (theta.is_floating_point() or theta.is_complex()):
        raise TypeError(f"theta must be a tensor of a floating or complex dtype, got {kind_of(theta)}")
    if theta.ndim < 2 or len(theta) != len(times) or len(times) == 0:
        raise ValueError(
            f"theta must have shape (T, ..., d) for times (T,), T >= 1, got {tuple(theta.shape)} for "
            f"{tuple(times.shape)}"
        )
    if not isinstance(alive, Tensor) or alive.dtype != torch.bool:
        raise TypeError(f"alive must be a tensor of torch.bool, got {kind_of(alive)}")
    if alive.shape != theta.shape[1:-1]:
        raise ValueError(
            f"alive must have the batch shape of theta, {tuple(theta.shape[1:-1])}, got {tuple(alive.shape)}"
        )


def check_times(name: str, times: Tensor) -> None:
    """Raise unless times are (T,) float64, finite and never decreasing."""
    if not isinstance(times, Tensor) or times.dtype != torch.float64:
        raise TypeError(f"{name} must be a tensor of torch.float64, got {kind_of(times)}")
    if times.ndim != 1:
        raise ValueError(f"{name} must have shape (T,), got {tuple(times.shape)}")
    array = times.detach().cpu().numpy()  # numpy's few calls take a third of the time of torch's
    # of times in order, infinite ones are at the ends; NaN is in no order
    in_order = bool((array[1:] >= array[:-1]).all())
    if len(array) and not (in_order and math.isfinite(array[0]) and math.isfinite(array[-1])):
        raise ValueError(f"{name} must be finite and never decrease")


def check_observations(observations: Observations) -> None:
    """Raise unless observations map names to pairs (times (n,), values (n, ...))."""
    check_mapping("observations", observations)
    for name, pair in observations.items():
        label = f"observations[{name!r}]"
        if not isinstance(pair, tuple) or len(pair) != 2 or not isinstance(pair[1], Tensor):
            raise TypeError(f"{label} must be a pair of tensors (times, values), got {kind_of(pair)}")
        check_times(f"times of {label}", pair[0])
        if pair[1].ndim == 0 or len(pair[1]) != len(pair[0]):
            raise ValueError(
                f"{label} must have a value for each of its {len(pair[0])} times, got shape {tuple(pair[1].shape)}"
            )


def check_costs(name: str, costs: Mapping[str, float]) -> None:
    """Raise unless costs map names to finite numbers that are at least zero."""
    check_mapping(name, costs)
    for kind, number in costs.items():
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            raise TypeError(f"{name}[{short_form(kind)}] must be a number, got {short_form(number)}")
        if not (math.isfinite(number) and number >= 0):
            raise ValueError(f"{name}[{kind!r}] must be finite and at least zero, got {number!r}")


def check_mapping(name: str, value: Mapping[str, Any]) -> None:
    """Raise unless a value maps strings to something; a lazily evaluated mapping is not read."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a mapping, got {kind_of(value)}")
    if isinstance(value, dict) and not all(isinstance(key, str) for key in value):
        raise TypeError(f"{name} must have strings for keys, got {list(value)}")


def check_notes(notes: Any, name: str = "notes") -> list[str]:
    """The strings; TypeError unless they are a tuple or list of strings."""
    if not isinstance(notes, (tuple, list)) or not all(isinstance(note, str) for note in notes):
        raise TypeError(f"{name} must be a tuple of strings, got {short_form(notes)}")
    return list(notes)


def kind_of(value: Any) -> str:
    """A tensor's dtype, or the type of anything else."""
    return str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
