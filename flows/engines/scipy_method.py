"""scipy's LSODA by torchdiffeq, for stiff flows: states at the output times only, and every one before a failure."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor
from torchdiffeq import odeint

from flows.engines.adaptive import SEGMENT, still
from flows.engines.counting import all_finite, finite_members
from flows.engines.field import Field, Stop, clock, stop_of
from flows.engines.method import Method, MethodOptions, Progress, Reached
from flows.flow import Flow, SingularModeError
from landscapes import UnsupportedError


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
        states = odeint(watch, start, clock(wanted, state), method="scipy_solver", rtol=rtol, atol=atol)[1:]
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
    return torch.stack(reached)[1:], stop


class Scipy(Method):
    """LSODA by scipy, with a dense Jacobian by differences; real states."""

    locates_events = False

    def check(self, options: MethodOptions, flow: Flow, state: Tensor) -> MethodOptions:
        if state.is_complex():
            raise UnsupportedError(
                "method='scipy_solver' integrates real states only; use method='dopri5' for complex ones"
            )
        if state.dtype is torch.bfloat16:
            raise UnsupportedError("method='scipy_solver' takes no theta0 of bfloat16, which numpy lacks; use .float()")
        self.check_own_steps(options)
        return self.with_tolerances(self.check_first_step(options), state)

    def advance(
        self, field: Field, start: Reached, times: Sequence[float], options: MethodOptions, progress: Progress
    ) -> None:
        k = 0
        while k < len(times) - 1:
            segment = times[k : k + SEGMENT + 1]
            states, stop = scipy_segment(field, start.state, segment, *options.tolerances)
            for state in states:
                k += 1
                start = Reached(still(field, state, start.state), times[k])
                progress.reach(k, start)
            if isinstance(stop, (Stop, SingularModeError)):
                if not progress.halt(stop_of(stop, start.state.device), start):
                    return
            elif stop is not None:
                raise stop
