r"""Learning-rate schedules: the rate's multiple of h as a function of time, for descents and for their flows.

Time is the clock of this project, t = sum of the learning rates taken, and not the number of steps: a descent with the
rate h·s(t) takes dk/dt = 1/(h s(t)) steps a unit of time. A schedule therefore means the same to a descent and to its
flow for every h, and a rate that decays in t decays more slowly in steps: e^{−t/τ} is 1/(1 + hk/τ) after k steps, up
to O(h/τ), and a cosine that ends at zero never reaches it.

A schedule is a function t ↦ multiple; any callable with positive, finite values is accepted.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor

from flows.arguments import time_of
from landscapes.errors import check_computable, check_nonnegative, check_number, check_positive, short_form

LOG_LARGEST = math.log(sys.float_info.max)

Schedule = Callable[[float], float]
"""Time t ↦ the learning rate's multiple of h, positive."""


def check_callable(name: str, schedule: Schedule) -> Schedule:
    """Return the schedule; raise unless it can be called."""
    if not callable(schedule):
        raise TypeError(f"{name} must be a function of time, t -> multiple of h, got {short_form(schedule)}")
    return schedule


def multiple_at(schedule: Schedule, t: float | Tensor) -> float:
    """schedule(t). Raises TypeError or ValueError, naming t, unless that is a positive, finite real number."""
    time = time_of(t)
    return check_positive(*named_value(schedule, time))


def named_value(schedule: Schedule, time: float) -> tuple[str, float]:
    """A name of schedule(time), for messages, and its value: a number where it is a dense tensor of one."""
    name = f"schedule at t = {time:.6g}"
    value: Any = schedule(time)
    single = isinstance(value, Tensor) and check_computable(name, value).numel() == 1
    return name, value.item() if single else value


@final
@dataclass(frozen=True)
class ConstantSchedule:
    """The same multiple at all times."""

    value: float = 1.0

    def __post_init__(self) -> None:
        check_positive("value", self.value)

    def __call__(self, t: float) -> float:
        """The value."""
        return float(self.value)


@final
@dataclass(frozen=True)
class StepSchedule:
    """factorⁿ with n the number of ``milestones`` t_1 < t_2 < … at or before t. Raises unless factor > 0."""

    milestones: Sequence[float]
    factor: float = 0.1

    def __post_init__(self) -> None:
        check_positive("factor", self.factor)
        if isinstance(self.milestones, (str, bytes)) or not isinstance(self.milestones, Sequence):
            raise TypeError(f"milestones must be a sequence of times, got {short_form(self.milestones)}")
        times = tuple(check_positive(f"milestones[{i}]", time) for i, time in enumerate(self.milestones))
        if list(times) != sorted(set(times)):
            raise ValueError(f"milestones must increase strictly, got {self.milestones!r}")
        if self.factor > 1 and len(times) * math.log(self.factor) > LOG_LARGEST:
            raise ValueError(f"factor must keep factorⁿ finite for {len(times)} milestones, got {self.factor!r}")
        object.__setattr__(self, "milestones", times)  # hashable, and not the caller's list

    def __call__(self, t: float) -> float:
        """factorⁿ."""
        return float(self.factor) ** bisect_right(self.milestones, time_of(t))


@final
@dataclass(frozen=True)
class CosineSchedule:
    r"""e + (1 − e)(1 + cos(πt/T))/2 for the ``duration`` T and the end e = ``final``; constant e after T.

    Loshchilov & Hutter 2017, arXiv 1608.03983, where time is counted in steps. On this clock the end e = 0 is
    approached like T − t = O(1/k) and never reached. Raises unless duration > 0 and final ≥ 0.
    """

    duration: float
    final: float = 0.0

    def __post_init__(self) -> None:
        check_positive("duration", self.duration)
        check_nonnegative("final", self.final)

    def __call__(self, t: float) -> float:
        """The multiple at t."""
        # sin² keeps the digits that 1 + cos loses near the end.
        left = math.sin(math.pi / 2 * max(0.0, 1 - time_of(t) / self.duration))
        return self.final + (1 - self.final) * left**2


@final
@dataclass(frozen=True)
class ExponentialSchedule:
    """e^{−t/τ} for the time constant τ = ``timescale`` > 0: after k steps of h about 1/(1 + hk/τ)."""

    timescale: float

    def __post_init__(self) -> None:
        check_positive("timescale", self.timescale)

    def __call__(self, t: float) -> float:
        """e^{−t/τ}."""
        exponent = -time_of(t) / self.timescale
        if exponent > LOG_LARGEST:
            raise ValueError(f"t must be at least {-LOG_LARGEST:.4g} timescales, got {t!r}")
        return math.exp(exponent)


@final
@dataclass(frozen=True)
class WarmUp:
    """A ramp from ``initial``·s(0) to s(0) over the ``duration`` T, then s(t − T), s another schedule.

    Goyal et al. 2017, arXiv 1706.02677. Raises unless duration > 0 and initial > 0: at rate zero time stands still.
    """

    duration: float
    schedule: Schedule = ConstantSchedule()
    initial: float = 0.1

    def __post_init__(self) -> None:
        check_positive("duration", self.duration)
        check_callable("schedule", self.schedule)
        check_positive("initial", self.initial)

    def __call__(self, t: float) -> float:
        """The multiple at t."""
        time = time_of(t)
        if time >= self.duration:
            return check_number(*named_value(self.schedule, time - self.duration))
        begin = check_number(*named_value(self.schedule, 0.0))
        return (self.initial + (1 - self.initial) * time / self.duration) * begin


@final
@dataclass(frozen=True)
class CyclicalSchedule:
    """Triangles between ``low`` and ``high``: up for the time ``half_period``, down for as long, from low at t = 0.

    The triangular policy of Smith & Topin 2017, arXiv 1702.04283, where time is counted in steps; a single ramp up is
    their range test.
    Raises unless half_period > 0 and 0 < low ≤ high.
    """

    half_period: float
    low: float
    high: float = 1.0

    def __post_init__(self) -> None:
        check_positive("half_period", self.half_period)
        if check_positive("low", self.low) > check_positive("high", self.high):
            raise ValueError(f"low must be at most high, {self.high!r}, got {self.low!r}")

    def __call__(self, t: float) -> float:
        """The multiple at t."""
        phase = math.fmod(time_of(t) / self.half_period, 2)
        return self.low + (self.high - self.low) * (1 - abs(1 - phase))
