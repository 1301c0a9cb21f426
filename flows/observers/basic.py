"""Loss, gradient norm, and the latest state on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import final

import torch
from torch import Tensor

from flows.engines.recorder import LandscapeObserver, StateObserver
from flows.engines.state import State, parts_of_state, state_of
from flows.engines.storage import load_tensors, read_error, save_tensors, writable_folder
from landscapes import Landscape
from landscapes.errors import check_count, check_float_tensor, short_form


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
class Checkpoint(StateObserver):
    """Writes the latest state to ``folder``/state.safetensors, so that a run that is killed continues from it.

    ``Checkpoint.load(folder)`` is the ``State`` from which ``integrate`` and ``descend`` continue. In your own loop
    the state is optional: the file then has θ, k and t only. Every write is flushed to the disk, which takes
    milliseconds: choose ``every`` by the time that a run may lose.
    """

    folder: str | os.PathLike[str]
    every: int = 1
    name: str = "checkpoint"

    def __post_init__(self) -> None:
        check_count("every", self.every)
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {short_form(self.name)}")
        writable_folder(self.folder)

    def __call__(self, k: int, t: float, theta: Tensor, state: State | None = None) -> dict[str, Tensor]:
        """Write the state; return no quantities."""
        check_float_tensor("theta", theta)
        structure, tensors = (None, {}) if state is None else parts_of_state(state)
        save_tensors(Path(self.folder), "state", {"theta": theta, **tensors}, {"k": k, "t": t, "end": structure})
        return {}

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> State:
        """The state that was written last, on the CPU. Raises FolderError; a file without a state has θ, k and t."""
        tensors, text = load_tensors(folder, "state")
        try:
            if text.get("end") is None:
                return State(tensors["theta"], text["t"], text["k"])
            return state_of(tensors, text["end"])
        except (KeyError, TypeError, ValueError) as error:
            raise read_error(Path(folder), "state", error) from error
