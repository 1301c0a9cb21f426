"""Rooted trees held against labelled ones: every parent array, every permutation of vertices, every edge."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows.series.methods import MOMENTUM
from flows.series.trees import FIELD, Part, Tree, cuts, rooted_trees, tree

A000081 = (1, 1, 2, 4, 9, 20, 48, 115, 286, 719)
TWO = (("a", Part(("a", "b"))), ("b", Part(("a",), linear=True)))
UP_TO_6 = [t for n in range(1, 7) for t in rooted_trees(n)]
COLOURED = [t for n in range(1, 5) for t in rooted_trees(n, MOMENTUM)]


def arrays(n):
    """Parent arrays with parent[i] < i: labellings that grow towards the leaves, (n − 1)! of them."""
    return itertools.product(*[range(i) for i in range(1, n)])


def form(parents, colours, root=0):
    """Canonical text of a labelled tree, by sorting the texts of its branches: no Tree involved."""
    above = sorted(form(parents, colours, i) for i, p in enumerate(parents, start=1) if p == root)
    return f"{colours[root]}({''.join(above)})"


def text(whole):
    """The same text of a Tree."""
    return f"{whole.colour}({''.join(sorted(map(text, whole.children)))})"


def labelled(whole):
    """Parents of vertices 1, 2, …, and colours of 0, 1, …"""
    parents, colours = [], []

    def add(vertex, parent):
        number = len(colours)
        colours.append(vertex.colour)
        if parent is not None:
            parents.append(parent)
        for child in vertex.children:
            add(child, number)

    add(whole, None)
    return tuple(parents), tuple(colours)


def allowed(parents, colours, grammar):
    parts = dict(grammar)
    children = Counter(parents)
    along = all(colours[i] in parts[colours[p]].along for i, p in enumerate(parents, start=1))
    return along and all(children[p] <= 1 for p, colour in enumerate(colours) if parts[colour].linear)


@pytest.mark.parametrize(("order", "count"), list(enumerate(A000081, start=1)))
def test_counts_are_those_of_the_encyclopedia(order, count):
    trees = rooted_trees(order)
    assert len(trees) == len(set(trees)) == count
    assert all(t.order == order for t in trees)


@pytest.mark.parametrize("grammar", [FIELD, MOMENTUM, TWO])
@pytest.mark.parametrize("order", range(1, 6))
def test_trees_of_a_grammar_are_all_that_it_allows(grammar, order):
    colourings = list(itertools.product([colour for colour, _ in grammar], repeat=order))
    every = {form(p, c) for p in arrays(order) for c in colourings if allowed(p, c, grammar)}
    trees = rooted_trees(order, grammar)
    assert len(trees) == len(every)
    assert {text(t) for t in trees} == every


@pytest.mark.parametrize("whole", [*UP_TO_6, *COLOURED], ids=str)
def test_symmetry_counts_the_permutations_that_keep_the_tree(whole):
    parents, colours = labelled(whole)
    edges = {(p, i) for i, p in enumerate(parents, start=1)}
    kept = 0
    for rest in itertools.permutations(range(1, whole.order)):
        move = (0, *rest)
        kept += all(colours[move[i]] == c for i, c in enumerate(colours)) and edges == {
            (move[p], move[i]) for p, i in edges
        }
    assert whole.symmetry == kept


@pytest.mark.parametrize("order", range(1, 8))
def test_density_counts_the_labellings_that_grow_towards_the_leaves(order):
    labellings = Counter(form(p, "f" * order) for p in arrays(order))
    for whole in rooted_trees(order):
        alpha = labellings[text(whole)]
        assert alpha * whole.density * whole.symmetry == math.factorial(order)
    assert labellings.total() == math.factorial(order - 1)


@pytest.mark.parametrize("whole", [*UP_TO_6, *COLOURED], ids=str)
def test_cuts_are_one_for_each_edge(whole):
    parents, colours = labelled(whole)
    expected = Counter()
    for edge in range(1, whole.order):
        falls = {edge}
        for i, p in enumerate(parents, start=1):
            if p in falls:
                falls.add(i)
        gone = tuple(None if i in falls else p for i, p in enumerate(parents, start=1))
        expected[form(gone, colours), form(parents, colours, edge)] += 1
    assert Counter((text(stays), text(falls)) for stays, falls in cuts(whole)) == expected


@pytest.mark.parametrize("whole", UP_TO_6, ids=str)
def test_tall_trees_have_no_branches(whole):
    parents, _ = labelled(whole)
    assert whole.tall == (len(set(parents)) == len(parents))


nested = st.recursive(
    st.sampled_from("fg").map(lambda colour: (colour, ())),
    lambda branch: st.tuples(st.sampled_from("fg"), st.lists(branch, max_size=4).map(tuple)),
    max_leaves=8,
)


def grow(plan, order):
    colour, children = plan
    return tree(colour, *(grow(child, order) for child in order(children)))


@given(plan=nested, seed=st.randoms(use_true_random=False))
def test_the_order_of_children_does_not_matter(plan, seed):
    whole = grow(plan, lambda c: c)
    again = grow(plan, lambda c: seed.sample(c, len(c)))
    assert whole == again
    assert hash(whole) == hash(again)
    assert [c.order for c in whole.children] == sorted(c.order for c in whole.children)
    assert text(whole) == text(again)
    assert len(cuts(whole)) == whole.order - 1


def test_trees_are_written_with_their_branches():
    assert str(tree("f", tree("f", tree("f")), tree("f"))) == "f[f,f[f]]"


@pytest.mark.parametrize("make", [lambda: tree("f", "f"), lambda: tree(1), lambda: tree("f", ("f", ()))])
def test_what_is_no_tree_is_refused(make):
    with pytest.raises(TypeError, match="tree is made of"):
        make()


@pytest.mark.parametrize(("order", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_orders_are_whole_numbers_from_one(order, error):
    with pytest.raises(error, match="order must be"):
        rooted_trees(order)


def test_a_tree_is_a_plain_value():
    assert tree("f") == Tree("f", ())
    assert tree("f") != tree("g")
