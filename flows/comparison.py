r"""What a comparison holds: errors of each flow against the descent on one clock, as numbers, a table and a folder."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor

from flows.plots import plot_comparison
from flows.trajectory import Trajectory, save_tensors, writable_folder
from landscapes import Landscape


@dataclass(frozen=True)
class Row:
    r"""One flow beside the descent.

    ``errors`` (T, ...): ‖X(t_k) − θ_k‖ (modulus where complex), NaN past the end of a run. ``one_step`` (T−1, ...):
    ‖X(t_{k+1}; θ_k) − θ_{k+1}‖, integrated at the tighter tolerance. ``integration`` (T, ...): ‖X − X_tight‖, the same
    run at tighter tolerance. ``losses`` (T, ...). ``imaginary`` (T, ...): max |Im θ|, None for real flows.
    ``outside``: the largest |hλ| along the descent where it leaves the flow's series, None where it does not. A flow
    that could not run has no trajectory, and its notes say why.
    """

    trajectory: Trajectory | None
    errors: Tensor
    one_step: Tensor
    integration: Tensor
    losses: Tensor
    imaginary: Tensor | None = None
    outside: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Comparison:
    r"""Flows beside one descent on the clock t = elapsed(k); ``str()`` is the table.

    ``descent_losses`` (T, ...); with a stochastic descent ``mean`` is its mean over ``runs``, ``standard_error``
    (T, ...) the norm of the mean's standard error, and ``noise_floor`` (T−1, ...) the root mean square distance of one
    step from the full-batch step, h·√tr Cov(g_batch), both None otherwise.
    """

    name: str
    descent: Trajectory
    mean: Tensor
    descent_losses: Tensor
    rows: Mapping[str, Row]
    runs: int = 1
    standard_error: Tensor | None = None
    noise_floor: Tensor | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    landscape: Landscape | None = None

    @property
    def times(self) -> Tensor:
        """The clock (T,)."""
        return self.descent.times

    @property
    def errors(self) -> dict[str, Tensor]:
        """Flow → ‖X(t_k) − θ_k‖ (T, ...)."""
        return {name: row.errors for name, row in self.rows.items()}

    @property
    def one_step(self) -> dict[str, Tensor]:
        """Flow → one-step errors (T−1, ...), the model's own."""
        return {name: row.one_step for name, row in self.rows.items()}

    @property
    def integration_errors(self) -> dict[str, Tensor]:
        """Flow → distance to the run at tighter tolerance (T, ...), the integrator's own."""
        return {name: row.integration for name, row in self.rows.items()}

    @property
    def losses(self) -> dict[str, Tensor]:
        """Descent and flows → f (T, ...), the real part where θ is complex."""
        return {self.name: self.descent_losses, **{name: row.losses for name, row in self.rows.items()}}

    @property
    def cost(self) -> dict[str, dict[str, float]]:
        """Descent and flows → cost of the run as asked (not of the tighter one, nor of the one-step study)."""
        runs = {self.name: self.descent, **{name: row.trajectory for name, row in self.rows.items()}}
        return {name: dict(run.cost) for name, run in runs.items() if run is not None}

    def __str__(self) -> str:
        return table(self)

    @property
    def has_complex(self) -> bool:
        """Whether a flow ran at complex θ."""
        return any(row.imaginary is not None for row in self.rows.values())

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure: errors and losses against time and, in two dimensions, contours with the paths."""
        return plot_comparison(self, path)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write trajectories, errors, settings and the table into ``folder``. Raises FolderError."""
        path = writable_folder(folder)
        tensors = {"times": self.times, "mean": self.mean, "descent.losses": self.descent_losses}
        tensors |= {} if self.standard_error is None else {"standard_error": self.standard_error}
        tensors |= {} if self.noise_floor is None else {"noise_floor": self.noise_floor}
        for i, row in enumerate(self.rows.values()):
            parts = {
                "errors": row.errors,
                "one_step": row.one_step,
                "integration": row.integration,
                "losses": row.losses,
            }
            tensors |= {f"flow.{i}.{name}": tensor for name, tensor in parts.items()}
        self.descent.save(path / slug(self.name))
        for name, row in self.rows.items():
            if row.trajectory is not None:
                row.trajectory.save(path / slug(name))
        text = {"descent": self.name, "flows": list(self.rows), "runs": self.runs, "settings": dict(self.settings)}
        notes = {name: list(row.notes) for name, row in self.rows.items()}
        save_tensors(path, "comparison", tensors, {**text, "notes": notes})
        (path / "table.txt").write_text(str(self) + "\n")
        return path


