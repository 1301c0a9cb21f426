"""Noise against curvature by dense algebra; tails against laws whose index is known and batches that are enumerated."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kurtosis
from torch.testing import assert_close

from landscapes import LinearRegression, NoisyQuadratic
from landscapes.krylov import eigenpairs, random_block
from landscapes.noise.covariance import noise_covariance
from landscapes.noise.diagnostics import alignment, noise_along, noise_scales, subspace_overlap
from landscapes.noise.eigenpairs import top_eigenpairs
from landscapes.noise.spectrum import noise_spectrum
from landscapes.noise.tails import batch_kurtosis, gaussian_norms, hill_index, random_directions, tail_check
from nets import MLP, NetworkLandscape
from tests.landscapes.dense import rotation, symmetric
from tests.tensors import draws


def regression(n=40, d=12, seed=0):
    draw = draws(seed)
    return LinearRegression(draw(n, d) * torch.logspace(0, -1.5, d, dtype=torch.float64), draw(n))


def network():
    cross_entropy = functools.partial(F.cross_entropy, reduction="none")
    return NetworkLandscape(MLP((3, 5, 3)).double(), cross_entropy, draws(1)(20, 3), torch.arange(20) % 3)


def setting(landscape, theta):
    return noise_covariance(landscape, theta, keep_gradients=True), landscape.expand(theta).hvp


def dense_alignment(landscape, theta):
    c, h, n = noise_covariance(landscape, theta).dense(), landscape.hessian(theta), landscape.dimension
    shared = (c @ h).trace()
    return {
        "cosine": shared / (c.norm() * h.norm()),
        "anisotropy": shared / (c.trace() * h.trace() / n),
        "product": shared,
        "covariance_norm": c.norm(),
        "hessian_norm": h.norm(),
        "hessian_trace": h.trace(),
    }


@pytest.mark.parametrize("make", [regression, network])
def test_exact_alignment_is_the_dense_one(make):
    landscape = make()
    theta = draws(2)(landscape.dimension) / 2
    operator, hvp = setting(landscape, theta)
    aligned = alignment(operator, hvp, probes=None)
    for name, expected in dense_alignment(landscape, theta).items():
        estimate = getattr(aligned, name)
        assert estimate.value == pytest.approx(float(expected), rel=1e-9)
        assert (estimate.error, estimate.hvps) == (0, landscape.dimension)
    assert aligned.covariance_trace == operator.trace


def test_proportional_matrices_are_aligned_and_isotropic_ones_not_anisotropic():
    theta = draws(3)(4)
    aligned = alignment(*setting(NoisyQuadratic(2 * torch.eye(4).double(), 9, seed=0), theta), probes=None)
    assert (aligned.cosine.value, aligned.anisotropy.value) == pytest.approx((1, 1))
    hessian = symmetric([3.0, 1.0, 0.1, 0.0])
    aligned = alignment(*setting(NoisyQuadratic(hessian, 9, seed=0), theta), probes=None)  # C = H²
    powers = [sum(x**p for x in (3, 1, 0.1)) for p in (1, 2, 3, 4)]
    assert aligned.cosine.value == pytest.approx(powers[2] / math.sqrt(powers[3] * powers[1]))
    assert aligned.anisotropy.value == pytest.approx(4 * powers[2] / (powers[1] * powers[0]))


@pytest.mark.parametrize("deflated", [False, True])
def test_estimated_alignment_has_the_errors_it_says(deflated):
    landscape = regression()
    theta = draws(4)(12)
    operator, hvp = setting(landscape, theta)
    truth = dense_alignment(landscape, theta)
    basis = None
    if deflated:
        hessian = eigenpairs(hvp, random_block(theta, 4), 3, tolerance=1e-8)
        basis = torch.cat([top_eigenpairs(operator, 3).vectors, hessian.vectors])
    runs = [alignment(operator, hvp, probes=40, basis=basis, seed=seed) for seed in range(60)]
    for name, expected in truth.items():
        estimates = [getattr(run, name) for run in runs]
        values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
        errors = torch.tensor([e.error for e in estimates], dtype=torch.float64)
        spread = float(values.std())
        # ratios of means are biased by O(1/probes), a part of their deviation
        assert abs(float(values.mean() - expected)) < (4 / math.sqrt(60) + 0.3) * spread + 1e-12
        assert float(errors.square().mean().sqrt()) == pytest.approx(
            spread, rel=0.4
        )  # 60 runs, 40 probes of heavy tails
    if deflated:
        plain = [alignment(operator, hvp, probes=40, seed=seed).cosine.error for seed in range(10)]
        assert max(run.cosine.error for run in runs[:10]) < min(plain) / 3
        assert (runs[0].cosine.hvps, runs[0].cosine.passes) == (46, 0)  # kept gradients


def test_subspaces():
    q = rotation(9, 3)
    same = subspace_overlap(q[:3], rotation(3, 1) @ q[:3])
    assert_close(same.cosines, torch.ones(3, dtype=torch.float64))
    assert (same.overlap, same.chance) == pytest.approx((1, 3 / 9))
    inside = subspace_overlap(5 * q[:2], q[:6])
    assert (inside.overlap, inside.chance) == pytest.approx((1, 6 / 9))
    apart = subspace_overlap(q[:4], q[4:])
    assert apart.overlap == pytest.approx(0, abs=1e-20)
    tilted = subspace_overlap(q[:1], math.cos(0.3) * q[:1] + math.sin(0.3) * q[1:2])
    assert float(tilted.cosines) == pytest.approx(math.cos(0.3))
    random = [subspace_overlap(draws(i)(3, 9), draws(100 + i)(2, 9)).overlap for i in range(300)]
    assert sum(random) / 300 == pytest.approx(subspace_overlap(q[:3], q[:2]).chance, abs=0.03)


def test_noise_along_eigenvectors():
    landscape = network()
    theta = landscape.theta0 + 0.1
    operator, hvp = setting(landscape, theta)
    values, vectors = torch.linalg.eigh(landscape.hessian(theta))
    along = noise_along(operator, 3 * vectors.mT, hvp)
    assert_close(along.curvature, values, rtol=1e-9, atol=1e-12)
    assert_close(along.variance, (vectors.mT @ operator.dense() @ vectors).diagonal(), rtol=1e-9, atol=1e-14)
    assert_close(along.mean, vectors.mT @ landscape.grad(theta), rtol=1e-9, atol=1e-13)
    shares = along.concentration(float(values.sum()))
    assert float((shares * values / values.sum()).sum()) == pytest.approx(1)  # variances add up to the trace
    quadratic = NoisyQuadratic(symmetric([2.0, 1.0]), 7, seed=0)
    q_values, q_vectors = torch.linalg.eigh(symmetric([2.0, 1.0]))
    shares = noise_along(*[setting(quadratic, theta[:2])[0], q_vectors.mT, lambda v: quadratic.hvp(theta[:2], v)])
    assert_close(shares.concentration(3.0), (q_values**2 / 5) / (q_values / 3))


@pytest.mark.parametrize("probes", [None, 200])
def test_noise_scales(probes):
    landscape, theta = regression(), draws(5)(12)
    operator, hvp = setting(landscape, theta)
    g, c, h = landscape.grad(theta), operator.dense(), landscape.hessian(theta)
    scales = noise_scales(operator, hvp, probes=probes)
    assert scales.simple == pytest.approx(float(c.trace() / g.square().sum()))
    expected = float((c @ h).trace() / (g @ h @ g))
    assert abs(scales.curved.value - expected) <= 4 * scales.curved.error + 1e-9 * expected
    assert (scales.curved.error == 0) == (probes is None)
    rest = noise_scales(*setting(NoisyQuadratic(h, 15, seed=0), torch.zeros(12).double()), probes=None)
    assert math.isinf(rest.simple)


def test_hill_on_pareto_has_the_index_and_the_error_it_says():
    generator, found = torch.Generator().manual_seed(0), []
    for _ in range(300):
        uniform = torch.rand(2000, generator=generator, dtype=torch.float64)
        found.append(hill_index(uniform ** (-1 / 2.5), 200))
    indices = torch.tensor([t.index for t in found], dtype=torch.float64)
    # 1/α is a mean of exponentials: its inverse is biased by 1 + 1/k, and deviates by α/√k
    assert float(indices.mean()) == pytest.approx(2.5 * 200 / 199, abs=4 * 2.5 / math.sqrt(200 * 300))
    assert float(indices.std()) == pytest.approx(2.5 / math.sqrt(200), rel=0.17)
    assert found[0].error == pytest.approx(found[0].index / math.sqrt(200))
    assert (found[0].count, hill_index(torch.ones(9), 3).index) == (200, math.inf)
    exact = hill_index(torch.tensor([1.0, math.e, math.e**2]).double(), 2)
    assert (exact.index, exact.cutoff) == pytest.approx((1 / 1.5, 1.0))


@given(st.floats(0.01, 100), st.integers(0, 99))
def test_hill_does_not_know_the_unit(scale, seed):
    samples = draws(seed)(50).abs()
    assert hill_index(scale * samples, 7).index == pytest.approx(hill_index(samples, 7).index)


def student_regression(n, nu, seed):
    """x uniform on the sphere and targets t_ν: ‖g_i‖ = |t| at θ = 0, of tail index ν."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64)
    chi = torch.randn(n, nu, generator=generator, dtype=torch.float64).square().sum(-1) / nu if nu else 1
    y = torch.randn(n, generator=generator, dtype=torch.float64) / (chi**0.5 if nu else 1)
    return LinearRegression(x / x.norm(dim=-1, keepdim=True), y)


