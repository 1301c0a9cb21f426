r"""Nesterov's momentum in torch.optim's form, and heavy ball and Nesterov scaled with momentum as friction.

Heavy ball and Nesterov at learning rate h² and momentum β = 1 − hμ change position and velocity by O(h) a step, and
tend to ẍ + μẋ + ∇f = 0 as h → 0: the scaled descents. Their clock is t = k·h, h the square root of the learning rate.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import at_rest, check_friction, check_model, check_momentum
from flows.declared import Clock
from flows.descent import Descent
from landscapes import Landscape


@final
@dataclass(frozen=True)
class Nesterov(Descent):
    r"""Nesterov's momentum  p_{k+1} = β p_k + ∇f(θ_k),  θ_{k+1} = θ_k − h (∇f(θ_k) + β p_{k+1}); state (θ, p), p_0 = 0.

    This is torch.optim.SGD(momentum=β, nesterov=True). The literature's

        v_{k+1} = β v_k − h ∇f(x_k + β v_k),  x_{k+1} = x_k + v_{k+1}

    is the same run with v = −h p and θ = x + βv, the point of the gradient. Both start at θ0 at rest. Nesterov 1983;
    Sutskever et al. 2013. The clock is t = k·h. Raises ValueError unless 0 ≤ momentum < 1.
    """

    landscape: Landscape
    h: float
    momentum: float

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_momentum(self.momentum)

    @property
    def declared_clock(self) -> Clock:
        return Clock(rule="Nesterov", momentum=self.momentum)

    def start(self, theta0: Tensor) -> tuple[Tensor, Tensor]:
        """(θ0, 0)."""
        return theta0, at_rest(theta0)

    def step(self, state: tuple[Tensor, Tensor], k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(θ − h(∇f(θ) + βp'), p') with p' = βp + ∇f(θ)."""
        theta, buffer = state
        grad = self.landscape.grad(theta)
        buffer = torch.add(torch.mul(buffer, self.momentum), grad)
        return torch.add(theta, torch.add(grad, buffer, alpha=self.momentum), alpha=-self.h), buffer

    def position(self, state: tuple[Tensor, Tensor]) -> Tensor:
        return state[0]

    def velocity(self, state: tuple[Tensor, Tensor]) -> Tensor:
        """v = −h p, the last step of x."""
        return -self.h * state[1]


class ScaledDescent(Descent):
    """Base of the two scaled descents: state (x, v) as one tensor (..., 2d), starting at rest, (θ0, 0)."""

    h: float
    friction: float

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_friction(self.friction, self.h)

    @abstractmethod
    def force(self, x: Tensor, kept: Tensor) -> Tensor:
        """The gradient that changes the velocity, given x and (1 − hμ)v; all (..., d)."""

    def start(self, theta0: Tensor) -> Tensor:
        """(θ0, 0)."""
        return torch.cat([theta0, at_rest(theta0)], dim=-1)

    def step(self, state: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """(x + hv', v') with v' = (1 − hμ)v − h·force."""
        x, v = state.chunk(2, dim=-1)
        kept = torch.mul(v, 1 - self.h * self.friction)
        v = torch.add(kept, self.force(x, kept), alpha=-self.h)
        return torch.cat([torch.add(x, v, alpha=self.h), v], dim=-1)

    def position(self, state: Tensor) -> Tensor:
        return state.chunk(2, dim=-1)[0]

    def velocity(self, state: Tensor) -> Tensor:
        return state.chunk(2, dim=-1)[1]


@final
@dataclass(frozen=True)
class ScaledHeavyBall(ScaledDescent):
    r"""Heavy ball with friction μ  v' = v − h(μv + ∇f(x)),  x' = x + h v'; state (x, v) (..., 2d), v_0 = 0.

    Up to rounding this is ``HeavyBall`` at learning rate h² and momentum 1 − hμ, with v = −h p. At μ = 0 it is
    symplectic Euler and conserves a modified energy. The clock is t = k·h.
    Raises ValueError unless 0 ≤ friction ≤ 1/h.
    """

    landscape: Landscape
    h: float
    friction: float

    @property
    def declared_clock(self) -> Clock:
        return Clock("√lr", "heavy ball", 1 - self.h * self.friction)

    def force(self, x: Tensor, kept: Tensor) -> Tensor:
        """∇f(x)."""
        return self.landscape.grad(x)


@final
@dataclass(frozen=True)
class ScaledNesterov(ScaledDescent):
    r"""Nesterov's momentum with friction μ  v' = (1−hμ)v − h∇f(x + h(1−hμ)v),  x' = x + h v'; state (x, v) (..., 2d).

    Up to rounding this is ``Nesterov`` at learning rate h² and momentum β = 1 − hμ, with v = −h p and x = θ − hβv: x is
    the literature's iterate, θ the point where torch takes the gradient. v_0 = 0. The clock is t = k·h.
    Raises ValueError unless 0 ≤ friction ≤ 1/h.
    """

    landscape: Landscape
    h: float
    friction: float

    @property
    def declared_clock(self) -> Clock:
        return Clock("√lr", "Nesterov", 1 - self.h * self.friction)

    def force(self, x: Tensor, kept: Tensor) -> Tensor:
        """∇f(x + h(1 − hμ)v)."""
        return self.landscape.grad(torch.add(x, kept, alpha=self.h))
