"""Coefficients of modified equations in exact arithmetic, against recursions that know no trees."""

from dataclasses import replace
from fractions import Fraction

import pytest
import sympy

from flows.series import (
    EULER,
    HEAVY_BALL,
    NESTEROV,
    Multistep,
    Series,
    heavy_ball_multistep,
    modified_equation,
    nesterov_multistep,
    rooted_trees,
    runge_kutta,
    tree,
)
from flows.series.modified import OneStep
from tests.flows import jets

HALF, THIRD = Fraction(1, 2), Fraction(1, 3)
MIDPOINT = runge_kutta([[0, 0], [HALF, 0]], [0, 1])
HEUN = runge_kutta([[0, 0], [1, 0]], [HALF, HALF])
KUTTA = runge_kutta([[0, 0, 0], [HALF, 0, 0], [-1, 2, 0]], [Fraction(1, 6), Fraction(2, 3), Fraction(1, 6)])
RK4 = runge_kutta(
    [[0, 0, 0, 0], [HALF, 0, 0, 0], [0, HALF, 0, 0], [0, 0, 1, 0]], [Fraction(1, 6), THIRD, THIRD, Fraction(1, 6)]
)
LOPSIDED = runge_kutta([[0, 0, 0], [THIRD, 0, 0], [Fraction(1, 5), Fraction(-3, 7), 0]], [Fraction(2, 3), -1, THIRD])
ADAMS_BASHFORTH = Multistep((0, -1, 1), (-HALF, 3 * HALF, 0))
LEAPFROG = Multistep((-1, 0, 1), (0, 2, 0))
MU, V0 = Fraction(3, 2), (Fraction(2), Fraction(-1))


def runge_kutta_terms(method, field, order):
    """d_0 … d_order of the step, from its stages as polynomials in (y, h)."""
    ((_, tableau),) = method.tableaux
    y = jets.variables(len(field))
    slopes = []
    for row in tableau.stages:
        stage = jets.total((1, y), *((a, jets.times_h(k)) for a, k in zip(row, slopes, strict=False)))
        slopes.append(jets.compose(field, stage, order - 1))
    end = jets.total((1, y), *((b, jets.times_h(k)) for b, k in zip(tableau.weights, slopes, strict=True)))
    return jets.powers_of_h(end, order)


def momentum_case(seed, dimension, degree):
    """∇f of a random loss, and its parts of the field as polynomials in (x, v − v0)."""
    slope = jets.random_polynomial(jets.random.Random(seed), dimension, degree + 1)
    gradient = [jets.partial(slope, i) for i in range(dimension)]
    zero = (0,) * dimension
    velocity = [
        {(*zero, *zero): V0[i], (*zero, *(int(i == j) for j in range(dimension))): Fraction(1)}
        for i in range(dimension)
    ]
    still = [{}] * dimension
    force = [{(*e, *zero): -c for e, c in g.items()} for g in gradient]
    parts = {"x": velocity + still, "r": still + jets.total((-MU, velocity)), "g": still + force}
    return gradient, parts


def momentum_terms(gradient, order, nesterov):
    """d_0 … d_order of the scaled step as written in its paper; the state is (x, v − v0)."""
    dimension = len(gradient)
    y = jets.variables(2 * dimension)
    x, rest = y[:dimension], [{(0,) * (2 * dimension + 1): V0[i]} for i in range(dimension)]
    v = jets.total((1, rest), (1, y[dimension:]))
    braked = jets.total((1, v), (-MU, jets.times_h(v)))
    at = jets.total((1, x), (1, jets.times_h(braked))) if nesterov else x
    g = jets.compose(gradient, at, order - 1)
    after = jets.total((1, braked), (-1, jets.times_h(g)))
    moved = jets.total((1, x), (1, jets.times_h(after)))
    return jets.powers_of_h(moved + jets.total((1, after), (-1, rest)), order)


def constants(field):
    return [a.get((0,) * len(field), Fraction(0)) for a in field]


