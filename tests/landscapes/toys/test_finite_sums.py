"""Stochastic toys: closed forms against autograd over their losses, sums against means, the oracle's moments."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import LinearRegression, NoisyQuadratic, QuadraticSum, TwoQuadratics
from landscapes.expansion import AutogradExpansion
from landscapes.landscape import FiniteSum
from landscapes.toys.finite_sums import FINITE_SUMS

INDEFINITE = torch.tensor([[1.0, 2.0, 0.5], [2.0, -1.0, 0.3], [0.5, 0.3, 0.2]], dtype=torch.float64)


def random_quadratics():
    a = torch.randn(5, 3, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    c = torch.randn(5, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return QuadraticSum(a + a.mT, c)


def wide_regression():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(3, 7, generator=generator, dtype=torch.float64)
    return LinearRegression(x, torch.randn(3, generator=generator, dtype=torch.float64))


SUMS = FINITE_SUMS | {
    "quadratic-sum": random_quadratics,
    "wide-regression": wide_regression,
    "indefinite-noisy-quadratic": lambda: NoisyQuadratic(INDEFINITE, size=4, seed=5),
}
sums = pytest.mark.parametrize("name", SUMS)
seeds = st.integers(0, 2**31)


def indices(landscape, seed, *shape):
    return torch.randint(landscape.size, shape, generator=torch.Generator().manual_seed(seed))


@sums
@given(seed=seeds)
def test_derivatives_equal_autograd(name, normal, seed):
    landscape = SUMS[name]()
    theta, u, v = normal(seed, 3, 4, landscape.dimension)
    closed, traced = landscape.expand(theta), AutogradExpansion(lambda x: landscape.losses(x).mean(dim=-1), theta)
    assert_close(landscape.loss(theta), traced.loss, rtol=1e-11, atol=1e-11)
    assert_close(landscape.grad(theta), traced.grad, rtol=1e-11, atol=1e-11)
    assert_close(closed.hvp(v), traced.hvp(v), rtol=1e-11, atol=1e-11)
    assert_close(closed.third(u, v), traced.third(u, v), rtol=1e-11, atol=1e-11)
    assert_close(closed.hessian(), traced.hessian(), rtol=1e-11, atol=1e-11)


@sums
@pytest.mark.parametrize("batch", [(), (4,), (2, 3)], ids=str)
def test_example_quantities_equal_the_base_class(name, normal, batch):
    landscape = SUMS[name]()
    theta, weights = normal(1, *batch, landscape.dimension), normal(2, *batch, landscape.size)
    assert_close(landscape.weighted_grad(theta, weights), FiniteSum.weighted_grad(landscape, theta, weights))
    assert_close(
        landscape.weighted_grad(theta, weights), landscape.example_grads(theta).mT.matmul(weights[..., None])[..., 0]
    )
    assert_close(landscape.example_grads(theta), FiniteSum.example_grads(landscape, theta))
    for index in (indices(landscape, 3, 5), indices(landscape, 4, *batch, 5)):
        assert_close(landscape.batch_grad(theta, index), FiniteSum.batch_grad(landscape, theta, index))
        assert_close(landscape.example_grads(theta, index), FiniteSum.example_grads(landscape, theta, index))
        assert_close(
            landscape.losses(theta, index).mean(-1), landscape_losses_by_hand(landscape, theta, index).mean(-1)
        )


def landscape_losses_by_hand(landscape, theta, index):
    """The chosen losses gathered from all N."""
    every = landscape.losses(theta)
    return every.gather(-1, index.expand(*every.shape[:-1], index.shape[-1]))


@sums
def test_a_selection_for_each_member_may_widen_the_batch(name, normal):
    landscape = SUMS[name]()
    theta, index = normal(5, landscape.dimension), indices(landscape, 6, 4, 3)
    each = torch.stack([landscape.batch_grad(theta, row) for row in index])
    assert_close(landscape.batch_grad(theta, index), each)
    assert landscape.example_grads(theta, index).shape == (4, 3, landscape.dimension)
    assert landscape.losses(theta, index).shape == (4, 3)


@sums
@given(seed=seeds, a=st.floats(-3, 3), b=st.floats(-3, 3))
def test_weighted_grad_is_linear_and_means_agree(name, normal, seed, a, b):
    landscape = SUMS[name]()
    theta = normal(seed, 4, landscape.dimension)
    v, w = normal(seed + 1, 2, 4, landscape.size)
    assert_close(
        landscape.weighted_grad(theta, a * v + b * w),
        a * landscape.weighted_grad(theta, v) + b * landscape.weighted_grad(theta, w),
        rtol=1e-9,
        atol=1e-9,
    )
    everything = torch.arange(landscape.size)
    uniform = torch.full((landscape.size,), 1 / landscape.size, dtype=torch.float64)
    for grad in (
        landscape.example_grads(theta).mean(dim=-2),
        landscape.batch_grad(theta, everything),
        landscape.weighted_grad(theta, uniform),
    ):
        assert_close(grad, landscape.grad(theta), rtol=1e-10, atol=1e-10)


@sums
def test_restriction_is_the_mean_over_fewer(name, normal):
    landscape = SUMS[name]()
    theta, index = normal(7, 4, landscape.dimension), torch.arange(landscape.size).flip(0)[:3]
    part = landscape.restrict(index)
    assert (part.size, part.dimension, part.holomorphic) == (len(index), landscape.dimension, True)
    assert_close(part.loss(theta), landscape.losses(theta, index).mean(-1))
    assert_close(part.grad(theta), landscape.batch_grad(theta, index))
    assert_close(part.example_grads(theta, torch.tensor([1])), landscape.example_grads(theta, index[1:2]))


@sums
def test_complex_theta(name, normal):
    landscape = SUMS[name]()
    theta = torch.complex(*normal(8, 2, 4, landscape.dimension))
    weights, index = normal(9, 4, landscape.size), indices(landscape, 10, 4, 3)
    traced = AutogradExpansion(lambda x: landscape.losses(x).mean(dim=-1), theta)
    assert_close(landscape.grad(theta), traced.grad)
    assert_close(landscape.hvp(theta, theta), traced.hvp(theta))
    assert_close(landscape.weighted_grad(theta, weights), FiniteSum.weighted_grad(landscape, theta, weights))
    assert_close(landscape.batch_grad(theta, index), FiniteSum.batch_grad(landscape, theta, index))


@sums
def test_batch_shapes_dtype_and_device(name, normal, dtype, device):
    landscape = SUMS[name]()
    d, n = landscape.dimension, landscape.size
    for batch in ((), (3,), (2, 3)):
        theta = normal(11, *batch, d, dtype=dtype).to(device)
        index, weights = torch.zeros(2, dtype=torch.int64), normal(12, *batch, n).to(device)
        results = {
            landscape.loss(theta): batch,
            landscape.losses(theta): (*batch, n),
            landscape.losses(theta, index): (*batch, 2),
            landscape.grad(theta): (*batch, d),
            landscape.batch_grad(theta, index): (*batch, d),
            landscape.weighted_grad(theta, weights): (*batch, d),
            landscape.example_grads(theta, index): (*batch, 2, d),
            landscape.hvp(theta, theta): (*batch, d),
            landscape.hessian(theta): (*batch, d, d),
        }
        for result, shape in results.items():
            assert (result.shape, result.dtype, result.device) == (shape, dtype, theta.device)


@sums
def test_graph_only_where_theta_requires_grad(name, normal):
    landscape = SUMS[name]()
    theta, weights = normal(13, landscape.dimension), normal(14, landscape.size).requires_grad_()
    assert not landscape.weighted_grad(theta, weights).requires_grad
    theta.requires_grad_()
    for result in (landscape.grad(theta), landscape.weighted_grad(theta, weights), landscape.example_grads(theta)):
        assert result.requires_grad


@sums
def test_gradients_stand_inside_transforms(name, normal):
    landscape = SUMS[name]()
    theta, v = normal(15, 2, 4, landscape.dimension)
    weights = normal(16, 4, landscape.size)
    assert_close(torch.func.jvp(landscape.grad, (theta,), (v,))[1], landscape.hvp(theta, v))
    assert_close(torch.func.vmap(torch.func.grad(landscape.loss))(theta), landscape.grad(theta))
    assert_close(torch.func.vmap(landscape.weighted_grad)(theta, weights), landscape.weighted_grad(theta, weights))


def test_values_by_hand():
    regression = LinearRegression(torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.tensor([1.0, 3.0]))
    theta = torch.tensor([1.0, 1.0])
    assert_close(regression.losses(theta), torch.tensor([2.0, 2.0]))
    assert_close(regression.example_grads(theta), torch.tensor([[2.0, 4.0], [0.0, -2.0]]))
    assert_close(regression.grad(theta), torch.tensor([1.0, 1.0]))
    two = TwoQuadratics(ratio=4.0, separation=2.0)
    origin = torch.zeros(2, dtype=torch.float64)
    assert_close(two.losses(origin), torch.tensor([2.5, 2.5], dtype=torch.float64))
    assert_close(two.example_grads(origin), torch.tensor([[4.0, 1.0], [-1.0, -4.0]], dtype=torch.float64))
    assert_close(two.hessian(origin), 2.5 * torch.eye(2, dtype=torch.float64))


@given(seed=seeds, excess=st.integers(1, 40))
def test_noisy_quadratic_has_the_stated_mean_and_covariance(normal, seed, excess):
    landscape = NoisyQuadratic(INDEFINITE, size=3 + excess, seed=seed)
    theta = normal(seed, 4, 3)
    assert_close(landscape.losses(theta).mean(-1), (theta * (theta @ INDEFINITE)).sum(-1) / 2, rtol=1e-10, atol=1e-10)
    assert_close(landscape.loss(theta), landscape.losses(theta).mean(-1), rtol=1e-10, atol=1e-10)
    deviation = landscape.example_grads(theta) - landscape.grad(theta)[..., None, :]
    covariance = deviation.mT @ deviation / landscape.size
    assert_close(covariance, (INDEFINITE @ INDEFINITE).expand(4, 3, 3), rtol=1e-10, atol=1e-10)


def test_noisy_quadratic_depends_on_its_seed_alone():
    first, again, other = (NoisyQuadratic(INDEFINITE, 6, seed=s).centres for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert int(torch.linalg.matrix_rank(first - first[0])) == 3


def test_data_are_copied():
    x, y = torch.ones(2, 1), torch.ones(2)
    landscape = LinearRegression(x, y)
    x.zero_()
    assert float(landscape.grad(torch.zeros(1))) == -1.0


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: LinearRegression(torch.ones(3), torch.ones(3)), ValueError, r"features must have shape \(N, d\)"),
        (lambda: LinearRegression(torch.ones(3, 2), torch.ones(2)), ValueError, r"targets must have shape \(3,\)"),
        (lambda: LinearRegression(torch.ones(0, 2), torch.ones(0)), ValueError, "features must not be empty"),
        (lambda: LinearRegression([[1.0]], torch.ones(1)), TypeError, "features must be a torch.Tensor"),
        (lambda: LinearRegression(torch.ones(1, 1), torch.ones(1) / 0), ValueError, "targets must be finite"),
        (lambda: QuadraticSum(torch.eye(2), torch.ones(2)), ValueError, r"hessians must have shape \(N, d, d\)"),
        (lambda: QuadraticSum(torch.ones(3, 2, 2), torch.ones(2, 2)), ValueError, r"minima must have shape \(3, 2\)"),
        (lambda: QuadraticSum(torch.tensor([[[0.0, 1.0], [0.0, 0.0]]]), torch.ones(1, 2)), ValueError, "symmetric"),
        (lambda: TwoQuadratics(ratio=0.0), ValueError, "ratio must be positive"),
        (lambda: NoisyQuadratic(INDEFINITE, size=3, seed=0), ValueError, "size must be at least 4"),
        (lambda: NoisyQuadratic(INDEFINITE, size=4, seed=-1), ValueError, "seed must be at least 0"),
        (lambda: NoisyQuadratic(INDEFINITE[None], size=4, seed=1), ValueError, r"hessian must have shape \(d, d\)"),
        (lambda: TwoQuadratics().losses(torch.ones(2), torch.tensor([2])), ValueError, r"index must lie in \[0, 2\)"),
        (lambda: TwoQuadratics().losses(torch.ones(2), torch.tensor([-1])), ValueError, "index must lie in"),
        (lambda: TwoQuadratics().batch_grad(torch.ones(2), torch.ones(2)), TypeError, "index must be an integer"),
        (lambda: TwoQuadratics().weighted_grad(torch.ones(2), torch.ones(3)), ValueError, "weights must have shape"),
        (lambda: TwoQuadratics().grad(torch.ones(3)), ValueError, r"theta must have shape \(..., 2\)"),
    ],
)
def test_arguments_are_checked(build, error, text):
    with pytest.raises(error, match=text):
        build()
