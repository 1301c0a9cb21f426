"""Spectra of gradient noise against dense eigenvalues, by every method; rank, moments and bins against their words."""

import functools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import Counted, LinearRegression, NoisyQuadratic
from landscapes.noise import MinibatchNoise
from landscapes.noise.covariance import noise_covariance
from landscapes.noise.eigenpairs import top_eigenpairs
from landscapes.noise.plans import choose, plans
from landscapes.noise.ritz import BlockRitz, orthonormal_outside, top_pairs
from landscapes.noise.spectrum import layer_spectra, noise_spectrum, noise_threshold
from nets import MLP, NetworkLandscape
from tests.landscapes.dense import symmetric

METHODS = ("dense", "gram", "krylov")
methods = pytest.mark.parametrize("method", METHODS)
EPS32 = torch.finfo(torch.float32).eps


def regression(n, d, seed=0, decay=2.0):
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.logspace(0, -decay, d).double()
    return LinearRegression(features, torch.randn(n, generator=generator, dtype=torch.float64))


def exact(landscape, theta):
    return torch.linalg.eigvalsh(noise_covariance(landscape, theta.double()).dense()).flip(0).clamp_min(0)


def network():
    generator = torch.Generator().manual_seed(2)
    cross_entropy = functools.partial(F.cross_entropy, reduction="none")
    inputs = torch.randn(30, 4, generator=generator, dtype=torch.float64)
    return NetworkLandscape(MLP((4, 6, 3)).double(), cross_entropy, inputs, torch.arange(30) % 3)


@methods
@pytest.mark.parametrize(("n", "d"), [(25, 60), (60, 25), (4, 30)])
def test_top_pairs_by_every_method(method, n, d, dtype, device):
    landscape, theta = regression(n, d), torch.ones(d, dtype=dtype, device=device) / 2
    operator = noise_covariance(landscape, theta, block=7)
    pairs = top_eigenpairs(operator, 5, method=method, tolerance=1e-8)
    values, dense = exact(landscape, theta.cpu())[:5], noise_covariance(landscape, theta.cpu().double()).dense()
    accuracy = 1e-8 if dtype == torch.float64 else 1e-5  # of the largest
    scale = float(values[0])
    assert (pairs.converged, pairs.method) == (True, method)
    assert_close(pairs.values, values, rtol=0, atol=accuracy * scale)
    vectors = pairs.vectors.cpu().double()
    assert_close(vectors @ vectors.mT, torch.eye(5, dtype=torch.float64), rtol=0, atol=accuracy)
    residuals = (vectors @ dense - pairs.values[:, None] * vectors).norm(dim=-1)
    assert_close(residuals, pairs.residuals, rtol=0, atol=accuracy * scale)
    assert (pairs.vectors.dtype, pairs.vectors.device) == (dtype, theta.device)
    assert pairs.values.dtype == pairs.residuals.dtype == torch.float64


def test_errors_cover_what_is_missing_when_the_limit_cuts_the_search_short():
    landscape, theta = regression(80, 120, decay=0.7), torch.ones(120, dtype=torch.float64)
    operator = noise_covariance(landscape, theta, keep_gradients=True)
    pairs = top_eigenpairs(operator, 10, method="krylov", tolerance=1e-12, limit=2)
    gaps = (pairs.values - exact(landscape, theta)[:10]).abs()
    assert not pairs.converged
    assert bool((gaps <= pairs.residuals).all())
    assert top_eigenpairs(operator, 10, method="krylov", tolerance=1e-12).converged