def tree_sum(series, values, n):
    """Σ c(τ)F(τ) over trees of n vertices, at y = 0."""
    size = len(next(iter(values.values())))
    found = [(series.coefficient(t), values[t]) for t in values if t.order == n]
    return [sum((c * value[i] for c, value in found), Fraction(0)) for i in range(size)]


def check_against_lie(method, order, parts, terms):
    """Series = recursion for every order, and no single coefficient could be another."""
    series = modified_equation(method, order)
    trees = [t for n in range(1, order + 1) for t in rooted_trees(n, series.grammar)]
    values = {t: constants(jets.differential(t, parts, 0)) for t in trees}
    expected = [constants(field) for field in jets.lie_recursion(terms, order)]
    assert [tree_sum(series, values, n) for n in range(1, order + 1)] == expected
    for whole in trees:
        wrong = tampered(series, whole)
        assert tree_sum(wrong, values, whole.order) != expected[whole.order - 1], whole


def tampered(series, whole):
    terms = dict(series.terms)
    terms[whole] = series.coefficient(whole) + Fraction(1, 720)
    return replace(series, terms=tuple(terms.items()))


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize(("method", "order"), [(EULER, 7), (LOPSIDED, 6), (KUTTA, 6)], ids=["euler", "rk", "kutta"])
def test_coefficients_against_the_lie_recursion(method, order, seed):
    field = jets.random_field(seed, 2, order - 1)
    check_against_lie(method, order, {"f": field}, runge_kutta_terms(method, field, order))


@pytest.mark.parametrize(("dimension", "order"), [(1, 6), (2, 5)])
@pytest.mark.parametrize(("method", "nesterov"), [(HEAVY_BALL, False), (NESTEROV, True)], ids=["ball", "nesterov"])
def test_momentum_coefficients_against_the_lie_recursion(method, nesterov, dimension, order):
    gradient, parts = momentum_case(order, dimension, order)
    check_against_lie(method, order, parts, momentum_terms(gradient, order, nesterov))


def test_the_lie_recursion_determines_every_coefficient():
    """Over enough fields the differentials of order 7 are independent, so that agreement leaves no other solution."""
    trees = rooted_trees(7)
    rows, expected = [], []
    dimensions = [2] * 24 + [3]  # in two dimensions alone one combination always vanishes: the rank is 47
    for seed, dimension in enumerate(dimensions):
        field = jets.random_field(100 + seed, dimension, 6)
        values = [constants(jets.differential(t, {"f": field}, 0)) for t in trees]
        rows += [[value[i] for value in values] for i in range(dimension)]
        expected += constants(jets.lie_recursion(runge_kutta_terms(EULER, field, 7), 7)[6])
    prime = 2**61 - 1  # the rank modulo a prime is no larger than the rank
    assert rank([[int(c.numerator) * pow(c.denominator, -1, prime) % prime for c in row] for row in rows], prime) == 48
    series = modified_equation(EULER, 7)
    coefficients = [series.coefficient(t) for t in trees]
    assert [sum(a * c for a, c in zip(row, coefficients, strict=True)) for row in rows] == expected


def rank(matrix, prime):
    found = 0
    for column in range(len(matrix[0])):
        pivot = next((i for i in range(found, len(matrix)) if matrix[i][column]), None)
        if pivot is None:
            continue
        matrix[found], matrix[pivot] = matrix[pivot], matrix[found]
        scale = pow(matrix[found][column], -1, prime)
        for i in range(found + 1, len(matrix)):
            factor = matrix[i][column] * scale % prime
            if factor:
                matrix[i] = [(a - factor * b) % prime for a, b in zip(matrix[i], matrix[found], strict=True)]
        found += 1
    return found


