"""from_sympy against autograd of the same expression, its dtypes, its shapes and its refusals."""

from functools import cache

import mpmath
import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import NotHolomorphicError, Rosenbrock, UnsupportedError, from_sympy
from landscapes.expansion import AutogradExpansion
from landscapes.toys import symbolic_program

x, y, z, w = sympy.symbols("x y z w")
HOLOMORPHIC = {
    "rosenbrock": ((1 - x) ** 2 + 100 * (y - x**2) ** 2, (x, y)),
    "high powers": (x**7 * y**3 - 3 * x**4 / 7 + y**5, (x, y)),
    "numbers": (sympy.pi * x**2 + sympy.Rational(1, 3) * x * y + sympy.sqrt(2) * sympy.sin(1) * y, (x, y)),
    "quotient": (x * y / (3 + x**2 + y**2) + 1 / (2 + x**2) ** 2, (x, y)),
    "roots": ((2 + x**2 + y**2) ** sympy.Rational(3, 2) + 1 / sympy.sqrt(1 + y**2), (x, y)),
    "odd powers": ((2 + x**2) ** sympy.Rational(2, 3) + (3 + y**2) ** sympy.pi + (1 + x**2) ** 1.5, (x, y)),
    "exponentials": (2**x + sympy.exp(-(x**2) - y**2) + sympy.log(3 + x**2 + y**2), (x, y)),
    "circular": (sympy.sin(x * y) + sympy.cos(x) * sympy.tan(y / 9) + sympy.sec(x / 9), (x, y)),
    "inverse": (
        sympy.atan(x * y) + sympy.asinh(x) + sympy.asin(y / 9) + sympy.acos(x / 9) + sympy.atanh(y / 9),
        (x, y),
    ),
    "hyperbolic": (sympy.tanh(x * y) + sympy.cosh(x) + sympy.sinh(y) ** 2 + sympy.sech(x), (x, y)),
    "net": (sympy.Rational(1, 2) * (1 - z * sympy.tanh(y * sympy.tanh(x))) ** 2, (x, y, z)),
    "one variable": (x**4 - x**2, (x,)),
    "missing variable": (x**3, (x, y)),
    "linear": (2 * x - y, (x, y)),
    "constant": (sympy.Integer(3), (x, y)),
    "number": (2.5, (x,)),
}
REAL_ONLY = {
    "absolute": (sympy.Abs(x * y - 1) ** 3 + sympy.Abs(x), (x, y)),
    "extremes": (sympy.Max(x, y**2, 0.1) ** 2 + sympy.Min(x * y, 3) * y, (x, y)),
    "pieces": (sympy.Piecewise((x**3, x < 0), (x**2 * y, (x < 1) & (y > 0)), (x + 0.1 * y**4, True)), (x, y)),
    "huber": (sympy.Piecewise((x**2 / 2, sympy.Abs(x) <= 1), (sympy.Abs(x) - 0.5, True)), (x,)),
    "steps": (sympy.sign(x) * y**2 + sympy.Heaviside(y) * x**2, (x, y)),
    "error function": (sympy.erf(x) * y + sympy.erfc(x * y), (x, y)),
    "real part": (sympy.re(sympy.exp(x)) + sympy.conjugate(y) * x, (x, y)),
}
ALL = HOLOMORPHIC | REAL_ONLY
seeds = st.integers(0, 2**31)


def close(one, other):
    """Equal to 1e-12 of the largest entry: cancellation between terms is not the program's fault."""
    assert one.shape == other.shape
    scale = float(other.abs().max()) if other.numel() else 0.0
    assert_close(one, other, rtol=0, atol=1e-12 * max(scale, 1e-3))


@cache
def build(name):
    """The landscape of a case, compiled once for all tests."""
    return from_sympy(*ALL[name])


@pytest.mark.parametrize("name", ALL)
@given(seed=seeds)
def test_derivatives_equal_autograd(name, normal, seed):
    landscape = build(name)
    theta, u, v = normal(seed, 3, 6, landscape.dimension)
    point, traced = landscape.expand(theta), AutogradExpansion(landscape.loss, theta)
    close(point.loss, traced.loss)
    close(landscape.grad(theta), traced.grad)
    close(point.hvp(v), traced.hvp(v))
    close(point.third(u, v), traced.third(u, v))
    close(point.hessian(), traced.hessian())


