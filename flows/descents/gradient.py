"""Gradient descent and heavy ball in the arithmetic of torch.optim: equal to it bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import at_rest, check_dampening, check_model, check_momentum
from flows.declared import Clock
from flows.descent import Descent
from landscapes import Landscape


@final
@dataclass(frozen=True)
class GradientDescent(Descent):
    r"""Gradient descent  θ_{k+1} = θ_k − h ∇f(θ_k); state θ (..., d)."""

    landscape: Landscape
    h: float

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def step(self, state: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """θ − h∇f(θ)."""
        # As torch.optim: with alpha, product and sum are one operation, and may differ in the last bit from two.
        return torch.add(state, self.landscape.grad(state), alpha=-self.h)


@final
@dataclass(frozen=True)
class HeavyBall(Descent):
    r"""Heavy ball  p_{k+1} = β p_k + (1 − τ)∇f(θ_k),  θ_{k+1} = θ_k − h p_{k+1}; state (θ, p), p_0 = (τ/β)∇f(θ_0).

    This is torch.optim.SGD(momentum=β, dampening=τ); without dampening it starts at rest, equal to torch bit by bit.
    Torch does not dampen the first gradient, p_1 = ∇f(θ_0): with τ the run is heavy ball at the rate (1 − τ)h with a
    start that is not at rest, p_0, which costs one gradient; equal to torch up to rounding.

    The literature's velocity is v = −h p. Polyak 1964. The clock is t = k·h. Raises ValueError unless 0 ≤ momentum < 1
    and dampening < 1, or for a dampening without momentum, which torch ignores.
    """

    landscape: Landscape
    h: float
    momentum: float
    dampening: float = 0.0

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_momentum(self.momentum)
        check_dampening(self.dampening, self.momentum)

    @property
    def declared_clock(self) -> Clock:
        return Clock(rule="heavy ball", momentum=self.momentum, dampening=self.dampening)

    def start(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """(θ0, p_0)."""
        if self.dampening == 0:
            return theta0, at_rest(theta0)
        return theta0, self.dampening / self.momentum * self.landscape.grad(theta0)

    def step(self, state: tuple[Tensor, Tensor], k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(θ − h p', p') with p' = βp + (1 − τ)∇f(θ)."""
        theta, buffer = state
        grad = self.landscape.grad(theta)
        buffer = torch.add(torch.mul(buffer, self.momentum), grad, alpha=1 - self.dampening)
        return torch.add(theta, buffer, alpha=-self.h), buffer

    def position(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]

    def velocity(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """v = −h p, the last step."""
        return -self.h * state[1]
