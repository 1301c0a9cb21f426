"""Networks' slopes: every order to the fifth against dense tensors, over chunks, checked in turn; smoothness."""

import math
import warnings
import weakref
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import nets
from landscapes import Counted
from landscapes.expansion import along_each
from nets import (
    BatchNorm,
    GhostBatchLandscape,
    HolomorphicNetworkLandscape,
    NetworkLandscape,
    PiecewiseLinearWarning,
    WrongDerivativeError,
    cross_entropy,
    square_loss,
)
from tests.landscapes.test_along import close, contracted, dense
from tests.nets.wrong import RightTo

N = 6


def mlp(activation=nn.Tanh, outputs=2, norm=nn.Identity):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 2), norm(), activation(), nn.Linear(2, outputs)).double()


def network(module=None, chunk_size=None, kind=NetworkLandscape, loss=cross_entropy):
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(N, 1, generator=generator, dtype=torch.float64)
    return kind(mlp() if module is None else module, loss, inputs, torch.arange(N) % 2, chunk_size)


@pytest.fixture(scope="module")
def tensors():
    """D^m f at θ0 for m to 5, of the network above, (10, …, 10)."""
    landscape = network(loss=square_loss)
    return {m: dense(landscape.loss, landscape.theta0, m) for m in range(1, 6)}


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_every_order_is_a_contraction_of_the_dense_tensor(tensors, chunk_size, normal):
    landscape = network(chunk_size=chunk_size, loss=square_loss)
    ws, v, u = normal(1, 3, 10), normal(2, 10), normal(3, 10)
    point = landscape.expand(landscape.theta0)
    for depth in (1, 2, 3):
        slope, taken = along_each(point, ws[:depth]), list(ws[:depth])
        close(slope.loss, contracted(tensors[depth], taken))
        close(slope.grad, contracted(tensors[depth + 1], taken))
        close(slope.hvp(v), contracted(tensors[depth + 2], [*taken, v]))
        close(slope.hessian(), contracted(tensors[depth + 2], taken))
    close(point.along(ws[0]).along(ws[1]).third(u, v), contracted(tensors[5], [ws[0], ws[1], u, v]))
    assert landscape._derivatives.asked == {(m, landscape._function.mode()) for m in range(1, 6)}


@pytest.mark.parametrize("chunk_size", [1, 4, N])
def test_chunks_and_batches_of_theta_change_nothing(chunk_size, normal):
    whole, parts = network(), network(chunk_size=chunk_size)
    theta = whole.theta0 + 0.2 * normal(4, 2, 2, 10)
    a, b, v = normal(5, 3, 2, 2, 10)
    one, other = parts.expand(theta).along(a).along(b), whole.expand(theta).along(a).along(b)
    member = whole.expand(theta[1, 0]).along(a[1, 0]).along(b[1, 0])
    for reading in (
        lambda s, _: s.loss,
        lambda s, _: s.grad,
        lambda s, i: s.hvp(v[i]),
        lambda s, i: s.third(v[i], v[i]),
        lambda s, _: s.hessian(),
    ):
        close(reading(one, ...), reading(other, ...))
        close(reading(other, ...)[1, 0], reading(member, (1, 0)))


LIVE = weakref.WeakSet()
FOUND = []


class Mark(torch.autograd.Function):
    """x ↦ x, whose contexts live as long as the graph; what of earlier ones is alive is noted at every call."""

    @staticmethod
    def forward(ctx, x):
        FOUND.append(len(LIVE))
        LIVE.add(ctx)
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return g.clone()


class Marked(nn.Module):
    def forward(self, inputs):
        return torch.tanh(Mark.apply(inputs))


@pytest.mark.parametrize(("chunk_size", "passes"), [(2, 9), (None, 1)])
def test_each_reading_builds_and_drops_the_graph_of_one_chunk_after_another(chunk_size, passes, normal):
    """One chunk keeps its graph for all readings; of several none is alive when the next one is built."""
    landscape = network(mlp(Marked), chunk_size=chunk_size)
    theta, a, b, v = landscape.theta0, *normal(6, 3, 10)
    landscape.expand(theta).along(a).along(b).hvp(v)  # the check's own passes are over
    FOUND.clear()
    slope = landscape.expand(theta).along(a).along(b)
    assert FOUND == []
    slope.grad, slope.grad, slope.hvp(v), slope.hessian()
    assert FOUND == [0] * passes


