"""A small Vision Transformer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from landscapes.errors import MOST, check_choice, check_count, check_seed
from nets.architectures.initialise import (
    DEEPEST,
    activation_layer,
    check_image_shape,
    check_weights,
    convolution,
    draw_weights,
    linear,
    scale_widths,
)
from nets.layers import LayerNorm, check_images

TOKEN_NORMS = ("layer", "none")


def token_norm(name: str, features: int) -> nn.Module:
    """The norm of that name for tokens (m, tokens, features)."""
    return LayerNorm(features) if check_choice("norm", name, TOKEN_NORMS) == "layer" else nn.Identity()


class Attention(nn.Module):
    r"""softmax(QKᵀ/√d) V in each head, from plain products: fused kernels have no second derivative."""

    def __init__(self, features: int, heads: int):
        super().__init__()
        self.heads = heads
        self.into = linear(features, 3 * features)
        self.out = linear(features, features)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (m, tokens, features)."""
        q, k, v = self.into(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # (m, heads, tokens, d)
        weights = torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), dim=-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """x + attention(norm x), then x + mlp(norm x)."""

    def __init__(self, features: int, heads: int, hidden: int, activation: str, norm: str):
        super().__init__()
        self.attention = nn.Sequential(token_norm(norm, features), Attention(features, heads))
        self.mlp = nn.Sequential(
            token_norm(norm, features), linear(features, hidden), activation_layer(activation), linear(hidden, features)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Tokens (m, tokens, features)."""
        x = x + self.attention(x)
        return x + self.mlp(x)


class VisionTransformer(nn.Module):
    r"""Patches as tokens, ``depth`` transformer blocks, mean over tokens, linear: images (m, C, H, W).

    ``patch`` pixels a side must divide H and W; 4 by default, 7 for 28×28 and 2 below 16. ``features`` times ``width``
    is rounded to a multiple of ``heads``; the hidden layer of a block has twice as many. Learned positions; the
    classifier uses the mean of all tokens in place of a class token. Dosovitskiy et al. 2020, arXiv 2010.11929.
    """

    def __init__(
        self,
        input_shape: Sequence[int] = (3, 32, 32),
        classes: int = 10,
        width: float = 1.0,
        activation: str = "gelu",
        *,
        norm: str = "layer",
        patch: int | None = None,
        features: int = 64,
        depth: int = 4,
        heads: int = 4,
        seed: int = 0,
    ):
        super().__init__()
        channels, *sides = check_image_shape(input_shape, smallest=1)
        patch = patch_for(min(sides)) if patch is None else check_count("patch", patch)
        if any(side % patch for side in sides):
            raise ValueError(f"patch must divide the image's {sides[0]} and {sides[1]} pixels, got {patch}")
        check_count("heads", heads, maximum=MOST)
        check_count("depth", depth, maximum=DEEPEST)
        seed = check_seed(seed)
        scale_widths(width, [features], "features")  # for its checks
        features = heads * max(1, round(width * features / heads))
        check_weights((sides[0] // patch) * (sides[1] // patch), features)
        self.patches = convolution(channels, features, patch, patch)
        self.positions = nn.Parameter(torch.empty((sides[0] // patch) * (sides[1] // patch), features))
        blocks = [TransformerBlock(features, heads, 2 * features, activation, norm) for _ in range(depth)]
        self.blocks = nn.Sequential(*blocks, token_norm(norm, features))
        self.classifier = linear(features, check_count("classes", classes))
        draw_weights(self, seed)
        nn.init.normal_(self.positions, 0, 0.02, generator=torch.Generator().manual_seed(seed))

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (m, classes) of images (m, C, H, W)."""
        check_images(x, self.patches.in_channels)
        size: Any = self.patches.kernel_size
        (side, _), (high, wide) = size, x.shape[2:]
        if (high // side) * (wide // side) != len(self.positions):
            raise ValueError(f"input x must have {len(self.positions)} patches of {side} pixels, got {tuple(x.shape)}")
        tokens = self.patches(x).flatten(2).mT + self.positions  # (m, tokens, features)
        return self.classifier(self.blocks(tokens).mean(1))


def patch_for(side: int) -> int:
    """Pixels a side of a patch for images with ``side`` pixels on their shorter side."""
    if side < 16:
        return 2
    return 7 if side == 28 else 4
