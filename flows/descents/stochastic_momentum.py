r"""Heavy ball on mini-batch gradients: in torch.optim's form, and scaled with momentum as friction."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import at_rest, check_friction, check_momentum
from flows.declared import Clock
from flows.descent import MinibatchDescent
from flows.descents.gradient import HeavyBall
from flows.descents.momentum import ScaledHeavyBall
from landscapes import FiniteSum


@dataclass(frozen=True)
class MomentumState:
    """θ (..., d), the buffer or the velocity (..., d), and the order of the examples."""

    theta: Tensor
    momentum: Tensor
    order: Tensor


class MomentumDescent(MinibatchDescent):
    """Base of the two stochastic heavy balls: starts at rest and draws one mini-batch per step."""

    def start(self, theta0: Tensor) -> MomentumState:
        """θ0 at rest, and the first order of the examples."""
        return MomentumState(theta0, at_rest(theta0), self.first_order(theta0))

    def gradient(self, state: MomentumState, k: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """g_B(θ) of the mini-batch of step k, and the order of the examples for the next step."""
        index, order = self.sampler.draw(state.order, k, generator)
        return self.landscape.batch_grad(state.theta, index), order

    def position(self, state: MomentumState) -> Tensor:
        return state.theta


@final
@dataclass(frozen=True)
class StochasticHeavyBall(MomentumDescent):
    r"""SGD with momentum  p_{k+1} = β p_k + g_B(θ_k),  θ_{k+1} = θ_k − h p_{k+1},  p_0 = 0.

    This is torch.optim.SGD(momentum=β) on the same mini-batches, drawn as in ``StochasticGradientDescent``; the
    literature's velocity is v = −h p. A step costs b/N of a gradient. The clock is t = k·h. Raises TypeError or
    ValueError for invalid arguments, such as a momentum outside [0, 1).
    """

    landscape: FiniteSum
    h: float
    momentum: float
    batch_size: int
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        self.check_minibatches()
        check_momentum(self.momentum)

    @property
    def declared_clock(self) -> Clock:
        return Clock(rule="heavy ball", momentum=self.momentum)

    @property
    def couples(self) -> bool:
        """False: its equation is on the clock of ``ScaledStochasticHeavyBall``."""
        return False

    def step(self, state: MomentumState, k: int, generator: torch.Generator) -> MomentumState:
        """(θ − h p', p') with p' = βp + g_B(θ)."""
        grad, order = self.gradient(state, k, generator)
        buffer = torch.add(torch.mul(state.momentum, self.momentum), grad)
        return MomentumState(torch.add(state.theta, buffer, alpha=-self.h), buffer, order)

    def velocity(self, state: MomentumState) -> Tensor:
        """v = −h p, the last step."""
        return -self.h * state.momentum

    def full_batch(self) -> HeavyBall:
        """Heavy ball at the same rate and momentum: the mean of a step from a state of the same velocity."""
        return HeavyBall(self.landscape, self.h, self.momentum)

    def mean_state(self, state: MomentumState) -> tuple[Tensor, Tensor]:
        """(θ, p)."""
        return state.theta, state.momentum


@final
@dataclass(frozen=True)
class ScaledStochasticHeavyBall(MomentumDescent):
    r"""Heavy ball with friction μ on mini-batches  v' = v − h(μv + g_B(x)),  x' = x + h v',  v_0 = 0.

    Up to rounding this is ``StochasticHeavyBall`` at learning rate h² and momentum 1 − hμ, with v = −h p; with the full
    gradient it is ``ScaledHeavyBall``. As h → 0 at fixed μ it tends to dV = −(μV + ∇f) dt + √h σ(X) dW, dX = V dt (Li,
    Tai & E 2017, arXiv 1511.06251). A step costs b/N of a gradient. The clock is t = k·h, h the square root of the
    learning rate. Raises TypeError or ValueError for invalid arguments, such as a friction outside [0, 1/h].
    """

    landscape: FiniteSum
    h: float
    friction: float
    batch_size: int
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        self.check_minibatches()
        check_friction(self.friction, self.h)

    @property
    def declared_clock(self) -> Clock:
        return Clock("√lr", "heavy ball", 1 - self.h * self.friction)

    def step(self, state: MomentumState, k: int, generator: torch.Generator) -> MomentumState:
        """(x + hv', v') with v' = (1 − hμ)v − h g_B(x)."""
        grad, order = self.gradient(state, k, generator)
        v = torch.add(torch.mul(state.momentum, 1 - self.h * self.friction), grad, alpha=-self.h)
        return MomentumState(torch.add(state.theta, v, alpha=self.h), v, order)

    def velocity(self, state: MomentumState) -> Tensor:
        return state.momentum

    def full_batch(self) -> ScaledHeavyBall:
        """The same step with the full gradient: the mean of a step from a state of the same velocity."""
        return ScaledHeavyBall(self.landscape, self.h, self.friction)

    def mean_state(self, state: MomentumState) -> Tensor:
        """(x, v) in one tensor."""
        return torch.cat([state.theta, state.momentum], dim=-1)

    def step_noise(self, theta: Tensor) -> Tensor:
        """h²·√(c·tr D(θ)), that of x, independent of the velocity, shape (...,)."""
        return self.h**2 * self.gradient_noise(theta)
