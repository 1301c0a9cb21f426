r"""SVAG: a simulation of SGD's stochastic differential equation by smaller steps with proportionally larger noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.declared import Clock
from flows.descent import MinibatchDescent
from flows.descents.gradient import GradientDescent
from landscapes import FiniteSum
from landscapes.errors import MOST, check_count
from landscapes.noise import covariance_trace


@final
@dataclass(frozen=True)
class SVAG(MinibatchDescent):
    r"""Stochastic variance amplified gradient  θ_{k+1} = θ_k − (h/l)[c₊ g₁(θ_k) + c₋ g₂(θ_k)],  c± = (1 ± √(2l−1))/2.

    g₁ and g₂ are the gradients of two independent mini-batches. c₊ + c₋ = 1 and c₊² + c₋² = l, so that the step's
    gradient has the mean ∇f and l times the covariance of a mini-batch gradient: l steps have, to first order in h, the
    mean and the covariance of one SGD step, and as ``level`` l → ∞ the run tends to dX = −∇f dt + √h σ(X) dW at the SGD
    rate h (weak error O(1/l) at fixed h, on finite times). It thus tests, without integrating the equation, whether SGD
    at that rate behaves like its equation. l = 1 is ``StochasticGradientDescent`` with the same draws.

    ``h`` is the rate of the modelled SGD, the steps are h/l and the clock is t = k·h/l. A step costs 2b/N of a
    gradient, b/N at l = 1. State (θ, order of the examples). ``sampling``: "replacement" or "subset"; "epoch" at l = 1
    only, since the noise of a reshuffled epoch of steps h/l sums to zero and vanishes as l grows.
    Li, Malladi & Arora 2021, arXiv 2102.12470. Raises TypeError or ValueError for invalid arguments.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    level: int
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        self.check_minibatches()
        if check_count("level", self.level, maximum=MOST) > 1 and self.sampling == "epoch":
            raise ValueError(
                "sampling must be 'replacement' or 'subset' at level > 1, got 'epoch': SVAG needs independent "
                "mini-batches, and those of a reshuffled epoch are dependent"
            )

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    @property
    def rate(self) -> float:
        """h/l, the length of a step."""
        return self.h / self.level

    @property
    def coefficients(self) -> tuple[float, float]:
        """(c₊, c₋)."""
        root = math.sqrt(2 * self.level - 1)
        return (1 + root) / 2, (1 - root) / 2

    def start(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """θ0 and the first order of the examples."""
        return theta0, self.first_order(theta0)

    def step(self, state: tuple[Tensor, Tensor], k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """θ − (h/l)[c₊ g₁(θ) + c₋ g₂(θ)]; at l = 1 c₋ = 0, and no second batch is drawn."""
        theta, order = state
        index, order = self.sampler.draw(order, k, generator)
        grad = self.landscape.batch_grad(theta, index)
        if self.level > 1:
            plus, minus = self.coefficients
            index, order = self.sampler.draw(order, k, generator)
            grad = torch.add(plus * grad, self.landscape.batch_grad(theta, index), alpha=minus)
        return torch.add(theta, grad, alpha=-self.rate), order

    def position(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]

    def elapsed(self, k: int, state: tuple[Tensor, Tensor]) -> float:
        """k·h/l."""
        return k * self.rate

    def full_batch(self) -> GradientDescent:
        """Gradient descent at the rate h/l."""
        return GradientDescent(self.landscape, self.rate)

    def step_noise(self, theta: Tensor) -> Tensor:
        """(h/l)·√(l·c·tr D(θ)), shape (...,)."""
        variance = self.level * self.sampler.variance_factor() * covariance_trace(self.landscape, theta)
        return self.rate * variance.sqrt()
