"""Isotropic, diagonal, constant, frozen and variance-reduced noises: moments, Itô corrections, zero and wrong input."""

import dataclasses
import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import Counted, LinearRegression, QuadraticSum, Regularised, Rosenbrock
from landscapes.noise import GradientNoise, MinibatchNoise
from landscapes.noise.analytic import AnalyticNoise, ConstantNoise
from landscapes.noise.label import LabelNoise
from landscapes.noise.surrogates import (
    DiagonalNoise,
    DiagonalSurrogate,
    FrozenNoise,
    IsotropicNoise,
    IsotropicSurrogate,
    freeze,
)
from landscapes.noise.variance_reduced import VarianceReducedNoise
from nets import MLP, NetworkLandscape, cross_entropy
from tests.landscapes.noise.sums import differenced_ito

D = 3


def quadratics(normal):
    a = normal(0, 6, D, D)
    return QuadraticSum(a + a.mT, normal(1, 6, D))


def network(normal):
    return NetworkLandscape(MLP((2, 2, 2)).double(), cross_entropy, normal(2, 6, 2), torch.arange(6) % 2)


def multiplicative(normal):
    """σ = (θ_1, θ_2², 1 + θ_3)ᵀ down the diagonal: component by component."""
    return AnalyticNoise(
        D, D, lambda x: torch.diag_embed(torch.stack([x[..., 0], x[..., 1] ** 2, 1 + x[..., 2]], -1)), "diagonal"
    )


WRAPPED = {
    "minibatch": lambda normal: MinibatchNoise(quadratics(normal), 2),
    "minibatch-network": lambda normal: MinibatchNoise(network(normal), 2, "subset"),
    "diagonal": multiplicative,
    "label": lambda normal: LabelNoise(LinearRegression(normal(3, 5, D), normal(4, 5)), 0.4),
    "variance-reduced": lambda normal: VarianceReducedNoise(quadratics(normal), 2, normal(5, D)),
    "surrogate": lambda normal: DiagonalSurrogate(MinibatchNoise(quadratics(normal), 2)),
}
NOISES = WRAPPED | {
    "isotropic": lambda normal: IsotropicNoise(0.7, D),
    "constant-diagonal": lambda normal: DiagonalNoise(normal(6, D).square()),
    "constant": lambda normal: ConstantNoise(normal(7, D, 2)),
    "frozen": lambda normal: FrozenNoise(MinibatchNoise(quadratics(normal), 2), normal(8, D)),
    "variance-reduced-network": lambda normal: VarianceReducedNoise(network(normal), 2, normal(9, 12), "epoch"),
    "isotropic-surrogate": lambda normal: IsotropicSurrogate(MinibatchNoise(quadratics(normal), 2)),
    "diagonal-surrogate": lambda normal: DiagonalSurrogate(MinibatchNoise(network(normal), 2)),
    "diagonal-surrogate-of-diagonal": lambda normal: DiagonalSurrogate(multiplicative(normal)),
}
noises = pytest.mark.parametrize("name", NOISES)
wrapped = pytest.mark.parametrize("name", WRAPPED)


def trace_of(matrix):
    return matrix.diagonal(dim1=-2, dim2=-1).sum(-1)


@noises
def test_moments_agree_with_the_factor(name, normal):
    noise = NOISES[name](normal)
    theta = normal(10, 2, 3, noise.dimension)
    columns = noise.factor(theta[..., None, :], torch.eye(noise.size, dtype=theta.dtype))
    assert_close(noise.columns(theta), columns, rtol=1e-10, atol=1e-12)
    expected = columns.mT @ columns
    assert expected.shape == (*theta.shape, noise.dimension)
    assert_close(noise.covariance(theta), expected, rtol=1e-10, atol=1e-11)
    assert_close(noise.diagonal(theta), expected.diagonal(dim1=-2, dim2=-1), rtol=1e-10, atol=1e-11)
    assert_close(noise.trace(theta), trace_of(expected), rtol=1e-10, atol=1e-11)
    xi = normal(11, 3, noise.size)
    assert_close(noise.factor(theta, xi), (xi[:, None, :] @ columns)[..., 0, :], rtol=1e-10, atol=1e-11)


@noises
def test_leading_dimensions_broadcast(name, normal):
    noise = NOISES[name](normal)
    theta, xi = normal(12, 2, noise.dimension), normal(13, 4, 2, noise.size)
    many = noise.factor(theta, xi)
    assert many.shape == (4, 2, noise.dimension)
    for i, j in itertools.product(range(4), range(2)):
        assert_close(many[i, j], noise.factor(theta[j], xi[i, j]), rtol=1e-10, atol=1e-12)
    assert noise.factor(theta, xi[0, 0]).shape == theta.shape
    assert noise.factor(theta[0], xi).shape == (4, 2, noise.dimension)


