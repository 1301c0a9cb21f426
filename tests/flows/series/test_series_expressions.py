"""Symbolic fields against a Lie recursion in sympy, closed forms of the tall trees, and what the LaTeX says."""

import itertools
import math
import re
from fractions import Fraction

import pytest
import sympy
import torch
from torch.testing import assert_close

from flows.models.principal import principal_coefficient
from flows.series import (
    EULER,
    HEAVY_BALL,
    NESTEROV,
    Multistep,
    heavy_ball_multistep,
    modified_equation,
    nesterov_multistep,
    rooted_trees,
    runge_kutta,
    tree,
)
from flows.series.expressions import (
    Differentials,
    field_expressions,
    field_terms,
    modified_gradient_flow,
    modified_momentum_flow,
    momentum_parts,
    principal_coefficient_series,
    principal_part,
    stability_function,
)
from flows.series.landscape import VELOCITY, landscape_terms, on_landscape
from flows.series.latex import latex_differential, latex_field, latex_landscape, plain_landscape, sign_and_size
from landscapes.errors import UnsupportedError
from tests.flows.jets import compositions

X, Y, V, W, H, Z, T = sympy.symbols("x y v w h z t")
BETA, MU = sympy.symbols("beta mu")
HALF = Fraction(1, 2)
MIDPOINT = runge_kutta([[0, 0], [HALF, 0]], [0, 1])
LOPSIDED = runge_kutta(
    [[0, 0, 0], [Fraction(1, 3), 0, 0], [Fraction(1, 5), -1, 0]], [Fraction(2, 3), -1, Fraction(4, 3)]
)
WAVES = sympy.sin(X + Y / 2) + X**4 / 4 + X * Y**2 / 2
POLYNOMIAL = X**4 / 4 + X**2 * Y - X * Y**3 / 3 + Y**2


def lie_recursion(step, symbols, order):
    """F_1 … F_order of the map ``step`` (expressions in symbols and H), in sympy; D_kG = G'F_k."""
    terms = [[sympy.diff(c, H, j).subs(H, 0) / math.factorial(j) for c in step] for j in range(order + 1)]
    fields = [None]

    def along(components, k):
        return [sum(sympy.diff(c, s) * a for s, a in zip(symbols, fields[k], strict=True)) for c in components]

    for j in range(1, order + 1):
        field = terms[j]
        for parts in compositions(j):
            if len(parts) > 1:
                term = fields[parts[-1]]
                for k in reversed(parts[:-1]):
                    term = along(term, k)
                field = [a - b / math.factorial(len(parts)) for a, b in zip(field, term, strict=True)]
        fields.append([sympy.expand(c) for c in field])
    return fields[1:]


def same(a, b):
    difference = sympy.expand(a - b)
    return difference == 0 or sympy.simplify(difference) == 0


def gradient(loss, symbols):
    return [sympy.diff(loss, s) for s in symbols]


@pytest.mark.parametrize(("loss", "order"), [(WAVES, 3), (POLYNOMIAL, 4)], ids=["waves", "polynomial"])
def test_gradient_descents_field_order_by_order(loss, order):
    step = [s - H * g for s, g in zip((X, Y), gradient(loss, (X, Y)), strict=True)]
    expected = lie_recursion(step, (X, Y), order)
    found = field_terms(modified_equation(EULER, order), [-g for g in gradient(loss, (X, Y))], (X, Y))
    assert len(found) == order
    for ours, theirs in zip(found, expected, strict=True):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    whole = modified_gradient_flow(loss, (X, Y), H, order)
    for i in (0, 1):
        assert whole[i] == sum(H**j * field[i] for j, field in enumerate(found))


def test_a_field_that_is_no_gradient_under_a_runge_kutta_method():
    field = [Y**2 + X, X * Y - 1]
    first = [c.subs({X: X + H * a / 3, Y: Y + H * b / 3}, simultaneous=True) for a, b in [field] for c in field]
    at = {s: s + H * (Fraction(1, 5) * a - b) for s, a, b in zip((X, Y), field, first, strict=True)}
    second = [c.subs(at, simultaneous=True) for c in field]
    weights = LOPSIDED.tableaux[0][1].weights
    slopes = zip((X, Y), field, first, second, strict=True)
    step = [s + H * sum(w * k for w, k in zip(weights, ks, strict=True)) for s, *ks in slopes]
    expected = lie_recursion([sympy.expand(sympy.nsimplify(c)) for c in step], (X, Y), 3)
    found = field_expressions(modified_equation(LOPSIDED, 3), field, (X, Y), H)
    for i in (0, 1):
        assert same(found[i], sum(H**j * f[i] for j, f in enumerate(expected)))


