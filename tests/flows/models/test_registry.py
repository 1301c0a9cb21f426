"""Every flow of scripts.lab.models against the invariants and its order; a new flow is in here by its line there."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import StochasticDescent, StochasticFlow
from flows.invariants import check_batch, check_equivariance, check_noise, check_order
from flows.orders.ladder import settled_order
from flows.strategies import points, quadratics, rotations, smooth_landscapes
from landscapes import Cosine, DoubleWell, Landscape, LinearRegression, QuarticWell, Rosenbrock, TwoQuadratics
from scripts.lab.models import FLOWS, NUMBERED, Options, descent_by_name, flow_by_name, flow_entry
from tests.flows.drift import Drift
from tests.flows.networks import digits_network

PLAIN = Options(momentum=0.2, batch_size=2, sampling="replacement")
KRYLOV = replace(PLAIN, krylov=80, krylov_tolerance=1e-11)
# name of a case: name of its flow, and the options it is made with
CASES = {name: (name, PLAIN) for name in [*FLOWS, *(f"{family}-{n}" for family in NUMBERED for n in (1, 2, 3))]}
CASES = {name: case for name, case in CASES.items() if name not in ("sde-3", "momentum-sde-3")}
CASES |= {
    "principal, krylov": ("principal", KRYLOV),
    "principal, real": ("principal", replace(PLAIN, branch="real")),
    "principal, real, krylov": ("principal", replace(KRYLOV, branch="real")),
    "principal-third-order, real, krylov": ("principal-third-order", replace(KRYLOV, branch="real")),
}
NOISY = [name for name, (flow, _) in CASES.items() if flow_entry(flow).noise]
QUIET = [name for name in CASES if name not in NOISY]
OF_GRADIENT_DESCENT = [name for name in QUIET if flow_entry(CASES[name][0]).descent == "gd"]

TOYS = {
    "rosenbrock": (Rosenbrock(b=5.0), [-0.4, 0.6], 0.02),
    "tilted-double-well": (DoubleWell(tilt=0.3, dimension=2), [1.6, 0.7], 0.08),
    "cosine": (Cosine(frequency=1.5), [0.9, -1.3], 0.1),
}
every = pytest.mark.parametrize("name", CASES)
quiet = pytest.mark.parametrize("name", QUIET)
noisy = pytest.mark.parametrize("name", NOISY)
toys = pytest.mark.parametrize("toy", TOYS)


def flow_of(name, landscape, h):
    flow, options = CASES[name]
    return flow_by_name(flow, landscape, h, options)


def descent_of(name, landscape, h):
    """The descent that the flow follows, the mean of its step where it is stochastic."""
    flow, options = CASES[name]
    descent = descent_by_name(flow_entry(flow).descent, landscape, h, options)
    return descent.full_batch() if isinstance(descent, StochasticDescent) else descent


def regression(normal, rotation=None):
    """Six examples of two features, in rotated coordinates θ → Qθ where there is a Q."""
    features, labels = normal(1, 6, 2), normal(2, 6)
    return LinearRegression(features if rotation is None else features @ rotation.mT, labels)


def f64(*values):
    return torch.tensor(values, dtype=torch.float64)


@quiet
@settings(max_examples=6)
@given(data=st.data())
def test_velocity_turns_with_the_coordinates(name, data):
    landscape = data.draw(st.one_of(smooth_landscapes(2), quadratics(-4.0, 4.0, st.just(2), avoid=2.0, gap=0.05)))
    check_equivariance(partial(flow_of, name, h=0.5), landscape, data.draw(points(2, 3)), data.draw(rotations(2)))


@quiet
def test_velocity_turns_with_the_coordinates_of_a_saddle_in_many_dimensions(name, normal):
    rotation = torch.linalg.qr(normal(0, 7, 7))[0]
    check_equivariance(partial(flow_of, name, h=0.3), Cosine(frequency=1.2, dimension=7), normal(1, 7), rotation)


@noisy
def test_drift_and_noise_turn_with_the_coordinates(name, normal):
    rotation = torch.linalg.qr(normal(0, 2, 2))[0]
    plain, turned = (flow_of(name, regression(normal, q), 0.3) for q in (None, rotation))
    theta, dw = normal(3, 2), normal(4, plain.noise_size)
    state, there = plain.start(theta), turned.start(theta @ rotation.mT)
    for one, other in (
        (plain.velocity(0.0, state), turned.velocity(0.0, there)),
        (plain.diffusion(0.0, state, dw), turned.diffusion(0.0, there, dw)),
    ):
        assert_close(one.reshape(-1, 2) @ rotation.mT, other.reshape(-1, 2), rtol=1e-9, atol=1e-12)


@noisy
def test_noise_is_what_it_says(name, normal):
    flow = flow_of(name, regression(normal), 0.3)
    assert isinstance(flow, StochasticFlow)
    assert flow.noise_kind == flow_entry(CASES[name][0]).noise
    check_noise(flow, normal(5, 3, 2))


@quiet
@toys
def test_a_batch_is_its_members(name, toy, normal):
    landscape, theta, h = TOYS[toy]
    flow = flow_of(name, landscape, h)
    assert not isinstance(flow, StochasticFlow)  # its entry would name the noise
    check_batch(flow, f64(*theta) + 0.2 * normal(2, 2, 2), steps=1, dt=h)


@noisy
def test_a_noisy_batch_is_its_members(name, normal):
    check_batch(flow_of(name, regression(normal), 0.1), normal(6, 3, 2), steps=2, dt=0.05)


@quiet
@toys
def test_one_step_order_on_toys(name, toy):
    landscape, theta, h = TOYS[toy]
    entry = flow_entry(CASES[name][0])
    flow, descent = (partial(build, name, landscape) for build in (flow_of, descent_of))
    if entry.settles:
        study = settled_order(flow, descent, f64(*theta), [0.016, 0.008, 0.004], 0.48)
        assert study.order == pytest.approx(entry.order, abs=0.2)
    else:
        ladder = [h / 2**k for k in range(4)]
        study = check_order(flow, descent, f64(*theta), entry.order, ladder, 0.1 if entry.descent == "gd" else 0.2)
    assert study.errors[-1] < study.errors[0]


@noisy
def test_one_step_order_of_the_drift(name, normal):
    landscape, order = regression(normal), flow_entry(CASES[name][0]).order
    ladder = [0.1 / 2**k for k in range(4)]
    check_order(
        lambda h: Drift(flow_of(name, landscape, h)), partial(descent_of, name, landscape), f64(1, -2), order, ladder
    )


@pytest.mark.parametrize("name", [*(f"modified-{n}" for n in (1, 2, 3)), *(n for n in CASES if "real, krylov" in n)])
def test_one_step_order_on_a_network(name):
    network = digits_network()
    flow, descent = (partial(build, name, network) for build in (flow_of, descent_of))
    check_order(flow, descent, 2 * network.theta0, flow_entry(CASES[name][0]).order, [0.04, 0.02, 0.01])


@pytest.mark.parametrize("name", OF_GRADIENT_DESCENT)
@toys
def test_flows_of_gradient_descent_are_the_gradient_at_vanishing_rate(name, toy, normal):
    landscape = TOYS[toy][0]
    theta = normal(4, 3, 2)
    flow = flow_of(name, landscape, 1e-9)
    velocity = flow.velocity(0.0, flow.start(theta))
    assert_close(velocity.real if velocity.is_complex() else velocity, -landscape.grad(theta), rtol=1e-6, atol=1e-7)


@every
def test_velocity_keeps_dtype_device_and_shape(name, dtype, device, normal):
    landscape = TwoQuadratics() if name in NOISY else DoubleWell(tilt=0.1, dimension=2)
    flow = flow_of(name, landscape, 0.1)
    assert flow.radius > 0
    for batch in ((), (2,), (2, 1)):
        state = flow.start(normal(7, *batch, 2, dtype=dtype).to(device))
        velocity = flow.velocity(0.0, state)
        assert (velocity.shape, velocity.dtype, velocity.device) == (state.shape, state.dtype, state.device)
        assert flow.position(state).shape == (*batch, 2)
        assert not velocity.requires_grad


@every
def test_flows_are_parameters_only(name):
    landscape = TwoQuadratics() if name in NOISY else Rosenbrock()
    flow = flow_of(name, landscape, 0.1)
    assert isinstance(flow.landscape, Landscape)
    assert flow == flow_of(name, landscape, 0.1)
    with pytest.raises(AttributeError):
        flow.landscape = QuarticWell(1.0, 1.0)
