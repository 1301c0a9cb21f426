"""What the principal flow claims: gᵀu grows by |1 − hλ| a step, with its phase; one-step errors on a network."""

import math
import re

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, descend, integrate
from flows.strategies import points, quadratics
from landscapes import Quadratic
from landscapes.krylov import eigenpairs, random_block
from nets import MLP, HolomorphicNetworkLandscape, load_data, square_loss
from tests.examples import few

KINDS = {"dense": {}, "krylov": {"krylov": 20, "tolerance": 1e-12}}
ACCURATE = {"method": "dopri8", "rtol": 1e-10, "atol": 1e-12}


def components(landscape, theta, vectors):
    return landscape.grad(theta) @ vectors.to(theta.dtype)


@pytest.mark.parametrize("kind", KINDS)
@few(12)
@given(data=st.data())
def test_growth_and_phase_of_every_mode(kind, data):
    h = data.draw(st.sampled_from([0.1, 1.0]))
    landscape = data.draw(quadratics(-2.9 / h, 2.9 / h, dimensions=st.integers(2, 5), avoid=1 / h, gap=0.05 / h))
    theta = landscape.minimum + data.draw(points(landscape.dimension))
    eigenvalues, vectors = torch.linalg.eigh(landscape.hessian(theta))
    before = components(landscape, theta, vectors)
    half, whole = integrate(PrincipalFlow(landscape, h, **KINDS[kind]), theta, [0, h / 2, h], **ACCURATE).theta[1:]
    factor = 1 - h * eigenvalues
    scale = float(before.abs().max()) * max(1.0, float(factor.abs().max()))
    # after a step the sign of 1 − hλ, after half of one its root: a quarter turn where descent oscillates
    assert_close(components(landscape, whole, vectors), (factor * before) + 0j, rtol=0, atol=1e-7 * scale)
    root = (factor + 0j).sqrt()
    assert_close(components(landscape, half, vectors), root * before, rtol=0, atol=1e-7 * scale)
    real = integrate(PrincipalFlow(landscape, h, branch="real", **KINDS[kind]), theta, [0, h], **ACCURATE).theta[-1]
    assert_close(components(landscape, real, vectors), factor.abs() * before, rtol=0, atol=1e-7 * scale)  # no flip


@given(st.floats(0.1, 3), st.floats(-0.9e-6, 0.9e-6))
def test_the_singular_mode_ends_a_run_and_names_itself(h, offset):
    landscape = Quadratic(torch.diag(torch.tensor([(1 + offset) / h, 0.3 / h], dtype=torch.float64)))
    run = integrate(PrincipalFlow(landscape, h), torch.ones(2, dtype=torch.float64), [0.0, h])
    assert run.status == "singular mode"
    named = float(re.search(r"eigenvalue λ = (\S+) of the Hessian", run.status.sentence)[1])
    assert math.isclose(named * h, 1, rel_tol=1e-5)


@pytest.fixture(scope="module")
def bouncing():
    """A tanh network with square loss whose gradient bounces along u₀: h → one-step errors of every flow there."""
    data = load_data("digits", limit=60)
    module = MLP((64, 6, 10), seed=0).double()
    landscape = HolomorphicNetworkLandscape(module, square_loss, data.inputs.double(), data.targets)
    theta = landscape.theta0
    sharpness = float(eigenpairs(landscape.expand(theta).hvp, random_block(theta, 3), 1).values[0])
    theta = descend(GradientDescent(landscape, 1.85 / sharpness), theta, 12, keep="last").theta[-1]
    point = landscape.expand(theta)
    top = eigenpairs(point.hvp, random_block(theta, 3), 1, tolerance=1e-8)
    assert abs(float(point.grad @ top.vectors[0])) > 0.5 * float(point.grad.norm())
    return landscape, theta, float(top.values[0]), top.vectors[0]


@pytest.mark.parametrize("x", [0.5, 0.9, 0.98, 1.02, 1.1, 1.3, 1.7, 2.1])
def test_one_step_on_a_network_through_the_singular_mode(bouncing, x):
    landscape, theta, sharpness, u = bouncing
    h = x / sharpness
    gradient = landscape.grad(theta)
    stepped = theta - h * gradient
    krylov = {"krylov": 40, "tolerance": 1e-7}
    flows = {
        "gradient": GradientFlow(landscape),
        "igr": ModifiedFlow(landscape, h, 2),
        "principal": PrincipalFlow(landscape, h, **krylov),
        "real": PrincipalFlow(landscape, h, branch="real", **krylov),
    }
    ends = {name: integrate(flow, theta, [0, h], rtol=1e-5, atol=1e-7).theta[-1] for name, flow in flows.items()}
    errors = {name: float(torch.linalg.vector_norm(end - stepped)) for name, end in ends.items()}
    assert errors["principal"] < 0.5 * min(errors["gradient"], errors["igr"])
    grown = {
        name: float((landscape.grad(end) @ u.to(end.dtype)).abs() / (gradient @ u).abs()) for name, end in ends.items()
    }
    descended = float((landscape.grad(stepped) @ u).abs() / (gradient @ u).abs())
    # descent's own growth differs from |1 − x| by the moving Hessian; both branches follow it, the others do not
    for branch in ("principal", "real"):
        assert math.isclose(grown[branch], descended, abs_tol=0.05)
    if x > 1.25:
        assert errors["real"] > errors["gradient"]  # it does not flip the sign: its claim is in |gᵀu| only
        assert abs(grown["gradient"] - descended) > 0.05 or abs(grown["igr"] - descended) > 0.05
