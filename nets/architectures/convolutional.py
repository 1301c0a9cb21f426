"""Plain convolutional networks: the all-convolutional net of Springenberg et al. and VGG."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from landscapes.errors import check_choice, check_count, short_form
from nets.architectures.initialise import (
    POOLINGS,
    activation_layer,
    check_image_shape,
    convolution,
    draw_he_weights,
    linear,
    norm_layers,
    pooling_layers,
    scale_widths,
)
from nets.layers import check_images

MOST_PADDING = 1000  # pixels


class AllCNN(nn.Module):
    r"""Nine convolutions and a mean over pixels, strides in place of pooling: images (m, C, H, W), at least 8×8.

    Three 3×3 convolutions with the first of ``channels``, three with the second, the third of each with stride 2, then
    a 3×3 one, one of ``eighth`` × ``eighth``, and 1×1 to the classes. ``eighth`` = 1, ``padding`` = 0 is All-CNN-C
    (Springenberg et al. 2014, arXiv 1412.6806, table 1; 1,369,738 weights); ``eighth`` = 3, ``padding`` = 1 and batch
    norm after every convolution, the last included, is the variant of Chaudhari et al. (1611.01838; 1,667,166 weights;
    26,982 with channels (12, 24), 1710.11029). Dropout is omitted, as the loss must be a function of θ.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        width: float = 1.0,
        activation: str = "relu",
        *,
        norm: str = "none",
        channels: tuple[int, int] = (96, 192),
        eighth: int = 1,
        padding: int = 0,
        seed: int = 0,
    ):
        super().__init__()
        check_count("padding", padding, minimum=0, maximum=MOST_PADDING)
        # without padding the seventh convolution needs three pixels, hence nine before two strides
        images = check_image_shape(input_shape, smallest=8 if padding else 9)[0]
        check_count("eighth", eighth, maximum=MOST_PADDING)
        wides = scale_widths(width, channels)
        if len(wides) != 2:
            raise ValueError(f"channels must have two entries, got {short_form(channels)}")
        first, second = wides
        stages = [(first, 3, 1, 1), (first, 3, 1, 1), (first, 3, 2, 1), (second, 3, 1, 1), (second, 3, 1, 1)]
        stages += [(second, 3, 2, 1), (second, 3, 1, padding), (second, eighth, 1, eighth // 2)]
        stages += [(check_count("classes", classes), 1, 1, 0)]
        layers: list[nn.Module] = []
        for wide, kernel, stride, pad in stages:
            layers += [convolution(images, wide, kernel, stride, pad), *norm_layers(norm, wide)]
            layers += [activation_layer(activation)]
            images = wide
        self.features = nn.Sequential(*layers)
        draw_he_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, classes) of images (m, C, H, W)."""
        return self.features(check_images(x, self.features[0].in_channels)).mean((2, 3))


VGG_11 = (64, "pool", 128, "pool", 256, 256, "pool", 512, 512, "pool", 512, 512, "pool")


class VGG(nn.Module):
    r"""3×3 convolutions and poolings by two, a mean over pixels and one linear layer: images (m, C, H, W).

    Configuration A of Simonyan & Zisserman 2014 (arXiv 1409.1556) with the usual head for small images: VGG-11,
    9,231,114 weights with batch norm on CIFAR-10. Poolings that would leave no pixel are omitted.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        width: float = 1.0,
        activation: str = "relu",
        *,
        norm: str = "batch",
        pooling: str = "max",
        seed: int = 0,
    ):
        super().__init__()
        channels, *sides = check_image_shape(input_shape, smallest=1)
        check_count("classes", classes)
        check_choice("pooling", pooling, POOLINGS)
        layers: list[nn.Module] = []
        for entry, following in zip(VGG_11, (*VGG_11[1:], ""), strict=True):
            if isinstance(entry, int):
                (wide,) = scale_widths(width, [entry])
                stride = 2 if pooling == "strided" and following == "pool" and min(sides) > 1 else 1
                layers += [convolution(channels, wide, 3, stride, 1), *norm_layers(norm, wide)]
                layers += [activation_layer(activation)]
                channels = wide
            elif min(sides) > 1:
                layers += pooling_layers(pooling, 2)
                sides = [-(-side // 2) if pooling == "strided" else side // 2 for side in sides]
        self.features = nn.Sequential(*layers)
        self.classifier = linear(channels, classes)
        draw_he_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, classes) of images (m, C, H, W)."""
        return self.classifier(self.features(check_images(x, self.features[0].in_channels)).mean((2, 3)))
