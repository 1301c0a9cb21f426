"""The trace of the gradient noise's covariance against the dense matrix, and against enumerated mini-batches."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from landscapes import LinearRegression, NoisyQuadratic, Regularised, TwoQuadratics
from landscapes.noise import covariance_diagonal, covariance_matrix, covariance_trace, trace
from tests.landscapes.noise.sums import dense_covariance, network, regression

SUMS = {
    "regression": regression,
    "two-quadratics": lambda normal: TwoQuadratics(),
    "regularised": lambda normal: Regularised(regression(normal), 0.3),
    "network": network,
}
sums = pytest.mark.parametrize("name", SUMS)


@sums
def test_trace_of_the_dense_covariance(name, normal):
    landscape = SUMS[name](normal)
    theta = normal(3, 2, 2, landscape.dimension)
    expected = torch.stack([dense_covariance(landscape, x).trace() for x in theta.reshape(4, -1)]).reshape(2, 2)
    assert_close(covariance_trace(landscape, theta), expected, rtol=1e-10, atol=1e-12)
    assert covariance_trace(landscape, theta[0, 0]).shape == ()


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_mean_square_of_every_mini_batch(batch_size, normal):
    landscape, theta = regression(normal, n=4), normal(4, 3)
    full = landscape.grad(theta)

    def mean_square(batches):
        gaps = [landscape.batch_grad(theta, torch.tensor(batch)) - full for batch in batches]
        return torch.stack(gaps).square().sum(dim=-1).mean()

    trace = covariance_trace(landscape, theta)
    assert_close(mean_square(list(itertools.product(range(4), repeat=batch_size))), trace / batch_size)
    subsets = mean_square(list(itertools.combinations(range(4), batch_size)))
    assert_close(subsets, trace / batch_size * (4 - batch_size) / 3)


def test_the_noisy_quadratic_has_covariance_h_squared(normal):
    hessian = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    landscape = NoisyQuadratic(hessian, 9, seed=1)
    expected = (hessian @ hessian).trace().expand(3)
    assert_close(covariance_trace(landscape, normal(5, 3, 2)), expected, rtol=1e-12, atol=1e-12)


def test_blocks_add_up_to_the_whole(monkeypatch, normal):
    landscape, theta = regression(normal, n=11), normal(6, 2, 3)
    whole = covariance_trace(landscape, theta)
    monkeypatch.setattr(trace, "BLOCK", 4)
    assert_close(covariance_trace(landscape, theta), whole, rtol=1e-13, atol=0)


def test_one_example_makes_no_noise(normal):
    landscape = regression(normal, n=1)
    assert float(covariance_trace(landscape, normal(7, 3))) == 0


def test_dtype_and_device_of_theta(normal, dtype, device):
    trace = covariance_trace(regression(normal), normal(8, 2, 3, dtype=dtype).to(device))
    assert (trace.dtype, trace.device.type, trace.shape) == (dtype, device.type, (2,))


def test_at_complex_theta_variances_are_those_of_the_modulus(normal):
    landscape = LinearRegression(normal(0, 5, 3), normal(1, 5))
    theta = torch.complex(normal(2, 2, 3), normal(3, 2, 3))
    rows = landscape.example_grads(theta) - landscape.grad(theta)[:, None]
    expected = torch.einsum("bni,bnj->bij", rows, rows.conj()) / 5
    assert_close(covariance_matrix(landscape, theta), expected)
    assert_close(covariance_diagonal(landscape, theta), expected.diagonal(dim1=-2, dim2=-1).real)
    assert_close(covariance_trace(landscape, theta), expected.diagonal(dim1=-2, dim2=-1).real.sum(-1))