@pytest.mark.parametrize("nu", [2, 3])
def test_student_targets_are_found_heavy_tailed(nu):
    operator = noise_covariance(student_regression(20_000, nu, seed=nu), torch.zeros(6, dtype=torch.float64))
    check = tail_check(operator, noise_spectrum(operator).eigenvalues, count=200, repeats=8)
    # the power is reached from below: at a hundredth of the sample t_ν is within a tenth of it
    assert check.examples.index == pytest.approx(nu, abs=4 * check.examples.error + 0.1 * nu)
    assert check.excess > 8
    assert check.gaussian > 3 * nu


def gaussian_examples(n, hessian):
    """f_i = ½(θ − γ_i)ᵀH(θ − γ_i), γ_i whitened normal: Gaussian noise of covariance H²."""
    return NoisyQuadratic(hessian, n, seed=5)


def test_gaussian_noise_is_not_found_heavy_tailed():
    for seed in range(3):
        hessian = symmetric([3.0, 1.0, 0.5, 0.1], seed)
        operator = noise_covariance(gaussian_examples(4000, hessian), torch.ones(4, dtype=torch.float64))
        check = tail_check(operator, noise_spectrum(operator).eigenvalues, seed=seed)
        assert abs(check.excess) < 3.5
        assert check.examples.count == 200
    assert check.gaussian_std < check.gaussian / 5


