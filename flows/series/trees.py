r"""Rooted trees: the index set of the series of integrators in a vector field.

A tree denotes an elementary differential. For a split field F = Σ_c F_c, each vertex has the colour c of its part; a
vertex with children τ_1…τ_m is the m-th derivative of F_c along the children's differentials,

    F(τ) = F_c^{(m)}(F(τ_1), …, F(τ_m)),      a single vertex F_c itself.

One colour gives Butcher's trees, several the N-trees of additive Runge–Kutta methods. Sources: Hairer, Lubich & Wanner,
*Geometric numerical integration*, ch. III.1; Araújo, Murua & Sanz-Serna 1997 (N-trees).
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from landscapes.errors import check_count, short_form


class Tree(NamedTuple):
    """A rooted tree in canonical form: made by ``tree``, which sorts the children, small ones first."""

    colour: str
    children: tuple[Tree, ...]

    @property
    def order(self) -> int:
        """|τ|, the number of vertices."""
        return _order(self)

    @property
    def symmetry(self) -> int:
        """σ(τ), the number of symmetries: σ(τ) = Π over different children of n! σ(child)ⁿ, n their multiplicity."""
        return _symmetry(self)

    @property
    def density(self) -> int:
        """γ(τ) = |τ| Π γ(children): the exact flow of F has the coefficients 1/γ."""
        return self.order * math.prod(child.density for child in self.children)

    @property
    def tall(self) -> bool:
        """Whether no vertex has more than one child: F′…F′F, the only trees of a linear field."""
        return len(self.children) <= 1 and all(child.tall for child in self.children)

    def __str__(self) -> str:
        return self.colour + (f"[{','.join(map(str, self.children))}]" if self.children else "")


@cache
def _order(tree: Tree) -> int:
    return 1 + sum(map(_order, tree.children))


@cache
def _symmetry(tree: Tree) -> int:
    return math.prod(math.factorial(n) * _symmetry(child) ** n for child, n in Counter(tree.children).items())


def tree(colour: str, *children: Tree) -> Tree:
    """The tree with this root and these children, in canonical form; TypeError for children that are no trees."""
    if not isinstance(colour, str) or not all(isinstance(child, Tree) for child in children):
        given = f"{short_form(colour)}, {short_form(children)}"
        raise TypeError(f"a tree is made of a colour and children that must be trees such as tree('f'), got {given}")
    return Tree(colour, tuple(sorted(children, key=lambda child: (child.order, child))))


@dataclass(frozen=True)
class Part:
    """A part of a split field: the colours along which its derivatives do not vanish.

    ``linear`` parts have no second derivatives, so that their vertices have at most one child.
    """

    along: tuple[str, ...]
    linear: bool = False


Grammar = tuple[tuple[str, Part], ...]
"""Colour and part, for each part of the field: trees that it does not allow are zero."""

FIELD: Grammar = (("f", Part(("f",))),)
"""One field f that depends on all of the state: Butcher's rooted trees."""


HIGHEST_TREES = 16
"""The largest order of trees, 235,381 of one colour."""


def rooted_trees(order: int, grammar: Grammar = FIELD) -> tuple[Tree, ...]:
    """Every non-vanishing tree of that order, each once: 1, 1, 2, 4, 9, 20, 48, 115, … of one colour."""
    check_count("order", order, maximum=HIGHEST_TREES)
    return _rooted_trees(order, grammar)


@cache
def _rooted_trees(order: int, grammar: Grammar) -> tuple[Tree, ...]:
    found = []
    for colour, part in grammar:
        for children in _forests(order - 1, order - 1, part.along, grammar):
            if len(children) <= 1 or not part.linear:
                found.append(tree(colour, *children))
    return tuple(sorted(found))


def _forests(vertices: int, largest: int, colours: tuple[str, ...], grammar: Grammar) -> Iterator[tuple[Tree, ...]]:
    """Multisets of trees with ``vertices`` in total, each at most ``largest``, with roots of one of the colours."""
    if vertices == 0:
        yield ()
        return
    for size in range(min(vertices, largest), 0, -1):
        roots = [t for t in _rooted_trees(size, grammar) if t.colour in colours]
        for n in range(1, vertices // size + 1):
            for smaller in _forests(vertices - n * size, size - 1, colours, grammar):
                for chosen in itertools.combinations_with_replacement(roots, n):
                    yield (*chosen, *smaller)


@cache
def cuts(whole: Tree) -> tuple[tuple[Tree, Tree], ...]:
    """For each edge, the part with the root and the branch cut off; |τ| − 1 pairs."""
    pairs = []
    for place, branch in enumerate(whole.children):
        others = (*whole.children[:place], *whole.children[place + 1 :])
        pairs.append((tree(whole.colour, *others), branch))
        pairs += [(tree(whole.colour, *others, stays), falls) for stays, falls in cuts(branch)]
    return tuple(pairs)
