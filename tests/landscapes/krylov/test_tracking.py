"""Eigenpairs followed from call to call: crossings true and avoided, signs, periods of two, newcomers, the price."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import Rosenbrock
from landscapes.krylov import EigenpairTracker, eigenpairs, random_block
from tests.landscapes.dense import Products, ranked, rotation, symmetric

WHICH = ("largest", "smallest", "magnitude")
which_ones = pytest.mark.parametrize("which", WHICH)
TILT = rotation(30, 1)
REST = torch.linspace(-1, 1, 28, dtype=torch.float64)


def embedded(pair):
    """The 2×2 matrix ``pair``, whose eigenvalues lie above 2, with 28 eigenvalues in [−1, 1], in random coordinates."""
    matrix = torch.diag(torch.cat([torch.zeros(2, dtype=torch.float64), REST]))
    matrix[:2, :2] = torch.as_tensor(pair, dtype=torch.float64)
    return TILT @ matrix @ TILT.mT


def at(place, d=30, dtype=torch.float64):
    """A θ that is ``place`` from the origin."""
    return torch.full((d,), place / math.sqrt(d), dtype=dtype)


def track(tracker, matrices, places=None):
    places = range(len(matrices)) if places is None else places
    return [tracker(Products(m), at(float(x), len(m))) for m, x in zip(matrices, places, strict=True)]


def test_the_first_call_is_a_cold_start():
    matrix = embedded([[5, 0], [0, 3]])
    followed = EigenpairTracker(2, tolerance=1e-10, seed=3)(Products(matrix), at(1.0))
    assert_close(followed.values, torch.tensor([5.0, 3], dtype=torch.float64))
    assert (followed.order.tolist(), followed.overlaps.tolist()) == ([0, 1], [0, 0])
    assert torch.equal(followed.vectors, followed.pairs.vectors)
    again = EigenpairTracker(2, tolerance=1e-10, seed=3)(Products(matrix), at(1.0))
    assert torch.equal(followed.vectors, again.vectors)


def test_through_a_true_crossing_modes_keep_their_places():
    # diag(4 + t, 4 − t), t from 1 to −1: nothing couples the two, they pass through each other
    times = [1 - 0.11 * i for i in range(19)]
    path = track(EigenpairTracker(2, tolerance=1e-10), [embedded([[4 + t, 0], [0, 4 - t]]) for t in times])
    for t, followed in zip(times, path, strict=True):
        assert_close(followed.values, torch.tensor([4 + t, 4 - t], dtype=torch.float64), rtol=0, atol=1e-8)
        assert_close((followed.vectors * TILT[:, :2].mT).sum(-1).abs(), torch.ones(2, dtype=torch.float64))
        assert_close(followed.pairs.values, followed.values.sort(descending=True).values)
        assert followed.order.tolist() == ([0, 1] if t > 0 else [1, 0])
        assert followed.pairs.converged
    for before, after in pairwise(path):
        assert_close((before.vectors * after.vectors).sum(-1), torch.ones(2, dtype=torch.float64))
        assert_close(after.overlaps, torch.ones(2, dtype=torch.float64))


def test_through_an_avoided_crossing_vectors_turn():
    # coupled by ½ the values keep 1 apart and the vectors exchange their characters, by at most ¼ a step
    times = [3 - 0.2 * i for i in range(31)]
    path = track(EigenpairTracker(2, tolerance=1e-10), [embedded([[5 + t, 0.5], [0.5, 5 - t]]) for t in times])
    for t, followed in zip(times, path, strict=True):
        root = math.hypot(t, 0.5)
        assert_close(followed.values, torch.tensor([5 + root, 5 - root], dtype=torch.float64), rtol=0, atol=1e-8)
        assert followed.order.tolist() == [0, 1]
        assert float(followed.overlaps.min()) > 0.97 or followed is path[0]
    for before, after in pairwise(path):
        assert float((before.vectors * after.vectors).sum(-1).min()) > 0.97
    ends = (path[0].vectors @ path[-1].vectors.mT).abs()
    assert_close(ends, torch.eye(2, dtype=torch.float64).flip(0), rtol=0, atol=0.2)  # 2·(½·½/3) of each other's


@pytest.mark.parametrize(("centre", "sign"), [(0.0, -1), (2.5, 1)])
def test_signs_are_continuous_around_a_conical_intersection(centre, sign):
    # H(a, b) = [[a, b], [b, −a]]: along a closed path around a = b = 0 eigenvectors return with the other sign
    angles = torch.linspace(0, 2 * torch.pi, 41, dtype=torch.float64)
    circle = [(centre + math.cos(x), math.sin(x)) for x in angles]
    path = track(EigenpairTracker(2, tolerance=1e-10), [embedded([[6 + a, b], [b, 6 - a]]) for a, b in circle])
    for before, after in pairwise(path):
        assert float((before.vectors * after.vectors).sum(-1).min()) > 0.98
    overlap = (path[0].vectors * path[-1].vectors).sum(-1)
    assert_close(overlap, sign * torch.ones(2, dtype=torch.float64), rtol=0, atol=1e-8)


def alternating(steps):
    """θ and H that jump from side to side with a drift; the sides have other eigenvectors, and cross their order."""
    sides = [embedded([[4, 0.2], [0.2, 3]]), rotation(30, 2) @ embedded([[5, -1], [-1, 3]]) @ rotation(30, 2).mT]
    drift = 1e-4 * symmetric(torch.linspace(-1, 1, 30))
    return [sides[i % 2] + i * drift for i in range(steps)], [(-1) ** i + 0.01 * i for i in range(steps)]


def test_a_period_of_two_is_followed_at_the_price_of_rest():
    matrices, places = alternating(12)
    path = track(EigenpairTracker(2), matrices, places)
    for i, (matrix, followed) in enumerate(zip(matrices, path, strict=True)):
        exact = ranked(torch.linalg.eigvalsh(matrix), "largest")[:2]
        assert followed.pairs.converged
        assert_close(followed.pairs.values, exact, rtol=0, atol=1e-4 * float(exact[0]))
        if i >= 2:
            assert followed.pairs.products <= 3 + 2  # two wanted and a guard, and two looks beyond them
            assert float(followed.overlaps.min()) > 0.99  # with the call before the last: the last is another side
            assert float((followed.vectors * path[i - 2].vectors).sum(-1).min()) > 0.99
            assert float((followed.vectors * path[i - 1].vectors).sum(-1).abs().max()) < 0.9


def turned(angle):
    """5 and 3 with eigenvectors turned by ``angle`` in their plane."""
    c, s = math.cos(angle), math.sin(angle)
    return embedded([[5 * c * c + 3 * s * s, 2 * c * s], [2 * c * s, 5 * s * s + 3 * c * c]])


@pytest.mark.parametrize("angles", [[25 * i for i in range(8)], [0, 40, -10, 40, -10, 40]])
def test_modes_are_what_resembles_them_most_over_two_calls(angles):
    # 25° a call: over two calls each turns more than half way into the other; 50° and back: over one call each does
    path = track(EigenpairTracker(2, tolerance=1e-10), [turned(math.radians(angle)) for angle in angles])
    for followed in path:
        assert followed.order.tolist() == [0, 1]
    expected = math.cos(math.radians(25)) if angles[2] == 50 else 1.0
    for followed in path[3:]:
        assert_close(followed.overlaps, torch.full((2,), expected, dtype=torch.float64), rtol=0, atol=1e-4)


def test_the_block_of_the_nearer_theta_is_taken():
    near, far = embedded([[4, 0], [0, 3]]), rotation(30, 2) @ embedded([[4, 0], [0, 3]]) @ rotation(30, 2).mT
    for places in ((0.0, 10.0, 0.1), (0.0, 10.0, 9.9)):
        tracker = EigenpairTracker(2)
        track(tracker, [near, far], places[:2])
        back, _ = track(tracker, [near if places[2] < 5 else far, near], (places[2], 0.0))
        assert back.pairs.products == 5


def test_a_mode_that_leaves_shows_and_the_others_stay():
    # three of diag(9, 7, 5 − t, 3, …): the third sinks through the fourth at t = 2
    vectors = TILT
    times = [0.4 * i + 0.1 for i in range(10)]
    path = []
    tracker = EigenpairTracker(3, tolerance=1e-10)
    for t in times:
        values = torch.cat([torch.tensor([9, 7, 5 - t, 3], dtype=torch.float64), REST[:26]])
        path.append(tracker(Products((vectors * values) @ vectors.mT), at(t)))
    for t, followed in zip(times, path, strict=True):
        assert followed.pairs.converged
        expected = [9, 7, 5 - t if t < 2 else 3]
        assert_close(followed.values, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-8)
    for i in range(1, 10):
        assert float(path[i].overlaps[:2].min()) > 0.999
        assert (float(path[i].overlaps[2]) < 0.5) == (times[i - 1] < 2 < times[i])


def test_a_mode_that_rises_uncoupled_is_met():
    # no pair that is carried has any part in it, so that no residual of theirs tells of it
    base = torch.cat([torch.tensor([10, 9, 8]), torch.linspace(-3, 6, 57)]).double()
    vectors = rotation(60, 3)
    tracker, products = EigenpairTracker(3), []
    for step in range(101):
        values = base.clone()
        values[20] += 0.13 * step  # from −0.3, through 8, 9 and 10, to 12.7
        followed = tracker(Products((vectors * values) @ vectors.mT), at(float(step), 60))
        exact = ranked(values, "largest")[:3]
        assert followed.pairs.converged
        assert_close(followed.pairs.values, exact, rtol=0, atol=3e-4 * float(exact[0]))
        products.append(followed.pairs.products)
    assert sum(products[1:]) / 100 < 6.3  # a block of four, two looks beyond it


def test_a_mode_that_rises_uncoupled_is_met_by_either_of_two_guards():
    base = torch.cat([torch.tensor([10, 9, 8]), torch.linspace(-3, 6, 297)]).double()
    block = random_block(base, 5)
    for step in range(400):
        values = base.clone()
        values[23] += 0.03 * step  # from −2.4 to 9.6
        pairs = eigenpairs(lambda v, values=values: values * v, block, 3, seed=2 * step)
        block = pairs.block
        assert pairs.converged
        assert_close(pairs.values, ranked(values, "largest")[:3], rtol=0, atol=3e-4 * 10)


@which_ones
def test_along_a_drift_it_costs_a_fraction_of_cold_starts(which, normal):
    d = 120
    one, two = symmetric(normal(0, d)), symmetric(normal(1, d), 5)
    tracker, warm, cold = EigenpairTracker(4, which=which), 0, 0
    for step in range(16):
        matrix = one + 0.003 * step * two
        exact = torch.linalg.eigvalsh(matrix)
        followed = tracker(Products(matrix), at(float(step), d))
        restarted = eigenpairs(Products(matrix), random_block(matrix, 5), 4, which=which)
        assert followed.pairs.converged
        tolerated = 2e-4 * float(exact.abs().max())
        assert_close(followed.pairs.values, ranked(exact, which)[:4], rtol=0, atol=tolerated)
        warm, cold = warm + followed.pairs.products, cold + restarted.products
    assert warm < 0.6 * cold


@given(st.data())
def test_whatever_the_path(data):
    d, seed = data.draw(st.integers(2, 10)), data.draw(st.integers(0, 999))
    count, which = data.draw(st.integers(1, d)), data.draw(st.sampled_from(WHICH))
    size = data.draw(st.sampled_from([1e-3, 0.1, 2.0]))
    generator = torch.Generator().manual_seed(seed)
    start, change = torch.randn(2, d, d, generator=generator, dtype=torch.float64)
    tracker = EigenpairTracker(count, which=which, tolerance=1e-12)
    past = []
    for step in range(5):
        matrix = start + start.mT + step * size * (change + change.mT)
        followed = tracker(Products(matrix), at(float(step % 3), d))
        assert_close(followed.pairs.values, ranked(torch.linalg.eigvalsh(matrix), which)[:count], rtol=0, atol=1e-9)
        assert sorted(followed.order.tolist()) == list(range(count))
        assert torch.equal(followed.values, followed.pairs.values[followed.order])
        images = followed.vectors @ matrix
        assert_close(images, followed.values[:, None] * followed.vectors, rtol=0, atol=2e-4)
        if past:
            overlaps = torch.stack([(vectors * followed.vectors).sum(-1) for vectors in past])
            closest = overlaps.gather(0, overlaps.abs().argmax(0, keepdim=True))[0]
            assert_close(followed.overlaps, closest, rtol=0, atol=1e-12)  # not negative
        past = [*past[-1:], followed.vectors]


@pytest.mark.parametrize("count", [3, 7])
def test_a_count_that_the_dimension_does_not_hold_is_cut(count):
    matrix = symmetric([3, 2, 1])
    followed = EigenpairTracker(count)(Products(matrix), at(1.0, 3))
    assert_close(followed.values, torch.tensor([3.0, 2, 1], dtype=torch.float64))
    assert followed.pairs.converged


def test_float32_and_devices(device):
    times = [1 - 0.11 * i for i in range(19)]
    tracker = EigenpairTracker(2, tolerance=1e-5)
    for i, t in enumerate(times):
        matrix = embedded([[4 + t, 0], [0, 4 - t]]).to(device, torch.float32)
        followed = tracker(Products(matrix), at(float(i), dtype=torch.float32).to(device))
        assert (followed.vectors.dtype, followed.vectors.device) == (torch.float32, matrix.device)
        assert (followed.values.dtype, followed.values.device.type) == (torch.float64, "cpu")
        assert_close(followed.values, torch.tensor([4 + t, 4 - t], dtype=torch.float64), rtol=0, atol=2e-4)


def test_a_hessian_that_is_not_finite_is_told_and_forgotten():
    tracker, matrix = EigenpairTracker(2, tolerance=1e-10), embedded([[5, 0], [0, 3]])
    before = tracker(Products(matrix), at(0.0))
    lost = tracker(lambda v: math.nan * v, at(1.0))
    assert not lost.pairs.converged
    assert bool(lost.values.isnan().all())
    assert bool(lost.vectors.isnan().all())
    assert (lost.overlaps.tolist(), lost.overlaps.dtype) == ([0, 0], torch.float64)
    after = tracker(Products(matrix), at(2.0))
    assert after.pairs.products == 5
    assert_close(after.vectors, before.vectors, rtol=0, atol=1e-5)  # the root of the tolerance


def test_theta_may_be_written_into_and_may_require_grad():
    tracker, theta = EigenpairTracker(1), torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    landscape = Rosenbrock()
    for _ in range(4):
        followed = tracker(landscape.expand(theta).hvp, theta)
        assert not followed.vectors.requires_grad
        assert_close(followed.values, torch.linalg.eigvalsh(landscape.hessian(theta.detach()))[1:])
        with torch.no_grad():
            theta += 0.1
    (old, *_), (new, *_) = tracker._past
    assert_close(new - old, torch.full((2,), 0.1, dtype=torch.float64))


ERRORS = {
    "count 0": ({"count": 0}, ValueError, "count must be at least 1, got 0"),
    "count a float": ({"count": 2.0}, TypeError, "count must be a whole number"),
    "which": ({"which": "top"}, ValueError, "which must be one of"),
    "tolerance": ({"tolerance": -1.0}, ValueError, "tolerance must be positive"),
    "limit below count": ({"limit": 1}, ValueError, "limit must be at least 2, got 1"),
    "width": ({"width": 0}, ValueError, "width must be at least 1"),
    "seed": ({"seed": -1}, ValueError, "seed must be at least 0"),
}


@pytest.mark.parametrize("case", ERRORS)
def test_errors_of_the_tracker(case):
    changed, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        EigenpairTracker(**({"count": 2} | changed))


@pytest.mark.parametrize(
    ("theta", "error", "message"),
    [
        ([0.0, 1.0], TypeError, "theta must be a torch.Tensor"),
        (torch.zeros(2, 3), ValueError, r"theta must be one real vector \(d,\), got \(2, 3\)"),
        (torch.zeros(3, dtype=torch.complex64), ValueError, "theta must be one real vector"),
        (torch.zeros(4), ValueError, r"theta must be \(3,\) as before, got \(4,\); use one tracker for each run"),
    ],
)
def test_errors_of_a_call(theta, error, message):
    tracker = EigenpairTracker(1)
    tracker(lambda v: v, torch.zeros(3))
    with pytest.raises(error, match=message):
        tracker(lambda v: v, theta)


@pytest.mark.parametrize("count", [1, 3])
def test_modes_that_do_not_couple(count):
    # up to 20 dimensions no mode can be missed, however it moves; the block alone does not see it
    generator = torch.Generator().manual_seed(0)
    tracker = EigenpairTracker(count)
    for call in range(30):
        values = torch.randn(15, generator=generator, dtype=torch.float64)
        pairs = tracker(lambda v, values=values: values * v, torch.full((15,), float(call), dtype=torch.float64)).pairs
        assert pairs.converged
        assert_close(pairs.values, values.sort(descending=True).values[:count], rtol=0, atol=3e-4)
