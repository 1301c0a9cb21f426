"""Streamed statistics: the same in any order of blocks, error bars that cover, oracles from numpy and enumeration."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from flows.ensembles import Histogram, Moments, Quantiles, Statistic

PROBABILITIES = (0.0, 0.01, 0.25, 0.5, 0.9, 1.0)
EDGES = [-1.0, -0.25, 0.0, 0.5, 2.0]
EMPTY = {
    "moments": Moments(),
    "histogram": Histogram(EDGES),
    "quantiles": Quantiles(PROBABILITIES),
    "sketch": Quantiles(PROBABILITIES, size=16),
}

numbers = st.floats(-1e3, 1e3, width=32)
blocks = st.lists(st.integers(1, 30), min_size=1, max_size=8)


def read(statistic):
    """Everything a statistic says, flat."""
    if isinstance(statistic, Moments):
        return [statistic.mean, statistic.covariance, statistic.standard_error, statistic.covariance_error]
    if isinstance(statistic, Histogram):
        return [statistic.below, statistic.counts, statistic.above, statistic.undefined, statistic.density]
    return [statistic.values, *statistic.bracket, *statistic.interval()]


def same(one, other, rtol=1e-9, atol=1e-9):
    for a, b in zip(read(one), read(other), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol, equal_nan=True)


def central(samples):
    """Covariance of samples (n, q) and its standard error, by loops over exact deviations."""
    x = samples.numpy()
    n, q = x.shape
    d = x - np.array([math.fsum(column) / n for column in x.T])
    covariance, error = np.zeros((q, q)), np.zeros((q, q))
    for i in range(q):
        for j in range(q):
            covariance[i, j] = math.fsum(d[:, i] * d[:, j]) / (n - 1)
    for i in range(q):
        for j in range(q):
            fourth = math.fsum(d[:, i] ** 2 * d[:, j] ** 2) / n
            spread = max(fourth - covariance[i, j] ** 2, 0) / n
            products = covariance[i, i] * covariance[j, j] + covariance[i, j] ** 2
            error[i, j] = math.sqrt(spread + products / (n * (n - 1)))
    return covariance, error


@pytest.mark.parametrize("name", ["moments", "histogram", "quantiles"])
@given(sizes=blocks, seed=st.integers(0, 10**6), data=st.data())
def test_blocks_merge_to_the_whole_in_any_order(name, sizes, seed, data):
    samples = torch.randn(sum(sizes), 3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    parts = [EMPTY[name].add(block) for block in samples.split(sizes)]
    parts = [*data.draw(st.permutations(parts)), EMPTY[name]]  # an empty one changes nothing
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [parts[i].merge(parts[i + 1])]
    whole = EMPTY[name].add(samples)
    assert parts[0].count == whole.count == len(samples)
    same(parts[0], whole)


def test_moments_are_those_of_the_definition(normal):
    samples = normal(3, 40, 3).exp()
    found = Moments().add(samples[:7]).add(samples[7:])
    covariance, error = central(samples)
    np.testing.assert_allclose(found.mean, samples.numpy().mean(axis=0), rtol=1e-13)
    np.testing.assert_allclose(found.covariance, covariance, rtol=1e-12)
    np.testing.assert_allclose(found.covariance_error, error, rtol=1e-11)
    np.testing.assert_allclose(found.standard_error, np.sqrt(np.diag(covariance) / 40), rtol=1e-12)
    np.testing.assert_allclose(found.variance_error, np.diag(error), rtol=1e-11)
    np.testing.assert_allclose(
        np.stack(found.interval()),
        np.stack(stats.t.interval(0.95, 39, loc=found.mean.numpy(), scale=found.standard_error.numpy())),
        rtol=1e-12,
    )


@pytest.mark.parametrize("offset", [1e6, 1e9])
def test_nothing_cancels_where_the_mean_is_far_above_the_deviation(normal, offset):
    # Multiples of 2⁻¹⁶ around the offset are exact in float64, so both samples have the same deviations.
    near = (normal(4, 1000, 2) * 2**16).round() / 2**16
    expected, found = Moments(), Moments()
    for block in near.split(37):
        expected, found = expected.add(block), found.add(block + offset)
    # A block mean can be no closer than eps·offset; E x² − (E x)² would err by eps·offset², all digits at 1e9.
    np.testing.assert_allclose(found.mean - offset, expected.mean, atol=2 * 2.2e-16 * offset)
    np.testing.assert_allclose(found.covariance, expected.covariance, rtol=2.2e-16 * offset, atol=2.2e-16 * offset)
    np.testing.assert_allclose(found.covariance_error, expected.covariance_error, rtol=2.2e-16 * offset)


def test_float32_samples_are_accumulated_in_float64(normal, device):
    samples = (normal(5, 5000, 2) * 0.01 + 100).float().to(device)
    found = Moments()
    for block in samples.split(100):
        found = found.add(block)
    assert found.mean.dtype == torch.float64
    assert found.mean.device == samples.device
    np.testing.assert_allclose(found.mean.cpu(), samples.double().cpu().mean(dim=0), rtol=1e-14)
    np.testing.assert_allclose(found.covariance.cpu(), np.cov(samples.double().cpu().numpy().T), rtol=1e-9)
    assert Quantiles([0.5]).add(samples).values.dtype == torch.float64


@pytest.mark.parametrize("name", ["normal", "uniform", "skewed"])
def test_standard_errors_of_mean_and_covariance_cover(normal, name):
    # 2,000 samples of 600 paths at once: their scores have mean square 1 to chi-square's √(2/2000) = 3 %, four times
    # over, and what estimating the error with 600 paths adds: (n − 1)/(n − 3), a few per cent for fourth moments.
    draws = normal(6, 600, 2000, 2)
    mixed = torch.stack([draws[..., 0], 0.6 * draws[..., 0] + 0.8 * draws[..., 1]], dim=-1)
    covariance = torch.tensor([[1.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    mean = torch.zeros(2, dtype=torch.float64)
    if name == "uniform":  # independent, of variance 1/12
        mixed, mean, covariance = torch.special.ndtr(draws), mean + 0.5, torch.eye(2, dtype=torch.float64) / 12
    elif name == "skewed":  # x and x + y²/4
        mixed = torch.stack([draws[..., 0], draws[..., 0] + draws[..., 1].square() / 4], dim=-1)
        mean, covariance = torch.tensor([0.0, 0.25]).double(), torch.tensor([[1.0, 1.0], [1.0, 1.125]]).double()
    found = Moments()
    for block in mixed.split(150):
        found = found.add(block)
    scores = ((found.mean - mean) / found.standard_error).square().mean(dim=0)
    np.testing.assert_allclose(scores, 599 / 597, atol=4 * math.sqrt(2 / 2000))
    scores = ((found.covariance - covariance) / found.covariance_error).square().mean(dim=0)
    np.testing.assert_allclose(scores, 1, atol=4 * math.sqrt(2 / 2000) + 0.06)


def test_the_error_of_a_variance_where_fourth_moments_say_nothing():
    # For ±1 the first term vanishes: Var S² = 2/(n(n − 1)) is all there is, by enumeration of 2¹⁰ samples.
    n = 10
    signs = 2.0 * ((torch.arange(2**n)[None] >> torch.arange(n)[:, None]) & 1).double() - 1
    found = Moments().add(signs[:, :, None])
    exact = float(found.variance.var(correction=0))
    assert exact == pytest.approx(2 / (n * (n - 1)), rel=1e-12)
    balanced = Moments().add(signs[:, signs.sum(dim=0) == 0][:, :1])
    assert float(balanced.variance_error) == pytest.approx(math.sqrt(exact), rel=0.15)


def test_one_sample_has_a_mean_and_no_variance():
    found = Moments().add(torch.tensor([[3.0]]))
    assert float(found.mean) == 3
    assert all(math.isnan(float(x)) for x in (found.variance, found.standard_error, found.covariance_error))


def test_nan_and_infinity_are_not_left_out():
    samples = torch.tensor([[1.0, 1.0, 1.0], [2.0, math.nan, math.inf], [3.0, 3.0, 3.0]])
    mean = Moments().add(samples[:2]).add(samples[2:]).mean
    assert float(mean[0]) == 2
    assert not bool(mean[1:].isfinite().any())
    tally = Histogram([0.0, 5.0]).add(samples)
    assert tally.undefined.tolist() == [0, 1, 0]
    assert tally.above.tolist() == [0, 0, 1]
    found = Quantiles([0.5, 1.0]).add(samples).values
    assert found[0].tolist() == [2, 3]
    assert bool(found[1].isnan().all())
    assert found[2].tolist() == [3, math.inf]
    clean, spoilt = Quantiles([0.5]).add(samples[::2]), Quantiles([0.5]).add(samples[1:2])
    for merged in (clean.merge(spoilt), spoilt.merge(clean)):
        assert merged.values[:, 0].isnan().tolist() == [False, True, False]


@given(values=st.lists(numbers | st.sampled_from(EDGES), min_size=1, max_size=60), cut=st.integers(0, 60))
def test_histograms_are_numpys(values, cut):
    samples = torch.tensor(values, dtype=torch.float64)[:, None]
    found = Histogram(EDGES)
    for block in (samples[:cut], samples[cut:]):
        found = found.add(block) if len(block) else found
    assert found.counts[0].tolist() == np.histogram(values, EDGES)[0].tolist()
    assert int(found.below) == sum(v < EDGES[0] for v in values)
    assert int(found.above) == sum(v > EDGES[-1] for v in values)
    assert int(found.counts.sum() + found.below + found.above) == found.count == len(values)


def test_histograms_have_binomial_errors(normal):
    # 3,000 histograms of 100 uniform numbers on five bins of probability 0.1, 0.2, 0.4, 0.05 and 0.25 of [0, 1)
    samples = torch.special.ndtr(normal(7, 100, 3000))
    edges = torch.tensor([0.0, 0.1, 0.3, 0.7, 0.75, 1.0], dtype=torch.float64)
    found = Histogram(edges).add(samples)
    share = edges.diff()
    np.testing.assert_allclose(found.density.mean(dim=0), 1, atol=0.03)
    spread = found.density.std(dim=0) * share
    np.testing.assert_allclose(spread, (share * (1 - share) / 100).sqrt(), rtol=4 / math.sqrt(2 * 3000))
    np.testing.assert_allclose(found.standard_error.mean(dim=0) * share, spread, rtol=0.07)
    low, high = found.interval()
    covered = ((low <= 1) & (high >= 1)).double().mean(dim=0)
    assert bool((covered >= 0.95 - 3 * math.sqrt(0.05 * 0.95 / 3000)).all())
    empty = Histogram([5.0, 6.0]).add(samples[:, :1])
    assert float(empty.standard_error) == 0
    assert float(empty.interval()[0]) == 0
    assert float(empty.interval()[1]) == pytest.approx(1 - 0.025 ** (1 / 100))  # (1 − p)ⁿ = 0.025


@given(values=st.lists(numbers, min_size=1, max_size=80), p=st.floats(0, 1))
def test_quantiles_of_few_samples_are_numpys(values, p):
    found = Quantiles([p]).add(torch.tensor(values, dtype=torch.float64)[:, None])
    assert found.exact
    expected = np.quantile(values, p)
    for value in (found.values, *found.bracket):
        assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert float(found.resolution) == 0


@given(sizes=blocks, seed=st.integers(0, 10**6), ties=st.booleans(), data=st.data())
def test_the_sketch_brackets_the_quantiles_of_all_it_saw(sizes, seed, ties, data):
    samples = torch.randn(sum(sizes), 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    samples = samples.round() if ties else samples
    parts = data.draw(st.permutations([EMPTY["sketch"].add(block) for block in samples.split(sizes)]))
    while len(parts) > 1:
        i = data.draw(st.integers(0, len(parts) - 2))
        parts[i : i + 2] = [parts[i].merge(parts[i + 1])]
    expected = torch.from_numpy(np.quantile(samples.numpy(), PROBABILITIES, axis=0)).T
    low, high = parts[0].bracket
    assert bool(((low <= expected + 1e-12) & (expected - 1e-12 <= high)).all())
    assert bool(((low <= parts[0].values) & (parts[0].values <= high)).all())
    assert float(parts[0].cells.weight.sum(dim=-1)[0]) == len(samples)


def test_the_sketch_is_as_fine_as_it_says(normal):
    # 50 blocks of 2,000: cells of 2π√(p(1 − p))/size of the sample at most, and neighbours that overlap
    samples, size = normal(8, 100_000, 1), 512
    found = Quantiles(PROBABILITIES, size=size)
    for block in samples.split(2000):
        found = found.add(block)
    assert not found.exact
    assert found.cells.mean.shape == (1, size)
    p = torch.tensor(PROBABILITIES, dtype=torch.float64)
    cell = 2 * math.pi * (p * (1 - p)).sqrt() / size
    assert bool((found.resolution[0] <= 3 * cell + 1e-9).all())
    rank = torch.searchsorted(samples[:, 0].sort().values, found.values[0]) / 100_000
    assert bool(((rank - p).abs() <= found.resolution[0] + 2e-5).all())
    assert float(found.values[0, 0]) == float(samples.min())
    assert float(found.values[0, -1]) == float(samples.max())


def test_the_sketch_errs_by_a_small_part_of_the_statistical_error(normal):
    # Over 40 seeds the root mean square was 0.06 to 0.17 of the statistical error at 512 cells and 10⁵ samples, 0.17 at
    # p = 0.01; of single draws there the worst was 0.64, so what is bounded is the root mean square.
    samples, p = normal(12, 100_000, 12), torch.tensor([0.01, 0.25, 0.5, 0.9], dtype=torch.float64)
    found = Quantiles(p.tolist(), size=512)
    for block in samples.split(2000):
        found = found.add(block)
    ordered = samples.T.contiguous().sort(dim=-1).values
    errors = torch.searchsorted(ordered, found.values) / 1e5 - p
    scores = errors / (p * (1 - p) / 1e5).sqrt()
    assert float(scores.square().mean(dim=0).sqrt().max()) < 0.3


@pytest.mark.parametrize(("n", "size"), [(200, 2048), (2000, 128)])
def test_intervals_from_order_statistics_cover_whatever_the_law(normal, n, size):
    runs, p = 1500, (0.02, 0.5, 0.9)
    samples = normal(9, n, runs).exp()
    found = Quantiles(p, size=size)
    for block in samples.split(n // 4):
        found = found.add(block)
    low, high = found.interval(0.9)
    truth = torch.from_numpy(stats.lognorm.ppf(p, 1))
    covered = ((low <= truth) & (truth <= high)).double().mean(dim=0)
    noise = 3 * math.sqrt(0.9 * 0.1 / runs)
    assert bool((covered >= 0.9 - noise).all())
    if found.exact:  # the binomial probability of the ranks chosen, no more
        ranks = [stats.binom.ppf([0.05, 0.95], n, q) for q in p]
        exact = [stats.binom.cdf(u, n, q) - stats.binom.cdf(k - 1, n, q) for (k, u), q in zip(ranks, p, strict=True)]
        np.testing.assert_allclose(covered, exact, atol=noise)


def test_too_few_samples_bound_no_extreme_quantile(normal):
    low, high = Quantiles([0.001, 0.5, 0.999]).add(normal(10, 100, 1)).interval()
    assert low[0].isinf().tolist() == [True, False, False]
    assert high[0].isinf().tolist() == [False, False, True]


@pytest.mark.parametrize("name", EMPTY)
def test_arguments(name):
    empty: Statistic = EMPTY[name]
    with pytest.raises(ValueError, match="count is 0"):
        read(empty)
    with pytest.raises(TypeError, match=r"torch\.Tensor"):
        empty.add([[1.0]])
    with pytest.raises(TypeError, match="real"):
        empty.add(torch.ones(3, 1, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"samples\[\.\.\., None\]"):
        empty.add(torch.ones(3))
    with pytest.raises(ValueError, match="one shape"):
        empty.add(torch.ones(3, 1)).merge(empty.add(torch.ones(3, 2)))
    with pytest.raises(ValueError, match="confidence"):
        empty.add(torch.ones(3, 1)).interval(1.0)


def test_arguments_of_histograms_and_quantiles():
    with pytest.raises(ValueError, match="edges must have shape"):
        Histogram([1.0])
    with pytest.raises(ValueError, match="strictly increasing"):
        Histogram([1.0, 1.0])
    with pytest.raises(ValueError, match="edges must be the same"):
        Histogram([0.0, 1.0]).merge(Histogram([0.0, 2.0]))
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Quantiles([1.5])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        Quantiles([])
    with pytest.raises(ValueError, match="size must be at least 8"):
        Quantiles([0.5], size=2)
    with pytest.raises(ValueError, match="must be the same"):
        Quantiles([0.5]).merge(Quantiles([0.4]))
