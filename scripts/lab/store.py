"""Results on disk, part by part, so that an interrupted run resumes after its last finished part."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows import Descent, descend
from flows.engines.recorder import Observer
from flows.engines.storage import load_tensors, save_tensors, writable_folder
from flows.engines.trajectory import Trajectory

Tensors = dict[str, Tensor]


class Store:
    r"""A folder of named parts, made with one configuration (configuration.json).

    Raises ValueError if the folder holds results of another configuration.
    """

    def __init__(self, folder: Path, configuration: Mapping[str, Any]):
        self.folder = writable_folder(folder)
        settings = json.loads(json.dumps(dict(configuration), default=str))
        file = self.folder / "configuration.json"
        if file.exists():
            before = json.loads(file.read_text())
            other = [key for key in {**before, **settings} if before.get(key) != settings.get(key)]
            if other:
                raise ValueError(
                    f"--out {str(folder)!r} holds results made with other {', '.join(sorted(other))}; "
                    "name another folder, or remove it"
                )
        part = file.with_suffix(".part")
        part.write_text(json.dumps(settings, indent=2) + "\n")
        part.replace(file)  # a rename is atomic: an interruption leaves no incomplete file

    def part(self, name: str, compute: Callable[[], Tensors]) -> Tensors:
        """The part of that name, read from disk if present, else computed and written."""
        if (self.folder / f"{name}.json").exists():
            return load_tensors(self.folder, name)[0]
        tensors = compute()
        save_tensors(self.folder, name, tensors, {})
        return tensors

    def table(self, text: str) -> None:
        """Print a table and write it to table.txt in the folder."""
        print(text, flush=True)
        (self.folder / "table.txt").write_text(text + "\n")


def check_uninterrupted(run: Trajectory) -> Trajectory:
    """The run; raises KeyboardInterrupt if it was interrupted, so that no incomplete part is written."""
    if run.status == "interrupted":
        raise KeyboardInterrupt(run.status.sentence)
    return run


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
            run = check_uninterrupted(descend(descent, start, length, seed=draws, every=kept, observers=observers))
            observed_times = {f"{key} times": times for key, (times, _) in run.observations.items()}
            values = {key: values for key, (_, values) in run.observations.items()}
            ended = torch.tensor(run.status == "finished" and bool(run.alive.all()))
            return {"theta": run.theta, "times": run.times, "finished": ended, **observed_times, **values}

        part = store.part(f"{name}-{i:04d}", run)
        skip = 1 if i else 0  # the first state of a segment repeats the last one of the segment before
        later = {key: tensor + t if key.endswith("times") else tensor for key, tensor in part.items()}
        parts.append({key: tensor[skip:] for key, tensor in later.items() if key != "finished"})
        theta, t = part["theta"][-1].to(theta0.device), t + float(part["times"][-1])
        if not bool(part["finished"]):
            break
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
