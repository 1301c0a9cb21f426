"""Every flow of the registry against the invariants, its order and its formula; a new flow is one line here."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, integrate
from flows.invariants import check_batch, check_descent, check_equivariance, check_order
from flows.strategies import points, quadratics, rotations, smooth_landscapes
from landscapes import Cosine, DoubleWell, Landscape, Quadratic, QuarticWell, Rosenbrock
from tests.examples import few
from tests.flows.networks import digits_network
from tests.tensors import f64

KRYLOV = {"krylov": 80, "tolerance": 1e-11}

# name: (landscape, h) -> Flow, and the order of its one-step error against gradient descent
FLOWS = {
    "gradient": (lambda f, h: GradientFlow(f), 2),
    "modified-1": (lambda f, h: ModifiedFlow(f, h, 1), 2),
    "modified-2": (lambda f, h: ModifiedFlow(f, h, 2), 3),
    "modified-3": (lambda f, h: ModifiedFlow(f, h, 3), 4),
    "principal": (PrincipalFlow, 3),
    "principal-krylov": (lambda f, h: PrincipalFlow(f, h, **KRYLOV), 3),
    "principal-real": (lambda f, h: PrincipalFlow(f, h, branch="real"), 3),
    "principal-third": (lambda f, h: PrincipalFlow(f, h, third_order=True), 4),
    "principal-all": (lambda f, h: PrincipalFlow(f, h, branch="real", third_order=True, **KRYLOV), 4),
}
# torch has no complex cross entropy, hence the real branch; dense Hessians are slow there
NETWORK_FLOWS = FLOWS | {"principal-network": (lambda f, h: PrincipalFlow(f, h, branch="real", **KRYLOV), 3)}
flows = pytest.mark.parametrize("name", FLOWS)

TOYS = {
    "rosenbrock": (Rosenbrock(b=5.0), [-0.4, 0.6], 0.02),
    "tilted-double-well": (DoubleWell(tilt=0.3, dimension=2), [1.6, 0.7], 0.08),
    "cosine": (Cosine(frequency=1.5), [0.9, -1.3], 0.1),
}


@flows
@few(6)
@given(data=st.data())
def test_velocity_turns_with_the_coordinates(name, data):
    flow, _ = FLOWS[name]
    landscape = data.draw(st.one_of(smooth_landscapes(2), quadratics(-4.0, 4.0, st.just(2), avoid=2.0, gap=0.05)))
    check_equivariance(lambda f: flow(f, 0.5), landscape, data.draw(points(2, 3)), data.draw(rotations(2)))


@flows
def test_velocity_turns_with_the_coordinates_of_a_saddle_in_many_dimensions(name, normal):
    flow, _ = FLOWS[name]
    rotation = torch.linalg.qr(normal(0, 7, 7))[0]
    landscape = Cosine(frequency=1.2, dimension=7)
    check_equivariance(lambda f: flow(f, 0.3), landscape, normal(1, 7), rotation)


@flows
@pytest.mark.parametrize("toy", TOYS)
def test_a_batch_is_its_members(name, toy, normal):
    landscape, theta, h = TOYS[toy]
    check_batch(FLOWS[name][0](landscape, h), f64(*theta) + 0.2 * normal(2, 2, 2), steps=1, dt=h)


def test_a_batch_with_complex_members_is_its_members(normal):
    # hλ passes 1 for some: those leave the reals while the others' Hessians have no imaginary part
    landscape, h = Cosine(frequency=1.5), 0.8
    theta = torch.stack([f64(0.1, 0.2), f64(1.5, -1.6), f64(0.05, 1.9)])
    check_batch(PrincipalFlow(landscape, h), theta, steps=3, dt=h / 8, tolerance=1e-9)


@flows
@pytest.mark.parametrize("toy", TOYS)
def test_one_step_order_on_toys(name, toy):
    flow, order = FLOWS[name]
    landscape, theta, h = TOYS[toy]
    ladder = [h / 2**k for k in range(4)]
    study = check_order(
        lambda h: flow(landscape, h), lambda h: GradientDescent(landscape, h), f64(*theta), order, ladder
    )
    assert study.errors[-1] < study.errors[0]


@pytest.mark.parametrize("name", ["modified-1", "modified-2", "modified-3", "principal-network", "principal-all"])
def test_one_step_order_on_a_network(name):
    flow, order = NETWORK_FLOWS[name]
    network = digits_network()
    ladder = [0.04, 0.02, 0.01]
    check_order(lambda h: flow(network, h), lambda h: GradientDescent(network, h), 2 * network.theta0, order, ladder)


@pytest.mark.parametrize("name", ["gradient", "modified-1"])
@few(10)
@given(data=st.data())
def test_gradient_flow_never_raises_the_loss(name, data):
    landscape = data.draw(st.one_of(smooth_landscapes(2), quadratics()))
    theta = data.draw(points(landscape.dimension, 2))
    check_descent(FLOWS[name][0](landscape, 0.1), theta, [0.0, 0.02, 0.05, 0.1])


def test_gradient_flow_never_raises_the_loss_of_a_network():
    network = digits_network()
    check_descent(GradientFlow(network), network.theta0, [0.0, 0.5, 1.0, 2.0])


@few(10)
@given(data=st.data())
def test_gradient_flow_of_a_quadratic_is_the_matrix_exponential(data):
    landscape = data.draw(quadratics())
    theta = data.draw(points(landscape.dimension))
    times = f64(0.0, 0.3, 1.0)
    run = integrate(GradientFlow(landscape), theta, times, rtol=1e-10, atol=1e-12)
    decay = torch.linalg.matrix_exp(-times[:, None, None] * landscape.hessian(theta))
    assert_close(run.theta, landscape.minimum + decay @ (theta - landscape.minimum), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("toy", TOYS)
def test_order_one_is_gradient_flow_to_the_bit(toy, normal):
    landscape = TOYS[toy][0]
    theta = normal(3, 4, 2)
    assert torch.equal(
        ModifiedFlow(landscape, 0.3, 1).velocity(0.0, theta), GradientFlow(landscape).velocity(0.0, theta)
    )
    assert torch.equal(GradientFlow(landscape).velocity(0.0, theta), -landscape.grad(theta))


@flows
@pytest.mark.parametrize("toy", TOYS)
def test_every_flow_is_the_gradient_at_vanishing_rate(name, toy, normal):
    landscape = TOYS[toy][0]
    theta = normal(4, 3, 2)
    flow = FLOWS[name][0](landscape, 1e-9)
    velocity = flow.velocity(0.0, flow.start(theta))
    assert_close(velocity.real if velocity.is_complex() else velocity, -landscape.grad(theta), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("toy", TOYS)
@pytest.mark.parametrize("order", [1, 2, 3])
def test_modified_field_against_its_dense_formula(toy, order, normal):
    landscape, h = TOYS[toy][0], 0.3
    theta = normal(5, 2)
    g = torch.func.grad(landscape.loss)(theta)
    hessian = torch.func.hessian(landscape.loss)(theta)
    third = torch.func.jacfwd(torch.func.hessian(landscape.loss))(theta)
    terms = [-g, -(h / 2) * hessian @ g]
    terms.append(-(h**2) * (hessian @ hessian @ g / 3 + torch.einsum("ijk,j,k->i", third, g, g) / 12))
    assert_close(ModifiedFlow(landscape, h, order).velocity(0.0, theta), sum(terms[:order]), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("branch", ["complex", "real"])
def test_third_order_term_of_the_principal_flow(branch):
    landscape, theta, h = Rosenbrock(b=5.0), f64(-0.4, 0.6), 0.02
    g = torch.func.grad(landscape.loss)(theta)
    third = torch.func.jacfwd(torch.func.hessian(landscape.loss))(theta)
    plain, full = (PrincipalFlow(landscape, h, third_order=on, branch=branch) for on in (False, True))
    difference = full.velocity(0.0, theta) - plain.velocity(0.0, theta)
    assert_close(difference, -(h**2) / 12 * torch.einsum("ijk,j,k->i", third, g, g), rtol=1e-8, atol=1e-11)


@flows
def test_velocity_keeps_dtype_device_and_shape(name, dtype, device, normal):
    flow = FLOWS[name][0](DoubleWell(tilt=0.1, dimension=3), 0.1)
    for batch in ((), (2,), (2, 1)):
        state = flow.start(normal(7, *batch, 3, dtype=dtype).to(device))
        velocity = flow.velocity(0.0, state)
        assert (velocity.shape, velocity.dtype, velocity.device) == (state.shape, state.dtype, state.device)
        assert not velocity.requires_grad


@flows
def test_flows_are_parameters_only(name):
    landscape = Rosenbrock()
    flow = FLOWS[name][0](landscape, 0.1)
    assert flow == FLOWS[name][0](landscape, 0.1)
    with pytest.raises(AttributeError):
        flow.landscape = QuarticWell(1.0, 1.0)


class NotALandscape:
    dimension = 2


VALLEY = Quadratic(torch.eye(2))
BAD_ARGUMENTS = {
    "order 0": (lambda: ModifiedFlow(VALLEY, 0.1, 0), ValueError, r"order must be at least 1, got 0"),
    "order 2.5": (lambda: ModifiedFlow(VALLEY, 0.1, 2.5), TypeError, r"order must be a whole number, got 2\.5"),
    "order True": (lambda: ModifiedFlow(VALLEY, 0.1, True), TypeError, "order must be a whole number, got True"),
    "order 13": (lambda: ModifiedFlow(VALLEY, 0.1, 13), ValueError, "order must be at most 12, the highest"),
    "h 0": (lambda: ModifiedFlow(VALLEY, 0, 2), ValueError, "h must be positive and finite, got 0"),
    "h negative": (lambda: PrincipalFlow(VALLEY, -0.1), ValueError, r"h must be positive and finite, got -0\.1"),
    "h nan": (lambda: PrincipalFlow(VALLEY, math.nan), ValueError, "h must be positive and finite, got nan"),
    "h infinite": (lambda: ModifiedFlow(VALLEY, math.inf, 2), ValueError, "h must be positive and finite"),
    "h a string": (lambda: ModifiedFlow(VALLEY, "0.1", 2), TypeError, "h must be a positive real number, got '0.1'"),
    "h a tensor": (lambda: PrincipalFlow(VALLEY, torch.tensor(0.1)), TypeError, "h must be a positive real number"),
    "krylov 0": (lambda: PrincipalFlow(VALLEY, 0.1, krylov=0), ValueError, "krylov must be at least 1, got 0"),
    "krylov 1.5": (lambda: PrincipalFlow(VALLEY, 0.1, krylov=1.5), TypeError, "krylov must be a whole number"),
    "tolerance 0": (lambda: PrincipalFlow(VALLEY, 0.1, tolerance=0), ValueError, "tolerance must be positive"),
    "tolerance < 0": (lambda: PrincipalFlow(VALLEY, 0.1, tolerance=-1.0), ValueError, "tolerance must be positive"),
    "third_order 1": (lambda: PrincipalFlow(VALLEY, 0.1, third_order=1), TypeError, "third_order must be True or"),
    "branch": (
        lambda: PrincipalFlow(VALLEY, 0.1, branch="Real"),
        ValueError,
        "branch must be one of 'complex', 'real'",
    ),
    "gradient landscape": (lambda: GradientFlow(torch.eye(2)), TypeError, "landscape must be a Landscape, got Tensor"),
    "modified landscape": (lambda: ModifiedFlow(NotALandscape(), 0.1, 2), TypeError, "landscape must be a Landscape"),
    "principal landscape": (lambda: PrincipalFlow(None, 0.1), TypeError, "a Landscape, got NoneType"),
    "gradient class": (lambda: GradientFlow(Landscape), TypeError, "landscape must be a Landscape"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_arguments_are_checked_on_construction(case):
    build, error, text = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=text):
        build()


def test_any_real_number_is_a_learning_rate():
    theta = f64(1.0, 2.0)
    for h in (0.25, np.float64(0.25), np.float32(0.25), 1):
        assert ModifiedFlow(VALLEY, h, 3).velocity(0.0, theta).dtype == torch.float64
        assert PrincipalFlow(VALLEY, h * 0.5).velocity(0.0, theta).dtype == torch.float64
