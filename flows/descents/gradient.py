"""Gradient descent and heavy ball in the arithmetic of torch.optim: equal to it bit by bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model, check_momentum
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

    def step(self, state: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """θ − h∇f(θ)."""
        # As torch.optim: with alpha, product and sum are one operation, and may differ in the last bit from two.
        return torch.add(state, self.landscape.grad(state), alpha=-self.h)


@final
@dataclass(frozen=True)
class HeavyBall(Descent):
    r"""Heavy ball  p_{k+1} = β p_k + ∇f(θ_k),  θ_{k+1} = θ_k − h p_{k+1}; state (θ, p), p_0 = 0.

    This is torch.optim.SGD(momentum=β); the literature's velocity is v = −h p. Polyak 1964. The clock is t = k·h.
    Raises ValueError unless 0 ≤ momentum < 1.
    """

    landscape: Landscape
    h: float
    momentum: float

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_momentum(self.momentum)

    def start(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """(θ0, 0)."""
        return theta0, torch.zeros_like(theta0)

    def step(self, state: tuple[Tensor, Tensor], k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(θ − h p', p') with p' = βp + ∇f(θ)."""
        theta, buffer = state
        buffer = torch.add(torch.mul(buffer, self.momentum), self.landscape.grad(theta))
        return torch.add(theta, buffer, alpha=-self.h), buffer

    def position(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]

    def velocity(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """v = −h p, the last step."""
        return -self.h * state[1]
