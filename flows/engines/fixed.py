r"""Fixed-step methods of torchdiffeq, streamed: every state on the grid is seen as soon as it is computed.

torchdiffeq returns states only when it succeeds, so that they are taken from its step callback. The grid is
origin + i·dt, with the output times in place of the grid points that they lie on. A run that continues on the same grid
takes the same steps. Adams methods need the velocities of the steps before; ``AdamsWatch`` hands them over.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchdiffeq import odeint
from torchdiffeq._impl.fixed_adams import AdamsBashforth, AdamsBashforthMoulton

from flows.engines.counting import all_finite, finite_members
from flows.engines.field import Field, Stop, clock, stop_of
from flows.engines.method import Method, MethodOptions, Progress, Reached
from flows.flow import Flow, SingularModeError
from landscapes.errors import MOST, check_positive

ADAMS_ORDER = 5  # torchdiffeq's 12 is unstable from h|λ| of about 0.01 on: refining dt makes it worse


def step_grid(outputs: Sequence[float], dt: float, origin: float | None = None) -> tuple[list[float], list[int]]:
    """The grid origin + i·dt over the outputs, and their indices i; raise if an output time lies off the grid.

    The origin is the first output time unless given.
    """
    times = np.asarray(outputs)
    start = times[0] if origin is None else origin
    if (times[-1] - start) / dt > MOST:
        raise ValueError(f"times must take at most {MOST:,} steps of dt = {dt!r}; give a larger dt or fewer times")
    places = np.rint((times - start) / dt).astype(int)
    off = np.abs(times - start - places * dt) > 1e-9 * np.maximum(times - start, dt)
    if off.any() or (np.diff(places) < 1).any():
        wrong = float(times[off][0] if off.any() else times[1])
        of_run = "times[0]" if start == times[0] else f"{start!r}"
        raise ValueError(
            f"times must lie on {of_run} + k·dt, k = 0, 1, …, with dt = {dt!r}; {wrong!r} does not: "
            "choose a dt that divides every output interval"
        )
    grid = start + np.arange(places[0], places[-1] + 1) * dt
    grid[places - places[0]] = times
    return grid.tolist(), places.tolist()


Report = Callable[[int, Tensor, tuple[Tensor, ...]], None]


class FixedWatch:
    """The field of a fixed-step method; its callback receives every state on the grid and reports the finite ones.

    ``report`` takes the index on the grid, the state, and the states and velocities that the method remembers.
    """

    history: tuple[Tensor, ...] = ()

    def __init__(self, field: Field, start: Reached, report: Report):
        self.field = field
        self.index = start.place - 1
        self.state = start.state
        self._report = report

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """The field at (t, state)."""
        return self.field(t, state)

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """Before each step: y0 is the state on the grid."""
        self.see(y0)
        self.field.begin(self.index, y0, dt)

    def see(self, state: Tensor) -> None:
        """Report the next state on the grid; raise Stop if a member is not finite."""
        if not all_finite(state):
            advice = "use a smaller dt, or an adaptive method"
            members = ~finite_members(state)
            raise Stop("diverged", members, f"the state is not finite after step {self.index + 1}", advice)
        self.index += 1
        self.state = state
        self._report(self.index, state, self.history)

    def solve(self, grid: Tensor, method: str, arguments: Mapping[str, Any]) -> None:
        """Step along the grid (n,), which begins at the current state."""
        options = {"grid_constructor": lambda f, y, t: grid}
        self.see(odeint(self, self.state, grid[[0, -1]], method=method, options=options, **arguments)[-1])


class AdamsWatch(FixedWatch):
    """A ``FixedWatch`` that hands its solver the velocities at the grid points before, latest first.

    ``odeint`` has no way to them: the solver is torchdiffeq's own class, which ``odeint`` would make.
    """

    def __init__(self, field: Field, start: Reached, report: Report):
        super().__init__(field, start, report)
        self._velocities = deque(start.history[2:])
        self._before = start.history[1] if start.history else None

    @property
    def history(self) -> tuple[Tensor, ...]:  # type: ignore[override]
        """The states here and at the grid point before, and the velocities that the solver remembers, if any."""
        return (self.state, self._before, *self._velocities) if self._velocities and self._before is not None else ()

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """Before each step: y0 is the state on the grid, and that before the next one."""
        super().callback_step(t0, y0, dt)
        self._before = y0

    def __call__(self, t: Tensor, state: Tensor, perturb: object = None) -> Tensor:
        """The field at (t, state), the time in the state's precision as ``odeint`` gives it."""
        return self.field(t.to(state.abs().dtype), state)

    def solve(self, grid: Tensor, method: str, arguments: Mapping[str, Any]) -> None:
        kind = AdamsBashforth if method == "explicit_adams" else AdamsBashforthMoulton
        solver = kind(func=self, y0=self.state, grid_constructor=lambda f, y, t: grid, **arguments)
        solver.prev_f.extend(self._velocities)
        self._velocities = solver.prev_f
        self.see(solver.integrate(grid[[0, -1]])[-1])


