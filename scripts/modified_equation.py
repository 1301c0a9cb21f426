r"""The modified equation of a method, tree by tree: python -m scripts.modified_equation --method NAME --order N.

Prints a table (tree, order, σ, γ, coefficient, landscape form) and the equation as LaTeX; writes both to the folder as
table.txt, equation.tex and equation.json, and figure.png with the trees. --loss adds the field of that loss.
"""

from __future__ import annotations

import ast
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

import sympy

from flows.engines.storage import writable_folder, write_text
from flows.figures import save_figure
from flows.series import (
    EULER,
    HEAVY_BALL,
    NESTEROV,
    ExplicitMethod,
    Multistep,
    Series,
    Tree,
    heavy_ball_multistep,
    modified_equation,
    nesterov_multistep,
    rooted_trees,
    runge_kutta,
)
from flows.series.expressions import modified_gradient_flow, modified_momentum_flow
from flows.series.landscape import on_landscape
from flows.series.latex import (
    MU,
    SUPERSCRIPTS,
    latex_differential,
    latex_field,
    latex_landscape,
    plain_landscape,
    sign_and_size,
)
from flows.series.methods import Exact
from landscapes.errors import check_count

from .lab.command_line import exit_status_of, parse
from .lab.tree_figure import draw_trees

HALF = Fraction(1, 2)
BETA, H = sympy.symbols("beta h")
METHODS: dict[str, ExplicitMethod | Multistep] = {
    "euler": EULER,
    "midpoint": runge_kutta([[0, 0], [HALF, 0]], [0, 1]),
    "heun": runge_kutta([[0, 0], [1, 0]], [HALF, HALF]),
    "rk4": runge_kutta(
        [[0, 0, 0, 0], [HALF, 0, 0, 0], [0, HALF, 0, 0], [0, 0, 1, 0]],
        [Fraction(1, 6), Fraction(1, 3), Fraction(1, 3), Fraction(1, 6)],
    ),
    "heavy-ball": HEAVY_BALL,
    "nesterov": NESTEROV,
    "reduced-heavy-ball": heavy_ball_multistep(BETA),
    "reduced-nesterov": nesterov_multistep(BETA),
}
HIGHEST = 10  # 1,205 trees of one colour; longer tables are of no use
HIGHEST_LOSS = 6  # the expressions of a concrete loss grow with the number of trees and their products
FUNCTIONS: dict[str, Callable[[sympy.Expr], sympy.Expr]] = {
    name: getattr(sympy, name) for name in ("exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh", "sqrt")
}
OPERATORS: dict[type[ast.operator], Callable[[sympy.Expr, sympy.Expr], sympy.Expr]] = {
    ast.Add: lambda a, b: a + b,
    ast.Sub: lambda a, b: a - b,
    ast.Mult: lambda a, b: a * b,
    ast.Div: lambda a, b: a / b,
    ast.Pow: lambda a, b: a**b,
}
LONGEST_LOSS, LARGEST_EXPONENT, MOST_BITS = 500, 32, 4096  # characters; |n| in x**n; bits of a power of numbers
Name = Literal["euler", "midpoint", "heun", "rk4", "heavy-ball", "nesterov", "reduced-heavy-ball", "reduced-nesterov"]


@dataclass(frozen=True)
class EquationSettings:
    """Method, order and output of a modified equation."""

    method: Name = "euler"
    """The method, for ẏ = f(y), F = −∇f on a landscape; heavy-ball and nesterov are the scaled maps on (x, v) with
    friction μ, the reduced ones hold for fixed momentum β."""
    order: int = 4
    """Largest number of vertices of a tree: one more than the largest power of h."""
    loss: str | None = None
    """A loss such as "x**4 + x*y" whose modified field is shown: numbers, names, + - * / **, exp, log, sin, cos,
    tan, sinh, cosh, tanh, sqrt. It is parsed as arithmetic and never executed."""
    drawn: int = 4
    """Largest order of the trees in the figure; use 3 for the two-coloured momentum maps."""
    out: Path = Path("results/modified_equation")
    """Folder of table.txt, equation.tex, equation.json and figure.png."""


