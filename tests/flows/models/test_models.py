"""Gradient, modified and principal flow against their formulas; test_registry.py has what holds of every flow."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import GradientFlow, ModifiedFlow, PrincipalFlow, integrate
from flows.invariants import check_batch, check_descent
from flows.strategies import points, quadratics, smooth_landscapes
from landscapes import Cosine, DoubleWell, Landscape, Quadratic, Rosenbrock
from tests.examples import few
from tests.flows.networks import digits_network
from tests.tensors import f64

TOYS = {
    "rosenbrock": (Rosenbrock(b=5.0), [-0.4, 0.6], 0.02),
    "tilted-double-well": (DoubleWell(tilt=0.3, dimension=2), [1.6, 0.7], 0.08),
    "cosine": (Cosine(frequency=1.5), [0.9, -1.3], 0.1),
}


def test_a_batch_with_complex_members_is_its_members(normal):
    # hλ passes 1 for some: those leave the reals while the others' Hessians have no imaginary part
    landscape, h = Cosine(frequency=1.5), 0.8
    theta = torch.stack([f64(0.1, 0.2), f64(1.5, -1.6), f64(0.05, 1.9)])
    check_batch(PrincipalFlow(landscape, h), theta, steps=3, dt=h / 8, tolerance=1e-9)


@pytest.mark.parametrize("flow", [GradientFlow, lambda f: ModifiedFlow(f, 0.1, 1)], ids=["gradient", "modified-1"])
@few(10)
@given(data=st.data())
def test_gradient_flow_never_raises_the_loss(flow, data):
    landscape = data.draw(st.one_of(smooth_landscapes(2), quadratics()))
    theta = data.draw(points(landscape.dimension, 2))
    check_descent(flow(landscape), theta, [0.0, 0.02, 0.05, 0.1])


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