@noises
def test_ito_correction_against_differences(name, normal):
    noise = NOISES[name](normal)
    theta = normal(14, 2, noise.dimension)
    expected = torch.stack([differenced_ito(noise, x) for x in theta])
    assert_close(noise.ito_correction(theta), expected, rtol=1e-5, atol=1e-7)
    assert noise.kind != "additive" or not expected.abs().gt(1e-9).any()


@noises
def test_trace_gradient_against_differences(name, normal):
    noise = NOISES[name](normal)
    theta, step = normal(15, noise.dimension), 1e-5
    shifts = step * torch.eye(noise.dimension, dtype=theta.dtype)
    slopes = (noise.trace(theta + shifts) - noise.trace(theta - shifts)) / (2 * step)
    assert_close(noise.trace_gradient(theta), slopes, rtol=1e-5, atol=1e-7)


@noises
def test_wrong_arguments_of_every_noise(name, normal):
    noise = NOISES[name](normal)
    theta = normal(16, noise.dimension)
    with pytest.raises(ValueError, match=rf"xi must have shape \(..., {noise.size}\)"):
        noise.factor(theta, normal(17, noise.size + 1))
    with pytest.raises(ValueError, match=r"theta's dtype torch\.float64"):
        noise.factor(theta, normal(17, noise.size).float())
    with pytest.raises(ValueError, match=rf"theta must have shape \(..., {noise.dimension}\)"):
        noise.diagonal(normal(18, noise.dimension + 1))
    with pytest.raises(dataclasses.FrozenInstanceError):
        noise.landscape = None


@noises
def test_no_graph_unless_theta_asks(name, normal):
    noise = NOISES[name](normal)
    theta, xi = normal(19, noise.dimension), normal(20, noise.size)
    assert not noise.factor(theta, xi.clone().requires_grad_()).requires_grad
    assert not noise.ito_correction(theta).requires_grad
    assert noise.factor(theta.clone().requires_grad_(), xi).requires_grad == (noise.kind != "additive")


@pytest.mark.parametrize("name", [n for n in NOISES if "network" not in n and n != "diagonal-surrogate"])
def test_both_precisions(name, normal, dtype, device):
    noise = NOISES[name](normal)
    theta, xi = normal(21, 2, noise.dimension), normal(22, noise.size)
    tolerance = 500 * torch.finfo(dtype).eps
    theta_here, xi_here = theta.to(device, dtype), xi.to(device, dtype)
    for got, expected in [
        (noise.factor(theta_here, xi_here), noise.factor(theta, xi)),
        (noise.covariance(theta_here), noise.covariance(theta)),
        (noise.ito_correction(theta_here), noise.ito_correction(theta)),
        (noise.trace_gradient(theta_here), noise.trace_gradient(theta)),
    ]:
        assert (got.dtype, got.device.type) == (dtype, device.type)
        assert_close(got.double().cpu(), expected, rtol=tolerance, atol=tolerance)


@wrapped
def test_surrogates_have_the_trace_and_the_diagonal(name, normal):
    noise = WRAPPED[name](normal)
    theta, d = normal(23, 4, noise.dimension), noise.dimension
    covariance = GradientNoise.covariance(noise, theta)
    trace = trace_of(covariance)
    identity = torch.eye(d, dtype=theta.dtype)
    isotropic, diagonal = IsotropicSurrogate(noise), DiagonalSurrogate(noise)
    assert_close(isotropic.covariance(theta), trace[:, None, None] / d * identity, rtol=1e-10, atol=1e-11)
    assert_close(diagonal.covariance(theta), covariance * identity, rtol=1e-10, atol=1e-11)
    assert isotropic.size == diagonal.size == d


def test_kinds():
    additive = IsotropicNoise(1.0, 2)
    general = MinibatchNoise(QuadraticSum(torch.eye(2).expand(3, 2, 2), torch.randn(3, 2)), 1)
    component = AnalyticNoise(2, 2, torch.diag_embed, "diagonal")
    line = AnalyticNoise(1, 3, lambda x: x[..., None] * torch.ones(1, 3, dtype=x.dtype))
    assert [IsotropicSurrogate(n).kind for n in (additive, general, component)] == ["additive", "general", "general"]
    assert [DiagonalSurrogate(n).kind for n in (additive, general, component)] == ["additive", "general", "diagonal"]
    assert IsotropicSurrogate(line).kind == "diagonal"


