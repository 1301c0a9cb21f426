"""Slopes: derivatives of every order against dense tensors, sympy, tracing and differences, and what they cost."""

import itertools
import math
import warnings
from functools import cache, reduce

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import ModifiedFlow
from landscapes import LANDSCAPES, Counted, Expansion, FiniteSum, Landscape, Regularised, UnsupportedError, from_sympy
from landscapes.errors import SmoothnessWarning
from landscapes.expansion import AutogradExpansion, along_each
from landscapes.landscape import warn_smoothness
from landscapes.toys.finite_sums import FINITE_SUMS
from landscapes.wrappers.rotated import Rotated

every = pytest.mark.parametrize("name", LANDSCAPES)
seeds = st.integers(0, 2**31)
x, y, z = sympy.symbols("x y z")
SYMBOLIC = {
    "quotient": (x * y / (3 + x**2 + y**2) + sympy.exp(-x * y), (x, y)),
    "net": (sympy.Rational(1, 2) * (1 - z * sympy.tanh(x)) ** 2, (x, z)),
    "pieces": (sympy.Piecewise((x**7, x < 0), (x**2 * y**4, True)), (x, y)),
}


class Traced(Landscape):
    """A landscape known by its loss alone, and how often that is asked for."""

    def __init__(self, loss, dimension):
        self._loss, self._dimension, self.calls = loss, dimension, 0
        self.holomorphic = True

    @property
    def dimension(self):
        return self._dimension

    def loss(self, theta):
        self.calls += 1
        return self._loss(theta)


def quartic(theta):
    """Every derivative to the fifth is dense, and differs."""
    a, b, c = theta.unbind(-1)
    return torch.sin(a * b) * c**3 + torch.exp(a - c) * b**2 + torch.tanh(a + b * c)


def dense(loss, theta, order):
    """The full tensor D^m f(θ), (d, …, d), by nested forward mode over one reverse pass."""
    return reduce(lambda f, _: torch.func.jacfwd(f), range(order - 1), torch.func.jacrev(loss))(theta)


def contracted(tensor, directions):
    """D^m f[w_1, …] with the first directions taken."""
    return reduce(lambda t, w: torch.tensordot(w, t, dims=1), directions, tensor)


def close(one, other, tolerance=1e-11):
    """Equal to rounding of the largest entry: cancellation between terms is nobody's fault."""
    assert one.shape == other.shape
    scale = max(float(other.detach().abs().max()), 1e-3) if other.numel() else 1.0
    assert_close(one, other, rtol=0, atol=tolerance * scale)


@cache
def symbolic(name):
    """Its programs are compiled once for all tests."""
    return from_sympy(*SYMBOLIC[name])


TOYS = {
    "traced": lambda: Traced(quartic, 3),
    "himmelblau": LANDSCAPES["himmelblau"],
    "mueller-brown": LANDSCAPES["mueller-brown"],
    "deep-linear-chain": LANDSCAPES["deep-linear-chain"],
    "spherical-quotient": LANDSCAPES["spherical-quotient"],
    "sum": FINITE_SUMS["linear-regression"],
    "symbolic": lambda: symbolic("quotient"),
    "regularised": lambda: Regularised(Traced(quartic, 3), 0.3),
    "counted": lambda: Counted(Traced(quartic, 3)),
    "rotated": lambda: Rotated(Traced(quartic, 3), torch.linalg.qr(torch.ones(3, 3).double() + torch.eye(3))[0]),
    "regularised closed": lambda: Regularised(LANDSCAPES["rosenbrock"](), 0.3),
}


@pytest.mark.parametrize("name", TOYS)
def test_every_reading_is_a_contraction_of_the_dense_tensor(name, normal):
    landscape = TOYS[name]()
    d = landscape.dimension
    theta, ws = 0.5 * normal(1, d) + 0.2, normal(2, 4, d)
    tensors = {m: dense(landscape.loss, theta, m) for m in range(1, 6 if d < 4 else 5)}
    u, v = normal(3, 2, d)
    for depth in range(min(4, len(tensors) - 2) + 1):
        slope, taken = along_each(landscape.expand(theta), ws[:depth]), list(ws[:depth])
        if depth:
            close(slope.loss, contracted(tensors[depth], taken))
        for reading, order, more in (
            (slope.grad, 1, []),
            (slope.hvp(v), 2, [v]),
            (slope.hessian(), 2, []),
            (slope.third(u, v), 3, [u, v]),
        ):
            if depth + order in tensors:
                close(reading, contracted(tensors[depth + order], taken + more))


