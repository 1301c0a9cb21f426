"""Loss, gradient norm, and the latest state on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from flows.engines.recorder import LandscapeObserver
from flows.engines.trajectory import save_tensors, writable_folder
from landscapes import Landscape


@final
class Loss(LandscapeObserver):
    """f(θ) at every ``every``-th state, as "loss"; the real part where θ is complex. One loss a state."""

    def __init__(self, landscape: Landscape, every: int = 1, name: str = "loss"):
        super().__init__(landscape, every, name)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"loss": (...,)}."""
        loss = self.counted.loss(theta)
        return {self.name: loss.real if loss.is_complex() else loss}


@final
class GradientNorm(LandscapeObserver):
    """‖∇f(θ)‖ at every ``every``-th state, as "gradient norm"; the modulus where θ is complex. One gradient a state."""

    def __init__(self, landscape: Landscape, every: int = 1, name: str = "gradient norm"):
        super().__init__(landscape, every, name)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"gradient norm": (...,)}."""
        return {self.name: torch.linalg.vector_norm(self.counted.grad(theta), dim=-1)}


@final
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