def test_zero_trace_makes_zero_noise_and_finite_corrections(normal):
    landscape, snapshot = quadratics(normal), normal(24, D)
    vanishing = [
        (MinibatchNoise(landscape, 6, "subset"), snapshot),
        (VarianceReducedNoise(landscape, 2, snapshot), snapshot),
        (AnalyticNoise(D, D, torch.diag_embed, "diagonal"), torch.zeros(D, dtype=torch.float64)),
    ]
    for noise, theta in vanishing:
        for surrogate in (IsotropicSurrogate(noise), DiagonalSurrogate(noise)):
            leaf = theta.clone().requires_grad_()
            value = surrogate.factor(leaf, normal(25, D))
            assert not value.any()
            assert not surrogate.ito_correction(theta).any()
            assert torch.autograd.grad(value.sum(), leaf)[0].isfinite().all()
            assert GradientNoise.ito_correction(surrogate, theta).isfinite().all()


@given(seed=st.integers(0, 2**31), variance=st.floats(0, 100))
def test_isotropic_noise_is_the_same_everywhere(normal, seed, variance):
    noise, theta = IsotropicNoise(variance, D), normal(seed, 2, D)
    assert_close(noise.covariance(theta), variance * torch.eye(D, dtype=theta.dtype).expand(2, D, D))
    assert_close(noise.trace(theta), torch.full((2,), variance * D, dtype=theta.dtype))


@wrapped
@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("surrogate", [lambda n: n, IsotropicSurrogate, DiagonalSurrogate])
def test_frozen_noise_keeps_the_covariance_of_one_point(name, dense, surrogate, normal):
    noise = surrogate(WRAPPED[name](normal))
    point, theta = normal(26, noise.dimension), normal(27, 2, noise.dimension)
    held = freeze(noise, point, dense=dense)
    # the root of a singular covariance is known to the root of rounding, its square to rounding
    assert_close(held.covariance(theta), noise.covariance(point).expand(2, *held.covariance(theta).shape[1:]))
    assert held.kind == "additive"
    assert held.trace(theta).shape == (2,)
    assert not held.ito_correction(theta).any()


def test_frozen_takes_the_simplest_form(normal):
    noise, point = MinibatchNoise(quadratics(normal), 2), normal(28, D)
    assert isinstance(freeze(noise, point), FrozenNoise)
    assert isinstance(freeze(noise, point, dense=True), ConstantNoise)
    assert isinstance(freeze(IsotropicSurrogate(noise), point), IsotropicNoise)
    assert isinstance(freeze(DiagonalSurrogate(noise), point), DiagonalNoise)
    constant = IsotropicNoise(1.0, D)
    assert freeze(constant, point) is constant
    root = freeze(noise, point, dense=True).root
    assert_close(root, root.mT)


def test_a_frozen_point_is_a_copy(normal):
    point = normal(29, D)
    tensors = [point.clone(), point.clone(), point.clone().square(), normal(30, D, 2)]
    noise = MinibatchNoise(quadratics(normal), 2)
    made = [
        FrozenNoise(noise, tensors[0]),
        VarianceReducedNoise(noise.landscape, 2, tensors[1]),
        DiagonalNoise(tensors[2]),
        ConstantNoise(tensors[3]),
    ]
    theta = normal(31, D)
    before = [it.trace(theta) for it in made]
    for tensor in tensors:
        tensor.zero_()
    for it, trace in zip(made, before, strict=True):
        assert_close(it.trace(theta), trace, rtol=0, atol=0)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_variance_reduced_noise_over_every_batch(batch_size, normal):
    """The second moment of g_B(θ) − g_B(θ̃) + ∇f(θ̃) − ∇f(θ)."""
    landscape, snapshot, theta = quadratics(normal).restrict(torch.arange(4)), normal(32, D), normal(33, D)

    def moment(batches):
        index = torch.tensor(list(batches))
        gaps = landscape.batch_grad(theta, index) - landscape.batch_grad(snapshot, index)
        gaps = gaps + landscape.grad(snapshot) - landscape.grad(theta)
        return gaps.mT @ gaps / len(gaps)

    drawn = moment(itertools.product(range(4), repeat=batch_size))
    assert_close(VarianceReducedNoise(landscape, batch_size, snapshot).covariance(theta), drawn)
    subsets = moment(itertools.combinations(range(4), batch_size))
    for sampling in ("subset", "epoch"):
        assert_close(VarianceReducedNoise(landscape, batch_size, snapshot, sampling).covariance(theta), subsets)


def test_variance_reduced_noise_vanishes_at_its_snapshot(normal):
    for landscape in (quadratics(normal), network(normal)):
        snapshot = normal(34, landscape.dimension)
        noise = VarianceReducedNoise(landscape, 2, snapshot)
        assert not noise.factor(snapshot, normal(35, 6)).any()
        assert not noise.covariance(snapshot).any()
        assert_close(noise.ito_correction(snapshot), torch.zeros_like(snapshot), rtol=0, atol=1e-15)
        # O(‖θ − θ̃‖²): a tenth of the distance, a hundredth of the trace
        v = 1e-3 * normal(36, landscape.dimension)
        ratio = noise.trace(snapshot + v) / noise.trace(snapshot + v / 10)
        assert_close(ratio, torch.tensor(100.0, dtype=torch.float64), rtol=2e-2, atol=0)