@every
@given(seed=seeds)
def test_closed_forms_equal_tracing_to_order_five(name, normal, seed):
    landscape = LANDSCAPES[name]()
    theta, a, b, c, v = normal(seed, 5, 3, landscape.dimension)
    closed, traced = landscape.expand(theta), AutogradExpansion(landscape.loss, theta)
    for ws in ((a,), (a, b), (a, b, c)):
        one, other = along_each(closed, ws), along_each(traced, ws)
        # singular toys (a quotient near zero) amplify the rounding of θ by every order
        close(one.loss, other.loss, 1e-9)
        close(one.grad, other.grad, 1e-9)
        close(one.hvp(v), other.hvp(v), 1e-9)
    close(along_each(closed, (a, b)).third(c, v), along_each(traced, (a, b, c)).hvp(v), 1e-9)
    close(along_each(closed, (a,)).hessian(), along_each(traced, (a,)).hessian(), 1e-9)


@pytest.mark.parametrize("name", ["traced", "mueller-brown", "symbolic", "regularised", "rotated"])
@given(seed=seeds, data=st.data())
def test_products_are_symmetric_and_linear_in_their_directions(name, normal, seed, data):
    landscape = TOYS[name]()
    theta, *ws = 0.5 * normal(seed, 5, landscape.dimension)
    other = normal(seed + 1, landscape.dimension)
    point = landscape.expand(theta)

    def product(directions):
        return along_each(point, directions[:-1]).hvp(directions[-1])

    expected = product(ws)
    order = data.draw(st.permutations(range(4)))
    close(product([ws[i] for i in order]), expected, 1e-10)
    place = data.draw(st.integers(0, 3))

    def changed(w):
        return product([*ws[:place], w, *ws[place + 1 :]])

    summed = 2 * expected - 3 * changed(other)
    scale = float(expected.abs().max() + changed(other).abs().max())
    assert_close(changed(2 * ws[place] - 3 * other), summed, rtol=0, atol=1e-11 * max(scale, 1.0))


@pytest.mark.parametrize("name", TOYS)
def test_a_batch_is_its_members(name, normal):
    landscape = TOYS[name]()
    theta, a, b, c = 0.5 * normal(4, 4, 2, 3, landscape.dimension) + 0.2
    slope = landscape.expand(theta).along(a).along(b)
    for i, j in itertools.product(range(2), range(3)):
        member = landscape.expand(theta[i, j]).along(a[i, j]).along(b[i, j])
        close(slope.loss[i, j], member.loss)
        close(slope.grad[i, j], member.grad)
        close(slope.hvp(c)[i, j], member.hvp(c[i, j]))
        close(slope.hessian()[i, j], member.hessian())


@every
def test_complex_theta(name, normal):
    """Against differences of the order below, along complex directions: products are bilinear."""
    landscape = LANDSCAPES[name]()
    parts = 0.5 * normal(5, 2, 5, landscape.dimension)
    theta, a, b, c, v = torch.complex(*parts)
    for ws in ((a,), (a, b), (a, b, c)):
        slope = along_each(landscape.expand(theta), ws)
        behind, ahead = (along_each(landscape.expand(theta + e * v), ws) for e in (-1e-4, 1e-4))
        close(slope.hvp(v), (ahead.grad - behind.grad) / 2e-4, 1e-5)
        close((slope.grad * v).sum(-1), (ahead.loss - behind.loss) / 2e-4, 1e-5)
    point = AutogradExpansion(landscape.loss, theta)
    close(
        landscape.expand(theta).along(a).along(b).along(c).hvp(1j * v), 1j * along_each(point, (a, b, c)).hvp(v), 1e-9
    )


@pytest.mark.parametrize("depth", [0, 1, 2, 3])
@pytest.mark.parametrize("name", ["traced", "himmelblau", "symbolic", "regularised", "counted", "rotated"])
def test_results_carry_the_graph_of_theta_and_of_directions_that_depend_on_it(name, depth, normal):
    """gradcheck differentiates x ↦ D^m f(x)[∇f(x), w, H∇f(x), …] in full; in the product directions are constants."""
    landscape = TOYS[name]()
    theta, w = 0.3 * normal(6, 2, landscape.dimension) + 0.2

    def product(t):
        point = landscape.expand(t)
        directions = (point.grad, w, point.along(point.grad).grad)[:depth]
        slope = along_each(point, directions)
        own = slope.along(slope.grad)
        return slope.hvp(point.grad), slope.loss, slope.third(point.grad, slope.grad), own.hvp(own.grad)

    for attached, free in zip(product(theta.clone().requires_grad_()), product(theta), strict=True):
        assert attached.requires_grad
        assert not free.requires_grad
        close(attached.detach(), free)
    assert torch.autograd.gradcheck(product, (theta.clone().requires_grad_(),))


