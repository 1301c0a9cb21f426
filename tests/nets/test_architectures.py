import functools
import re

import pytest
import torch
from torch import nn

from nets import ARCHITECTURES, MLP, VGG, AllCNN, LeNet, ResNet, VisionTransformer, WideResNet, build_network
from nets.architectures import lenet
from nets.architectures.initialise import ACTIVATIONS
from tests.nets.architecture_cases import CLASSES, NAMES, SHAPES, small


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.parametrize("name", NAMES)
def test_registry_builds_seeded_networks(name):
    state = torch.get_rng_state()
    shape, width = SHAPES.get(name, ((3, 8, 8), 0.1))
    build = functools.partial(ARCHITECTURES[name], shape, CLASSES, width=width)
    module = build(seed=4)
    assert torch.equal(state, torch.get_rng_state())
    assert module(torch.zeros(3, *shape)).shape == (3, CLASSES)
    assert torch.equal(weights(module), weights(build(seed=4)))
    assert not torch.equal(weights(module), weights(build(seed=5)))
    with pytest.raises(ValueError, match="activation"):
        build(activation="tahn")
    with pytest.raises(ValueError, match="norm must be one of"):
        build(norm="bacth")


# published: 1710.11029 (small-lenet, small-allcnn), 1611.01838 (small-mnistfc, hessian-lenet), 1512.03385 table 6
# (resnets, 0.27 and 0.85 million), 1605.07146 table 5 (wide ResNets, 2.7 and 36.5 million); the rest computed by hand
COUNTS = {
    "mlp": ((1, 8, 8), 10, 64 * 32 + 32 + 32 * 10 + 10),
    "walk-mlp": ((1, 28, 28), 10, 784 * 500 + 500 + 500 * 350 + 350 + 350 * 10 + 10),
    "small-mnistfc": ((1, 28, 28), 10, 50_890),
    "small-fc": ((1, 7, 7), 10, 49 * 64 + 64 + 2 * 64 + 64 * 10 + 10),
    "tiny-fc": ((1, 7, 7), 5, 917),
    "shwartz-ziv": ((12,), 2, 130 + 77 + 40 + 24 + 15 + 8),
    "polynomial-mlp": ((1, 8, 8), 10, 2_410),
    "lenet": ((1, 28, 28), 10, 61_706),
    "polynomial-lenet": ((1, 8, 8), 10, 3_350),
    "hessian-lenet": ((1, 28, 28), 10, 47_658),
    "small-lenet": ((1, 28, 28), 10, 13_338),
    "entropy-sgd-lenet": ((1, 28, 28), 10, 131_220),
    "all-cnn-c": ((3, 32, 32), 10, 1_369_738),
    "all-cnn-bn": ((3, 32, 32), 10, 1_667_166),
    "small-allcnn": ((3, 32, 32), 10, 26_982),
    "vgg-11": ((3, 32, 32), 10, 9_231_114),
    "resnet-18": ((3, 32, 32), 10, 11_173_962),
    "resnet-20": ((3, 32, 32), 10, 269_722),
    "resnet-56": ((3, 32, 32), 10, 853_018),
    "wide-resnet-16-4": ((3, 32, 32), 10, 2_748_890),
    "wide-resnet-28-10": ((3, 32, 32), 10, 36_479_194),
    "vit": ((3, 32, 32), 10, 141_898),
}


@pytest.mark.parametrize("name", COUNTS)
def test_counts_are_the_papers(name):
    shape, classes, count = COUNTS[name]
    with torch.device("meta"):
        module = ARCHITECTURES[name](shape, classes)
    assert sum(p.numel() for p in module.parameters()) == count


