"""Residual networks: ResNet-18, the CIFAR ResNets of depth 6n + 2, wide ResNets."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from landscapes.errors import check_choice, check_count, check_flag, check_positive, check_sequence
from nets.architectures.initialise import (
    DEEPEST,
    NORMS,
    activation_layer,
    check_image_shape,
    convolution,
    draw_he_weights,
    linear,
    norm_layers,
    scale_widths,
)
from nets.layers import check_images


class Subsample(nn.Module):
    """Every second pixel, new channels zero: the shortcut without weights (option A of He et al. 2015)."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """Images (m, outputs, H / stride, W / stride)."""
        return F.pad(x[..., :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.added))


class BasicBlock(nn.Module):
    """a(norm conv a(norm conv x) + shortcut x), 3×3 convolutions, the first with the stride."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str, norm: str, projected: bool):
        super().__init__()
        bias = norm == "none"  # a norm would cancel the bias
        self.residual = nn.Sequential(
            convolution(inputs, outputs, 3, stride, 1, bias),
            *norm_layers(norm, outputs),
            activation_layer(activation),
            convolution(outputs, outputs, 3, 1, 1, bias),
            *norm_layers(norm, outputs),
        )
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = [convolution(inputs, outputs, 1, stride, 0, bias), *norm_layers(norm, outputs)]
            self.shortcut = nn.Sequential(*projection) if projected else Subsample(inputs, outputs, stride)
        self.activation = activation_layer(activation)

    def forward(self, x: Tensor) -> Tensor:
        """Images (m, outputs, H / stride, W / stride)."""
        return self.activation(self.residual(x) + self.shortcut(x))


class PreactivatedBlock(nn.Module):
    """conv a norm conv a norm x + x; if sizes change, the shortcut is a 1×1 convolution of a norm x."""

    def __init__(self, inputs: int, outputs: int, stride: int, activation: str, norm: str):
        super().__init__()
        bias = norm == "none"
        self.before = nn.Sequential(*norm_layers(norm, inputs), activation_layer(activation))
        self.residual = nn.Sequential(
            convolution(inputs, outputs, 3, stride, 1, bias),
            *norm_layers(norm, outputs),
            activation_layer(activation),
            convolution(outputs, outputs, 3, 1, 1, bias),
        )
        changes = stride != 1 or inputs != outputs
        self.projection = convolution(inputs, outputs, 1, stride, 0, bias) if changes else None

    def forward(self, x: Tensor) -> Tensor:
        """Images (m, outputs, H / stride, W / stride)."""
        y = self.before(x)
        return self.residual(y) + (x if self.projection is None else self.projection(y))


class ResNet(nn.Module):
    r"""3×3 convolution, stages of ``BasicBlock``s that halve the pixels, mean over pixels, linear: images (m, C, H, W).

    ``channels`` and ``blocks`` have one entry a stage. CIFAR style: 16, 32, 64 channels with n blocks each and
    shortcuts without weights, depth 6n + 2 (ResNet-20: 269,722 weights; ResNet-56: 853,018). ``projected`` shortcuts,
    64 to 512 channels and two blocks a stage are ResNet-18 with the usual stem for small images (11,173,962). He et al.
    2015, arXiv 1512.03385, section 4.2.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        width: float = 1.0,
        activation: str = "relu",
        *,
        norm: str = "batch",
        channels: tuple[int, ...] = (16, 32, 64),
        blocks: tuple[int, ...] = (3, 3, 3),
        projected: bool = False,
        seed: int = 0,
    ):
        super().__init__()
        images = check_image_shape(input_shape, smallest=1)[0]
        check_flag("projected", projected)
        check_choice("norm", norm, NORMS)
        wides = scale_widths(width, channels)
        check_sequence("blocks", blocks, "of whole numbers, one a stage")
        if not channels or len(channels) != len(blocks):
            raise ValueError(f"channels and blocks must have one entry a stage each, got {channels} and {blocks}")
        for i, number in enumerate(blocks):
            check_count(f"blocks[{i}]", number, maximum=DEEPEST)
        stem = [convolution(images, wides[0], 3, 1, 1, bias=norm == "none"), *norm_layers(norm, wides[0])]
        layers = [*stem, activation_layer(activation)]
        previous = wides[0]
        for stage, (wide, count) in enumerate(zip(wides, blocks, strict=True)):
            for i in range(count):
                stride = 2 if stage > 0 and i == 0 else 1
                layers.append(BasicBlock(previous, wide, stride, activation, norm, projected))
                previous = wide
        self.features = nn.Sequential(*layers)
        self.classifier = linear(previous, check_count("classes", classes))
        draw_he_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, classes) of images (m, C, H, W)."""
        return self.classifier(self.features(check_images(x, self.features[0].in_channels)).mean((2, 3)))


class WideResNet(nn.Module):
    r"""3×3 convolution, three stages of preactivated blocks, norm, mean over pixels, linear: images (m, C, H, W).

    WRN-d-k has (d − 4)/6 ``blocks`` a stage and 16k, 32k, 64k channels, k = ``widening``. Zagoruyko & Komodakis 2016,
    arXiv 1605.07146, table 1, without dropout.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        width: float = 1.0,
        activation: str = "relu",
        *,
        norm: str = "batch",
        blocks: int = 4,
        widening: int = 10,
        seed: int = 0,
    ):
        super().__init__()
        images = check_image_shape(input_shape, smallest=1)[0]
        check_count("blocks", blocks, maximum=DEEPEST)
        check_choice("norm", norm, NORMS)
        check_positive("widening", widening)
        check_positive("width", width)
        # the stem keeps 16 channels unless all are narrowed
        (previous,) = scale_widths(min(1.0, width * widening), [16])
        layers: list[nn.Module] = [convolution(images, previous, 3, 1, 1, bias=norm == "none")]
        for stage, wide in enumerate(scale_widths(width * widening, (16, 32, 64))):
            for i in range(blocks):
                layers.append(PreactivatedBlock(previous, wide, 2 if stage > 0 and i == 0 else 1, activation, norm))
                previous = wide
        self.features = nn.Sequential(*layers, *norm_layers(norm, previous), activation_layer(activation))
        self.classifier = linear(previous, check_count("classes", classes))
        draw_he_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, classes) of images (m, C, H, W)."""
        return self.classifier(self.features(check_images(x, self.features[0].in_channels)).mean((2, 3)))
