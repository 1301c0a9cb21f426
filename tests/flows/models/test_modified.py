"""Modified flows of any order: orders of error, exact coefficients, invariances, what they cost, what they refuse."""

import functools
import math
import warnings
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from sympy import QQ
from sympy.polys.rings import ring
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, integrate
from flows.descents.runge_kutta import RungeKuttaDescent
from flows.invariants import (
    InvariantError,
    asymmetry,
    check_batch,
    check_equivariance,
    check_gradient_field,
    check_order,
)
from flows.models.modified import ModifiedRungeKuttaFlow
from flows.series import EULER, HEAVY_BALL, runge_kutta
from flows.strategies import points, quadratics, rotations, smooth_landscapes
from landscapes import (
    Counted,
    DoubleWell,
    GradientPenalty,
    Himmelblau,
    Quadratic,
    Regularised,
    Rosenbrock,
    from_sympy,
    modified_loss,
)
from landscapes.errors import SmoothnessWarning
from nets import NetworkLandscape, cross_entropy
from tests.examples import few
from tests.flows.jets import compositions
from tests.flows.networks import tanh_network
from tests.tensors import f64

RING, X, Y = ring("x y", QQ)
SYMBOLS = sympy.symbols("x y")
POLYNOMIALS = {
    "rosenbrock": ((1 - X) ** 2 + 5 * (Y - X**2) ** 2, (-0.4, 0.6), 0.032),
    "quartic": (X**4 / 4 + X * Y**2 / 2 + X**3 * Y / 6 + Y**2, (0.7, -0.9), 0.1),
    "monkey": (X**3 - 3 * X * Y**2 + (X**2 + Y**2) ** 2 / 4 + X * Y / 3, (0.8, -0.3), 0.04),
}
ORDERS = range(1, 7)


def symbolic(name):
    return from_sympy(POLYNOMIALS[name][0].as_expr(), SYMBOLS)


@functools.cache
def lie_fields(name):
    """F_1 … F_6 of the modified equation by the Lie-derivative recursion, exact polynomials: no trees."""
    loss, _, _ = POLYNOMIALS[name]
    fields = [None, [-loss.diff(s) for s in (X, Y)]]

    @functools.cache
    def term(parts):  # D_{k_1} … D_{k_{i−1}} F_{k_i}
        if len(parts) == 1:
            return fields[parts[0]]
        inner, along = term(parts[1:]), fields[parts[0]]
        return [c.diff(X) * along[0] + c.diff(Y) * along[1] for c in inner]

    for j in range(2, 7):
        total = [RING.zero, RING.zero]
        for parts in compositions(j):
            if len(parts) > 1:
                total = [a - b * QQ(1, math.factorial(len(parts))) for a, b in zip(total, term(parts), strict=True)]
        fields.append(total)
    return fields[1:]


def evaluate(polynomial, x, y):
    return sum(mpmath.mpf(c.numerator) / c.denominator * x**i * y**j for (i, j), c in polynomial.terms())


def truncated(name, y, h, order):
    """The modified field at y in mpmath's precision."""
    fields = lie_fields(name)[:order]
    return [sum(h**j * evaluate(field[i], *y) for j, field in enumerate(fields)) for i in (0, 1)]


toys = pytest.mark.parametrize("name", POLYNOMIALS)
orders = pytest.mark.parametrize("order", ORDERS)


@toys
@orders
def test_field_is_that_of_the_lie_recursion(name, order):
    _, start, h = POLYNOMIALS[name]
    h = 4 * h  # so that the last terms count
    expected = list(map(float, truncated(name, start, h, order)))
    found = ModifiedFlow(symbolic(name), h, order).velocity(0.0, f64(*start))
    assert_close(found, f64(*expected), rtol=1e-12, atol=1e-12 * max(map(abs, expected)))


