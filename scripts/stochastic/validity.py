r"""Validity of SGD's stochastic equation on a network: over learning rates and batch sizes, along paths and in law.

Along paths the equation is driven by the mini-batches of an SGD run, so that one number measures its error:
‖X_T − θ_T‖/‖θ_T − θ_0‖. Euler's method with dt = h is SGD itself; the equation's own error appears at smaller dt.

In law, independent runs of both give E φ for the loss, ‖∇f‖² and the test accuracy, compared at T and before. Every
φ(X) is extrapolated, 2φ(X^{dt}) − φ(X^{2dt}) on one Brownian path.

Each cell is listed with three possible causes, all along gradient flow with D the examples' covariance: hλ; the
noise-to-signal ratio r = c tr D/‖∇f‖², which Li, Malladi & Arora 2021 (arXiv 2102.12470) require to be large at
equilibrium; and h/h*, h* = 2‖∇f‖²/(gᵀHg + c tr(HD)) the rate at which the mean loss stops falling in a step.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from flows.observers import Evaluation
from flows.orders.ladder import sharpness_at
from landscapes.errors import check_choice, check_count, check_positive, check_seed
from landscapes.noise import MinibatchNoise
from landscapes.sampling import SAMPLINGS

from ..lab.experiment import align_rows
from ..lab.network import NetGround
from ..lab.tables import with_error
from .common import Stochastic
from .validity_figure import validity_figure
from .validity_runs import CellRuns, Coupled, GridCell, Law

GROUND = NetGround("lenet", examples=120)
LOSS, SQUARED_NORM, ACCURACY = "loss", "‖∇f‖²", "test accuracy"
STANDARD_ERRORS = 2  # half the width of the interval from which a verdict is derived
GROWING = {"batches", "seeds", "second_seeds", "second_above", "runs", "sgd_runs", "scaled", "tolerance"}


@dataclass(frozen=True)
class Validity(Stochastic):
    """SGD's equation on a network over learning rates and batch sizes: along SGD's own mini-batches, and in law."""

    ground: NetGround = GROUND
    """Network and data."""
    scaled: tuple[float, ...] = (2.4, 1.2, 0.6, 0.2, 0.1)
    """Learning rates as hλ, falling, λ the Hessian's eigenvalue of largest magnitude at the start."""
    batches: tuple[int, ...] = (2, 8, 32, 120)
    """Batch sizes."""
    steps: int = 4
    """Steps of the largest rate to the time T; the other rates must divide it into whole steps."""
    sampling: str = "replacement"
    """replacement or subset."""
    seeds: int = 3
    """SGD runs whose mini-batches drive the order-1 equation, in every cell."""
    second_seeds: int = 2
    """SGD runs that drive the order-2 equation, whose step costs five times as much; 0 omits it."""
    second_above: float = 0.15
    """The smallest hλ for which order 2 is run."""
    runs: int = 8
    """Independent runs of the order-1 equation, in every cell."""
    sgd_runs: int = 24
    """Independent runs of SGD."""
    halvings: int = 2
    """dt ≤ h/2^halvings for laws, and half of that along paths."""
    finest: float = 0.15
    """The largest dt·λ: the steps of large rates are halved further."""
    tolerance: float = 0.1
    """Relative difference up to which the equation counts as valid."""

    def run(self) -> None:
        """Run every cell, compare, print, plot."""
        self.check()
        landscape, theta0 = self.ground.build(self.seed, self.real, self.device)
        sharpness = sharpness_at(landscape, theta0)
        if not (math.isfinite(sharpness) and sharpness > 0):
            raise ArithmeticError("the Hessian at the start has no eigenvalue to scale learning rates by")
        largest = float(f"{self.scaled[0] / sharpness:.2g}")  # rounded, to be the same on every machine
        time = largest * self.steps
        runs = CellRuns(self.open(T=time), landscape, theta0, self.sampling, self.seed)
        grid = Grid(self, runs, self.cells(largest), sharpness)
        title = f"{self.ground.architecture} ({landscape.dimension:,} weights), {landscape.size} examples of "
        title += f"{self.ground.chosen.data}, drawn by {self.sampling}"
        heading = f"{title}: T = {time:.4g}, λ = {sharpness:.3g} at the start"
        blocks = [heading, grid.path_table(), *(grid.law_table(name) for name in grid.phi), grid.reasons()]
        runs.store.table("\n\n".join(blocks))
        self.draw(runs.store, validity_figure(grid.panels(), self.batches, grid.rates, grid.rising_cells()))

    def check(self) -> None:
        """Raise ValueError for invalid options."""
        check_seed(self.seed)
        check_choice("sampling", self.sampling, tuple(name for name in SAMPLINGS if name != "epoch"))
        for name in ("steps", "seeds", "halvings"):
            check_count(name, getattr(self, name))
        for name in ("runs", "sgd_runs"):
            check_count(name, getattr(self, name), minimum=3)
        check_count("second_seeds", self.second_seeds, minimum=0)
        for name in ("finest", "tolerance", "second_above"):
            check_positive(name, getattr(self, name))
        for values in (self.scaled, self.batches):
            if not values:
                raise ValueError("--scaled and --batches must name at least one value each")
        if list(self.scaled) != sorted({check_positive("scaled", x) for x in self.scaled}, reverse=True):
            raise ValueError(f"--scaled must fall strictly, got {' '.join(f'{x:g}' for x in self.scaled)}")

    def cells(self, largest: float) -> list[GridCell]:
        """All cells, rates falling; raises if a rate does not divide the largest."""
        found = []
        for scaled in self.scaled:
            ratio = round(self.scaled[0] / scaled)
            if abs(ratio * scaled - self.scaled[0]) > 1e-9 * self.scaled[0]:
                raise ValueError(
                    f"--scaled must divide its first, {self.scaled[0]:g}, into whole steps: {scaled:g} does not"
                )
            found += [GridCell(largest / ratio, b, ratio * self.steps, ratio) for b in self.batches]
        return found

    def configuration(self) -> dict[str, Any]:
        ground = dataclasses.asdict(self.ground) | {"chosen": dataclasses.asdict(self.ground.chosen)}
        ground.pop("root")
        said = super().configuration() | {"ground": ground}
        return {key: value for key, value in said.items() if key not in GROWING}

    def test_accuracy(self) -> Callable[[Tensor], Tensor]:
        """θ (..., d) ↦ accuracy on the test part of the data, (...,)."""
        test, targets = self.ground.test_part(self.seed, self.real, self.device)
        seen = Evaluation(test, test.outputs, targets)
        return lambda theta: seen(0, 0.0, theta)["test accuracy"]


