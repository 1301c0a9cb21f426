r"""``from_sympy``: any expression as a batched torch landscape, with symbolic derivatives.

Each derivative is a straight-line program: sympy differentiates, powers become chains of squares, subexpressions common
to all components are computed once, and the result is written as torch operations on whole batches. Programs are
compiled at first use. The source is built from a fixed table of operations on generated names, never from text of the
caller.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, final

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import And, BooleanFalse, BooleanTrue, Not, Or
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.errors import UnsupportedError, short_form
from landscapes.toys.closed_form import ClosedForm

Program = Callable[..., Tensor]
Index = tuple[int, ...]


class Square(sympy.Function):
    """x² as one node, so that cse shares the squares of which every power is a chain."""

    nargs = 1


class Root(sympy.Function):
    """√x as one node, for the same reason."""

    nargs = 1


NAMED = "exp log sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh"  # same names in torch and sympy
HOLOMORPHIC = {getattr(sympy, name): f"torch.{name}({{}})" for name in NAMED.split()} | {
    sympy.sec: "torch.cos({}).reciprocal()",
    sympy.csc: "torch.sin({}).reciprocal()",
    sympy.cot: "torch.tan({}).reciprocal()",
    sympy.sech: "torch.cosh({}).reciprocal()",
    sympy.csch: "torch.sinh({}).reciprocal()",
    sympy.coth: "torch.tanh({}).reciprocal()",
}
REAL_ONLY = {  # no complex derivative, or no complex kernel in torch (erf)
    sympy.Abs: "torch.abs({})",
    sympy.sign: "torch.sign({})",
    sympy.erf: "torch.erf({})",
    sympy.erfc: "torch.erfc({})",
    sympy.Heaviside: "((torch.sign({}) + 1)/2)",
}
EXTREMES = {sympy.Max: "torch.maximum", sympy.Min: "torch.minimum"}
CONNECTIVES = {And: "&", Or: "|"}
FUNCTIONS = HOLOMORPHIC | REAL_ONLY | {Square: "torch.square({})", Root: "torch.sqrt({})"}
ALGEBRA = (sympy.Add, sympy.Mul, sympy.Pow, sympy.Symbol, sympy.Rational, sympy.Float, sympy.NumberSymbol)
BRANCHES = (sympy.Piecewise, sympy.functions.elementary.piecewise.ExprCondPair, Relational)
LOGIC = (And, Or, Not, BooleanTrue, BooleanFalse)


def from_sympy(expression: sympy.Expr, symbols: Sequence[sympy.Symbol]) -> SymbolicLandscape:
    r"""The landscape f(θ) = ``expression`` with θ_i = ``symbols[i]``; θ (..., d), any floating dtype and device.

    Accepted: numbers, + · / and powers, the elementary, trigonometric and hyperbolic functions, erf, and (real θ only)
    Abs, sign, Max, Min, Heaviside, Piecewise. Complex θ is accepted if none of the latter occurs. At jumps the
    derivative is zero, as in autograd. Raises TypeError unless the arguments are an expression and symbols, ValueError
    if symbols repeat, one of the expression's is missing, or the expression is not real and finite, and
    UnsupportedError, naming the function, for an unknown function.
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
        self._loss = self.expression.xreplace(dict(zip(self.symbols, self._theta, strict=True)))
        check_functions(self._loss)
        self._tables: dict[int, dict[Index, sympy.Expr]] = {}
        self._programs: dict[int, Program] = {}

    def __reduce__(self) -> tuple[type[SymbolicLandscape], tuple[sympy.Expr, tuple[sympy.Symbol, ...]]]:
        return type(self), (self.expression, self.symbols)  # programs are compiled again

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


def is_holomorphic(expression: sympy.Expr) -> bool:
    """Whether only algebraic and holomorphic functions occur."""
    return all(isinstance(part, (*ALGEBRA, *HOLOMORPHIC)) for part in sympy.preorder_traversal(expression))


def check_functions(expression: sympy.Expr) -> None:
    """Raise UnsupportedError unless every part of the expression has a torch form."""
    known = (*ALGEBRA, *FUNCTIONS, *EXTREMES, *BRANCHES, *LOGIC)
    for part in sympy.preorder_traversal(expression):
        if not isinstance(part, known):
            raise UnsupportedError(
                f"expression contains {type(part).__name__} in {part}, which has no differentiable torch form; "
                f"use elementary functions, or evaluate it first with .doit() or .rewrite(...)"
            )


def differentiate(expression: sympy.Expr, symbol: sympy.Symbol) -> sympy.Expr:
    """∂ expression / ∂ symbol almost everywhere: delta functions at jumps are dropped, as in autograd."""
    return sympy.diff(expression, symbol).replace(sympy.DiracDelta, lambda *_: sympy.S.Zero)


def lower(expression: sympy.Expr) -> sympy.Expr:
    """The expression with numbers evaluated to 30 digits, and integer and half-integer powers as squares and roots."""
    evaluated = expression.xreplace(
        {part: part.evalf(30) for part in sympy.preorder_traversal(expression) if is_constant(part)}
    )
    return evaluated.replace(lambda e: e.is_Pow and e.exp.is_number and e.exp != -1, lambda e: power(e.base, e.exp))


def is_constant(part: Any) -> bool:
    """Whether a part is a constant in symbolic form, such as π, √2, sin 1."""
    return isinstance(part, sympy.Expr) and part.is_number and not part.is_Number