def test_directions_leave_no_graph_where_theta_has_none(normal):
    for landscape in (Traced(quartic, 3), symbolic("net"), Regularised(Traced(quartic, 3), 0.1)):
        theta, w, v = normal(7, 3, landscape.dimension)
        w.requires_grad_()
        slope = landscape.expand(theta).along(w).along(w)
        for reading in (slope.loss, slope.grad, slope.hvp(v), slope.third(v, v), slope.along(w).hvp(w)):
            assert not reading.requires_grad


@pytest.mark.parametrize("name", ["quadratic", *FINITE_SUMS])
def test_quadratics_have_exactly_nothing_beyond_order_two(name, normal, dtype):
    landscape = (LANDSCAPES | FINITE_SUMS)[name]()
    theta, a, b, v = normal(8, 4, 3, landscape.dimension, dtype=dtype)
    slope = landscape.expand(theta).along(a).along(b)
    close(slope.loss, (landscape.hvp(theta, a) * b).sum(-1), 1e-5)
    for zero in (slope.grad, slope.hvp(v), slope.third(v, v), slope.along(v).along(v).hvp(v)):
        assert torch.equal(zero, torch.zeros_like(theta))


@pytest.mark.parametrize("name", SYMBOLIC)
def test_symbolic_landscapes_equal_sympy_at_order_six(name, normal):
    landscape, (expression, symbols) = symbolic(name), SYMBOLIC[name]
    d = len(symbols)
    theta, *ws = 0.5 * normal(9, 6, d)
    value = 0
    for index in itertools.product(range(d), repeat=5):
        weight = math.prod(w[i].item() for w, i in zip(ws, index, strict=True))
        value += weight * sympy.diff(expression, *[symbols[i] for i in index])
    values = dict(zip(symbols, theta.tolist(), strict=True))
    expected = [float(sympy.diff(value, s).subs(values).evalf(30)) for s in symbols]
    found = along_each(landscape.expand(theta), ws[:4]).hvp(ws[4])
    close(found, torch.tensor(expected, dtype=torch.float64))
    assert landscape._derivative_program(6) is landscape._derivative_program(6)  # compiled once


def test_closed_slopes_stand_inside_transforms(normal):
    theta, a, b, v = 0.5 * normal(10, 4, 2)
    for landscape in (LANDSCAPES["himmelblau"](), symbolic("quotient")):

        def product(t, landscape=landscape):
            return landscape.expand(t).along(a).along(landscape.grad(t)).along(b).hvp(v)

        _, slope = torch.func.jvp(product, (theta,), (v,))
        close(slope, (product(theta + 1e-4 * v) - product(theta - 1e-4 * v)) / 2e-4, 1e-6)


def test_slopes_are_free_and_share_one_forward_pass(normal):
    landscape = Traced(quartic, 3)
    theta, a, b, v = normal(11, 4, 3)
    slope = landscape.expand(theta).along(a).along(b)
    assert landscape.calls == 0
    for _ in range(2):
        slope.hvp(v), slope.loss, slope.third(v, v), slope.along(v).hvp(v)
    assert landscape.calls == 1


def test_every_reading_of_a_slope_is_counted_by_its_order(normal):
    theta, a, b, v = normal(12, 4, 3, 2)
    landscape = Counted(LANDSCAPES["rosenbrock"]())

    def added():
        counts = {kind: count / 3 for kind, count in landscape.counts.items() if count}
        landscape.counts.update(dict.fromkeys(landscape.counts, 0))
        return counts

    point = landscape.expand(theta)
    one = point.along(a)
    two, three = one.along(b), one.along(b).along(v)
    assert added() == {}
    assert (one.loss, one.loss, added())[-1] == {"grad": 1}
    assert (point.grad, added())[-1] == {}
    assert (two.loss, added())[-1] == {"hvp": 1}
    assert (one.grad, one.grad, added())[-1] == {}
    assert (one.hvp(v), one.hvp(v), added())[-1] == {"third": 2}
    assert (one.third(v, v), added())[-1] == {"higher": 1}
    assert (one.hessian(), added())[-1] == {"third": 2}
    assert (two.grad, two.grad, added())[-1] == {"third": 1}
    assert (two.hvp(v), two.third(v, v), added())[-1] == {"higher": 2}
    assert (two.hessian(), added())[-1] == {"higher": 2}
    assert (three.grad, three.grad, three.hvp(v), added())[-1] == {"higher": 2}
    assert (point.along(a).grad, added())[-1] == {"hvp": 1}
    assert (three.loss, added())[-1] == {"third": 1}  # of its own second slope
    assert (three.loss, added())[-1] == {}


