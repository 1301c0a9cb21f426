r"""torchdiffeq's adaptive methods, landing on output times, with every state before a failure kept.

torchdiffeq returns states only when it succeeds. A run is therefore cut into segments of a few output times: the
callbacks note the accepted times, a segment that fails is run again up to the last output before the failure (the same
steps, since the method is deterministic), and the next segment starts with the step size that the last one ended with,
which saves an evaluation and the climb to that size.

The dense output of dopri8 and bosh3 is far less accurate than their steps, so these land on every output time. Once a
step ends on one of them by itself, without being cut short, torchdiffeq lands on no later one; the segment then ends
there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torchdiffeq import odeint

from flows.engines.events import Dense, EventStop, EventWatch
from flows.engines.field import Field, Stop, clock, linearises, stop_of
from flows.engines.method import Method, MethodOptions, Progress, Reached
from flows.flow import Flow, SingularModeError
from landscapes.errors import UnsupportedError

SEGMENT = 16  # output times per call of an adaptive method: the most that a failure runs again
ENORMOUS = 1e30  # in place of a non-finite error: the step is rejected and shrinks, while NaN would end the run at once
NODES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of a step, at which its dense output is taken
FAILURES = ("underflow in dt", "non-finite values", "max_num_steps")  # of torchdiffeq's assertions


def stiff_methods(flow: Flow) -> str:
    """The methods to recommend for a stiff flow."""
    exponential = "method='exprb43' or " if linearises(flow) else ""
    return f"{exponential}method='scipy_solver'"


class Step(NamedTuple):
    """An accepted step: its start, the state there, and its length."""

    t: float
    state: Tensor
    length: float


class OnTimeError(Exception):
    """A step ended by itself on a time to land on, after which torchdiffeq would miss the later ones."""


class AdaptiveWatch:
    """The field of an adaptive method with the callbacks that note accepted steps, and an error norm per batch member.

    The norm is the largest root mean square over members, so that every member of a batch meets the tolerance that it
    would meet alone.
    """

    def __init__(self, field: Field, t0: float, landing: Sequence[float] = ()):
        self.field = field
        self.landing = landing
        self.accepted_time = t0
        self.accepted_step: float | None = None
        self.steps: list[Step] = []
        self._proposed = 0.0
        self._errors = torch.zeros(())

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """The field at (t, state)."""
        return self.field(t, state)

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """Before a trial step: the step as proposed, not as cut short at a time to land on."""
        self._proposed = float(dt)

    def callback_accept_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """After an accepted step."""
        step = Step(float(t0), y0, float(dt))
        self.accepted_time = step.t + step.length
        self.accepted_step = self._proposed
        self.steps.append(step)
        if self._proposed == step.length and self.accepted_time in self.landing[:-1]:
            raise OnTimeError

    def norm(self, scaled_error: Tensor) -> Tensor:
        """Largest root mean square over the batch members; each one's is kept to identify the members that fail."""
        self._errors = scaled_error.abs().square().mean(dim=-1).sqrt()
        # Positive: torchdiffeq compares complex numbers when it chooses the first step of a complex state at rest.
        return torch.nan_to_num(self._errors, nan=ENORMOUS, posinf=ENORMOUS).clamp(1e-14, ENORMOUS).max()

    def stop(self, error: AssertionError) -> Stop:
        """The Stop for an assertion of torchdiffeq: the members that failed, by infinities or by too small a step."""
        remedy = stiff_methods(self.field.flow)
        if str(error).startswith("max_num_steps"):
            # The stiffest members have the largest errors and limit the step; the others can continue without them.
            members = self._errors >= self._errors.max() / 100
            advice = f"the field is stiff there: raise max_steps, ask for closer output times, or use {remedy}"
            text = f"max_steps were taken without reaching the next output time, at t = {self.accepted_time:.6g}"
            return Stop("step underflow", members, f"{text} (step {self._proposed:.3g})", advice)
        infinite = ~self._errors.isfinite()
        members = infinite | (self._errors > 1)
        members = members if bool(members.any()) else torch.ones_like(members)
        where = f"after t = {self.accepted_time:.6g} (step {self._proposed:.3g})"
        if bool(infinite.any()):
            advice = "the field is not finite there: end the run before, or use a smaller h"
            return Stop("diverged", members, f"the velocity is not finite {where}", advice)
        advice = f"the field is stiff or blows up: try a larger rtol, {remedy}, or method='rk4' with dt below 2.7/|λ|"
        return Stop("step underflow", members, f"the step size vanished {where}", advice)


