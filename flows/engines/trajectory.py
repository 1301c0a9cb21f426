r"""The result of a run: times, states, observations, cost, and a status whose sentence states cause and remedy.

On disk a trajectory is a folder: ``trajectory.safetensors`` (tensors, complex ones as pairs of reals) and
``trajectory.json`` (status, costs, layout). Never pickle.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from flows.engines.events import Crossings
from flows.engines.state import State

KINDS = ("finished", "diverged", "singular mode", "step underflow", "stopped", "interrupted")
FORMAT = 1


class FolderError(ValueError):
    """A folder cannot be written or read; the message names the folder and the cause."""


class Status(str):
    """How a run ended: a string, one of ``KINDS``, with a ``sentence`` that states the cause and the remedy."""

    sentence: str

    def __new__(cls, kind: str, sentence: str) -> Status:
        if kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}")
        status = super().__new__(cls, kind)
        status.sentence = sentence
        return status

    def __repr__(self) -> str:
        return f"Status({str(self)!r}, {self.sentence!r})"


Observations = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Trajectory:
    r"""A run on the clock: θ at the kept times.

    ``times`` (T,) float64; ``theta`` (T, ..., d), the kept states; ``observations`` name → (times, values);
    ``cost`` evaluations or steps, and oracle calls in units of one product over the full sum for one θ;
    ``alive`` (...): False for batch members that left the finite numbers, frozen at their last finite state;
    ``notes``: remarks besides the status (unconverged evaluations); ``observer_costs`` observer → its oracle calls in
    this run, which are not in ``cost``. States end at the last finite one.

    ``end``: the ``State`` that the run ended with, from which another can continue; None if it is not known, as for a
    run saved by an early version. ``events``: name → ``Crossings``.
    """

    times: Tensor
    theta: Tensor
    status: Status
    alive: Tensor
    cost: Mapping[str, float] = field(default_factory=dict)
    observations: Observations = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    observer_costs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    end: State | None = None
    events: Mapping[str, Crossings] = field(default_factory=dict)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the trajectory into ``folder`` (made if needed) and return it. Raises FolderError."""
        tensors = {"times": self.times, "theta": self.theta, "alive": self.alive}
        for i, pair in enumerate(self.observations.values()):
            tensors |= {f"observation.{i}.times": pair[0], f"observation.{i}.values": pair[1]}
        text = {
            "status": str(self.status),
            "sentence": self.status.sentence,
            "cost": dict(self.cost),
            "notes": list(self.notes),
            "observations": list(self.observations),
            "observer_costs": {name: dict(costs) for name, costs in self.observer_costs.items()},
        }
        return save_tensors(folder, "trajectory", tensors, text)

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Trajectory:
        """Read a trajectory that ``save`` wrote. Raises FolderError."""
        tensors, text = load_tensors(folder, "trajectory")
        try:
            observations = {
                name: (tensors[f"observation.{i}.times"], tensors[f"observation.{i}.values"])
                for i, name in enumerate(text["observations"])
            }
            return cls(
                times=tensors["times"],
                theta=tensors["theta"],
                status=Status(text["status"], text["sentence"]),
                alive=tensors["alive"],
                cost=text["cost"],
                observations=observations,
                notes=tuple(text["notes"]),
                # folders saved before observers counted have no costs
                observer_costs={name: dict(costs) for name, costs in text.get("observer_costs", {}).items()},
            )
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise read_error(Path(folder), "trajectory", error) from error


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if needed; FolderError where it cannot be written."""
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise FolderError(f"folder {str(path)!r} cannot be written ({error.strerror}); name another one") from error
    return path


def save_tensors(folder: str | os.PathLike[str], stem: str, tensors: Mapping[str, Tensor], text: dict) -> Path:
    """Write ``stem``.safetensors and ``stem``.json, each whole or not at all."""
    path = writable_folder(folder)
    complex_names = [name for name, tensor in tensors.items() if tensor.is_complex()]
    stored = {
        # safetensors has no complex128, and refuses tensors that share memory.
        name: (torch.view_as_real(t.resolve_conj()) if t.is_complex() else t).detach().cpu().contiguous().clone()
        for name, t in tensors.items()
    }
    description = json.dumps({"format": FORMAT, "complex": complex_names, **text}, indent=2) + "\n"
    try:
        part = path / f"{stem}.safetensors.part"
        save_file(stored, part)
        part.replace(path / f"{stem}.safetensors")
        part = path / f"{stem}.json.part"
        part.write_text(description)
        part.replace(path / f"{stem}.json")
    except (OSError, SafetensorError) as error:
        raise FolderError(f"folder {str(path)!r} cannot be written ({error}); name another one") from error
    return path


def load_tensors(folder: str | os.PathLike[str], stem: str) -> tuple[dict[str, Tensor], dict]:
    """Read the files of ``save_tensors``; FolderError names the folder and the fault."""
    path = Path(folder)
    try:
        text = json.loads((path / f"{stem}.json").read_text())
        tensors = load_file(path / f"{stem}.safetensors")
        version = text["format"]
    except Exception as error:
        raise read_error(path, stem, error) from error
    if version != FORMAT:
        raise FolderError(f"folder {str(path)!r} has format {version!r}, this version reads {FORMAT}")
    try:
        for name in text["complex"]:
            # A file aligns to 8 bytes only; torch computes on complex128 with instructions that fault unless to 16.
            tensors[name] = torch.view_as_complex(tensors[name].clone())
    except (KeyError, TypeError, RuntimeError) as error:
        raise read_error(path, stem, error) from error
    return tensors, text


def read_error(path: Path, stem: str, error: Exception) -> FolderError:
    """The error for a folder that cannot be read."""
    return FolderError(
        f"folder {str(path)!r} holds no readable {stem} ({type(error).__name__}: {error}); "
        f"give a folder that {stem} was saved to"
    )
