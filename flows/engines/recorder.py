"""The recorder of both engines: keeps states, calls the observers, and assembles the trajectory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from flows.engines.endings import Status
from flows.engines.state import State
from flows.engines.trajectory import Observations, Trajectory
from landscapes import Counted, Landscape
from landscapes.errors import check_choice, check_computable, check_count, short_form
from landscapes.landscape import check_landscape
from landscapes.wrappers.base import Counts

BLOCK, NUMBERS = 64, 2**20  # states that are held together


class Observer(Protocol):
    """Called at every ``every``-th state of a run; returns named tensors, kept in the trajectory with their times."""

    name: str
    every: int

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """The named observations of state k at time t."""
        ...


class StateObserver(ABC):
    """An observer that is given the run's whole ``State`` beside θ."""

    name: str
    every: int

    @abstractmethod
    def __call__(self, k: int, t: float, theta: Tensor, state: State) -> dict[str, Tensor]:
        """The named observations of state k at time t, whose position is θ (..., d)."""


class LandscapeObserver(ABC):
    r"""An observer that evaluates a landscape through ``counted``, which counts its oracle calls.

    ``counts`` accumulate over all runs; ``Trajectory.observer_costs`` has the cost of a single run. The observers of a
    run must have different names. Concrete classes are final. Raises TypeError or ValueError for invalid arguments.
    """

    def __init__(self, landscape: Landscape, every: int, name: str):
        if not isinstance(name, str):
            raise TypeError(f"name must be a string, got {short_form(name)}")
        self.landscape = check_landscape(landscape)
        self.every = check_count("every", every)
        self.name = name
        self.counted = Counted(landscape)

    @property
    def counts(self) -> Counts:
        """Oracle calls so far, in units of one product over the full sum for one θ."""
        return self.counted.counts

    @abstractmethod
    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """The named observations of θ (..., d), state k at time t."""


AnyObserver = Observer | StateObserver


