r"""Scaled momentum flows on the clock of torch.optim.SGD, with its iterates and its velocity.

The flows of ``momentum_modified`` and ``stochastic_momentum`` model  x' = x + h v',  v' = (1 − hμ)v − h∇f  on the clock
t = k·h. Torch's step at learning rate lr, momentum β and dampening τ moves θ by Δ' = βΔ − (1 − τ) lr ∇f, Δ = −lr·buf,
on the clock s = k·lr. With

    h = √((1 − τ) lr),   μ = (1 − β)/h,   v = Δ/h

it is the same step, since hv' = (1 − hμ)hv − h²∇f; and t = (h/lr) s. Hence dX/ds = (h/lr) a(X), and the noise becomes
√(h/lr) σ(X) dW(s). Nesterov's θ is the point of the gradient, θ = x + βΔ = x + hβv. Torch does not dampen the first
gradient, Δ_1 = −lr ∇f(θ0): a start with the velocity Δ_0 = −(τ/β) lr ∇f(θ0) in place of rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

from torch import Tensor

from flows.arguments import check_dampening, check_momentum, check_time
from flows.declared import MOMENTUM, Clock
from flows.flow import Flow, StochasticFlow
from landscapes.errors import check_flag, check_positive
from landscapes.noise.base import Kind

AGREE = 1e-9
"""Relative difference up to which h and momentum are those of torch's arguments."""


class TorchClock(Flow):
    """Base of the two: ``flow`` on torch's clock, ``h`` the learning rate lr. Raises ClockError at another h or μ."""

    flow: Flow
    h: float
    momentum: float
    nesterov: bool
    dampening: float

    def __post_init__(self) -> None:
        check_positive("h", self.h)
        check_momentum(self.momentum)
        check_dampening(self.dampening, self.momentum)
        if not isinstance(self.flow, Flow):
            raise TypeError(f"flow must be a Flow, got {type(self.flow).__name__}")
        check_scaling(self.flow, self.h, self.momentum, self.dampening)
        check_rule(self.flow, check_flag("nesterov", self.nesterov))

    @property
    def name(self) -> str:
        return self.flow.name

    @property
    def radius(self) -> float:
        return self.flow.radius

    @property
    def declared_clock(self) -> Clock:
        rule = "Nesterov" if self.nesterov else "heavy ball"
        return Clock(rule=rule, momentum=self.momentum, dampening=self.dampening)

    @property
    def root(self) -> float:
        """√((1 − τ) lr), the flow's own h."""
        return scaled_rate(self.h, self.dampening)

    @property
    def speed(self) -> float:
        """The flow's time per unit of torch's, √((1 − τ) lr)/lr."""
        return self.root / self.h

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The flow's, times the speed."""
        return self.speed * self.flow.velocity(self.speed * check_time(t), state)

    def start(self, theta0: Tensor) -> Tensor:
        """The flow's start at rest; with dampening, the velocity of torch's first, undamped gradient."""
        if self.dampening == 0:
            return self.flow.start(theta0)
        grad = self.declared_landscapes[0].grad(theta0)
        return self.resume(theta0, -self.h * self.dampening / self.momentum * grad)

    def resume(self, theta: Tensor, velocity: Tensor) -> Tensor:
        """The flow's state at torch's θ and the last step Δ = −lr·buf."""
        x = theta - self.momentum * velocity if self.nesterov else theta
        return self.flow.resume(x, velocity / self.root)

    def position(self, state: Tensor) -> Tensor:
        """Torch's θ (..., d): x, or for Nesterov x + hβv, v the second half of the state."""
        x = self.flow.position(state)
        return x + self.root * self.momentum * state.chunk(2, dim=-1)[1] if self.nesterov else x