@pytest.mark.parametrize(("method", "look"), [(HEAVY_BALL, 0), (NESTEROV, 1)], ids=["ball", "nesterov"])
@pytest.mark.parametrize("loss", [sympy.cos(X), X**4 / 4 - X**3], ids=["cosine", "quartic"])
def test_momentum_fields_with_friction_as_a_symbol(method, look, loss):
    ahead = X + look * H * (1 - H * MU) * V
    after = (1 - H * MU) * V - H * sympy.diff(loss, X).subs(X, ahead)
    expected = lie_recursion([X + H * after, after], (X, V), 4)
    found = modified_momentum_flow(loss, [X], [V], MU, H, 4, method)
    for i in (0, 1):
        assert same(found[i], sum(H**j * f[i] for j, f in enumerate(expected)))


def on_loss(whole, loss, positions, velocities):
    """A tree of ∇f and v by sympy: derivatives summed over every index."""
    if whole == VELOCITY:
        return velocities
    directions = [on_loss(child, loss, positions, velocities) for child in whole.children]
    indices = list(itertools.product(range(len(positions)), repeat=len(directions)))
    return [
        sum(
            sympy.diff(loss, s, *[positions[i] for i in index])
            * math.prod(direction[i] for direction, i in zip(directions, index, strict=True))
            for index in indices
        )
        for s in positions
    ]


@pytest.mark.parametrize("method", [EULER, HEAVY_BALL, NESTEROV], ids=["euler", "ball", "nesterov"])
def test_the_landscapes_terms_are_the_field(method):
    """Signs, powers of μ and products with ∇f, H, D³f, on two positions."""
    order, positions, velocities = 4, (X, Y), (V, W)
    terms = landscape_terms(modified_equation(method, order), MU)
    if method is EULER:
        assert set(terms) == {"θ"}
        expected = modified_gradient_flow(POLYNOMIAL, positions, H, order)
    else:
        assert list(terms) == ["x", "v"]
        expected = modified_momentum_flow(POLYNOMIAL, positions, velocities, MU, H, order, method)
    found = []
    for component in terms.values():
        total = [sympy.S.Zero] * 2
        for (power, base), c in component.items():
            value = on_loss(base, POLYNOMIAL, positions, velocities)
            total = [a + H**power * sympy.sympify(c) * b for a, b in zip(total, value, strict=True)]
        found += total
    assert all(sympy.expand(a - b) == 0 for a, b in zip(found, expected, strict=True))


def test_reduced_heavy_ball_descends_ghoshs_modified_loss():
    """θ̇ = −(1/(1 − β)) ∇[f + (h/(4(1 − β))) ((1 + β)/(1 − β)) ‖∇f‖²], arXiv 2302.00849."""
    square = sum(g**2 for g in gradient(WAVES, (X, Y)))
    loss = WAVES + H / (4 * (1 - BETA)) * (1 + BETA) / (1 - BETA) * square
    expected = [-g / (1 - BETA) for g in gradient(loss, (X, Y))]
    found = modified_gradient_flow(WAVES, (X, Y), H, 2, heavy_ball_multistep(BETA))
    assert all(same(a, b) for a, b in zip(found, expected, strict=True))


METHODS = {
    "euler": EULER,
    "midpoint": MIDPOINT,
    "lopsided": LOPSIDED,
    "heavy ball": heavy_ball_multistep(Fraction(1, 3)),
    "nesterov": nesterov_multistep(Fraction(1, 3)),
    "one step": Multistep((-2, 2), (3, 1), first=0),
}


@pytest.mark.parametrize("name", METHODS)
def test_tall_trees_are_the_taylor_series_of_the_principal_part(name):
    order = 12 if name in ("euler", "midpoint") else 8
    tall = principal_coefficient_series(METHODS[name], order)
    expansion = sympy.series(principal_part(METHODS[name], Z), Z, 0, order).removeO()
    assert [sympy.sympify(c) for c in tall] == [expansion.coeff(Z, n) for n in range(order)]


