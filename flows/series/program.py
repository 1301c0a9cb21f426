r"""From trees to products: a combination of elementary differentials of ∇f as a short program for one expansion.

A tree here has vertices "g", D^m∇f along the children's vectors, and leaves of other names for given vectors
(a velocity). Products are linear in each direction, so that trees which differ in their last child only share one
product with the sum of these children, and a slope ``along`` a direction is computed once for all products that need
it. Thus order 3 of gradient descent's modified flow takes two HVPs and one third derivative, order 4 three and two.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from flows.series.trees import Tree
from landscapes.expansion import Expansion

Combination = Mapping[Tree, float]
Prefix = tuple[Tree, ...]


@dataclass(frozen=True)
class Sum:
    """A new vector: Σ coefficient · vector."""

    terms: tuple[tuple[float, int], ...]


@dataclass(frozen=True)
class Slope:
    """A new expansion: that of the directional derivative of an expansion along a vector."""

    expansion: int
    vector: int


@dataclass(frozen=True)
class Gradient:
    """A new vector: the gradient of an expansion."""

    expansion: int


@dataclass(frozen=True)
class HessianProduct:
    """A new vector: the Hessian of an expansion times a vector."""

    expansion: int
    vector: int


@dataclass(frozen=True)
class Program:
    """Instructions that append to a list of vectors, ``given`` ones first, and to a list of expansions, θ's first."""

    given: tuple[str, ...]
    instructions: tuple[Sum | Slope | Gradient | HessianProduct, ...]
    outputs: tuple[int, ...]

    def __call__(self, point: Expansion, **given: Tensor) -> list[Tensor]:
        """The combinations as vectors (..., d), at the point and with the given vectors.

        Raises TypeError unless exactly the vectors named in the trees are given.
        """
        if set(given) != set(self.given):
            raise TypeError(f"the program takes the vectors {self.given}, got {tuple(sorted(given))}")
        vectors = [given[name] for name in self.given]
        expansions = [point]
        for step in self.instructions:
            match step:
                case Sum(terms):
                    vectors.append(weighted_sum(terms, vectors))
                case Slope(expansion, vector):
                    expansions.append(expansions[expansion].along(vectors[vector]))
                case Gradient(expansion):
                    vectors.append(expansions[expansion].grad)
                case HessianProduct(expansion, vector):
                    vectors.append(expansions[expansion].hvp(vectors[vector]))
        return [vectors[i] for i in self.outputs]


def weighted_sum(terms: Sequence[tuple[float, int]], vectors: Sequence[Tensor]) -> Tensor:
    """Σ coefficient · vector."""
    (coefficient, place), *rest = terms
    total = coefficient * vectors[place]
    for coefficient, place in rest:
        total = total + coefficient * vectors[place]
    return total


def compile_program(combinations: Sequence[Combination]) -> Program:
    """A program whose outputs are the combinations.

    Raises ValueError for a combination without a tree, or an inner vertex other than "g": only derivatives of ∇f take
    directions.
    """
    for combination in combinations:
        if not combination:
            raise ValueError("combinations must have at least one tree each; for zero use a tree with coefficient 0")
        for vertex in (v for whole in combination for v in walk(whole)):
            if vertex.children and vertex.colour != "g":
                raise ValueError(f"combinations must have inner vertices 'g', got {vertex}")
    return Compiler(combinations).program()


class Compiler:
    """Writes the instructions, every vector and expansion once."""

    def __init__(self, combinations: Sequence[Combination]):
        vertices = [v for combination in combinations for whole in combination for v in walk(whole)]
        self._combinations = combinations
        self._prefixes: set[Prefix] = {v.children[:k] for v in vertices for k in range(1, len(v.children))}
        self._directions = {direction for prefix in self._prefixes for direction in prefix}
        self._given = tuple(sorted({v.colour for v in vertices} - {"g"}))
        self._instructions: list[Sum | Slope | Gradient | HessianProduct] = []
        self._vectors = len(self._given)
        self._places: dict[object, int] = {Tree(name, ()): i for i, name in enumerate(self._given)}
        self._expansions: dict[Prefix, int] = {(): 0}

    def program(self) -> Program:
        """The whole program."""
        outputs = tuple(self._sum(combination) for combination in self._combinations)
        return Program(self._given, tuple(self._instructions), outputs)

    def _append(self, step: Sum | Gradient | HessianProduct) -> int:
        self._instructions.append(step)
        self._vectors += 1
        return self._vectors - 1

    def _expansion(self, prefix: Prefix) -> int:
        if prefix not in self._expansions:
            step = Slope(self._expansion(prefix[:-1]), self._vector(prefix[-1]))
            self._instructions.append(step)
            self._expansions[prefix] = len(self._expansions)
        return self._expansions[prefix]

    def _vector(self, whole: Tree) -> int:
        """The vector of one tree, computed once."""
        if whole not in self._places:
            if not whole.children or whole.children in self._prefixes:  # the product is the gradient of that slope
                step: Gradient | HessianProduct = Gradient(self._expansion(whole.children))
            else:
                *prefix, last = whole.children
                step = HessianProduct(self._expansion(tuple(prefix)), self._sum({last: 1.0}))
            self._places[whole] = self._append(step)
        return self._places[whole]

    def _is_available(self, whole: Tree) -> bool:
        """Whether a tree's vector is available in any case: given, the direction of a slope, or the gradient of one."""
        return not whole.children or whole in self._directions or whole.children in self._prefixes

    def _sum(self, combination: Combination) -> int:
        """The vector of a combination: available trees by their vectors, the rest by shared products."""
        key = frozenset(combination.items())
        if key not in self._places:
            terms: list[tuple[float, int]] = []
            shared: dict[Prefix, dict[Tree, float]] = {}
            for whole, coefficient in combination.items():
                if self._is_available(whole):
                    terms.append((coefficient, self._vector(whole)))
                else:
                    shared.setdefault(whole.children[:-1], {})[whole.children[-1]] = coefficient
            for prefix, last in shared.items():
                product = HessianProduct(self._expansion(prefix), self._sum(last))
                terms.append((1.0, self._append(product)))
            single = len(terms) == 1 and terms[0][0] == 1
            self._places[key] = terms[0][1] if single else self._append(Sum(tuple(terms)))
        return self._places[key]


def walk(whole: Tree) -> Iterator[Tree]:
    """Every subtree of a tree, by its root vertex."""
    yield whole
    for child in whole.children:
        yield from walk(child)
