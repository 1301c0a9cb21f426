"""Layers and weights drawn from explicit generators, independent of torch's global generator."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn.utils import skip_init

from landscapes.errors import MOST, check_choice, check_count, check_positive, check_seed, check_sequence, short_form
from nets.layers import AveragePool, BatchNorm, Cubic, GroupNorm, Sine, SquareActivation

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "sine": Sine,
    "square": SquareActivation,
    "cubic": Cubic,
    "identity": nn.Identity,
}
MOST_WEIGHTS = 500_000_000  # of a layer: 2 GB in float32
DEEPEST = 10_000  # layers of an MLP, blocks of a stage
NORMS = ("batch", "group", "none")
POOLINGS = ("max", "average", "strided")


def activation_layer(name: str) -> nn.Module:
    """A new activation of that name; raise unless it is one of ``ACTIVATIONS``."""
    return ACTIVATIONS[check_choice("activation", name, tuple(ACTIVATIONS))]()


def norm_layers(name: str, channels: int) -> list[nn.Module]:
    """The norm of that name for C channels, as a list of at most one layer; raise unless it is one of ``NORMS``.

    Groups: the largest number with at least four channels each, at most 32 as in Wu & He 2018.
    """
    check_choice("norm", name, NORMS)
    if name == "none":
        return []
    if name == "batch":
        return [BatchNorm(channels)]
    groups = max(g for g in range(1, max(1, min(32, channels // 4)) + 1) if channels % g == 0)
    return [GroupNorm(groups, channels)]


def check_weights(inputs: int, outputs: int, kernel: int = 1) -> None:
    """Raise ValueError if a layer has more than ``MOST_WEIGHTS`` weights, before torch allocates them."""
    if inputs * outputs * kernel**2 > MOST_WEIGHTS:
        raise ValueError(
            f"input_shape, classes, width, widths, hidden, channels, features, heads and kernels must leave at most "
            f"{MOST_WEIGHTS:,} weights a layer, got {short_form(inputs)} inputs, {short_form(outputs)} "
            f"outputs and kernels of {short_form(kernel)}"
        )


def linear(inputs: int, outputs: int, bias: bool = True) -> nn.Module:
    """A linear layer with uninitialised weights."""
    check_weights(inputs, outputs)
    return skip_init(nn.Linear, inputs, outputs, bias=bias)


def convolution(
    inputs: int, outputs: int, kernel: int, stride: int = 1, padding: int = 0, bias: bool = True
) -> nn.Module:
    """A convolution with uninitialised weights."""
    check_weights(inputs, outputs, kernel)
    return skip_init(nn.Conv2d, inputs, outputs, kernel, stride=stride, padding=padding, bias=bias)


def pooling_layers(name: str, size: int) -> list[nn.Module]:
    """Pooling of that name over ``size`` × ``size`` pixels; none for "strided": the convolution has a stride."""
    check_choice("pooling", name, POOLINGS)
    if name == "strided":
        return []
    return [nn.MaxPool2d(size) if name == "max" else AveragePool(size)]


def scale_widths(width: float, counts: Sequence[int], name: str = "channels") -> tuple[int, ...]:
    """Each of the counts of that ``name`` times ``width``, rounded, at least 1."""
    check_positive("width", width)
    check_sequence(name, counts, "of whole numbers, one a layer or stage")
    if len(counts) > DEEPEST:
        raise ValueError(f"{name} must have at most {DEEPEST} entries, got {len(counts)}")
    for i, count in enumerate(counts):
        check_count(f"{name}[{i}]", count, maximum=MOST)
        if width * count > MOST:
            raise ValueError(f"width must leave at most {MOST:,} {name} in a layer, got {width!r} times {count!r}")
    return tuple(max(1, round(width * count)) for count in counts)


def check_image_shape(shape: Sequence[int], smallest: int) -> tuple[int, int, int]:
    """Return (C, H, W); raise unless the shape has this form with H and W at least ``smallest``."""
    check_sequence("input_shape", shape, "(C, H, W)")
    if len(shape) != 3:
        raise ValueError(
            f"input_shape must be (C, H, W), got {short_form(shape)}; use an MLP for inputs that are not images"
        )
    channels, height, breadth = shape
    return (
        check_count("input_shape[0]", channels),
        check_count("input_shape[1]", height, minimum=smallest),
        check_count("input_shape[2]", breadth, minimum=smallest),
    )


def draw_weights(module: nn.Module, seed: int) -> None:
    r"""Draw weights and biases of linear and convolution layers from U(−1/√k, 1/√k), k the inputs of one unit.

    torch's default distribution, from a separate generator: equal seeds give equal weights on every device.
    """
    generator = torch.Generator().manual_seed(check_seed(seed))
    for layer in drawn_layers(module):
        bound = 1 / math.sqrt(layer.weight[0].numel())
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound, generator=generator)


def draw_he_weights(module: nn.Module, seed: int) -> None:
    r"""Draw weights of linear and convolution layers from N(0, 2/k), k the inputs of one unit; biases are zero.

    Preserves the variance of activations through many ReLU layers. He et al. 2015, arXiv 1502.01852, eq. (10).
    """
    generator = torch.Generator().manual_seed(check_seed(seed))
    for layer in drawn_layers(module):
        nn.init.normal_(layer.weight, 0, math.sqrt(2 / layer.weight[0].numel()), generator=generator)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


def drawn_layers(module: nn.Module) -> list[nn.Linear | nn.Conv2d]:
    """The linear and convolution layers, in order."""
    return [layer for layer in module.modules() if isinstance(layer, (nn.Linear, nn.Conv2d))]
