"""Nesterov's momentum and the scaled descents: torch.optim to the last bit, the changes of variables, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import HeavyBall, descend
from flows.descents.momentum import Nesterov, ScaledHeavyBall, ScaledNesterov
from flows.invariants import check_batch
from landscapes import Counted, Quadratic, QuarticWell, Rosenbrock
from tests.examples import few
from tests.flows.stepping import states_of
from tests.tensors import f64

ROSENBROCK = Rosenbrock()
STEPS = 9


def by_hand(theta0, steps, **options):
    """torch.optim.SGD in a plain loop: positions and buffers, (steps + 1, d) each."""
    parameter = torch.nn.Parameter(theta0.clone())
    optimizer = torch.optim.SGD([parameter], **options)
    states, buffers = [theta0.clone()], [torch.zeros_like(theta0)]
    for _ in range(steps):
        parameter.grad = ROSENBROCK.grad(parameter.detach()).clone()
        optimizer.step()
        states.append(parameter.detach().clone())
        buffers.append(optimizer.state[parameter]["momentum_buffer"].clone())
    return torch.stack(states), torch.stack(buffers)


@pytest.mark.parametrize("momentum", [0.3, 0.9, 0.999])
@few(8)
@given(seed=st.integers(0, 2**31), h=st.floats(1e-6, 2e-4))
def test_nesterov_is_torch_optim_to_the_last_bit(momentum, dtype, device, normal, seed, h):
    theta0 = normal(seed, 2, 3, 2, dtype=dtype).to(device) / 3
    descent = Nesterov(ROSENBROCK, h, momentum)
    run = descend(descent, theta0, STEPS)
    expected, buffers = by_hand(theta0, STEPS, lr=h, momentum=momentum, nesterov=True)
    assert torch.equal(run.theta, expected)
    assert run.theta.dtype == dtype
    assert torch.equal(torch.stack([p for _, p in states_of(descent, theta0, STEPS)]), buffers)
    assert run.times.tolist() == [k * h for k in range(STEPS + 1)]
    assert run.cost["grad"] == 6 * STEPS


@few(10)
@given(seed=st.integers(0, 2**31), momentum=st.floats(0, 0.999))
def test_nesterov_is_the_literatures_seen_from_where_the_gradient_is_taken(normal, seed, momentum):
    h, x = 1e-4, normal(seed, 2) / 3
    v = torch.zeros_like(x)
    for theta, p in states_of(Nesterov(ROSENBROCK, h, momentum), x, 30):
        assert_close(theta, x + momentum * v, rtol=1e-11, atol=1e-12)
        assert_close(-h * p, v, rtol=1e-10, atol=1e-12)
        v = momentum * v - h * ROSENBROCK.grad(x + momentum * v)
        x = x + v


def test_without_momentum_nesterov_is_gradient_descent(normal):
    theta = descend(Nesterov(ROSENBROCK, 1e-3, 0.0), normal(0, 2), STEPS).theta
    assert torch.equal(theta, descend(HeavyBall(ROSENBROCK, 1e-3, 0.0), normal(0, 2), STEPS).theta)


@few(15)
@given(seed=st.integers(0, 2**31), h=st.floats(1e-3, 1e-2), damping=st.floats(0.01, 1))
def test_scaled_descents_are_the_plain_ones_in_other_variables(normal, seed, h, damping):
    friction, theta0 = damping / h, normal(seed, 3, 2) / 3
    friction = min(friction, math.nextafter(1 / h, 0))
    momentum = 1 - h * friction
    plain = states_of(HeavyBall(ROSENBROCK, h**2, momentum), theta0, STEPS)
    for state, (theta, p) in zip(
        states_of(ScaledHeavyBall(ROSENBROCK, h, friction), theta0, STEPS), plain, strict=True
    ):
        x, v = state.chunk(2, dim=-1)
        assert_close(x, theta, rtol=1e-11, atol=1e-12)
        assert_close(v, -h * p, rtol=1e-10, atol=1e-11)
    plain = states_of(Nesterov(ROSENBROCK, h**2, momentum), theta0, STEPS)
    scaled = states_of(ScaledNesterov(ROSENBROCK, h, friction), theta0, STEPS)
    for state, (theta, p) in zip(scaled, plain, strict=True):
        x, v = state.chunk(2, dim=-1)
        assert_close(x + h * momentum * v, theta, rtol=1e-11, atol=1e-12)
        assert_close(v, -h * p, rtol=1e-10, atol=1e-11)


def matrix_power_run(matrix, theta0, steps):
    """Positions of (x, v) ↦ matrix (x, v) from (θ0, 0)."""
    state, positions = torch.cat([theta0, torch.zeros_like(theta0)]), [theta0]
    for _ in range(steps):
        state = matrix @ state
        positions.append(state[: len(theta0)])
    return torch.stack(positions)


def test_scaled_descents_on_a_quadratic_are_powers_of_their_matrices(normal):
    h, friction, eye = 0.3, 0.8, torch.eye(2, dtype=torch.float64)
    hessian = f64(2.0, 0.7, 0.7, 1.0).reshape(2, 2)
    kept = 1 - h * friction
    theta0, quadratic = normal(1, 2), Quadratic(hessian)
    heavy = torch.cat([-h * hessian, kept * eye], dim=1)  # v' from (x, v)
    look_ahead = torch.cat([-h * hessian, kept * (eye - h**2 * hessian)], dim=1)
    for rows, descent in ((heavy, ScaledHeavyBall), (look_ahead, ScaledNesterov)):
        matrix = torch.cat([torch.cat([eye, 0 * eye], dim=1) + h * rows, rows])
        run = descend(descent(quadratic, h, friction), theta0, STEPS)
        assert_close(run.theta, matrix_power_run(matrix, theta0, STEPS), rtol=1e-12, atol=1e-13)
        assert run.times.tolist() == [k * h for k in range(STEPS + 1)]


def test_without_friction_the_energy_neither_grows_nor_falls():
    well = QuarticWell(S=2.0, Q=1.0)
    x, v = torch.stack(states_of(ScaledHeavyBall(well, 0.05, 0.0), f64(0.8), 4000)).unbind(-1)
    energy = v**2 / 2 + well.loss(x[:, None])
    # symplectic Euler conserves an energy O(h) away; the explicit one would gain a factor e over this time
    assert float((energy / energy[0] - 1).abs().max()) < 0.1


@pytest.mark.parametrize("name", ["nesterov", "scaled", "scaled-nesterov"])
def test_batches_dtypes_and_pure_steps(name, normal, dtype):
    build = {
        "nesterov": lambda f: Nesterov(f, 1e-3, 0.9),
        "scaled": lambda f: ScaledHeavyBall(f, 0.03, 2.0),
        "scaled-nesterov": lambda f: ScaledNesterov(f, 0.03, 2.0),
    }[name]
    thetas = normal(3, 3, 2, dtype=dtype) / 3
    check_batch(build(ROSENBROCK), thetas)
    counted = Counted(ROSENBROCK)
    run = descend(build(counted), thetas.reshape(3, 1, 2), 4)
    assert run.theta.shape == (5, 3, 1, 2)
    assert run.theta.dtype == dtype
    assert run.status == "finished"
    assert run.cost["grad"] == 12
    state = build(ROSENBROCK).start(thetas)
    before = [part.clone() for part in state] if isinstance(state, tuple) else state.clone()
    build(ROSENBROCK).step(state, 0, torch.Generator())
    assert all(torch.equal(a, b) for a, b in zip(before, state, strict=True))


@pytest.mark.parametrize("descent", [ScaledHeavyBall, ScaledNesterov])
def test_friction_that_is_refused(descent):
    for friction in (-0.1, math.nan, math.inf, "1", None, True):
        with pytest.raises((TypeError, ValueError), match="friction must"):
            descent(ROSENBROCK, 0.1, friction)
    with pytest.raises(ValueError, match=r"friction must be at most 1/h.*friction=2\.1 at h=0\.5"):
        descent(ROSENBROCK, 0.5, 2.1)
    assert descent(ROSENBROCK, 0.5, 2.0).friction == 2.0  # momentum 0: gradient descent at learning rate h²
    with pytest.raises((TypeError, ValueError), match="h must"):
        descent(ROSENBROCK, 0.0, 1.0)
    with pytest.raises(TypeError, match="landscape must"):
        descent(None, 0.1, 1.0)


def test_momentum_that_is_refused():
    for momentum in (-0.1, 1.0, 1.5, math.nan, "0.5", None, True):
        with pytest.raises((TypeError, ValueError), match="momentum must"):
            Nesterov(ROSENBROCK, 0.1, momentum)
    with pytest.raises((TypeError, ValueError), match="h must"):
        Nesterov(ROSENBROCK, -0.1, 0.5)
    with pytest.raises(TypeError, match="landscape must"):
        Nesterov(None, 0.1, 0.5)
