"""The multilayer perceptron."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils import skip_init

from landscapes.errors import check_count, check_positive
from nets.architectures.initialise import activation_layer, draw_weights


class MLP(nn.Module):
    r"""x ← a(W_l x + b_l), no activation after the last layer: inputs (m, ...) flattened to (m, widths[0]).

    ``widths`` names every layer, inputs and outputs included: (64, 32, 10). Weights are torch's default distribution
    drawn from a generator of their own seeded by ``seed``.

    Raises TypeError or ValueError unless widths are two or more whole numbers and the activation is known.
    """

    def __init__(self, widths: Sequence[int], activation: str = "tanh", bias: bool = True, *, seed: int = 0):
        super().__init__()
        if isinstance(widths, str) or not isinstance(widths, Sequence):
            raise TypeError(f"widths must be a sequence of layer widths such as (64, 32, 10), got {widths!r}")
        if len(widths) < 2:
            raise ValueError(f"widths must name inputs and outputs at least, such as (64, 10), got {widths!r}")
        sizes = [check_count(f"widths[{i}]", width) for i, width in enumerate(widths)]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(sizes):
            layers += [skip_init(nn.Linear, narrow, wide, bias=bias), activation_layer(activation)]
        self.layers = nn.Sequential(*layers[:-1])
        draw_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, widths[-1]) of inputs (m, ...)."""
        return self.layers(x.flatten(1))


def build_mlp(
    input_shape: Sequence[int], classes: int, *, width: float = 1.0, activation: str = "tanh", seed: int = 0
) -> MLP:
    """An MLP with one hidden layer of 32 times ``width`` for inputs of that shape: 2,410 weights on the digits."""
    hidden = max(1, round(32 * check_positive("width", width)))
    return MLP((math.prod(input_shape), hidden, classes), activation, seed=seed)