def multistep_residual(method, series, field, degree):
    """Σ α_i y_{k+i} − hΣ β_i F(y_{k+i}) on the flow of the modified field, as polynomials in (y, h)."""
    y = jets.variables(len(field))
    lifted = []
    for whole, c in series.terms:
        values = jets.differential(whole, {"f": field}, degree - whole.order)
        lifted.append((c, [{(*e, whole.order - 1): a for e, a in value.items()} for value in values]))
    modified = jets.total(*lifted)
    powers = [y, modified]  # D^{j−1} of the modified field along itself
    while len(powers) <= degree:
        powers.append(jets.lie(powers[-1], modified, degree))
    residual = jets.total((0, y))
    for i, (alpha, beta) in enumerate(zip(method.alpha, method.beta, strict=True), start=method.first):
        scales = [Fraction(i) ** j / int(sympy.factorial(j)) for j in range(degree + 1)]
        state = jets.total(*((s, jets.times_h(p, j)) for j, (s, p) in enumerate(zip(scales, powers, strict=True))))
        state = [jets.cut(a, degree) for a in state]
        slope = jets.times_h(jets.compose(field, state, degree - 1))
        residual = jets.total((1, residual), (alpha, state), (-beta, slope))
    return residual


MULTISTEPS = {
    "heavy ball": heavy_ball_multistep(Fraction(2, 3)),
    "heavy ball, negative": heavy_ball_multistep(-THIRD),
    "nesterov": nesterov_multistep(Fraction(2, 3)),
    "adams": ADAMS_BASHFORTH,
    "leapfrog": LEAPFROG,
    "three steps": Multistep((-HALF, THIRD, 0, Fraction(1, 6)), (1, 0, HALF, 2), first=-2),
}


@pytest.mark.parametrize("name", MULTISTEPS)
def test_the_smooth_solution_satisfies_its_multistep_relation(name):
    """Identically up to hᵖ; h^{p+1} is the first power that is left."""
    method, order = MULTISTEPS[name], 4
    series = modified_equation(method, order)
    residual = multistep_residual(method, series, jets.random_field(3, 2, order), order)
    assert all(not jets.cut(a, order) for a in residual)
    # the truncated series, one degree further: constant in y, only the power h^{p+1} is left
    left = multistep_residual(method, series, jets.random_field(3, 2, order), order + 1)
    assert any(left)
    assert {e[-1] for a in left for e in jets.cut(a, order + 1)} == {order + 1}


@pytest.mark.parametrize("name", ["heavy ball", "nesterov"])
def test_a_wrong_coefficient_leaves_a_residual(name):
    method, order = MULTISTEPS[name], 4
    series = modified_equation(method, order)
    field = jets.random_field(3, 2, order)
    for whole in (t for n in range(1, order + 1) for t in rooted_trees(n)):
        assert any(multistep_residual(method, tampered(series, whole), field, order)), whole


@pytest.mark.parametrize(
    ("method", "order"), [(EULER, 1), (MIDPOINT, 2), (HEUN, 2), (KUTTA, 3), (RK4, 4), (ADAMS_BASHFORTH, 2)]
)
def test_a_method_of_order_p_follows_the_field_itself_up_to_order_p(method, order):
    terms = dict(modified_equation(method, order + 1).terms)
    assert terms.pop(tree("f")) == 1
    assert {t.order for t in terms} == {order + 1}


def test_the_exact_flow_is_its_own_modified_equation():
    class Exact:
        def coefficient(self, whole):
            return Fraction(1, whole.density)

    recursion = OneStep(Exact())
    for n in range(1, 8):
        assert [recursion.coefficient(t) for t in rooted_trees(n)] == ([1] if n == 1 else [0] * len(rooted_trees(n)))


def test_bushy_trees_have_bernoulli_numbers_and_tall_ones_those_of_the_logarithm():
    """Bushy: of y' = g(t) Euler's step is the rectangle rule, whose error is Euler and Maclaurin's."""
    series = modified_equation(EULER, 8)
    tall = tree("f")
    for n in range(8):
        bushy = tree("f", *[tree("f")] * n)
        first = (-1) ** n * sympy.bernoulli(n)  # the convention with B_1 = −1/2
        assert series.coefficient(bushy) * bushy.symmetry == Fraction(int(first.p), int(first.q))
        assert series.coefficient(tall) == Fraction((-1) ** n, n + 1)
        tall = tree("f", tall)


