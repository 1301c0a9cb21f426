r"""Events of a run: times at which a function g(t, state) changes sign, noted or made the end of a member's run.

Signs are compared at the ends of the steps that a method accepts; two changes within one step are not seen. Adaptive
methods locate a change on their dense output, to 1e-10·(1 + |t|) in time; a fixed step has none, and the event is at
its end. The time noted lies on the far side of the change, so that a run that continues from there does not meet it
again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from scipy.optimize import brentq
from torch import Tensor

from flows.engines.field import Stop
from landscapes.errors import check_callable, check_choice, check_flag, is_dense, kind_of, short_form

ACCURACY = 1e-10  # of an event's time, times 1 + |t|
DIRECTIONS = {"both": 0, "rising": 1, "falling": -1}

Function = Callable[[float, Tensor], Tensor]
Dense = Callable[[float], Tensor]
"""State (..., s) at a time within a step."""


@dataclass(frozen=True)
class Event:
    r"""A change of sign of ``function``: (t, state (..., s)) ↦ (...), real, one number for each member.

    ``direction``: "rising", "falling" or "both". ``stop``: whether a member ends its run there; the run ends when no
    member is left, with the status "stopped". Raises TypeError or ValueError for invalid arguments.
    """

    name: str
    function: Function
    direction: str = "both"
    stop: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise TypeError(f"name of an Event must be a string, got {short_form(self.name)}")
        check_callable("function of an Event", self.function, "(t, state) -> (...)")
        check_choice("direction of an Event", self.direction, tuple(DIRECTIONS))
        check_flag("stop of an Event", self.stop)

    def values(self, t: float, state: Tensor) -> Tensor:
        """g(t, state) (...) on the CPU in float64; raise unless it is real and has the batch's shape."""
        value = self.function(t, state)
        if (
            not isinstance(value, Tensor)
            or not is_dense(value)
            or value.shape != state.shape[:-1]
            or not value.is_floating_point()
        ):
            got = kind_of(value) if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(
                f"function of event {self.name!r} must return one real number for each member, a floating tensor of "
                f"shape {tuple(state.shape[:-1])}, got {got}"
            )
        return value.detach().to("cpu", torch.float64)

    def changes(self, before: Tensor, after: Tensor) -> Tensor:
        """The members (...) whose sign changed in this event's direction; leaving zero is no change."""
        crossed = (before.sign() * after.sign() < 0) | ((after == 0) & (before != 0))
        wanted = DIRECTIONS[self.direction]
        return crossed & ((after - before) * wanted > 0) if wanted else crossed


@dataclass(frozen=True, eq=False)
class Crossings:
    """The events of one name in a run, in order of time.

    ``times`` (n,) float64; ``states`` (n, s), each that of the member; ``members`` (n, b): their indices in the
    batch of b dimensions, b = 0 for a single run.
    """

    times: Tensor
    states: Tensor
    members: Tensor

    def __post_init__(self) -> None:
        n = len(self.times)
        shapes = (self.times.ndim, self.states.ndim, self.members.ndim)
        if shapes != (1, 2, 2) or len(self.states) != n or len(self.members) != n or self.members.dtype != torch.int64:
            raise ValueError(
                "times, states and members of Crossings must have shapes (n,), (n, s) and (n, b), got "
                f"{tuple(self.times.shape)}, {tuple(self.states.shape)} and {tuple(self.members.shape)}"
            )


def check_events(events: Event | Sequence[Event]) -> tuple[Event, ...]:
    """The events as a tuple; raise unless all are Events with different names."""
    events = (events,) if isinstance(events, Event) else events
    if not isinstance(events, Sequence) or not all(isinstance(event, Event) for event in events):
        raise TypeError(f"events must be Events, got {short_form(events)}; write Event(name, function)")
    names = [event.name for event in events]
    if len(set(names)) < len(names):
        raise ValueError(f"events must have different names, got {names}")
    return tuple(events)


class Found(NamedTuple):
    """One event of one member (an index of the flattened batch), and the state (s,) of the member there."""

    t: float
    event: Event
    member: int
    state: Tensor


class EventStop(NamedTuple):
    """The first event of a step that ends a member's run: its Stop, its time, and the batch's state there."""

    stop: Stop
    t: float
    state: Tensor