@toys
@orders
def test_one_step_order_in_extended_precision(name, order):
    """Errors down to 1e-30: slopes within 0.02 of p + 1, which they approach linearly in h."""
    _, start, h = POLYNOMIALS[name]
    errors = []
    with mpmath.workdps(50):
        for rung in (mpmath.mpf(h) / 256, mpmath.mpf(h) / 512):
            y = [mpmath.mpf(c) for c in start]
            step = [c + rung * f for c, f in zip(y, truncated(name, y, 0, 1), strict=True)]
            end = midpoint_step(lambda z, r=rung: truncated(name, z, r, order), y, rung)
            errors.append(max(abs(a - b) for a, b in zip(step, end, strict=True)))
        slope = mpmath.log(errors[0] / errors[1]) / mpmath.log(2)
    assert float(slope) == pytest.approx(order + 1, abs=0.02)


def midpoint_step(field, y, h, stages=7):
    """Gragg's extrapolated midpoint rule in mpmath, order 2·stages: its error is far below h^8."""
    table = []
    for row in range(stages):
        n = 2 * (row + 1)
        k = h / n
        before, now = y, [a + k * b for a, b in zip(y, field(y), strict=True)]
        for _ in range(n - 1):
            before, now = now, [a + 2 * k * b for a, b in zip(before, field(now), strict=True)]
        last = [a + k * b for a, b in zip(before, field(now), strict=True)]
        line = [[(a + b) / 2 for a, b in zip(now, last, strict=True)]]
        for j, above in enumerate(table[-1] if table else []):
            ratio = mpmath.mpf(row + 1) ** 2 / mpmath.mpf(row - j) ** 2 - 1
            line.append([a + (a - b) / ratio for a, b in zip(line[-1], above, strict=True)])
        table.append(line)
    return table[-1][-1]


@toys
@orders
def test_one_step_order_in_float64(name, order):
    """The program under torchdiffeq; rungs whose error is rounding, from order 5 on the finest, are left out."""
    _, start, h = POLYNOMIALS[name]
    landscape = symbolic(name)
    check_order(
        lambda h: ModifiedFlow(landscape, h, order),
        lambda h: GradientDescent(landscape, h),
        f64(*start),
        order + 1,
        [h / 2**k for k in range(4)],
        tolerance=0.2,
    )


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_one_step_order_on_a_tanh_network(order):
    network = tanh_network()
    check_order(
        lambda h: ModifiedFlow(network, h, order),
        lambda h: GradientDescent(network, h),
        3 * network.theta0,
        order + 1,
        [0.8, 0.4, 0.2, 0.1],
        tolerance=0.2,
    )


