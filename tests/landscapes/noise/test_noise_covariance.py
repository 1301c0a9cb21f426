"""The covariance operator against dense algebra, against every mini-batch there is, and its price in passes."""

import functools
import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import Counted, FiniteSum, LinearRegression, NoisyQuadratic, QuadraticSum, Regularised
from landscapes.errors import UnsupportedError
from landscapes.noise import MinibatchNoise
from landscapes.noise.covariance import noise_covariance
from nets import MLP, NetworkLandscape, build_network
from tests.landscapes.dense import symmetric
from tests.landscapes.noise.sums import dense_covariance, gradient_gaps
from tests.tensors import draws

WALKS = pytest.mark.parametrize("keep", [False, True], ids=["walked", "kept"])


def regression(n=9, d=4, seed=0):
    draw = draws(seed)
    return LinearRegression(draw(n, d), draw(n))


def quadratics():
    draw = draws(1)
    hessians = torch.stack([symmetric([1.0, 2.0, -0.5, 3.0], seed) for seed in range(6)])
    return QuadraticSum(hessians, draw(6, 4))


def network(chunk_size=None):
    draw = draws(2)
    cross_entropy = functools.partial(F.cross_entropy, reduction="none")
    return NetworkLandscape(MLP((2, 3, 3)).double(), cross_entropy, draw(7, 2), torch.arange(7) % 3, chunk_size)


def convolutional():
    module = build_network("small-allcnn", (3, 8, 8), 3, width=0.1).double().eval()
    cross_entropy = functools.partial(F.cross_entropy, reduction="none")
    return NetworkLandscape(module, cross_entropy, draws(3)(5, 3, 8, 8), torch.arange(5) % 3)


SUMS = {
    "regression": regression,
    "quadratics": quadratics,
    "regularised": lambda: Regularised(regression(), 0.3),
    "network": network,
    "chunked": lambda: network(chunk_size=2),
    "restricted": lambda: network().restrict(torch.tensor([6, 0, 3, 4])),
    "convolutional": convolutional,
}
sums = pytest.mark.parametrize("name", SUMS)


@sums
@WALKS
def test_everything_against_dense_algebra(name, keep):
    landscape, draw = SUMS[name](), draws(4)
    d, N = landscape.dimension, landscape.size
    theta = draw(d) / 2
    dense, rows = dense_covariance(landscape, theta), gradient_gaps(landscape, theta)
    operator = noise_covariance(landscape, theta, block=3, keep_gradients=keep)
    vectors, xi = draw(3, d), draw(2, N)
    close = {"rtol": 1e-10, "atol": 1e-11 * float(dense.trace())}
    assert_close(operator.product(vectors[0]), dense @ vectors[0], **close)
    assert_close(operator.products(vectors), vectors @ dense, **close)
    assert_close(operator.slopes(vectors), rows @ vectors.mT, **close)
    assert_close(operator.gradients.slopes(vectors), rows @ vectors.mT, **close)
    assert_close(operator.variances(vectors), (vectors @ dense * vectors).sum(-1), **close)
    assert_close(operator.dense(), dense, **close)
    assert_close(operator.diagonal, dense.diagonal(), **close)
    assert operator.trace == pytest.approx(float(dense.trace()), rel=1e-11)
    assert_close(operator.deviations(), rows.norm(dim=-1), **close)
    assert_close(operator.factor(xi), xi @ rows / math.sqrt(N), **close)
    for memory in (1, 5 * d * 8, 2**30):  # panels of a block, of five, of all
        assert_close(operator.gram(memory), rows @ rows.mT / N, **close)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 5])
@pytest.mark.parametrize("sampling", ["replacement", "subset"])
def test_covariance_of_every_batch_there_is(batch_size, sampling):
    landscape = regression(n=5, d=3)
    theta = draws(5)(3)
    kind = functools.partial(itertools.product, repeat=batch_size)
    batches = list(kind(range(5)) if sampling == "replacement" else itertools.combinations(range(5), batch_size))
    gaps = torch.stack([landscape.batch_grad(theta, torch.tensor(b)) for b in batches]) - landscape.grad(theta)
    expected = gaps.mT @ gaps / len(batches)
    operator = noise_covariance(MinibatchNoise(landscape, batch_size, sampling), theta)
    assert_close(operator.dense(), expected, rtol=1e-12, atol=1e-13)
    assert_close(operator.product(theta), expected @ theta, rtol=1e-12, atol=1e-13)
    assert_close(operator.factor(torch.eye(5, dtype=torch.float64)).mT.square().sum(1), expected.diagonal())
    if sampling == "subset" and batch_size == 5:
        assert float(operator.dense().abs().max()) == operator.trace == 0


def test_the_noisy_quadratic_has_covariance_h_squared_anywhere():
    hessian = symmetric([2.0, 0.5, -1.0])
    operator = noise_covariance(NoisyQuadratic(hessian, 11, seed=1), draws(6)(3))
    assert_close(operator.dense(), hessian @ hessian, rtol=1e-12, atol=1e-12)