class EventWatch:
    """The events of one run: their values at the last step's end, and the events found so far.

    ``moving`` (...): the members whose events are looked for; frozen ones have none.
    """

    def __init__(self, events: Sequence[Event], t: float, state: Tensor, moving: Tensor):
        self.events = events
        self.moving = moving
        self._found: list[Found] = []
        self._none = state.reshape(-1, state.shape[-1])[:0]
        self._values = [event.values(t, state) for event in events]

    def at_step_end(self, t: float, state: Tensor) -> None:
        """Note the events of a step that ended at (t, state), there; raise Stop for the members that end with them."""
        members = state.reshape(-1, state.shape[-1])
        found = [Found(t, event, m, members[m]) for event, _, m in self._changes(t, state)]
        self._found += found
        if stop := stop_of_events(found, state):
            raise stop

    def search_step(self, t0: float, t1: float, end: Tensor, dense: Callable[[], Dense]) -> EventStop | None:
        """Note the events between t0 and t1, located on the dense output, up to the first that ends a member's run.

        ``end``: the state at t1; ``dense`` is called if there is an event. Returns that first one, or None.
        """
        changes = list(self._changes(t1, end))
        if not changes:
            return None
        output = dense()
        found = [locate(event, m, t0, t1, output, *values) for event, values, m in changes]
        first = min((one.t for one in found if one.event.stop), default=t1)
        kept = sorted((one for one in found if one.t <= first), key=lambda one: one.t)
        self._found += kept
        stop = stop_of_events([one for one in kept if one.t == first], end)
        if stop is None:
            return None
        state = output(first)
        self._values = [event.values(first, state) for event in self.events]
        return EventStop(stop, first, state)

    def _changes(self, t: float, state: Tensor) -> Iterator[tuple[Event, tuple[float, float], int]]:
        """The events and members that changed sign since the last step's end, with their values before and at t."""
        before, self._values = self._values, [event.values(t, state) for event in self.events]
        moving = self.moving.to("cpu")
        for event, old, new in zip(self.events, before, self._values, strict=True):
            for m in (event.changes(old, new) & moving).reshape(-1).nonzero().flatten().tolist():
                yield event, (float(old.reshape(-1)[m]), float(new.reshape(-1)[m])), m

    def crossings(self, batch: torch.Size) -> dict[str, Crossings]:
        """Name → the events found, in order of time."""
        return {
            event.name: crossings_of([f for f in self._found if f.event is event], batch, self._none)
            for event in self.events
        }


def crossings_of(found: Sequence[Found], batch: torch.Size, none: Tensor) -> Crossings:
    """Events found in a batch of that shape as tensors; ``none`` (0, s): the states of no events."""
    times = torch.tensor([one.t for one in found], dtype=torch.float64)
    states = torch.stack([one.state for one in found]) if found else none
    flat = torch.tensor([one.member for one in found], dtype=torch.int64)
    members = torch.stack(torch.unravel_index(flat, batch), dim=-1) if batch else flat.new_zeros(len(found), 0)
    return Crossings(times, states, members)


def stop_of_events(found: Sequence[Found], state: Tensor) -> Stop | None:
    """The Stop of the members whose run ends with one of these events; None if there is none."""
    ending = [one for one in found if one.event.stop]
    if not ending:
        return None
    members = torch.zeros(state.shape[:-1], dtype=torch.bool, device=state.device)
    members.view(-1)[[one.member for one in ending]] = True
    names = ", ".join(dict.fromkeys(repr(one.event.name) for one in ending))
    return Stop("stopped", members, f"stopped at event {names}, t = {ending[0].t:.6g}")


def locate(event: Event, member: int, t0: float, t1: float, dense: Dense, before: float, after: float) -> Found:
    """The event of a member whose value changes sign from t0 to t1, on the far side of the root."""

    def state(t: float) -> Tensor:
        output = dense(t)
        return output.reshape(-1, output.shape[-1])[member]

    def value(t: float) -> float:
        return before if t == t0 else after if t == t1 else float(event.values(t, state(t)))

    if after == 0:
        return Found(t1, event, member, state(t1))
    step = 0.01 * ACCURACY * (1 + max(abs(t0), abs(t1)))
    t = root = float(brentq(value, t0, t1, xtol=step, rtol=8.9e-16))
    while t < t1 and value(t) * before > 0:
        t, step = min(root + step, t1), 2 * step
    return Found(t, event, member, state(t))
