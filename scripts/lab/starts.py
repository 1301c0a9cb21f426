"""Where a run starts, and its title."""

from __future__ import annotations

import torch
from torch import Tensor

from landscapes import FiniteSum, Landscape
from nets import GhostBatchLandscape
from scripts.lab.grounds import Ground
from scripts.lab.network import NetGround


def build_start(given: tuple[float, ...] | None, landscape: Landscape, default: Tensor) -> Tensor:
    """θ0 as the user gave it, or the landscape's own."""
    if given is None:
        return default
    if len(given) != landscape.dimension:
        raise ValueError(f"--theta0 must have {landscape.dimension} coordinates, got {len(given)}")
    return torch.tensor(given, dtype=torch.float64).to(default)


def describe(ground: Ground, landscape: Landscape) -> str:
    """What is descended, on one line."""
    examples = f", a mean over {landscape.size}" if isinstance(landscape, FiniteSum) else ""
    name = type(landscape).__name__
    if isinstance(ground, NetGround):
        name, examples = f"{ground.architecture} on {ground.chosen.data}", f"{examples} examples"
        if isinstance(landscape, GhostBatchLandscape):
            batches, each = landscape.ghost_batches.shape
            examples = f", a mean over {batches} ghost batches of {each}"
    return f"{name}, {landscape.dimension:,} parameters{examples}"