@given(st.data())
def test_block_method_whatever_the_spectrum(data):
    d = data.draw(st.integers(1, 14))
    eigenvalues = data.draw(st.lists(st.sampled_from([0.0, 1e-9, 0.1, 0.5, 2.0, 2.0, 3.0]), min_size=d, max_size=d))
    count = data.draw(st.integers(1, d))
    rows = min(count + data.draw(st.integers(0, 3)), d)
    matrix, seed = symmetric(eigenvalues, data.draw(st.integers(0, 99))), data.draw(st.integers(0, 99))
    start = torch.randn(rows, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    pairs = top_pairs(lambda v: v @ matrix, start, count, tolerance=1e-10, limit=99, largest_basis=3 * rows)
    expected = torch.tensor(sorted(eigenvalues, reverse=True), dtype=torch.float64)
    assert pairs.converged
    # as asked: to 1e-10 of each value, 3 at the most, where the search may stop; 1e-11 failed at 2.0 in the soak
    assert_close(pairs.values[:count], expected[:count], rtol=0, atol=3e-10)
    assert float((pairs.vectors @ pairs.vectors.mT - torch.eye(rows)).abs().max()) < 1e-12


def test_a_small_basis_is_compressed_and_still_arrives(monkeypatch):
    eigenvalues = torch.linspace(1, 2, 150, dtype=torch.float64)
    matrix, start = symmetric(eigenvalues), torch.randn(8, 150, generator=torch.Generator().manual_seed(0)).double()
    sizes, held, extend = [], [], BlockRitz.extend

    def watched(basis, directions):
        grown = extend(basis, directions)
        held.append(len(basis.rows))
        return grown

    monkeypatch.setattr(BlockRitz, "extend", watched)

    def product(v):
        sizes.append(len(v))
        return v @ matrix

    pairs = top_pairs(product, start, 4, tolerance=1e-8, limit=200, largest_basis=24)
    assert pairs.converged
    assert len(sizes) == pairs.products > 3  # more blocks than the basis holds
    assert max(held) == 24
    assert_close(pairs.values[:4], eigenvalues.flip(0)[:4], rtol=1e-8, atol=0)


def test_rows_are_orthonormal_outside_what_is_there():
    generator = torch.Generator().manual_seed(1)
    rows = orthonormal_outside(torch.randn(4, 20, generator=generator), torch.zeros(0, 20))
    directions = torch.cat([rows[:2] + 1e-3 * torch.randn(2, 20, generator=generator), torch.zeros(1, 20), rows[:1]])
    new = orthonormal_outside(directions, rows)
    assert len(new) == 2  # what is zero or in the span adds nothing
    assert float((new @ rows.mT).abs().max()) < 10 * EPS32
    assert float((new @ new.mT - torch.eye(2)).abs().max()) < 10 * EPS32
    assert not BlockRitz(lambda v: v, rows).extend(torch.zeros(2, 20))


@methods
def test_whole_spectrum_and_its_moments(method, dtype):
    landscape, theta = regression(30, 50, decay=1.0), torch.ones(50, dtype=dtype) / 3
    values = exact(landscape, theta)
    spectrum = noise_spectrum(noise_covariance(landscape, theta, block=11), method=method, tolerance=1e-6)
    assert (spectrum.whole, spectrum.converged, spectrum.std_bound, len(spectrum.eigenvalues)) == (True, True, 0, 29)
    scale = float(values[0])
    assert_close(spectrum.eigenvalues, values[:29], rtol=0, atol=2e-6 * scale)
    assert spectrum.threshold == pytest.approx(scale * 50 * EPS32, rel=1e-5)
    assert spectrum.rank == int((values > spectrum.threshold).sum())
    assert spectrum.rank_fraction == spectrum.rank / 50
    assert spectrum.mean == pytest.approx(float(values.mean()), rel=1e-5)
    assert spectrum.std == pytest.approx(float(values.std(correction=0)), rel=1e-5)
    clipped = values.clamp_min(spectrum.threshold)
    assert spectrum.clipped_mean == pytest.approx(float(clipped.mean()), rel=1e-5)
    assert spectrum.clipped_std == pytest.approx(float(clipped.std(correction=0)), rel=1e-5)
    assert f"rank {spectrum.rank} of 50" in str(spectrum)
    assert f"above {spectrum.threshold:.3g}" in str(spectrum)


def test_all_above_a_threshold_and_what_the_rest_can_do():
    landscape, theta = regression(300, 200, decay=2.5), torch.ones(200, dtype=torch.float64)
    values = exact(landscape, theta)
    level = float(values[50] + values[51]) / 2
    spectrum = noise_spectrum(noise_covariance(landscape, theta, keep_gradients=True), method="krylov", threshold=level)
    assert (spectrum.rank, spectrum.whole, spectrum.converged) == (51, False, True)
    assert_close(spectrum.eigenvalues[:51], values[:51], rtol=2e-3, atol=0)
    assert 0 < spectrum.std_bound < 1e-3 * spectrum.std
    assert abs(spectrum.std - float(values.std(correction=0))) <= spectrum.std_bound + 1e-3 * spectrum.std
    clipped = values.clamp_min(level)
    assert spectrum.clipped_std == pytest.approx(float(clipped.std(correction=0)), rel=2e-3)
    short = noise_spectrum(noise_covariance(landscape, theta), method="krylov", threshold=level, limit=1)
    assert not short.converged


def test_histogram_counts_every_eigenvalue_once():
    landscape, theta = regression(40, 60), torch.ones(60, dtype=torch.float64)
    spectrum = noise_spectrum(noise_covariance(landscape, theta))
    histogram = spectrum.histogram(7)
    above = spectrum.eigenvalues[spectrum.eigenvalues > spectrum.threshold]
    assert int(histogram.counts.sum()) + histogram.clipped == 60
    assert histogram.clipped == 60 - spectrum.rank
    assert (float(histogram.edges[0]), float(histogram.edges[-1])) == pytest.approx(
        (spectrum.threshold, float(above[0]))
    )
    ratios = histogram.edges.log().diff()
    assert_close(ratios, ratios[:1].expand(7), rtol=1e-9, atol=0)
    for i in range(7):
        inside = (above > histogram.edges[i]) & (above <= histogram.edges[i + 1] * (1 + (i == 6) * 1e-12))
        assert int(inside.sum()) == int(histogram.counts[i])


def test_known_spectra():
    hessian = symmetric([3.0, 1.0, -0.5])
    operator = noise_covariance(NoisyQuadratic(hessian, 9, seed=2), torch.ones(3, dtype=torch.float64))
    for method in METHODS:
        spectrum = noise_spectrum(operator, method=method, tolerance=1e-10)
        assert_close(spectrum.eigenvalues, torch.tensor([9.0, 1.0, 0.25]).double(), rtol=1e-9, atol=0)
        assert spectrum.rank == 3


@methods
@pytest.mark.parametrize("case", ["full batch", "one example", "equal examples"])
def test_no_noise_has_rank_zero(method, case, dtype):
    one = LinearRegression(torch.tensor([[0.1, 0.7, 0.3, 1 / 3]]), torch.tensor([0.7]))
    alike = LinearRegression(one.features.expand(5, 4), one.targets.expand(5))
    source = {
        "full batch": MinibatchNoise(regression(5, 4), 5, "subset"),
        "one example": one,
        "equal examples": alike,
    }[case]
    operator = noise_covariance(source, torch.full((4,), 0.1, dtype=dtype))
    spectrum = noise_spectrum(operator, method=method)
    assert (spectrum.rank, spectrum.converged) == (0, True)
    assert top_eigenpairs(operator, 2, method=method).converged
    with pytest.raises(ValueError, match="logarithmic"):
        spectrum.histogram()


def test_threshold_is_the_papers_and_is_printed():
    landscape, theta = regression(20, 30), torch.ones(30, dtype=torch.float64)
    operator = noise_covariance(landscape, theta)
    assert noise_threshold(operator, 2.0) == 2.0 * 30 * EPS32
    # gradients known to ten eps of float32 hide what is below their square
    shifted = LinearRegression(torch.ones(6, 2), 1e4 + torch.tensor([0.0, 1, 2, 3, 4, 5]) * 1e-3)
    coarse = noise_covariance(shifted, torch.zeros(2))
    length = float(coarse.gradients.mean.double().square().sum()) + coarse.trace
    assert noise_threshold(coarse, 1e-9) == pytest.approx((10 * EPS32) ** 2 * length)


def test_layers_have_their_own_spectra():
    landscape = network()
    operator = noise_covariance(landscape, landscape.theta0, keep_gradients=True)
    dense = operator.dense()
    for name, spectrum in layer_spectra(operator, landscape.layers).items():
        part = landscape.layers[name]
        expected = torch.linalg.eigvalsh(dense[part, part]).flip(0)[: len(spectrum.eigenvalues)]
        assert_close(spectrum.eigenvalues, expected.clamp_min(0), rtol=0, atol=1e-12)
        assert spectrum.dimension == part.stop - part.start
        assert spectrum.passes == 0 or name == next(iter(landscape.layers))


def test_the_smaller_matrix_is_taken_and_what_does_not_fit_is_not():
    theta = torch.ones(2000, dtype=torch.float64)
    wide, tall = noise_covariance(regression(30, 2000), theta), noise_covariance(regression(2000, 30), theta[:30])
    assert choose(wide, 5, "auto", 2**30).method == "gram"
    assert choose(tall, 5, "auto", 2**30).method == "dense"
    both = noise_covariance(regression(2000, 2000), theta)
    assert choose(both, 5, "auto", 2**30).method == "krylov"
    fitted = plans(both, 5, 2**30)
    assert all(fitted[m].bytes == choose(both, 5, m, 2**30).bytes for m in METHODS)
    small = 3 * 8 * 30**2
    with pytest.raises(ValueError, match="memory must be at least"):
        top_eigenpairs(wide, 5, memory=small)
    with pytest.raises(ValueError, match="memory must be at least"):
        top_eigenpairs(both, 5, method="dense", memory=10**6)


def test_a_tiled_gram_matrix_pays_for_its_panels():
    counted = Counted(regression(40, 300))
    operator = noise_covariance(counted, torch.ones(300, dtype=torch.float64), block=4)
    base = plans(operator, 3, 2**30)["gram"]
    memory = base.bytes - 30 * 300 * 8
    tiled = plans(operator, 3, memory)["gram"]
    assert (base.rows, tiled.rows) == (40, 10)
    pairs = top_eigenpairs(operator, 3, method="gram", memory=memory)
    assert pairs.passes == pytest.approx(tiled.passes + 1)  # and one for g
    assert pairs.passes == pytest.approx(counted.counts["grad"])
    assert_close(pairs.values, exact(counted.landscape, torch.ones(300))[:3], rtol=1e-10, atol=0)


def test_growth_stops_where_memory_does():
    operator = noise_covariance(regression(400, 300, decay=0.5), torch.ones(300, dtype=torch.float64), block=8)
    plan = plans(operator, 32, 1)["krylov"]
    with pytest.raises(ValueError, match="all of the first half are above it"):
        noise_spectrum(operator, method="krylov", memory=plan.bytes + 1000)


def test_what_is_refused():
    operator = noise_covariance(regression(5, 4), torch.ones(4, dtype=torch.float64))
    for wrong, name in (({"count": 5}, "count"), ({"count": 0}, "count")):
        with pytest.raises(ValueError, match=name):
            top_eigenpairs(operator, **wrong)
    for option in ({"method": "qr"}, {"memory": 0}, {"tolerance": 0.0}, {"limit": 0}, {"seed": -1}):
        with pytest.raises(ValueError, match=next(iter(option))):
            top_eigenpairs(operator, 2, **option)
        with pytest.raises(ValueError, match=next(iter(option))):
            noise_spectrum(operator, **option)
    with pytest.raises(ValueError, match="threshold"):
        noise_spectrum(operator, threshold=-1.0)
    with pytest.raises(TypeError, match="noise_covariance"):
        noise_spectrum(regression(5, 4))
    broken = LinearRegression(torch.tensor([[1e200, 1.0], [-1e200, 1.0]], dtype=torch.float64), torch.ones(2).double())
    for method in METHODS:
        with pytest.raises(FloatingPointError, match="not finite"):
            top_eigenpairs(noise_covariance(broken, torch.zeros(2).double()), 1, method=method)
        with pytest.raises(FloatingPointError, match="not finite"):
            noise_spectrum(noise_covariance(broken, torch.full((2,), math.nan).double()), method=method)