def test_ghost_batches_have_the_mean_of_their_slopes(normal):
    inputs, labels = normal(7, 8, 1), torch.arange(8) % 2
    module = mlp(norm=lambda: BatchNorm(2))
    ghost = GhostBatchLandscape(module, cross_entropy, inputs, labels, 4, chunk_size=1)
    parts = [NetworkLandscape(module, cross_entropy, inputs[b], labels[b]) for b in ghost.ghost_batches]
    theta, (a, b, v) = ghost.theta0 + 0.1, normal(8, 3, ghost.dimension)
    found = ghost.expand(theta).along(a).along(b).hvp(v)
    close(found, torch.stack([p.expand(theta).along(a).along(b).hvp(v) for p in parts]).mean(0))
    assert ghost.smoothness == math.inf


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_complex_slopes_are_holomorphic_derivatives(chunk_size, normal):
    landscape = network(chunk_size=chunk_size, kind=HolomorphicNetworkLandscape, loss=square_loss)
    re, im = 0.3 * normal(9, 2, 4, 10)
    theta, a, b, v = torch.complex(re, im) + landscape.theta0
    slope = landscape.expand(theta).along(a).along(b)
    ahead, behind = (landscape.expand(theta + e * v).along(a).along(b) for e in (1e-4, -1e-4))
    close(slope.hvp(v), (ahead.grad - behind.grad) / 2e-4, 1e-6)
    close(landscape.expand(theta).along(1j * a).along(b).hvp(v), 1j * slope.hvp(v))


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_results_carry_the_graph_of_theta_and_of_the_gradient_as_a_direction(chunk_size, normal):
    landscape = network(chunk_size=chunk_size)

    def product(theta):
        point = landscape.expand(theta)
        return point.along(point.grad).along(point.grad).hvp(point.grad), point.third(point.grad, point.grad)

    theta = landscape.theta0
    for attached, free in zip(product(theta.clone().requires_grad_()), product(theta), strict=True):
        close(attached.detach(), free)
    assert torch.autograd.gradcheck(product, (theta.clone().requires_grad_(),))


def test_single_precision_follows_double(normal):
    double = network()
    single = NetworkLandscape(
        mlp().float(), cross_entropy, double._examples.inputs[0].float(), double._examples.targets
    )
    a, b, v = normal(10, 3, 10)
    found = single.expand(single.theta0).along(a.float()).along(b.float()).hvp(v.float())
    assert found.dtype == torch.float32
    # float32 rounds each of four nested derivatives by about 1e-6 of its terms
    close(found.double(), double.expand(double.theta0).along(a).along(b).hvp(v), 1e-4)


def test_counting_reaches_through_the_check():
    landscape = Counted(network())
    g = landscape.grad(landscape.landscape.theta0)
    slope = landscape.expand(landscape.landscape.theta0).along(g)
    slope.hvp(slope.grad)
    assert landscape.counts == {"loss": 0, "grad": 1, "hvp": 1, "third": 1, "higher": 0}


class Sine(nn.Module):
    """A sine whose derivatives are right to an order."""

    def __init__(self, order):
        super().__init__()
        self.order = order

    def forward(self, inputs):
        return RightTo.apply(inputs, self.order)


class SineAndKink(Sine):
    def forward(self, inputs):
        return F.leaky_relu(super().forward(inputs), 0.3)


READINGS = {  # of the expansion and a vector, by the order of the derivative that is read
    "grad": (1, lambda p, v: p.grad),
    "slope's loss": (1, lambda p, v: p.along(v).loss),
    "hvp": (2, lambda p, v: p.hvp(v)),
    "slope's grad": (2, lambda p, v: p.along(v).grad),
    "second slope's loss": (2, lambda p, v: p.along(v).along(v).loss),
    "third": (3, lambda p, v: p.third(v, v)),
    "slope's hvp": (3, lambda p, v: p.along(v).hvp(v)),
    "slope's hessian": (3, lambda p, v: p.along(v).hessian()),
    "slope's third": (4, lambda p, v: p.along(v).third(v, v)),
    "second slope's hvp": (4, lambda p, v: p.along(v).along(v).hvp(v)),
    "third slope's grad": (4, lambda p, v: p.along(v).along(v).along(v).grad),
    "third slope's hvp": (5, lambda p, v: p.along(v).along(v).along(v).hvp(v)),
}


@pytest.mark.parametrize("name", READINGS)
def test_a_reading_asks_for_the_order_of_its_derivative(name):
    order, reading = READINGS[name]
    landscape = network()
    reading(landscape.expand(landscape.theta0), landscape.theta0)
    assert {m for m, _ in landscape._derivatives.asked} == set(range(1, order + 1) if order > 1 else [])
    attached = network()
    theta = attached.theta0.requires_grad_()
    reading(attached.expand(theta), theta.detach())
    asked = max((m for m, _ in attached._derivatives.asked), default=0)
    assert asked == (order + 1 if order > 1 else 0)


