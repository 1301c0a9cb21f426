"""The forward passes of the papers, written out with torch's own layers, against ours."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from nets import ARCHITECTURES, VisionTransformer, build_network
from nets.architectures.initialise import draw_weights
from nets.architectures.residual import BasicBlock, PreactivatedBlock
from nets.architectures.transformer import Attention, TransformerBlock


def normed(layer, x):
    """Batch norm with the batch's statistics, by torch."""
    return F.batch_norm(x, None, None, layer.weight, layer.bias, training=True, eps=layer.epsilon)


def randomised(module):
    """Weights drawn, which blocks leave to their network; norms other than one and zero, to be seen where left out."""
    draw_weights(module, 0)
    generator = torch.Generator().manual_seed(3)
    for parameter in module.parameters():
        parameter.data += 0.2 * torch.randn(parameter.shape, generator=generator)
    return module.double()


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2)])
@pytest.mark.parametrize("projected", [False, True])
def test_a_residual_block(inputs, outputs, stride, projected, normal):
    block, x = BasicBlock(inputs, outputs, stride, "relu", "batch", projected), normal(1, 3, inputs, 6, 6)
    randomised(block)
    first, first_norm, _, second, second_norm = block.residual
    y = F.relu(normed(first_norm, F.conv2d(x, first.weight, stride=stride, padding=1)))
    y = normed(second_norm, F.conv2d(y, second.weight, padding=1))
    shortcut = x
    if stride == 2 and projected:
        projection, norm = block.shortcut
        shortcut = normed(norm, F.conv2d(x, projection.weight, stride=2))
    elif stride == 2:
        shortcut = torch.cat([x[..., ::2, ::2], torch.zeros(3, outputs - inputs, 3, 3)], 1)
    assert_close(block(x), F.relu(y + shortcut))


@pytest.mark.parametrize(("inputs", "outputs", "stride"), [(4, 4, 1), (4, 8, 2), (4, 8, 1)])
def test_a_preactivated_block(inputs, outputs, stride, normal):
    block, x = PreactivatedBlock(inputs, outputs, stride, "relu", "batch"), normal(1, 3, inputs, 6, 6)
    randomised(block)
    first, norm, _, second = block.residual
    before = F.relu(normed(block.before[0], x))
    y = F.relu(normed(norm, F.conv2d(before, first.weight, stride=stride, padding=1)))
    shortcut = x if inputs == outputs else F.conv2d(before, block.projection.weight, stride=stride)
    assert_close(block(x), F.conv2d(y, second.weight, padding=1) + shortcut)


def test_attention_is_torchs(normal):
    attention, x = randomised(Attention(8, 2)), normal(1, 3, 5, 8)
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).double()
    theirs.in_proj_weight.data, theirs.in_proj_bias.data = attention.into.weight.data, attention.into.bias.data
    theirs.out_proj.load_state_dict(attention.out.state_dict())
    assert_close(attention(x), theirs(x, x, x)[0])


def test_a_transformer_block_normalises_before_each_half(normal):
    block, x = randomised(TransformerBlock(8, 2, 16, "gelu", "layer")), normal(1, 3, 5, 8)
    first, attention = block.attention
    second, into, _, out = block.mlp
    y = x + attention(F.layer_norm(x, [8], first.weight, first.bias))
    hidden = F.gelu(into(F.layer_norm(y, [8], second.weight, second.bias)))
    assert_close(block(x), y + out(hidden))


def test_a_vision_transformer_sees_patches_in_place(normal):
    module, x = (
        randomised(VisionTransformer((2, 8, 8), 3, patch=4, features=8, heads=2, depth=1)),
        normal(1, 3, 2, 8, 8),
    )
    patches = F.unfold(x, 4, stride=4).mT  # (m, 4 patches, 2·4·4)
    kernel = module.patches.weight.flatten(1)
    tokens = patches @ kernel.T + module.patches.bias + module.positions
    assert_close(module(x), module.classifier(module.blocks(tokens).mean(1)))
    assert not torch.allclose(module(x), module(x.flip(-1)))  # positions tell left from right


# sides of the images after each convolution, as in the papers' tables: CIFAR-10, MNIST for the LeNets
MAPS = {
    "all-cnn-c": [32, 32, 16, 16, 16, 8, 6, 6, 6],
    "all-cnn-bn": [32, 32, 16, 16, 16, 8, 8, 8, 8],
    "small-allcnn": [32, 32, 16, 16, 16, 8, 8, 8, 8],
    "vgg-11": [32, 16, 8, 8, 4, 4, 2, 2],
    "resnet-20": [32] * 7 + [16] * 6 + [8] * 6,
    "resnet-56": [32] * 19 + [16] * 18 + [8] * 18,
    "lenet": [28, 10],
    "small-lenet": [24, 4],
    "hessian-lenet": [24, 8],
    "entropy-sgd-lenet": [24, 4],
}


@pytest.mark.parametrize("name", MAPS)
def test_images_shrink_as_in_the_paper(name):
    shape = (1, 28, 28) if "lenet" in name else (3, 32, 32)
    module, sides = build_network(name, shape, 10, width=0.1), []
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _, __, out: sides.append(out.shape[-1]))
    module(torch.zeros(2, *shape))
    assert sides == MAPS[name]


@pytest.mark.parametrize(("name", "depth"), [("resnet-18", 18), ("resnet-20", 20), ("resnet-56", 56), ("vgg-11", 9)])
def test_depth_is_counted_as_the_papers_do(name, depth):
    """Convolutions and linear layers, projections left out; VGG-11 has one linear layer here in place of three."""
    with torch.device("meta"):
        module = ARCHITECTURES[name]((3, 32, 32), 10)
    kernels = [layer.kernel_size for layer in module.modules() if isinstance(layer, nn.Conv2d)]
    linear = sum(isinstance(layer, nn.Linear) for layer in module.modules())
    assert sum(kernel != (1, 1) for kernel in kernels) + linear == depth


def test_a_wide_resnet_halves_twice_and_widens():
    with torch.device("meta"):
        module = ARCHITECTURES["wide-resnet-28-10"]((3, 32, 32), 10)
        blocks = [layer for layer in module.modules() if isinstance(layer, PreactivatedBlock)]
        strides = [block.residual[0].stride[0] for block in blocks]
    assert strides == [1] * 4 + [2, 1, 1, 1] * 2
    assert [block.residual[0].out_channels for block in blocks] == [160] * 4 + [320] * 4 + [640] * 4
