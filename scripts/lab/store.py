"""Results on disk, part by part, so that an interrupted run resumes after its last finished part."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows import Descent, descend
from flows.engines.configuration import versions
from flows.engines.locks import FolderLock
from flows.engines.recorder import Observer
from flows.engines.storage import (
    FolderError,
    UnfinishedError,
    load_tensors,
    read_file,
    save_tensors,
    write_text,
)

Tensors = dict[str, Tensor]
VERSIONS = "versions"  # the entry of configuration.json that is no setting


class VersionWarning(UserWarning):
    """A folder's results were computed by another version of thalweg."""


class Store:
    r"""A folder of named parts, made with one configuration (configuration.json), locked for the life of the object.

    Raises FolderError if the folder holds results of another configuration or is being written by another process.
    Warns if they are of another version of thalweg; then ``part`` reads and does not compute.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]):
        self._lock = FolderLock(folder)
        self.folder = self._lock.folder
        self._other_version: str | None = None
        settings = json.loads(json.dumps(dict(configuration), default=str))
        file = self.folder / "configuration.json"
        if file.exists():
            self._check(read_configuration(file), settings)
        else:
            write_text(file, json.dumps({**settings, VERSIONS: versions()}, indent=2) + "\n")

    def _check(self, before: dict[str, Any], settings: Mapping[str, Any]) -> None:
        recorded = before.pop(VERSIONS, {}).get("thalweg", "an older version")
        other = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
        if other:
            raise FolderError(
                f"--out {str(self.folder)!r} holds results made with other {', '.join(sorted(other))}; "
                "name another folder, or remove it"
            )
        if recorded != versions()["thalweg"]:
            self._other_version = recorded
            warnings.warn(
                f"--out {str(self.folder)!r} holds results of thalweg {recorded}, this is {versions()['thalweg']}",
                VersionWarning,
                stacklevel=4,
            )

    def part(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """The part of that name, read from disk if present, else computed and written; nothing if interrupted.

        Raises FolderError for a damaged part, and if one has to be computed beside those of another version.
        """
        file = self.folder / f"{name}.safetensors"
        if os.path.lexists(file):
            try:
                return load_tensors(self.folder, name)[0]
            except UnfinishedError:
                pass
            except FolderError as error:
                raise FolderError(f"{str(file)!r} is damaged; remove it to compute it again ({error})") from error
        if self._other_version is not None:
            raise FolderError(
                f"--out {str(self.folder)!r} lacks {name}, and holds results of thalweg {self._other_version}, this is "
                f"{versions()['thalweg']}; name another folder, or go on with that version"
            )
        tensors = compute()
        save_tensors(self.folder, name, tensors, {})
        return tensors

    def table(self, text: str) -> None:
        """Print a table and write it to table.txt in the folder."""
        print(text, flush=True)
        write_text(self.folder / "table.txt", text + "\n")


def read_configuration(file: Path) -> dict[str, Any]:
    """The object of a configuration.json. Raises FolderError for a file that holds none."""
    try:
        found = json.loads(read_file(file))
    except (OSError, ValueError) as error:
        raise FolderError(f"{str(file)!r} cannot be read ({error}); name another folder, or remove this one") from error
    if not isinstance(found, dict):
        raise FolderError(f"{str(file)!r} holds no JSON object; name another folder, or remove this one")
    return found


def descend_in_segments(
    store: Store,
    name: str,
    descent: Descent,
    theta0: Tensor,
    steps: int,
    segment: int,
    observers: Sequence[Observer] = (),
    *,
    seed: int = 0,
    every: int | None = None,
) -> Tensors:
    r"""A descent in segments, each written to disk on completion.

    Returns "theta" and "times", kept every ``every`` steps (by default a segment), and for every observation NAME also
    "NAME" and "NAME times". A segment starts from the last θ of the one before: exact for descents whose state is θ;
    others (momentum, an epoch's order of examples) restart their state, so their segments must be whole epochs. Segment
    i draws with seed·10⁶ + i. ``segment`` must be a multiple of ``every`` and of the observers'. A descent that
    diverges ends early.
    """
    theta, t = theta0, 0.0
    parts: list[Tensors] = []
    for i, first in enumerate(range(0, steps, segment)):
        length = min(segment, steps - first)

        def run(start: Tensor = theta, length: int = length, i: int = i) -> Tensors:
            draws, kept = seed * 10**6 + i, every or segment
            run = descend(descent, start, length, seed=draws, every=kept, observers=observers).check_uninterrupted()
            observed_times = {f"{key} times": times for key, (times, _) in run.observations.items()}
            values = {key: values for key, (_, values) in run.observations.items()}
            ended = torch.tensor(run.complete)
            return {"theta": run.theta, "times": run.times, "finished": ended, **observed_times, **values}

        part = store.part(f"{name}-{i:04d}", run)
        skip = 1 if i else 0  # the first state of a segment repeats the last one of the segment before
        later = {key: tensor + t if key.endswith("times") else tensor for key, tensor in part.items()}
        parts.append({key: tensor[skip:] for key, tensor in later.items() if key != "finished"})
        theta, t = part["theta"][-1].to(theta0.device), t + float(part["times"][-1])
        if not bool(part["finished"]):
            break
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
