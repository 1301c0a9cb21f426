r"""A comparison as named tensors and JSON, in one file: the runs, their errors and laws, settings and notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.comparison.data import ComparisonData, Row
from flows.comparison.laws import WeakError
from flows.engines.configuration import as_json
from flows.engines.trajectory import Trajectory, check_notes, parts_of, trajectory_of

Tensors = Mapping[str, Tensor]
NEEDED = ("errors", "one_step", "integration", "losses")
OPTIONAL = ("imaginary", "mean")
DESCENT_OPTIONAL = ("standard_error", "noise_floor")
LAWS = "laws"
"""The folder, in that of a coupled flow's paths, of the independent runs that its laws are taken from."""
OLD_LAWS = (
    "laws along the descent's mini-batches, as an earlier version took them: where curvatures differ they are off by "
    "O(h²), more than their standard errors say"
)
WEAK = tuple(field.name for field in fields(WeakError))


def slug(name: str) -> str:
    """A name as a folder: letters and digits, joined by dashes."""
    words = "".join(c if c.isalnum() else " " for c in name).split()
    return "-".join(words).lower() or "flow"


def parts_of_comparison(comparison: ComparisonData) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """All of a comparison except the landscape, which its runs' configurations describe."""
    tensors = {"times": comparison.times, "mean": comparison.mean, "descent.losses": comparison.descent_losses}
    tensors |= {name: x for name in DESCENT_OPTIONAL if (x := getattr(comparison, name)) is not None}
    own, descent = parts_of(comparison.descent)
    tensors |= with_prefix("descent.trajectory", own)
    rows = []
    for i, row in enumerate(comparison.rows.values()):
        own, text = parts_of_row(row)
        tensors |= with_prefix(f"flow.{i}", own)
        rows.append(text)
    for j, (mean, error) in enumerate(comparison.observed.values()):
        tensors |= {f"observed.{j}.mean": mean, f"observed.{j}.standard_error": error}
    text = {
        "descent": comparison.name,
        "flows": list(comparison.rows),
        "runs": comparison.runs,
        "settings": as_json(comparison.settings),
        "observables": list(comparison.observed),
        "coupled": comparison.coupled,
        "notes": {name: list(row.notes) for name, row in comparison.rows.items()},
        "descent run": descent,
        "rows": rows,
    }
    return tensors, text


def parts_of_row(row: Row) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A row as named tensors and JSON."""
    tensors = {name: getattr(row, name) for name in NEEDED}
    tensors |= {name: x for name in OPTIONAL if (x := getattr(row, name)) is not None}
    for j, error in enumerate(row.weak.values()):
        tensors |= {f"weak.{j}.{part}": getattr(error, part) for part in WEAK}
    run = None
    if row.trajectory is not None:
        own, run = parts_of(row.trajectory)
        tensors |= with_prefix("trajectory", own)
    ensemble = None
    if row.ensemble is not None:
        own, ensemble = parts_of(row.ensemble)
        tensors |= with_prefix("ensemble", own)
    text = {"run": run, "ensemble": ensemble, "outside": row.outside, "interrupted": row.interrupted}
    return tensors, text | {"weak": list(row.weak)}


def data_of(tensors: Tensors, text: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The fields of a comparison from its parts; of format 1, whose runs lie in folders of their own in ``folder``.

    Raises FolderError, KeyError, TypeError or ValueError for parts that are none.
    """
    names = check_notes(text["flows"], "flows")
    observables = check_notes(text.get("observables", []), "observables")
    coupled = bool(text.get("coupled", False))
    if text["format"] == 1:
        descent = Trajectory.load(folder / slug(text["descent"]))
        rows = [old_row(tensors, text, i, name, folder, observables) for i, name in enumerate(names)]
    else:
        descent = trajectory_of(inside("descent.trajectory", tensors), text["descent run"])
        rows = [
            row_of(inside(f"flow.{i}", tensors), said, text["notes"][name], coupled)
            for i, (name, said) in enumerate(zip(names, text["rows"], strict=True))
        ]
    pairs = [(tensors[f"observed.{j}.mean"], tensors[f"observed.{j}.standard_error"]) for j in range(len(observables))]
    return {
        "name": text["descent"],
        "descent": descent,
        "mean": tensors["mean"],
        "descent_losses": tensors["descent.losses"],
        "rows": dict(zip(names, rows, strict=True)),
        "runs": text["runs"],
        **{name: tensors.get(name) for name in DESCENT_OPTIONAL},
        "settings": text["settings"],
        "observed": dict(zip(observables, pairs, strict=True)),
        "coupled": coupled,
    }


def row_of(tensors: Tensors, text: Mapping[str, Any], notes: list[str], coupled: bool) -> Row:
    """The row of ``parts_of_row``, with a note if its laws were taken along mini-batches."""
    run = None if text["run"] is None else trajectory_of(inside("trajectory", tensors), text["run"])
    said = text.get("ensemble")
    ensemble = None if said is None else trajectory_of(inside("ensemble", tensors), said)
    weak = {
        name: WeakError(*(tensors[f"weak.{j}.{part}"] for part in WEAK))
        for j, name in enumerate(check_notes(text["weak"], "weak"))
    }
    row = Row(
        trajectory=run,
        errors=tensors["errors"],
        one_step=tensors["one_step"],
        integration=tensors["integration"],
        losses=tensors["losses"],
        imaginary=tensors.get("imaginary"),
        mean=tensors.get("mean"),
        outside=text["outside"],
        notes=tuple(check_notes(notes)),
        weak=weak,
        interrupted=bool(text["interrupted"]),
        ensemble=ensemble,
    )
    old = coupled and row.weak and row.is_of_runs and "ensemble" not in text
    return replace(row, notes=(*row.notes, OLD_LAWS)) if old else row


def old_row(tensors: Tensors, text: Mapping[str, Any], i: int, name: str, folder: Path, observables: list[str]) -> Row:
    """A row of format 1, which has no ``outside``; ``imaginary`` and ``mean`` are computed from its run."""
    own, place = inside(f"flow.{i}", tensors), folder / slug(name)
    run = Trajectory.load(place) if place.exists() else None
    notes = tuple(check_notes(text.get("notes", {}).get(name, [])))
    seen = [j for j in range(len(observables)) if f"weak.{j}.mean" in own]
    weak = {observables[j]: WeakError(*(own[f"weak.{j}.{part}"] for part in WEAK)) for j in seen}
    theta = None if run is None else run.theta
    imaginary = mean = None
    if theta is not None:
        # the members of a stochastic flow are its runs
        mean = theta.mean(dim=1) if theta.ndim - 1 > own["losses"].ndim else theta
        if theta.is_complex():
            found = theta.imag.abs().amax(dim=-1)
            imaginary = torch.full((len(own["losses"]), *found.shape[1:]), torch.nan, dtype=found.dtype)
            imaginary[: len(found)] = found
    return Row(
        trajectory=run,
        errors=own["errors"],
        one_step=own["one_step"],
        integration=own["integration"],
        losses=own["losses"],
        imaginary=imaginary,
        notes=notes,
        mean=mean,
        weak=weak,
    )


def with_prefix(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """Tensors under names that begin with the prefix."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def inside(prefix: str, tensors: Tensors) -> dict[str, Tensor]:
    """The tensors of ``with_prefix``."""
    return {n.removeprefix(f"{prefix}."): x for n, x in tensors.items() if n.startswith(f"{prefix}.")}
