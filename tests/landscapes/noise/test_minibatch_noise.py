"""MinibatchNoise against dense algebra, every mini-batch there is, and differences for its Itô correction."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import Counted, NoisyQuadratic, QuadraticSum, Regularised, Rosenbrock, TwoQuadratics
from landscapes.landscape import FiniteSum
from landscapes.noise import GradientNoise, MinibatchNoise
from landscapes.noise import minibatch as module
from landscapes.sampling import SAMPLINGS
from tests.landscapes.noise.sums import dense_covariance, gradient_gaps, network, regression

SAMPLED = pytest.mark.parametrize("sampling", SAMPLINGS)


class Quartics(FiniteSum):
    """f_i(θ) = ¼ Σ_j a_ij θ_j⁴ + s_i θ_1 θ_2: curvatures that differ between examples and change with θ."""

    dimension = 2
    size = 5

    def losses(self, theta, index=None):
        a = torch.tensor([[1, 2], [3, 0.5], [-1, 1], [0.2, 4], [2, 2]], dtype=torch.float64).to(theta)
        s = torch.tensor([1, -2, 0.5, 3, 0.1], dtype=torch.float64).to(theta)
        every = theta[..., None, :].pow(4).mul(a).sum(-1) / 4 + s * theta.prod(-1, keepdim=True)
        if index is None:
            return every
        return every.gather(-1, index.expand(*every.shape[:-1], index.shape[-1]))


def quadratics(normal):
    a = normal(3, 6, 3, 3)
    return QuadraticSum(a + a.mT, normal(4, 6, 3))


SUMS = {
    "regression": regression,
    "quadratics": quadratics,
    "two-quadratics": lambda normal: TwoQuadratics(),
    "regularised": lambda normal: Regularised(regression(normal), 0.3),
    "quartics": lambda normal: Quartics(),
    "network": network,
    "chunked-network": lambda normal: network(normal, chunk_size=4),
}
sums = pytest.mark.parametrize("name", SUMS)


def factor_of(sampling, N, b):
    """c by hand."""
    return 1 / b if sampling == "replacement" else (N - b) / (b * (N - 1))


@sums
@SAMPLED
def test_moments_are_those_of_the_dense_covariance(name, sampling, normal):
    landscape = SUMS[name](normal)
    noise = MinibatchNoise(landscape, 2, sampling)
    theta = normal(5, 2, 2, landscape.dimension)
    c = factor_of(sampling, landscape.size, 2)
    expected = c * torch.stack([dense_covariance(landscape, x) for x in theta.reshape(4, -1)]).reshape(
        2, 2, *theta.shape[-1:] * 2
    )
    assert_close(noise.covariance(theta), expected, rtol=1e-10, atol=1e-12)
    assert_close(noise.diagonal(theta), expected.diagonal(dim1=-2, dim2=-1), rtol=1e-10, atol=1e-12)
    assert_close(noise.trace(theta), expected.diagonal(dim1=-2, dim2=-1).sum(-1), rtol=1e-10, atol=1e-12)
    assert noise.size == landscape.size
    assert noise.dimension == landscape.dimension


@sums
def test_the_factor_is_a_square_root_of_the_covariance(name, normal):
    landscape = SUMS[name](normal)
    noise, theta = MinibatchNoise(landscape, 2, "subset"), normal(6, landscape.dimension)
    N = landscape.size
    root = math.sqrt(factor_of("subset", N, 2) / N) * gradient_gaps(landscape, theta).mT  # (d, N)
    xi = normal(7, 4, N)
    assert_close(noise.factor(theta, xi), xi @ root.mT, rtol=1e-10, atol=1e-12)
    assert_close(noise.columns(theta), root.mT, rtol=1e-10, atol=1e-12)
    assert_close(GradientNoise.covariance(noise, theta), noise.covariance(theta), rtol=1e-10, atol=1e-12)
    assert_close(landscape.weighted_grad(theta, noise.weights(xi)), noise.factor(theta, xi), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["regression", "quartics", "network"])
def test_noise_has_the_law_of_its_covariance(name, normal):
    """The symmetric root and Gξ are two noises of one law: Cov = GGᵀ, from the samples' second moment."""
    landscape = SUMS[name](normal)
    noise, theta = MinibatchNoise(landscape, 1), normal(8, landscape.dimension)
    samples = 4000
    draws = noise.columns(theta).mT @ normal(9, noise.size, samples)  # (d, samples)
    assert_close(draws[:, :3].mT, noise.factor(theta, normal(9, noise.size, samples).mT[:3]), rtol=1e-10, atol=1e-12)
    covariance = noise.covariance(theta)
    # ‖sample − exact‖ in Frobenius norm has mean square (tr² + ‖C‖²)/n: six of its roots
    bound = 6 * ((covariance.trace() ** 2 + covariance.square().sum()) / samples).sqrt()
    assert (draws @ draws.mT / samples - covariance).norm() < bound