def test_gaussian_norms_have_the_trace_and_the_variance():
    values, generator = torch.tensor([4.0, 1.0, 0.0]).double(), torch.Generator().manual_seed(0)
    squares = gaussian_norms(values, 2.0, 40_000, generator).square()
    assert float(squares.mean()) == pytest.approx(7, abs=4 * math.sqrt(34 / 40_000))
    assert float(squares.var()) == pytest.approx(2 * (16 + 1), rel=0.1)
    assert float(squares.min()) >= 2


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("sampling", ["replacement", "subset"])
def test_kurtosis_of_every_batch_there_is(batch_size, sampling):
    landscape, theta, directions = regression(6, 3), draws(6)(3), draws(7)(4, 3)
    batches = (
        itertools.product(range(6), repeat=batch_size)
        if sampling == "replacement"
        else itertools.combinations(range(6), batch_size)
    )
    gradients = torch.stack([landscape.batch_grad(theta, torch.tensor(b)) for b in batches])
    found = batch_kurtosis(noise_covariance(landscape, theta), directions, batch_size, sampling)
    assert_close(found.batches, torch.from_numpy(kurtosis(gradients @ directions.mT)), rtol=1e-9, atol=1e-10)
    singles = landscape.example_grads(theta) @ directions.mT
    assert_close(found.examples, torch.from_numpy(kurtosis(singles)), rtol=1e-9, atol=1e-10)
    left_out = torch.stack([torch.from_numpy(kurtosis(singles[torch.arange(6) != i])) for i in range(6)])
    expected = (5 / 6 * (left_out - left_out.mean(0)).square().sum(0)).sqrt()
    assert_close(found.errors, expected, rtol=1e-9, atol=1e-10)


