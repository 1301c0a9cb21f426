r"""Descent: a discrete optimiser as a map state → state, pure parameters; ``descend`` is its engine."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from flows.arguments import check_model, check_point
from flows.declared import Declared
from landscapes import FiniteSum, Landscape
from landscapes.landscape import check_finite_sum
from landscapes.noise import covariance_trace
from landscapes.sampling import Sampling, sampling_of


class Descent(Declared, ABC):
    r"""A discrete optimiser as a map state → state, pure parameters.

    ``h`` is the initial learning rate; ``elapsed(k, state)`` is the time after k steps, the sum of the rates of the
    steps taken. A state is whatever the descent needs; for most, θ itself.

    ``declared_landscapes``, ``declared_noise``, ``declared_rate`` and ``declared_clock`` are as for ``Flow``, with the
    same defaults (``flows.declared.Declared``). The rule of the clock is the step that the descent takes.
    """

    landscape: Landscape
    h: float

    @abstractmethod
    def step(self, state: Any, k: int, generator: torch.Generator) -> Any:
        """The state after step k (k = 0 is the first); random numbers come from the generator only."""

    def start(self, theta0: Tensor) -> Any:
        """The state that the descent starts from at θ0 (..., d)."""
        return theta0

    def position(self, state: Any) -> Tensor:
        """θ (..., d) of a state."""
        return state

    def velocity(self, state: Any) -> Tensor | None:
        """v (..., d) of a state, in the descent's own unit; None for a descent that does not carry one."""
        return None

    @property
    def remembers(self) -> bool:
        """Whether a step depends on more than θ and the time, as with momentum; by default the clock's statement.

        ``compare`` then has no one-step errors of flows that neither carry a velocity nor model the descent's rule.
        """
        return self.declared_clock is not None and self.declared_clock.remembers

    def elapsed(self, k: int, state: Any) -> float:
        """The time after k steps: k·h at a constant learning rate."""
        return k * self.clock_rate


class StochasticDescent(Descent):
    r"""A descent that follows a mini-batch gradient in place of the gradient."""

    @abstractmethod
    def full_batch(self) -> Descent:
        """The descent that takes the mean of each step: the full-batch gradient in place of the mini-batch one."""

    @abstractmethod
    def step_noise(self, theta: Tensor) -> Tensor:
        """Root mean square distance of a step from the full-batch step, h·√tr Cov(g_batch), shape (...,)."""

    def noise_at(self, state: Any) -> Tensor:
        """``step_noise`` of the step that is next at this state, shape (...,)."""
        return self.step_noise(self.position(state))

    def noise_of_step(self, state: Any, k: int) -> Tensor:
        """``step_noise`` of step k at this state, for descents whose steps differ in kind; shape (...,)."""
        return self.noise_at(state)

    def mean_state(self, state: Any) -> Any:
        """The state of ``full_batch()`` that corresponds to a state of this descent."""
        return self.full_batch().start(self.position(state))

    def mean_step(self, state: Any, k: int) -> Tensor:
        """θ (..., d) after step k with the full-batch gradient in place of the mini-batch one."""
        mean = self.full_batch()
        return mean.position(mean.step(self.mean_state(state), k, torch.Generator()))  # draws no number from it


class MinibatchDescent(StochasticDescent):
    r"""A stochastic descent on mini-batches of b out of N examples, drawn by the rule ``sampling``.

    A subclass is a frozen dataclass with the fields below. Its ``start`` carries ``first_order(theta0)`` in the state,
    and its ``step`` takes the examples of step k from ``sampler.draw(order, k, generator)``.

    If ``couples`` is true, ``compare(coupled=True)`` drives stochastic flows by the descent's own mini-batches.
    Construction raises TypeError or ValueError for invalid arguments.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    sampling: str

    def __post_init__(self) -> None:
        self.check_minibatches()

    def check_minibatches(self) -> None:
        """Raise unless the landscape is a FiniteSum, h is positive and 1 ≤ batch_size ≤ N."""
        check_model(self.landscape, self.h)
        check_finite_sum(self.landscape)
        sampling_of(self.landscape.size, self.batch_size, self.sampling)

    @property
    def couples(self) -> bool:
        """Whether step k follows the gradient of one mini-batch, at the constant rate h, from kh to (k+1)h.

        True by default if the clock is k·h, that is, if ``elapsed`` is not overridden. A subclass on that clock whose
        step follows anything else overrides it.
        """
        return type(self).elapsed is Descent.elapsed

    @property
    def sampler(self) -> Sampling:
        """How the mini-batches are drawn."""
        return sampling_of(self.landscape.size, self.batch_size, self.sampling)

    def first_order(self, theta0: Tensor) -> Tensor:
        """The order that the first draw takes, for each member of θ0 (..., d): (..., N) for epochs, else (..., 0)."""
        return self.sampler.first_order(check_point("theta0", theta0).shape[:-1], theta0.device)

    def gradient_noise(self, theta: Tensor) -> Tensor:
        """√tr Cov(g_B) = √(c·tr D(θ)), shape (...,)."""
        return (self.sampler.variance_factor() * covariance_trace(self.landscape, theta)).sqrt()

    def step_noise(self, theta: Tensor) -> Tensor:
        """h·√(c·tr D(θ)), shape (...,): that of a step along −h·g_B."""
        return self.h * self.gradient_noise(theta)