@pytest.mark.parametrize("multistep", [heavy_ball_multistep, nesterov_multistep])
def test_tall_trees_with_momentum_as_a_symbol(multistep):
    """exp(z Σ c_n zⁿ) is the root of Σ_i (α_i − zβ_i)ρⁱ that is 1 at z = 0, power by power."""
    order, method = 5, multistep(BETA)
    tall = principal_coefficient_series(method, order)
    relation = [sympy.S.Zero] * (order + 1)
    for i, (a, b) in enumerate(zip(method.alpha, method.beta, strict=True)):
        power = [sympy.S.One]  # ρⁱ = exp(L), whose coefficients follow from ρⁱ' = L'ρⁱ
        for n in range(1, order + 1):
            power.append(sympy.cancel(sum(i * k * tall[k - 1] * power[n - k] for k in range(1, n + 1)) / n))
        for n in range(order + 1):
            relation[n] += a * power[n] - (b * power[n - 1] if n else 0)
    assert all(sympy.cancel(c) == 0 for c in relation)
    assert sympy.simplify(stability_function(method, Z).subs(Z, 0)) == 1


@pytest.mark.parametrize("name", METHODS)
def test_the_stability_function_is_what_a_step_does_to_a_mode(name):
    """Multistep: solved from the relation's polynomial; one step: the flow of the principal part is R."""
    method = METHODS[name]
    root = stability_function(method, Z)
    if isinstance(method, Multistep):
        relation = sum((a - Z * b) * root**i for i, (a, b) in enumerate(zip(method.alpha, method.beta, strict=True)))
        assert sympy.simplify(sympy.nsimplify(relation)) == 0
        assert root.subs(Z, 0) == 1
    else:
        bare = [[sympy.sympify(a) for a in row] for row in method.tableaux[0][1].stages]
        b = sympy.Matrix([[sympy.sympify(w) for w in method.tableaux[0][1].weights]])
        inverse = (sympy.eye(len(bare)) - Z * sympy.Matrix(bare)).inv()
        assert sympy.expand(root - 1 - (Z * b * inverse * sympy.ones(len(bare), 1))[0]) == 0


def test_the_tall_trees_of_gradient_descent_sum_to_the_principal_flow():
    r"""Σ (−1)ⁿ zⁿ/(n + 1) = log(1 + z)/z; with z = −hH on −∇f it is (hH)⁻¹ log(I − hH)∇f, as PrincipalFlow has it."""
    n = sympy.Symbol("n", integer=True, nonnegative=True)
    assert principal_coefficient_series(EULER, 15) == [Fraction((-1) ** k, k + 1) for k in range(15)]
    summed = sympy.summation((-1) ** n * T**n / (n + 1), (n, 0, sympy.oo))
    inside = summed.args[0][0] if isinstance(summed, sympy.Piecewise) else summed
    assert sympy.simplify(inside - principal_part(EULER, T)) == 0
    x = torch.tensor([-3.0, -0.7, 1e-3, 0.5, 0.99, 1.4, 2.6], dtype=torch.float64)
    closed = sympy.lambdify(T, -principal_part(EULER, -T), "mpmath")  # on −∇f, with z = −hλ
    expected = [complex(closed(complex(value))) for value in x.tolist()]
    below = x < 1
    assert_close(principal_coefficient(x[below]), torch.tensor([e.real for e in expected[:5]], dtype=torch.float64))
    # beyond 1 both have log|1 − x| + iπ: mpmath knows no negative zero
    assert_close(principal_coefficient(x[~below]), torch.tensor(expected[5:], dtype=torch.complex128))


def test_latex_of_gradient_descent():
    series = modified_equation(EULER, 3)
    assert latex_field(series) == (
        r"\dot{y} = f - \tfrac{h}{2} f'f + h^{2}\left(\tfrac{1}{12} f''(f, f) + \tfrac{1}{3} f'f'f\right)"
    )
    assert latex_landscape(series) == (
        r"\dot{\theta} = -\nabla f - \tfrac{h}{2} H\nabla f "
        r"- h^{2}\left(\tfrac{1}{3} HH\nabla f + \tfrac{1}{12} D^{3}f[\nabla f, \nabla f]\right)"
    )


def test_latex_of_momentum():
    series = modified_equation(HEAVY_BALL, 2)
    assert latex_field(series).startswith(r"\dot{z} = F_{g} + F_{r} + F_{x} - \tfrac{h}{2}\left(F_{g}'F_{x} + ")
    assert latex_landscape(series).split("\n") == [
        r"\dot{x} = v - \tfrac{h}{2}\left(\mu v + \nabla f\right)",
        r"\dot{v} = -\mu v - \nabla f - \tfrac{h}{2}\left(\mu^{2} v + \mu \nabla f - Hv\right)",
    ]


def test_latex_of_a_reduced_flow():
    assert latex_landscape(modified_equation(heavy_ball_multistep(BETA), 2)) == (
        r"\dot{\theta} = -\frac{1}{1 - \beta} \nabla f - h\frac{\beta + 1}{2 \left(1 - \beta\right)^{3}} H\nabla f"
    )