def batch_covariance(landscape, theta, batches):
    """The second moment of batch gradients around their mean, over equally likely batches."""
    grads = torch.stack([landscape.batch_grad(theta, torch.tensor(batch)) for batch in batches])
    assert_close(grads.mean(0), landscape.grad(theta), rtol=1e-9, atol=1e-10)
    gaps = grads - landscape.grad(theta)
    return gaps.mT @ gaps / len(gaps)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
@pytest.mark.parametrize("name", ["regression", "quartics"])
def test_covariance_over_every_batch(name, batch_size, normal):
    landscape = regression(normal, 4) if name == "regression" else Quartics().restrict(torch.arange(4))
    theta, N = normal(10, landscape.dimension), 4
    drawn = batch_covariance(landscape, theta, list(itertools.product(range(N), repeat=batch_size)))
    assert_close(MinibatchNoise(landscape, batch_size).covariance(theta), drawn, rtol=1e-9, atol=1e-11)
    subsets = batch_covariance(landscape, theta, list(itertools.combinations(range(N), batch_size)))
    assert_close(MinibatchNoise(landscape, batch_size, "subset").covariance(theta), subsets, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_subsets_of_eight(batch_size, normal):
    landscape, theta = regression(normal, 8), normal(11, 3)
    subsets = batch_covariance(landscape, theta, list(itertools.combinations(range(8), batch_size)))
    assert_close(MinibatchNoise(landscape, batch_size, "subset").covariance(theta), subsets, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_each_step_of_an_epoch_has_the_covariance(place, normal):
    landscape, theta = regression(normal, 6), normal(12, 3)
    batches = [order[2 * place : 2 * place + 2] for order in itertools.permutations(range(6))]
    drawn = batch_covariance(landscape, theta, batches)
    assert_close(MinibatchNoise(landscape, 2, "epoch").covariance(theta), drawn, rtol=1e-9, atol=1e-11)


@sums
@pytest.mark.parametrize("sampling", ["subset", "epoch"])
def test_the_full_batch_without_replacement_has_no_noise(name, sampling, normal):
    landscape = SUMS[name](normal)
    noise, theta = MinibatchNoise(landscape, landscape.size, sampling), normal(13, landscape.dimension)
    zero = torch.zeros_like(theta)
    assert_close(noise.factor(theta, normal(14, landscape.size)), zero, rtol=0, atol=0)
    assert_close(noise.ito_correction(theta), zero, rtol=0, atol=0)
    assert_close(noise.diagonal(theta), zero, rtol=0, atol=0)
    assert float(noise.trace(theta)) == 0
    assert MinibatchNoise(landscape, landscape.size).trace(theta) > 0


@sums
@SAMPLED
def test_ito_correction_is_the_sum_over_columns(name, sampling, normal):
    landscape = SUMS[name](normal)
    noise, theta = MinibatchNoise(landscape, 2, sampling), normal(15, 2, landscape.dimension)
    assert_close(noise.ito_correction(theta), GradientNoise.ito_correction(noise, theta), rtol=1e-9, atol=1e-11)


@sums
def test_trace_gradient_and_ito_correction_against_differences(name, normal):
    landscape = SUMS[name](normal)
    noise, theta = MinibatchNoise(landscape, 2), normal(16, landscape.dimension)
    step = 1e-5  # cube root of eps: central differences err by about 1e-10 of the third derivative
    shifts = step * torch.eye(landscape.dimension, dtype=torch.float64)
    slopes = (noise.trace(theta + shifts) - noise.trace(theta - shifts)) / (2 * step)
    assert_close(noise.trace_gradient(theta), slopes, rtol=1e-6, atol=1e-7)
    assert_close(noise.ito_correction(theta), slopes / 4, rtol=1e-6, atol=1e-7)
    assert_close(noise.trace_gradient(theta), GradientNoise.trace_gradient(noise, theta), rtol=1e-9, atol=1e-11)


@sums
def test_ito_correction_against_differences_of_columns(name, normal):
    """½ Σ_j (∂σ_j)σ_j, each column moved along itself."""
    landscape = SUMS[name](normal)
    noise, theta = MinibatchNoise(landscape, 2), normal(17, landscape.dimension)
    step = 1e-5
    columns = noise.columns(theta)
    moved = [
        (noise.columns(theta + step * column)[j] - noise.columns(theta - step * column)[j]) / (2 * step)
        for j, column in enumerate(columns)
    ]
    assert_close(noise.ito_correction(theta), torch.stack(moved).sum(0) / 2, rtol=1e-6, atol=1e-7)


def test_additive_noise_has_no_ito_correction(normal):
    """D = H² whatever θ is."""
    hessian = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    noise, theta = MinibatchNoise(NoisyQuadratic(hessian, 9, seed=1), 3), normal(18, 4, 2)
    assert_close(noise.covariance(theta), (hessian @ hessian / 3).expand(4, 2, 2), rtol=1e-11, atol=1e-12)
    assert_close(noise.ito_correction(theta), torch.zeros_like(theta), rtol=0, atol=1e-13)


@sums
def test_members_of_a_batch_are_single_runs(name, normal):
    landscape = SUMS[name](normal)
    noise = MinibatchNoise(landscape, 2)
    theta, xi = normal(19, 2, 3, landscape.dimension), normal(20, 2, 3, landscape.size)
    quantities = {
        "factor": (noise.factor(theta, xi), lambda i, j: noise.factor(theta[i, j], xi[i, j])),
        "covariance": (noise.covariance(theta), lambda i, j: noise.covariance(theta[i, j])),
        "diagonal": (noise.diagonal(theta), lambda i, j: noise.diagonal(theta[i, j])),
        "trace": (noise.trace(theta), lambda i, j: noise.trace(theta[i, j])),
        "ito": (noise.ito_correction(theta), lambda i, j: noise.ito_correction(theta[i, j])),
    }
    for batched, single in quantities.values():
        each = torch.stack([torch.stack([single(i, j) for j in range(3)]) for i in range(2)])
        assert_close(batched, each, rtol=1e-11, atol=1e-13)
    assert_close(noise.factor(theta[0, 0], xi)[1, 2], noise.factor(theta[0, 0], xi[1, 2]), rtol=1e-11, atol=1e-13)
    assert noise.factor(theta, xi[0, 0]).shape == theta.shape


@given(seed=st.integers(0, 2**31), a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_the_factor_is_linear_and_blind_to_a_common_shift(normal, seed, a, b):
    noise, theta = MinibatchNoise(Quartics(), 2), normal(seed, 2)
    v, w = normal(seed + 1, 2, 5)
    combined = a * noise.factor(theta, v) + b * noise.factor(theta, w)
    # rounding is that of the gradients, quartic in θ
    tolerance = 1e-12 * (1 + float(theta.abs().max())) ** 3
    assert_close(noise.factor(theta, a * v + b * w + 7.0), combined, rtol=1e-10, atol=10 * tolerance)


@pytest.mark.parametrize("block", [1, 4])
def test_blocks_add_up_to_the_whole(block, monkeypatch, normal):
    noise, theta = MinibatchNoise(regression(normal, 11), 2), normal(21, 2, 3)
    whole = noise.ito_correction(theta)
    monkeypatch.setattr(module, "BLOCK", block)
    assert_close(noise.ito_correction(theta), whole, rtol=1e-12, atol=1e-14)


def test_dtype_and_device_of_theta(normal, dtype, device):
    noise = MinibatchNoise(regression(normal), 2)
    theta, xi = normal(22, 2, 3, dtype=dtype).to(device), normal(23, 2, 7, dtype=dtype).to(device)
    exact = MinibatchNoise(regression(normal), 2)
    tolerance = 200 * torch.finfo(dtype).eps
    for got, expected in [
        (noise.factor(theta, xi), exact.factor(theta.double(), xi.double())),
        (noise.covariance(theta), exact.covariance(theta.double())),
        (noise.ito_correction(theta), exact.ito_correction(theta.double())),
    ]:
        assert (got.dtype, got.device.type) == (dtype, device.type)
        assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_results_carry_no_graph_unless_theta_asks(normal):
    noise, theta, xi = MinibatchNoise(Quartics(), 2), normal(24, 2), normal(25, 5)
    assert not any(x.requires_grad for x in (noise.factor(theta, xi), noise.trace(theta), noise.ito_correction(theta)))
    assert noise.factor(theta.clone().requires_grad_(), xi).requires_grad


def test_a_factor_costs_one_gradient(normal):
    counted = Counted(regression(normal))
    noise = MinibatchNoise(counted, 2)
    noise.factor(normal(26, 4, 3), normal(27, 4, 7))
    assert counted.counts == {"loss": 0, "grad": 4, "hvp": 0, "third": 0, "higher": 0}


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("batch_size", [8, 100])
def test_a_batch_larger_than_the_sum_is_refused(sampling, batch_size, normal):
    with pytest.raises(ValueError, match=rf"batch_size must be at most the number of examples, 7, got {batch_size}"):
        MinibatchNoise(regression(normal), batch_size, sampling)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0,), ValueError, "batch_size must be at least 1, got 0"),
        ((2.0,), TypeError, "batch_size must be a whole number"),
        ((2, "shuffled"), ValueError, "sampling must be one of 'replacement', 'subset', 'epoch', got 'shuffled'"),
    ],
)
def test_wrong_arguments(arguments, error, message, normal):
    with pytest.raises(error, match=message):
        MinibatchNoise(regression(normal), *arguments)


