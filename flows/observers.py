"""Observers: what a run shows while it goes on. They work in ``integrate``, ``descend`` and a user's own loop."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from flows.trajectory import save_tensors, writable_folder
from landscapes import Landscape
from landscapes.wrappers import check_landscape


@dataclass(frozen=True)
class Loss:
    """f(θ) at every ``every``-th state, as "loss"; the real part where θ is complex. One loss a state."""

    landscape: Landscape
    every: int = 1
    name: str = "loss"

    def __post_init__(self) -> None:
        check_landscape(self.landscape)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"loss": (...,)}."""
        loss = self.landscape.loss(theta)
        return {self.name: loss.real if loss.is_complex() else loss}


@dataclass(frozen=True)
class GradientNorm:
    """‖∇f(θ)‖ at every ``every``-th state, as "gradient norm". One gradient a state."""

    landscape: Landscape
    every: int = 1
    name: str = "gradient norm"

    def __post_init__(self) -> None:
        check_landscape(self.landscape)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"gradient norm": (...,)}."""
        return {self.name: torch.linalg.vector_norm(self.landscape.grad(theta), dim=-1)}


@dataclass(frozen=True)
class Checkpoint:
    """The latest state on disk, ``folder``/state.safetensors: what is left of a run that is killed."""

    folder: str | os.PathLike[str]
    every: int = 1
    name: str = "checkpoint"

    def __post_init__(self) -> None:
        writable_folder(self.folder)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """Writes the state; nothing to keep in the trajectory."""
        save_tensors(Path(self.folder), "state", {"theta": theta}, {"k": k, "t": t})
        return {}