def test_a_snapshot_for_each_member(normal):
    landscape, snapshots, theta, xi = quadratics(normal), normal(37, 4, D), normal(38, 4, D), normal(39, 4, 6)
    noise = VarianceReducedNoise(landscape, 2, snapshots)
    for method in ("covariance", "diagonal", "trace", "ito_correction"):
        each = [getattr(VarianceReducedNoise(landscape, 2, snapshots[k]), method)(theta[k]) for k in range(4)]
        assert_close(getattr(noise, method)(theta), torch.stack(each))
    each = [VarianceReducedNoise(landscape, 2, snapshots[k]).factor(theta[k], xi[k]) for k in range(4)]
    assert_close(noise.factor(theta, xi), torch.stack(each))


def test_the_landscape_can_be_counted(normal):
    counted = Counted(Regularised(quadratics(normal), 0.1))
    noise = dataclasses.replace(VarianceReducedNoise(quadratics(normal), 2, normal(40, D)), landscape=counted)
    noise.factor(normal(41, 5, D), normal(42, 5, 6))
    assert counted.counts["grad"] == 10
    inner = MinibatchNoise(counted, 2)
    surrogate = dataclasses.replace(IsotropicSurrogate(IsotropicNoise(1.0, D)), noise=inner)
    surrogate.factor(normal(43, D), normal(44, D))
    assert counted.counts["grad"] == 12  # the mean and the examples' gradients


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: IsotropicNoise(-1.0, 2), ValueError, "variance must be at least zero, got -1.0"),
        (lambda: IsotropicNoise(float("inf"), 2), ValueError, "variance must be finite"),
        (lambda: IsotropicNoise(1.0, 0), ValueError, "dimension must be at least 1, got 0"),
        (lambda: IsotropicNoise(1.0, 2.0), TypeError, "dimension must be a whole number"),
        (lambda: IsotropicNoise(1.0), TypeError, "dimension"),
        (lambda: DiagonalNoise(torch.tensor([1.0, -2.0])), ValueError, "variances must be at least zero, got -2"),
        (lambda: DiagonalNoise(torch.eye(2)), ValueError, r"variances must have shape \(d,\), got \(2, 2\)"),
        (lambda: DiagonalNoise([1.0]), TypeError, "variances must be a torch.Tensor"),
        (lambda: ConstantNoise(torch.ones(2)), ValueError, r"root must have shape \(d, m\), got \(2,\)"),
        (lambda: ConstantNoise(torch.full((2, 2), float("nan"))), ValueError, "root must be finite"),
        (lambda: IsotropicSurrogate(Rosenbrock()), TypeError, "noise must be a GradientNoise, got Product|Rosenbrock"),
        (lambda: DiagonalSurrogate(None), TypeError, "noise must be a GradientNoise, got NoneType"),
        (lambda: freeze(IsotropicNoise(1.0, 2), torch.zeros(3)), ValueError, r"theta must have shape \(..., 2\)"),
        (
            lambda: freeze(IsotropicNoise(1.0, 2), torch.zeros(4, 2)),
            ValueError,
            r"one point, shape \(2,\), got \(4, 2\)",
        ),
        (lambda: freeze(None, torch.zeros(2)), TypeError, "noise must be a GradientNoise"),
        (lambda: FrozenNoise(IsotropicNoise(1.0, 1), torch.tensor([float("nan")])), ValueError, "theta must be finite"),
    ],
)
def test_wrong_arguments(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_wrong_arguments_of_variance_reduced_noise(normal):
    landscape = quadratics(normal)
    with pytest.raises(ValueError, match="batch_size must be at most the number of examples, 6, got 7"):
        VarianceReducedNoise(landscape, 7, normal(45, D))
    with pytest.raises(ValueError, match="sampling must be one of"):
        VarianceReducedNoise(landscape, 2, normal(45, D), "none")
    with pytest.raises(ValueError, match=r"theta must have shape \(..., 3\), got \(4,\)"):
        VarianceReducedNoise(landscape, 2, normal(45, D + 1))
    with pytest.raises(ValueError, match="snapshot must be finite"):
        VarianceReducedNoise(landscape, 2, torch.full((D,), float("nan"), dtype=torch.float64))
    with pytest.raises(TypeError, match="landscape must be a FiniteSum"):
        VarianceReducedNoise(Rosenbrock(), 2, normal(45, 2))
