"""exprb43 against tight runs of other methods, and what stiff flows cost by it; batches, precisions, complex states."""

import math

import pytest
import torch
from hypothesis import given
from torch.testing import assert_close

from flows import GradientFlow, integrate
from flows.engines import exponential
from flows.engines.exponential import Station, Tolerance
from flows.engines.field import Field
from flows.invariants import check_batch, check_descent
from flows.strategies import points, rotations
from landscapes import (
    Beale,
    Counted,
    DoubleWell,
    Himmelblau,
    Landscape,
    MuellerBrown,
    Quadratic,
    QuarticWell,
    Regularised,
    Rosenbrock,
    StyblinskiTang,
    from_sympy,
)
from landscapes.wrappers.rotated import Rotated
from nets import NetworkLandscape
from tests.examples import few

EXPRB = {"method": "exprb43"}
TIGHT = {"rtol": 1e-12, "atol": 1e-13}


@pytest.mark.parametrize("first_step", [None, 3.0])
def test_quadratics_of_many_dimensions_go_by_krylov_spaces(first_step, normal):
    eigenvalues = torch.cat((torch.zeros(30), torch.linspace(-0.3, 2, 30), torch.tensor([50.0, 1e6]))).double()
    rotation = torch.linalg.qr(normal(0, 62, 62))[0]
    hessian = (rotation * eigenvalues) @ rotation.mT
    theta0 = normal(1, 62)
    run = integrate(GradientFlow(Quadratic((hessian + hessian.mT) / 2)), theta0, [0, 3], first_step=first_step, **EXPRB)
    expected = rotation @ (torch.exp(-3 * eigenvalues) * (rotation.mT @ theta0))
    # Krylov sums are held to 0.5·(1e-9 + 1e-7·|θ|) a coordinate, and H itself is rounded to 1e-10.
    assert_close(run.theta[-1], expected, rtol=1e-7, atol=1e-8)
    assert run.cost["evaluations"] <= 4  # one step, and one to find its length
    assert run.cost["hvp"] < 120  # what rounding leaves of D2 and D3 included


TOYS = [Himmelblau(), Beale(), MuellerBrown(), StyblinskiTang(3), DoubleWell(), QuarticWell(2.0, 1.0), Rosenbrock()]


@pytest.mark.parametrize("landscape", TOYS, ids=lambda x: type(x).__name__)
def test_toys_against_tight_runs_of_others(landscape):
    theta0 = torch.tensor(landscape.start, dtype=torch.float64) + 0.1
    span = 1 / float(torch.linalg.matrix_norm(landscape.hessian(theta0), 2))
    times = torch.tensor([0.0, 0.3, 1.0, 20.0], dtype=torch.float64) * span
    errors = []
    for rtol in (1e-4, 1e-7):
        run = integrate(GradientFlow(landscape), theta0, times, rtol=rtol, atol=rtol / 100, **EXPRB)
        explicit = integrate(GradientFlow(landscape), theta0, times, **TIGHT)
        implicit = integrate(GradientFlow(landscape), theta0, times, method="scipy_solver", rtol=1e-11, atol=1e-12)
        assert_close(explicit.theta, implicit.theta, rtol=1e-7, atol=1e-8)
        assert run.status == "finished"
        assert torch.equal(run.times, times)
        errors.append(float((run.theta - explicit.theta).abs().max()))
        assert errors[-1] < 30 * rtol * float(theta0.abs().max())  # a sum of local errors
    assert errors[1] < max(errors[0] / 30, 1e-9)
    check_descent(GradientFlow(landscape), theta0, times.tolist())


