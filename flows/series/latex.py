r"""Modified equations as text: LaTeX in elementary differentials or in a landscape's derivatives, and plain Unicode.

latex_field(series)       \dot{y} = f - \tfrac{h}{2} f'f + h^{2}\left(\tfrac{1}{12} f''(f, f) + …\right)
latex_landscape(series)   \dot{\theta} = -\nabla f - \tfrac{h}{2} H\nabla f - h^{2}\left(…\right)
plain_landscape(tree)     D³f[∇f, H∇f]
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction

import sympy

from flows.series.expressions import to_sympy
from flows.series.landscape import landscape_terms
from flows.series.methods import Exact
from flows.series.modified import Series, check_series
from flows.series.trees import Tree
from landscapes.errors import check_flag

MU = sympy.Symbol("mu")
COMPONENTS = {"θ": r"\dot{\theta}", "x": r"\dot{x}", "v": r"\dot{v}"}
SUPERSCRIPTS = str.maketrans("0123456789", "⁰¹²³⁴⁵⁶⁷⁸⁹")
PER_LINE = 4  # terms per line of an aligned equation, to fit a page's width; half as many with long coefficients

Term = tuple[Exact, str]
Group = tuple[int, list[Term]]


def latex_field(series: Series, *, aligned: bool = False) -> str:
    r"""The modified equation in elementary differentials of f; of F_c, c the colour, for a split field.

    ``aligned``: several lines for each power of h, of a few terms each, for an equation environment with amsmath.
    """
    single = len(check_series(series).grammar) == 1
    terms = [(whole.order - 1, c, latex_differential(whole, single=single)) for whole, c in series.terms]
    return lay_out({r"\dot{y}" if single else r"\dot{z}": group_by_power(terms)}, aligned)


def latex_landscape(series: Series, *, aligned: bool = False) -> str:
    r"""The modified equation on a landscape, with F = −∇f; for momentum the equations of ẋ and of v̇, one per line.

    H is the Hessian, D³f[u, v] the third derivative along u and v, and so on, as vectors; μ the friction.
    """
    equations = {}
    for component, found in landscape_terms(series, MU).items():
        terms = [(power, c, latex_derivative(base)) for (power, base), c in found.items()]
        equations[COMPONENTS[component]] = group_by_power(terms)
    return lay_out(equations, aligned)


def latex_differential(whole: Tree, *, single: bool = True) -> str:
    """f''(f, f'f); with ``single`` False the field's name contains its colour."""
    name = whole.colour if single else f"F_{{{whole.colour}}}"
    m = len(whole.children)
    above = [latex_differential(child, single=single) for child in whole.children]
    return name + ("'" * m if m <= 3 else f"^{{({m})}}") + arguments(above, "(", ")")


def latex_derivative(whole: Tree) -> str:
    r"""D^3f[\nabla f, H\nabla f]."""
    return derivative(whole, r"\nabla f", lambda order: f"D^{{{order}}}f")


def plain_landscape(whole: Tree) -> str:
    """D³f[∇f, H∇f], of a tree of ∇f and v."""
    return derivative(whole, "∇f", lambda order: f"D{order}f".translate(SUPERSCRIPTS))


def derivative(whole: Tree, gradient: str, name: Callable[[int], str]) -> str:
    """A derivative of ∇f along the children's vectors, with the names of ∇f and of a derivative of f."""
    if not whole.children:
        return gradient if whole.colour == "g" else whole.colour
    above = [derivative(child, gradient, name) for child in whole.children]
    if len(above) == 1:
        return f"H {above[0]}" if above[0][0].isalpha() and above[0][0] not in "Hv" else f"H{above[0]}"
    return name(len(above) + 1) + arguments(above, "[", "]")


def arguments(above: Sequence[str], left: str, right: str) -> str:
    """Arguments as text: one without brackets, several in brackets, none as the empty string."""
    return f"{left}{', '.join(above)}{right}" if len(above) > 1 else "".join(above)


def group_by_power(terms: Sequence[tuple[int, Exact, str]]) -> list[Group]:
    """Terms by the power of h, in increasing order."""
    rising = sorted(terms, key=lambda term: term[0])
    groups = itertools.groupby(rising, key=lambda term: term[0])
    return [(power, [(c, text) for _, c, text in found]) for power, found in groups]


def lay_out(equations: Mapping[str, Sequence[Group]], aligned: bool) -> str:
    """left = Σ over groups h^power (Σ terms), as LaTeX: one line per equation, or all in one aligned block."""
    check_flag("aligned", aligned)
    whole = []
    for left, groups in equations.items():
        lines = [line for group in groups for line in write_group(group, aligned)] or ["0"]
        lines[0] = strip_sign_space(lines[0])
        first, *rest = lines
        whole += (
            [rf"{left} ={{}}& {first}", *(f"&{line}" for line in rest)] if aligned else [f"{left} = {' '.join(lines)}"]
        )
    return "\n".join([r"\begin{aligned}", " \\\\\n".join(whole), r"\end{aligned}"] if aligned else whole)


def write_group(group: Group, broken: bool) -> Iterator[str]:
    """A group's lines: one term with h in its coefficient, or h^power in front of several in parentheses."""
    power, terms = group
    if power == 0 or len(terms) == 1:
        yield " ".join(signed_term(c, text, power) for c, text in terms)
        return
    common = shared_number(terms) * sign_and_size(terms[0][0])[0]
    inside = [signed_term(c / common, text, 0) for c, text in terms]
    inside[0] = strip_sign_space(inside[0])
    front = signed_term(common, "", power).rstrip()
    most = len(inside) if not broken else PER_LINE if all(is_short(c) for c, _ in terms) else PER_LINE // 2
    count = -(-len(inside) // most)
    rows = [" ".join(inside[i * len(inside) // count : (i + 1) * len(inside) // count]) for i in range(count)]
    if len(rows) == 1:
        yield rf"{front}\left({rows[0]}\right)"
        return
    yield rf"{front}\bigl({rows[0]}"  # \left and \right must be on one line
    for row in rows[1:]:
        yield rf"\qquad {row}" + (r"\bigr)" if row is rows[-1] else "")


def is_short(coefficient: Exact) -> bool:
    """Whether a coefficient is a number times powers, and no quotient of sums."""
    return sign_and_size(coefficient)[1].is_polynomial()


def strip_sign_space(line: str) -> str:
    """The line with a leading "- " replaced by "-", and a leading "+ " removed."""
    return "-" + line[2:] if line.startswith("- ") else line.removeprefix("+ ")


def shared_number(terms: Sequence[Term]) -> Fraction:
    """The numerical factor common to all coefficients, up to its sign; 1 if they differ."""
    found = {sign_and_size(c)[1].as_coeff_Mul()[0] for c, _ in terms}
    number = found.pop()
    return Fraction(1) if found else Fraction(int(number.p), int(number.q))


def signed_term(coefficient: Exact, text: str, power: int) -> str:
    """ "+ c text" or "- c text" with h^power in the coefficient."""
    sign, size = sign_and_size(coefficient)
    return f"{'-' if sign < 0 else '+'} {factor(size, power)}{text}"


def factor(size: sympy.Expr, power: int) -> str:
    """A positive coefficient times h^power, empty for 1."""
    number, rest = size.as_coeff_Mul()
    h = f"h{exponent(power)}" if power else ""
    if not rest.is_polynomial():
        return f"{h}{sympy.latex(size)} "
    above = f"{number.p}{h}" if number.p != 1 or not h else h
    front = rf"\tfrac{{{above}}}{{{number.q}}}" if number.q != 1 else "" if above == "1" else above
    tail = "" if rest == 1 else sympy.latex(rest)
    tail = rf"\left({tail}\right)" if rest.is_Add else tail
    return f"{front} {tail} ".lstrip().replace("  ", " ") if front or tail else ""


def exponent(power: int) -> str:
    """Empty for 1, else ^{power}."""
    return "" if power == 1 else f"^{{{power}}}"


def sign_and_size(coefficient: Exact) -> tuple[int, sympy.Expr]:
    """Sign and size: the sign of each sum in the coefficient is chosen so that it is positive at zero symbols."""
    if isinstance(coefficient, Fraction | int):
        return (-1 if coefficient < 0 else 1), abs(to_sympy(coefficient))
    sign, size = 1, sympy.S.One
    for part in sympy.Mul.make_args(sympy.factor(coefficient)):
        base, power = part.as_base_exp()
        constant = base.subs(dict.fromkeys(base.free_symbols, 0))
        flip = bool(constant < 0)
        sign *= -1 if flip and power % 2 else 1
        size *= (-base if flip else base) ** power
    return sign, size