def test_factor_is_that_of_the_mini_batch_noise():
    noise, theta, xi = MinibatchNoise(regression(), 3, "subset"), draws(7)(4), draws(8)(2, 9)
    assert_close(noise_covariance(noise, theta).factor(xi), noise.factor(theta, xi), rtol=1e-12, atol=1e-13)


@given(st.integers(0, 999), st.integers(2, 8), st.integers(1, 5), st.integers(1, 9))
def test_symmetric_positive_linear_and_blind_to_order(seed, n, d, block):
    landscape, draw = regression(n, d, seed), draws(seed + 1)
    theta, u, v, a = draw(d), draw(d), draw(d), float(draw(1))
    operator = noise_covariance(landscape, theta, block=block)
    scale = operator.trace * float(u.norm() + v.norm() + 1) ** 2
    products = operator.products(torch.stack([u, v, u + a * v]))
    assert float((u @ products[1] - v @ products[0]).abs()) < 1e-13 * scale
    assert float(u @ products[0]) >= -1e-14 * scale
    assert_close(products[2], products[0] + a * products[1], rtol=0, atol=1e-12 * (1 + abs(a)) * scale)
    assert_close(products[0], operator.product(u), rtol=0, atol=1e-13 * scale)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = noise_covariance(landscape.restrict(order), theta)
    assert_close(shuffled.products(u[None])[0], products[0], rtol=0, atol=1e-13 * scale)


@WALKS
def test_layers_are_diagonal_blocks(keep):
    landscape = network()
    theta, layers = landscape.theta0, landscape.layers
    operator = noise_covariance(landscape, theta, block=2, keep_gradients=keep)
    dense = dense_covariance(landscape, theta)
    for name, part in layers.items():
        layer, inside = operator.layer(part), dense[part, part]
        v, xi = draws(9)(layer.dimension), draws(10)(7)
        assert layer.dimension == len(inside)
        assert_close(layer.dense(), inside)
        assert_close(layer.product(v), inside @ v)
        assert_close(layer.products(v[None])[0], inside @ v)
        assert_close(layer.factor(xi), operator.factor(xi)[part])
        assert_close(torch.linalg.eigvalsh(layer.gram(1)).sum(), inside.trace())
        assert operator.layer_traces(layers)[name] == pytest.approx(float(inside.trace()), rel=1e-12)
    assert_close(operator.layer(slice(2, 8)).layer(slice(1, 6, 2)).dense(), dense[3:8:2, 3:8:2])


def test_price_in_passes_is_what_is_counted():
    counted = Counted(regression())
    operator = noise_covariance(counted, draws(11)(4), block=3)
    spent = {}
    for name, call in {
        "first": lambda: operator.gradients.mean,
        "product": lambda: operator.product(operator.like),
        "another": lambda: operator.product(operator.like),
        "products": lambda: operator.products(draws(0)(5, 4)),
        "factor": lambda: operator.factor(draws(0)(3, 9)),
        "trace": lambda: operator.trace,
        "layers": lambda: operator.layer_traces({"a": slice(0, 2)}),
        "dense": operator.dense,
        "gram": operator.gram,
        "tiled": lambda: operator.gram(1),
        "probes": lambda: operator.trace_estimate(7),
    }.items():
        before, paid = operator.passes, counted.counts["grad"]
        call()
        spent[name] = operator.passes - before
        assert counted.counts["grad"] - paid == pytest.approx(spent[name])
    wanted = {
        "first": 1,
        "product": 2 + 4 / 9,  # the first is held against four examples
        "another": 2,
        "products": 1,
        "factor": 3,
        "trace": 1,
        "layers": 0,
        "dense": 1,
        "gram": 1,
        "tiled": (9 + 6 + 3) / 9,
        "probes": 1,
    }
    assert spent == pytest.approx(wanted)
    assert operator.panel_passes(1) == pytest.approx(2)
    assert {k: v for k, v in counted.counts.items() if k != "grad" and v} == {}


def test_kept_gradients_are_paid_for_once():
    counted = Counted(regression())
    operator = noise_covariance(counted, draws(11)(4), block=2, keep_gradients=True)
    operator.product(operator.like), operator.gram(1), operator.factor(draws(0)(9)), operator.layer(slice(1)).trace
    assert counted.counts["grad"] == pytest.approx(operator.passes) == pytest.approx(2)


def test_no_more_than_a_block_is_ever_asked_for():
    landscape, seen = regression(n=20), []
    original = LinearRegression.example_grads

    class Narrow(LinearRegression):
        def example_grads(self, theta, index=None):
            seen.append(len(index))
            return original(self, theta, index)

    narrow = object.__new__(Narrow)
    narrow.__dict__.update(landscape.__dict__)
    operator = noise_covariance(narrow, draws(1)(4), block=6)
    operator.products(draws(1)(2, 4)), operator.dense(), operator.trace, operator.gram(7 * 4 * 8)
    assert max(seen) == 6