def slug(name: str) -> str:
    """A name as a folder: letters and digits, joined by dashes."""
    words = "".join(c if c.isalnum() else " " for c in name).split()
    return "-".join(words).lower() or "flow"


def worst(values: Tensor) -> float:
    """The largest entry that is not NaN; NaN where there is none."""
    values = values[~values.isnan()]
    return float(values.max()) if values.numel() else float("nan")


def at_end(values: Tensor) -> float:
    """The worst member's value at the last time; NaN where the run ended before, or never began."""
    return worst(values[-1]) if len(values) else float("nan")


KINDS = {"grad": "gradients", "hvp": "HVPs", "third": "thirds", "higher": "higher"}
"""Oracle calls and their columns; derivatives above the third have one where a flow takes them."""


def table(comparison: Comparison) -> str:
    """Rows aligned under their headings, notes below."""
    is_complex = comparison.has_complex
    heading = ["", "error at end", "largest error", "one-step error", "integration", "loss at end"]
    runs = [comparison.descent, *(row.trajectory for row in comparison.rows.values() if row.trajectory)]
    shown = {k: v for k, v in KINDS.items() if k != "higher" or any(run.cost.get(k) for run in runs)}
    heading += ["max |Im θ|"] * is_complex + [*shown.values(), "status"]
    cost = comparison.descent.cost
    first = [comparison.name, "", "", "", "", f"{at_end(comparison.descent_losses):.6g}"]
    lines = [heading, first + [""] * is_complex + [*oracle_calls(cost, shown), str(comparison.descent.status)]]
    for name, row in comparison.rows.items():
        if row.trajectory is None:
            lines.append([name] + [""] * (len(heading) - 2) + ["cannot run here"])
            continue
        median = row.one_step[~row.one_step.isnan()]
        numbers = [at_end(row.errors), worst(row.errors)]
        numbers += [float(median.median()) if median.numel() else float("nan"), worst(row.integration)]
        cells = [f"{x:.3e}" for x in numbers] + [f"{at_end(row.losses):.6g}"]
        cells += [""] * is_complex if row.imaginary is None else [f"{worst(row.imaginary):.1e}"]
        series = "" if row.outside is None else f", outside its series: |hλ| = {row.outside:.4g}"
        lines.append([name, *cells, *oracle_calls(row.trajectory.cost, shown), f"{row.trajectory.status}{series}"])
    widths = [max(len(line[i]) for line in lines) for i in range(len(heading))]
    text = [
        "  ".join(
            c.ljust(w) if i in (0, len(heading) - 1) else c.rjust(w)
            for i, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([caption(comparison), *(line.rstrip() for line in text), *footnotes(comparison)])


def oracle_calls(cost: Mapping[str, float], kinds: Iterable[str]) -> list[str]:
    """Gradients, HVPs and higher derivatives of a run."""
    return [f"{cost.get(kind, 0):.5g}" for kind in kinds]


def caption(comparison: Comparison) -> str:
    """What the table compares."""
    steps, end = len(comparison.times) - 1, float(comparison.times[-1])
    against = comparison.name if comparison.runs == 1 else f"the mean of {comparison.runs} runs of {comparison.name}"
    batch = tuple(comparison.mean.shape[1:-1])
    members = f", worst member of the batch {batch}" if batch else ""
    return f"Flows against {against}: {steps} steps, t = 0 … {end:.6g}{members}; one-step errors are medians"


def footnotes(comparison: Comparison) -> list[str]:
    """What the rows have to say beyond their numbers."""
    lines = []
    if comparison.standard_error is not None:
        lines.append(f"standard error of the mean at the end: {at_end(comparison.standard_error):.3e}")
    if comparison.noise_floor is not None:
        floor = float(comparison.noise_floor.median())
        lines.append(
            f"one-step errors are against the full-batch step; noise floor h·sqrt(tr Cov): {floor:.3e} (median)"
        )
    if comparison.descent.status != "finished" or not bool(comparison.descent.alive.all()):
        lines.append(f"{comparison.name}: {comparison.descent.status.sentence}")
    for name, row in comparison.rows.items():
        run = row.trajectory
        said = [] if run is None or (run.status == "finished" and bool(run.alive.all())) else [run.status.sentence]
        lines += [f"{name}: {note}" for note in (*said, *(run.notes if run else ()), *row.notes)]
    return lines