def power(base: sympy.Expr, exponent: sympy.Expr) -> sympy.Expr:
    """base^exponent by repeated squaring if the exponent is a multiple of one half."""
    if exponent < 0:
        return 1 / power(base, -exponent)
    if 2 * exponent != int(2 * exponent):
        return sympy.Pow(base, exponent)
    if exponent != int(exponent):
        return Root(base) * power(base, exponent - sympy.S.Half)
    n = int(exponent)
    if n <= 1:
        return base**n
    half = Square(power(base, n // 2))
    return base * half if n % 2 else half


def compile_program(
    components: list[sympy.Expr], arguments: dict[str, list[sympy.Symbol]], result: str | None = None
) -> Program:
    """A function of tensors (..., d) that returns the components, stacked last unless ``result`` is given as source."""
    shared, reduced = sympy.cse(
        [lower(component) for component in components],
        symbols=sympy.numbered_symbols("c"),
        optimizations="basic",
        order="none",
    )
    lines = [f"    {', '.join(map(str, symbols))}, = {name}.unbind(-1)" for name, symbols in arguments.items()]
    lines += [f"    {name} = {write(expression)}" for name, expression in shared]
    texts = [write_tensor(expression) for expression in reduced]
    result = f"torch.stack(({', '.join('{}' for _ in texts)},), dim=-1)" if result is None else result
    lines += [f"    r{i} = {text}" for i, text in enumerate(texts)]
    lines += [f"    return {result.format(*[f'r{i}' for i in range(len(texts))])}"]
    source = "\n".join([f"def program({', '.join(arguments)}):", *lines])
    scope: dict[str, Any] = {"torch": torch}
    exec(compile(source, "<from_sympy>", "exec"), scope)
    return scope["program"]


def write_tensor(expression: sympy.Expr) -> str:
    """The expression as torch source for a tensor of the batch's shape, also if it is constant."""
    return f"torch.full_like(t0, {number(expression)})" if expression.is_number else write(expression)


def write(expression: Any) -> str:  # noqa: C901, PLR0911  # one case for each kind of expression
    """The expression as torch source; numbers are Python floats, so results have θ's dtype and device."""
    if isinstance(expression, sympy.Symbol):
        return str(expression)
    if isinstance(expression, sympy.Expr) and expression.is_number:
        return number(expression)
    if isinstance(expression, sympy.Add):
        return write_sum(expression)
    if isinstance(expression, sympy.Mul):
        return write_product(expression)
    if isinstance(expression, sympy.Pow):
        base, exponent = expression.args
        return f"(1/{write(base)})" if exponent == -1 else f"torch.pow({write(base)}, {write(exponent)})"
    if type(expression) in FUNCTIONS:
        return FUNCTIONS[type(expression)].format(write(expression.args[0]))
    if type(expression) in EXTREMES:
        return write_extreme(expression)
    if isinstance(expression, sympy.Piecewise):
        return write_branches(expression)
    if isinstance(expression, Relational):
        return f"({write(expression.lhs)} {expression.rel_op} {write(expression.rhs)})"
    if type(expression) in CONNECTIVES:
        return f"({f' {CONNECTIVES[type(expression)]} '.join(map(write, expression.args))})"
    if isinstance(expression, Not):
        return f"(~{write(expression.args[0])})"
    raise UnsupportedError(f"expression leads to {type(expression).__name__} in {expression}, which has no torch form")


def number(expression: sympy.Expr) -> str:
    """A real number as Python source."""
    try:
        return f"({float(expression)!r})"
    except TypeError:
        raise ValueError(f"expression leads to {expression}, which is not a real number") from None


def write_sum(expression: sympy.Add) -> str:
    """A sum with positive terms first, so that negative ones are subtracted without a negation."""
    terms = sorted(expression.args, key=lambda term: bool(term.as_coeff_Mul()[0] < 0))
    text = write(terms[0])
    for term in terms[1:]:
        text += f" - {write(-term)}" if term.as_coeff_Mul()[0] < 0 else f" + {write(term)}"
    return f"({text})"


def write_product(expression: sympy.Mul) -> str:
    """A product as constant · numerators / denominators."""
    above, below, constant = [], [], sympy.S.One
    for factor in expression.args:
        if factor.is_number:
            constant *= factor
        elif factor.is_Pow and factor.exp == -1:
            below.append(write(factor.base))
        else:
            above.append(write(factor))
    if constant == -1 and above:
        above[0] = f"(-{above[0]})"
    elif constant != 1 or not above:
        above.insert(0, number(constant))
    quotient = "*".join(above) + (f"/({'*'.join(below)})" if below else "")
    return f"({quotient})"


def write_extreme(expression: sympy.Expr) -> str:
    """Max or Min of any number of arguments, two at a time."""
    first, *rest = map(write_tensor, expression.args)
    for text in rest:
        first = f"{EXTREMES[type(expression)]}({first}, {text})"
    return first


def write_branches(expression: sympy.Piecewise) -> str:
    """Nested torch.where; NaN if no condition holds."""
    text = "torch.full_like(t0, float('nan'))"
    for value, condition in reversed(expression.args):
        chosen = write_tensor(value)
        text = chosen if condition == sympy.true else f"torch.where({write(condition)}, {chosen}, {text})"
    return text
