"""Momentum's modified equations: scaled maps on (x, v), reduced flows at a fixed momentum after the transient."""

import math

import numpy as np
import pytest
import sympy
import torch
from torch.testing import assert_close
from torchdiffeq import odeint

from flows import HeavyBall, HeavyBallPrincipalFlow, ModifiedFlow, descend
from flows.descents.momentum import Nesterov, ScaledHeavyBall, ScaledNesterov
from flows.invariants import check_batch, check_equivariance
from flows.models.momentum_modified import (
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    ReducedHeavyBallFlow,
    ReducedNesterovFlow,
)
from flows.orders.ladder import settled_order
from landscapes import Quadratic, Rosenbrock, from_sympy
from tests.flows.networks import tanh_network
from tests.flows.stepping import slopes
from tests.tensors import f64

X, Y = sympy.symbols("x y")
WAVES = from_sympy(sympy.sin(X + Y / 2) + X**4 / 4 + X * Y**2 / 2, (X, Y))
SCALED = {"heavy-ball": (ModifiedHeavyBallFlow, ScaledHeavyBall), "nesterov": (ModifiedNesterovFlow, ScaledNesterov)}
REDUCED = {"heavy-ball": (ReducedHeavyBallFlow, HeavyBall), "nesterov": (ReducedNesterovFlow, Nesterov)}


def advance(flow, state, t):
    """The flow's state after time t, tightly; from any velocity, not only from rest."""
    times = f64(0.0, t)
    return odeint(flow.velocity, state, times, method="dopri5", rtol=1e-13, atol=1e-14)[-1]


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_scaled_map_one_step_order(name, order):
    flow, descent = SCALED[name]
    state, friction = f64(0.7, -0.9, 0.4, 0.8), 0.7
    ladder = [0.2, 0.1, 0.05, 0.025]
    errors = []
    for h in ladder:
        moved = descent(WAVES, h, friction).step(state, 0, torch.Generator())
        errors.append(float((advance(flow(WAVES, h, friction, order), state, h) - moved).norm()))
    assert slopes(errors, ladder)[-1] == pytest.approx(order + 1, abs=0.15)


