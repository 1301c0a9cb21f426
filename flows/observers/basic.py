"""Loss, gradient norm, and the latest state on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from flows.engines.recorder import LandscapeObserver
from flows.engines.storage import save_tensors, writable_folder
from landscapes import Landscape


@final
class Loss(LandscapeObserver):
    """f(θ) at every ``every``-th state, as "loss"; the real part if θ is complex. One loss per state."""

    def __init__(self, landscape: Landscape, every: int = 1, name: str = "loss"):
        super().__init__(landscape, every, name)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"loss": (...,)}."""
        loss = self.counted.loss(theta)
        return {self.name: loss.real if loss.is_complex() else loss}


@final
class GradientNorm(LandscapeObserver):
    """‖∇f(θ)‖ at every ``every``-th state, as "gradient norm"; the modulus if θ is complex. One gradient per state."""

    def __init__(self, landscape: Landscape, every: int = 1, name: str = "gradient norm"):
        super().__init__(landscape, every, name)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"gradient norm": (...,)}."""
        return {self.name: torch.linalg.vector_norm(self.counted.grad(theta), dim=-1)}


@final
@dataclass(frozen=True)
class Checkpoint:
    """Writes the latest state to ``folder``/state.safetensors, so that it survives if the run is killed."""

    folder: str | os.PathLike[str]
    every: int = 1
    name: str = "checkpoint"

    def __post_init__(self) -> None:
        writable_folder(self.folder)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """Write the state; return no quantities."""
        save_tensors(Path(self.folder), "state", {"theta": theta}, {"k": k, "t": t})
        return {}