@pytest.mark.parametrize("name", NAMES)
def test_width_multiplies_every_hidden_layer(name):
    shape, _ = SHAPES.get(name, ((3, 8, 8), 0.1))
    with torch.device("meta"):
        narrow, wide = (ARCHITECTURES[name](shape, CLASSES, width=w) for w in (1.0, 2.0))
    for before, after in zip(narrow.parameters(), wide.parameters(), strict=True):
        inner = [i for i in range(min(2, before.ndim)) if before.shape[i] not in (CLASSES, shape[0])]
        if name.startswith("wide-resnet") and 16 in before.shape:
            continue  # the stem of a wide ResNet stays as it is
        assert all(after.shape[i] in (before.shape[i], 2 * before.shape[i]) for i in inner)
    assert sum(p.numel() for p in wide.parameters()) > 1.7 * sum(p.numel() for p in narrow.parameters())
    with pytest.raises(ValueError, match="width"):
        ARCHITECTURES[name](shape, CLASSES, width=0.0)


HE = {name for name in NAMES if re.match("all|small-all|vgg|resnet|wide", name)}


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_the_stated_distribution(name):
    shape, width = SHAPES.get(name, ((3, 8, 8), 0.1))
    for layer in ARCHITECTURES[name](shape, CLASSES, width=4 * width).modules():
        if not isinstance(layer, (nn.Linear, nn.Conv2d)) or layer.weight.numel() < 400:
            continue
        std = layer.weight[0].numel() ** -0.5 * (2**0.5 if name in HE else 3**-0.5)
        assert (layer.weight.std() / std - 1).abs() < 0.2
        if name in HE:
            assert layer.bias is None or not layer.bias.any()
        else:
            bound = layer.weight[0].numel() ** -0.5
            assert max(p.abs().max() for p in layer.parameters()) <= bound
            assert layer.weight.abs().max() > 0.9 * bound


@pytest.mark.parametrize("norm", ["batch", "group", "none"])
@pytest.mark.parametrize("name", [name for name in NAMES if name != "vit"])
def test_norms(name, norm):
    kinds = {type(layer).__name__ for layer in small(name, norm=norm)[0].modules()} & {"BatchNorm", "GroupNorm"}
    assert kinds == {"batch": {"BatchNorm"}, "group": {"GroupNorm"}, "none": set()}[norm]


def test_options_a_family_has_not_are_refused():
    with pytest.raises(ValueError, match="pooling must be left out for 'mlp'"):
        build_network("mlp", (4,), 3, pooling="max")
    with pytest.raises(ValueError, match="architecture must be one of 'mlp'"):
        build_network("mpl", (4,), 3)
    assert isinstance(build_network("mlp", (4,), 3, pooling=None, norm=None), MLP)


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
    pool = ["AveragePool"] if pooling == "average" else []
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
        (lambda: LeNet(pooling="mean"), ValueError, "pooling"),
        (lambda: LeNet(activation="sinus"), ValueError, "activation"),
        (lambda: LeNet((1, 20, 20), sizes=lenet.SMALL), ValueError, "input_shape must have larger images"),
        (lambda: AllCNN((3, 8, 8)), ValueError, r"input_shape\[1\] must be at least 9"),
        (lambda: AllCNN(norm="layer"), ValueError, "norm"),
        (lambda: VGG(classes=0), ValueError, "classes"),
        (lambda: VGG(pooling="none"), ValueError, "pooling"),
        (lambda: ResNet((32, 32)), ValueError, "input_shape"),
        (lambda: ResNet(blocks=(3, 3)), ValueError, "channels and blocks must have one entry a stage"),
        (lambda: WideResNet(blocks=0), ValueError, "blocks"),
        (lambda: WideResNet(width="1"), TypeError, "width"),
        (lambda: VisionTransformer(depth=-1), ValueError, "depth"),
        (lambda: AllCNN(eighth=0), ValueError, "eighth"),
        (lambda: ARCHITECTURES["mlp"]((-2, -2), 3), ValueError, r"input_shape\[0\]"),
        (lambda: VisionTransformer((3, 30, 30)), ValueError, "patch must divide .* got 4"),
        (lambda: VisionTransformer(norm="batch"), ValueError, "norm"),
        (lambda: VisionTransformer(heads=0), ValueError, "heads"),
    ],
)
def test_bad_arguments(build, error, words):
    with pytest.raises(error, match=words):
        build()