def test_orders_one_to_three_are_the_printed_formulas(normal):
    landscape, theta, h = Rosenbrock(), f64(-0.4, 0.7) + 0.1 * normal(0, 5, 2), 0.01
    point = landscape.expand(theta)
    hg = point.hvp(point.grad)
    second = -point.grad - h / 2 * hg
    third = second - h**2 * (point.hvp(hg) / 3 + point.third(point.grad, point.grad) / 12)
    for order, expected in ((1, -point.grad), (2, second), (3, third)):
        assert_close(ModifiedFlow(landscape, h, order).velocity(0.0, theta), expected, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("order", [2, 5, 9])
def test_on_a_quadratic_the_field_is_the_principal_series(order):
    eigenvalues = f64(0.9, -0.6, 0.2, 0.0)
    landscape, theta = Quadratic(torch.diag(eigenvalues)), f64(1.0, -2.0, 3.0, 4.0)
    coefficient = -sum(eigenvalues**n / (n + 1) for n in range(order))
    assert_close(ModifiedFlow(landscape, 1.0, order).velocity(0.0, theta), coefficient * eigenvalues * theta)


def test_high_orders_tend_to_the_principal_flow_on_a_quadratic():
    landscape, theta = Quadratic(torch.diag(f64(0.3, -0.3))), f64(1.0, 1.0)
    gap = ModifiedFlow(landscape, 1.0, 9).velocity(0.0, theta) - PrincipalFlow(landscape, 1.0).velocity(0.0, theta)
    assert 0 < float(gap.abs().max()) < 0.3**10 / 5


@few(10)
@given(data=st.data(), order=st.integers(4, 6))
def test_high_orders_turn_with_the_coordinates(data, order):
    landscape = data.draw(st.one_of(smooth_landscapes(2), quadratics(-2.0, 2.0, st.just(2))))
    theta, rotation = data.draw(points(2, 3)), data.draw(rotations(2))
    check_equivariance(lambda f: ModifiedFlow(f, 0.3, order), landscape, theta, rotation)


@few(10)
@given(data=st.data(), order=st.integers(1, 5), factor=st.floats(0.2, 5.0), constant=st.floats(-1e3, 1e3))
def test_a_constant_does_nothing_and_a_factor_is_a_learning_rate(data, order, factor, constant):
    """f + c has f's field, and the field of (a f, h) is a times that of (f, a h)."""
    landscape = data.draw(smooth_landscapes(2))
    theta, h = data.draw(points(2, 3)), 0.2
    moved = from_sympy(landscape.expression + sympy.Float(constant), landscape.symbols)
    scaled = from_sympy(landscape.expression * sympy.Float(factor, 30), landscape.symbols)
    field = ModifiedFlow(landscape, h, order).velocity(0.0, theta)
    assert_close(ModifiedFlow(moved, h, order).velocity(0.0, theta), field, rtol=1e-11, atol=1e-11)
    left = ModifiedFlow(scaled, h, order).velocity(0.0, theta)
    right = factor * ModifiedFlow(landscape, factor * h, order).velocity(0.0, theta)
    size = float(right.abs().max()) + 1e-12
    assert_close(left / size, right / size, rtol=1e-9, atol=1e-9)


@few(10)
@given(data=st.data(), order=st.integers(1, 6))
def test_small_rates_tend_to_gradient_flow_linearly(data, order):
    landscape, theta = data.draw(smooth_landscapes(2)), data.draw(points(2, 3, scale=0.5))
    flow = GradientFlow(landscape).velocity(0.0, theta)
    gaps = [ModifiedFlow(landscape, h, order).velocity(0.0, theta) - flow for h in (1e-5, 1e-6)]
    expected = -0.5 * landscape.hvp(theta, landscape.grad(theta)) if order > 1 else torch.zeros_like(theta)
    for gap, h in zip(gaps, (1e-5, 1e-6), strict=True):
        # the next term is O(h²), and cancellation leaves eps/h
        assert_close(gap / h, expected, rtol=1e-2, atol=1e-2 * (1 + float(expected.abs().max())))


@pytest.mark.parametrize("order", [4, 5])
def test_a_batch_is_its_members_at_high_order(order, normal):
    check_batch(ModifiedFlow(Rosenbrock(b=5.0), 0.02, order), f64(-0.4, 0.6) + 0.2 * normal(2, 3, 2), steps=1, dt=0.02)
    network = tanh_network()
    thetas = network.theta0 + 0.1 * normal(4, 2, network.dimension)
    check_batch(ModifiedFlow(network, 0.1, order), thetas, steps=1, dt=0.1)


def test_float32_keeps_its_precision():
    landscape, theta = Himmelblau(), f64(0.3, -0.4)
    single = ModifiedFlow(landscape, 0.01, 5).velocity(0.0, theta.float())
    assert single.dtype == torch.float32
    assert_close(single.double(), ModifiedFlow(landscape, 0.01, 5).velocity(0.0, theta), rtol=1e-5, atol=1e-5)


def test_complex_positions_follow_the_same_polynomial():
    """The field of a polynomial is one too: its Taylor series carries it off the real axis."""
    landscape, theta, step = DoubleWell(tilt=0.3), f64(0.4), 1e-20
    flow = ModifiedFlow(landscape, 0.1, 4)
    slope = flow.velocity(0.0, theta + 1j * step).imag / step  # the complex step: exact to rounding
    (difference,) = [flow.velocity(0.0, theta + e) - flow.velocity(0.0, theta - e) for e in (1e-5,)]
    assert_close(slope, difference / 2e-5, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        (1, {"grad": 1}),
        (2, {"grad": 1, "hvp": 1}),
        (3, {"grad": 1, "hvp": 2, "third": 1}),
        (4, {"grad": 1, "hvp": 3, "third": 2}),
        (5, {"grad": 1, "hvp": 4, "third": 4, "higher": 3}),
        (6, {"grad": 1, "hvp": 6, "third": 6, "higher": 5}),
    ],
)
def test_products_of_an_evaluation(order, expected):
    counted = Counted(Rosenbrock())
    ModifiedFlow(counted, 0.01, order).velocity(0.0, f64(0.3, 0.2))
    assert {name: n for name, n in counted.counts.items() if n} == expected


