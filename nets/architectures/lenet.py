"""Small convolutional networks after LeCun et al. 1998: convolutions and poolings, then linear layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from landscapes.errors import MOST, check_choice, check_count, check_flag, check_sequence
from nets.architectures.initialise import (
    DEEPEST,
    POOLINGS,
    activation_layer,
    check_image_shape,
    convolution,
    draw_weights,
    linear,
    norm_layers,
    pooling_layers,
    scale_widths,
)
from nets.layers import check_images


@dataclass(frozen=True)
class LeNetSizes:
    """Sizes of a LeNet: one entry a convolution, then hidden units; ``dense_norm``: norms also after linear layers."""

    channels: tuple[int, ...]
    paddings: tuple[int, ...]
    pools: tuple[int, ...]
    hidden: tuple[int, ...]
    kernel: int = 5
    dense_norm: bool = True

    def __post_init__(self) -> None:
        for name, least in (("channels", 1), ("paddings", 0), ("pools", 1), ("hidden", 1)):
            entries = getattr(self, name)
            check_sequence(name, entries, "of whole numbers")
            if len(entries) > DEEPEST:
                raise ValueError(f"{name} must have at most {DEEPEST} entries, got {len(entries)}")
            for i, entry in enumerate(entries):
                check_count(f"{name}[{i}]", entry, minimum=least, maximum=MOST)
        if not len(self.channels) == len(self.paddings) == len(self.pools):
            raise ValueError(f"channels, paddings and pools must have one entry a convolution each, got {self}")
        check_count("kernel", self.kernel, maximum=MOST)
        check_flag("dense_norm", self.dense_norm)


DIGITS = LeNetSizes((6, 16), (1, 1), (2, 2), (32,), kernel=3)
MNIST = LeNetSizes((6, 16), (2, 0), (2, 2), (120, 84))
LENET_5 = LeNetSizes((6, 16), (0, 0), (2, 2), (120, 84))
HESSIAN = LeNetSizes((10, 20), (0, 0), (2, 2), (128,))
SMALL = LeNetSizes((8, 16), (0, 0), (3, 2), (128,))
ENTROPY_SGD = LeNetSizes((20, 50), (0, 0), (3, 2), (500,), dense_norm=False)


class LeNet(nn.Module):
    r"""(convolution – norm – activation – pooling)s – (linear – norm – activation)s – linear: images (m, C, H, W).

    ``sizes`` None depends on the image: LeNet-5 (LeCun et al. 1998: 5×5 kernels, 6 and 16 channels, 120 and 84 hidden
    units; 61,706 weights on MNIST, whose images are padded to 32 pixels), and below 16 pixels a side a small network
    (3×3 kernels, 32 hidden units; 3,350 weights on 8×8 digits). Differences from 1998: pooling has no weights, the
    second convolution uses all channels, the last layer is linear. ``width`` multiplies channels and hidden units.
    ``pooling``: "max", "average", or "strided", which replaces pooling by the stride of the convolution. Weights have
    torch's default distribution, from a generator seeded by ``seed``.

    Raises TypeError or ValueError, naming the argument, for invalid arguments.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        width: float = 1.0,
        activation: str = "tanh",
        *,
        norm: str = "none",
        pooling: str = "average",
        sizes: LeNetSizes | None = None,
        seed: int = 0,
    ):
        super().__init__()
        channels, *sides = check_image_shape(input_shape, smallest=4)
        check_count("classes", classes)
        check_choice("pooling", pooling, POOLINGS)
        sizes = sizes_for(min(sides)) if sizes is None else sizes
        if not isinstance(sizes, LeNetSizes):
            raise TypeError(f"sizes must be LeNetSizes or None, got {type(sizes).__name__}")
        layers: list[nn.Module] = []
        stages = zip(scale_widths(width, sizes.channels), sizes.paddings, sizes.pools, strict=True)
        for wide, padding, pool in stages:
            stride = pool if pooling == "strided" else 1  # a stride before pointwise activations replaces pooling
            layers += [convolution(channels, wide, sizes.kernel, stride, padding), *norm_layers(norm, wide)]
            layers += [activation_layer(activation), *pooling_layers(pooling, pool)]
            sides = [pooled_size(side + 2 * padding - sizes.kernel + 1, pool, pooling) for side in sides]
            channels = wide
        if min(sides) < 1:
            raise ValueError(
                f"input_shape must have larger images for these kernels, paddings and pools, got {input_shape}"
            )
        self.features = nn.Sequential(*layers)
        dense: list[nn.Module] = []
        units = channels * sides[0] * sides[1]
        for wide in scale_widths(width, sizes.hidden, "hidden"):
            dense += [linear(units, wide), *norm_layers(norm if sizes.dense_norm else "none", wide)]
            dense += [activation_layer(activation)]
            units = wide
        self.classifier = nn.Sequential(*dense, linear(units, classes))
        draw_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, classes) of images (m, C, H, W)."""
        return self.classifier(self.features(check_images(x, self.features[0].in_channels)).flatten(1))


def sizes_for(side: int) -> LeNetSizes:
    """The sizes for images with ``side`` pixels on their shorter side."""
    if side < 16:
        return DIGITS
    return MNIST if side < 32 else LENET_5


def pooled_size(size: int, pool: int, pooling: str) -> int:
    """Pixels a side after one pooling: pools drop a remainder at the edge, strides keep its first pixel."""
    return -(-size // pool) if pooling == "strided" else size // pool
