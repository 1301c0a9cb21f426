"""What both engines do at every state: keep it or not, show it to the observers, assemble the trajectory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from flows.trajectory import Observations, Status, Trajectory
from landscapes.errors import check_choice, check_count


class Observer(Protocol):
    """Sees every ``every``-th state of a run: returns named tensors, which the trajectory keeps with their times."""

    name: str
    every: int

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """What is seen at state k, time t."""
        ...


class Recorder:
    """Keeps states and observations of one run in order of time."""

    def __init__(self, keep: str, every: int, observers: Sequence[Observer], last: int):
        check_choice("keep", keep, ("all", "last"))
        self._every = check_count("every", every)
        self._all = keep == "all"
        self._observers = check_observers(observers)
        self._last = last
        self._times: list[float] = []
        self._states: list[Tensor] = []
        self._seen: dict[str, tuple[list[float], list[Tensor]]] = {}

    def record(self, k: int, t: float, theta: Tensor) -> None:
        """Take state k of the run; the last one is always kept."""
        if self._all and (k % self._every == 0 or k == self._last):
            self._times.append(t)
            self._states.append(theta)
        elif not self._all:
            self._times, self._states = [t], [theta]
        for observer in self._observers:
            if k % observer.every == 0:
                for name, value in observer(k, t, theta).items():
                    times, values = self._seen.setdefault(name, ([], []))
                    times.append(t)
                    values.append(torch.as_tensor(value).detach())

    def keep_end(self, t: float, theta: Tensor) -> None:
        """Keep the state a run stopped at, where ``every`` passed it over."""
        if self._times[-1] != t:
            self._times.append(t)
            self._states.append(theta)

    def trajectory(self, status: Status, alive: Tensor, cost: dict[str, float], notes: Sequence[str]) -> Trajectory:
        """The trajectory of what was recorded."""
        observations: Observations = {
            name: (torch.tensor(times, dtype=torch.float64), torch.stack(values))
            for name, (times, values) in self._seen.items()
        }
        times = torch.tensor(self._times, dtype=torch.float64)
        return Trajectory(times, torch.stack(self._states), status, alive, cost, observations, tuple(notes))


def check_observers(observers: Sequence[Observer]) -> tuple[Observer, ...]:
    """The observers as a tuple; raise unless each is callable with a ``name`` and an ``every`` of at least 1."""
    for observer in observers:
        if not callable(observer) or not isinstance(getattr(observer, "name", None), str):
            raise TypeError(f"observers must be callables (k, t, theta) -> dict with a name and an every: {observer!r}")
        check_count(f"every of observer {observer.name!r}", observer.every)
    return tuple(observers)
