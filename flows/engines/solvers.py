r"""Integration by torchdiffeq that lands on output times and keeps every state before a failure.

torchdiffeq returns states only when it succeeds. Fixed-step methods are therefore streamed through its step callback.
Adaptive ones run over segments of a few output times: the callbacks note the accepted times, a segment that fails is
run again up to the last output before the failure (the same steps, since the method is deterministic), and the next
segment starts with the step size that the last one ended with, which saves an evaluation and the climb to that size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torchdiffeq import odeint

from flows.engines.counting import all_finite, finite_members
from flows.flow import Flow, Linearisation, SingularModeError

ADAPTIVE = ("dopri5", "dopri8", "bosh3", "fehlberg2", "adaptive_heun")
FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams", "fixed_adams")
SCIPY = "scipy_solver"
EXPONENTIAL = "exprb43"
SEGMENT = 16  # output times per call of an adaptive method: the most that a failure runs again
ADAMS_ORDER = 5  # torchdiffeq's 12 is unstable from h|λ| of about 0.01 on: refining dt makes it worse
ENORMOUS = 1e30  # in place of a non-finite error: the step is rejected and shrinks, while NaN would end the run at once


class Stop(Exception):
    """A run cannot continue for some batch members: the kind, the members (...,), and a sentence with time and step."""

    def __init__(self, kind: str, members: Tensor, sentence: str, advice: str = ""):
        super().__init__(sentence)
        self.kind = kind
        self.members = members
        self.sentence = sentence
        self.advice = advice


class Field:
    """A flow's velocity as torchdiffeq calls it: counted, checked, zero for frozen members."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.evaluations = 0
        self.alive: Tensor | None = None  # None: all of them

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """The velocity at (t, state)."""
        self.evaluations += 1
        if self.alive is None:
            return self.evaluate(t, state)
        velocity = torch.zeros_like(state)
        some = state[self.alive]
        try:
            velocity[self.alive] = self.evaluate(t, some)
        except SingularModeError as error:
            members = torch.zeros_like(self.alive)
            members[self.alive] = error.members.to(members.device)
            raise SingularModeError(str(error), members) from error
        return velocity

    def evaluate(self, t: Tensor, state: Tensor) -> Tensor:
        """The velocity of states without frozen members."""
        return velocity_of(self.flow, t, state)

    def begin(self, step: int, state: Tensor, dt: Tensor) -> None:
        """Called by fixed-step methods before the step of length dt from the grid index ``step``."""


def velocity_of(flow: Flow, t: float | Tensor, state: Tensor) -> Tensor:
    """The flow's velocity, detached; raise unless it has the state's shape and dtype."""
    with torch.enable_grad():  # a user's flow may call autograd; the run itself keeps no graph
        velocity = flow.velocity(t, state)
    return like_state(flow, "velocity", velocity, state)


def like_state(flow: Flow, name: str, value: Tensor, state: Tensor) -> Tensor:
    """A flow's return value, detached; raise unless it has the state's shape and dtype."""
    if not isinstance(value, Tensor) or value.shape != state.shape or value.dtype != state.dtype:
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{name} of {type(flow).__name__} must have the shape and dtype of the state, "
            f"{tuple(state.shape)} {state.dtype}, got {got}"
        )
    return value.detach()


def linearisation_of(flow: Flow, t: float, state: Tensor) -> Linearisation:
    """The flow's linearisation at one state (s,), detached; raise unless it has the state's shape and dtype."""
    with torch.enable_grad():
        here = flow.linearised(t, state)
    if not isinstance(here, Linearisation):
        raise TypeError(
            f"linearised of {type(flow).__name__} must return a Linearisation, got {type(here).__name__}; "
            "write Linearisation(velocity, product)"
        )

    def product(v: Tensor) -> Tensor:
        with torch.enable_grad():
            return like_state(flow, "product of linearised", here.product(v), state)

    return Linearisation(like_state(flow, "velocity of linearised", here.velocity, state), product)