@final
@dataclass(frozen=True)
class TorchMomentumFlow(TorchClock):
    r"""A scaled momentum flow, such as ``ModifiedHeavyBallFlow``, beside ``HeavyBall`` and ``Nesterov``: t = k·lr.

    dX/dt = c a(ct, X), c = √((1 − τ) lr)/lr, a the velocity of ``flow``; positions and velocities are torch's (formulas
    in ``flows.models.torch_clock``). ``h`` is torch's learning rate lr. Errors are of the flow's own order in √lr.
    ``momentum_from_torch`` makes it together with its descent.

    Raises ClockError unless the flow has h = √((1 − τ) lr) and friction (1 − β)/h, and ValueError unless ``nesterov``
    is the rule that it models.
    """

    flow: Flow
    h: float
    momentum: float
    nesterov: bool = False
    dampening: float = 0.0


@final
@dataclass(frozen=True)
class TorchMomentumEquation(TorchClock, StochasticFlow):
    r"""A scaled momentum equation, such as ``MomentumModifiedEquation``, beside ``StochasticHeavyBall``: t = k·lr.

    dX = c a dt + √c σ dW, c = √((1 − τ) lr)/lr, for the equation dX = a dt + σ dW of ``flow``, whose laws it has at the
    times ct. Arguments and errors as in ``TorchMomentumFlow``.
    """

    flow: StochasticFlow
    h: float
    momentum: float
    nesterov: bool = False
    dampening: float = 0.0

    @property
    def noise_kind(self) -> Kind:
        return self.flow.noise_kind

    @property
    def noise_period(self) -> float | None:
        period = self.flow.noise_period
        return None if period is None else period / self.speed

    @property
    def noise_size(self) -> int:
        return self.flow.noise_size

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """√c σ dw."""
        return math.sqrt(self.speed) * self.flow.diffusion(self.speed * check_time(t), state, dw)

    def rate(self, t: float | Tensor, state: Tensor, dw_over_dt: Tensor) -> Tensor:
        """c times the flow's, whose Brownian motion has the increments √c dw in the time c dt."""
        return self.speed * self.flow.rate(self.speed * t, state, dw_over_dt / math.sqrt(self.speed))

    def ito_correction(self, t: float | Tensor, state: Tensor) -> Tensor:
        return self.speed * self.flow.ito_correction(self.speed * t, state)


class ClockError(ValueError):
    """A flow on another clock than its descent, and no conversion for its h and friction."""


def scaled_rate(lr: float, dampening: float = 0.0) -> float:
    """h = √((1 − τ) lr)."""
    return math.sqrt((1 - dampening) * lr)


def check_scaling(flow: Flow, lr: float, momentum: float, dampening: float) -> None:
    """Raise ClockError unless a flow of scaled momentum has h = √((1 − τ) lr) and momentum 1 − hμ = β."""
    clock, h = flow.declared_clock, flow.declared_rate
    root = scaled_rate(lr, dampening)
    known = clock is not None and clock.unit == "√lr" and h is not None
    if known and math.isclose(h, root, rel_tol=AGREE) and abs(clock.momentum - momentum) <= AGREE:  # type: ignore
        return
    damped = "((1 − dampening)·lr)" if dampening else "lr"
    given = "none" if clock is None or h is None else f"h = {h!r}, momentum {clock.momentum:.6g}, unit {clock.unit}"
    raise ClockError(
        f"{flow.name} must be on the clock of scaled momentum, h = √{damped}, μ = (1 − β)/√{damped}: for lr = "
        f"{lr!r} and β = {momentum!r} that is h = {root:.6g} and friction = {(1 - momentum) / root:.6g}; it states "
        f"{given}; momentum_from_torch makes the pair"
    )


def check_rule(flow: Flow, nesterov: bool) -> None:
    """Raise ValueError if a flow of scaled momentum states the other rule than ``nesterov`` says."""
    clock = flow.declared_clock
    if clock is not None and clock.rule in MOMENTUM and (clock.rule == "Nesterov") != nesterov:
        raise ValueError(
            f"nesterov must be {not nesterov} for {flow.name}, which models {clock.rule}, got {nesterov!r}: positions "
            "are those of its own rule"
        )