def read_loss(text: str) -> tuple[sympy.Expr, list[sympy.Symbol]]:
    """The loss and its symbols in alphabetical order; ValueError for anything that is not plain arithmetic."""
    if len(text) > LONGEST_LOSS:
        raise ValueError(f"--loss must have at most {LONGEST_LOSS} characters, got {len(text)}")
    try:
        body = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError) as error:
        raise ValueError(f"--loss {text!r} is not an expression such as 'x**4 + x*y'") from error
    expression = arithmetic(body)
    if expression.has(sympy.zoo, sympy.nan, sympy.oo, sympy.I):
        raise ValueError(f"--loss {text!r} is not a real number for real symbols")
    symbols = sorted(expression.free_symbols, key=str)
    if not symbols:
        raise ValueError(f"--loss {text!r} has no symbol to descend along")
    if {str(symbol) for symbol in symbols} & {str(H), str(MU), str(BETA)}:
        raise ValueError(f"--loss {text!r} uses a name that the equation uses (h, mu, beta); name it otherwise")
    return expression, symbols


def arithmetic(node: ast.expr) -> sympy.Expr:
    """The sympy expression of a parsed one, by an explicit list of nodes: no name is evaluated."""
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool) and abs(number) < math.inf:
            return sympy.Rational(str(number))
        case ast.Name(id=name) if name not in FUNCTIONS:
            return sympy.Symbol(name)
        case ast.UnaryOp(op=ast.USub() | ast.UAdd() as sign, operand=operand):
            return -arithmetic(operand) if isinstance(sign, ast.USub) else arithmetic(operand)
        case ast.BinOp(left=left, op=operator, right=right) if type(operator) in OPERATORS:
            a, b = arithmetic(left), arithmetic(right)
            if isinstance(operator, ast.Pow):
                check_power(a, b)
            return OPERATORS[type(operator)](a, b)
        case ast.Call(func=ast.Name(id=name), args=[argument], keywords=[]) if name in FUNCTIONS:
            return FUNCTIONS[name](arithmetic(argument))
    hint = "; powers are written **" if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor) else ""
    raise ValueError(
        f"--loss may hold numbers, names, + - * / ** and {', '.join(FUNCTIONS)}, not {ast.unparse(node)!r}{hint}"
    )


def check_power(base: sympy.Expr, exponent: sympy.Expr) -> None:
    """Raise unless the exponent is a small number and a number to that power has moderate length."""
    if not exponent.is_Rational or abs(exponent) > LARGEST_EXPONENT:
        raise ValueError(f"--loss may hold powers with exponents from −{LARGEST_EXPONENT} to {LARGEST_EXPONENT} only")
    if base.is_Rational and max(abs(base.p), base.q).bit_length() * abs(exponent) > MOST_BITS:
        raise ValueError("--loss holds a power of numbers that is too large to write down")


def tree_rows(series: Series) -> list[dict[str, Any]]:
    """One row per tree, including the trees with coefficient zero."""
    rows = []
    for n in range(1, series.order + 1):
        for whole in rooted_trees(n, series.grammar):
            factor, base = on_landscape(whole, MU)
            c = series.coefficient(whole)
            rows.append(
                {
                    "tree": str(whole),
                    "order": whole.order,
                    "symmetry": whole.symmetry,
                    "density": whole.density,
                    "coefficient": str(c),
                    "differential": latex_differential(whole, single=len(series.grammar) == 1),
                    "shown": coefficient_text(c),
                    "landscape": landscape_form(factor, base),
                }
            )
    return rows