class Products(Expansion):
    """An expansion as a user may write it: no more than the contract asks."""

    def __init__(self, inner):
        self.theta, self._inner = inner.theta, inner

    @property
    def loss(self):
        return self._inner.loss

    @property
    def grad(self):
        return self._inner.grad

    def hvp(self, v):
        return self._inner.hvp(v)

    def third(self, u, v):
        return self._inner.third(u, v)


def test_a_users_expansion_has_slopes_as_far_as_its_products_go(normal):
    theta, a, b, v = normal(13, 4, 3)
    inner = AutogradExpansion(quartic, theta)
    point = Products(inner)
    close(point.along(a).loss, inner.along(a).loss)
    close(point.along(a).grad, inner.along(a).grad)
    close(point.along(a).hvp(v), inner.along(a).hvp(v))
    close(point.along(a).hessian(), inner.along(a).hessian())
    close(point.along(a).along(b).grad, inner.along(a).along(b).grad)
    for beyond in (
        lambda: point.along(a).third(b, v),
        lambda: point.along(a).along(b).hvp(v),
        lambda: point.along(a).along(b).along(v).grad,
    ):
        with pytest.raises(UnsupportedError, match=r"Products has no derivatives above the third; define along\(w\)"):
            beyond()


@pytest.mark.parametrize("name", TOYS)
def test_directions_are_checked(name):
    landscape = TOYS[name]()
    point = landscape.expand(torch.full((landscape.dimension,), 0.3, dtype=torch.float64))
    good = torch.ones(landscape.dimension, dtype=torch.float64)
    for start in (point, point.along(good), point.along(good).along(good)):
        with pytest.raises(ValueError, match="w must have the shape and dtype of theta"):
            start.along(good.float() if name != "rotated" else torch.ones(2, 3).double())
        with pytest.raises(ValueError, match="must have the shape and dtype of theta"):
            start.third(good, torch.ones(1).double() if name != "rotated" else torch.ones(2, 3).double())


def test_smoothness_is_known_where_kinks_are(normal):
    for name, build in (LANDSCAPES | FINITE_SUMS).items():
        assert build().smoothness == math.inf, name
    assert symbolic("quotient").smoothness == math.inf
    assert from_sympy(sympy.erf(x) + sympy.sqrt(1 + x**2) ** sympy.pi, (x,)).smoothness == math.inf
    kinked = [
        sympy.Abs(x),
        sympy.Max(x, 0) ** 2,
        sympy.Min(x, 3),
        sympy.sign(x) * x,
        sympy.Heaviside(x) * x**2,
        SYMBOLIC["pieces"][0] + y,
    ]
    for expression in kinked:
        landscape = from_sympy(expression, (x, y))
        assert landscape.smoothness == 0
        rotation = torch.eye(2, dtype=torch.float64)
        for wrapped in (Counted(landscape), Regularised(landscape, 0.1), Rotated(landscape, rotation)):
            assert wrapped.smoothness == 0


class Rough(FiniteSum):
    """Two examples of a smoothness told."""

    dimension, size = 1, 2

    def __init__(self, smoothness):
        self._smoothness = smoothness

    @property
    def smoothness(self):
        return self._smoothness

    def losses(self, theta, index=None):
        return (theta.abs() ** 1.5).expand(*theta.shape[:-1], 2 if index is None else index.shape[-1])


def test_an_order_beyond_the_smoothness_warns(normal):
    assert Rough(1).restrict(torch.tensor([0])).smoothness == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for smoothness, order in ((0, 1), (1, 1), (2, 2), (math.inf, 9)):
            warn_smoothness(Rough(smoothness), order, "Flow")
    for smoothness, order in ((0, 2), (1, 2), (2, 3)):
        words = f"Flow takes derivatives of order {order}, .* up to its order-{smoothness} derivative only"
        with pytest.warns(SmoothnessWarning, match=words):
            warn_smoothness(Rough(smoothness), order, "Flow")
    for call in (
        lambda: warn_smoothness(Rough(0), 2, "Flow"),
        lambda: ModifiedFlow(from_sympy(sympy.Abs(x), (x,)), 0.1, 2),
    ):
        with pytest.warns(SmoothnessWarning) as caught:
            call()
        assert [w.filename for w in caught] == [__file__]  # the line that made the flow, not a dataclass's <string>
