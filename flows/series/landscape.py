r"""Modified fields on a landscape: trees of derivatives of f with F = −∇f substituted, and programs to evaluate them.

Vertices are "g", D^m∇f along the children's vectors; leaves may be "v", a velocity. Momentum's linear parts are
eliminated: transport x ↦ (v, 0) and friction (0, −μv) map their child to itself times 1 or −μ, and a leaf to v.
"""

from __future__ import annotations

from collections import defaultdict
from fractions import Fraction
from functools import lru_cache

from flows.series.methods import MOMENTUM, Exact, ExplicitMethod
from flows.series.modified import Multistep, Series, check_series, modified_equation, recursion_of
from flows.series.program import Program, compile_program
from flows.series.trees import FIELD, HIGHEST_TREES, Tree, tree
from landscapes.errors import UnsupportedError, check_count, check_real

GRADIENT, VELOCITY = Tree("g", ()), Tree("v", ())
"""∇f and v, the leaves of trees on a landscape."""


def landscape_program(method: ExplicitMethod | Multistep, order: int, h: float, friction: float = 0.0) -> Program:
    r"""The modified field of a method on a landscape as products with derivatives of f: (θ̇) or (ẋ, v̇).

    The program takes an expansion and, for momentum, ``v``. Coefficients are exact up to the multiplication by powers
    of h. Raises TypeError or ValueError for invalid arguments.
    """
    recursion_of(method)  # raises a clear error; lru_cache would complain of an unhashable argument
    check_count("order", order, maximum=HIGHEST_TREES)
    try:
        return cached_program(method, order, check_real("h", h), check_real("friction", friction))
    except OverflowError as error:
        raise ValueError(f"h must have a power {order - 1} that float64 holds, got {h!r}") from error


@lru_cache(maxsize=256)
def cached_program(method: ExplicitMethod | Multistep, order: int, h: float, friction: float) -> Program:
    """The program of ``landscape_program``, for checked arguments."""
    components = landscape_terms(modified_equation(method, order), Fraction(friction))
    combinations = []
    for terms in components.values():
        combination: dict[Tree, float] = defaultdict(float)
        for (power, base), c in terms.items():
            combination[base] += float(c) * h**power
        combinations.append(combination)
    return compile_program(combinations)


def landscape_terms(series: Series, friction: Exact) -> dict[str, dict[tuple[int, Tree], Exact]]:
    r"""The modified field on a landscape: component → {(power of h, tree of derivatives of f): coefficient}.

    One field F = −∇f has the component "θ"; the momentum maps have "x" and "v", in which linear parts are eliminated
    and equal products summed; coefficients then contain μ = ``friction``. UnsupportedError for other grammars.
    """
    if check_series(series).grammar not in (FIELD, MOMENTUM):
        raise UnsupportedError("series must be of one field or of the momentum maps to be written for a landscape")
    names = ("θ",) if series.grammar == FIELD else ("x", "v")
    sums: dict[str, dict[tuple[int, Tree], Exact]] = {name: defaultdict(int) for name in names}
    for whole, c in series.terms:
        factor, base = on_landscape(whole, friction)
        component = "θ" if series.grammar == FIELD else "x" if whole.colour == "x" else "v"
        sums[component][whole.order - 1, base] += c * factor
    sums = {name: {key: c for key, c in found.items() if c != 0} for name, found in sums.items()}
    return {name: {key: sums[name][key] for key in sorted(sums[name], key=reading_order)} for name in names}


def reading_order(key: tuple[int, Tree]) -> tuple[int, bool, bool, int, Tree]:
    """Sort key of a term: the power of h, then v, the products of Hessians, and the rest."""
    power, base = key
    return power, base != VELOCITY, not base.tall, base.order, base


def on_landscape(whole: Tree, friction: Exact) -> tuple[Exact, Tree]:
    """A tree as factor times tree of ∇f, its derivatives and v, with transport and friction eliminated."""
    if whole.colour in ("f", "g"):
        above = [on_landscape(child, friction) for child in whole.children]
        factor: Exact = -1
        for child, _ in above:
            factor *= child
        return factor, tree("g", *(base for _, base in above))
    factor, base = on_landscape(whole.children[0], friction) if whole.children else (1, VELOCITY)
    return factor if whole.colour == "x" else -friction * factor, base