def test_order_two_is_the_gradient_flow_of_the_modified_loss(normal):
    for landscape, theta in ((Rosenbrock(), normal(0, 4, 2)), (tanh_network(), 3 * tanh_network().theta0)):
        flow = GradientFlow(modified_loss(landscape, 0.05)).velocity(0.0, theta)
        assert_close(flow, ModifiedFlow(landscape, 0.05, 2).velocity(0.0, theta), rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match="h must be positive"):
        modified_loss(Rosenbrock(), 0.0)


@pytest.mark.parametrize("order", [3, 4, 5])
def test_chunks_of_a_network_add_up(order):
    whole, parts = tanh_network(), tanh_network(chunk_size=4)
    expected = ModifiedFlow(whole, 0.3, order).velocity(0.0, 3 * whole.theta0)
    assert_close(ModifiedFlow(parts, 0.3, order).velocity(0.0, 3 * whole.theta0), expected, rtol=1e-11, atol=1e-13)


def test_order_three_has_curl_and_order_two_has_none(normal):
    """The antisymmetric part of the order-3 field's Jacobian is −(h²/12)[H, T[g]]: there is no modified loss."""
    landscape, theta, h = Rosenbrock(b=5.0), f64(-0.4, 0.6) + 0.1 * normal(0, 3, 2), 0.05
    point = landscape.expand(theta)
    third = point.along(point.grad).hessian()
    commutator = point.hessian() @ third - third @ point.hessian()
    assert float(commutator.abs().min(dim=0).values.max()) > 1
    assert_close(asymmetry(ModifiedFlow(landscape, h, 3), theta), -(h**2) / 12 * commutator)
    check_gradient_field(ModifiedFlow(landscape, h, 2), theta)
    with pytest.raises(InvariantError, match="antisymmetric part"):
        check_gradient_field(ModifiedFlow(landscape, h, 3), theta)


def test_order_three_is_a_gradient_in_one_dimension_and_on_quadratics(normal):
    check_gradient_field(ModifiedFlow(DoubleWell(tilt=0.3), 0.1, 3), normal(0, 4, 1))
    tilted = torch.linalg.qr(normal(2, 3, 3))[0]
    bowl = Quadratic(tilted @ torch.diag(f64(1.0, 3.0, -0.5)) @ tilted.mT)
    check_gradient_field(ModifiedFlow(bowl, 0.2, 6), normal(1, 3))


