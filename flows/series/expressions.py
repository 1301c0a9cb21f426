r"""Modified equations as sympy expressions: of concrete fields, of any landscape, and of linear fields in closed form.

For a concrete field F(y) the elementary differentials are computed; for a landscape they are symbolic: trees of
derivatives of f, with F = −∇f substituted. On a linear field only the tall trees do not vanish, and their sum has a
closed form: one step multiplies a mode of F(y) = λy by R(hλ), R the method's stability function, so that the modified
field is λy times

    Σ_n c(tall_n) zⁿ⁻¹ = log R(z)/z,      z = hλ.

For gradient descent R(z) = 1 + z and z = −hH: the principal flow (hH)⁻¹ log(I − hH)∇f.
"""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import sympy

from flows.series.methods import EULER, Exact, ExplicitMethod, Row
from flows.series.modified import Multistep, Series, check_series, modified_equation, recursion_of
from flows.series.trees import FIELD, Tree, tree
from landscapes.errors import UnsupportedError, as_list, check_count, short_form
from landscapes.toys.symbolic import check_symbols

Vector = tuple[sympy.Expr, ...]
Field = Sequence[sympy.Expr] | Mapping[str, Sequence[sympy.Expr]]


@dataclass(frozen=True)
class Differentials:
    """F(τ) of a concrete field: ``parts``, its components by colour, in ``symbols``; derivatives are cached."""

    parts: Mapping[str, Vector]
    symbols: tuple[sympy.Symbol, ...]
    _derivatives: dict[tuple[str, tuple[int, ...]], Vector] = field(default_factory=dict)
    _values: dict[Tree, Vector] = field(default_factory=dict)

    def __call__(self, whole: Tree) -> Vector:
        """F_c^{(m)}(F(τ_1), …, F(τ_m)), one expression per component."""
        if whole not in self._values:
            directions = [self(child) for child in whole.children]
            self._values[whole] = tuple(map(expand_polynomial, self._contract(whole.colour, (), directions)))
        return self._values[whole]

    def _contract(self, colour: str, indices: tuple[int, ...], directions: Sequence[Vector]) -> Vector:
        """Σ_i ∂_i … F_c · (direction)_i …, after the derivatives ``indices``."""
        entry = self._derivative(colour, tuple(sorted(indices)))
        if not directions or not any(entry):
            return entry
        first, *rest = directions
        total: Vector = (sympy.S.Zero,) * len(entry)
        for i, factor in enumerate(first):
            if factor != 0:
                inner = self._contract(colour, (*indices, i), rest)
                total = tuple(a + factor * b for a, b in zip(total, inner, strict=True))
        return total

    def _derivative(self, colour: str, indices: tuple[int, ...]) -> Vector:
        if not indices:
            return self.parts[colour]
        if (colour, indices) not in self._derivatives:
            lower = self._derivative(colour, indices[:-1])
            self._derivatives[colour, indices] = tuple(sympy.diff(c, self.symbols[indices[-1]]) for c in lower)
        return self._derivatives[colour, indices]


def expand_polynomial(expression: sympy.Expr) -> sympy.Expr:
    """A polynomial expanded, so that terms cancel; any other expression unchanged."""
    return sympy.expand(expression) if expression.is_polynomial() else expression


def field_terms(series: Series, parts: Field, symbols: Sequence[sympy.Symbol]) -> list[Vector]:
    r"""F_1 … F_p of the modified field Σ_j h^{j−1}F_j of a concrete field; each as long as ``symbols``.

    ``parts``: the field's components in ``symbols``; for a split method a mapping colour → components. Raises TypeError
    or ValueError, with the name of the argument, if they do not match the series or each other.
    """
    check_series(series)
    names = check_symbols(symbols)
    differential = Differentials(check_parts(parts, series, len(names)), names)
    terms: list[list[sympy.Expr]] = [[sympy.S.Zero] * len(names) for _ in range(series.order)]
    for whole, c in series.terms:
        row = terms[whole.order - 1]
        for i, component in enumerate(differential(whole)):
            row[i] += to_sympy(c) * component
    return [tuple(map(expand_polynomial, row)) for row in terms]


