r"""Modified equations: the field whose flow interpolates the steps of a method, tree by tree, in exact rationals.

    ẏ = Σ_τ (h^{|τ|−1}/σ(τ)) b(τ) F(τ)(y),        exp(hF̃) y = Σ_j (h^j/j!) D^{j−1}F̃ (y),

where D is the derivative along F̃ itself. On trees (Db)(τ) = Σ over edges b(root part) b(branch). For both families
below a combination of the powers of D equals the method's coefficients, which is solved for b(τ) order by order:

    one step        Σ_j D^{j−1}b / j! = a                           (Hairer, Lubich & Wanner, ch. IX.9)
    several steps   Σ_j (Σ_i α_i iʲ) D^{j−1}b / j! = Σ_i β_i Π_k e_i(τ_k),  e_i = Σ_j iʲ D^{j−1}b / j!

The second is a linear multistep method Σ α_i y_{k+i} = h Σ β_i F(y_{k+i}), of which this is the smooth solution, to
which heavy ball converges at a fixed momentum. Both series converge for small h only, if at all.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from numbers import Rational
from typing import final

import sympy

from flows.series.methods import Exact, ExplicitMethod, exact_number
from flows.series.trees import FIELD, HIGHEST_TREES, Grammar, Tree, cuts, rooted_trees
from landscapes.errors import check_count


class Recursion(ABC):
    """b(τ) of a modified equation with all powers of D, computed at first use and cached."""

    def __init__(self) -> None:
        self._powers: dict[tuple[Tree, int], Exact] = {}

    def coefficient(self, tree: Tree) -> Exact:
        """b(τ)."""
        return self.power(tree, 0)

    def power(self, tree: Tree, n: int) -> Exact:
        """(Dⁿb)(τ); zero if τ has fewer than n edges."""
        if n >= tree.order:
            return Fraction(0)
        if (tree, n) not in self._powers:
            terms = (self.power(stays, n - 1) * self.coefficient(falls) for stays, falls in cuts(tree))
            self._powers[tree, n] = reduce(self.solve(tree)) if n == 0 else sum(terms, Fraction(0))
        return self._powers[tree, n]

    @abstractmethod
    def solve(self, tree: Tree) -> Exact:
        """b(τ) from the powers of D of τ, and b of smaller trees."""


def reduce(number: Exact) -> Exact:
    """A Fraction if the number is one, else a quotient of polynomials in lowest terms, so that zeros are recognised."""
    if not isinstance(number, sympy.Expr):
        return number
    quotient = sympy.factor(sympy.cancel(number))
    return Fraction(int(quotient.p), int(quotient.q)) if quotient.is_Rational else quotient


class OneStep(Recursion):
    """Modified equation of a method with a series: exp(hF̃) = Φ_h."""

    def __init__(self, method: ExplicitMethod):
        super().__init__()
        self.method = method

    def solve(self, tree: Tree) -> Exact:
        """b = a − Σ_{j≥2} D^{j−1}b / j!."""
        higher = (self.power(tree, j - 1) / math.factorial(j) for j in range(2, tree.order + 1))
        return self.method.coefficient(tree) - sum(higher, Fraction(0))


@final
@dataclass(frozen=True)
class Multistep:
    r"""Σ_i α_i y_{k+i} = h Σ_i β_i F(y_{k+i}), i from ``first`` on; Σ α_i = 0 and Σ i α_i ≠ 0.

    Entries are exact rationals, or sympy expressions for a family of methods. Raises TypeError for other numbers (a
    float is not the decimal that it prints as), ValueError if the lengths differ or the sums violate these conditions,
    without which no solution of the method follows a field.
    """

    alpha: tuple[Exact, ...]
    beta: tuple[Exact, ...]
    first: int = -1

    def __post_init__(self) -> None:
        for name in ("alpha", "beta"):
            object.__setattr__(self, name, tuple(exact_number(name, number) for number in getattr(self, name)))
        if len(self.alpha) != len(self.beta) or len(self.alpha) < 2:
            raise ValueError(
                f"alpha and beta must have equal lengths, two at least, got {len(self.alpha)}, {len(self.beta)}"
            )
        if reduce(sum(self.alpha)) != 0:
            raise ValueError(f"alpha must sum to 0, so that constants solve y' = 0, got {self.alpha}")
        if reduce(sum(i * a for i, a in enumerate(self.alpha))) == 0:
            raise ValueError(f"alpha must have Σ i α_i ≠ 0, so that its solutions have a slope, got {self.alpha}")


class SmoothSolution(Recursion):
    """Modified equation of the solution of a multistep method that is smooth in h."""

    def __init__(self, method: Multistep):
        super().__init__()
        self.method = method

    def solve(self, tree: Tree) -> Exact:
        """b from Σ_j (Σ_i α_i iʲ) D^{j−1}b / j! = Σ_i β_i Π_k e_i(τ_k)."""
        steps = range(self.method.first, self.method.first + len(self.method.alpha))
        moments = [
            sum((a * Fraction(i) ** j for i, a in zip(steps, self.method.alpha, strict=True)), Fraction(0))
            for j in range(tree.order + 1)
        ]
        right = sum(
            (
                b * math.prod(self._shift(child, i) for child in tree.children)
                for i, b in zip(steps, self.method.beta, strict=True)
            ),
            Fraction(0),
        )
        higher = (moments[j] * self.power(tree, j - 1) / math.factorial(j) for j in range(2, tree.order + 1))
        return (right - sum(higher, Fraction(0))) / moments[1]

    def _shift(self, tree: Tree, i: int) -> Exact:
        """e_i(τ): the coefficient of τ in exp(ihF̃)y."""
        terms = (Fraction(i) ** j * self.power(tree, j - 1) / math.factorial(j) for j in range(1, tree.order + 1))
        return sum(terms, Fraction(0))


def recursion_of(method: ExplicitMethod | Multistep) -> Recursion:
    """The recursion that solves for the method's modified equation; TypeError for anything else."""
    if isinstance(method, Multistep):
        return SmoothSolution(method)
    if isinstance(method, ExplicitMethod):
        return OneStep(method)
    raise TypeError(
        f"method must be an ExplicitMethod or a Multistep, got {type(method).__name__}; make one with runge_kutta, "
        "heavy_ball_multistep or nesterov_multistep"
    )


