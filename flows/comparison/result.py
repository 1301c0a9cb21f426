r"""A comparison as a table, a figure and a folder."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flows.comparison.data import ComparisonData
from flows.comparison.figure import plot_comparison
from flows.comparison.layout import LAWS, data_of, parts_of_comparison, slug
from flows.comparison.table import table
from flows.engines.locks import FolderLock
from flows.engines.storage import load_tensors, read_error, save_tensors, write_text


@dataclass(frozen=True)
class Comparison(ComparisonData):
    r"""Flows beside one descent on the clock t = elapsed(k); ``str()`` is the table.

    ``descent_losses`` (T, ...); with a stochastic descent ``mean`` is its mean over ``runs``, ``standard_error``
    (T, ...) the norm of the mean's standard error, and ``noise_floor`` (T−1, ...) the root mean square distance of one
    step from the full-batch step, h·√tr Cov(g_batch), both None otherwise. If laws were compared, ``observed`` is
    φ → E φ(θ_k) over the runs and its standard error, each (T, ...); ``coupled``: stochastic flows ran along the
    descent's own mini-batches, and again independently of them if laws were compared.
    """

    def __str__(self) -> str:
        return table(self)

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure: errors and losses against time and, in two dimensions, contours with the paths."""
        return plot_comparison(self, path)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write all but the landscape into ``folder``/comparison.safetensors, and return the folder.

        Beside it, to be read alone: the table, and each trajectory in a folder of its own. Raises FolderError.
        """
        with FolderLock(folder) as lock:
            path = save_tensors(lock.folder, "comparison", *parts_of_comparison(self))
            write_text(path / "table.txt", str(self) + "\n")
            self.descent.save(path / slug(self.name))
            for name, row in self.rows.items():
                if row.trajectory is not None:
                    row.trajectory.save(path / slug(name))
                if row.ensemble is not None:
                    row.ensemble.save(path / slug(name) / LAWS)
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> Comparison:
        """Read a comparison that ``save`` wrote, on the CPU and without its landscape. Raises FolderError."""
        tensors, text = load_tensors(folder, "comparison")
        try:
            return cls(**data_of(tensors, text, Path(folder)))
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise read_error(Path(folder), "comparison", error) from error


__all__ = ["Comparison", "slug"]