def field_expressions(series: Series, parts: Field, symbols: Sequence[sympy.Symbol], h: sympy.Expr) -> list[sympy.Expr]:
    r"""The modified field Σ_j h^{j−1}F_j of a concrete field, one expression per component; see ``field_terms``."""
    rate = to_sympy(h, "h")
    return [
        sum((rate**j * term for j, term in enumerate(component)), sympy.S.Zero)
        for component in zip(*field_terms(series, parts, symbols), strict=True)
    ]


def modified_gradient_flow(
    loss: sympy.Expr,
    symbols: Sequence[sympy.Symbol],
    h: sympy.Expr,
    order: int,
    method: ExplicitMethod | Multistep = EULER,
) -> list[sympy.Expr]:
    r"""The modified field of a method on ẏ = −∇f, f = ``loss``, by default of gradient descent: one entry per symbol.

    θ̇ = −∇f − (h/2) H∇f − h² [(1/3) HH∇f + (1/12) D³f[∇f, ∇f]] − …
    """
    return field_expressions(modified_equation(method, order), descent_field(loss, symbols), symbols, h)


def modified_momentum_flow(
    loss: sympy.Expr,
    positions: Sequence[sympy.Symbol],
    velocities: Sequence[sympy.Symbol],
    friction: sympy.Expr,
    h: sympy.Expr,
    order: int,
    method: ExplicitMethod,
) -> list[sympy.Expr]:
    r"""The modified field of HEAVY_BALL or NESTEROV on ẋ = v, v̇ = −μv − ∇f(x): the entries of ẋ, then those of v̇."""
    parts = momentum_parts(loss, positions, velocities, friction)
    return field_expressions(modified_equation(method, order), parts, [*positions, *velocities], h)


def descent_field(loss: sympy.Expr, symbols: Sequence[sympy.Symbol]) -> Vector:
    """−∇f."""
    if not isinstance(loss, sympy.Expr):
        raise TypeError(f"loss must be a sympy expression, got {short_form(loss)} of type {type(loss).__name__}")
    return tuple(-sympy.diff(loss, symbol) for symbol in check_symbols(symbols))


def momentum_parts(
    loss: sympy.Expr,
    positions: Sequence[sympy.Symbol],
    velocities: Sequence[sympy.Symbol],
    friction: sympy.Expr,
) -> dict[str, Vector]:
    """The parts of ẋ = v, v̇ = −μv − ∇f(x) by colour: x, (v, 0); r, (0, −μv); g, (0, −∇f)."""
    check_symbols([*positions, *velocities])
    if len(positions) != len(velocities):
        raise ValueError(f"velocities must be as many as positions, got {len(velocities)} and {len(positions)}")
    still = (sympy.S.Zero,) * len(positions)
    return {
        "x": (*velocities, *still),
        "r": (*still, *(-to_sympy(friction) * v for v in velocities)),
        "g": (*still, *descent_field(loss, positions)),
    }


def check_parts(parts: Field, series: Series, dimension: int) -> dict[str, Vector]:
    """The field's components by colour; raise unless there is one for each colour, as long as the symbols."""
    by_colour = parts if isinstance(parts, Mapping) else {"f": parts}
    by_colour = {colour: as_list("parts", components, "components") for colour, components in by_colour.items()}
    colours = {colour for colour, _ in series.grammar}
    if set(by_colour) != colours:
        raise ValueError(
            f"parts must give components for the colours {sorted(colours)}, got {sorted(map(str, by_colour))}"
        )
    for colour, components in by_colour.items():
        if len(components) != dimension:
            raise ValueError(f"parts must have {dimension} components as symbols do, got {len(components)} of {colour}")
    return {
        colour: tuple(to_sympy(component, "parts") for component in components)
        for colour, components in by_colour.items()
    }