def test_kurtosis_of_gaussian_examples_and_of_laplace_like_ones():
    generator = torch.Generator().manual_seed(3)
    ones = torch.ones(5000, 1, dtype=torch.float64)
    along, theta = torch.ones(1, 1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    scores, errors = [], []
    for _ in range(60):
        normal = torch.randn(5000, generator=generator, dtype=torch.float64)
        found = batch_kurtosis(noise_covariance(LinearRegression(ones, normal), theta), along, 10)
        scores.append(float(found.examples) / found.gaussian_error)
        errors.append(float(found.errors) / found.gaussian_error)
        assert float(found.batches) == pytest.approx(float(found.examples) / 10)
    assert 0.6 < torch.tensor(scores).square().mean() < 1.5
    assert sum(errors) / 60 == pytest.approx(1, abs=0.1)
    signs = torch.where(torch.rand(5000, generator=generator) < 0.5, -1.0, 1.0).double()
    laplace = LinearRegression(ones, -torch.rand(5000, generator=generator, dtype=torch.float64).log() * signs)
    found = batch_kurtosis(noise_covariance(laplace, theta), along, 1)
    assert abs(float(found.examples) - 3) < 4 * float(found.errors)
    assert float(found.examples) > 10 * found.gaussian_error


def test_directions_without_noise_have_no_kurtosis(dtype, device):
    features = torch.cat([draws(8)(50, 2), torch.ones(50, 1)], dim=1)
    landscape = LinearRegression(features * torch.tensor([1.0, 1.0, 0.0]), draws(9)(50))
    theta = torch.full((3,), 0.3, dtype=dtype, device=device)
    operator = noise_covariance(landscape, theta)
    found = batch_kurtosis(operator, torch.eye(3, dtype=dtype, device=device), 5)
    assert found.examples.isnan().tolist() == [False, False, True]
    turned = LinearRegression(draws(8)(50, 2) @ rotation(3, 4)[:2], draws(9)(50))  # slopes that are rounding, not zero
    units = rotation(3, 4).to(device, dtype)
    assert batch_kurtosis(noise_covariance(turned, theta), units, 5).examples.isnan().tolist() == [False, False, True]
    directions = random_directions(operator, 4, seed=1)
    assert (directions.dtype, directions.device, directions.shape) == (dtype, theta.device, (4, 3))
    assert_close(directions.norm(dim=-1), torch.ones(4, dtype=dtype, device=device))


def test_what_is_refused():
    landscape, theta = regression(6, 3), draws(6)(3)
    operator, hvp = setting(landscape, theta)
    with pytest.raises(TypeError, match="noise_covariance"):
        alignment(landscape, hvp)
    with pytest.raises(ValueError, match="probes"):
        alignment(operator, hvp, probes=1)
    with pytest.raises(ValueError, match="basis"):
        alignment(operator, hvp, basis=theta)
    with pytest.raises(FloatingPointError, match="not finite"):
        alignment(operator, lambda v: v * math.nan)
    with pytest.raises(ValueError, match="not zero"):
        noise_along(operator, torch.zeros(1, 3).double(), hvp)
    with pytest.raises(ValueError, match="right"):
        subspace_overlap(torch.ones(1, 3), torch.ones(1, 4))
    with pytest.raises(ValueError, match="zero"):
        subspace_overlap(torch.ones(1, 3), torch.zeros(1, 3))
    for count in (0, 6):
        with pytest.raises(ValueError, match="count"):
            hill_index(torch.ones(6), count)
    with pytest.raises(ValueError, match="positive"):
        hill_index(torch.tensor([1.0, 0.0, 2.0]), 2)
    with pytest.raises(ValueError, match="repeats"):
        tail_check(operator, torch.ones(3), repeats=1)
    with pytest.raises(ValueError, match="no noise at b = N"):
        batch_kurtosis(operator, torch.eye(3).double(), 6, "subset")
    with pytest.raises(ValueError, match="number of examples"):
        batch_kurtosis(noise_covariance(regression(3, 3), theta), torch.eye(3).double(), 1)