def test_from_sympy_and_wrappers(normal):
    import sympy

    x, y = sympy.symbols("x y")
    symbolic = from_sympy(sympy.sin(x * y) + (x**2 + 3 * y**2) / 2, (x, y))
    counted = Counted(symbolic)
    theta0, times = normal(4, 2), [0.0, 0.5, 1.0]
    run = integrate(GradientFlow(counted), theta0, times, **EXPRB)
    assert {name: run.cost[name] for name in counted.counts} == counted.counts
    for landscape in (symbolic, Regularised(symbolic, 0.3), Rotated(symbolic, torch.linalg.qr(normal(3, 2, 2))[0])):
        run, tight = (integrate(GradientFlow(landscape), theta0, times, **setting) for setting in (EXPRB, TIGHT))
        assert_close(run.theta, tight.theta, rtol=1e-6, atol=1e-7)


def test_a_stiff_valley_where_explicit_methods_give_up():
    """On the valley's floor λ = 4e5 and the way takes time 1: an explicit method needs λ/3.3 steps or more."""
    valley, theta0 = Rosenbrock(b=1e5), torch.tensor([0.0, 0.5], dtype=torch.float64)
    explicit = integrate(GradientFlow(valley), theta0, [0.0, 1.0], rtol=1e-5, atol=1e-7, max_steps=2000)
    assert explicit.status == "step underflow"
    assert "method='exprb43'" in explicit.status.sentence
    assert float(explicit.status.sentence.split("at t = ")[1].split()[0]) < 0.05
    end = integrate(GradientFlow(valley), theta0, [0.0, 1.0], method="scipy_solver", rtol=1e-11, atol=1e-12).theta[-1]
    run = integrate(GradientFlow(valley), theta0, [0.0, 1.0], rtol=1e-5, atol=1e-7, **EXPRB)
    assert run.status == "finished"
    assert float((run.theta[-1] - end).norm()) < 2e-3
    assert run.cost["grad"] < 1000
    assert run.cost["hvp"] < 700


class Mixed(Landscape):
    """½ θᵀHθ + ¼ Σ θ⁴ in d dimensions, H with eigenvalues from 1e-2 to ``stiffness``, in rotated coordinates."""

    holomorphic = True

    def __init__(self, rotation, stiffness):
        d = len(rotation)
        hessian = (rotation * torch.logspace(-2, math.log10(stiffness), d, dtype=torch.float64)) @ rotation.mT
        self.hessian_matrix = (hessian + hessian.mT) / 2
        self.asked = []

    @property
    def dimension(self):
        return len(self.hessian_matrix)

    def loss(self, theta):
        matrix = self.hessian_matrix.to(theta.dtype)
        return ((theta @ matrix) * theta).sum(-1) / 2 + (theta**4).sum(-1) / 4

    def expand(self, theta):
        point = super().expand(theta)
        plain = point.hvp

        def hvp(v):
            self.asked.append((theta.clone(), v.clone()))
            return plain(v)

        point.hvp = hvp
        return point


@pytest.mark.parametrize("stiffness", [1e3, 1e6])
def test_stiff_linear_parts_in_many_dimensions(stiffness, normal):
    landscape = Mixed(torch.linalg.qr(normal(5, 32, 32))[0], stiffness)
    theta0, times = normal(6, 32), [0.0, 0.1, 1.0]
    ends = {}
    for rtol in (1e-7, 1e-5):
        run = integrate(GradientFlow(landscape), theta0, times, rtol=rtol, atol=rtol / 100, **EXPRB)
        assert run.status == "finished"
        ends[rtol] = run.theta
    assert_close(ends[1e-5], ends[1e-7], rtol=0, atol=1e-4)
    assert run.cost["grad"] < 150
    assert run.cost["hvp"] < 1600  # at most about d = 32 a step
    explicit = integrate(GradientFlow(landscape), theta0, times, rtol=1e-5, atol=1e-7, max_steps=500)
    if stiffness > 1e4:
        assert explicit.status == "step underflow"
    else:
        assert_close(explicit.theta, ends[1e-7], rtol=0, atol=1e-4)
        assert explicit.cost["grad"] > 1500