class Segment:
    """A few output times of one run, integrated in one call of torchdiffeq from ``start`` at times[0]."""

    def __init__(self, method: Adaptive, field: Field, start: Reached, times: Sequence[float], options: MethodOptions):
        self.start = start
        self.times = times
        self.watch = AdaptiveWatch(field, times[0], times[1:] if method.landing else times[-1:])
        self._method = method.name
        self._tolerances = dict(zip(("rtol", "atol"), options.tolerances, strict=True))
        self._max_steps = options.max_steps

    @property
    def next_step(self) -> Tensor | None:
        """The length of the trial step to continue with."""
        proposed = self.watch.accepted_step
        return None if proposed is None else torch.tensor(proposed, dtype=torch.float64)

    def solve(self, times: Sequence[float]) -> Tensor:
        """States (n − 1, ..., s) at the times after the first; the last of the segment is landed on."""
        self.watch.steps = []
        state = self.start.state
        options: dict[str, Any] = {"norm": self.watch.norm, "step_t": clock(self.watch.landing, state)}
        options["max_num_steps"] = self._max_steps
        if self.start.step is not None and bool(self.start.step.isfinite().any()):
            proposed = self.start.step  # one a member after exprb43: the shortest
            options["first_step"] = proposed[proposed.isfinite()].min() if proposed.ndim else proposed
        return odeint(self.watch, state, clock(times, state), method=self._method, options=options, **self._tolerances)[
            1:
        ]

    def run(self) -> tuple[Tensor, BaseException | None]:
        """States at the output times reached, and the Stop or interrupt, if any, that ended the segment."""
        stop: BaseException | None = None
        try:
            return self.solve(self.times), None
        except OnTimeError:
            self.watch.landing = [t for t in self.watch.landing if t <= self.watch.accepted_time]
        except AssertionError as error:
            if not str(error).startswith(FAILURES):
                raise
            stop = self.watch.stop(error)
        except SingularModeError as error:
            stop = stop_of(error, self.start.state.device)
        except KeyboardInterrupt as interrupt:
            stop = interrupt
        reached = [t for t in self.times if t <= self.watch.accepted_time]
        try:
            return (self.solve(reached) if len(reached) > 1 else self.start.state[None][:0]), stop
        except KeyboardInterrupt as interrupt:  # a second one: the outputs of this segment are lost
            return self.start.state[None][:0], interrupt

    def dense(self, step: Step) -> Dense:
        """The dense output over an accepted step, a quartic in t, from one repetition of the step."""
        nodes = [step.t + step.length * part for part in NODES]
        watch = AdaptiveWatch(self.watch.field, step.t)
        options = {"norm": watch.norm, "first_step": step.length}
        states = odeint(
            watch, step.state, clock(nodes, step.state), method=self._method, options=options, **self._tolerances
        )
        wide = states.to(torch.complex128 if states.is_complex() else torch.float64)
        return lambda t: quartic(wide, (t - step.t) / step.length).to(step.state)


def quartic(nodes: Tensor, place: float) -> Tensor:
    """The quartic through ``nodes`` (5, ...) at ``NODES``, at ``place``: Lagrange's form."""
    weights = [math.prod((place - x) / (here - x) for x in NODES if x != here) for here in NODES]
    return torch.tensordot(torch.tensor(weights, dtype=nodes.dtype, device=nodes.device), nodes, dims=1)


class Adaptive(Method):
    """An adaptive method of torchdiffeq; ``landing``: whether it lands on every output time."""

    takes_first_step = True

    def __init__(self, name: str, *, landing: bool = False):
        super().__init__(name)
        self.landing = landing

    def check(self, options: MethodOptions, flow: Flow, state: Tensor) -> MethodOptions:
        if state.dtype is torch.float16:  # its largest number is 65,504
            raise UnsupportedError(
                f"method={self.name!r} takes no theta0 of float16, which overflows in its error estimates; use .float()"
            )
        self.check_own_steps(options)
        return self.with_tolerances(self.check_first_step(options), state)

    def advance(
        self, field: Field, start: Reached, times: Sequence[float], options: MethodOptions, progress: Progress
    ) -> None:
        k = 0
        while k < len(times) - 1:
            segment = Segment(self, field, start, [start.t, *times[k + 1 : k + SEGMENT + 1]], options)
            states, stop = segment.run()
            event = None if progress.events is None else first_stop(progress.events, segment, states)
            if event is not None:
                states, stop = states[: sum(t <= event.t for t in segment.times[1:])], event.stop
            for state in states:
                k += 1
                start = Reached(still(field, state, start.state), times[k], step=segment.next_step)
                progress.reach(k, start)
            if isinstance(stop, Stop):
                if event is not None:
                    start = Reached(still(field, event.state, start.state), event.t)
                start = start._replace(step=None)
                if not progress.halt(stop, start):
                    return
            elif stop is not None:
                raise stop


def still(field: Field, state: Tensor, before: Tensor) -> Tensor:
    """The state with frozen members as ``before``; the dense output of a constant state differs from it by rounding."""
    return state if field.alive is None else torch.where(field.alive[..., None], state, before)


def first_stop(events: EventWatch, segment: Segment, states: Tensor) -> EventStop | None:
    """Note the events of a segment up to its last output time reached, or to the first that ends a member's run."""
    if not len(states):
        return None
    end = segment.times[len(states)]
    steps = [step for step in segment.watch.steps if step.t < end]
    ends = [(step.t, step.state) for step in steps[1:]] + [(end, states[-1])]
    for step, (t, state) in zip(steps, ends, strict=True):
        event = events.search_step(step.t, t, state, partial(segment.dense, step))
        if event is not None:
            return event
    return None
