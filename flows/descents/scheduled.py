r"""Gradient descent and SGD whose learning rate is a function of time: h·schedule(t), t the sum of the rates so far."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model
from flows.declared import Clock
from flows.descent import Descent, MinibatchDescent
from flows.schedules import Schedule, check_callable, multiple_at
from landscapes import FiniteSum, Landscape, UnsupportedError


@dataclass(frozen=True)
class ScheduledState:
    """θ (..., d), the order of the examples, and the sum of the rates of the steps taken."""

    theta: Tensor
    order: Tensor
    time: float


@final
@dataclass(frozen=True)
class ScheduledGradientDescent(Descent):
    r"""Gradient descent  θ_{k+1} = θ_k − h_k ∇f(θ_k),  h_k = h·schedule(t_k),  t_{k+1} = t_k + h_k; state (θ, t).

    The clock is t, the sum of the rates taken. Raises TypeError or ValueError for invalid arguments, and at the first
    step whose schedule(t) is not positive and finite, with t in the message.
    """

    landscape: Landscape
    h: float
    schedule: Schedule

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_callable("schedule", self.schedule)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def start(self, theta0: Tensor) -> tuple[Tensor, float]:
        """θ0 at time zero."""
        return theta0, 0.0

    def step(self, state: tuple[Tensor, float], k: int, generator: torch.Generator) -> tuple[Tensor, float]:
        """θ − h_k∇f(θ)."""
        theta, time = state
        rate = self.h * multiple_at(self.schedule, time)
        return torch.add(theta, self.landscape.grad(theta), alpha=-rate), time + rate

    def position(self, state: tuple[Tensor, float]) -> Tensor:
        return state[0]

    def elapsed(self, k: int, state: tuple[Tensor, float]) -> float:
        """t, the sum of the rates of the steps taken."""
        return state[1]


@final
@dataclass(frozen=True)
class ScheduledStochasticGradientDescent(MinibatchDescent):
    r"""SGD  θ_{k+1} = θ_k − h_k g_B(θ_k),  h_k = h·schedule(t_k),  t_{k+1} = t_k + h_k.

    g_B is a mini-batch gradient, drawn as in ``StochasticGradientDescent``; a step costs b/N of a gradient. The
    clock is t, the sum of the rates taken, the same for all members of a batch. ``flows.schedules`` has the usual
    schedules. Its flow is ``StochasticModifiedEquation`` with the same schedule.

    A step depends on t as well as on θ: ``noise_at`` returns a state's noise, ``step_noise`` raises UnsupportedError.
    Raises TypeError or ValueError for invalid arguments, and at the first step whose schedule(t) is not positive and
    finite, with t in the message.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    schedule: Schedule
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        self.check_minibatches()
        check_callable("schedule", self.schedule)

    def rate(self, t: float) -> float:
        """h·schedule(t)."""
        return self.h * multiple_at(self.schedule, t)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def start(self, theta0: Tensor) -> ScheduledState:
        """θ0 and the first order of the examples, at time zero."""
        return ScheduledState(theta0, self.first_order(theta0), 0.0)

    def step(self, state: ScheduledState, k: int, generator: torch.Generator) -> ScheduledState:
        """θ − h_k g_B(θ)."""
        rate = self.rate(state.time)
        index, order = self.sampler.draw(state.order, k, generator)
        grad = self.landscape.batch_grad(state.theta, index)
        return ScheduledState(torch.add(state.theta, grad, alpha=-rate), order, state.time + rate)

    def position(self, state: ScheduledState) -> Tensor:
        return state.theta

    def elapsed(self, k: int, state: ScheduledState) -> float:
        """t, the sum of the rates of the steps taken."""
        return state.time

    def full_batch(self) -> ScheduledGradientDescent:
        return ScheduledGradientDescent(self.landscape, self.h, self.schedule)

    def mean_state(self, state: ScheduledState) -> tuple[Tensor, float]:
        return state.theta, state.time

    def noise_at(self, state: ScheduledState) -> Tensor:
        """Root mean square distance of the next step from the full-batch one, h_k·√(c·tr D(θ)), shape (...,)."""
        return self.rate(state.time) * self.gradient_noise(state.theta)

    def step_noise(self, theta: Tensor) -> Tensor:
        """Raises UnsupportedError: θ does not determine the time, and hence the rate."""
        raise UnsupportedError(
            "the noise of a step depends on the time, which theta does not determine: use noise_at(state), or "
            "StochasticGradientDescent at the rate of that time"
        )
