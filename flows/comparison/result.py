r"""A comparison as a table, a figure and a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flows.comparison.data import ComparisonData
from flows.comparison.figure import plot_comparison
from flows.comparison.table import table
from flows.engines.storage import save_tensors, writable_folder


@dataclass(frozen=True)
class Comparison(ComparisonData):
    r"""Flows beside one descent on the clock t = elapsed(k); ``str()`` is the table.

    ``descent_losses`` (T, ...); with a stochastic descent ``mean`` is its mean over ``runs``, ``standard_error``
    (T, ...) the norm of the mean's standard error, and ``noise_floor`` (T−1, ...) the root mean square distance of one
    step from the full-batch step, h·√tr Cov(g_batch), both None otherwise. If laws were compared, ``observed`` is
    φ → E φ(θ_k) over the runs and its standard error, each (T, ...); ``coupled``: stochastic flows ran along the
    descent's own mini-batches.
    """

    def __str__(self) -> str:
        return table(self)

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
            tensors |= {
                f"flow.{i}.weak.{j}.{n}": x for j, e in enumerate(row.weak.values()) for n, x in vars(e).items()
            }
        for j, (mean, error) in enumerate(self.observed.values()):
            tensors |= {f"observed.{j}.mean": mean, f"observed.{j}.standard_error": error}
        self.descent.save(path / slug(self.name))
        for name, row in self.rows.items():
            if row.trajectory is not None:
                row.trajectory.save(path / slug(name))
        text = {"descent": self.name, "flows": list(self.rows), "runs": self.runs, "settings": dict(self.settings)}
        text |= {"observables": list(self.observed), "coupled": self.coupled}
        notes = {name: list(row.notes) for name, row in self.rows.items()}
        save_tensors(path, "comparison", tensors, {**text, "notes": notes})
        (path / "table.txt").write_text(str(self) + "\n")
        return path


def slug(name: str) -> str:
    """A name as a folder: letters and digits, joined by dashes."""
    words = "".join(c if c.isalnum() else " " for c in name).split()
    return "-".join(words).lower() or "flow"