@pytest.mark.parametrize("length", [1e-3, 0.02, 0.1])
@pytest.mark.parametrize("rtol", [1e-3, 1e-6])
def test_krylov_sums_stay_within_their_share_of_the_tolerance(rtol, length, normal):
    landscape, theta0 = Mixed(torch.linalg.qr(normal(5, 96, 96))[0], 1e4), normal(6, 96)
    tolerance = Tolerance(rtol, rtol / 100)
    states = []
    for written in (True, False):
        here = Station(Field(GradientFlow(landscape)), 0.0, theta0, tolerance, written)
        states.append(exponential.exprb43(here, length)[0])
        assert here.jacobian.taken == 96 if written else 8 < here.jacobian.taken < 3 * 96
    off = tolerance.norm(states[1] - states[0], theta0)
    assert 1e-9 < off < 0.3  # three spaces, whose residuals overestimate: 0.1 was seen


def test_no_product_is_taken_twice_when_a_step_is_tried_again(normal):
    landscape = Mixed(torch.linalg.qr(normal(5, 32, 32))[0], 10.0)
    run = integrate(
        GradientFlow(landscape), 3 * normal(6, 32), [0.0, 1.0], first_step=1.0, rtol=1e-5, atol=1e-7, **EXPRB
    )
    firsts = sum(bool((a[0] != b[0]).any()) for a, b in zip(landscape.asked, landscape.asked[1:], strict=False)) + 1
    assert run.cost["evaluations"] > 3 * firsts  # some were
    unique = {(tuple(theta.tolist()), tuple(v.tolist())) for theta, v in landscape.asked}
    assert len(unique) == len(landscape.asked) == run.cost["hvp"]


@pytest.mark.parametrize("limit", [3, 5])
def test_krylov_sums_that_do_not_converge_shorten_the_step(limit, monkeypatch, normal):
    landscape = Mixed(torch.linalg.qr(normal(5, 32, 32))[0], 1e3)
    theta0 = normal(6, 32)
    free = integrate(GradientFlow(landscape), theta0, [0.0, 0.1], rtol=1e-4, atol=1e-6, **EXPRB)
    monkeypatch.setattr(exponential, "KRYLOV", limit)
    run = integrate(GradientFlow(landscape), theta0, [0.0, 0.1], rtol=1e-4, atol=1e-6, **EXPRB)
    assert run.status == "finished"
    assert run.cost["evaluations"] > 1.2 * free.cost["evaluations"]
    assert_close(run.theta, free.theta, rtol=0, atol=1e-3)


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)], ids=str)
def test_batches_dtypes_and_devices(batch, dtype, device, normal):
    theta0 = normal(1, *batch, 2, dtype=dtype).to(device)
    times = [0.0, 0.01, 0.05]
    run = integrate(GradientFlow(Rosenbrock()), theta0, times, **EXPRB)
    tight = integrate(GradientFlow(Rosenbrock()), theta0.double(), times, **TIGHT)
    assert run.status == "finished"
    assert (run.theta.dtype, run.theta.device, run.theta.shape) == (dtype, theta0.device, (3, *batch, 2))
    assert run.alive.shape == batch
    assert bool(run.alive.all())
    assert_close(run.theta.double(), tight.theta, rtol=0, atol=1e-5 if dtype == torch.float64 else 5e-3)


def test_a_batch_is_its_members_with_a_step_size_each(normal):
    theta0, times = normal(2, 2, 3, 2), [0.0, 0.02, 0.1]
    theta0[0, 1] *= 3
    flow = GradientFlow(Rosenbrock())
    run = integrate(flow, theta0, times, **EXPRB)
    alone = [[integrate(flow, theta0[i, j], times, **EXPRB) for j in range(3)] for i in range(2)]
    for i in range(2):
        for j in range(3):
            assert torch.equal(run.theta[:, i, j], alone[i][j].theta)
    costs = [single.cost for row in alone for single in row]
    assert len({cost["evaluations"] for cost in costs}) > 1
    for name, value in run.cost.items():
        assert value == sum(cost[name] for cost in costs)


