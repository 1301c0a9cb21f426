r"""Networks on data as a script's ground, each a typed configuration."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscapes import Landscape
from nets import ARCHITECTURES, NetworkLandscape, load_data

LossFunction = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class NetGround:
    """A network on real data, full batch or mini-batches of it."""

    architecture: Literal["lenet", "mlp"] = "lenet"
    data: Literal["digits", "breast-cancer"] = "digits"
    examples: int | None = 300
    """Class-balanced training examples; None for all."""
    width: float = 0.5
    """Multiplies channels and hidden units."""
    activation: str = "tanh"
    loss: Literal["cross-entropy", "square"] = "cross-entropy"
    chunk_size: int | None = None
    """Examples whose graph is held at once; None for all."""

    def parts(self, seed: int, dtype: torch.dtype, device: str) -> tuple[nn.Module, LossFunction, Tensor, Tensor]:
        """Module, loss of each example, inputs and targets."""
        data = load_data(self.data, limit=self.examples, seed=seed)
        shape = tuple(data.inputs.shape[1:])
        build = functools.partial(ARCHITECTURES[self.architecture], shape, data.classes)
        module = build(width=self.width, activation=self.activation, seed=seed).to(device, dtype)
        loss = cross_entropy if self.loss == "cross-entropy" else square_error
        return module, loss, data.inputs.to(device, dtype), data.targets.to(device)

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: the network's own random weights, drawn with the seed."""
        landscape = NetworkLandscape(*self.parts(seed, dtype, device), chunk_size=self.chunk_size)
        return landscape, landscape.theta0


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example, (m,)."""
    return F.cross_entropy(outputs, targets, reduction="none")


def square_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ Σ_c (output_c − [c = target])² of each example, (m,)."""
    return (outputs - F.one_hot(targets, outputs.shape[-1])).square().sum(dim=-1) / 2
