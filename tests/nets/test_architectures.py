import pytest
import torch
from torch import nn

from nets import ARCHITECTURES, MLP, LeNet
from nets.architectures.initialise import ACTIVATIONS


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_registry_builds_seeded_networks(name):
    state = torch.get_rng_state()
    build = ARCHITECTURES[name]
    module = build((1, 8, 8), 10, seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert module(torch.zeros(3, 1, 8, 8)).shape == (3, 10)
    assert torch.equal(weights(module), weights(build((1, 8, 8), 10, seed=4)))
    assert not torch.equal(weights(module), weights(build((1, 8, 8), 10, seed=5)))
    assert 1500 <= weights(module).numel() <= 5000
    with pytest.raises(ValueError, match="activation"):
        build((1, 8, 8), 10, activation="tahn")


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_weights_follow_torchs_default_distribution(name):
    for layer in ARCHITECTURES[name]((1, 8, 8), 10).modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                assert parameter.abs().max() <= bound
            assert layer.weight.abs().max() > 0.9 * bound
            assert (layer.weight.std() / (bound / 3**0.5) - 1).abs() < 0.2


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_mlp_is_its_formula(activation):
    module = MLP((6, 5, 4), activation).double()
    x = torch.arange(12.0, dtype=torch.float64).reshape(2, 2, 3) / 10
    first, second = (layer for layer in module.layers if isinstance(layer, nn.Linear))
    hidden = ACTIVATIONS[activation]()(x.flatten(1) @ first.weight.T + first.bias)
    torch.testing.assert_close(module(x), hidden @ second.weight.T + second.bias)


def test_mlp_without_bias():
    assert weights(MLP((6, 5, 4), bias=False)).numel() == 50


@pytest.mark.parametrize("pooling", ["average", "strided"])
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 4, 9)])
def test_lenet_takes_images_of_many_sizes(shape, pooling):
    module = LeNet(shape, 7, 0.5, pooling=pooling)
    assert module(torch.ones(2, *shape)).shape == (2, 7)


def test_lenet_strided_pooling_keeps_every_second_pixel():
    strided = LeNet(pooling="strided").double()
    dense = LeNet(pooling="strided").double()
    for layer in dense.features:
        if isinstance(layer, nn.Conv2d):
            layer.stride = (1, 1)
    x = torch.linspace(-1, 1, 128, dtype=torch.float64).reshape(2, 1, 8, 8)
    first, first_act, second, second_act = dense.features
    features = second_act(second(first_act(first(x))[..., ::2, ::2]))[..., ::2, ::2]
    torch.testing.assert_close(strided(x), strided.classifier(features.flatten(1)))


@pytest.mark.parametrize("pooling", ["average", "strided"])
def test_lenet_order_and_width(pooling):
    kinds = [type(layer).__name__ for layer in LeNet(pooling=pooling).features]
    pool = ["AvgPool2d"] if pooling == "average" else []
    assert kinds == ["Conv2d", "Tanh", *pool] * 2
    wide = LeNet(width=2.0, pooling=pooling)
    assert [layer.out_channels for layer in wide.features if isinstance(layer, nn.Conv2d)] == [12, 32]


@pytest.mark.parametrize(
    ("build", "error", "words"),
    [
        (lambda: MLP((4,)), ValueError, "widths"),
        (lambda: MLP("64"), TypeError, "widths"),
        (lambda: MLP(64), TypeError, "widths"),
        (lambda: MLP((4, 0)), ValueError, r"widths\[1\]"),
        (lambda: MLP((4, 2.5)), TypeError, r"widths\[1\]"),
        (lambda: MLP((4, 2), seed=-1), ValueError, "seed"),
        (lambda: LeNet((8, 8)), ValueError, "input_shape"),
        (lambda: LeNet(8), TypeError, "input_shape"),
        (lambda: LeNet((1, 3, 8)), ValueError, r"input_shape\[1\]"),
        (lambda: LeNet(classes=0), ValueError, "classes"),
        (lambda: LeNet(width=0), ValueError, "width"),
        (lambda: LeNet(pooling="max"), ValueError, "pooling"),
        (lambda: LeNet(activation="sine"), ValueError, "activation"),
    ],
)
def test_bad_arguments(build, error, words):
    with pytest.raises(error, match=words):
        build()
