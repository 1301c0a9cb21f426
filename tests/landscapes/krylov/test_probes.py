"""Traces and densities from random probes: exact moments, exact variances, error bars that are what they say."""

import math
from itertools import product as every

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2
from torch.testing import assert_close

from landscapes import Rosenbrock
from landscapes.krylov import Estimate, layer_traces, spectral_density, trace
from tests.landscapes.dense import Products, symmetric

SEEDS = 200
# squares of SEEDS normal numbers average to within these but one time in 10⁴
LOW, HIGH = (float(x) / SEEDS for x in chi2.ppf([5e-5, 1 - 5e-5], SEEDS))


def like(d, dtype=torch.float64, device="cpu"):
    return torch.zeros(d, dtype=dtype, device=device)


def probe_moments(matrix):
    """Mean, variance and fourth central moment of zᵀHz over all 2^d vectors of signs."""
    signs = torch.tensor(list(every((-1.0, 1.0), repeat=len(matrix))), dtype=torch.float64)
    forms = (signs @ matrix * signs).sum(-1)
    return forms.mean(), forms.var(correction=0), (forms - forms.mean()).pow(4).mean()


@given(st.integers(1, 8), st.integers(0, 999))
def test_variance_of_one_probe_over_all_vectors_of_signs(d, seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = symmetric(torch.randn(d, generator=generator, dtype=torch.float64), seed)
    mean, variance, fourth = probe_moments(matrix)
    off_diagonal = matrix - torch.diag(matrix.diagonal())
    assert_close(mean, matrix.trace(), rtol=1e-12, atol=1e-12)
    assert_close(variance, 2 * off_diagonal.square().sum(), rtol=1e-10, atol=1e-12)  # as trace() says
    # the estimator's own variance: the mean square, known to √((μ₄ − σ⁴)/n), less that of a mean known to σ/√n
    probes = 300
    estimate = trace(Products(matrix), like(d), probes, seed)
    measured = estimate.error**2 * probes
    spread = math.sqrt(max(float(fourth - variance**2), 0) / probes)
    assert abs(measured - float(variance)) < 5 * spread + 5**2 * float(variance) / probes + 1e-12
    assert abs(estimate.value - float(mean)) < 5 * math.sqrt(float(variance) / probes) + 1e-12


def test_probes_are_signs_and_differ(device, dtype):
    seen = []
    trace(lambda v: seen.append(v) or v, like(50, dtype, device), 20, seed=4)
    for v in seen:
        assert (v.dtype, v.device) == (dtype, torch.zeros(0, device=device).device)
    signs = torch.stack(seen).cpu().double()
    assert bool((signs.abs() == 1).all())
    assert abs(float(signs.mean())) < 4 / math.sqrt(1000)
    assert float((signs @ signs.mT / 50 - torch.eye(20, dtype=torch.float64)).abs().max()) < 5.5 / math.sqrt(50)


def test_mean_and_standard_error(normal):
    matrix, seen = symmetric(normal(9, 6)), []

    def product(v):
        seen.append(v @ matrix @ v)
        return matrix @ v

    estimate = trace(product, like(6), 5)
    samples = torch.stack(seen)
    assert estimate.value == pytest.approx(float(samples.mean()), rel=1e-12)
    assert estimate.error == pytest.approx(float(samples.std() / math.sqrt(5)), rel=1e-12)  # n − 1 in the deviation


def test_float32_sums_are_taken_in_double_precision():
    tenth = torch.tensor(0.1)
    estimate = trace(lambda v: tenth * v, like(100_001, torch.float32), 2)
    assert estimate.value == pytest.approx(100_001 * float(tenth), rel=1e-13)
    assert estimate.error == 0


def test_diagonal_hessian_has_no_variance():
    diagonal = torch.arange(-3, 5, dtype=torch.float64)
    assert trace(lambda v: diagonal * v, like(8), 2) == Estimate(4.0, 0.0, 2)


@pytest.mark.parametrize("probes", [10, 40])
def test_calibration_of_the_trace(probes, normal):
    matrix = symmetric(normal(0, 7))
    mean, variance, _ = probe_moments(matrix)
    estimates = [trace(Products(matrix), like(7), probes, seed) for seed in range(SEEDS)]
    values = torch.tensor([e.value for e in estimates], dtype=torch.float64)
    standardised = (values - mean) / (variance / probes).sqrt()
    assert LOW < float(standardised.square().mean()) < HIGH
    assert abs(float(standardised.mean())) < 4 / math.sqrt(SEEDS)  # unbiased
    # with its own error bar: Student's t, of variance (n − 1)/(n − 3)
    errors = torch.tensor([e.error for e in estimates], dtype=torch.float64)
    student = ((values - mean) / errors).square().mean()
    assert LOW < float(student) * (probes - 3) / (probes - 1) < HIGH


def test_layers_share_their_probes(normal):
    matrix = symmetric(normal(1, 12))
    layers = {"one": slice(0, 5), "two": slice(5, 6), "three": slice(6, 12)}
    product = Products(matrix)
    parts = layer_traces(product, like(12), layers, 25, seed=3)
    assert product.count == 25
    assert list(parts) == list(layers)
    whole = trace(Products(matrix), like(12), 25, seed=3)
    assert_close(sum(e.value for e in parts.values()), whole.value, rtol=1e-12, atol=1e-12)
    for name, part in layers.items():
        assert parts[name].products == 25
        assert abs(parts[name].value - float(matrix[part, part].trace())) < 4 * parts[name].error
    assert str(whole) == f"{whole.value:.6g} ± {whole.error:.2g} (25 HVPs)"


@given(st.data())
def test_quadrature_is_exact_for_moments_up_to_2m_minus_1(data):
    m, d, seed = data.draw(st.integers(1, 6)), 20, data.draw(st.integers(0, 999))
    generator = torch.Generator().manual_seed(seed)
    matrix = symmetric(torch.rand(d, generator=generator, dtype=torch.float64) * 2 - 1, seed)
    starts = []

    def product(v):
        starts.append(v.clone())
        return matrix @ v

    density = spectral_density(product, like(d), 2, m, seed)
    assert density.nodes.shape == density.weights.shape == (2, m)
    assert density.products == len(starts) == 2 * m
    for i, z in enumerate((starts[0], starts[m])):
        for power in range(2 * m + 1):
            quadrature = (density.weights[i] * density.nodes[i] ** power).sum()
            moment = z @ torch.linalg.matrix_power(matrix, power) @ z
            if power < 2 * m:
                assert_close(quadrature, moment, rtol=0, atol=1e-13)
            else:  # short by the square of the product of the betas
                assert 0 < float(moment - quadrature)


def smoothed(eigenvalues, grid, width):
    scale = 1 / (width * math.sqrt(2 * math.pi))
    return scale * torch.exp(-(((eigenvalues - grid[:, None]) / width) ** 2) / 2).mean(-1)


@pytest.mark.parametrize("probes", [10, 60])
def test_mean_and_error_cover_the_dense_density(probes, normal):
    # 30 steps in 30 dimensions: no error of quadrature, only that of the probes
    eigenvalues = torch.cat([normal(2, 27), torch.tensor([3.0, 6.0, -4.0])]).double()
    matrix = symmetric(eigenvalues)
    density = spectral_density(Products(matrix), like(30), probes, 60)
    assert density.nodes.shape == (probes, 30)
    grid = torch.linspace(-6, 8, 141, dtype=torch.float64)
    value, error = density.density(grid, 0.4)
    exact = smoothed(eigenvalues, grid, 0.4)
    share, share_error = density.cumulative(grid)
    exact_share = (eigenvalues <= grid[:, None]).double().mean(-1)
    for mean, bar, truth in ((value, error, exact), (share, share_error, exact_share)):
        score = (mean - truth).abs() / (bar + 1e-12)
        # Student's t of 9 degrees passes 4 three times in a thousand, at places that go together
        assert float((score > 4).double().mean()) < 0.1
        assert float((score < 1).double().mean()) > 0.4
    for function in (torch.exp, torch.square, torch.abs):
        estimate = density.mean(function)
        assert abs(estimate.value - float(function(eigenvalues).mean())) < 4 * estimate.error
        assert estimate.products == density.products == probes * 30
    assert abs(density.trace.value - float(matrix.trace())) < 4 * density.trace.error
    assert_close(torch.tensor(density.extremes), torch.tensor([-4.0, 6.0]), rtol=0, atol=1e-9)


def test_calibration_of_the_density(normal):
    # z uniform on the sphere: zᵀAz has variance 2 (tr A² − (tr A)²/d) / (d (d + 2)), so tr f(H)/d has it with A = f(H)
    d, probes = 12, 8
    eigenvalues = normal(3, d)
    matrix, values = symmetric(eigenvalues), torch.exp(eigenvalues)
    variance = 2 * (values.square().sum() - values.sum() ** 2 / d) / (d * (d + 2))
    estimates = [spectral_density(Products(matrix), like(d), probes, d, seed).mean(torch.exp) for seed in range(SEEDS)]
    errors = torch.tensor([e.value for e in estimates], dtype=torch.float64) - values.mean()
    assert LOW < float((errors.square() * probes / variance).mean()) < HIGH
    measured = torch.tensor([e.error for e in estimates], dtype=torch.float64).square().mean() * probes
    assert_close(measured, variance, rtol=0.15, atol=0)  # 1600 probes, whose squares have a kurtosis of a few


def test_normalisation(normal):
    density = spectral_density(Products(symmetric(normal(4, 40))), like(40), 5, 12)
    assert_close(density.weights.sum(-1), torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-13)
    assert bool((density.weights >= 0).all())
    grid = torch.linspace(-20, 20, 4001, dtype=torch.float64)
    value, error = density.density(grid, 0.3)
    assert value.shape == error.shape == grid.shape
    assert_close(torch.trapezoid(value, grid), torch.tensor(1.0, dtype=torch.float64), rtol=0, atol=1e-10)
    share, _ = density.cumulative(grid)
    assert bool((share.diff() >= 0).all())
    assert_close(share[[0, -1]], torch.tensor([0.0, 1.0], dtype=torch.float64), rtol=0, atol=1e-13)
    low, high = density.extremes
    before, at = density.cumulative(torch.tensor([low - 1e-9, low + 1e-9], dtype=torch.float64))[0].tolist()
    assert before == 0 < at
    assert float(density.nodes.max()) == high


def test_error_bars_shrink_with_the_root_of_the_probes(normal):
    matrix = symmetric(normal(5, 30))
    errors = {}
    for probes in (50, 800):
        density = spectral_density(Products(matrix), like(30), probes, 10)
        bars = [density.density(torch.zeros(1), 0.3)[1], density.cumulative(torch.zeros(1))[1]]
        errors[probes] = torch.tensor([trace(Products(matrix), like(30), probes).error, *map(float, bars)])
    # √16, by standard deviations that are known to 1/√(2·50) = 0.1: three of these
    ratios = errors[50] / errors[800]
    assert bool(((ratios > 4 * 0.7) & (ratios < 4 * 1.3)).all())


def test_extremes_approach_the_ends_from_within(normal):
    eigenvalues = torch.cat([normal(6, 296) / 10, torch.tensor([2.0, 1.5, -1.8, 0.9])]).double()
    matrix = symmetric(eigenvalues)
    ends = torch.tensor([-1.8, 2.0])
    for steps, accuracy in ((5, 0.5), (10, 0.05), (20, 1e-6)):
        found = torch.tensor(spectral_density(Products(matrix), like(300), 2, steps).extremes)
        assert -1.8 - 1e-12 <= float(found[0])
        assert float(found[1]) <= 2 + 1e-12
        assert float((found - ends).abs().max()) < accuracy


@pytest.mark.parametrize(("eigenvalues", "distinct"), [([0.0] * 9, 1), ([2, 2, -1, *[0] * 6], 3), ([1.5] * 9, 1)])
def test_a_space_that_ends_early_is_padded_without_weight(eigenvalues, distinct):
    product = Products(symmetric(eigenvalues))
    density = spectral_density(product, like(9), 4, 7)
    # rounding may pass for a new direction, once: of no weight, or a copy that shares an eigenvalue's
    assert 4 * distinct <= density.products == product.count <= 4 * (distinct + 1)
    assert density.nodes.shape == (4, 7)
    assert_close(density.weights.sum(-1), torch.ones(4, dtype=torch.float64))
    for nodes, weights in zip(density.nodes, density.weights, strict=True):
        assert {round(x, 9) for x in nodes[weights > 1e-20].tolist()} == set(eigenvalues)
    assert_close(torch.tensor(density.extremes), torch.tensor([float(min(eigenvalues)), max(eigenvalues)]))
    assert abs(density.trace.value - sum(eigenvalues)) < 4 * density.trace.error + 1e-12


def test_one_dimension():
    density = spectral_density(lambda v: -3 * v, like(1), 2, 5)
    assert density.nodes.tolist() == [[-3], [-3]]
    assert density.trace == Estimate(-3.0, 0.0, 2)
    assert trace(lambda v: -3 * v, like(1), 2) == Estimate(-3.0, 0.0, 2)


def test_float32_and_devices(normal, device):
    eigenvalues = normal(7, 60)
    matrix = symmetric(eigenvalues)
    product = Products(matrix.to(device, torch.float32))
    density = spectral_density(product, like(60, torch.float32, device), 20, 60)
    assert (density.nodes.dtype, density.nodes.device.type) == (torch.float64, "cpu")
    grid = torch.linspace(-3, 3, 61, device=device)
    value, error = density.density(grid, 0.3)
    score = (value - smoothed(eigenvalues, grid.cpu().double(), 0.3)).abs() / error
    assert float((score > 4).double().mean()) < 0.1
    # reorthogonalised, the nodes of all 60 steps are the eigenvalues: none lost, none double
    assert_close(density.nodes, eigenvalues.sort().values.expand(20, 60), rtol=0, atol=2e-5)
    estimate = trace(product, like(60, torch.float32, device), 30)
    assert abs(estimate.value - float(matrix.trace())) < 4 * estimate.error


def test_seeds(normal):
    product = Products(symmetric(normal(8, 10)))
    assert trace(product, like(10), seed=1) == trace(product, like(10), seed=1) != trace(product, like(10), seed=2)
    one, same, other = (spectral_density(product, like(10), 2, 4, seed).nodes for seed in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_products_that_are_not_finite(bad):
    estimate = trace(lambda v: bad * v, like(4), 5)
    assert math.isnan(estimate.value)
    assert math.isnan(estimate.error)
    assert estimate.products == 5
    diagonal = torch.tensor([1, 1, bad, 1], dtype=torch.float64)
    parts = layer_traces(lambda v: diagonal * v, like(4), {"sound": slice(0, 2), "spoilt": slice(2, 4)}, 5)
    assert parts["sound"] == Estimate(2.0, 0.0, 5)
    assert math.isnan(parts["spoilt"].value)
    with pytest.raises(FloatingPointError, match="a Hessian-vector product is not finite"):
        spectral_density(lambda v: diagonal * v, like(4))


@pytest.mark.filterwarnings("error")
def test_no_graph_is_kept():
    theta = torch.tensor([0.3, 0.2], dtype=torch.float64, requires_grad=True)
    hvp = Rosenbrock().expand(theta).hvp
    assert not spectral_density(hvp, theta, 2, 2).nodes.requires_grad
    assert abs(trace(hvp, theta, 10).value - float(Rosenbrock().hessian(theta.detach()).trace())) < 250


LIKE = like(4)
CALLS = {
    "trace": lambda **changed: trace(**({"product": lambda v: v, "like": LIKE} | changed)),
    "density": lambda **changed: spectral_density(**({"product": lambda v: v, "like": LIKE} | changed)),
}
ERRORS = {
    "like a list": ({"like": [0.0]}, TypeError, "like must be a torch.Tensor"),
    "like whole": ({"like": torch.zeros(3, dtype=torch.int64)}, TypeError, "like must have a floating dtype"),
    "like a matrix": ({"like": torch.zeros(2, 3)}, ValueError, r"like must be one real vector \(d,\), got \(2, 3\)"),
    "like complex": ({"like": LIKE + 0j}, ValueError, "like must be one real vector"),
    "one probe": ({"probes": 1}, ValueError, "probes must be at least 2, got 1"),
    "probes a float": ({"probes": 4.0}, TypeError, "probes must be a whole number"),
    "seed": ({"seed": -1}, ValueError, "seed must be at least 0"),
}


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("case", ERRORS)
def test_errors(call, case):
    changed, error, message = ERRORS[case]
    with pytest.raises(error, match=message):
        CALLS[call](**changed)


def test_errors_of_their_own():
    with pytest.raises(ValueError, match="layers must name at least one part of theta"):
        layer_traces(lambda v: v, LIKE, {})
    with pytest.raises(ValueError, match="steps must be at least 1"):
        spectral_density(lambda v: v, LIKE, steps=0)
    density = spectral_density(lambda v: v, LIKE)
    with pytest.raises(ValueError, match="width must be positive"):
        density.density(torch.zeros(2), 0.0)
    for call in (density.cumulative, lambda grid: density.density(grid, 1.0)):
        with pytest.raises(TypeError, match=r"grid must be a torch\.Tensor"):
            call([0.0])
        with pytest.raises(ValueError, match=r"grid must be one real vector \(n,\), got \(\)"):
            call(torch.tensor(0.0))
