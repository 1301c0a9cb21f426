"""Networks by name: ``ARCHITECTURES[name](input_shape, classes, width=..., activation=..., seed=...) -> nn.Module``."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn

from landscapes.errors import MOST, check_choice, check_count, check_sequence, short_form
from landscapes.references import resolve_references
from nets.architectures import lenet
from nets.architectures.convolutional import VGG, AllCNN
from nets.architectures.initialise import DEEPEST, scale_widths
from nets.architectures.lenet import LeNet
from nets.architectures.mlp import MLP
from nets.architectures.residual import ResNet, WideResNet
from nets.architectures.transformer import VisionTransformer

Builder = Callable[..., nn.Module]


def fully_connected(
    input_shape: Sequence[int],
    classes: int,
    width: float = 1.0,
    activation: str = "relu",
    *,
    hidden: tuple[int, ...],
    norm: str = "none",
    seed: int = 0,
) -> MLP:
    """An MLP for inputs of that shape, with ``hidden`` layers scaled by ``width``."""
    check_sequence("input_shape", input_shape, "of sizes")
    if len(input_shape) > DEEPEST:
        raise ValueError(f"input_shape must have at most {DEEPEST} entries, got {len(input_shape)}")
    features = [check_count(f"input_shape[{i}]", side) for i, side in enumerate(input_shape)]
    if math.prod(features) > MOST:
        raise ValueError(f"input_shape must have at most {MOST} numbers, got {short_form(tuple(input_shape))}")
    sizes = (math.prod(features), *scale_widths(width, hidden, "hidden"), check_count("classes", classes))
    return MLP(sizes, activation, norm=norm, seed=seed)


ENTRIES: dict[str, str | Builder] = {
    "mlp": partial(fully_connected, hidden=(32,), activation="tanh"),
    "walk-mlp": partial(fully_connected, hidden=(500, 350)),
    "small-mnistfc": partial(fully_connected, hidden=(64,)),
    "small-fc": partial(fully_connected, hidden=(64,), norm="batch"),
    "tiny-fc": partial(fully_connected, hidden=(16,), norm="batch"),
    "shwartz-ziv": partial(fully_connected, hidden=(10, 7, 5, 4, 3), activation="tanh"),
    "polynomial-mlp": partial(fully_connected, hidden=(32,), activation="square"),
    "lenet": LeNet,
    "polynomial-lenet": partial(LeNet, activation="cubic"),
    "hessian-lenet": partial(LeNet, sizes=lenet.HESSIAN, activation="relu", pooling="max"),
    "small-lenet": partial(LeNet, sizes=lenet.SMALL, activation="relu", norm="batch", pooling="max"),
    "entropy-sgd-lenet": partial(LeNet, sizes=lenet.ENTROPY_SGD, activation="relu", norm="batch", pooling="max"),
    "all-cnn-c": AllCNN,
    "all-cnn-bn": partial(AllCNN, norm="batch", eighth=3, padding=1),
    "small-allcnn": partial(AllCNN, norm="batch", eighth=3, padding=1, channels=(12, 24)),
    "vgg-11": VGG,
    "resnet-18": partial(ResNet, channels=(64, 128, 256, 512), blocks=(2, 2, 2, 2), projected=True),
    "resnet-20": ResNet,
    "resnet-56": partial(ResNet, blocks=(9, 9, 9)),
    "wide-resnet-16-4": partial(WideResNet, blocks=2, widening=4),
    "wide-resnet-28-10": WideResNet,
    "vit": VisionTransformer,
}
"""Classes, functions or references by name; a new one is a line here (docs/extending.md)."""
ARCHITECTURES: dict[str, Builder] = resolve_references(ENTRIES)
"""Builders by name, with the sizes of their papers at ``width`` 1.

"walk-mlp": A Walk with SGD. "small-mnistfc", "hessian-lenet", "entropy-sgd-lenet", "all-cnn-bn": Entropy-SGD.
"small-fc", "tiny-fc", "small-lenet", "small-allcnn": SGD performs variational inference. "shwartz-ziv": the 12-bit
task. "mlp", "lenet", "vit" and the polynomial networks are small.
"""


def build_network(name: str, input_shape: Sequence[int], classes: int, **options: Any) -> nn.Module:
    """The network of that name; an option that is None keeps its default.

    Raises ValueError for an unknown name, or an option that the family does not have.
    """
    builder = ARCHITECTURES[check_choice("architecture", name, tuple(ARCHITECTURES))]
    given = {option: value for option, value in options.items() if value is not None}
    known = inspect.signature(builder).parameters
    for option, value in given.items():
        if option not in known:
            raise ValueError(f"{option} must be left out for {name!r}, which has none, got {value!r}")
    return builder(input_shape, classes, **given)


__all__ = [
    "ARCHITECTURES",
    "MLP",
    "VGG",
    "AllCNN",
    "LeNet",
    "ResNet",
    "VisionTransformer",
    "WideResNet",
    "build_network",
]