def test_a_network_with_kinks_gives_a_warning_that_names_order_and_remedy():
    inputs = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3)).double()
    kinked = NetworkLandscape(module, cross_entropy, inputs, torch.arange(6) % 3)
    with pytest.warns(SmoothnessWarning, match=r"order 3.*tanh"):
        ModifiedFlow(kinked, 0.1, 3)
    with pytest.warns(SmoothnessWarning, match="order 2"):
        ModifiedFlow(Regularised(kinked, 0.1), 0.1, 2)
    with pytest.warns(SmoothnessWarning, match="the landscape jumps"):
        ModifiedFlow(GradientPenalty(kinked, 0.1), 0.1, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ModifiedFlow(kinked, 0.1, 1)
        ModifiedFlow(tanh_network(), 0.1, 6)


def test_the_series_has_radius_one_but_for_its_first_term():
    assert ModifiedFlow(Rosenbrock(), 0.1, 2).radius == 1
    assert ModifiedFlow(Rosenbrock(), 0.1, 1).radius == math.inf


def test_orders_out_of_range():
    with pytest.raises(ValueError, match="at most 12"):
        ModifiedFlow(Rosenbrock(), 0.1, 13)
    with pytest.raises(ValueError, match="order must be at least 1"):
        ModifiedFlow(Rosenbrock(), 0.1, 0)
    with pytest.raises(TypeError, match="order"):
        ModifiedFlow(Rosenbrock(), 0.1, 2.5)


EXTRAGRADIENT = runge_kutta([[0, 0], [1, 0]], [0, 1])


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_extragradient_and_its_modified_flow(order):
    _, start, h = POLYNOMIALS["quartic"]
    landscape = symbolic("quartic")
    check_order(
        lambda h: ModifiedRungeKuttaFlow(landscape, h, order, EXTRAGRADIENT),
        lambda h: RungeKuttaDescent(landscape, h, EXTRAGRADIENT),
        f64(*start),
        order + 1,
        [h / 2**k for k in range(4)],
        tolerance=0.2,
    )


def test_a_runge_kutta_series_ends_at_the_least_zero_of_the_stability_function():
    """1 + z; 1 + z + z², zeros on the unit circle; 1 + z + z²/2, zeros −1 ± i; 1 + … + z³/6, of two moduli."""
    midpoint = runge_kutta([[0, 0], [Fraction(1, 2), 0]], [0, 1])
    thirds = [[0, 0, 0], [Fraction(1, 2), 0, 0], [-1, 2, 0]]
    kutta = runge_kutta(thirds, [Fraction(1, 6), Fraction(2, 3), Fraction(1, 6)])
    cubic = float(np.abs(np.roots([1 / 6, 1 / 2, 1, 1])).min())
    for method, expected in ((EULER, 1), (EXTRAGRADIENT, 1), (midpoint, math.sqrt(2)), (kutta, cubic)):
        assert ModifiedRungeKuttaFlow(Rosenbrock(), 0.1, 3, method).radius == pytest.approx(expected)
        assert ModifiedRungeKuttaFlow(Rosenbrock(), 0.1, 1, method).radius == math.inf


def test_euler_as_a_runge_kutta_method_is_gradient_descent():
    landscape, theta = Rosenbrock(), f64(0.3, 0.4)
    generator = torch.Generator()
    left = RungeKuttaDescent(landscape, 0.01, EULER).step(theta, 0, generator)
    assert torch.equal(left, GradientDescent(landscape, 0.01).step(theta, 0, generator))
    flows = [ModifiedRungeKuttaFlow(landscape, 0.01, 4, EULER), ModifiedFlow(landscape, 0.01, 4)]
    assert torch.equal(*(flow.velocity(0.0, theta) for flow in flows))
    with pytest.raises(TypeError, match="runge_kutta"):
        RungeKuttaDescent(landscape, 0.01, HEAVY_BALL)
    with pytest.raises(TypeError, match="runge_kutta"):
        ModifiedRungeKuttaFlow(landscape, 0.01, 2, "euler")


def test_integrated_beside_gradient_descent_each_order_is_nearer():
    landscape, theta, h = Rosenbrock(b=5.0), f64(-0.4, 0.6), 0.03
    target = theta
    for _ in range(10):
        target = target - h * landscape.grad(target)
    orders = (1, 2, 4, 6)
    runs = [integrate(ModifiedFlow(landscape, h, p), theta, [0.0, 10 * h], rtol=1e-8, atol=1e-9) for p in orders]
    errors = [float((run.theta[-1] - target).norm()) for run in runs]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-2 * errors[0]