def test_trace_by_probes_is_unbiased_and_its_error_is_what_it_says():
    landscape, theta = regression(), draws(12)(4)
    operator = noise_covariance(landscape, theta, keep_gradients=True)
    estimates = [operator.trace_estimate(30, seed) for seed in range(200)]
    scores = torch.tensor([(e.value - operator.trace) / e.error for e in estimates])
    off = operator.dense() - operator.diagonal.diag()
    errors = torch.tensor([e.error for e in estimates], dtype=torch.float64).square().mean() * 30
    # Student's t of 29 degrees has variance 29/27; mean squares of 200 are known to a tenth
    assert abs(float(scores.mean())) < 4 / math.sqrt(200)
    assert 0.7 < float(scores.square().mean()) < 1.5
    assert float(errors) == pytest.approx(float(2 * off.square().sum()), rel=0.1)
    assert operator.layer(slice(0, 1)).trace_estimate(3).error == pytest.approx(0, abs=1e-12)


def test_dtype_and_device_of_theta(dtype, device):
    operator = noise_covariance(regression(), draws(13)(4).to(device, dtype), block=4)
    v = torch.ones(4, dtype=dtype, device=device)
    for vector in (operator.product(v), operator.products(v[None]), operator.factor(v.new_ones(9))):
        assert (vector.dtype, vector.device) == (dtype, v.device)
    for matrix in (operator.dense(), operator.gram(1), operator.diagonal, operator.variances(v[None])):
        assert (matrix.dtype, matrix.device) == (torch.float64, v.device)
    exact = dense_covariance(regression(), draws(13)(4))
    accuracy = 30 * torch.finfo(dtype).eps
    assert_close(operator.product(v).cpu().double(), exact.sum(1), rtol=accuracy, atol=accuracy * float(exact.trace()))


def test_small_noise_on_a_large_mean_is_not_lost_in_float32():
    # gradients 1 + 1e-3 x: the difference of second moments would keep 1e-7/1e-6 of it, a tenth
    landscape = LinearRegression(torch.ones(50, 3), 1 + 1e-3 * draws(14)(50).float())
    theta = torch.zeros(3)
    exact = dense_covariance(landscape, theta.double())
    operator = noise_covariance(landscape, theta, block=7)
    for found in (operator.dense(), operator.products(torch.eye(3)).double()):
        assert_close(found, exact, rtol=2e-3, atol=0)


def test_wrong_reverse_products_are_refused():
    class Detached(torch.autograd.Function):
        @staticmethod
        def forward(context, x):
            context.save_for_backward(x)
            return x.square()

        @staticmethod
        def backward(context, cotangent):
            (x,) = context.saved_tensors
            return 2 * x.detach() * cotangent.square().sqrt().detach() * cotangent.sign()

    class Wrong(LinearRegression):
        def losses(self, theta, index=None):
            return Detached.apply(super().losses(theta, index))

        weighted_grad = FiniteSum.weighted_grad

        def example_grads(self, theta, index=None):
            return 2 * super().losses(theta, index)[..., None] * super().example_grads(theta, index)

    landscape = object.__new__(Wrong)
    landscape.__dict__.update(regression().__dict__)
    operator = noise_covariance(landscape, draws(15)(4))
    with pytest.raises(UnsupportedError, match="keep_gradients=True"):
        operator.product(operator.like)


def test_what_is_refused():
    landscape, theta = regression(), draws(16)(4)
    with pytest.raises(TypeError, match="FiniteSum"):
        noise_covariance(symmetric([1.0]), theta)
    with pytest.raises(ValueError, match=r"one real vector \(d,\)"):
        noise_covariance(landscape, theta[None])
    with pytest.raises(ValueError, match="one real vector"):
        noise_covariance(landscape, theta + 0j)
    with pytest.raises(ValueError, match="block"):
        noise_covariance(landscape, theta, block=0)
    operator = noise_covariance(landscape, theta)
    with pytest.raises(ValueError, match=r"v must have shape \(4\)"):
        operator.product(theta[:3])
    with pytest.raises(ValueError, match=r"vectors must have shape \(k, 4\)"):
        operator.products(theta)
    with pytest.raises(ValueError, match="float64"):
        operator.product(theta.float())
    with pytest.raises(ValueError, match=r"xi must have shape \(..., 9\)"):
        operator.factor(theta)
    with pytest.raises(TypeError, match="slice"):
        operator.layer(3)
    with pytest.raises(ValueError, match="ascending"):
        operator.layer(slice(3, 3))
    with pytest.raises(ValueError, match="probes"):
        operator.trace_estimate(1)
    with pytest.raises(FloatingPointError, match="not finite"):
        noise_covariance(landscape, theta * math.nan).products(theta[None])