@pytest.mark.parametrize("kind", [Sine, SineAndKink])
@pytest.mark.parametrize("right", [1, 2, 3, 4])
@pytest.mark.filterwarnings("ignore::nets.PiecewiseLinearWarning")
def test_the_order_at_which_a_module_goes_wrong_is_found(right, kind):
    names = {2: "Hessian-vector product", 3: "third derivative", 4: "derivative of order 4", 5: "derivative of order 5"}
    landscape = network(mlp(partial(kind, right)))
    theta = landscape.theta0
    for order, reading in READINGS.values():
        if order <= right:
            reading(landscape.expand(theta), theta)
        elif order == right + 1:
            for _ in range(2):  # a refusal is not forgotten
                words = rf"'2' \({kind.__name__}\) has a wrong {names[order]}"
                with pytest.raises(WrongDerivativeError, match=words):
                    reading(landscape.expand(theta), theta)


SMOOTH = {
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "softplus": nn.Softplus,
    "silu": nn.SiLU,
    "mish": nn.Mish,
    "sigmoid": nn.Sigmoid,
    "log-sigmoid": nn.LogSigmoid,
    "our layer norm": lambda: nets.LayerNorm(2, 1e-1),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_smooth_networks_pass_to_order_five_without_a_word(name):
    landscape = network(mlp(SMOOTH[name]))
    assert landscape.smoothness == math.inf
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        landscape.expand(landscape.theta0).along(landscape.theta0).along(landscape.theta0).third(
            *[landscape.theta0] * 2
        )
    landscape = network(mlp(SMOOTH[name]), loss=partial(F.cross_entropy, reduction="none"))
    assert landscape.smoothness == math.inf


# activation: how many continuous derivatives it leaves
KINKED = {
    "relu": (nn.ReLU, 0),
    "relu6": (nn.ReLU6, 0),
    "leaky relu": (nn.LeakyReLU, 0),
    "prelu": (nn.PReLU, 0),
    "hardtanh": (nn.Hardtanh, 0),
    "hardsigmoid": (nn.Hardsigmoid, 0),
    "hardswish": (nn.Hardswish, 0),
    "softshrink": (nn.Softshrink, 0),
    "hardshrink": (nn.Hardshrink, 0),
    "threshold": (lambda: nn.Threshold(0.1, 0.1), 0),
    "selu": (nn.SELU, 0),
    "elu of 2": (lambda: nn.ELU(2.0), 0),
    "elu": (nn.ELU, 1),
    "celu of 2": (lambda: nn.CELU(2.0), 1),
    "tanh": (nn.Tanh, math.inf),
    "gelu": (nn.GELU, math.inf),
    "softplus": (nn.Softplus, math.inf),
}


@pytest.mark.parametrize("name", KINKED)
def test_smoothness_is_that_of_the_activation(name):
    """Told by the operations seen; found here from values alone, as jumps of differences over a fine grid."""
    build, smoothness = KINKED[name]
    assert network(mlp(build)).smoothness == smoothness
    grid = torch.arange(-4, 4, 1e-3, dtype=torch.float64) + 3e-4
    with torch.no_grad():
        slope = build().double()(grid[:, None])[:, 0].diff() / 1e-3
    jump, bend = slope.diff().abs().max(), (slope.diff().diff() / 1e-6 * 1e-3).abs().max()
    assert bool(jump > 0.05) == (smoothness == 0)  # a continuous slope changes by 1e-3 of the second derivative
    assert bool(bend > 0.05) == (smoothness <= 1)


def test_smoothness_sees_the_loss_pooling_and_the_mode():
    for function, smoothness in (
        (F.l1_loss, 0),
        (F.smooth_l1_loss, 1),
        (F.huber_loss, 1),
        (F.mse_loss, math.inf),
    ):
        loss = lambda out, y, f=function: f(out[:, 0], y.double(), reduction="none")  # noqa: E731
        assert network(loss=loss).smoothness == smoothness
    pooled = nn.Sequential(nn.Linear(1, 4), nn.MaxPool1d(2), nn.Linear(2, 2)).double()
    assert network(pooled).smoothness == 0

    class Switch(nn.Module):
        def forward(self, inputs):
            return F.relu(inputs) if self.training else torch.tanh(inputs)

    module = mlp(Switch)
    landscape = network(module)
    assert (landscape.smoothness, landscape.restrict(torch.arange(3)).smoothness) == (0, 0)
    module.eval()
    assert landscape.smoothness == math.inf
    assert Counted(landscape).smoothness == math.inf


def test_kinks_warn_once_however_high_the_order():
    landscape = network(mlp(nn.ReLU))
    theta = landscape.theta0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        landscape.expand(theta).along(theta).along(theta).third(theta, theta)
    assert [w.category for w in caught] == [PiecewiseLinearWarning]
    assert_close(landscape.expand(theta).along(theta).loss, landscape.grad(theta) @ theta)