@few(8)
@given(points(2), rotations(2))
def test_turned_coordinates_give_turned_states(theta0, rotation):
    plain = integrate(GradientFlow(Himmelblau()), theta0, [0.0, 0.02], rtol=1e-7, atol=1e-7, **EXPRB)
    flow = GradientFlow(Rotated(Himmelblau(), rotation))
    turned = integrate(flow, theta0 @ rotation.mT, [0.0, 0.02], rtol=1e-7, atol=1e-7, **EXPRB)
    assert_close(turned.theta, plain.theta @ rotation.mT, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("d", [1, 2, 40])
def test_complex_states(d, normal):
    stiff = Mixed(torch.linalg.qr(normal(5, 40, 40))[0], 30.0)
    landscape = {1: DoubleWell(), 2: Rosenbrock(b=10.0), 40: stiff}[d]
    theta0 = torch.complex(normal(7, d), 0.4 * normal(8, d))
    times = [0.0, 0.05, 0.2]
    run = integrate(GradientFlow(landscape), theta0, times, **EXPRB)
    assert_close(run.theta, integrate(GradientFlow(landscape), theta0, times, **TIGHT).theta, rtol=0, atol=3e-6)
    assert float(run.theta[-1].imag.abs().max()) > 1e-3


@pytest.mark.parametrize(
    ("landscape", "rest"),
    [
        (Rosenbrock(), [1.0, 1.0]),
        (DoubleWell(), [0.0]),
        (DoubleWell(dimension=40), [0.0] * 40),
        (Quadratic(torch.zeros(40, 40)), [2.0] * 40),
    ],
    ids=["valley", "ridge", "ridges", "flat"],
)
def test_a_start_at_rest_stays(landscape, rest):
    theta0 = torch.tensor(rest, dtype=torch.float64)
    run = integrate(GradientFlow(landscape), theta0, [0.0, 1.0, 1e6], **EXPRB)
    assert run.status == "finished"
    assert torch.equal(run.theta, theta0.expand(3, -1))
    assert run.cost["evaluations"] == 6


def test_a_start_at_zero_where_only_the_absolute_tolerance_is_left():
    landscape = Quadratic(torch.diag(torch.tensor([1e3, 1.0], dtype=torch.float64)), torch.ones(2, dtype=torch.float64))
    run = integrate(GradientFlow(landscape), torch.zeros(2, dtype=torch.float64), [0.0, 1.0], **EXPRB)
    assert_close(run.theta[-1], 1 - torch.exp(-torch.tensor([1e3, 1.0], dtype=torch.float64)), rtol=1e-8, atol=0)
    assert run.cost["evaluations"] <= 10


def test_a_network_against_tight_dopri5(normal):
    module = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2)).double()
    inputs, targets = normal(9, 30, 3), normal(10, 30, 2)
    with torch.no_grad():
        for i, weights in enumerate(module.parameters()):
            weights.copy_(normal(20 + i, *weights.shape) / 2)
    net = NetworkLandscape(module, lambda out, y: 5 * (out - y).square().sum(-1), inputs, targets)
    times = [0.0, 0.5, 2.0]
    tight = integrate(GradientFlow(net), net.theta0, times, rtol=1e-9, atol=1e-11)
    run = integrate(GradientFlow(net), net.theta0, times, rtol=1e-5, atol=1e-7, **EXPRB)
    assert run.status == "finished"
    assert_close(run.theta, tight.theta, rtol=0, atol=2e-4)
    assert run.cost["grad"] == run.cost["evaluations"] < tight.cost["evaluations"] / 3
    assert run.cost["hvp"] > run.cost["grad"]


def test_check_batch_takes_the_flow():
    check_batch(GradientFlow(Himmelblau()), torch.tensor([[0.1, 0.3], [1.0, -0.4]], dtype=torch.float64))