@pytest.mark.parametrize("method", [EULER, LOPSIDED, HEAVY_BALL, nesterov_multistep(BETA)])
@pytest.mark.parametrize("write", [latex_field, latex_landscape])
def test_aligned_latex_says_the_same_on_several_lines(method, write):
    series = modified_equation(method, 4)
    aligned = write(series, aligned=True)
    assert aligned.count(r"\begin{aligned}") == aligned.count(r"\end{aligned}") == 1
    body = aligned.removeprefix("\\begin{aligned}\n").removesuffix("\n\\end{aligned}").split(" \\\\\n")
    assert len(body) > 3
    for line in body:  # each may end a row: \left and \right meet on it, and there is one place to align at
        assert line.count(r"\left") == line.count(r"\right")
        assert line.count("&") == 1
        assert line.count("{") == line.count("}")
    joined = " ".join(line.replace("={}& ", "= ").lstrip("&").removeprefix(r"\qquad ") for line in body)
    plain = write(series).replace("\n", " ")
    parentheses = (r"\left(", r"\right)", r"\bigl(", r"\bigr)")
    assert bare(joined, parentheses) == bare(plain, parentheses)


def bare(text, gone):
    return re.sub(r"\s+", "", "".join(re.split("|".join(map(re.escape, gone)), text)))


def test_a_quartic_derivative_is_written_with_its_order():
    f, g = tree("f"), tree("g")
    assert latex_differential(tree("f", *[f] * 4)) == "f^{(4)}(f, f, f, f)"
    assert latex_differential(tree("f", tree("f", f, f))) == "f'f''(f, f)"
    assert plain_landscape(tree("g", g, tree("g", tree("g", g, VELOCITY)))) == "D³f[∇f, H D³f[∇f, v]]"
    assert plain_landscape(tree("g", *[VELOCITY] * 9)) == f"D¹⁰f[{', '.join('v' * 9)}]"


def test_every_sign_on_a_landscape_is_that_of_its_number_of_vertices():
    for n in range(1, 7):
        for whole in rooted_trees(n):
            factor, base = on_landscape(whole, MU)
            assert factor == (-1) ** n
            assert (base.order, base.symmetry) == (whole.order, whole.symmetry)


@pytest.mark.parametrize("c", [(1 + BETA) / (BETA - 1) ** 3, -MU / 2, 1 / (1 - BETA), (BETA - 2) ** 2 * (BETA - 1)])
def test_orientation_keeps_the_value(c):
    sign, size = sign_and_size(c)
    assert sympy.simplify(sign * size - c) == 0
    assert size.subs({BETA: 0, MU: 1}) > 0


def test_polynomials_come_multiplied_out():
    differential = Differentials({"f": (X * (X + 1) - X**2,)}, (X,))
    assert differential(tree("f")) == differential(tree("f", tree("f"))) == (X,)
    assert differential(tree("f", tree("f"), tree("f"))) == (0,)


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: field_terms(EULER, [X], [X]), TypeError, "series must be"),
        (lambda: field_terms(modified_equation(EULER, 2), [X, Y], [X]), ValueError, "parts must have 1 components"),
        (
            lambda: field_terms(modified_equation(EULER, 2), ["x"], [X]),
            TypeError,
            "parts must be a sympy expression or a number, got 'x'",
        ),
        (lambda: field_terms(modified_equation(EULER, 2), [X], X), TypeError, "symbols must be"),
        (lambda: field_terms(modified_equation(HEAVY_BALL, 2), [X, V], [X, V]), ValueError, "colours"),
        (lambda: modified_gradient_flow("x**2", [X], H, 2), TypeError, "loss must be"),
        (lambda: momentum_parts(X**2, [X], [V, W], MU), ValueError, "velocities must be as many"),
        (lambda: momentum_parts(X**2, [X], [X], MU), ValueError, "distinct"),
        (lambda: stability_function(HEAVY_BALL, Z), UnsupportedError, "multistep form"),
        (lambda: principal_coefficient_series(NESTEROV, 2), UnsupportedError, "multistep form"),
        (lambda: principal_part("euler", Z), TypeError, "method must be"),
        (lambda: stability_function(Multistep((0, 0, -1, 1), (0, 0, 1, 0)), Z), UnsupportedError, "two steps"),
        (lambda: principal_coefficient_series(EULER, 0), ValueError, "order must be"),
    ],
)
def test_arguments_are_checked(make, error, says):
    with pytest.raises(error, match=says):
        make()
