r"""Sympy expressions as torch programs: the functions with a torch form, derivatives almost everywhere, and the source.

At a tie of n arguments the gradient of Max and Min is shared by them, 1/n each, as by ``torch.amax``: sympy's own
derivative, products of Heaviside functions of two arguments, has shares that sum to n/2. At jumps the derivative is
zero, as in autograd.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import sympy
import torch
from sympy.core.relational import Relational
from sympy.logic.boolalg import And, BooleanFalse, BooleanTrue, Not, Or
from torch import Tensor

from landscapes.errors import UnsupportedError

Program = Callable[..., Tensor]


class Square(sympy.Function):
    """x² as one node, so that cse shares the squares of which every power is a chain."""

    nargs = 1


class Root(sympy.Function):
    """√x as one node, for the same reason."""

    nargs = 1


class Extreme(sympy.Function):
    """The largest or smallest of two or more real arguments, with the derivative that ties share; base of the two."""

    sign: int

    def _eval_is_extended_real(self) -> bool:
        return True

    def fdiff(self, argindex: int = 1) -> sympy.Expr:
        """The share of that argument, counted from 1: 1/n if it is one of the n that are extreme, else 0."""
        return Share(sympy.Integer(argindex - 1), sympy.Integer(self.sign), *self.args)


class Maximum(Extreme):
    """Max of the arguments."""

    sign = 1


class Minimum(Extreme):
    """Min of the arguments."""

    sign = -1


class Share(sympy.Function):
    """The derivative of an extreme by one argument: (place, sign, *arguments), constant almost everywhere."""

    def _eval_is_extended_real(self) -> bool:
        return True

    def _eval_derivative(self, symbol: sympy.Symbol) -> sympy.Expr:
        return sympy.S.Zero


def share_of_extreme(place: int, sign: int, *arguments: Tensor) -> Tensor:
    """1/n where that argument is one of the n that are the largest (sign 1) or smallest (−1), else 0; shape (...,)."""
    rows = sign * torch.stack(arguments)
    tied = (rows == rows.amax(dim=0)).to(rows.dtype)
    return tied[place] / tied.sum(dim=0)


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
}
EXTREMES = {sympy.Max: Maximum, sympy.Min: Minimum}
STEPS = (sympy.Heaviside, Maximum, Minimum, Share)
CONNECTIVES = {And: "&", Or: "|"}
FUNCTIONS = HOLOMORPHIC | REAL_ONLY | {Square: "torch.square({})", Root: "torch.sqrt({})"}
ALGEBRA = (sympy.Add, sympy.Mul, sympy.Pow, sympy.Symbol, sympy.Rational, sympy.Float, sympy.NumberSymbol)
BRANCHES = (sympy.Piecewise, sympy.functions.elementary.piecewise.ExprCondPair, Relational)
LOGIC = (And, Or, Not, BooleanTrue, BooleanFalse)


def is_holomorphic(expression: sympy.Expr) -> bool:
    """Whether only algebraic and holomorphic functions occur."""
    return all(isinstance(part, (*ALGEBRA, *HOLOMORPHIC)) for part in sympy.preorder_traversal(expression))


def check_functions(expression: sympy.Expr) -> None:
    """Raise UnsupportedError unless every part of the expression has a torch form."""
    known = (*ALGEBRA, *FUNCTIONS, *STEPS, *BRANCHES, *LOGIC)
    for part in sympy.preorder_traversal(expression):
        if not isinstance(part, known):
            raise UnsupportedError(
                f"expression contains {type(part).__name__} in {part}, which has no differentiable torch form; "
                f"use elementary functions, or evaluate it first with .doit() or .rewrite(...)"
            )
        if isinstance(part, sympy.Heaviside) and not part.args[1].is_number:
            raise UnsupportedError(f"the second argument of {part}, its value at the jump, must be a number")


def share_ties(expression: sympy.Expr) -> sympy.Expr:
    """The expression with Max and Min as nodes whose derivative is shared at ties."""
    return expression.replace(lambda e: type(e) in EXTREMES, lambda e: EXTREMES[type(e)](*e.args))


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
    scope: dict[str, Any] = {"torch": torch, "share_of_extreme": share_of_extreme}
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
    if isinstance(expression, STEPS):
        return write_step(expression)
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


def write_step(expression: sympy.Expr) -> str:
    """Heaviside's function with its value at 0, an extreme, or the share of one of its arguments."""
    if isinstance(expression, sympy.Heaviside):
        at, there = expression.args
        half = f"((torch.sign({write(at)}) + 1)/2)"
        return half if there == sympy.S.Half else f"torch.where({write(at)} == 0, {write_tensor(there)}, {half})"
    if isinstance(expression, Share):
        place, sign, *arguments = expression.args
        return f"share_of_extreme({int(place)}, {int(sign)}, {', '.join(map(write_tensor, arguments))})"
    way = "amax" if isinstance(expression, Maximum) else "amin"
    return f"torch.stack(({', '.join(map(write_tensor, expression.args))},)).{way}(dim=0)"


def write_branches(expression: sympy.Piecewise) -> str:
    """Nested torch.where; NaN if no condition holds."""
    text = "torch.full_like(t0, float('nan'))"
    for value, condition in reversed(expression.args):
        chosen = write_tensor(value)
        text = chosen if condition == sympy.true else f"torch.where({write(condition)}, {chosen}, {text})"
    return text
