"""exprb43: its functions against mpmath, its orders, exactness on quadratics, and what stiff flows cost by it."""

import math

import mpmath
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import GradientFlow, exponential, integrate
from flows.exponential import Station, Tolerance, phi_functions, second_rows, third_rows, velocity_rows
from flows.invariants import check_batch, check_descent
from flows.solvers import Field
from flows.strategies import points, quadratics, rotations
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
from landscapes.wrappers import Rotated
from nets import NetworkLandscape

REALS = [0.0, 1e-300, -1e-9, 1e-3, -0.5, 1.999, -1.999, 2.0, -2.0, 2.001, -3.7, 7.0, -40.0, 50.0, -1e3, -1e5, -1e8]
COMPLEX = [1e-9j, 0.3 - 0.4j, 1.9j, 2.1j, 6.2j, -7 + 1e-8j, 3 + 4j, 40 - 30j, -40 + 30j, -1e6 - 1e5j, 500j]
EXPRB = {"method": "exprb43"}


def phi(k, z):
    """φ_k(z) by mpmath: the recurrence from exp, in digits enough for small z; its series at 0."""
    with mpmath.workdps(60 + (1500 if 0 < abs(z) < 1e-30 else 0)):
        z = mpmath.mpmathify(z)
        if z == 0:
            return 1 / math.factorial(k)
        value = mpmath.exp(z)
        for j in range(k):
            value = (value - 1 / mpmath.factorial(j)) / z
        return complex(value)


@pytest.mark.parametrize("z", REALS + COMPLEX)
def test_phi_functions_to_rounding(z):
    values = phi_functions(torch.tensor([z], dtype=torch.complex128 if isinstance(z, complex) else torch.float64))
    for k, value in enumerate(values, start=1):
        expected = phi(k, z)
        # φ₁ has zeros at 2πin: near them rounding is relative to 1/z.
        assert abs(value.item() - expected) <= 4e-15 * max(abs(expected), 1 / max(abs(z), 1) / math.factorial(k - 1))
        assert value.is_complex() == isinstance(z, complex)


@given(st.floats(-60, 50), st.floats(-60, 60))
def test_phi_functions_everywhere(real, imag):
    z = complex(real, imag)
    for k, value in enumerate(phi_functions(torch.tensor([z], dtype=torch.complex128)), start=1):
        expected = phi(k, z)
        assert abs(value.item() - expected) <= 1e-14 * max(abs(expected), 1 / max(abs(z), 1) / math.factorial(k - 1))


def test_phi_functions_in_single_precision_and_many_at_once():
    z = torch.tensor([[-30.0, -1.0], [0.0, 3.0]])
    for value, wide in zip(phi_functions(z), phi_functions(z.double()), strict=True):
        assert (value.shape, value.dtype) == (z.shape, z.dtype)
        assert_close(value.double(), wide, rtol=1e-5, atol=0)


@given(st.floats(-1e3, 20))
def test_order_conditions(z):
    """Σ b_i c_i² = 2φ₃, Σ b_i c_i³ = 6φ₄, the first of them by the embedded method too: stiff order 4 with 3."""
    z = torch.tensor([z], dtype=torch.float64)
    _, _, third, fourth = phi_functions(z)
    (half, whole), (inner, b2, e2), (b3, e3) = velocity_rows(z), second_rows(z), third_rows(z)
    close = {"rtol": 1e-12, "atol": 1e-13}
    assert_close(b2 * 0.5**2 + b3, 2 * third, **close)
    assert_close(b2 * 0.5**3 + b3, 6 * fourth, **close)
    assert_close((b2 - e2) * 0.5**2 + (b3 - e3), 2 * third, **close)
    assert_close(half, phi_functions(z / 2)[0] / 2, **close)
    assert_close(whole, phi_functions(z)[0], **close)
    assert_close(inner, phi_functions(z)[0], **close)


TIGHT = {"rtol": 1e-12, "atol": 1e-13}


