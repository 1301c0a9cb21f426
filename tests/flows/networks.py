"""Small smooth networks that flows are tested on, float64."""

import functools

import torch
import torch.nn.functional as F
from torch import nn

from nets import MLP, NetworkLandscape, cross_entropy, load_data
from tests.tensors import draw


@functools.cache
def digits_network():
    """A tanh MLP of 40 weights on 20 digits, shrunk to 2×2 pixels, with one smooth loss an example."""
    digits = load_data("digits", limit=20)
    inputs = F.avg_pool2d(digits.inputs.reshape(-1, 1, 8, 8), 4).flatten(1)
    loss = functools.partial(F.cross_entropy, reduction="none")
    return NetworkLandscape(MLP((4, 2, 10)).double(), loss, inputs.double(), digits.targets)


@functools.cache
def tanh_network(chunk_size=None):
    """A tanh MLP of 27 weights on 6 points."""
    generator = torch.Generator().manual_seed(3)
    inputs = torch.randn(6, 2, generator=generator, dtype=torch.float64)
    module = MLP((2, 4, 3), seed=1).double()
    return NetworkLandscape(module, cross_entropy, inputs, torch.arange(6) % 3, chunk_size)


@functools.cache
def wide_network():
    """A tanh network of 31 weights on 15 points in three classes, torch's own start."""
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).double()
    return NetworkLandscape(module, cross_entropy, draw(1, 15, 3), torch.arange(15) % 3)