@pytest.mark.parametrize("name", ALL)
def test_values_equal_sympy(name, normal):
    expression, symbols = ALL[name]
    landscape = build(name)
    theta = normal(5, 4, len(symbols))
    expected = [
        float(sympy.sympify(expression).subs(dict(zip(symbols, row, strict=True))).evalf(30)) for row in theta.tolist()
    ]
    close(landscape.loss(theta), torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_complex_theta(name, normal):
    expression, symbols = HOLOMORPHIC[name]
    landscape = build(name)
    assert landscape.holomorphic
    real, imaginary, u, v = normal(6, 4, 5, len(symbols)) / 2
    theta, v = torch.complex(real, imaginary), torch.complex(u, v)
    assert landscape.loss(theta).dtype == torch.complex128
    values = dict(zip(symbols, theta[0].tolist(), strict=True))
    assert_close(landscape.loss(theta)[0].item(), complex(sympy.sympify(expression).subs(values).evalf(30)))
    for f, g in (
        (landscape.loss, lambda t: (landscape.grad(t) * v).sum(-1)),
        (landscape.grad, lambda t: landscape.hvp(t, v)),
        (lambda t: landscape.hvp(t, v), lambda t: landscape.third(t, v, v)),
    ):
        slope = (f(theta + 1e-5 * v) - f(theta - 1e-5 * v)) / 2e-5
        assert_close(slope, g(theta), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", REAL_ONLY)
def test_complex_theta_is_refused_where_not_holomorphic(name):
    landscape = build(name)
    assert not landscape.holomorphic
    with pytest.raises(NotHolomorphicError, match="complex theta"):
        landscape.grad(torch.zeros(landscape.dimension, dtype=torch.complex128))


@pytest.mark.parametrize("name", ALL)
def test_batch_shapes_dtype_and_device(name, normal, dtype, device):
    landscape, d = build(name), len(ALL[name][1])
    for batch in ((), (3,), (2, 3), (0,)):
        theta = normal(7, *batch, d, dtype=dtype).to(device)
        point = landscape.expand(theta)
        results = {
            landscape.loss(theta): batch,
            landscape.grad(theta): (*batch, d),
            point.hvp(theta): (*batch, d),
            point.third(theta, theta): (*batch, d),
            point.hessian(): (*batch, d, d),
        }
        for result, shape in results.items():
            assert (result.shape, result.dtype, result.device) == (shape, dtype, theta.device)
            assert not result.requires_grad


@pytest.mark.parametrize("name", ALL)
def test_loss_and_grad_stand_inside_transforms(name, normal):
    landscape = build(name)
    theta, v = normal(8, 2, 4, landscape.dimension)
    assert_close(torch.func.vmap(landscape.grad)(theta), landscape.grad(theta))
    assert_close(torch.func.vmap(torch.func.grad(landscape.loss))(theta), landscape.grad(theta))
    assert_close(torch.func.jvp(landscape.grad, (theta,), (v,))[1], landscape.hvp(theta, v))


def test_equals_the_toy_written_by_hand(normal):
    theta, u, v = normal(9, 3, 10, 2)
    symbolic, toy = build("rosenbrock"), Rosenbrock()
    for one, other in zip(
        (symbolic.loss(theta), symbolic.grad(theta), symbolic.hessian(theta), symbolic.third(theta, u, v)),
        (toy.loss(theta), toy.grad(theta), toy.hessian(theta), toy.third(theta, u, v)),
        strict=True,
    ):
        close(one, other)


PLACES = {sympy.acosh: (1.3, 2.7), sympy.log: (0.3, 2.7)}  # of functions that are not defined on (−1, 1)


@pytest.mark.parametrize(
    "function", [*symbolic_program.HOLOMORPHIC, *symbolic_program.REAL_ONLY, sympy.Heaviside], ids=str
)
def test_every_function_equals_sympys_own_value_and_derivatives(function):
    """Against sympy's lambdify: f(a), and three derivatives by sympy.diff, off the kinks."""
    landscape = from_sympy(function(x), (x,))
    one = torch.ones(1, dtype=torch.float64)
    real = sympy.Symbol("x", real=True)
    modules = [{"DiracDelta": lambda *_: 0}, "mpmath"]  # places are off the jumps
    oracles = [sympy.lambdify(real, sympy.diff(function(real), real, n), modules) for n in range(4)]
    for place in PLACES.get(function, (-0.7, -0.2, 0.45)):
        theta = torch.tensor([place], dtype=torch.float64)
        found = (
            landscape.loss(theta),
            landscape.grad(theta),
            landscape.hvp(theta, one),
            landscape.third(theta, one, one),
        )
        for value, oracle in zip(found, oracles, strict=True):
            assert float(value) == pytest.approx(float(oracle(mpmath.mpf(place))), rel=1e-12, abs=1e-13)


KINKS = {  # at (1, 1, 1, −2): value and gradient
    "abs": (sympy.Abs(x - y), 0.0, (0, 0, 0, 0)),
    "sign": (sympy.sign(x - y) * w + z, 1.0, (0, 0, 1, 0)),
    "step": (sympy.Heaviside(x - y) * w + z, 0.0, (0, 0, 1, 0.5)),
    "step, 0 at 0": (sympy.Heaviside(x - y, 0) * w + z, 1.0, (0, 0, 1, 0)),
    "step, 1 at 0": (sympy.Heaviside(x - y, 1) * w + z, -1.0, (0, 0, 1, 1)),
    "step, ¼ at 0": (sympy.Heaviside(x - y, sympy.Rational(1, 4)) * w, -0.5, (0, 0, 0, 0.25)),
    "max of two": (sympy.Max(x, y), 1.0, (1 / 2, 1 / 2, 0, 0)),
    "max of three": (sympy.Max(x, y, z), 1.0, (1 / 3, 1 / 3, 1 / 3, 0)),
    "max of three, one less": (sympy.Max(x, y, w), 1.0, (1 / 2, 1 / 2, 0, 0)),
    "max with a number": (sympy.Max(x, y, 1), 1.0, (1 / 3, 1 / 3, 0, 0)),
    "min of three": (sympy.Min(x, y, z), 1.0, (1 / 3, 1 / 3, 1 / 3, 0)),
    "min of four": (sympy.Min(x, y, z, -w / 2), 1.0, (1 / 4, 1 / 4, 1 / 4, -1 / 8)),
    "chain rule": (sympy.Max(x**2, y * z, w) ** 3, 1.0, (3, 3 / 2, 3 / 2, 0)),
    "nested": (sympy.Max(x, sympy.Min(y, z)), 1.0, (1 / 2, 1 / 4, 1 / 4, 0)),
    "branch": (sympy.Piecewise((x**2, x < y), (3 * x, True)), 3.0, (3, 0, 0, 0)),
}


@pytest.mark.parametrize("name", KINKS)
def test_kinks_and_ties_have_the_derivative_that_torch_gives(name, dtype):
    """A tie of n has 1/n each, as torch.amax; jumps have none, and Heaviside the value at 0 that it is given."""
    expression, value, gradient = KINKS[name]
    landscape = from_sympy(expression, (x, y, z, w))
    theta = torch.tensor([1.0, 1.0, 1.0, -2.0], dtype=dtype)
    assert float(landscape.loss(theta)) == pytest.approx(value, rel=1e-6)
    assert landscape.grad(theta).tolist() == pytest.approx(gradient, rel=1e-6)
    traced = AutogradExpansion(landscape.loss, theta)
    assert_close(landscape.grad(theta), traced.grad)
    assert_close(landscape.hessian(theta), traced.hessian())


def test_ties_agree_with_amax(normal):
    theta = torch.tensor([[1.0, 1.0, 1.0, 0.0], [2.0, 2.0, -1.0, 2.0], [3.0, 3.0, 3.0, 3.0]], dtype=torch.float64)
    for extreme, torchs in ((sympy.Max, torch.amax), (sympy.Min, torch.amin)):
        leaf = theta.clone().requires_grad_()
        (expected,) = torch.autograd.grad(torchs(leaf, dim=-1).sum(), leaf)
        assert_close(from_sympy(extreme(x, y, z, w), (x, y, z, w)).grad(theta), expected)
        assert_close(expected.sum(dim=-1), torch.ones(3, dtype=torch.float64))


def test_a_landscape_prints_its_formula():
    assert repr(from_sympy(x**2 + sympy.sin(y), (x, y))) == "from_sympy(x**2 + sin(y), (x, y))"
    assert str(from_sympy(x**4, (x,))) == "from_sympy(x**4, (x,))"
    assert str(from_sympy(sympy.Max(x, y, 1), (y, x))) == "from_sympy(Max(1, x, y), (y, x))"


def test_a_long_formula_prints_its_beginning():
    symbols = sympy.symbols("a:80")
    expression = sum(k * s**2 for k, s in enumerate(symbols, start=2))
    text = repr(from_sympy(expression, symbols))
    assert text.startswith(f"from_sympy({str(expression)[:200]} … [")
    assert text.endswith(f" … [{sympy.count_ops(expression)} operations], (a0, …, a79 [80 symbols]))")
    assert len(text) < 300


@pytest.mark.parametrize("text", ["lambda", "t1", "theta", "c0", "x_{1}", "torch", "a b"])
def test_symbols_may_have_any_name(text, normal):
    p, q = sympy.Symbol(text), sympy.Symbol("t0")
    theta = normal(10, 5, 2)
    swapped = from_sympy(p**2 * q + sympy.exp(p * q) + sympy.exp(p) * q, (p, q))
    plain = from_sympy(x**2 * y + sympy.exp(x * y) + sympy.exp(x) * y, (x, y))
    close(swapped.grad(theta), plain.grad(theta))


def test_assumptions_of_symbols_do_not_matter(normal):
    p = sympy.Symbol("p", positive=True)
    theta = 1 + normal(11, 5, 1) ** 2
    close(from_sympy(sympy.log(p**2) + p**3, (p,)).grad(theta), from_sympy(2 * sympy.log(x) + x**3, (x,)).grad(theta))


def test_root_of_a_square_stays_holomorphic():
    landscape = from_sympy(sympy.sqrt(x**2), (x,))
    theta = torch.tensor([[1 + 2j], [-1 + 2j]], dtype=torch.complex128)
    assert_close(landscape.loss(theta), torch.sqrt(theta[:, 0] ** 2))
    assert_close(landscape.grad(theta), torch.tensor([[1.0], [-1.0]], dtype=torch.complex128))


def test_components_share_subexpressions(monkeypatch):
    calls = []
    exp = torch.exp
    monkeypatch.setattr(torch, "exp", lambda t: calls.append(1) or exp(t))
    landscape = from_sympy(sympy.exp(-(x**2) * y) * (x + y), (x, y))
    theta = torch.ones(3, 2, dtype=torch.float64)
    for field in (landscape.loss, landscape.grad, landscape.hessian, lambda t: landscape.third(t, t, t)):
        calls.clear()
        field(theta)
        assert len(calls) == 1


def test_a_point_computes_its_hessian_once(monkeypatch):
    calls = []
    sin = torch.sin
    monkeypatch.setattr(torch, "sin", lambda t: calls.append(1) or sin(t))
    point = from_sympy(sympy.sin(x), (x,)).expand(torch.ones(1, dtype=torch.float64))
    for _ in range(3):
        point.hvp(torch.ones(1, dtype=torch.float64))
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("expression", "symbols", "error", "text"),
    [
        ("x**2", (x,), TypeError, "sympy expression.*'x\\*\\*2'"),
        (True, (x,), TypeError, "sympy expression"),
        (x < 1, (x,), TypeError, "sympy expression"),
        (x, x, TypeError, "sequence of sympy symbols"),
        (x, {x}, TypeError, "sequence of sympy symbols"),
        (x, ("x",), TypeError, "'x' of type str"),
        (x, (), ValueError, "at least one symbol"),
        (x, (x, x), ValueError, "distinct"),
        (x + y + z, (x,), ValueError, r"\['y', 'z'\]"),
        (sympy.I * x, (x,), ValueError, "real and finite"),
        (x + sympy.oo, (x,), ValueError, "real and finite"),
        (sympy.log(sympy.Integer(-1), evaluate=False) * x, (x,), ValueError, "real"),
        (sympy.Function("mystery")(x), (x,), UnsupportedError, "mystery"),
        (sympy.floor(x), (x,), UnsupportedError, "floor"),
        (sympy.Heaviside(x, y), (x, y), UnsupportedError, "second argument.*must be a number"),
        (sympy.gamma(x), (x,), UnsupportedError, "gamma"),
        (sympy.Integral(sympy.Function("g")(x), x), (x,), UnsupportedError, "Integral"),
    ],
)
def test_arguments_are_checked(expression, symbols, error, text):
    with pytest.raises(error, match=text):
        from_sympy(expression, symbols).loss(torch.ones(1))
