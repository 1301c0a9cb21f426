"""Stochastic gradient descent: the gradient of a mini-batch in place of the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.declared import Clock
from flows.descent import MinibatchDescent
from flows.descents.gradient import GradientDescent
from landscapes import FiniteSum


@final
@dataclass(frozen=True)
class StochasticGradientDescent(MinibatchDescent):
    r"""SGD  θ_{k+1} = θ_k − h (1/b) Σ_{i∈B_k} ∇f_i(θ_k); state (θ, order of the examples).

    ``sampling``: "replacement" (independent draws), "subset" (b different examples, steps independent) or "epoch" (a
    reshuffled pass; the last, short batch keeps its true size). Batch members draw their own examples. One step costs
    b/N of a gradient. Raises unless the landscape is a FiniteSum and 1 ≤ batch_size ≤ N.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    sampling: str = "replacement"

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def start(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """θ0 and the first order of the examples."""
        return theta0, self.first_order(theta0)

    def step(self, state: tuple[Tensor, Tensor], k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """θ − h g_batch(θ)."""
        theta, order = state
        index, order = self.sampler.draw(order, k, generator)
        return torch.add(theta, self.landscape.batch_grad(theta, index), alpha=-self.h), order

    def position(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]

    def full_batch(self) -> GradientDescent:
        """Gradient descent at the same learning rate."""
        return GradientDescent(self.landscape, self.h)