def test_a_symmetric_method_has_even_powers_of_h_only():
    orders = {t.order for t, _ in modified_equation(LEAPFROG, 5).terms}
    assert orders == {1, 3, 5}


@pytest.mark.parametrize("multistep", [heavy_ball_multistep, nesterov_multistep])
def test_reduced_flows_without_momentum_are_gradient_descents(multistep):
    assert modified_equation(multistep(0), 6) == modified_equation(EULER, 6)


@pytest.mark.parametrize("multistep", [heavy_ball_multistep, nesterov_multistep])
@pytest.mark.parametrize("momentum", [Fraction(9, 10), -THIRD, Fraction(3)])
def test_symbols_stand_for_every_momentum(multistep, momentum):
    beta = sympy.Symbol("beta")
    symbolic, series = modified_equation(multistep(beta), 4), modified_equation(multistep(momentum), 4)
    for n in range(1, 5):
        for whole in rooted_trees(n):
            c = sympy.sympify(symbolic.coefficient(whole)).subs(beta, sympy.sympify(momentum))
            assert c == sympy.sympify(series.coefficient(whole))


def test_a_family_of_methods_with_a_symbol():
    """Two stages at a: order 2 for every a, so no h; at a = 2/3 the term f''(f, f) of the error is gone (Ralston)."""
    a = sympy.Symbol("a")
    series = modified_equation(runge_kutta([[0, 0], [a, 0]], [1 - 1 / (2 * a), 1 / (2 * a)]), 3)
    assert [t.order for t, _ in series.terms] == [1, 3, 3]
    bushy = series.coefficient(tree("f", tree("f"), tree("f")))
    assert sympy.solve(bushy, a) == [sympy.Rational(2, 3)]
    assert bushy.subs(a, HALF) == sympy.sympify(modified_equation(MIDPOINT, 3).coefficient(tree("f", *[tree("f")] * 2)))


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: runge_kutta([[0.0]], [1]), TypeError, "stages must hold integers"),
        (lambda: runge_kutta([[0]], [1.0]), TypeError, "weights must hold"),
        (lambda: runge_kutta([[0]], [True]), TypeError, "weights must hold"),
        (lambda: runge_kutta([[0]], [sympy.Symbol("a") * 0.5]), TypeError, "weights must hold"),
        (lambda: runge_kutta([[0]], [sympy.sqrt(2)]), TypeError, "weights must hold"),
        (lambda: runge_kutta([[0, 0], [1, 0]], [1]), ValueError, "square matrix"),
        (lambda: runge_kutta([], []), ValueError, "square matrix"),
        (lambda: runge_kutta([[1]], [1]), ValueError, "strictly lower triangular"),
        (lambda: heavy_ball_multistep(0.9), TypeError, "momentum must hold"),
        (lambda: nesterov_multistep(1), ValueError, "momentum must not be 1"),
        (lambda: Multistep((1, 1), (1, 0)), ValueError, "alpha must sum to 0"),
        (lambda: Multistep((1, -2, 1), (0, 1, 0)), ValueError, "Σ i α_i"),
        (lambda: Multistep((-1, 1), (1,)), ValueError, "equal lengths"),
        (lambda: Multistep((-1, 1.0), (1, 0)), TypeError, "alpha must hold"),
        (lambda: modified_equation("euler", 3), TypeError, "method must be"),
        (lambda: modified_equation([EULER], 3), TypeError, "method must be"),
        (lambda: modified_equation(EULER, 0), ValueError, "order must be"),
        (lambda: modified_equation(EULER, 2.0), TypeError, "order must be"),
    ],
)
def test_arguments_are_checked(make, error, says):
    with pytest.raises(error, match=says):
        make()


def test_a_series_gives_zero_for_trees_that_do_not_occur():
    series = modified_equation(EULER, 4)
    assert isinstance(series, Series)
    assert series.coefficient(tree("f", *[tree("f")] * 3)) == 0
    assert series.coefficient(tree("x")) == 0
