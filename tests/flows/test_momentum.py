"""momentum_from_torch: a descent with torch.optim.SGD's iterates, and a flow of the stated order on the same clock."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import (
    GradientDescent,
    ModifiedFlow,
    StochasticGradientDescent,
    StochasticHeavyBall,
    StochasticModifiedEquation,
    TorchMomentumEquation,
    TorchMomentumFlow,
    compare,
    descend,
    integrate,
    momentum_from_torch,
)
from landscapes import LinearRegression, Quadratic, Rosenbrock, UnsupportedError
from tests.tensors import draw

VALLEY = Rosenbrock(b=5.0)
START = torch.tensor([-0.5, 0.7], dtype=torch.float64)
ARGUMENTS = [
    {},
    {"momentum": 0.9},
    {"momentum": 0.9, "nesterov": True},
    {"momentum": 0.8, "dampening": 0.3},
    {"momentum": 0.8, "dampening": 0.8},
    {"momentum": 0.5, "dampening": -0.5},
    {"momentum": 0.0, "dampening": 0.5},
]


def by_torch(landscape, theta0, steps, lr, **arguments):
    """The iterates of torch.optim.SGD."""
    parameter = torch.nn.Parameter(theta0.clone())
    optimizer, iterates = torch.optim.SGD([parameter], lr=lr, **arguments), [theta0]
    for _ in range(steps):
        parameter.grad = landscape.grad(parameter.detach())
        optimizer.step()
        iterates.append(parameter.detach().clone())
    return torch.stack(iterates)


@pytest.mark.parametrize("arguments", ARGUMENTS)
def test_the_descent_has_torchs_iterates(arguments):
    descent, flow = momentum_from_torch(VALLEY, 0.02, **arguments)
    run = descend(descent, START, 30)
    assert_close(run.theta, by_torch(VALLEY, START, 30, 0.02, **arguments), rtol=1e-13, atol=1e-15)
    assert_close(run.times, 0.02 * torch.arange(31, dtype=torch.float64))
    assert flow.declared_rate == descent.declared_rate == 0.02


@given(
    st.floats(0.001, 0.05),
    st.floats(0.05, 0.95),
    st.floats(-1.0, 0.95),
)
def test_dampening_is_a_start_that_is_not_at_rest(lr, momentum, dampening):
    descent, flow = momentum_from_torch(VALLEY, lr, momentum, dampening=dampening)
    assert_close(
        descend(descent, START, 5).theta, by_torch(VALLEY, START, 5, lr, momentum=momentum, dampening=dampening)
    )
    state = descent.start(START)
    assert_close(flow.start(START), flow.resume(START, descent.velocity(state)))


@pytest.mark.parametrize("arguments", [a for a in ARGUMENTS if a])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_the_flow_has_its_order_in_the_root_of_the_rate(arguments, order):
    """At fixed friction: β = 1 − √lr, and the dampening as given."""
    if arguments["momentum"] == 0:
        return

    def error(root):
        lr = root**2
        given_arguments = {**arguments, "momentum": 1 - root}
        if "dampening" in arguments:
            lr = root**2 / (1 - arguments["dampening"])
        descent, flow = momentum_from_torch(VALLEY, lr, order=order, **given_arguments)
        result = compare(descent, {"flow": flow}, START, round(0.8 / root), rtol=1e-11, atol=1e-13)
        assert result.rows["flow"].notes == ()
        return torch.stack([result.errors["flow"].max(), result.one_step["flow"].max()])

    whole, single = (error(0.04) / error(0.02)).log2()
    assert order - 0.35 < float(whole) < order + 0.7
    assert float(single) > order + 0.65


def test_without_momentum_it_is_gradient_descent():
    f = LinearRegression(draw(0, 6, 2), draw(1, 6))
    assert momentum_from_torch(f, 0.1, order=3) == (GradientDescent(f, 0.1), ModifiedFlow(f, 0.1, 3))
    pair = momentum_from_torch(f, 0.1, batch_size=2, sampling="subset", order=1)
    assert pair == (
        StochasticGradientDescent(f, 0.1, 2, "subset"),
        StochasticModifiedEquation(f, 0.1, 2, 1, "subset"),
    )


def test_the_stochastic_pair():
    f = LinearRegression(draw(0, 6, 2), draw(1, 6))
    descent, equation = momentum_from_torch(f, 0.01, 0.9, batch_size=2, sampling="epoch")
    assert descent == StochasticHeavyBall(f, 0.01, 0.9, 2, "epoch")
    assert isinstance(equation, TorchMomentumEquation)
    assert equation.noise_period == pytest.approx(3 * 0.01)
    theta0 = START.expand(400, 2)
    runs, paths = descend(descent, theta0, 60, seed=1), integrate(equation, theta0, [0.0, 0.6], dt=0.01 / 8, seed=2)
    ours, theirs = paths.theta[-1], runs.theta[-1]
    bar = (ours.var(dim=0) + theirs.var(dim=0)).div(400).sqrt()
    assert bool(((ours.mean(dim=0) - theirs.mean(dim=0)).abs() < 4 * bar + 2e-3).all())


def test_drift_and_noise_of_the_equation_are_rescaled():
    """With c = h/lr, dX = c a dt + √c σ dW: the covariance of a time dt is that of the inner equation over c dt."""
    f = LinearRegression(draw(0, 6, 2), draw(1, 6))
    for order in (1, 2):
        equation = momentum_from_torch(f, 0.04, 0.5, batch_size=2, order=order)[1]
        state, dw, inner, c = draw(2, 4), draw(3, 6), equation.flow, 0.2 / 0.04
        assert_close(equation.velocity(0.3, state), c * inner.velocity(0.3, state))
        assert_close(equation.diffusion(0.3, state, dw), c**0.5 * inner.diffusion(0.3, state, dw))
        fused = equation.velocity(0.3, state) + equation.diffusion(0.3, state, dw)
        assert_close(equation.rate(0.3, state, dw), fused)
        assert_close(equation.ito_correction(0.3, state), torch.zeros_like(state))
        assert (equation.noise_kind, equation.noise_size) == (inner.noise_kind, 6)


def test_positions_and_velocities_are_torchs():
    for nesterov in (False, True):
        descent, flow = momentum_from_torch(VALLEY, 0.02, 0.9, nesterov)
        state = descent.start(START)
        for k in range(3):
            state = descent.step(state, k, torch.Generator())
        theta, velocity = descent.position(state), descent.velocity(state)
        assert_close(flow.position(flow.resume(theta, velocity)), theta)


BOWL = Quadratic(torch.eye(2, dtype=torch.float64))
SUM = LinearRegression(draw(0, 6, 2), draw(1, 6))
REFUSED = {
    "landscape": ((None, 0.1), {}, TypeError, "landscape must be a Landscape"),
    "lr": ((BOWL, 0.0), {}, ValueError, "lr must be positive"),
    "momentum": ((BOWL, 0.1, 1.0), {}, ValueError, r"momentum must lie in \[0, 1\)"),
    "Nesterov alone": ((BOWL, 0.1, 0.0, True), {}, ValueError, "nesterov needs a momentum above 0 and no dampening"),
    "Nesterov damped": (
        (BOWL, 0.1, 0.9, True, 0.1),
        {},
        ValueError,
        "nesterov needs a momentum above 0 and no dampening",
    ),
    "Nesterov in words": ((BOWL, 0.1, 0.9, "yes"), {}, TypeError, "nesterov must be True or False, got 'yes'"),
    "Nesterov as a number": ((BOWL, 0.1, 0.0, 0), {}, TypeError, "nesterov must be True or False, got 0"),
    "dampening in words": ((BOWL, 0.1, 0.0, False, "a"), {}, TypeError, "dampening must be a real number, got 'a'"),
    "dampening": ((BOWL, 0.1, 0.9, False, 1.0), {}, ValueError, "dampening must be below 1"),
    "no examples": ((BOWL, 0.1, 0.9), {"batch_size": 2}, TypeError, "must be a FiniteSum"),
    "stochastic Nesterov": ((SUM, 0.1, 0.9, True), {"batch_size": 2}, UnsupportedError, "no stochastic equation"),
    "stochastic dampening": (
        (SUM, 0.1, 0.9, False, 0.2),
        {"batch_size": 2},
        UnsupportedError,
        "does not dampen the first",
    ),
    "order": ((SUM, 0.1, 0.9), {"batch_size": 2, "order": 3}, ValueError, "order must be at most 2"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_arguments_are_checked(case):
    arguments, options, error, text = REFUSED[case]
    with pytest.raises(error, match=text):
        momentum_from_torch(*arguments, **options)


def test_torch_refuses_the_same_of_nesterov():
    for momentum, dampening in ((0.0, 0.0), (0.9, 0.1)):
        with pytest.raises(ValueError, match="Nesterov momentum requires"):
            torch.optim.SGD([torch.nn.Parameter(START)], lr=0.1, momentum=momentum, dampening=dampening, nesterov=True)


def test_the_wrapper_takes_scaled_momentum_only():
    with pytest.raises(ValueError, match=r"it states h = 0\.1, momentum 0, unit lr"):
        TorchMomentumFlow(ModifiedFlow(BOWL, 0.1, 2), 0.01, 0.9)
    with pytest.raises(TypeError, match="flow must be a Flow"):
        TorchMomentumFlow(BOWL, 0.01, 0.9)