def linearises(flow: Flow) -> bool:
    """Whether the flow overrides ``linearised``."""
    return getattr(flow.linearised, "__func__", None) is not Flow.linearised


def stiff_methods(flow: Flow) -> str:
    """The methods to recommend for a stiff flow."""
    exponential = f"method={EXPONENTIAL!r} or " if linearises(flow) else ""
    return f"{exponential}method={SCIPY!r}"


class AdaptiveWatch:
    """The field of an adaptive method with the callbacks that note accepted steps, and an error norm per batch member.

    The norm is the largest root mean square over members, so that every member of a batch meets the tolerance that it
    would meet alone.
    """

    def __init__(self, field: Field, t0: float):
        self.field = field
        self.accepted_time = t0
        self.accepted_step: float | None = None
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
        self.accepted_time = float(t0) + float(dt)
        self.accepted_step = self._proposed

    def norm(self, scaled_error: Tensor) -> Tensor:
        """Largest root mean square over the batch members; each one's is kept to identify the members that fail."""
        self._errors = scaled_error.abs().square().mean(dim=-1).sqrt()
        # Positive: torchdiffeq compares complex numbers when it chooses the first step of a complex state at rest.
        return torch.nan_to_num(self._errors, nan=ENORMOUS, posinf=ENORMOUS).clamp(1e-14, ENORMOUS).max()

    def stop(self, error: AssertionError) -> Stop:
        """The Stop for an assertion of torchdiffeq: the members that failed, by infinities or by too small a step."""
        if str(error).startswith("max_num_steps"):
            # The stiffest members have the largest errors and limit the step; the others can continue without them.
            members = self._errors >= self._errors.max() / 100
            remedy = stiff_methods(self.field.flow)
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
        remedy = stiff_methods(self.field.flow)
        advice = f"the field is stiff or blows up: try a larger rtol, {remedy}, or method='rk4' with dt below 2.7/|λ|"
        return Stop("step underflow", members, f"the step size vanished {where}", advice)


def adaptive_segment(
    field: Field,
    state: Tensor,
    times: Sequence[float],
    method: str,
    rtol: float,
    atol: float,
    max_steps: int,
    first_step: float | None,
) -> tuple[Tensor, float | None, BaseException | None]:
    """States at the output times reached, the step size to continue with, and the Stop of the run, if any."""
    watch = AdaptiveWatch(field, times[0])
    # The dense output of dopri8 and bosh3 is far less accurate than their steps, so these land on every output time;
    # the others only on the end of a segment.
    landing = list(times[1:]) if method in ("dopri8", "bosh3") else [times[-1]]

    def solve(wanted: Sequence[float]) -> Tensor:
        options: dict[str, Any] = {"norm": watch.norm, "step_t": clock(landing, state), "max_num_steps": max_steps}
        if first_step is not None:
            options["first_step"] = first_step
        return odeint(watch, state, clock(wanted, state), method=method, rtol=rtol, atol=atol, options=options)[1:]

    try:
        return solve(times), watch.accepted_step, None
    except AssertionError as error:
        if not str(error).startswith(("underflow in dt", "non-finite values", "max_num_steps")):
            raise
        stop: BaseException = watch.stop(error)
    except SingularModeError as error:
        stop = Stop("singular mode", error.members.to(state.device), str(error))
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    reached = [t for t in times if t <= watch.accepted_time]
    try:
        return (solve(reached) if len(reached) > 1 else state[None][:0]), watch.accepted_step, stop
    except KeyboardInterrupt as interrupt:  # a second one: the outputs of this segment are lost
        return state[None][:0], None, interrupt


class FixedWatch:
    """The field of a fixed-step method; its callback receives every state on the grid and forwards the finite ones."""

    def __init__(self, field: Field, first: int, see: Callable[[int, Tensor], None]):
        self.field = field
        self.step = first - 1
        self.state: Tensor | None = None
        self._see = see

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """The field at (t, state)."""
        return self.field(t, state)

    def callback_step(self, t0: Tensor, y0: Tensor, dt: Tensor) -> None:
        """Before each step: y0 is the state on the grid."""
        self.see(y0)
        self.field.begin(self.step, y0, dt)

    def see(self, state: Tensor) -> None:
        """Record the next state on the grid; raise Stop if a member is not finite."""
        if not all_finite(state):
            advice = "use a smaller dt, or an adaptive method"
            members = ~finite_members(state)
            raise Stop("diverged", members, f"the state is not finite after step {self.step + 1}", advice)
        self.step += 1
        self.state = state
        self._see(self.step, state)


