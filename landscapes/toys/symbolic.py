r"""``from_sympy``: any expression as a batched torch landscape, with symbolic derivatives.

Each derivative is a straight-line program: sympy differentiates, powers become chains of squares, subexpressions common
to all components are computed once, and the result is written as torch operations on whole batches. Programs are
compiled at first use. The source is built from a fixed table of operations on generated names, never from text of the
caller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cached_property
from typing import final

import sympy
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.errors import short_form
from landscapes.toys.closed_form import ClosedForm
from landscapes.toys.symbolic_program import (
    ALGEBRA,
    HOLOMORPHIC,
    Program,
    check_functions,
    compile_program,
    differentiate,
    is_holomorphic,
    share_ties,
)

Index = tuple[int, ...]

SHORT = 200  # characters of a formula that is printed whole


def from_sympy(expression: sympy.Expr, symbols: Sequence[sympy.Symbol]) -> SymbolicLandscape:
    r"""The landscape f(θ) = ``expression`` with θ_i = ``symbols[i]``; θ (..., d), any floating dtype and device.

    Accepted: numbers, + · / and powers, the elementary, trigonometric and hyperbolic functions, erf, and (real θ only)
    Abs, sign, Max, Min, Heaviside, Piecewise. Complex θ is accepted if none of the latter occurs. At jumps the
    derivative is zero, as in autograd, and where n arguments of Max or Min tie, each has 1/n of it. Raises TypeError
    unless the arguments are an expression and symbols, ValueError if symbols repeat, one of the expression's is
    missing, or the expression is not real and finite, and UnsupportedError, naming the function, for an unknown
    function.
    """
    return SymbolicLandscape(expression, symbols)


@final
class SymbolicLandscape(ClosedForm):
    """A landscape given by a sympy expression; made by ``from_sympy``."""

    def __init__(self, expression: sympy.Expr, symbols: Sequence[sympy.Symbol]):
        self.symbols = check_symbols(symbols)
        self.expression = check_expression(expression, self.symbols)
        self.holomorphic = is_holomorphic(self.expression)
        # without real=True sympy keeps sqrt(x²), which is right for complex θ; with it |x| has the derivative sign(x)
        self._theta = generated_symbols("t", self.dimension, real=None if self.holomorphic else True)
        generated = self.expression.xreplace(dict(zip(self.symbols, self._theta, strict=True)))
        self._loss = share_ties(generated)
        check_functions(self._loss)
        self._tables: dict[int, dict[Index, sympy.Expr]] = {}
        self._programs: dict[int, Program] = {}

    def __reduce__(self) -> tuple[type[SymbolicLandscape], tuple[sympy.Expr, tuple[sympy.Symbol, ...]]]:
        return type(self), (self.expression, self.symbols)  # programs are compiled again

    def __repr__(self) -> str:
        """The call that makes it; of a long formula the beginning, its operations and the number of symbols."""
        formula = str(self.expression)
        if len(formula) > SHORT:
            formula = f"{formula[:SHORT]} … [{sympy.count_ops(self.expression)} operations]"
        names = ", ".join(map(str, self.symbols)) + ("," if self.dimension == 1 else "")
        if len(names) > SHORT:
            names = f"{self.symbols[0]}, …, {self.symbols[-1]} [{self.dimension} symbols]"
        return f"from_sympy({formula}, ({names}))"

    @property
    def smoothness(self) -> float:
        """math.inf, or 0 if Abs, sign, Max, Min, Heaviside or Piecewise occur: a lower bound."""
        smooth = (*ALGEBRA, *HOLOMORPHIC, sympy.erf, sympy.erfc)
        return math.inf if all(isinstance(p, smooth) for p in sympy.preorder_traversal(self._loss)) else 0

    @property
    def dimension(self) -> int:
        return len(self.symbols)

    @cached_property
    def _grad(self) -> list[sympy.Expr]:
        return [differentiate(self._loss, t) for t in self._theta]

    @cached_property
    def _hessian(self) -> dict[Index, sympy.Expr]:
        """The upper triangle: H is symmetric."""
        pairs = itertools.combinations_with_replacement(range(self.dimension), 2)
        return {(i, j): differentiate(self._grad[i], self._theta[j]) for i, j in pairs}

    @cached_property
    def _loss_program(self) -> Program:
        return compile_program([self._loss], {"theta": self._theta}, "{0}")

    @cached_property
    def _grad_program(self) -> Program:
        return compile_program(self._grad, {"theta": self._theta})

    @cached_property
    def _hessian_program(self) -> Program:
        d = self.dimension
        order: dict[Index, int] = {pair: k for k, pair in enumerate(self._hessian)}
        entries = ", ".join(f"{{{order[min(i, j), max(i, j)]}}}" for i in range(d) for j in range(d))
        result = f"torch.stack(({entries},), dim=-1).unflatten(-1, ({d}, {d}))"
        return compile_program(list(self._hessian.values()), {"theta": self._theta}, result)

    def _partials(self, order: int) -> dict[Index, sympy.Expr]:
        """Every ∂_I f of an order by its sorted index I: D^m f is symmetric, so there are (d+m−1 choose m)."""
        if order == 2:
            return self._hessian
        if order not in self._tables:
            lower, d = self._partials(order - 1), self.dimension
            indices = itertools.combinations_with_replacement(range(d), order)
            self._tables[order] = {index: differentiate(lower[index[:-1]], self._theta[index[-1]]) for index in indices}
        return self._tables[order]

    def _derivative_program(self, order: int) -> Program:
        """D^m f[w_1, …, w_{m−1}]_k = Σ_I ∂_{Ik} f · Σ over the arrangements J of I of Π_r w_{r,J_r}, compiled once."""
        if order not in self._programs:
            arguments = {f"w{r}": generated_symbols(f"w{r}_", self.dimension) for r in range(1, order)}
            weights = arrangements(list(arguments.values()))
            partials = self._partials(order)
            components = [
                sympy.Add(*[partials[tuple(sorted((*index, k)))] * weight for index, weight in weights.items()])
                for k in range(self.dimension)
            ]
            self._programs[order] = compile_program(components, {"theta": self._theta, **arguments})
        return self._programs[order]

    def loss(self, theta: Tensor) -> Tensor:
        """The expression's value, shape (...,)."""
        return self._loss_program(self.check(theta))

    def grad(self, theta: Tensor) -> Tensor:
        """Its gradient, shape (..., d)."""
        return self._grad_program(self.check(theta))

    def matrix(self, theta: Tensor) -> Tensor:
        """Its Hessian, shape (..., d, d)."""
        return self._hessian_program(theta)

    def curvature(self, theta: Tensor) -> Field:
        matrix = self.matrix(theta)
        return lambda v: (matrix @ v[..., None]).squeeze(-1)

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """Its third derivative contracted with u and v, shape (..., d)."""
        return self._derivative_program(3)(theta, u, v)

    def derivative(self, theta: Tensor, *directions: Tensor) -> Tensor:
        """Its derivative of order m + 1 contracted with m ≥ 2 directions, shape (..., d), at every order by formula."""
        return self._derivative_program(len(directions) + 1)(theta, *directions)