def steps_of(landscape, theta, length, count, dense):
    """θ after ``count`` steps of order 4, and of its embedded order 3."""
    ends = []
    for embedded in (False, True):
        state = theta
        for _ in range(count):
            here = Station(Field(GradientFlow(landscape)), 0.0, state, Tolerance(1e-13, 1e-15), dense)
            ahead, error, _ = exponential.exprb43(here, length / count)
            state = ahead - error if embedded else ahead
        ends.append(state)
    return ends


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("imaginary", [0.0, 0.3])
@pytest.mark.parametrize("landscape", [Himmelblau(), Rosenbrock(b=3.0)], ids=["himmelblau", "rosenbrock"])
def test_observed_orders(landscape, imaginary, dense):
    theta0 = torch.tensor([-0.6, 0.4], dtype=torch.float64)
    if imaginary:
        theta0 = theta0 + torch.tensor([1j, -1j]) * imaginary
    end = integrate(GradientFlow(landscape), theta0, [0.0, 0.2], **TIGHT).theta[-1]
    errors = [
        [torch.linalg.vector_norm(x - end) for x in steps_of(landscape, theta0, 0.2, n, dense)] for n in (16, 32, 64)
    ]
    for order, (coarse, middle, fine) in zip((4, 3), zip(*errors, strict=True), strict=True):
        assert float(torch.log2(middle / fine)) == pytest.approx(order, abs=0.25)
        assert coarse > middle > fine > 1e-13


@given(quadratics(low=-1.0, high=30.0), st.floats(1e-3, 20), st.randoms(use_true_random=False))
def test_one_step_is_exact_on_quadratics(quadratic, length, random):
    d = quadratic.dimension
    if random.random() < 0.5:  # rank-deficient
        quadratic = Quadratic(torch.diag(torch.tensor([0.0, -0.7, *range(d - 2)], dtype=torch.float64)))
    theta0 = torch.ones(d, dtype=torch.float64)
    run = integrate(GradientFlow(quadratic), theta0, [0.0, length], first_step=length, **EXPRB)
    hessian, minimum = quadratic.hessian(theta0), quadratic.minimum
    expected = minimum + torch.linalg.matrix_exp(-hessian * length) @ (theta0 - minimum)
    assert run.cost["grad"] == run.cost["evaluations"] == 3  # one step
    assert run.cost["hvp"] == d
    assert_close(run.theta[-1], expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("first_step", [None, 3.0])
def test_quadratics_of_many_dimensions_go_by_krylov_spaces(first_step, normal):
    eigenvalues = torch.cat((torch.zeros(30), torch.linspace(-0.3, 2, 30), torch.tensor([50.0, 1e6]))).double()
    rotation = torch.linalg.qr(normal(0, 62, 62))[0]
    hessian = (rotation * eigenvalues) @ rotation.mT
    theta0 = normal(1, 62)
    run = integrate(GradientFlow(Quadratic((hessian + hessian.mT) / 2)), theta0, [0, 3], first_step=first_step, **EXPRB)
    expected = rotation @ (torch.exp(-3 * eigenvalues) * (rotation.mT @ theta0))
    # Krylov sums are held to 0.3·(1e-9 + 1e-7·min|θ|) a coordinate, and H itself is rounded to 1e-10.
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
    for rtol in (1e-8, 1e-5):
        run = integrate(GradientFlow(landscape), theta0, times, rtol=rtol, atol=rtol / 100, **EXPRB)
        assert run.status == "finished"
        ends[rtol] = run.theta
    assert_close(ends[1e-5], ends[1e-8], rtol=0, atol=1e-4)
    assert run.cost["grad"] < 150
    assert run.cost["hvp"] < 1600  # at most about d = 32 a step
    explicit = integrate(GradientFlow(landscape), theta0, times, rtol=1e-5, atol=1e-7, max_steps=1000)
    if stiffness > 1e4:
        assert explicit.status == "step underflow"
    else:
        assert_close(explicit.theta, ends[1e-8], rtol=0, atol=1e-4)
        assert explicit.cost["grad"] > 1500


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


@settings(max_examples=8)
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
