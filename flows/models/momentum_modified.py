r"""Modified equations of momentum, in two scalings.

Scaled: with learning rate h² and momentum β = 1 − hμ one step changes (x, v) by O(h), and its modified equation is a
series in h on position and velocity. Reduced: at a fixed β one step on (θ, v) is not near the identity and no such
series exists; but once the initial transient, of size β^k, has decayed, θ alone follows a field that is a series in h.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import final

import torch
from torch import Tensor

from flows.arguments import at_rest, check_friction, check_model, check_momentum, halves
from flows.declared import Clock
from flows.flow import Flow
from flows.models.modified import check_order
from flows.series import (
    HEAVY_BALL,
    NESTEROV,
    ExplicitMethod,
    Multistep,
    Program,
    heavy_ball_multistep,
    nesterov_multistep,
)
from flows.series.landscape import landscape_program
from landscapes import Landscape


class ScaledMomentumFlow(Flow):
    """Base of the two scaled flows: state (x, v) (..., 2d), starting at rest, (θ0, 0); t = k·h."""

    h: float
    friction: float
    order: int
    method: ExplicitMethod

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_friction(self.friction, self.h)
        check_order(self.order, self.landscape, self)

    @property
    def name(self) -> str:
        return f"{type(self).__name__} order {self.order}"

    @property
    def declared_clock(self) -> Clock:
        return Clock("√lr", "Nesterov" if self.method is NESTEROV else "heavy ball", 1 - self.h * self.friction)

    def start(self, theta0: Tensor) -> Tensor:
        """(θ0, 0)."""
        return torch.cat([theta0, at_rest(theta0)], dim=-1)

    def resume(self, theta: Tensor, velocity: Tensor) -> Tensor:
        """(θ, v)."""
        return torch.cat([theta, velocity], dim=-1)

    def position(self, state: Tensor) -> Tensor:
        return halves(state, self.landscape.dimension)[0]

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """(ẋ, v̇), shape (..., 2d)."""
        x, v = halves(state, self.landscape.dimension)
        program = landscape_program(self.method, self.order, self.h, self.friction)
        return torch.cat(program(self.landscape.expand(x), v=v), dim=-1)


@final
@dataclass(frozen=True)
class ModifiedHeavyBallFlow(ScaledMomentumFlow):
    r"""Modified flow of order p of scaled heavy ball  v' = v − h(μv + ∇f(x)),  x' = x + hv';  μ = ``friction``.

        ẋ = v − (h/2)(μv + ∇f) + …,      v̇ = −μv − ∇f − (h/2)(μ²v + μ∇f − Hv) + …

    Order 1 is Newton's equation with friction. One-step error O(h^{p+1}) against ``ScaledHeavyBall``, which is
    torch's heavy ball with learning rate h² and momentum 1 − hμ. The flow's clock is that of the descent, t = k·h.

    Raises ValueError unless 0 ≤ hμ ≤ 1, or for an order above 12. Source: Hairer, Lubich & Wanner, ch. IX.
    """

    landscape: Landscape
    h: float
    friction: float
    order: int
    method = HEAVY_BALL


@final
@dataclass(frozen=True)
class ModifiedNesterovFlow(ScaledMomentumFlow):
    r"""Modified flow of order p of scaled Nesterov  v' = (1 − hμ)v − h∇f(x + h(1 − hμ)v),  x' = x + hv'.

        ẋ = v − (h/2)(μv + ∇f) + …,      v̇ = −μv − ∇f − (h/2)(μ²v + μ∇f + Hv) + …

    Order 1 equals heavy ball's; at order 2 the look-ahead reverses the sign of the Hv term, so that curvature damps
    instead of exciting. One-step error O(h^{p+1}) against ``ScaledNesterov``. Errors and source as in
    ModifiedHeavyBallFlow.
    """

    landscape: Landscape
    h: float
    friction: float
    order: int
    method = NESTEROV


class ReducedMomentumFlow(Flow):
    """Base of the two flows at fixed momentum: state θ (..., d)."""

    h: float
    momentum: float
    order: int

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_momentum(self.momentum)
        check_order(self.order, self.landscape, self)

    @property
    def name(self) -> str:
        return f"{type(self).__name__} order {self.order}"


@final
@dataclass(frozen=True)
class ReducedHeavyBallFlow(ReducedMomentumFlow):
    r"""Modified flow of heavy ball at a fixed momentum β, after the initial transient β^k, cut after h^{p−1}.

        θ̇ = −(1/(1 − β)) [∇f + (h_eff/2) ((1 + β)/(1 − β)) H∇f] + …,      h_eff = h/(1 − β),

    at order 2 the gradient flow of f + (h_eff/4)((1 + β)/(1 − β))‖∇f‖² on the clock t/(1 − β). It is the modified
    equation of the smooth solution of θ_{k+1} − (1 + β)θ_k + βθ_{k−1} = −h∇f(θ_k), on the clock t = k·h of
    ``HeavyBall``. One-step error on that solution O(h^{p+1}); a start from rest is O(h) away from it, with error O(h).
    The series converges for |hλ| < (1 − √β)².

    Raises ValueError unless 0 ≤ β < 1, or for an order above 12. Source of order 2: Ghosh et al. 2023, 2302.00849.
    """

    landscape: Landscape
    h: float
    momentum: float
    order: int = 2

    @property
    def radius(self) -> float:
        """(1 − √β)², the double root of a mode; order 1 has one term."""
        return math.inf if self.order == 1 else (1 - math.sqrt(self.momentum)) ** 2

    @property
    def declared_clock(self) -> Clock:
        return Clock(rule="heavy ball", momentum=self.momentum)

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The field at θ, shape (..., d)."""
        program = reduced_program(heavy_ball_multistep, self.momentum, self.order, self.h)
        return program(self.landscape.expand(state))[0]


@final
@dataclass(frozen=True)
class ReducedNesterovFlow(ReducedMomentumFlow):
    r"""Modified flow of Nesterov's look-ahead points at a fixed momentum β, after the initial transient.

        θ̇ = −(1/(1 − β)) [∇f + (h_eff/2) ((1 − β + 2β²)/(1 − β)) H∇f] + …,      h_eff = h/(1 − β)

    It is the modified equation of the smooth solution of
    y_{k+1} − (1 + β)y_k + βy_{k−1} = −h[(1 + β)∇f(y_k) − β∇f(y_{k−1})]; torch.optim's θ is y. The series converges for
    |hλ| < ((1 − β)/(1 + β))². Orders, clock and errors as in ReducedHeavyBallFlow.
    """

    landscape: Landscape
    h: float
    momentum: float
    order: int = 2

    @property
    def radius(self) -> float:
        """((1 − β)/(1 + β))², the double root of a mode; order 1 has one term."""
        return math.inf if self.order == 1 else ((1 - self.momentum) / (1 + self.momentum)) ** 2

    @property
    def declared_clock(self) -> Clock:
        return Clock(rule="Nesterov", momentum=self.momentum)

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The field at θ, shape (..., d)."""
        program = reduced_program(nesterov_multistep, self.momentum, self.order, self.h)
        return program(self.landscape.expand(state))[0]


@lru_cache(maxsize=256)
def reduced_program(method: Callable[[Fraction], Multistep], momentum: float, order: int, h: float) -> Program:
    """The reduced field as products."""
    # Fraction takes the binary value of β: its exact rational, not the decimal that was written.
    return landscape_program(method(Fraction(momentum)), order, h)
