"""The multilayer perceptron."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor, nn

from landscapes.errors import MOST, check_count, check_flag, check_sequence, short_form
from nets.architectures.initialise import DEEPEST, activation_layer, draw_weights, linear, norm_layers
from nets.layers import check_input


class MLP(nn.Module):
    r"""x ← a(norm(W_l x + b_l)), neither norm nor activation after the last layer: inputs (m, ...) flattened.

    ``widths`` of all layers, inputs and outputs included: (64, 32, 10). ``norm`` is "none", "batch" or "group". Weights
    have torch's default distribution, from a generator seeded by ``seed``.

    Raises TypeError or ValueError unless widths are at least two positive integers and activation and norm are known.
    """

    def __init__(
        self, widths: Sequence[int], activation: str = "tanh", bias: bool = True, *, norm: str = "none", seed: int = 0
    ):
        super().__init__()
        check_sequence("widths", widths, "of layer widths such as (64, 32, 10)")
        if not 2 <= len(widths) <= DEEPEST:
            raise ValueError(f"widths must have 2 to {DEEPEST} entries, as (64, 10), got {short_form(widths)}")
        check_flag("bias", bias)
        sizes = [check_count(f"widths[{i}]", width, maximum=MOST) for i, width in enumerate(widths)]
        layers: list[nn.Module] = []
        for narrow, wide in pairwise(sizes[:-1]):
            layers += [linear(narrow, wide, bias), *norm_layers(norm, wide), activation_layer(activation)]
        self.layers = nn.Sequential(*layers, linear(sizes[-2], sizes[-1], bias))
        draw_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, widths[-1]) of inputs (m, ...)."""
        inputs: Any = self.layers[0].in_features
        if check_input(x).ndim < 2 or x.numel() != inputs * x.shape[0]:
            raise ValueError(f"input x must have shape (m, ...) with {inputs} numbers each, got {tuple(x.shape)}")
        return self.layers(x.flatten(1))
