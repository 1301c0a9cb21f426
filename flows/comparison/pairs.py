r"""A flow and a descent as a pair, by their own statements: rate, clock, rule and landscapes.

``compare`` refuses a flow of another learning rate, of another dimension, or of a momentum whose scaling is not the
descent's. Other differences are notes in the flow's row.
"""

from __future__ import annotations

import math
from types import FunctionType
from typing import Any

import torch
from torch import Tensor

from flows.declared import MOMENTUM, Clock, closure_of, named_rate
from flows.descent import Descent
from flows.descents.optimizer import OptimizerDescent
from flows.flow import Flow, StochasticFlow
from flows.models.torch_clock import ClockError, TorchMomentumEquation, TorchMomentumFlow
from landscapes import FiniteSum, Landscape, Regularised
from landscapes.landscape import Restricted, innermost_landscapes

NO_MEMORY = (
    "no one-step errors: a step of the descent depends on a memory (momentum, averages) beside theta, for which the "
    "flow has no state and no rule"
)


def on_clock_of(descent: Descent, flow: Flow) -> Flow:
    """The flow on the clock of the descent: itself, or a scaled momentum flow brought to torch's clock.

    Raises ValueError for another learning rate or dimension, ClockError for momentum of another scaling.
    """
    check_dimension(flow, descent)
    ours, theirs = flow.declared_clock, descent.declared_clock
    both = ours is not None and theirs is not None and {ours.rule, theirs.rule} <= set(MOMENTUM)
    if not both or ours.free or ours.unit == theirs.unit:  # type: ignore[union-attr]
        check_rate(flow, descent)
        return flow
    assert ours is not None
    assert theirs is not None
    if theirs.unit == "√lr":
        raise ClockError(
            f"{flow.name} is on torch's clock, t = k·lr and h = lr, and {type(descent).__name__} on that of scaled "
            f"momentum, h = √lr, μ = (1 − β)/√lr: compare it with HeavyBall or Nesterov at lr = "
            f"{descent.clock_rate**2:.6g} and momentum β = {theirs.momentum:.6g}, or take both from momentum_from_torch"
        )
    made = TorchMomentumEquation if isinstance(flow, StochasticFlow) else TorchMomentumFlow
    return made(flow, descent.clock_rate, theirs.momentum, ours.rule == "Nesterov", theirs.dampening)  # type: ignore[arg-type]


def check_rate(flow: Flow, descent: Descent) -> None:
    """Raise ValueError if the flow states a learning rate that is not the descent's."""
    rate = named_rate(flow)
    if rate is not None and not math.isclose(rate[1], descent.clock_rate, rel_tol=1e-12):
        raise ValueError(
            f"{rate[0]} of {flow.name} is {rate[1]!r}, of the descent {descent.clock_rate!r}: they must agree"
        )


def check_dimension(flow: Flow, descent: Descent) -> None:
    """Raise ValueError if a landscape of the flow has another dimension than the descent's."""
    for ours in flow.declared_landscapes:
        for theirs in descent.declared_landscapes[:1]:
            if ours.dimension != theirs.dimension:
                raise ValueError(
                    f"the landscape of {flow.name}, {type(ours).__name__}, has dimension {ours.dimension}, that of the "
                    f"descent, {type(theirs).__name__}, {theirs.dimension}: they must agree"
                )


def notes_on_pair(flow: Flow, descent: Descent) -> tuple[str, ...]:
    """Sentences on the ways in which the flow is not known to be a model of the descent; none for a sound pair."""
    clocks = flow.declared_clock, descent.declared_clock
    about_rule = () if None in clocks else note_on_rule(*clocks, type(descent).__name__)  # type: ignore[arg-type]
    return (
        *note_on_rate(flow, descent),
        *about_rule,
        *note_on_landscapes(flow, descent),
        *note_on_decay(flow, descent),
    )


def note_on_rate(flow: Flow, descent: Descent) -> tuple[str, ...]:
    """A note if the flow states no learning rate, unless its clock says that it has none."""
    clock = flow.declared_clock
    if flow.declared_rate is not None or (clock is not None and clock.free):
        return ()
    return (
        f"rate not declared: none of h, lr, learning_rate and rate is a number, so that it was not compared with the "
        f"descent's, {descent.clock_rate!r}; a flow without a rate says so by the member declared_clock, "
        "Clock(free=True)",
    )