class States:
    r"""States of one shape in order of time, in blocks of ``BLOCK`` of them or of ``NUMBERS`` numbers, if fewer.

    A small tensor kept after each step would lie between the large ones that the step frees, and the allocator could
    not return their memory: the process would grow by the work space of a step every time.
    """

    def __init__(self) -> None:
        self.times: list[float] = []  # one for each state: a state without its time is not counted
        self._blocks: dict[int, Tensor] = {}  # by the number of their first state
        self._last = (0, 0, torch.zeros(()))  # of the last block the first number, the rows, and itself

    def append(self, t: float, theta: Tensor) -> None:
        """Append a time and a copy of its state; interrupted, the pair is there or is not."""
        place = len(self.times)
        first, rows, block = self._last
        if place - first == rows:
            first, rows = place, max(1, min(BLOCK, NUMBERS // max(theta.numel(), 1)))
            block = torch.empty(rows, *theta.shape, dtype=theta.dtype, device=theta.device)
            self._blocks[first] = block
            self._last = (first, rows, block)
        block[place - first] = theta.detach()
        self.times.append(t)

    def stack(self) -> Tensor:
        """All of them, (T, ...)."""
        return torch.cat(list(self._blocks.values()))[: len(self.times)]


class Seen(NamedTuple):
    """The observations of one name: the observer they come from, and pairs of time and value."""

    observer: AnyObserver
    values: list[tuple[float, Tensor]]


class Recorder:
    """Keeps the states and observations of one run in order of time, and the oracle calls of its observers."""

    def __init__(self, keep: str, every: int, observers: Sequence[AnyObserver], last: int):
        check_choice("keep", keep, ("all", "last"))
        self._every = check_count("every", every)
        self._all = keep == "all"
        self._observers = check_observers(observers)
        self._counted_before = observer_counts(self._observers)
        self._last = last
        self._states = States()
        self._end: tuple[float, Tensor] = (0.0, torch.zeros(()))
        self._seen: dict[str, Seen] = {}

    def record(self, k: int, t: float, theta: Tensor, state: Callable[[], State]) -> None:
        """Take state k of the run; the last one is always kept. ``state`` is called for the observers of states."""
        if self._all and (k % self._every == 0 or k == self._last):
            self._states.append(t, theta)
        elif not self._all:
            self._end = (t, theta)
        for observer in self._observers:
            if k % observer.every == 0:
                self._note(observer, k, t, look(observer, k, t, theta, state))

    def _note(self, observer: AnyObserver, k: int, t: float, seen: Mapping[str, Tensor]) -> None:
        if not isinstance(seen, Mapping):
            raise TypeError(f"observer {observer.name!r} must return a dict of tensors, got {type(seen).__name__}")
        for name, value in seen.items():
            whose, values = self._seen.setdefault(name, Seen(observer, []))
            if whose is not observer:
                raise ValueError(f"observations must have different names, {name!r} comes from two observers")
            shown = numbers_of(f"observation {name!r} of {observer.name!r}", value)
            if values and shown.shape != values[0][1].shape:
                raise ValueError(
                    f"observer {observer.name!r} must return tensors of one shape: {name!r} was "
                    f"{tuple(values[0][1].shape)} and is {tuple(shown.shape)} at k = {k}"
                )
            values.append((t, shown))

    def keep_end(self, t: float, theta: Tensor) -> None:
        """Keep the state at which a run stopped, even if ``every`` skips it."""
        if not self._all:
            self._end = (t, theta)
        elif not self._states.times or self._states.times[-1] != t:
            self._states.append(t, theta)

    def trajectory(
        self, status: Status, alive: Tensor, cost: dict[str, float], notes: Sequence[str], **more: Any
    ) -> Trajectory:
        """The trajectory of the recorded states and observations; ``more``: its other fields."""
        observations: Observations = {
            name: (
                torch.tensor([t for t, _ in seen.values], dtype=torch.float64),
                torch.stack([x for _, x in seen.values]),
            )
            for name, seen in self._seen.items()
            if seen.values
        }
        if not self._all:
            self._states.append(*self._end)
        times = torch.tensor(self._states.times, dtype=torch.float64)
        return Trajectory(
            times,
            self._states.stack(),
            status,
            alive,
            cost,
            observations,
            tuple(notes),
            self._observer_costs(),
            **more,
        )

    def _observer_costs(self) -> dict[str, Counts]:
        """The oracle calls of each observer since the run began."""
        before, now = self._counted_before, observer_counts(self._observers)
        return {name: {kind: n - before[name][kind] for kind, n in counts.items()} for name, counts in now.items()}


def look(observer: AnyObserver, k: int, t: float, theta: Tensor, state: Callable[[], State]) -> Mapping[str, Tensor]:
    """The observations of a state; ``state`` is called for an observer of states."""
    if isinstance(observer, StateObserver):
        return observer(k, t, theta, state())
    return observer(k, t, theta)


def numbers_of(name: str, value: Any) -> Tensor:
    """An observation as a tensor, detached; raise unless it is a dense tensor, or numbers that form one."""
    try:
        return check_computable(name, torch.as_tensor(value)).detach()
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"{name} must be a tensor or numbers, got {short_form(value)}: {error}") from error


def observer_counts(observers: Sequence[AnyObserver]) -> dict[str, Counts]:
    """The current counts of the observers that have them, by name."""
    return {observer.name: dict(observer.counts) for observer in observers if isinstance(observer, LandscapeObserver)}


def check_observers(observers: Sequence[AnyObserver]) -> tuple[AnyObserver, ...]:
    """The observers as a tuple; raise unless each is callable, with ``every`` of at least 1 and its own ``name``."""
    if not isinstance(observers, Sequence):
        raise TypeError(f"observers must be a sequence of observers, got {type(observers).__name__}; write [observer]")
    counting: set[str] = set()
    for observer in observers:
        if not callable(observer) or not isinstance(getattr(observer, "name", None), str):
            raise TypeError(
                "observers must be callables (k, t, theta) -> dict with a name and an every, got "
                f"{short_form(observer)}"
            )
        check_count(f"every of observer {observer.name!r}", getattr(observer, "every", 0))
        if isinstance(observer, LandscapeObserver):
            if observer.name in counting:
                raise ValueError(
                    f"observers must have different names, {observer.name!r} is that of two; give name=..."
                )
            counting.add(observer.name)
    return tuple(observers)
