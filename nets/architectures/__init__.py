"""Networks by name: ``ARCHITECTURES[name](input_shape, classes, width=..., activation=..., seed=...) -> nn.Module``."""

from collections.abc import Callable

from torch import nn

from nets.architectures.lenet import LeNet, build_lenet
from nets.architectures.mlp import MLP, build_mlp

ARCHITECTURES: dict[str, Callable[..., nn.Module]] = {"mlp": build_mlp, "lenet": build_lenet}

__all__ = ["ARCHITECTURES", "MLP", "LeNet"]