def fixed_run(
    field: Field, state: Tensor, grid: Tensor, first: int, method: str, tolerances: dict[str, float], see: Callable
) -> tuple[int, Tensor, BaseException | None]:
    """Step along the grid from index ``first``; return the last index reached, its state, and the Stop, if any."""
    watch = FixedWatch(field, first, see)
    ends = grid[[first, -1]]
    options: dict[str, Any] = {"grid_constructor": lambda f, y, t: grid[first:]}
    if "adams" in method:
        options["max_order"] = ADAMS_ORDER
    stop: BaseException | None = None
    try:
        watch.see(odeint(watch, state, ends, method=method, options=options, **tolerances)[-1])
    except Stop as error:
        stop = error
    except SingularModeError as error:
        stop = Stop("singular mode", error.members.to(state.device), str(error))
    except KeyboardInterrupt as interrupt:
        stop = interrupt
    return watch.step, state if watch.state is None else watch.state, stop


class ScipyWatch:
    """The field as scipy's LSODA calls it; raises Stop at infinities and poles, on which LSODA hangs."""

    def __init__(self, field: Field, t0: float):
        self.field = field
        self._latest = t0
        self._still = 0

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """The field at (t, state)."""
        velocity = self.field(t, state)
        if not all_finite(velocity):
            advice = "the field leaves the finite numbers there: end the run before, or use a smaller h"
            raise Stop(
                "diverged", ~finite_members(velocity), f"the velocity is not finite at t = {float(t):.6g}", advice
            )
        self._still = 0 if float(t) > self._latest else self._still + 1
        self._latest = max(self._latest, float(t))
        if self._still > 100 * (10 + state.numel()):  # a Jacobian by finite differences takes state.numel() evaluations
            raise gave_up(state, self._latest)
        return velocity


def gave_up(state: Tensor, t: float) -> Stop:
    """The Stop for a run that scipy cannot take past t."""
    everyone = torch.ones(state.shape[:-1], dtype=torch.bool, device=state.device)
    advice = "scipy does not report which member failed: use method='dopri5'"
    return Stop("step underflow", everyone, f"scipy stopped after t = {t:.6g}", advice)


def scipy_segment(
    field: Field, state: Tensor, times: Sequence[float], rtol: float, atol: float
) -> tuple[Tensor, BaseException | None]:
    """States at the output times that scipy's LSODA reached, and the Stop, if any."""

    def solve(start: Tensor, wanted: Sequence[float]) -> Tensor:
        watch = ScipyWatch(field, wanted[0])
        states = odeint(watch, start, clock(wanted, state), method=SCIPY, rtol=rtol, atol=atol)[1:]
        if len(states) < len(wanted) - 1 or not all_finite(states):
            raise gave_up(start, wanted[0])
        return states

    reached = [state]
    try:
        return solve(state, times), None
    except (Stop, SingularModeError, KeyboardInterrupt) as error:
        stop: BaseException = error
    try:  # scipy returns no states of a failed run: repeat it, one output at a time
        for interval in pairwise(times):
            reached.append(solve(reached[-1], interval)[0])
    except (Stop, SingularModeError, KeyboardInterrupt) as error:
        stop = error
    else:
        return torch.stack(reached[1:]), None
    if isinstance(stop, SingularModeError):
        stop = Stop("singular mode", stop.members.to(state.device), str(stop))
    return torch.stack(reached)[1:], stop


def clock(times: Sequence[float], state: Tensor) -> Tensor:
    """Times as torchdiffeq expects them: float64 on the state's device."""
    return torch.tensor(times, dtype=torch.float64, device=state.device)
