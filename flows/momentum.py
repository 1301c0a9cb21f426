"""``momentum_from_torch``: the descent and the flow of torch.optim.SGD's arguments, on one clock."""

from __future__ import annotations

from flows.arguments import check_momentum, check_nesterov
from flows.descent import Descent
from flows.descents.gradient import GradientDescent, HeavyBall
from flows.descents.momentum import Nesterov
from flows.descents.stochastic import StochasticGradientDescent
from flows.descents.stochastic_momentum import StochasticHeavyBall
from flows.flow import Flow
from flows.models.modified import ModifiedFlow
from flows.models.momentum_modified import ModifiedHeavyBallFlow, ModifiedNesterovFlow
from flows.models.stochastic import StochasticModifiedEquation
from flows.models.stochastic_momentum import MomentumModifiedEquation
from flows.models.torch_clock import TorchMomentumEquation, TorchMomentumFlow, scaled_rate
from landscapes import FiniteSum, Landscape, UnsupportedError
from landscapes.errors import check_positive
from landscapes.landscape import check_finite_sum, check_landscape


def momentum_from_torch(
    landscape: Landscape,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    dampening: float = 0.0,
    *,
    batch_size: int | None = None,
    sampling: str = "replacement",
    order: int = 2,
) -> tuple[Descent, Flow]:
    r"""The pair (descent, flow) of torch.optim.SGD(lr, momentum, dampening, nesterov=...), both on the clock t = k·lr.

    The descent has torch's iterates θ_k; the flow is the modified flow of ``order`` in h = √((1 − τ) lr) at friction
    μ = (1 − β)/h, brought to that clock (``TorchMomentumFlow``): one-step error O(h^{order+1}), in θ and in h·v. With
    ``batch_size`` the pair is stochastic, drawn by ``sampling``, and the flow's orders are 1 and 2. Without momentum,
    it is gradient descent or SGD with ``ModifiedFlow`` or ``StochasticModifiedEquation``; torch then ignores dampening.

    Raises ValueError or TypeError for arguments that torch refuses too (Nesterov without momentum or with dampening),
    or unless 0 ≤ momentum < 1 and dampening < 1; UnsupportedError for ``batch_size`` with Nesterov or with dampening:
    torch's first mini-batch gradient is not damped, so that the start would depend on the mini-batch.
    """
    check_landscape(landscape)
    check_positive("lr", lr)
    check_momentum(momentum)
    check_nesterov(nesterov, momentum, dampening)
    if batch_size is not None:
        return stochastic_pair(
            check_finite_sum(landscape), lr, momentum, nesterov, dampening, batch_size, sampling, order
        )
    if momentum == 0:
        return GradientDescent(landscape, lr), ModifiedFlow(landscape, lr, order)
    if nesterov:
        h = scaled_rate(lr)
        flow: Flow = ModifiedNesterovFlow(landscape, h, (1 - momentum) / h, order)
        return Nesterov(landscape, lr, momentum), TorchMomentumFlow(flow, lr, momentum, nesterov=True)
    descent = HeavyBall(landscape, lr, momentum, dampening)  # its checks come first: the root needs τ < 1
    h = scaled_rate(lr, dampening)
    flow = ModifiedHeavyBallFlow(landscape, h, (1 - momentum) / h, order)
    return descent, TorchMomentumFlow(flow, lr, momentum, dampening=dampening)


def stochastic_pair(
    landscape: FiniteSum,
    lr: float,
    momentum: float,
    nesterov: bool,
    dampening: float,
    batch_size: int,
    sampling: str,
    order: int,
) -> tuple[Descent, Flow]:
    """The pair for mini-batches; raise UnsupportedError for Nesterov and dampening."""
    if momentum == 0:
        descent = StochasticGradientDescent(landscape, lr, batch_size, sampling)
        return descent, StochasticModifiedEquation(landscape, lr, batch_size, order, sampling)
    if nesterov:
        raise UnsupportedError(
            "there is no stochastic equation of Nesterov's momentum: leave batch_size or nesterov out"
        )
    if dampening != 0:
        raise UnsupportedError(
            f"dampening must be 0 with batch_size, got {dampening!r}: torch does not dampen the first mini-batch "
            "gradient, so that the velocity at the start depends on that mini-batch; use the rate (1 - dampening)·lr "
            "without dampening, which starts at rest"
        )
    h = scaled_rate(lr)
    equation = MomentumModifiedEquation(landscape, h, (1 - momentum) / h, batch_size, order, sampling)
    heavy_ball = StochasticHeavyBall(landscape, lr, momentum, batch_size, sampling)
    return heavy_ball, TorchMomentumEquation(equation, lr, momentum)
