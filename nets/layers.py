r"""Layers with correct derivatives of every order, real or complex: norms, pooling and polynomial activations.

torch's fused LayerNorm, BatchNorm (training mode) and InstanceNorm give wrong third derivatives by repeated reverse
mode, and wrong second ones by forward mode, without an error. Here norms are written as sums, products and one inverse
square root. At complex x variances are bilinear, (x − μ)² and not |x − μ|², which keeps them holomorphic.
"""

from __future__ import annotations

from typing import Any, final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from landscapes.autodiff import inside_transform
from landscapes.errors import FLOATING, MOST, check_count, check_float_tensor, check_positive


def widen(x: Tensor) -> Tensor:
    """x, in float32 if it has 16 bits, whose squares may overflow."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def standardise(x: Tensor, dims: tuple[int, ...], epsilon: float) -> Tensor:
    """(x − μ)/√(σ² + ε), mean and biased variance over ``dims``."""
    centred = x - x.mean(dims, keepdim=True)
    return centred * torch.rsqrt((centred * centred).mean(dims, keepdim=True) + epsilon)


def broadcast_channels(parameter: Tensor, x: Tensor) -> Tensor:
    """A vector (C,) shaped to broadcast with x (m, C, ...)."""
    return parameter.reshape(-1, *[1] * (x.ndim - 2))


def check_input(x: Tensor) -> Tensor:
    """Return x; raise unless it is a floating or complex tensor with strides, or has a shape only (meta)."""
    if not (isinstance(x, Tensor) and x.is_meta and x.dtype in FLOATING):
        check_float_tensor("input x", x)
    return x


def check_images(x: Tensor, channels: Any) -> Tensor:
    """Return images x; raise unless they have shape (m, channels, H, W)."""
    if check_input(x).ndim != 4 or x.shape[1] != channels:
        raise ValueError(f"input x must have shape (m, {channels}, H, W), got {tuple(x.shape)}")
    return x


def check_channels(x: Tensor, channels: int) -> Tensor:
    """Return x; raise unless it has shape (m, channels, ...)."""
    if check_input(x).ndim < 2 or x.shape[1] != channels:
        raise ValueError(f"input must have shape (m, {channels}, ...), got {tuple(x.shape)}")
    return x


@final
class BatchNorm(nn.Module):
    r"""y = γ (x − μ)/√(σ² + ε) + β for x (m, C, ...): each channel standardised over examples and pixels.

    Training mode uses μ and σ² (biased) of the batch and updates ``running_mean`` and ``running_var`` (unbiased) with
    ``momentum``; evaluation mode uses the running ones. Values and state dicts are those of torch's BatchNorm. Ioffe &
    Szegedy 2015, arXiv 1502.03167, algorithm 1.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, channels: int, epsilon: float = 1e-5, momentum: float = 0.1):
        super().__init__()
        self.channels = check_count("channels", channels, maximum=MOST)
        self.epsilon = check_positive("epsilon", epsilon)
        self.momentum = check_positive("momentum", momentum)
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        wide = widen(check_channels(x, self.channels))
        if self.training:
            mean, variance = self._batch_statistics(wide)
        else:
            mean, variance = self.running_mean, self.running_var
        scale = self.weight * torch.rsqrt(variance + self.epsilon)
        shift = broadcast_channels(self.bias, x)
        return ((wide - broadcast_channels(mean, x)) * broadcast_channels(scale, x) + shift).to(x.dtype)

    def _batch_statistics(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and biased variance of each channel (C,); updates the running ones."""
        values = x.transpose(0, 1).flatten(1)  # (C, m·pixels)
        count = values.shape[1]
        if count < 2:
            raise ValueError(f"batch statistics need at least two values a channel, got input {tuple(x.shape)}")
        mean = values.mean(1)
        centred = values - mean[:, None]
        variance = (centred * centred).mean(1)
        # vmap hides the batch, and buffers must not hold wrapped tensors
        if not (inside_transform() or x.is_complex()):
            with torch.no_grad():
                unbiased = variance * (count / (count - 1))
                self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
                self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)
                self.num_batches_tracked.add_(1)
        return mean, variance

    def extra_repr(self) -> str:
        return f"{self.channels}, epsilon={self.epsilon}, momentum={self.momentum}"


@final
class GroupNorm(nn.Module):
    r"""y = γ (x − μ)/√(σ² + ε) + β for x (m, C, ...): groups of channels standardised for each example.

    ``groups`` = C is instance norm, 1 is layer norm over channels and pixels. Wu & He 2018, arXiv 1803.08494.
    """

    def __init__(self, groups: int, channels: int, epsilon: float = 1e-5):
        super().__init__()
        self.groups = check_count("groups", groups)
        self.channels = check_count("channels", channels, maximum=MOST)
        self.epsilon = check_positive("epsilon", epsilon)
        if channels % groups:
            raise ValueError(f"groups must divide the {channels} channels, got {groups}")
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        check_channels(x, self.channels)
        groups = widen(x).unflatten(1, (self.groups, -1))
        y = standardise(groups, tuple(range(2, groups.ndim)), self.epsilon).flatten(1, 2)
        return (y * broadcast_channels(self.weight, x) + broadcast_channels(self.bias, x)).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.groups}, {self.channels}, epsilon={self.epsilon}"


@final
class LayerNorm(nn.Module):
    r"""y = γ (x − μ)/√(σ² + ε) + β over the last dimension of x (..., features). Ba et al. 2016, arXiv 1607.06450."""

    def __init__(self, features: int, epsilon: float = 1e-5):
        super().__init__()
        self.features = check_count("features", features, maximum=MOST)
        self.epsilon = check_positive("epsilon", epsilon)
        self.weight = nn.Parameter(torch.ones(features))
        self.bias = nn.Parameter(torch.zeros(features))

    def forward(self, x: Tensor) -> Tensor:
        if check_input(x).ndim == 0 or x.shape[-1] != self.features:
            raise ValueError(f"input must have shape (..., {self.features}), got {tuple(x.shape)}")
        return (standardise(widen(x), (-1,), self.epsilon) * self.weight + self.bias).to(x.dtype)

    def extra_repr(self) -> str:
        return f"{self.features}, epsilon={self.epsilon}"


@final
class AveragePool(nn.Module):
    """Means over ``size`` × ``size`` pixels, a remainder at the edge dropped; also for complex images."""

    def __init__(self, size: int):
        super().__init__()
        self.size = check_count("size", size)

    def forward(self, x: Tensor) -> Tensor:
        """Images (m, C, H // size, W // size)."""
        if check_input(x).ndim not in (3, 4):
            raise ValueError(f"input x must have shape (m, C, H, W), got {tuple(x.shape)}")
        if x.is_complex():
            return torch.complex(F.avg_pool2d(x.real, self.size), F.avg_pool2d(x.imag, self.size))
        return F.avg_pool2d(x, self.size)

    def extra_repr(self) -> str:
        return f"{self.size}"


@final
class SquareActivation(nn.Module):
    """x²: the loss of a network of squares is a polynomial in θ, whose high derivatives vanish."""

    def forward(self, x: Tensor) -> Tensor:
        """x², the same shape."""
        return x * x


@final
class Cubic(nn.Module):
    """x − x³/3, the Taylor polynomial of tanh of degree three."""

    def forward(self, x: Tensor) -> Tensor:
        """x − x³/3, the same shape."""
        return x * (1 - x * x / 3)


@final
class Sine(nn.Module):
    """sin x, an entire function: unlike tanh it has no poles at complex θ. Sitzmann et al. 2020, arXiv 2006.09661."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.sin(x)
