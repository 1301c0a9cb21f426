"""Losses, data and architectures: tensors that are not dense and huge sizes are refused by name."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from nets import (
    LOSSES,
    MLP,
    VGG,
    AllCNN,
    Data,
    LeNet,
    NetworkLandscape,
    ResNet,
    VisionTransformer,
    WideResNet,
    build_network,
    cross_entropy,
    square_loss,
)
from nets.architectures.lenet import LeNetSizes

OUTPUTS, CLASSES = torch.tensor([[1.0, 2.0], [0.5, -1.0]]), torch.tensor([0, 1])
BAD = {
    "sparse": torch.eye(2).to_sparse(),
    "meta": torch.eye(2, device="meta"),
    "nested": torch.nested.nested_tensor([torch.ones(2), torch.ones(1)]),
    "quantised": torch.quantize_per_tensor(torch.eye(2), 0.1, 0, torch.qint8),
    "uint4": torch.empty(2, 2, dtype=torch.uint4),
    "float8": torch.eye(2).to(torch.float8_e4m3fn),
    "an array": torch.eye(2).numpy(),
    "none": None,
}
SHAPE = (1, 8, 8)
HUGE = {
    "widths": [lambda n: MLP((2, n, 2)), lambda n: MLP((n, n)), lambda n: MLP(range(1, n))],
    "classes": [lambda n, net=net: net(SHAPE, n) for net in (LeNet, VGG, ResNet, WideResNet, VisionTransformer)],
    "width": [lambda n, net=net: net(SHAPE, 2, n) for net in (LeNet, VGG, ResNet, WideResNet)],
    "channels": [lambda n: ResNet(SHAPE, channels=(n,), blocks=(1,)), lambda n: AllCNN((3, 9, 9), channels=(4, n))],
    "blocks": [lambda n: ResNet(SHAPE, channels=(4,), blocks=(n,)), lambda n: WideResNet(SHAPE, blocks=n)],
    "hidden": [lambda n: build_network("mlp", (4,), 2, hidden=(n,)), lambda n: LeNetSizes((2,), (0,), (2,), (n,))],
    "depth": [lambda n: VisionTransformer(SHAPE, depth=n)],
    "input_shape": [lambda n: LeNet((1, n, n)), lambda n: build_network("mlp", (n, n), 2)],
}


@pytest.mark.parametrize("kind", BAD)
def test_losses_and_data_are_refused(kind):
    for loss in LOSSES.values():
        with pytest.raises((TypeError, ValueError), match="outputs must"):
            loss(BAD[kind], CLASSES)
    for loss in (cross_entropy, square_loss):
        with pytest.raises((TypeError, ValueError), match="targets must"):
            loss(OUTPUTS, BAD[kind])
    with pytest.raises((TypeError, ValueError), match="inputs must"):
        NetworkLandscape(MLP((2, 2)), cross_entropy, BAD[kind], CLASSES)
    with pytest.raises((TypeError, ValueError), match="targets must"):
        NetworkLandscape(MLP((2, 2)), cross_entropy, OUTPUTS, BAD[kind])
    with pytest.raises((TypeError, ValueError), match="inputs must"):
        Data(BAD[kind], CLASSES, 2)
    if kind != "meta":  # modules on the meta device have shapes
        with pytest.raises((TypeError, ValueError), match="input x must"):
            MLP((2, 2))(BAD[kind])


@pytest.mark.parametrize("number", [10**9, 10**12, 2**63])
@pytest.mark.parametrize(("name", "which"), [(name, i) for name, calls in HUGE.items() for i in range(len(calls))])
def test_huge_networks_are_refused_before_they_are_built(name, which, number):
    with pytest.raises(ValueError, match=rf"{name}\b.*at most|{name} must have 2 to|at most .*{name}"):
        HUGE[name][which](number)


def test_a_seed_may_be_a_number_of_numpy():
    for net in (LeNet, VGG, ResNet, WideResNet, VisionTransformer):
        ours, theirs = (net(SHAPE, 2, seed=seed).state_dict() for seed in (3, np.int64(3)))
        assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize("net", [LeNet, VGG])
def test_poolings_are_names(net):
    with pytest.raises(ValueError, match="pooling must be"):
        net(SHAPE, 2, pooling=np.array([1.0, 2.0]))
