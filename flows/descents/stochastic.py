r"""Stochastic gradient descent and the three ways of drawing its mini-batches."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.descents.gradient import GradientDescent
from flows.flow import StochasticDescent
from flows.models.arguments import check_model
from landscapes import FiniteSum
from landscapes.errors import check_choice, check_count
from landscapes.noise import covariance_trace


@dataclass(frozen=True)
class Sampling(ABC):
    """How mini-batches of b out of N examples are drawn; each batch member draws its own."""

    size: int
    batch_size: int

    @abstractmethod
    def draw(self, order: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The examples (..., m) of step k, and the order (..., N) that the next step takes up."""

    def variance_factor(self) -> float:
        """c in Cov(g_batch) = c·D, D the centred covariance of the examples' gradients."""
        # A batch without replacement, of an epoch or not: (1/b)(N − b)/(N − 1), zero for the full batch.
        return 0.0 if self.size == 1 else (self.size - self.batch_size) / (self.size - 1) / self.batch_size

    def permutation(self, order: Tensor, generator: torch.Generator) -> Tensor:
        """A uniform permutation (..., N) for each batch member."""
        return torch.rand(order.shape, generator=generator, device=order.device, dtype=torch.float64).argsort(dim=-1)


@final
@dataclass(frozen=True)
class Replacement(Sampling):
    """Each example drawn uniformly and independently: Cov = D/b."""

    def draw(self, order: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """b independent draws."""
        shape = (*order.shape[:-1], self.batch_size)
        return torch.randint(self.size, shape, generator=generator, device=order.device), order

    def variance_factor(self) -> float:
        """1/b."""
        return 1 / self.batch_size


@final
@dataclass(frozen=True)
class Subset(Sampling):
    """A fresh subset of b different examples at each step: Cov = (D/b)(N − b)/(N − 1)."""

    def draw(self, order: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """b different examples, independent of the step before."""
        return self.permutation(order, generator)[..., : self.batch_size], order


@final
@dataclass(frozen=True)
class Epoch(Sampling):
    """A reshuffled pass over all examples; the last batch of an epoch is short where b does not divide N."""

    def draw(self, order: Tensor, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The next b examples of the current epoch's order."""
        place = k % math.ceil(self.size / self.batch_size)
        order = self.permutation(order, generator) if place == 0 else order
        return order[..., place * self.batch_size : (place + 1) * self.batch_size], order


SAMPLINGS: dict[str, type[Sampling]] = {"replacement": Replacement, "subset": Subset, "epoch": Epoch}


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
        if not isinstance(self.landscape, FiniteSum):
            raise TypeError(
                f"landscape must be a FiniteSum, which knows its examples, got {type(self.landscape).__name__}; "
                "use GradientDescent for a loss without examples"
            )
        if check_count("batch_size", self.batch_size) > self.landscape.size:
            raise ValueError(
                f"batch_size must be at most the number of examples, {self.landscape.size}, got {self.batch_size}"
            )
        check_choice("sampling", self.sampling, tuple(SAMPLINGS))

    @property
    def _sampling(self) -> Sampling:
        return SAMPLINGS[self.sampling](self.landscape.size, self.batch_size)

    def start(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """θ0 and the examples in their given order."""
        examples = torch.arange(self.landscape.size, device=theta0.device)
        return theta0, examples.expand(*theta0.shape[:-1], -1)

    def step(self, state: tuple[Tensor, Tensor], k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """θ − h g_batch(θ)."""
        theta, order = state
        index, order = self._sampling.draw(order, k, generator)
        return torch.add(theta, self.landscape.batch_grad(theta, index), alpha=-self.h), order

    def position(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """θ."""
        return state[0]

    def full_batch(self) -> GradientDescent:
        """Gradient descent at the same learning rate."""
        return GradientDescent(self.landscape, self.h)

    def step_noise(self, theta: Tensor) -> Tensor:
        """h·√(c·tr D(θ)), shape (...,)."""
        return self.h * (self._sampling.variance_factor() * covariance_trace(self.landscape, theta)).sqrt()
