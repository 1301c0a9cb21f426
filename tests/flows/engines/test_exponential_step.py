"""A step of exprb43: its functions against mpmath, its orders, exactness on quadratics, and when it is taken."""

import math

import mpmath
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import GradientFlow, integrate
from flows.engines import exponential
from flows.engines.exponential import Station, Tolerance, phi_functions, second_rows, third_rows, velocity_rows
from flows.engines.field import Field
from flows.strategies import quadratics
from landscapes import Himmelblau, Quadratic, Rosenbrock

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
            ahead, error = exponential.exprb43(here, length / count)
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


def test_the_error_norm_is_the_root_mean_square_over_the_larger_state():
    error, before, after = (torch.tensor(x, dtype=torch.complex128) for x in ([3e-3, -1e-3j], [1.0, 2.0], [0.5, 4j]))
    weights = (0.1 + 1e-2 * 1.0, 0.1 + 1e-2 * 4.0)
    expected = math.sqrt(((3e-3 / weights[0]) ** 2 + (1e-3 / weights[1]) ** 2) / 2)
    assert Tolerance(1e-2, 0.1).norm(error, before, after) == pytest.approx(expected, rel=1e-12)


def test_a_step_does_not_grow_at_once_after_one_refused(monkeypatch):
    tried = []
    plain = exponential.exprb43

    def watched(here, step):
        tried.append((tuple(here.state.tolist()), step))
        return plain(here, step)

    monkeypatch.setattr(exponential, "exprb43", watched)
    theta0 = torch.tensor([0.0, 0.5], dtype=torch.float64)
    integrate(GradientFlow(Rosenbrock()), theta0, [0.0, 1.0], first_step=1.0, **EXPRB)
    triples = list(zip(tried, tried[1:], tried[2:], strict=False))
    after = [(b[1], c[1]) for a, b, c in triples if a[0] == b[0] != c[0]]
    assert after
    assert all(later <= taken for taken, later in after)
    assert any(c[1] > b[1] for a, b, c in triples if a[0] != b[0] != c[0])


@pytest.mark.parametrize("landscape", [Himmelblau(), Rosenbrock()], ids=["himmelblau", "rosenbrock"])
def test_a_step_is_taken_where_its_error_is_within_the_tolerance_and_only_there(landscape):
    theta0 = torch.tensor([-0.6, 0.4], dtype=torch.float64)
    tolerance = Tolerance(1e-4, 1e-6)
    taken = set()
    for length in torch.logspace(-4, -1.5, 40, dtype=torch.float64).tolist():
        here = Station(Field(GradientFlow(landscape)), 0.0, theta0, tolerance, True)
        state, error = exponential.exprb43(here, length)
        size = tolerance.norm(error, theta0, state)
        setting = {"rtol": 1e-4, "atol": 1e-6, "first_step": length} | EXPRB
        run = integrate(GradientFlow(landscape), theta0, [0.0, length], **setting)
        assert (run.cost["evaluations"] == 3) == (size <= 1)
        taken.add(size <= 1)
    assert taken == {True, False}


class Overflowing(exponential.Jacobian):
    """A zero Jacobian whose last sum is past the largest number."""

    taken = 0

    def product(self, v):
        return torch.zeros_like(v)

    def sums(self, rows, vector, step):
        size = math.inf if rows is third_rows else 0.0
        return vector.new_full((len(rows(torch.zeros(1))), len(vector)), size)


def test_a_state_that_overflows_in_the_last_sum_is_no_state():
    theta0 = torch.tensor([-0.6, 0.4], dtype=torch.float64)
    here = Station(Field(GradientFlow(Himmelblau())), 0.0, theta0, Tolerance(1e-4, 1e-6), True)
    here.jacobian = Overflowing()
    with pytest.raises(exponential.NoValueError, match="not finite"):
        exponential.exprb43(here, 0.1)
