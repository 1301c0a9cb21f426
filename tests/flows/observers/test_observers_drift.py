"""Drift of one iteration from gradient flow: against matrix exponentials, the run itself, and theory's order."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sympy import symbols
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, PrincipalFlow, descend, integrate
from flows.observers import Drift
from flows.strategies import quadratics
from landscapes import Landscape, Quadratic, Rosenbrock, from_sympy
from tests.tensors import draw

H = 0.4
x, y = symbols("x y")


def see(landscape, theta, h=H, **options):
    return {name[6:]: value for name, value in Drift(landscape, h, **options)(0, 0.0, theta).items()}


@given(quadratics(low=-3, high=8), st.integers(0, 99), st.sampled_from([1e-1, 1e-3, 1e-6]))
def test_on_quadratics_against_the_matrix_exponential(quadratic, seed, tolerance):
    """The errors of n steps add up, and the most negative eigenvalue makes them grow: as the docstring has it."""
    offset = draw(seed, quadratic.dimension)
    hessian = quadratic.hessian(offset)
    exact = torch.linalg.matrix_exp(-H * hessian) @ offset - (offset - H * hessian @ offset)
    observer = Drift(quadratic, H, tolerance=tolerance)
    seen = observer(0, 0.0, quadratic.minimum + offset)
    predicted = H**2 / 2 * torch.linalg.vector_norm(hessian @ hessian @ offset)
    assert_close(seen["drift predicted"], predicted)
    steps = math.ceil(
        (observer.counts["grad"] - 2) / 6
    )  # one gradient of θ, seven of dopri5's first step, six of others
    growth = math.exp(H * max(0.0, -float(torch.linalg.eigvalsh(hessian)[0])))
    error = abs(float(seen["drift measured"] - torch.linalg.vector_norm(exact)))
    assert error < 2 * steps * growth * tolerance * float(predicted) + 1e-14
    assert_close(seen["drift ratio"], seen["drift measured"] / seen["drift predicted"], equal_nan=True)


def test_it_is_the_runs_own_drift_at_every_iteration():
    landscape, h = Rosenbrock(), 2e-3
    theta0 = torch.tensor([[0.0, 0.5], [-0.5, 0.2]], dtype=torch.float64)
    run = descend(GradientDescent(landscape, h), theta0, 8, observers=[Drift(landscape, h, tolerance=1e-6)])
    measured = run.observations["drift measured"][1]
    for k in range(8):
        flow = integrate(GradientFlow(landscape), run.theta[k], [0.0, h], rtol=1e-11, atol=1e-13).theta[-1]
        own = torch.linalg.vector_norm(run.theta[k + 1] - flow, dim=-1)
        assert_close(measured[k], own, rtol=1e-5, atol=1e-12)


def test_the_prediction_is_the_leading_term():
    landscape, theta = Rosenbrock(b=3.0), torch.tensor([0.3, 0.9], dtype=torch.float64)
    ladder = [0.01 / 2**i for i in range(4)]
    away = [abs(float(see(landscape, theta, h, tolerance=1e-6)["ratio"]) - 1) for h in ladder]
    assert away[-1] < 0.002
    for one, half in pairwise(away):
        assert abs(math.log2(one / half) - 1) < 0.1  # the ratio is 1 + O(h)


def test_in_both_engines_and_in_a_loop():
    landscape, theta0 = Rosenbrock(), torch.tensor([[0.0, 0.5], [-0.5, 0.2]], dtype=torch.float64)
    for run in (
        descend(GradientDescent(landscape, 2e-3), theta0, 4, observers=[Drift(landscape, 2e-3, every=2)]),
        integrate(GradientFlow(landscape), theta0, torch.arange(5) * 2e-3, observers=[Drift(landscape, 2e-3, every=2)]),
    ):
        mine = Drift(landscape, 2e-3)
        for i, theta in enumerate(run.theta[::2]):
            for name, value in mine(i, 0.0, theta).items():
                assert torch.equal(value, run.observations[name][1][i])
        assert run.observer_costs["drift"] == mine.counts
        assert (mine.counts["hvp"], mine.counts["grad"]) == (6, 6 * 8)  # one step of dopri5


def test_far_from_the_origin_in_single_precision(device):
    """A drift below the spacing of numbers at θ: a flow followed in θ itself would miss it altogether."""
    rotation = torch.linalg.qr(draw(0, 5, 5))[0]
    hessian = (rotation * torch.tensor([4.0, 2.0, 1.0, 0.5, 0.1])) @ rotation.mT
    h, theta = 1e-3, torch.full((5,), 14.0, dtype=torch.float64)
    wide = Quadratic(hessian, theta - 0.1 * draw(1, 5))
    seen = see(wide, theta, h)
    theta = theta.float().to(device)
    narrow = see(wide, theta, h)
    assert (narrow["measured"].dtype, narrow["measured"].device) == (torch.float32, theta.device)
    assert float(seen["measured"]) < 14 * torch.finfo(torch.float32).eps
    for name in seen:
        assert_close(narrow[name].cpu().double(), seen[name], rtol=2e-2, atol=0)  # θ + δ is rounded still


def test_where_there_is_none():
    linear = see(from_sympy(x + 2 * y, (x, y)), draw(2, 2))
    assert (float(linear["predicted"]), bool(linear["ratio"].isnan())) == (0, True)
    assert float(linear["measured"]) < 1e-15
    resting = see(Quadratic(torch.eye(2).double()), torch.zeros(2, 2).double())
    assert resting["measured"].tolist() == resting["predicted"].tolist() == [0, 0]
    assert bool(resting["ratio"].isnan().all())


def test_a_flow_that_cannot_be_followed_is_nan():
    theta = torch.tensor([[3.0], [0.1], [math.nan]], dtype=torch.float64)
    seen = see(from_sympy(-(x**4), (x,)), theta)  # from 3 the flow is infinite at t = 1/72
    assert seen["measured"].isnan().tolist() == [True, False, True]
    assert seen["predicted"].isnan().tolist() == [False, False, True]


def test_moduli_at_complex_theta():
    quadratic = Quadratic(torch.diag(torch.tensor([3.0, 1.0], dtype=torch.float64)))
    theta = torch.complex(draw(3, 2), draw(4, 2))
    decay, step = (torch.tensor([f(3), f(1)]).double() for f in (lambda a: math.exp(-a * H), lambda a: 1 - a * H))
    assert_close(see(quadratic, theta)["measured"], torch.linalg.vector_norm((step - decay) * theta), rtol=1e-3, atol=0)
    run = integrate(PrincipalFlow(quadratic, H), theta.real, [0.0, H], observers=[Drift(quadratic, H)])
    assert run.observations["drift measured"][1].dtype == torch.float64


class Interrupted(Landscape):
    """Interrupted in the middle of the drift's own integration."""

    dimension = 2
    calls = 0

    def loss(self, theta):
        return theta.square().sum(-1)

    def grad(self, theta):
        self.calls += 1
        if self.calls == 5:
            raise KeyboardInterrupt
        return 2 * theta


def test_an_interrupt_is_the_runs():
    landscape = Interrupted()
    run = descend(GradientDescent(Quadratic(torch.eye(2)), H), torch.ones(2), 9, observers=[Drift(landscape, H)])
    assert (run.status, landscape.calls) == ("interrupted", 5)


def test_arguments_out_of_place():
    for options, words in (({"h": 0.0}, "h must be positive"), ({"tolerance": -1}, "tolerance must be positive")):
        with pytest.raises(ValueError, match=words):
            Drift(Rosenbrock(), **{"h": H, **options})
    with pytest.raises(ValueError, match="theta must have shape"):
        see(Rosenbrock(), torch.ones(3))