class Grid:
    """All cells of one configuration, with runs that are read or computed on demand, and their tables."""

    def __init__(self, options: Validity, runs: CellRuns, cells: Sequence[GridCell], sharpness: float):
        self.options, self.runs, self.cells, self.sharpness = options, runs, list(cells), sharpness
        f = runs.landscape
        self.phi = {LOSS: f.loss, SQUARED_NORM: lambda theta: f.grad(theta).square().sum(-1)}
        self.phi[ACCURACY] = options.test_accuracy()
        self._laws: dict[GridCell, dict[str, Law]] = {}
        self._paths: dict[tuple[GridCell, int], Coupled] = {}

    @property
    def rates(self) -> list[float]:
        """hλ of the grid's rates."""
        return [cell.h * self.sharpness for cell in self.cells[:: len(self.options.batches)]]

    def halvings(self, cell: GridCell) -> int:
        """Halvings of h for laws."""
        least = math.ceil(math.log2(max(1.0, cell.h * self.sharpness / self.options.finest)) - 1e-2)
        return max(self.options.halvings, least)

    def path_halvings(self, cell: GridCell) -> int:
        """Halvings of h along paths."""
        return max(self.options.halvings + 1, self.halvings(cell))

    def path_distances(self, cell: GridCell, order: int) -> Coupled | None:
        """Distances along SGD's mini-batches; None if this order is not run in the cell."""
        options = self.options
        seeds = options.seeds if order == 1 else options.second_seeds
        if order == 2 and (not seeds or cell.h * self.sharpness < options.second_above):
            return None
        if (cell, order) not in self._paths:
            self._paths[cell, order] = self.runs.path_distances(cell, order, seeds, self.path_halvings(cell))
        return self._paths[cell, order]

    def laws(self, cell: GridCell) -> dict[str, Law]:
        """Observable φ → its law."""
        if cell not in self._laws:
            runs = (self.options.sgd_runs, self.options.runs)
            self._laws[cell] = self.runs.laws(cell, runs, self.phi, self.halvings(cell))
        return self._laws[cell]

    def path_table(self) -> str:
        """A row for each cell: relative distances at T with standard errors, and their integration errors."""
        orders = [f"{column} {order}" for order in (1, 2) for column in ("order", "integration")]
        rows = [["hλ", "h", "b", "steps", "h/dt", *orders, "gradient flow"]]
        gap = 0.0
        for cell in self.cells:
            shown, flow = [], ""
            for order in (1, 2):
                found = self.path_distances(cell, order)
                if found is None:
                    shown += ["–", "–"]
                    continue
                shown += [format_mean(found.error), f"{float(found.integration.mean()):.1e}"]
                flow = format_mean(found.without) if order == 1 else flow
            halvings = self.path_halvings(cell)
            gap = max(gap, self.runs.step_gap(cell, halvings))
            place = [f"{cell.h * self.sharpness:.3g}", f"{cell.h:.4g}", str(cell.batch_size), str(cell.steps)]
            rows.append([*place, str(2**halvings), *shown, flow])
        caption = "along SGD's mini-batches: ‖X − θ‖/‖θ − θ_0‖ at T, mean over runs; integration: from dt to 2dt"
        return f"{caption}\n{align_rows(rows)}\nat dt = h Euler's method is SGD: at most {gap:.1e} apart, relative"

    def law_table(self, name: str) -> str:
        """A row for each cell: E φ at T, the equation's difference relative to φ and to its standard error."""
        rows = [
            ["hλ", "b", "SGD", "equation − SGD", "relative, %", "in errors", "largest before", "extrapolated", "holds"]
        ]
        for cell in self.cells:
            law = self.laws(cell)[name]
            bars = law.difference / law.error
            end = [float(x[-1]) for x in (law.sgd, law.sgd_error, law.difference, law.error, law.moved)]
            before = bars[:-1].abs().max() if len(bars) > 1 else torch.tensor(math.nan)
            relative = 100 * end[2] / abs(end[0]) if end[0] else math.nan
            shown = [
                with_error(end[0], end[1]),
                with_error(end[2], end[3]),
                f"{relative:.2g}",
                f"{float(bars[-1]):.1f}",
            ]
            more = [f"{float(before):.1f}", f"{end[4]:.1e}", self.verdict(cell, name)]
            rows.append([f"{cell.h * self.sharpness:.3g}", str(cell.batch_size), *shown, *more])
        counts = f"{self.options.sgd_runs} runs of SGD, {self.options.runs} of the equation"
        return f"law of {name} at T: {counts}; holds: within {100 * self.options.tolerance:g} %\n{align_rows(rows)}"

    def relative_difference(self, cell: GridCell, name: str) -> tuple[float, float]:
        """|E φ(X) − E φ(θ)|/|E φ(θ)| at T and its standard error."""
        law = self.laws(cell)[name]
        size = float(law.sgd[-1].abs())
        return float(law.difference[-1].abs()) / size, float(law.error[-1]) / size

    def verdict(self, cell: GridCell, name: str) -> str:
        """yes or no if the difference is clear by two standard errors, else a question mark."""
        value, error = self.relative_difference(cell, name)
        if value + STANDARD_ERRORS * error <= self.options.tolerance:
            return "yes"
        return "no" if value - STANDARD_ERRORS * error > self.options.tolerance else "?"

    def rising_cells(self) -> Tensor:
        """Whether the mean loss of SGD at T is above that at the start, (rates, batches)."""
        start = float(self.runs.landscape.loss(self.runs.theta0))
        return self._table([float(self.laws(cell)[LOSS].sgd[-1]) > start for cell in self.cells])

    def reasons(self) -> str:
        """A row for each cell with the possible causes, and rank correlations with both discrepancies."""
        scales = {name: float(x) for name, x in self.runs.scales(self.cells[0].times).items()}
        names = ["hλ", "r = c tr D/‖∇f‖²", "h/h*"]
        rows = [["b", *names, "path error", "loss: differs by", "mean loss", "holds: path", "holds: loss"]]
        causes: list[list[float]] = []
        for cell in self.cells:
            causes.append(self.causes(cell, scales))
            path = float(require(self.path_distances(cell, 1)).error.mean())
            law, _ = self.relative_difference(cell, LOSS)
            trend = "rises" if bool(self.rising_cells().flatten()[self.cells.index(cell)]) else "falls"
            verdicts = ["yes" if path <= self.options.tolerance else "no", self.verdict(cell, LOSS)]
            cause = [f"{x:.3g}" for x in causes[-1]]
            rows.append([str(cell.batch_size), *cause, f"{path:.3f}", f"{100 * law:.2g} %", trend, *verdicts])
        return f"possible causes, r and h* along gradient flow\n{align_rows(rows)}\n\n{self.ranks(names, causes)}"

    def causes(self, cell: GridCell, scales: dict[str, float]) -> list[float]:
        """hλ at the start, r, h/h*."""
        c = MinibatchNoise(self.runs.landscape, cell.batch_size, self.options.sampling).sampler.variance_factor()
        ratio = c * scales["trace"] / scales["signal"]
        falls = 2 * scales["signal"] / (scales["curved signal"] + c * scales["curved trace"])
        return [cell.h * self.sharpness, ratio, cell.h / falls]

    def ranks(self, names: Sequence[str], causes: Sequence[Sequence[float]]) -> str:
        """Spearman's rank correlations of the causes with both discrepancies."""
        paths = [float(require(self.path_distances(cell, 1)).error.mean()) for cell in self.cells]
        losses = [self.relative_difference(cell, LOSS)[0] for cell in self.cells]
        rows = [["rank correlation with", *names]]
        for name, found in (("path error", paths), ("loss's difference", losses)):
            rows.append([name, *(f"{correlation([row[i] for row in causes], found):.2f}" for i in range(len(names)))])
        return align_rows(rows)

    def panels(self) -> list[dict[str, Any]]:
        """Data of the figure: title, values, standard errors, and integration errors."""
        shown = []
        for order in (1, 2):
            found = [self.path_distances(cell, order) for cell in self.cells]
            values = [math.nan if x is None else float(x.error.mean()) for x in found]
            errors = [math.nan if x is None else mean_error(x.error) for x in found]
            left = [math.nan if x is None else float(x.integration.mean()) for x in found]
            title = f"order {order} along SGD's mini-batches: ‖X − θ‖/‖θ − θ$_0$‖"
            shown.append(self._panel(title, values, errors, left))
        for name, said in ((LOSS, "the loss"), (SQUARED_NORM, "‖∇f‖²")):
            pairs = [self.relative_difference(cell, name) for cell in self.cells]
            ends = [(self.laws(cell)[name].moved[-1], self.laws(cell)[name].sgd[-1]) for cell in self.cells]
            # Extrapolation removes the part by which it moves the mean; half of that is a cautious bound of the rest.
            left = [float((moved / sgd).abs()) / 2 for moved, sgd in ends]
            title = f"law of {said}: |E φ(X) − E φ(θ)|/E φ(θ)"
            shown.append(self._panel(title, [x for x, _ in pairs], [e for _, e in pairs], left))
        return shown

    def _panel(self, title: str, values: list[float], errors: list[float], left: list[float]) -> dict[str, Any]:
        return {
            "title": title,
            "values": self._table(values),
            "errors": self._table(errors),
            "integration": self._table(left),
        }

    def _table(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).reshape(-1, len(self.options.batches))


def two_digits(value: float) -> str:
    """At least two digits, and all those before the decimal point."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def require(found: Coupled | None) -> Coupled:
    """The result of order 1, which every cell has."""
    assert found is not None
    return found


def format_mean(values: Tensor) -> str:
    """Mean with its standard error; without error for one run."""
    return with_error(float(values.mean()), mean_error(values))


def mean_error(values: Tensor) -> float:
    """The standard error of a mean; NaN for one run."""
    return float(values.std()) / len(values) ** 0.5 if len(values) > 1 else math.nan


def correlation(x: Sequence[float], y: Sequence[float]) -> float:
    """Spearman's rank correlation over the cells where both are finite; NaN if one is constant."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    if len(pairs) < 3 or any(len(set(column)) < 2 for column in zip(*pairs, strict=True)):
        return math.nan
    return float(stats.spearmanr(*zip(*pairs, strict=True)).statistic)
