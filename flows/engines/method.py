r"""``Method``: the two parts of an integration method, the check of its options and the advance along output times.

A method is an object in ``flows.engines.methods.METHODS``. The engine, ``integrate``, knows this interface only: a new
method is a class with ``check`` and ``advance``, and one line in that dict.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from flows.engines.events import EventWatch
from flows.engines.field import Field, Stop
from flows.flow import Flow
from landscapes.errors import check_count, check_positive

TOLERANCES = {torch.float64: (1e-7, 1e-9), torch.float32: (1e-4, 1e-6)}


@dataclass(frozen=True)
class MethodOptions:
    """The options of a run as given, None where they are not; ``check`` returns them complete.

    ``origin``: the time from which fixed steps are counted.
    """

    rtol: float | None = None
    atol: float | None = None
    dt: float | None = None
    first_step: float | None = None
    max_steps: int = 100_000
    origin: float = 0.0

    @property
    def tolerances(self) -> tuple[float, float]:
        """rtol and atol of complete options."""
        assert self.rtol is not None
        assert self.atol is not None
        return self.rtol, self.atol


class Reached(NamedTuple):
    """A state that a run has reached, and the numbers from which its method continues: see ``State``."""

    state: Tensor
    t: float
    place: int = 0
    step: Tensor | None = None
    history: tuple[Tensor, ...] = ()


class Progress(Protocol):
    """The engine as a method sees it."""

    alive: Tensor
    events: EventWatch | None

    def reach(self, k: int, point: Reached) -> None:
        """Take the state at the k-th of the times given to ``advance``; k = 0 is the start and is not reported."""
        ...

    def halt(self, stop: Stop, point: Reached) -> bool:
        """Freeze the members that stop at a point of the run; return whether any other is left."""
        ...


class Method(ABC):
    """An integration method, by its ``name``.

    ``takes_first_step``: whether its steps are adaptive and the first may be given; ``locates_events``: whether it
    looks for events.
    """

    takes_first_step = False
    locates_events = True

    def __init__(self, name: str):
        self.name = name

    @abstractmethod
    def check(self, options: MethodOptions, flow: Flow, state: Tensor) -> MethodOptions:
        """The options, complete; raise if one of them is invalid or has no meaning for this method, flow or dtype."""

    @abstractmethod
    def advance(
        self, field: Field, start: Reached, times: Sequence[float], options: MethodOptions, progress: Progress
    ) -> None:
        """Integrate from ``start`` at times[0] along the times, reporting states and stops to ``progress``.

        Returns at the last time, or once ``progress.halt`` returns False.
        """

    def check_first_step(self, options: MethodOptions) -> MethodOptions:
        """The options; raise if a first step is invalid, or is given to a method without one."""
        if options.first_step is not None and not self.takes_first_step:
            raise ValueError(
                f"first_step is for the adaptive methods of torchdiffeq and exprb43, got method={self.name!r}"
            )
        first = options.first_step
        return replace(options, first_step=None if first is None else check_positive("first_step", first))

    def with_tolerances(self, options: MethodOptions, state: Tensor) -> MethodOptions:
        """The options with the tolerances of the state's dtype where they are not given."""
        default = TOLERANCES.get(state.abs().dtype)
        if default is None and (options.rtol is None or options.atol is None):
            raise ValueError(f"rtol and atol must be given for theta0 of dtype {state.dtype}")
        rtol, atol = default or (1.0, 1.0)
        return replace(
            options,
            rtol=rtol if options.rtol is None else check_positive("rtol", options.rtol),
            atol=atol if options.atol is None else check_positive("atol", options.atol),
            max_steps=check_count("max_steps", options.max_steps, maximum=torch.iinfo(torch.int64).max),
        )

    def check_own_steps(self, options: MethodOptions) -> None:
        """Raise if ``dt`` is given to a method that chooses its steps."""
        if options.dt is not None:
            raise ValueError(
                f"dt is for fixed-step methods, {self.name!r} chooses its own steps; give rtol and atol instead"
            )
