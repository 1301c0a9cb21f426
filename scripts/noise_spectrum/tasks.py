r"""Prediction of test errors from the spectrum of D: Chaudhari & Soatto's rank(D)/d + var λ(D) compared with errors.

Every architecture on every pair of classes, several seeds each; the rank correlation of the score, its two parts and
other numbers of the spectrum with the test error and with the gap between test and training error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lab.experiment import align_rows
from .cells import Cell, CellRun, OnPairs
from .common import format_seeds, whole_epochs
from .correlation import correlate
from .measurements import NoiseMeasurement
from .pairs_figures import tasks_figure

Found = Mapping[Cell, Sequence[NoiseMeasurement]]
PREDICTORS: dict[str, Callable[[NoiseMeasurement], float]] = {
    "score": lambda m: m.score,
    "rank/d": lambda m: m.spectrum.rank_fraction,
    "var λ": lambda m: m.spectrum.clipped_std**2,
    "λ mean": lambda m: m.spectrum.mean,
    "λ_max": lambda m: m.largest,
    "tr D": lambda m: m.spectrum.trace,
    "training error": lambda m: m.measured["training error"],
}
"""Numbers to correlate with the outcomes; the training error as a reference that needs no spectrum."""
OUTCOMES: dict[str, Callable[[NoiseMeasurement], float]] = {
    "test error": lambda m: m.measured["test error"],
    "gap": lambda m: m.measured["test error"] - m.measured["training error"],
}


@dataclass(frozen=True)
class Tasks(OnPairs):
    """The score rank(D)/d + var λ(D) across architectures and pairs of classes, with training and test error."""

    seeds: int = 2
    """Trainings of each network, with different weights, mini-batches and choice of images."""

    def run(self) -> None:
        """Train, measure, print, plot."""
        self.check()
        epochs = whole_epochs((1.0,), self.epochs)
        store = self.open()
        seeds = range(self.seed, self.seed + self.seeds)
        found = {
            cell: [CellRun(self, store, cell, self.h, seed).measurements(epochs)[-1] for seed in seeds]
            for cell in self.cells
        }
        heading = (
            f"{self.describe()}: {self.epochs} epochs of SGD at h = "
            f"{self.h:g} in mini-batches of {self.batch_size}, norm {self.norm}; D of {self.images} images, "
            f"{self.seeds} seeds"
        )
        store.table("\n\n".join([heading, cell_table(found), self.correlations(found)]))
        self.draw(store, tasks_figure(found))

    def values(self, found: Found, read: Callable[[NoiseMeasurement], float]) -> Tensor:
        """A number of every measurement, (architectures, pairs, seeds)."""
        rows = [[[read(m) for m in found[Cell(a, p)]] for p in self.pairs] for a in self.architectures]
        return torch.tensor(rows, dtype=torch.float64)

    def correlations(self, found: Found) -> str:
        """A row for each predictor: correlation with each outcome over all cells, and within architectures."""
        ways = {"all cells": False, "within an architecture": True}
        rows = [["rank correlation", *(f"{outcome}, {way}" for outcome in OUTCOMES for way in ways)]]
        for name, predictor in PREDICTORS.items():
            x = self.values(found, predictor)
            cells = [
                str(correlate(x, self.values(found, outcome), inner, self.seed))
                for outcome in OUTCOMES.values()
                for inner in ways.values()
            ]
            rows.append([name, *cells])
        note = "in brackets: 95 % of resamples of pairs, and of seeds in them"
        return f"{align_rows(rows)}\n{note}"


def cell_table(found: Found) -> str:
    """A row for each cell, means over seeds with standard errors."""
    read: dict[str, Callable[[NoiseMeasurement], float]] = {
        "training error, %": lambda m: 100 * m.measured["training error"],
        "test error, %": lambda m: 100 * m.measured["test error"],
        "rank/d, %": lambda m: 100 * m.spectrum.rank_fraction,
        "var λ": PREDICTORS["var λ"],
        "score": PREDICTORS["score"],
        "λ mean": PREDICTORS["λ mean"],
        "λ_max": PREDICTORS["λ_max"],
        "threshold": lambda m: m.spectrum.threshold,
        "tr D/‖∇f‖²": lambda m: m.noise_scale,
    }
    rows = [["network", "pair", *read]]
    for cell, measurements in found.items():
        values = [format_seeds([value(m) for m in measurements]) for value in read.values()]
        rows.append([cell.architecture, cell.pair, *values])
    return align_rows(rows)