class Fixed(Method):
    """A fixed-step method of torchdiffeq; ``dt`` divides every output interval, counted from the run's first time."""

    watch: type[FixedWatch] = FixedWatch

    @property
    def stepper(self) -> str:
        """torchdiffeq's name of the step."""
        return self.name

    def check(self, options: MethodOptions, flow: Flow, state: Tensor) -> MethodOptions:
        options = self.with_dt(options)
        if options.rtol is not None or options.atol is not None:
            raise ValueError(
                f"rtol and atol have no meaning for the fixed-step method {self.name!r}; give a smaller dt"
            )
        return options

    def with_dt(self, options: MethodOptions) -> MethodOptions:
        """The options with a checked ``dt``; raise without one."""
        if options.dt is None:
            raise ValueError(f"dt must be given for the fixed-step method {self.name!r}; or use method='dopri5'")
        return replace(self.check_first_step(options), dt=check_positive("dt", options.dt))

    def begin(self, field: Field, start: Reached, options: MethodOptions) -> Reached:
        """The start with the part of its memory that can be used."""
        return start._replace(history=())

    def arguments(self, options: MethodOptions) -> dict[str, Any]:
        """Arguments of ``odeint`` besides the grid."""
        return {"rtol": 1.0, "atol": 1.0}  # not used by a method of fixed steps

    def advance(
        self, field: Field, start: Reached, times: Sequence[float], options: MethodOptions, progress: Progress
    ) -> None:
        assert options.dt is not None
        points, places = step_grid(times, options.dt, options.origin)
        grid = clock(points, start.state)
        number = {place: k for k, place in enumerate(places)}
        first, k = places[0], 0

        def report(place: int, state: Tensor, history: tuple[Tensor, ...]) -> None:
            nonlocal k
            if progress.events is not None:
                progress.events.at_step_end(points[place - first], state)
            if number.get(place, 0) > k:
                k = number[place]
                progress.reach(k, Reached(state, times[k], place, history=history))

        start = self.begin(field, start._replace(place=first), options)
        while start.place < places[-1]:
            watch = self.watch(field, start, report)
            try:
                return watch.solve(grid[start.place - first :], self.stepper, self.arguments(options))
            except (Stop, SingularModeError) as error:
                here = Reached(watch.state, points[watch.index - first], watch.index, history=watch.history)
                if not progress.halt(stop_of(error, watch.state.device), here):
                    return None
                start = here._replace(history=())  # those of frozen members would move them
        return None


class Adams(Fixed):
    """A multistep method of torchdiffeq, of order 5: its memory is part of a run's state."""

    watch = AdamsWatch

    def check(self, options: MethodOptions, flow: Flow, state: Tensor) -> MethodOptions:
        return self.with_tolerances(self.with_dt(options), state)

    def begin(self, field: Field, start: Reached, options: MethodOptions) -> Reached:
        """The start; without memory unless that is of these values and this field, which takes one evaluation."""
        if not start.history or not torch.equal(start.history[0], start.state):
            return start._replace(history=())
        assert options.dt is not None
        _, before, latest, *_ = start.history
        velocity = field(clock([start.t - options.dt], before)[0].to(before.abs().dtype), before)
        same = (velocity - latest).norm() <= torch.finfo(latest.dtype).eps ** 0.5 * latest.norm()
        return start if bool(same) else start._replace(history=())

    def arguments(self, options: MethodOptions) -> dict[str, Any]:
        return {"rtol": options.rtol, "atol": options.atol, "max_order": ADAMS_ORDER}
