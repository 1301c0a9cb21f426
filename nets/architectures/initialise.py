"""Layers and weights drawn from explicit generators: building a network leaves torch's global generator alone."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import nn

from landscapes.errors import check_choice, check_count

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "identity": nn.Identity,
}


def activation_layer(name: str) -> nn.Module:
    """A fresh activation of that name; raise unless it is one of ``ACTIVATIONS``."""
    return ACTIVATIONS[check_choice("activation", name, tuple(ACTIVATIONS))]()


def draw_weights(module: nn.Module, seed: int) -> None:
    r"""Draw weights and biases of linear and convolution layers from U(−1/√k, 1/√k), k the inputs of one unit.

    torch's own default distribution, from a generator of its own: equal seeds give equal weights on every device.
    """
    generator = torch.Generator().manual_seed(check_count("seed", seed, minimum=0))
    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            bound = 1 / math.sqrt(layer.weight[0].numel())
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound, generator=generator)