def test_a_loss_without_examples_is_refused():
    with pytest.raises(TypeError, match="landscape must be a FiniteSum"):
        MinibatchNoise(Rosenbrock(), 2)


@pytest.mark.parametrize(
    ("xi", "error", "message"),
    [
        (torch.zeros(6, dtype=torch.float64), ValueError, r"xi must have shape \(..., 7\)"),
        (torch.tensor(1.0, dtype=torch.float64), ValueError, r"xi must have shape \(..., 7\)"),
        (torch.zeros(7), ValueError, "theta's dtype torch.float64"),
        (torch.zeros(7, dtype=torch.int64), TypeError, "xi must have a floating dtype"),
        ([0.0] * 7, TypeError, "xi must be a torch.Tensor"),
    ],
)
def test_wrong_normals(xi, error, message, normal):
    with pytest.raises(error, match=message):
        MinibatchNoise(regression(normal), 2).factor(normal(28, 3), xi)


@pytest.mark.parametrize("method", ["covariance", "diagonal", "trace", "ito_correction"])
def test_theta_of_another_dimension_is_refused(method, normal):
    with pytest.raises(ValueError, match=r"theta must have shape \(..., 3\), got \(4,\)"):
        getattr(MinibatchNoise(regression(normal), 2), method)(normal(29, 4))
