r"""Maps with a series: one step on a field, given by a coefficient for each rooted tree.

    Φ_h(y) = y + Σ_τ (h^{|τ|}/σ(τ)) a(τ) F(τ)(y)

An explicit Runge–Kutta method has a(τ) = Σ_i b_i φ_i(τ). The same formula with a tableau for each part of a split field
includes the scaled momentum maps, which advance velocity and position in turn.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from numbers import Rational
from typing import Any, final

import sympy

from flows.series.trees import FIELD, Grammar, Part, Tree
from landscapes.errors import as_list, short_form

Exact = Any
"""A Fraction, or a sympy expression for a method with symbols: mypy has no types for sympy."""
Row = tuple[Exact, ...]


@dataclass(frozen=True)
class Tableau:
    """Weights of one part of the field: ``stages`` A, strictly lower triangular, and ``weights`` b."""

    stages: tuple[Row, ...]
    weights: Row


@final
@dataclass(frozen=True)
class ExplicitMethod:
    r"""One step  Y_i = y + h Σ_c Σ_{j<i} A^c_ij F_c(Y_j),  y' = y + h Σ_c Σ_i b^c_i F_c(Y_i)  for F = Σ_c F_c.

    ``tableaux``: colour → ``Tableau``, with equal numbers of stages, exact rationals. ``grammar`` defines which
    derivatives of the parts vanish. Make one with ``runge_kutta``, or use EULER, HEAVY_BALL and NESTEROV.
    """

    tableaux: tuple[tuple[str, Tableau], ...]
    grammar: Grammar = FIELD

    def coefficient(self, tree: Tree) -> Exact:
        """a(τ) = Σ_i b_i Π_k φ_i(τ_k), φ_i(τ) = Σ_j A_ij Π_k φ_j(τ_k): the elementary weight."""
        tableau = dict(self.tableaux)[tree.colour]
        return sum(
            (b * self._derivative(tree, i) for i, b in enumerate(tableau.weights) if b),
            Fraction(0),
        )

    def _derivative(self, tree: Tree, stage: int) -> Exact:
        return math.prod((_stage_weight(self, child, stage) for child in tree.children), start=Fraction(1))


@cache
def _stage_weight(method: ExplicitMethod, tree: Tree, stage: int) -> Exact:
    """φ_i(τ): the coefficient of τ in stage i."""
    row = dict(method.tableaux)[tree.colour].stages[stage]
    return sum((a * method._derivative(tree, j) for j, a in enumerate(row) if a), Fraction(0))


def runge_kutta(
    stages: Sequence[Sequence[Rational | sympy.Expr]], weights: Sequence[Rational | sympy.Expr]
) -> ExplicitMethod:
    """The explicit Runge–Kutta method with matrix ``stages`` A (s, s) and ``weights`` b (s).

    Entries are integers, fractions.Fraction, or sympy expressions for a family of methods. Raises TypeError for
    other numbers (a float is not the decimal that it prints as), ValueError for a matrix that is not square and
    strictly lower triangular, or weights of another length.
    """
    rows = tuple(
        tuple(exact_number("stages", a) for a in as_list("stages", row, "rows"))
        for row in as_list("stages", stages, "rows")
    )
    b = tuple(exact_number("weights", w) for w in as_list("weights", weights, "numbers"))
    if not b or len(rows) != len(b) or any(len(row) != len(b) for row in rows):
        raise ValueError(
            f"stages must be a square matrix as long as weights, got rows {[len(r) for r in rows]}, {len(b)}"
        )
    if any(a for i, row in enumerate(rows) for a in row[i:]):
        raise ValueError("stages must be strictly lower triangular: only explicit methods are supported")
    return ExplicitMethod((("f", Tableau(rows, b)),))


def exact_number(name: str, number: Rational | sympy.Expr) -> Exact:
    """The number as a Fraction, or an expression in symbols unchanged; raise if it is neither."""
    if isinstance(number, sympy.Expr) and not number.is_number and not number.has(sympy.Float):
        return number
    if isinstance(number, bool) or not isinstance(number, Rational):
        raise TypeError(
            f"{name} must hold integers, fractions.Fraction or sympy expressions in symbols, got {short_form(number)}; "
            "write Fraction(9, 10) for 0.9"
        )
    return Fraction(number)


def split_method(
    stages: Mapping[str, Sequence[Sequence[int]]], weights: Mapping[str, Sequence[int]], grammar: Grammar
) -> ExplicitMethod:
    """A method on a split field from integer tableaux, by colour."""
    return ExplicitMethod(
        tuple(
            (
                colour,
                Tableau(
                    tuple(tuple(map(Fraction, row)) for row in stages[colour]), tuple(map(Fraction, weights[colour]))
                ),
            )
            for colour, _ in grammar
        ),
        grammar,
    )


EULER = runge_kutta([[0]], [1])
"""y + h F(y): gradient descent, with F = −∇f."""

MOMENTUM: Grammar = (
    ("x", Part(("r", "g"), linear=True)),
    ("r", Part(("r", "g"), linear=True)),
    ("g", Part(("x",))),
)
"""ẋ = v, v̇ = −μv − ∇f(x) in three parts on z = (x, v): x, transport (v, 0); r, friction (0, −μv); g, (0, −∇f(x))."""

HEAVY_BALL = split_method(
    stages={"x": [[0, 0], [0, 0]], "r": [[0, 0], [1, 0]], "g": [[0, 0], [1, 0]]},
    weights={"x": [0, 1], "r": [1, 0], "g": [1, 0]},
    grammar=MOMENTUM,
)
"""v' = v − h(μv + ∇f(x)),  x' = x + h v'."""

NESTEROV = split_method(
    stages={
        "x": [[0] * 4, [0] * 4, [0, 1, 0, 0], [0] * 4],
        "r": [[0] * 4, [1, 0, 0, 0], [1, 0, 0, 0], [1, 0, 0, 0]],
        "g": [[0] * 4, [0] * 4, [0] * 4, [0, 0, 1, 0]],
    },
    weights={"x": [0, 0, 0, 1], "r": [1, 0, 0, 0], "g": [0, 0, 1, 0]},
    grammar=MOMENTUM,
)
"""v' = (1 − hμ)v − h∇f(x + h(1 − hμ)v),  x' = x + h v'."""


def check_method(method: ExplicitMethod) -> None:
    """Raise unless ``method`` is an explicit Runge–Kutta method on one field."""
    if not isinstance(method, ExplicitMethod) or len(method.tableaux) != 1:
        raise TypeError(f"method must come from flows.series.runge_kutta, got {short_form(method)}")
