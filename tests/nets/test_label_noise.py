"""Label noise on networks and regressions: against dense Jacobians, gradients of relabelled losses, and differences."""

import functools

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from landscapes import Counted, GradientPenalty, LinearRegression, Regularised, TwoQuadratics, UnsupportedError
from landscapes.labelled import LabelledSum, labelled_sum_of
from landscapes.noise import GradientNoise
from landscapes.noise import label as module
from landscapes.noise.label import LabelNoise
from nets import (
    MLP,
    GhostBatchLandscape,
    HolomorphicNetworkLandscape,
    LayerNorm,
    NetworkLandscape,
    cross_entropy,
    square_loss,
)
from tests.tensors import draw

N, C = 6, 2
close = functools.partial(assert_close, rtol=1e-10, atol=1e-12)


def mlp():
    return MLP((3, 4, C)).double()


def network(targets=None, chunk_size=None, body=None):
    targets = draw(1, N, C) if targets is None else targets
    return NetworkLandscape(mlp() if body is None else body, square_loss, draw(0, N, 3), targets, chunk_size)


def normed():
    """Normalisation by torch's fused kernel, whose higher derivatives are a trap."""
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Tanh(), nn.Linear(4, C)).double()


def with_batch_norm():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, C)).double()


class Branching(nn.Module):
    """Control flow on values, which vmap cannot take."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, C).double()

    def forward(self, x):
        z = self.linear(x)
        return torch.tanh(z) if bool((x.sum() > -1e9).item()) else z


def regression():
    return LinearRegression(draw(2, N, 4), draw(3, N))


LANDSCAPES = {
    "regression": regression,
    "network": network,
    "classes": lambda: network(torch.arange(N) % C),
    "chunked": lambda: network(chunk_size=4),
    "layer-norm": lambda: network(body=normed()),
    "own-layer-norm": lambda: network(body=nn.Sequential(nn.Linear(3, 4), LayerNorm(4), nn.Linear(4, C)).double()),
    "branching": lambda: network(body=Branching()),
    "batch-norm": lambda: network(body=with_batch_norm()),
}
landscapes = pytest.mark.parametrize("name", LANDSCAPES)
# batch norm of all examples: outputs depend on other inputs, so example_grads is not defined
plain = pytest.mark.parametrize("name", [name for name in LANDSCAPES if name != "batch-norm"])


def outputs_of(landscape):
    """θ ↦ the outputs (N·C,), from the module or by hand."""
    if isinstance(landscape, LinearRegression):
        return lambda theta: landscape.features @ theta
    parameters = dict(landscape._function.module.named_parameters())
    names, shapes = list(parameters), [p.shape for p in parameters.values()]
    buffers = {n: b.clone() for n, b in landscape._function.module.named_buffers()}

    def outputs(theta):
        parts = theta.split([s.numel() for s in shapes])
        tensors = {n: p.view(s) for n, p, s in zip(names, parts, shapes, strict=True)} | buffers
        return torch.func.functional_call(landscape._function.module, tensors, draw(0, N, 3)).reshape(-1)

    return outputs


def jacobian(landscape, theta):
    """∂m/∂θ (N·C, d) of one θ, by a backward pass for each row."""
    return torch.autograd.functional.jacobian(outputs_of(landscape), theta)


def start(landscape, seed=4, *batch):
    return draw(seed, *batch, landscape.dimension)


@landscapes
def test_the_product_is_minus_the_transposed_jacobian(name):
    landscape = LANDSCAPES[name]()
    theta, cotangent = start(landscape), draw(5, 3, N * landscape.label_size)
    close(landscape.label_product(theta, cotangent), -cotangent @ jacobian(landscape, theta))
    assert isinstance(landscape, LabelledSum)


@landscapes
def test_the_product_is_what_labels_do_to_the_gradient(name):
    """∇f(y + ε) − ∇f(y) = (1/N) Σ (∂²f_i/∂θ∂y_i) ε_i, exactly."""
    landscape = LANDSCAPES[name]()
    theta, noise = start(landscape), draw(6, N * landscape.label_size)
    if name == "regression":
        relabelled = LinearRegression(landscape.features, landscape.targets + noise)
    else:
        targets = landscape._examples.targets
        values = targets if targets.is_floating_point() else nn.functional.one_hot(targets, C).double()
        relabelled = NetworkLandscape(
            landscape._function.module, square_loss, draw(0, N, 3), values + noise.reshape(N, C), landscape.chunk_size
        )
    moved = relabelled.grad(theta) - landscape.grad(theta)
    assert_close(landscape.label_product(theta, noise) / N, moved, rtol=1e-9, atol=1e-11)
    if name != "batch-norm":
        assert_close(LabelNoise(landscape, 1.0).factor(theta, noise), moved, rtol=1e-9, atol=1e-11)


@plain
def test_rows_of_single_examples(name):
    landscape = LANDSCAPES[name]()
    theta, index = start(landscape, 7, 2), torch.tensor([4, 0, 4])
    expected = torch.stack([-jacobian(landscape, x).reshape(N, -1, landscape.dimension) for x in theta])
    close(landscape.label_grads(theta), expected)
    close(landscape.label_grads(theta, index), expected[:, index])
    close(landscape.label_grads(theta[0], index), expected[0, index])
    each = torch.tensor([[0, 1], [5, 2]])
    close(landscape.label_grads(theta, each), torch.stack([expected[k, each[k]] for k in range(2)]))


@plain
@pytest.mark.parametrize("batch_size", [None, 2, N])
def test_moments_against_the_dense_jacobian(name, batch_size):
    landscape = LANDSCAPES[name]()
    noise, theta = LabelNoise(landscape, 0.3, batch_size), start(landscape, 8, 2)
    jacobians = torch.stack([jacobian(landscape, x) for x in theta])
    expected = 0.3**2 / ((batch_size or N) * N) * jacobians.mT @ jacobians
    close(noise.covariance(theta), expected)
    close(noise.diagonal(theta), expected.diagonal(dim1=-2, dim2=-1))
    close(noise.trace(theta), expected.diagonal(dim1=-2, dim2=-1).sum(-1))
    columns = noise.columns(theta)
    close(columns.mT @ columns, expected)
    close(noise.factor(theta[0], torch.eye(noise.size, dtype=theta.dtype)), columns[0])


@plain
def test_ito_correction(name):
    landscape = LANDSCAPES[name]()
    noise, theta = LabelNoise(landscape, 0.5), start(landscape, 9)
    step = 1e-5  # cube root of eps: central differences err by about 1e-10 of the third derivative
    shifts = step * torch.eye(landscape.dimension, dtype=torch.float64)
    slopes = (noise.trace(theta + shifts) - noise.trace(theta - shifts)) / (2 * step)
    assert_close(noise.trace_gradient(theta), slopes, rtol=1e-5, atol=1e-8)
    columns = noise.columns(theta)
    moved = [
        (noise.columns(theta + step * column)[j] - noise.columns(theta - step * column)[j]) / (2 * step)
        for j, column in enumerate(columns)
    ]
    assert_close(noise.ito_correction(theta), torch.stack(moved).sum(0) / 2, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", ["regression", "network"])
def test_ito_correction_is_that_of_the_base_class(name):
    landscape = LANDSCAPES[name]()
    noise, theta = LabelNoise(landscape, 0.5, 3), start(landscape, 10, 2)
    close(noise.ito_correction(theta), GradientNoise.ito_correction(noise, theta))


def test_batches_of_relabelled_examples_add_the_two_noises():
    """Cov over batches and ε of (1/b) Σ_B (J_iᵀ)(m_i − y_i − ε_i), by enumeration, and exact moments of ε."""
    landscape, theta, s, b = regression(), draw(11, 4), 0.7, 2
    batches = torch.cartesian_prod(torch.arange(N), torch.arange(N))
    x = landscape.features[batches]  # (N², b, d)
    # every draw of an example has an ε of its own: given the batch, Cov = (s²/b²) Σ_B x xᵀ
    labels = (x.mT @ x).mean(0) * s**2 / b**2
    close(LabelNoise(landscape, s, b).covariance(theta), labels)


def test_label_noise_at_zero_loss_is_a_multiple_of_the_hessian():
    """C = (s²/N) H where the loss is zero."""
    body = mlp()
    targets = NetworkLandscape(body, square_loss, draw(0, N, 3), draw(1, N, C)).outputs(draw(12, 26))
    landscape, theta = network(targets, body=body), draw(12, 26)
    assert landscape.dimension == 26
    close(LabelNoise(landscape, 0.4).covariance(theta), 0.16 / N * landscape.hessian(theta))


def test_linear_outputs_make_additive_noise():
    noise, theta = LabelNoise(regression(), 0.3), draw(13, 3, 4)
    assert noise.kind == "additive"
    assert LabelNoise(network(), 0.3).kind == "general"
    assert not noise.ito_correction(theta).any()
    close(noise.covariance(theta), noise.covariance(torch.zeros_like(theta)))


WRAPPED = {
    "regularised": lambda it: Regularised(it, 0.3),
    "counted": Counted,
    "counted regularised": lambda it: Counted(Regularised(it, 0.3)),
    "regularised counted": lambda it: Regularised(Counted(it), 0.3),
    "counted twice": lambda it: Counted(Counted(it)),
}


@pytest.mark.parametrize("wrapping", WRAPPED)
@pytest.mark.parametrize("name", ["regression", "network"])
def test_wrappers_pass_labels_through(name, wrapping):
    landscape = LANDSCAPES[name]()
    noise, bare = LabelNoise(WRAPPED[wrapping](landscape), 0.3), LabelNoise(landscape, 0.3)
    theta, xi = start(landscape, 14, 2), draw(15, 2, bare.size)
    for method in ("covariance", "diagonal", "trace", "ito_correction", "columns"):
        close(getattr(noise, method)(theta), getattr(bare, method)(theta))
    close(noise.factor(theta, xi), bare.factor(theta, xi))
    assert (noise.kind, noise.size, noise.dimension) == (bare.kind, bare.size, bare.dimension)


@pytest.mark.parametrize("name", ["regression", "network"])
def test_labels_are_counted_as_gradients(name):
    landscape = LANDSCAPES[name]()
    size = landscape.label_size
    counted = Counted(landscape)
    noise, theta = LabelNoise(Regularised(counted, 0.1), 0.3), start(landscape, 16, 4)
    noise.factor(theta, draw(17, noise.size))
    assert counted.counts["grad"] == 4
    noise.trace(theta)
    assert counted.counts["grad"] == pytest.approx(4 + 4 * size)
    labelled_sum_of(counted).label_grads(theta, torch.tensor([0, 1, 2]))
    assert counted.counts["grad"] == pytest.approx(4 + 4 * size + 4 * size / 2)
    assert counted.counts["loss"] == counted.counts["hvp"] == 0


@pytest.mark.parametrize("name", ["regression", "network"])
def test_restricted_sums_keep_their_labels(name):
    landscape, index = LANDSCAPES[name](), torch.tensor([5, 1, 1])
    fewer, theta = landscape.restrict(index), start(landscape, 18)
    close(fewer.label_grads(theta), landscape.label_grads(theta, index))
    assert LabelNoise(fewer, 1.0).size == 3 * landscape.label_size


def test_ghost_batches_have_the_labels_of_their_examples():
    ghosts = GhostBatchLandscape(with_batch_norm(), square_loss, draw(0, N, 3), draw(1, N, C), 3)
    theta, cotangent = start(ghosts, 19), draw(20, N * C)
    assert ghosts.label_size == 3 * C
    targets = ghosts._examples.targets
    relabelled = GhostBatchLandscape(ghosts._function.module, square_loss, draw(0, N, 3), draw(1, N, C), 3)
    relabelled._examples = type(ghosts._examples)(ghosts._examples.inputs, targets + cotangent.reshape(targets.shape))
    moved = relabelled.grad(theta) - ghosts.grad(theta)
    assert_close(ghosts.label_product(theta, cotangent) / ghosts.size, moved, rtol=1e-9, atol=1e-11)
    noise = LabelNoise(ghosts, 0.5)
    columns = noise.columns(theta)
    close(noise.covariance(theta), columns.mT @ columns)
    close(noise.factor(theta, cotangent), cotangent @ columns)


def test_complex_theta_is_bilinear():
    landscape = HolomorphicNetworkLandscape(mlp(), square_loss, draw(0, N, 3), draw(1, N, C))
    theta = torch.complex(start(landscape, 21), 0.1 * start(landscape, 22))
    cotangent = draw(23, N * C)
    step, v = 1e-6, start(landscape, 24)

    def pairing(x):
        tensors = landscape._member_outputs(x).reshape(-1)
        return -(cotangent * tensors).sum()

    slope = (pairing(theta + step * v) - pairing(theta - step * v)) / (2 * step)
    assert_close((landscape.label_product(theta, cotangent) * v).sum(), slope.detach(), rtol=1e-7, atol=1e-8)


def test_blocks_add_up_to_the_whole(monkeypatch):
    noise, theta = LabelNoise(network(), 0.3), draw(25, 2, 26)
    whole = [noise.covariance(theta), noise.diagonal(theta), noise.trace_gradient(theta)]
    for block in (1, 2 * C, 5 * C):
        monkeypatch.setattr(module, "BLOCK", block)
        for got, expected in zip(
            [noise.covariance(theta), noise.diagonal(theta), noise.trace_gradient(theta)], whole, strict=True
        ):
            assert_close(got, expected, rtol=1e-12, atol=1e-15)


def test_both_precisions(dtype, device):
    body = mlp().to(device, dtype)
    landscape = NetworkLandscape(body, square_loss, draw(0, N, 3).to(device), draw(1, N, C).to(device))
    noise, theta = LabelNoise(landscape, 0.3), draw(26, 2, 26, dtype=dtype).to(device)
    exact = NetworkLandscape(body.double(), square_loss, draw(0, N, 3).to(device), draw(1, N, C).to(device))
    tolerance = 1000 * torch.finfo(dtype).eps
    for method in ("covariance", "diagonal", "trace", "ito_correction"):
        got = getattr(noise, method)(theta)
        assert (got.dtype, got.device.type) == (dtype, device.type)
        expected = getattr(LabelNoise(exact, 0.3), method)(theta.double())
        assert_close(got.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_graph_where_theta_asks_for_one():
    noise, xi = LabelNoise(network(), 0.3), draw(27, N * C)
    theta = draw(28, 26)
    assert not noise.factor(theta, xi).requires_grad
    leaf = theta.clone().requires_grad_()
    (slope,) = torch.autograd.grad(noise.factor(leaf, xi).square().sum(), leaf)
    step, v = 1e-6, draw(29, 26)

    def energy(x):
        return noise.factor(x, xi).square().sum()

    difference = (energy(theta + step * v) - energy(theta - step * v)) / (2 * step)
    assert_close((slope * v).sum(), difference, rtol=1e-6, atol=1e-9)


def test_zero_deviation_is_no_noise():
    noise, theta = LabelNoise(network(), 0.0), draw(30, 26)
    assert not noise.factor(theta, draw(31, N * C)).any()
    assert float(noise.trace(theta)) == 0
    assert not noise.ito_correction(theta).any()


def test_losses_that_are_not_squares_are_refused():
    other = NetworkLandscape(mlp(), cross_entropy, draw(0, N, 3), torch.arange(N) % C)
    with pytest.raises(UnsupportedError, match=r"nets\.square_loss only, got loss_fn='cross_entropy'"):
        LabelNoise(other, 0.3)
    with pytest.raises(UnsupportedError, match=r"nets\.square_loss only"):
        LabelNoise(Counted(Regularised(other, 0.1)), 0.3)
    for wrong in (TwoQuadratics(), Counted(TwoQuadratics()), GradientPenalty(regression(), 0.1)):
        with pytest.raises(UnsupportedError, match="has no known labels"):
            LabelNoise(wrong, 0.3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-0.1,), ValueError, "standard_deviation must be at least zero, got -0.1"),
        ((float("nan"),), ValueError, "standard_deviation must be finite"),
        (("1",), TypeError, "standard_deviation must be a real number"),
        ((0.1, 0), ValueError, "batch_size must be at least 1"),
        ((0.1, 7), ValueError, "batch_size must be at most the number of examples, 6, got 7"),
        ((0.1, 2.0), TypeError, "batch_size must be a whole number"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        LabelNoise(regression(), *arguments)


def test_wrong_shapes():
    landscape = network()
    noise = LabelNoise(landscape, 0.3)
    with pytest.raises(ValueError, match=r"xi must have shape \(..., 12\)"):
        noise.factor(draw(32, 26), draw(33, N))
    with pytest.raises(ValueError, match=r"cotangent must have shape \(..., 12\), 2 numbers for each of 6 examples"):
        landscape.label_product(draw(32, 26), draw(33, N))
    with pytest.raises(TypeError, match="landscape must be a FiniteSum"):
        LabelNoise("regression", 0.3)