@final
@dataclass(frozen=True)
class Series:
    r"""A modified field Σ c(τ) h^{|τ|−1} F(τ), c = b/σ exact, cut after trees of ``order`` vertices; without zeros."""

    terms: tuple[tuple[Tree, Exact], ...]
    order: int
    grammar: Grammar = FIELD

    def coefficient(self, tree: Tree) -> Exact:
        """c(τ) = b(τ)/σ(τ), the factor of h^{|τ|−1}F(τ); 0 for trees that do not occur."""
        return dict(self.terms).get(tree, Fraction(0))


def check_series(series: Series) -> Series:
    """Return the series; raise for another object."""
    if not isinstance(series, Series):
        raise TypeError(f"series must be a Series, got {type(series).__name__}; make one with modified_equation")
    return series


def modified_equation(method: ExplicitMethod | Multistep, order: int) -> Series:
    """The modified equation of a method, with every tree of up to ``order`` vertices.

    Raises TypeError if the method is none of these or the order is no integer, ValueError for an order below 1.
    """
    recursion_of(method)  # raises a clear error; lru_cache would complain of an unhashable argument
    check_count("order", order, maximum=HIGHEST_TREES)  # outside the cache, where 2.0 equals 2
    return _modified_equation(method, order)


@lru_cache(maxsize=64)
def _modified_equation(method: ExplicitMethod | Multistep, order: int) -> Series:
    recursion = recursion_of(method)
    grammar = FIELD if isinstance(method, Multistep) else method.grammar
    trees = [tree for n in range(1, order + 1) for tree in rooted_trees(n, grammar)]
    found = [(tree, recursion.coefficient(tree) / tree.symmetry) for tree in trees]
    return Series(tuple((tree, c) for tree, c in found if c != 0), order, grammar)


def heavy_ball_multistep(momentum: Rational | sympy.Expr) -> Multistep:
    """y_{k+1} − (1 + β)y_k + βy_{k−1} = hF(y_k): heavy ball at a fixed momentum β, its velocity eliminated.

    β a rational, or a sympy symbol for a general β. Raises TypeError for a float, ValueError for β = 1.
    """
    beta = check_momentum(momentum)
    return Multistep((beta, -(1 + beta), Fraction(1)), (Fraction(0), Fraction(1), Fraction(0)))


def nesterov_multistep(momentum: Rational | sympy.Expr) -> Multistep:
    """y_{k+1} − (1 + β)y_k + βy_{k−1} = h[(1 + β)F(y_k) − βF(y_{k−1})]: Nesterov's look-ahead points y.

    β and errors as for ``heavy_ball_multistep``.
    """
    beta = check_momentum(momentum)
    return Multistep((beta, -(1 + beta), Fraction(1)), (-beta, 1 + beta, Fraction(0)))


def check_momentum(momentum: Rational | sympy.Expr) -> Exact:
    """Return β exactly; raise if it is a float, or 1."""
    beta = exact_number("momentum", momentum)
    if beta == 1:
        raise ValueError("momentum must not be 1: without damping its solutions follow no field")
    return beta