def landscape_form(factor: Exact, base: Tree) -> str:
    """F(τ) on a landscape, with its sign and power of μ."""
    sign, size = sign_and_size(factor)
    n = sympy.degree(size, MU) if size.has(MU) else 0
    friction = ("μ" + (str(n).translate(SUPERSCRIPTS) if n > 1 else "")) if n else ""
    return f"{'−' if sign < 0 else ''}{friction}{plain_landscape(base)}"


def coefficient_text(c: Exact) -> str:
    """A fraction, or a quotient with β, in table form."""
    sign, size = sign_and_size(c)
    return ("−" if sign < 0 else "") + str(size).replace("**", "^").replace("beta", "β")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows under their heading."""
    keys = {"tree": "tree", "order": "order", "symmetry": "σ", "density": "γ", "shown": "b/σ"}
    heads = {**keys, "landscape": "F(τ) on a landscape"}
    cells = [list(heads.values()), *[[str(row[key]) for key in heads] for row in rows]]
    widths = [max(len(line[i]) for line in cells) for i in range(len(heads))]
    left = (0, len(heads) - 1)
    lines = [
        "  ".join(c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in cells
    ]
    return "\n".join(line.rstrip() for line in lines)


def concrete_field(method: ExplicitMethod | Multistep, text: str, order: int) -> dict[str, str]:
    """The modified field of a loss: time derivative of each symbol, as text."""
    loss, symbols = read_loss(text)
    if order > HIGHEST_LOSS:
        raise ValueError(f"--order must be at most {HIGHEST_LOSS} with --loss, got {order}")
    if method in (HEAVY_BALL, NESTEROV):
        velocities = [sympy.Symbol(f"v_{symbol}") for symbol in symbols]
        if set(velocities) & set(symbols):
            raise ValueError(f"--loss {text!r} uses a name v_… that is a velocity's; name it otherwise")
        assert isinstance(method, ExplicitMethod)
        field = modified_momentum_flow(loss, symbols, velocities, MU, H, order, method)
        symbols = [*symbols, *velocities]
    else:
        field = modified_gradient_flow(loss, symbols, H, order, method)
    return {f"d{symbol}/dt": str(entry) for symbol, entry in zip(symbols, field, strict=True)}


def run(settings: EquationSettings) -> None:
    """Print the table, the LaTeX and the field, and write them to the folder."""
    if check_count("--order", settings.order) > HIGHEST:
        raise ValueError(f"--order must be at most {HIGHEST}, got {settings.order}")
    check_count("--drawn", settings.drawn)
    method = METHODS[settings.method]
    field = {} if settings.loss is None else concrete_field(method, settings.loss, settings.order)
    series = modified_equation(method, settings.order)
    rows = tree_rows(series)
    folder = writable_folder(settings.out)
    title = f"{settings.method}, order {settings.order}: y' = sum of (b/σ) h^(order − 1) F(τ)"
    lines = [title, table(rows), *(f"{name} = {entry}" for name, entry in field.items())]
    formulas = [latex_field(series, aligned=True), latex_landscape(series, aligned=True)]
    print("\n".join([*lines, "", latex_field(series), latex_landscape(series)]))
    write_text(folder / "table.txt", "\n".join(lines) + "\n")
    write_text(folder / "equation.tex", "\n\n".join(rf"\[{formula}\]" for formula in formulas) + "\n")
    said = {"method": settings.method, "order": settings.order, "loss": settings.loss, "trees": rows, "field": field}
    write_text(folder / "equation.json", json.dumps(said, indent=2, ensure_ascii=False) + "\n")
    trees = [t for n in range(1, min(settings.drawn, settings.order) + 1) for t in rooted_trees(n, series.grammar)]
    figure = draw_trees(trees, series)
    save_figure(figure, folder / "figure.png")
    print(f"\nin {folder}: table.txt, equation.tex, equation.json, figure.png")


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""
    prog = f"python -m {__package__}.modified_equation"
    return exit_status_of(lambda: run(parse(EquationSettings, arguments, prog, __doc__ or "")))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
