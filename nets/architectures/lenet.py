"""A small convolutional network after LeCun et al. 1998."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.utils import skip_init

from landscapes.errors import check_choice, check_count, check_positive
from nets.architectures.initialise import activation_layer, draw_weights

POOLINGS = ("average", "strided")


class LeNet(nn.Module):
    r"""conv – pool – conv – pool – linear – linear on images (m, C, H, W), H and W at least 4; outputs (m, classes).

    Images below 16 pixels a side: 3×3 kernels and 32 hidden units (3,350 weights on 8×8 digits); larger: 5×5 kernels
    and 84 hidden units. 6 and 16 channels; ``width`` multiplies channels and hidden units. Deliberate differences from
    LeNet-5: every convolution keeps the image's size, one hidden layer for two, pooling has no weights.
    ``pooling``: "average" over 2×2 pixels, or "strided", which keeps every second pixel of the convolution and is the
    one with complex kernels in torch. Weights are torch's default distribution drawn from a generator seeded by
    ``seed``.

    Raises TypeError or ValueError naming the argument outside its range.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (1, 8, 8),
        classes: int = 10,
        width: float = 1.0,
        activation: str = "tanh",
        *,
        pooling: str = "average",
        seed: int = 0,
    ):
        super().__init__()
        channels, height, breadth = check_image_shape(input_shape)
        check_count("classes", classes)
        check_positive("width", width)
        check_choice("pooling", pooling, POOLINGS)
        small = min(height, breadth) < 16
        kernel, hidden = (3, 32) if small else (5, 84)
        first, second, hidden = (max(1, round(width * n)) for n in (6, 16, hidden))
        self.features = nn.Sequential(
            *pooled_convolution(channels, first, kernel, activation, pooling),
            *pooled_convolution(first, second, kernel, activation, pooling),
        )
        pixels = pooled_size(pooled_size(height, pooling), pooling) * pooled_size(
            pooled_size(breadth, pooling), pooling
        )
        self.classifier = nn.Sequential(
            skip_init(nn.Linear, second * pixels, hidden),
            activation_layer(activation),
            skip_init(nn.Linear, hidden, classes),
        )
        draw_weights(self, seed)

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, classes) of images (m, C, H, W)."""
        return self.classifier(self.features(x).flatten(1))


def check_image_shape(shape: Sequence[int]) -> tuple[int, int, int]:
    """Return (C, H, W); raise unless it is that, with H and W at least 4 so that two poolings leave a pixel."""
    if isinstance(shape, str) or not isinstance(shape, Sequence):
        raise TypeError(f"input_shape must be a sequence (C, H, W), got {shape!r}")
    if len(shape) != 3:
        raise ValueError(f"input_shape must be (C, H, W), got {tuple(shape)}; use an MLP for inputs that are no images")
    channels, height, breadth = shape
    return (
        check_count("input_shape[0]", channels),
        check_count("input_shape[1]", height, minimum=4),
        check_count("input_shape[2]", breadth, minimum=4),
    )


def pooled_convolution(channels: int, out: int, kernel: int, activation: str, pooling: str) -> list[nn.Module]:
    """Convolution, activation and pooling. Pointwise activations let a stride of the convolution stand for pooling."""
    stride = 2 if pooling == "strided" else 1
    layers = [
        skip_init(nn.Conv2d, channels, out, kernel, stride=stride, padding=kernel // 2),
        activation_layer(activation),
    ]
    return [*layers, nn.AvgPool2d(2)] if pooling == "average" else layers


def pooled_size(size: int, pooling: str) -> int:
    """Pixels a side after one pooling: averages drop an odd last pixel, strides keep it."""
    return size // 2 if pooling == "average" else (size + 1) // 2


def build_lenet(
    input_shape: Sequence[int], classes: int, *, width: float = 1.0, activation: str = "tanh", seed: int = 0
) -> LeNet:
    """A LeNet for images of that shape."""
    return LeNet(input_shape, classes, width, activation, seed=seed)