def note_on_rule(flow: Clock, descent: Clock, name: str) -> tuple[str, ...]:
    """A note if the flow models another rule than the descent's, or the same at another momentum."""
    if flow.rule is None or descent.rule is None or not (flow.remembers or descent.remembers):
        return ()
    if not flow.remembers and descent.rule in MOMENTUM:
        return (too_slow(descent, name),)
    if flow.rule != descent.rule:
        return (f"no model of {name}: the flow models {flow.rule}, the descent takes steps of {descent.rule}",)
    if not math.isclose(flow.time_scale, descent.time_scale, rel_tol=1e-9):
        return (
            f"no model of {name}: the flow's momentum is {flow.momentum:.6g} (dampening {flow.dampening:.6g}), the "
            f"descent's {descent.momentum:.6g} (dampening {descent.dampening:.6g})",
        )
    return ()


def too_slow(descent: Clock, name: str) -> str:
    """The note of a flow that models plain gradient descent beside a descent with momentum."""
    if descent.unit == "√lr":
        return (
            f"no model of {name}: the flow models plain gradient descent at h = lr, the descent is on the clock of "
            "scaled momentum, h = √lr, where momentum moves 1/μ times as far as gradient flow in the long run"
        )
    factor = "(1 − τ)/(1 − β)" if descent.dampening else "1/(1 − β)"
    return (
        f"no model of {name}: the flow models plain gradient descent and is {factor} = {descent.time_scale:.6g} times "
        "too slow, as momentum moves that much farther in the long run"
    )


def note_on_landscapes(flow: Flow, descent: Descent) -> tuple[str, ...]:
    """A note if an innermost landscape of the flow is none of the descent's; both are named."""
    theirs = [inner for whole in descent.declared_landscapes for inner in innermost_landscapes(whole)]
    ours = [inner for whole in flow.declared_landscapes for inner in innermost_landscapes(whole)]
    other = [inner for inner in ours if not any(same_landscape(inner, known) for known in theirs)]
    if not theirs or not other:
        return ()
    mine, known = type(other[0]).__name__, type(theirs[0]).__name__
    return (f"another landscape: the flow's is {mine}, the descent's {f'another {known}' if mine == known else known}",)


def note_on_decay(flow: Flow, descent: Descent) -> tuple[str, ...]:
    """A note if the descent is an optimiser with weight decay and no landscape of the flow has it."""
    if not isinstance(descent, OptimizerDescent) or descent.weight_decay == 0:
        return ()
    decay, own = descent.weight_decay, decay_of(descent.landscape)
    if any(math.isclose(decay_of(whole), own + decay, rel_tol=1e-9) for whole in flow.declared_landscapes):
        return ()
    return (
        f"weight_decay={decay:g} of the optimiser is not in the flow's landscape: give the flow "
        f"Regularised(landscape, {decay:g})",
    )


def decay_of(landscape: Landscape) -> float:
    """The sum of l2 of the nested ``Regularised`` in a landscape, the largest of its parts."""
    inside = [0.0]

    def look(part: Landscape, share: float) -> Landscape:
        inside.append(decay_of(part))
        return part

    landscape.with_parts(look)
    return (landscape.l2 if isinstance(landscape, Regularised) else 0.0) + max(inside, key=abs)


def same_landscape(flow: Landscape, descent: Landscape) -> bool:
    """Whether the flow's landscape is the descent's: the same object, an equal one, or some of its examples."""
    if isinstance(flow, Restricted):
        return same_landscape(flow.parent, descent)
    if flow is descent or equal_values(flow, descent):
        return True
    # a part made by ``restrict`` of a class that stores the examples chosen: which ones is not known
    sums = isinstance(flow, FiniteSum) and isinstance(descent, FiniteSum) and type(flow) is type(descent)
    return sums and flow.size < descent.size  # type: ignore[attr-defined]


def equal_values(a: Any, b: Any) -> bool:
    """Whether two objects of one class have equal attributes; tensors by value, functions by code and closure."""
    if a is b or type(a) is not type(b):
        return a is b
    if isinstance(a, Tensor):
        return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal_values(a[key], b[key]) for key in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(equal_values, a, b))
    if isinstance(a, FunctionType):
        same = (a.__code__, a.__defaults__) == (b.__code__, b.__defaults__)
        return same and equal_values(list(closure_of(a)), list(closure_of(b)))
    return equal_values(vars(a), vars(b)) if isinstance(a, (Landscape, torch.nn.Module)) else bool(a == b)


def lacks_memory(flow: Flow, descent: Descent) -> bool:
    """Whether the descent remembers more than θ and the flow, without a velocity, does not model its rule."""
    if not descent.remembers or type(flow).resume is not Flow.resume:
        return False
    ours, theirs = flow.declared_clock, descent.declared_clock
    return ours is None or theirs is None or ours.rule != theirs.rule
