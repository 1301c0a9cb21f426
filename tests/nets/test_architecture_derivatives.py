"""Every architecture's gradient, HVP and third derivative in float64 against backward, forward mode and differences."""

import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nets import (
    LOSSES,
    MLP,
    HolomorphicNetworkLandscape,
    NetworkLandscape,
    PiecewiseLinearWarning,
    cross_entropy,
)
from tests.nets.architecture_cases import NAMES, small


def directions(normal, d):
    return normal(11, 3, d) / d**0.5


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore::nets.PiecewiseLinearWarning")
def test_products_equal_forward_mode(name, normal):
    """jvp of a gradient is another path through torch than backward of a backward; right at kinks as well."""
    module, network = small(name)
    theta = network.theta0
    u, v, w = directions(normal, network.dimension)
    torch.nn.functional.cross_entropy(module(network._examples.inputs[0]), network._examples.targets).backward()
    assert_close(
        network.grad(theta), torch.cat([p.grad.flatten() for p in module.parameters()]), rtol=1e-10, atol=1e-12
    )

    def along(field, direction):
        return lambda x: torch.func.jvp(field, (x,), (direction,))[1]

    point = network.expand(theta)
    assert_close(point.grad @ v, along(network.loss, v)(theta), rtol=1e-9, atol=1e-12)
    second, third = along(along(network.loss, v), u), along(along(along(network.loss, v), u), w)
    assert_close(point.hvp(v) @ u, second(theta), rtol=1e-8, atol=1e-12)
    assert_close(point.third(u, v) @ w, third(theta), rtol=1e-7, atol=1e-11)


@pytest.mark.parametrize("name", NAMES)
def test_smooth_versions_equal_differences_and_the_others_warn(name, normal):
    module, network = small(name)
    kinked = any(isinstance(layer, (nn.ReLU, nn.MaxPool2d)) for layer in module.modules())
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        network.hvp(network.theta0, network.theta0)
    assert [w.category for w in caught] == [PiecewiseLinearWarning] * kinked
    pooled = any(isinstance(layer, nn.MaxPool2d) for layer in module.modules())
    _, network = small(name, activation="tanh", **({"pooling": "average"} if pooled else {}))
    theta = network.theta0
    u, v, _ = directions(normal, network.dimension)
    step = 1e-4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        point, ahead, behind = (network.expand(theta + s * v) for s in (0, step, -step))
        assert_close((ahead.loss - behind.loss) / (2 * step), point.grad @ v, rtol=1e-4, atol=1e-7)
        # truncation is step²/6 times two derivatives more; relative to the vectors' norms
        for difference, product in (
            ((ahead.grad - behind.grad) / (2 * step), point.hvp(v)),
            ((ahead.hvp(u) - behind.hvp(u)) / (2 * step), point.third(u, v)),
        ):
            assert (difference - product).norm() <= 1e-4 * product.norm() + 1e-7


@pytest.mark.parametrize("name", ["mlp", "tiny-fc", "lenet", "shwartz-ziv"])
@pytest.mark.filterwarnings("ignore::nets.PiecewiseLinearWarning")
def test_hessian_equals_the_dense_oracle(name):
    _, network = small(name)
    theta = network.theta0
    assert_close(network.hessian(theta), torch.func.hessian(network.loss)(theta), rtol=1e-8, atol=1e-10)


HOLOMORPHIC = {
    "mlp": {},
    "shwartz-ziv": {},
    "polynomial-mlp": {},
    "lenet": {},
    "polynomial-lenet": {},
    "small-lenet": {"activation": "tanh", "pooling": "average"},
    "hessian-lenet": {"activation": "sine", "pooling": "strided"},
    "all-cnn-c": {"activation": "tanh"},
    "small-allcnn": {"activation": "tanh", "norm": "group"},
    "vgg-11": {"activation": "tanh", "pooling": "average"},
    "resnet-20": {"activation": "tanh"},
    "wide-resnet-16-4": {"activation": "sine"},
}


@pytest.mark.parametrize("name", HOLOMORPHIC)
def test_holomorphic_versions_take_complex_theta(name, normal):
    module, real = small(name, **HOLOMORPHIC[name])
    network = HolomorphicNetworkLandscape(module, cross_entropy, real._examples.inputs, real._examples.targets)
    theta = network.theta0
    u, v, w = directions(normal, network.dimension)
    assert_close(network.grad(theta.to(torch.complex128)).real, real.grad(theta), rtol=1e-9, atol=1e-11)
    z, along, step = torch.complex(theta, 0.1 * u), torch.complex(v, w), 1e-4
    point = network.expand(z)
    turned = [network.expand(z + s * 1j * step * along) for s in (1, -1)]
    loss, gradient = ((getattr(turned[0], k) - getattr(turned[1], k)) / (2j * step) for k in ("loss", "grad"))
    assert_close(loss, (point.grad * along).sum(), rtol=1e-5, atol=1e-8)
    assert (gradient - point.hvp(along)).norm() <= 1e-5 * point.hvp(along).norm() + 1e-8


@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_takes_complex_theta(name, normal):
    outputs = 1 if name == "binary-cross-entropy" else 3
    module = MLP((4, 5, outputs)).double()
    inputs, targets = normal(1, 6, 4), torch.arange(6) % 2
    network = HolomorphicNetworkLandscape(module, LOSSES[name], inputs, targets)
    real = NetworkLandscape(module, LOSSES[name], inputs, targets)
    theta = network.theta0
    u, v, w = directions(normal, network.dimension)
    flat = theta.to(torch.complex128)
    assert_close(network.third(flat, u.to(flat), v.to(flat)).real, real.third(theta, u, v), rtol=1e-9, atol=1e-11)
    z, along, step = torch.complex(theta, u), torch.complex(v, w), 1e-4
    ahead, behind = (network.expand(z + s * 1j * step * along) for s in (1, -1))
    assert_close((ahead.loss - behind.loss) / (2j * step), (network.grad(z) * along).sum(), rtol=1e-6, atol=1e-9)
    assert_close((ahead.grad - behind.grad) / (2j * step), network.hvp(z, along), rtol=1e-6, atol=1e-8)
