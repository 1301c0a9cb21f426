r"""Does the spectrum of D tell how well a network will do? Chaudhari & Soatto's rank(D)/d + var λ(D) beside errors.

Every architecture on every pair of classes, several seeds each; the rank correlation of the score, its two parts and
other numbers of the spectrum with the test error and with the gap between test and training error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..lab.experiment import align_rows
from .cells import Cell, OnPairs, Run
from .common import shown, whole_epochs
from .correlation import correlate
from .looks import Look
from .pairs_figures import tasks_figure

Found = Mapping[Cell, Sequence[Look]]
PREDICTORS: dict[str, Callable[[Look], float]] = {
    "score": lambda look: look.score,
    "rank/d": lambda look: look.spectrum.rank_fraction,
    "var λ": lambda look: look.spectrum.clipped_std**2,
    "λ mean": lambda look: look.spectrum.mean,
    "λ_max": lambda look: look.largest,
    "tr D": lambda look: look.spectrum.trace,
    "training error": lambda look: look.measured["training error"],
}
"""What is correlated with the outcomes; the training error is there as what one knows without a spectrum."""
OUTCOMES: dict[str, Callable[[Look], float]] = {
    "test error": lambda look: look.measured["test error"],
    "gap": lambda look: look.measured["test error"] - look.measured["training error"],
}


@dataclass(frozen=True)
class Tasks(OnPairs):
    """The score rank(D)/d + var λ(D) across architectures and pairs of classes, beside training and test error."""

    seeds: int = 2
    """Trainings of each network, which differ in weights, mini-batches and choice of images."""

    def run(self) -> None:
        """Train, look, print, draw."""
        self.check()
        epochs = whole_epochs((1.0,), self.epochs)
        store = self.open()
        seeds = range(self.seed, self.seed + self.seeds)
        found = {
            cell: [Run(self, store, cell, self.h, seed).looks(epochs)[-1] for seed in seeds] for cell in self.cells
        }
        heading = (
            f"{self.says()}: {self.epochs} epochs of SGD at h = "
            f"{self.h:g} in mini-batches of {self.batch_size}, norm {self.norm}; D of {self.images} images, "
            f"{self.seeds} seeds"
        )
        store.table("\n\n".join([heading, cell_table(found), self.correlations(found)]))
        self.draw(store, tasks_figure(found))

    def values(self, found: Found, read: Callable[[Look], float]) -> Tensor:
        """A number of every look, (architectures, pairs, seeds)."""
        rows = [[[read(look) for look in found[Cell(a, p)]] for p in self.pairs] for a in self.architectures]
        return torch.tensor(rows, dtype=torch.float64)

    def correlations(self, found: Found) -> str:
        """A row for each predictor: with each outcome over all cells, and within architectures."""
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
    read: dict[str, Callable[[Look], float]] = {
        "training error, %": lambda look: 100 * look.measured["training error"],
        "test error, %": lambda look: 100 * look.measured["test error"],
        "rank/d, %": lambda look: 100 * look.spectrum.rank_fraction,
        "var λ": PREDICTORS["var λ"],
        "score": PREDICTORS["score"],
        "λ mean": PREDICTORS["λ mean"],
        "λ_max": PREDICTORS["λ_max"],
        "threshold": lambda look: look.spectrum.threshold,
        "tr D/‖∇f‖²": lambda look: look.noise_scale,
    }
    rows = [["network", "pair", *read]]
    for cell, looks in found.items():
        values = [shown([value(look) for look in looks]) for value in read.values()]
        rows.append([cell.architecture, cell.pair, *values])
    return align_rows(rows)
