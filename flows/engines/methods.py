r"""The integration methods by name. A new one is a ``Method`` and one line in ``METHODS``."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flows.engines.adaptive import Adaptive
from flows.engines.exponential import Members, Tolerance
from flows.engines.field import Field, linearises
from flows.engines.fixed import Adams, Fixed
from flows.engines.method import Method, MethodOptions, Progress, Reached
from flows.engines.scipy_method import Scipy
from flows.engines.stochastic import STOCHASTIC
from flows.flow import Flow, StochasticFlow
from landscapes.errors import check_choice


class Exponential(Method):
    """exprb43 of ``flows.engines.exponential``: it lands on every output time, and members have their own steps."""

    takes_first_step = True
    locates_events = False

    def check(self, options: MethodOptions, flow: Flow, state: Tensor) -> MethodOptions:
        self.check_own_steps(options)
        if not linearises(flow):
            flow.linearised(options.origin, state)  # raises UnsupportedError, which names the alternatives
        return self.with_tolerances(self.check_first_step(options), state)

    def advance(
        self, field: Field, start: Reached, times: Sequence[float], options: MethodOptions, progress: Progress
    ) -> None:
        tolerance = Tolerance(*options.tolerances)
        members = Members(field, start.state, times[0], start.step, tolerance, options.max_steps)
        for k, end in enumerate(times[1:]):
            state, stops = members.advance(end, progress.alive)
            for stop in stops:
                if not progress.halt(stop, start):
                    return
            start = Reached(torch.where(progress.alive[..., None], state, start.state), end, step=members.steps())
            progress.reach(k + 1, start)


class Milstein(Fixed):
    """Euler's step on the rate with Milstein's term, for stochastic flows."""

    @property
    def stepper(self) -> str:
        return "euler"


METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Adaptive("dopri5"),
        Adaptive("dopri8", landing=True),
        Adaptive("bosh3", landing=True),
        Adaptive("fehlberg2"),
        Adaptive("adaptive_heun"),
        Fixed("euler"),
        Fixed("midpoint"),
        Fixed("heun2"),
        Fixed("heun3"),
        Fixed("rk4"),
        Adams("explicit_adams"),
        Adams("implicit_adams"),
        Adams("fixed_adams"),
        Scipy("scipy_solver"),
        Exponential("exprb43"),
        Milstein("milstein"),
    )
}
"""Methods by name; ``check`` completes and checks the options of a run, ``advance`` integrates."""
DETERMINISTIC = tuple(name for name in METHODS if name != "milstein")
"""The methods of flows without noise; those of stochastic flows are ``STOCHASTIC``."""
ADAPTIVE = tuple(name for name, method in METHODS.items() if isinstance(method, Adaptive))
FIXED = tuple(name for name, method in METHODS.items() if isinstance(method, Fixed) and name != "milstein")
EXPONENTIAL = "exprb43"


def method_of(flow: Flow, name: str | None) -> Method:
    """The method of that name, by default dopri5 or, for a stochastic flow, euler; raise unless it suits the flow."""
    if isinstance(flow, StochasticFlow):
        return METHODS["euler" if name is None else check_choice("method of a stochastic flow", name, STOCHASTIC)]
    return METHODS["dopri5" if name is None else check_choice("method", name, DETERMINISTIC)]
