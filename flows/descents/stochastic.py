"""Stochastic gradient descent: the gradient of a mini-batch in place of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model
from flows.descents.gradient import GradientDescent
from flows.flow import StochasticDescent
from landscapes import FiniteSum
from landscapes.noise import covariance_trace
from landscapes.sampling import Sampling, check_sampling
from landscapes.wrappers.gradient_penalties import check_finite_sum


@final
@dataclass(frozen=True)
class StochasticGradientDescent(StochasticDescent):
    r"""SGD  θ_{k+1} = θ_k − h (1/b) Σ_{i∈B_k} ∇f_i(θ_k); state (θ, order of the examples).

    ``sampling``: "replacement" (independent draws), "subset" (b different examples, steps independent) or "epoch" (a
    reshuffled pass; the last, short batch keeps its true size). Batch members draw their own examples. One step costs
    b/N of a gradient. Raises unless the landscape is a FiniteSum and 1 ≤ batch_size ≤ N.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_finite_sum(self.landscape)
        check_sampling(self.landscape.size, self.batch_size, self.sampling)

    @property
    def sampler(self) -> Sampling:
        """How the mini-batches are drawn."""
        return check_sampling(self.landscape.size, self.batch_size, self.sampling)

    def start(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """θ0 and the examples in their given order."""
        return theta0, self.sampler.first_order(theta0.shape[:-1], theta0.device)

    def step(self, state: tuple[Tensor, Tensor], k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """θ − h g_batch(θ)."""
        theta, order = state
        index, order = self.sampler.draw(order, k, generator)
        return torch.add(theta, self.landscape.batch_grad(theta, index), alpha=-self.h), order

    def position(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """θ."""
        return state[0]

    def full_batch(self) -> GradientDescent:
        """Gradient descent at the same learning rate."""
        return GradientDescent(self.landscape, self.h)

    def step_noise(self, theta: Tensor) -> Tensor:
        """h·√(c·tr D(θ)), shape (...,)."""
        return self.h * (self.sampler.variance_factor() * covariance_trace(self.landscape, theta)).sqrt()