@pytest.mark.parametrize("name", SCALED)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_scaled_map_one_step_order_on_a_network(name, order):
    flow, descent = SCALED[name]
    net = tanh_network()
    v = torch.randn(net.dimension, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    state = torch.cat([3 * net.theta0, v])
    ladder = [0.2, 0.1, 0.05]
    errors = []
    for h in ladder:
        moved = descent(net, h, 0.5).step(state, 0, torch.Generator())
        errors.append(float((advance(flow(net, h, 0.5, order), state, h) - moved).norm()))
    assert slopes(errors, ladder)[-1] == pytest.approx(order + 1, abs=0.15)


def test_scaled_flows_are_the_printed_formulas(normal):
    landscape, h, mu = Rosenbrock(), 0.05, 0.6
    state = normal(0, 3, 4)
    x, v = state.split(2, dim=-1)
    point = landscape.expand(x)
    g, hv = point.grad, point.hvp(v)
    drift = v - h / 2 * (mu * v + g)
    for flow, sign in ((ModifiedHeavyBallFlow, -1), (ModifiedNesterovFlow, 1)):
        force = -mu * v - g - h / 2 * (mu**2 * v + mu * g + sign * hv)
        assert_close(flow(landscape, h, mu, 2).velocity(0.0, state), torch.cat([drift, force], dim=-1))
        assert_close(flow(landscape, h, mu, 1).velocity(0.0, state), torch.cat([v, -mu * v - g], dim=-1))


@pytest.mark.parametrize("name", SCALED)
def test_without_friction_the_order_zero_is_still_there(name):
    flow, descent = SCALED[name]
    state = f64(0.7, -0.9, 0.4, 0.8)
    ladder = [0.1, 0.05]
    gaps = [
        float(
            (
                advance(flow(WAVES, h, 0.0, 3), state, h) - descent(WAVES, h, 0.0).step(state, 0, torch.Generator())
            ).norm()
        )
        for h in ladder
    ]
    assert slopes(gaps, ladder)[0] == pytest.approx(4, abs=0.2)


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_reduced_one_step_order_after_the_transient(name, order):
    """β = 0.2: after 30 steps what is left of the start is 1e-21; every rung looks from where it is at t = 0.48."""
    flow, descent = REDUCED[name]
    ladder, errors = [0.016, 0.008, 0.004], []
    for h in ladder:
        run = descend(descent(WAVES, h, 0.2), f64(0.7, -0.9), round(0.48 / h) + 1)
        end = advance(flow(WAVES, h, 0.2, order), run.theta[-2], h)
        errors.append(float((end - run.theta[-1]).norm()))
    assert slopes(errors, ladder)[-1] == pytest.approx(order + 1, abs=0.1)


@pytest.mark.parametrize("name", REDUCED)
def test_settled_order_studies_the_step_after_the_transient(name):
    flow, descent = REDUCED[name]
    study = settled_order(
        lambda h: flow(WAVES, h, 0.2),
        lambda h: descent(WAVES, h, 0.2),
        f64(0.7, -0.9),
        [0.016, 0.008, 0.004],
        0.48,
    )
    assert study.order == pytest.approx(3, abs=0.1)
    run = descend(descent(WAVES, 0.004, 0.2), f64(0.7, -0.9), 121)
    end = advance(flow(WAVES, 0.004, 0.2), run.theta[-2], 0.004)
    assert study.errors[-1] == pytest.approx(float((end - run.theta[-1]).norm()), rel=1e-5)


def test_settled_order_hands_the_velocity_on():
    """A flow of position and velocity that is exact has no error but rounding, wherever it is taken up."""
    bowl = Quadratic(torch.diag(f64(2.0, 0.3)))
    study = settled_order(
        lambda h: HeavyBallPrincipalFlow(bowl, h, 0.5, branch="real"),
        lambda h: HeavyBall(bowl, h, 0.5),
        f64(1.0, 1.0),
        [0.2, 0.1],
        0.6,
    )
    assert max(study.errors) < 1e-12
    with pytest.raises(ValueError, match="whole number of steps"):
        settled_order(lambda h: None, lambda h: HeavyBall(bowl, h, 0.5), f64(1.0, 1.0), [0.2, 0.1], 0.5)


@pytest.mark.parametrize("name", REDUCED)
def test_from_rest_the_reduced_flow_is_off_by_the_transient(name):
    """The first step is −h∇f, the flow's −h∇f/(1 − β): the distance falls like h, whatever the order."""
    flow, descent = REDUCED[name]
    ladder, errors = [0.02, 0.01, 0.005], []
    for h in ladder:
        moved = descend(descent(WAVES, h, 0.5), f64(0.7, -0.9), 1).theta[-1]
        errors.append(float((advance(flow(WAVES, h, 0.5, 3), f64(0.7, -0.9), h) - moved).norm()))
    assert slopes(errors, ladder)[-1] == pytest.approx(1, abs=0.1)


def test_reduced_heavy_ball_is_the_published_modified_loss(normal):
    """Ghosh et al. 2023: −(1/(1 − β)) ∇[f + (h_eff/4)((1 + β)/(1 − β))‖∇f‖²], h_eff = h/(1 − β)."""
    landscape, h, beta, theta = Rosenbrock(), 0.01, 0.8, normal(0, 4, 2)
    point = landscape.expand(theta)
    gradient_of_square = 2 * point.hvp(point.grad)
    loss_gradient = point.grad + h / (1 - beta) / 4 * (1 + beta) / (1 - beta) * gradient_of_square
    assert_close(ReducedHeavyBallFlow(landscape, h, beta).velocity(0.0, theta), -loss_gradient / (1 - beta))
    factor = (1 - beta + 2 * beta**2) / (1 - beta)
    loss_gradient = point.grad + h / (1 - beta) / 4 * factor * gradient_of_square
    assert_close(ReducedNesterovFlow(landscape, h, beta).velocity(0.0, theta), -loss_gradient / (1 - beta))


@pytest.mark.parametrize("name", REDUCED)
@pytest.mark.parametrize("order", [1, 2, 5])
def test_without_momentum_the_reduced_flow_is_gradient_descents(name, order, normal):
    landscape, theta = Rosenbrock(), normal(0, 4, 2)
    reduced = REDUCED[name][0](landscape, 0.01, 0.0, order).velocity(0.0, theta)
    assert_close(reduced, ModifiedFlow(landscape, 0.01, order).velocity(0.0, theta), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", REDUCED)
def test_reduced_series_on_a_quadratic_is_the_slow_root(name):
    """Linear: the field's coefficient must tend to log(r)/h, r the root near 1, inside the radius and not outside."""
    beta, order = 0.25, 8
    inside, outside = 0.6, 1.5
    radius = REDUCED[name][0](Rosenbrock(), 0.1, beta, 2).radius
    expected = {"heavy-ball": 0.25, "nesterov": 0.36}[name]
    assert radius == pytest.approx(expected)

    def gap(x, order):
        flow = REDUCED[name][0](Quadratic(f64(x)[:, None]), 1.0, beta, order)
        middle = (1 + beta) * (1 - x) if name == "nesterov" else 1 + beta - x
        last = beta * (1 - x) if name == "nesterov" else beta
        root = (middle + np.emath.sqrt(middle**2 - 4 * last)) / 2
        return abs(float(flow.velocity(0.0, f64(1.0))) - np.log(complex(root)))

    assert gap(inside * radius, order) < 1e-2
    assert gap(inside * radius, order) < 0.2 * gap(inside * radius, order - 4)
    assert gap(outside * radius, order) > gap(outside * radius, order - 4)


@pytest.mark.parametrize("name", ["heavy-ball", "nesterov"])
def test_batches_and_coordinates(name, normal):
    check_batch(SCALED[name][0](WAVES, 0.1, 0.4, 4), normal(1, 3, 2), steps=2, dt=0.1)
    check_batch(REDUCED[name][0](WAVES, 0.02, 0.4, 3), normal(1, 3, 2), steps=2, dt=0.02)
    rotation = torch.linalg.qr(normal(2, 2, 2))[0]
    check_equivariance(lambda f: SCALED[name][0](f, 0.1, 0.4, 4), WAVES, normal(3, 5, 2), rotation)
    check_equivariance(lambda f: REDUCED[name][0](f, 0.1, 0.4, 4), WAVES, normal(3, 5, 2), rotation)


@pytest.mark.parametrize("name", ["heavy-ball", "nesterov"])
def test_arguments(name):
    with pytest.raises(ValueError, match="friction must be at most 1/h"):
        SCALED[name][0](WAVES, 0.1, 10.5, 2)
    with pytest.raises(ValueError, match="order must be at most 12"):
        SCALED[name][0](WAVES, 0.1, 1.0, 13)
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\)"):
        REDUCED[name][0](WAVES, 0.1, 1.0)
    assert math.isinf(REDUCED[name][0](WAVES, 0.1, 0.5, 1).radius)