def generated_symbols(letter: str, count: int, real: bool | None = None) -> list[sympy.Symbol]:
    """The symbols letter0, letter1, ...: names of the caller's symbols may be any text, also code."""
    return [sympy.Symbol(f"{letter}{i}", real=real) for i in range(count)]


def arrangements(directions: list[list[sympy.Symbol]]) -> dict[Index, sympy.Expr]:
    """Σ over the distinct arrangements J of a sorted index I of Π_r w_{r,J_r}, for every I of one entry a direction.

    By recursion over the directions, so that indices share the sums of their subindices.
    """
    sums: dict[Index, sympy.Expr] = {(): sympy.S.One}
    for length, direction in enumerate(directions, start=1):
        sums = {
            index: sympy.Add(*[direction[i] * sums[remove_entry(index, i)] for i in sorted(set(index))])
            for index in itertools.combinations_with_replacement(range(len(direction)), length)
        }
    return sums


def remove_entry(index: Index, entry: int) -> Index:
    """A sorted index without one occurrence of ``entry``."""
    place = index.index(entry)
    return index[:place] + index[place + 1 :]


def check_symbols(symbols: Sequence[sympy.Symbol]) -> tuple[sympy.Symbol, ...]:
    """Return ``symbols`` as a tuple; raise unless they are distinct sympy symbols, at least one."""
    if isinstance(symbols, (sympy.Symbol, str)) or not isinstance(symbols, Sequence):
        raise TypeError(f"symbols must be a sequence of sympy symbols such as (x, y), got {short_form(symbols)}")
    for symbol in symbols:
        if not isinstance(symbol, sympy.Symbol):
            raise TypeError(
                f"symbols must hold sympy symbols, got {short_form(symbol)} of type {type(symbol).__name__}"
            )
    if not symbols:
        raise ValueError("symbols must name at least one symbol, got none")
    if len(set(symbols)) != len(symbols):
        raise ValueError(f"symbols must be distinct, got {tuple(symbols)}")
    return tuple(symbols)


def check_expression(expression: sympy.Expr, symbols: tuple[sympy.Symbol, ...]) -> sympy.Expr:
    """Return ``expression`` as a sympy expression; raise unless it is real and finite, in the given symbols."""
    if isinstance(expression, (int, float)) and not isinstance(expression, bool):
        expression = sympy.sympify(expression)
    if not isinstance(expression, sympy.Expr):
        raise TypeError(
            f"expression must be a sympy expression, got {short_form(expression)} of type {type(expression).__name__}; "
            "text can be parsed with sympy.sympify"
        )
    stray = expression.free_symbols - set(symbols)
    if stray:
        raise ValueError(f"expression has free symbols {sorted(map(str, stray))} that are not among symbols {symbols}")
    if expression.has(sympy.I, sympy.oo, -sympy.oo, sympy.zoo, sympy.nan):
        raise ValueError(f"expression must be real and finite for real symbols, got {expression}")
    return expression
