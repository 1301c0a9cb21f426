"""Distinct draws: the law by enumeration, no repeats, no operation on N numbers, one stream of random numbers."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from landscapes.sampling import (
    DENSE,
    Epoch,
    Replacement,
    Sampling,
    Subset,
    draw_distinct,
    permutation,
    redraw_repeats,
    sampling_of,
)

CPU = torch.device("cpu")


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def chi_square(draws, outcomes):
    """P(χ² ≥ that seen) if all the outcomes, rows of ``outcomes``, are equally likely."""
    size = int(draws.max()) + 1
    weights = size ** torch.arange(draws.shape[-1])
    codes, keys = draws @ weights, torch.tensor(outcomes) @ weights
    counts = (codes[:, None] == keys).sum(dim=0)
    assert int(counts.sum()) == len(draws)  # nothing else was drawn
    return stats.chisquare(counts.numpy()).pvalue


@pytest.mark.parametrize(("size", "count"), [(2, 1), (3, 2), (4, 2), (5, 3), (6, 2), (6, 5)])
def test_every_subset_and_every_order_is_equally_likely_by_redrawing(size, count):
    """Where repeats are frequent: three of five are drawn again in 52 % of the rows, some of them many times."""
    drawn = redraw_repeats(size, count, torch.Size([60_000]), seeded(size + 10 * count), CPU)
    assert chi_square(drawn, list(itertools.permutations(range(size), count))) > 1e-3
    assert chi_square(drawn.sort(dim=-1).values, list(itertools.combinations(range(size), count))) > 1e-3


@pytest.mark.parametrize(("size", "count"), [(5, 2), (6, 4), (40, 2), (18, 1), (33, 2)])
def test_every_subset_is_equally_likely_on_either_side_of_the_switch(size, count):
    subset, none = Subset(size, count), torch.empty(80_000, 0)
    drawn, _ = subset.draw(none, 0, seeded(size))
    assert chi_square(drawn.sort(dim=-1).values, list(itertools.combinations(range(size), count))) > 1e-3
    later, _ = subset.draw(none, 1, seeded(size + 1))
    assert chi_square(later, list(itertools.permutations(range(size), count))) > 1e-3


def test_the_chi_square_sees_a_law_that_is_off():
    """Sorted pairs of 0 … 3, where the pair (0, 1) comes 5 % too often."""
    pairs = list(itertools.combinations(range(4), 2))
    drawn = torch.tensor(pairs * 9_500 + pairs[:1] * 500)
    assert chi_square(drawn, pairs) < 1e-3


@given(
    st.integers(1, 80).flatmap(lambda b: st.tuples(st.integers(b, 10**6), st.just(b))),
    st.lists(st.integers(0, 4), max_size=3),
    st.integers(0, 2**62),
)
@pytest.mark.parametrize("draw", [draw_distinct, redraw_repeats])
def test_numbers_are_distinct_in_range_and_those_of_the_seed(draw, sizes, batch, seed):
    size, count = sizes
    if draw is redraw_repeats:
        size = max(size, 2 * count)  # below, it may take long
    shape = torch.Size(batch)
    drawn = draw(size, count, shape, seeded(seed), CPU)
    assert (drawn.shape, drawn.dtype) == ((*shape, count), torch.int64)
    ordered = drawn.sort(dim=-1).values
    assert bool((ordered.diff(dim=-1) > 0).all())
    if drawn.numel():
        assert 0 <= int(drawn.min())
        assert int(drawn.max()) < size
    assert torch.equal(drawn, draw(size, count, shape, seeded(seed), CPU))
    flat = draw(size, count, torch.Size([shape.numel()]), seeded(seed), CPU)
    assert torch.equal(drawn.reshape(-1, count), flat)


class Widest(TorchDispatchMode):
    """Notes the most numbers that any operation returned."""

    def __init__(self):
        super().__init__()
        self.most = self.total = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        found = function(*args, **(kwargs or {}))
        for part in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(part, torch.Tensor):
                self.most = max(self.most, part.numel())
                self.total += part.numel()
        return found


@pytest.mark.parametrize("kind", [Subset, Replacement])
@pytest.mark.parametrize("size", [10**5, 10**9, 2**62])
def test_no_operation_touches_all_the_numbers(kind, size):
    sampler, generator = kind(size, 16), seeded(0)
    with Widest() as seen:
        order = sampler.first_order(torch.Size([3]), CPU)
        for k in range(10):
            index, order = sampler.draw(order, k, generator)
    assert index.shape == (3, 16)
    assert seen.most <= 3 * 16
    assert seen.total <= 10 * 30 * 3 * 16  # some operations a step, each on the batch


def test_the_dense_side_sorts_a_bounded_multiple_of_the_batch():
    with Widest() as seen:
        Subset(16 * DENSE, 16).draw(torch.empty(0), 0, seeded(0))
    assert seen.most == 16 * DENSE
    with Widest() as seen:
        Subset(16 * DENSE + 1, 16).draw(torch.empty(0), 0, seeded(0))
    assert seen.most == 16


def test_dense_draws_are_the_first_of_a_permutation():
    """The random numbers of version 0.1, unchanged where N is at most DENSE·b."""
    drawn, _ = Subset(12, 5).draw(torch.empty(7, 0), 3, seeded(4))
    assert torch.equal(drawn, permutation(12, torch.Size([7]), seeded(4), CPU)[..., :5])


@pytest.mark.parametrize("kind", [Replacement, Subset, Epoch])
def test_orders_that_were_saved_with_all_examples_still_go_on(kind):
    sampler = kind(40, 2)
    long, short = torch.arange(40).expand(3, -1), sampler.first_order(torch.Size([3]), CPU)
    for k in (0, 1):
        one, long = sampler.draw(long, k, seeded(k))
        other, short = sampler.draw(short, k, seeded(k))
        assert torch.equal(one, other)


def test_the_base_draws_nothing():
    with pytest.raises(TypeError, match="abstract"):
        Sampling(3, 1)
    assert sampling_of(9, 2, "subset") == Subset(9, 2)