def to_sympy(number: Exact, name: str = "number") -> sympy.Expr:
    """A number or expression in sympy, fractions exactly; TypeError for text, which sympify would evaluate as code."""
    if isinstance(number, bool) or not isinstance(number, (numbers.Number, sympy.Expr)):
        raise TypeError(f"{name} must be a sympy expression or a number, got {short_form(number)}")
    return sympy.sympify(number)


def tall_tree(order: int) -> Tree:
    """F′…F′F with ``order`` vertices of one colour."""
    whole = tree("f")
    for _ in range(check_count("order", order) - 1):
        whole = tree("f", whole)
    return whole


HIGHEST_TALL = 100
"""The largest number of coefficients of tall trees, which take seconds."""


def principal_coefficient_series(method: ExplicitMethod | Multistep, order: int) -> list[Exact]:
    """c(tall_1) … c(tall_order): the Taylor coefficients of log R(z)/z, from the trees alone."""
    check_one_colour(method)
    recursion = recursion_of(method)
    check_count("order", order, maximum=HIGHEST_TALL)
    return [recursion.coefficient(tall_tree(n)) for n in range(1, order + 1)]


def stability_function(method: ExplicitMethod | Multistep, z: sympy.Expr) -> sympy.Expr:
    r"""R(z), the factor of y in one step on ẏ = λy, z = hλ.

    Runge–Kutta: 1 + z bᵀ(I − zA)⁻¹1, a polynomial here. Multistep: the root of Σ_i (α_i − zβ_i)ρⁱ that is 1 at z = 0,
    in closed form for methods of one or two steps; UnsupportedError for longer ones and for split fields.
    """
    check_one_colour(method)
    z = to_sympy(z, "z")
    if isinstance(method, Multistep):
        return smooth_root(method, z)
    ((_, tableau),) = method.tableaux
    stages: Row = (sympy.S.One,) * len(tableau.weights)
    total, power = sympy.S.One, sympy.S.One
    for _ in tableau.weights:  # A is nilpotent: A^s = 0 for s stages
        power *= z
        total += power * dot(tableau.weights, stages)
        stages = tuple(dot(row, stages) for row in tableau.stages)
    return total


def smooth_root(method: Multistep, z: sympy.Expr) -> sympy.Expr:
    """The root that is 1 at z = 0; the square root is normalised to 1 there, which selects its branch."""
    terms = [to_sympy(a) - z * to_sympy(b) for a, b in zip(method.alpha, method.beta, strict=True)]
    if len(terms) == 2:
        return -terms[0] / terms[1]
    if len(terms) > 3:
        raise UnsupportedError(f"method must have at most two steps for a root in closed form, got {len(terms) - 1}")
    c, b, a = terms
    gap = to_sympy(method.alpha[2]) - to_sympy(method.alpha[0])
    return (-b + gap * sympy.sqrt(sympy.cancel((b**2 - 4 * a * c) / gap**2))) / (2 * a)


def dot(a: Iterable[Exact], b: Iterable[Exact]) -> sympy.Expr:
    """Σ a_i b_i."""
    return sum((to_sympy(x) * to_sympy(y) for x, y in zip(a, b, strict=True)), sympy.S.Zero)


def principal_part(method: ExplicitMethod | Multistep, z: sympy.Expr) -> sympy.Expr:
    """log R(z)/z: the sum of the tall trees, exact on linear fields. EULER: log(1 + z)/z, with z = −hH."""
    return sympy.log(stability_function(method, z)) / to_sympy(z, "z")


def check_one_colour(method: ExplicitMethod | Multistep) -> None:
    """Raise unless the method's trees have one colour."""
    if not isinstance(method, ExplicitMethod | Multistep):
        recursion_of(method)  # raises the TypeError
    if isinstance(method, ExplicitMethod) and method.grammar != FIELD:
        raise UnsupportedError(
            "method must act on one field: the step of a split method on a linear field is a matrix; "
            "use its multistep form, heavy_ball_multistep or nesterov_multistep"
        )
