"""Programs of products against contractions of whole derivative tensors, in whole numbers."""

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows.series import EULER, Tree, compile_program, modified_equation, tree
from flows.series.program import Gradient, HessianProduct, Slope


class Dense:
    """An expansion from its symmetric derivative tensors (d,), (d, d), …: what a program may ask for, noted."""

    def __init__(self, tensors, asked):
        self.tensors, self.asked = tensors, asked

    @property
    def grad(self):
        return self.tensors[0]

    def hvp(self, v):
        self.asked.append(len(self.tensors))
        return self.tensors[1] @ v

    def along(self, w):
        return Dense([t @ w for t in self.tensors[1:]], self.asked)


def symmetric_tensors(d, orders, seed):
    """Whole numbers, so that contractions are exact in float64."""
    generator = torch.Generator().manual_seed(seed)
    tensors = []
    for m in range(1, orders + 1):
        shape = (d,) * m
        values = torch.randint(-3, 4, shape, generator=generator).double()
        index = torch.cartesian_prod(*[torch.arange(d)] * m).reshape(-1, m).sort(dim=-1).values
        tensors.append(values[tuple(index.T)].reshape(shape))
    return tensors


def direct(whole, tensors, given):
    """A tree by contraction of the whole tensor, one child at a time."""
    if not whole.children and whole.colour != "g":
        return given[whole.colour]
    tensor = tensors[len(whole.children)]
    for child in whole.children:
        tensor = torch.tensordot(tensor, direct(child, tensors, given), dims=([0], [0]))
    return tensor


trees_of_products = st.recursive(
    st.sampled_from([Tree("g", ()), Tree("v", ())]),
    lambda branch: st.lists(branch, min_size=1, max_size=3).map(lambda children: tree("g", *children)),
    max_leaves=5,
)
BENT = tree("g", Tree("v", ()), Tree("v", ()))  # a direction that has two of its own
combinations = st.dictionaries(trees_of_products, st.integers(-4, 4).map(float), min_size=1, max_size=5)


@given(wanted=st.lists(combinations, min_size=1, max_size=3), seed=st.integers(0, 2**31))
@example(wanted=[{tree("g", BENT, BENT): 2.0}], seed=5)
def test_a_program_is_the_sum_of_its_trees(wanted, seed):
    tensors = symmetric_tensors(2, 4, seed)
    v = torch.tensor([1.0, -2.0], dtype=torch.float64)
    program = compile_program(wanted)
    outputs = program(Dense(tensors, []), **{name: v for name in program.given})
    for combination, output in zip(wanted, outputs, strict=True):
        expected = [c * direct(t, tensors, {"v": v}) for t, c in combination.items()]
        size = sum(float(term.abs().sum()) for term in expected)
        assert_close(output, sum(expected), rtol=0, atol=1e-14 * size)


def on_gradient(whole):
    return tree("g", *map(on_gradient, whole.children))


@pytest.mark.parametrize(("order", "first", "second"), [(1, 0, 0), (2, 1, 0), (3, 2, 1), (4, 3, 2)])
def test_products_of_gradient_descents_flow(order, first, second):
    """HVPs and third derivatives, as the module's docstring says; each slope is built once."""
    series = modified_equation(EULER, order)
    program = compile_program([{on_gradient(t): float(c) * (-1) ** t.order for t, c in series.terms}])
    levels, products, slopes = [0], [], []
    for step in program.instructions:
        match step:
            case Slope(expansion, vector):
                levels.append(levels[expansion] + 1)
                slopes.append((expansion, vector))
            case HessianProduct(expansion, _):
                products.append(levels[expansion])
            case Gradient(expansion):
                products.append(levels[expansion] - 1)  # a slope's gradient is a product of one order less
    assert len(set(slopes)) == len(slopes)
    assert (products.count(0), products.count(1)) == (first, second)
    assert max(products, default=-1) <= 1
    # what a slope's product computes anyway is read as its gradient, and not as a product of its own
    assert sum(isinstance(step, Gradient) and step.expansion > 0 for step in program.instructions) == len(slopes)


def test_programs_refuse_what_they_cannot_evaluate():
    g, v = tree("g"), tree("v")
    with pytest.raises(ValueError, match="at least one tree"):
        compile_program([{g: 1.0}, {}])
    with pytest.raises(ValueError, match="vertices 'g'"):
        compile_program([{tree("g", tree("f", g)): 1.0}])
    program = compile_program([{tree("g", v): 1.0}])
    with pytest.raises(TypeError, match=r"takes the vectors \('v',\)"):
        program(Dense(symmetric_tensors(2, 2, 0), []))
