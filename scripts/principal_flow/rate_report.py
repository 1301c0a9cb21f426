r"""Report on a grid of rules, batch sizes and seeds: a table, sentences derived from its numbers, a figure.

Means and standard errors are over the seeds whose run stayed finite; the number of diverged runs is listed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from flows.figures import COLOURS, DASHES, MARKERS

from ..lab.experiment import align_rows, label
from ..lab.store import Tensors
from .rate_runs import RateRule, Training

EDGE = {"color": "black", "linewidth": 0.8, "linestyle": ":"}
DODGE = 1.045  # ratio of the abscissae of two neighbouring rules at one batch size


@dataclass(frozen=True)
class RateCell:
    """A rule at a batch size: its runs, one per seed."""

    rule: RateRule
    batch_size: int
    examples: int
    """Training examples."""
    label: str
    """The batch size in words."""
    runs: list[Tensors]

    @property
    def diverged(self) -> int:
        """Number of runs that became non-finite."""
        return sum(not bool(run["finished"]) for run in self.runs)

    def count_untaught(self, uninformed: float) -> int:
        """Number of runs whose final loss is no better than that of outputs independent of the image."""
        ends = self.values(lambda run: float(run["training loss"][-1]))
        return int((ends >= uninformed * (1 - 1e-6)).sum())  # to the rounding of float32

    def values(self, quantity: Callable[[Tensors], float]) -> Tensor:
        """The quantity of each seed's run, (seeds,), NaN if it diverged."""
        numbers = [quantity(run) if bool(run["finished"]) else torch.nan for run in self.runs]
        return torch.tensor(numbers, dtype=torch.float64)

    def series(self, quantity: Callable[[Tensors], Tensor], length: int) -> Tensor:
        """The quantity of each seed's run epoch by epoch, (seeds, length), NaN after its end."""
        rows = torch.full((len(self.runs), length), torch.nan, dtype=torch.float64)
        for row, run in zip(rows, self.runs, strict=True):
            values = quantity(run)[:length]
            row[: len(values)] = values
        return rows

    def epoch_rates(self, run: Tensors) -> Tensor:
        """Mean rate of each epoch, the last one possibly incomplete, (epochs,)."""
        steps = -(-self.examples // self.batch_size)
        return torch.stack([part.mean() for part in run["rates"].split(steps)]) if len(run["rates"]) else run["rates"]

    def scaled_rate(self, run: Tensors) -> float:
        """hλ₀ at the end: the last epoch's mean rate times the last sharpness."""
        return float(self.epoch_rates(run)[-1] * run["sharpness"][-1])


def last_value(name: str) -> Callable[[Tensors], float]:
    """The function that returns the last value of a series."""
    return lambda run: float(run[name][-1])


def rising_fraction(run: Tensors) -> float:
    """Fraction of epochs in which the training loss rose."""
    return float((run["training loss"].diff() > 0).double().mean())


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """Mean and standard error of the finite values; NaN for none, error NaN for one."""
    finite = values[values.isfinite()]
    error = finite.std() / len(finite) ** 0.5 if len(finite) > 1 else torch.tensor(torch.nan)
    return float(finite.mean()), float(error)


def format_mean(values: Tensor, scale: float = 1.0) -> str:
    """Mean ± standard error to its first digit, to the second if the first is 1; a dash for NaN."""
    mean, error = (scale * number for number in mean_and_error(values))
    if math.isnan(mean):
        return "–"
    if math.isnan(error) or error <= 1e-9 * abs(mean):  # the rounding of equal numbers
        return f"{mean:.3g}"
    places = math.floor(math.log10(error))
    places -= int(error < 2 * 10**places)
    if places > 4 or places < -5:
        return f"{mean:.3g} ± {error:.1g}"
    return f"{mean:.{max(0, -places)}f} ± {error:.{max(0, -places)}f}"


def format_range(values: list[float]) -> str:
    """Smallest and largest value as text."""
    low, high = f"{min(values):.3g}", f"{max(values):.3g}"
    return low if low == high else f"{low} to {high}"


def best_fixed(cells: list[RateCell], quantity: str, largest: bool) -> RateCell | None:
    """The fixed rate without diverged runs that has the best mean; None if there is none."""
    whole = [cell for cell in cells if cell.rule.fixed and not cell.diverged]
    sign = -1 if largest else 1
    return min(whole, key=lambda cell: sign * mean_and_error(cell.values(last_value(quantity)))[0], default=None)


def table(cells: list[RateCell], training: Training, caption: str) -> str:
    """A table for each batch size, and sentences derived from the numbers."""
    sizes = list(dict.fromkeys(cell.label for cell in cells))
    blocks = [caption, "mean ± standard error over the seeds that ended; * the best fixed rate of its batch size"]
    for size in sizes:
        chosen = [cell for cell in cells if cell.label == size]
        blocks += ["", f"batch size {size}", align_rows(rows(chosen, training))]
    return "\n".join([*blocks, "", *findings(cells, sizes, training)])


def rows(cells: list[RateCell], training: Training) -> list[list[str]]:
    """A row for each rule."""
    loss, accuracy = best_fixed(cells, "training loss", False), best_fixed(cells, "test accuracy", True)
    heading = ["rule", "training loss", "test accuracy, %", "sharpness λ₀", "mean rate", "hλ₀ at the end"]
    shown = [[*heading, "steps at the cap", "epochs that rose", "learnt nothing", "diverged"]]
    for cell in cells:
        at_cap = cell.values(lambda run: float((run["rates"] >= training.cap).double().mean()))
        shown.append(
            [
                cell.rule.name,
                format_mean(cell.values(last_value("training loss"))) + ("*" if cell is loss else " "),
                format_mean(cell.values(last_value("test accuracy")), 100) + ("*" if cell is accuracy else " "),
                format_mean(cell.values(last_value("sharpness"))),
                format_mean(cell.values(lambda run: float(run["rates"].mean()))),
                format_mean(cell.values(cell.scaled_rate)),
                "" if cell.rule.fixed else f"{100 * mean_and_error(at_cap)[0]:.0f} %",
                f"{100 * mean_and_error(cell.values(rising_fraction))[0]:.0f} %",
                format_count(cell.count_untaught(training.uninformed), cell),
                format_count(cell.diverged, cell),
            ]
        )
    return [[text.replace("nan %", "–") for text in row] for row in shown]


def format_count(count: int, cell: RateCell) -> str:
    """Number of runs out of all, empty for zero."""
    return f"{count} of {len(cell.runs)}" if count else ""


def findings(cells: list[RateCell], sizes: list[str], training: Training) -> list[str]:
    """Sentences derived from the numbers."""
    start = torch.cat([run["sharpness"][:1] for run in cells[0].runs])
    lines = [f"λ₀ = {format_range(start.tolist())} at the start"]
    if any(0 < cell.rule.power < 1 for cell in cells):
        lines.append(
            "on a quadratic with λ₀ > 1 every p < 1 diverges unless the cap is below 2/λ₀: for v > 1, 2/vᵖ grows as p "
            "decreases"
        )
    if len({cell.rule.power for cell in cells}) > 2:
        lines.append("Rosca et al. 2023 report that p trades stability of training against test performance; here:")
    for size in sizes:
        chosen = [cell for cell in cells if cell.label == size]
        lines += trade_off(chosen, size)
        lines += [against_fixed(cell, chosen) for cell in chosen if not cell.rule.fixed]
    lines += [
        edge_sentence(cell, training.cap) for cell in cells if cell.rule.power == 1 and cell.batch_size == cell.examples
    ]
    broken = [failures_of(cell, training.uninformed) for cell in cells]
    lines += [line for line in broken if line] or ["no run diverged, and all ended below the loss of a constant guess"]
    unsure = sum(int((~run["sharpness converged"]).sum()) for cell in cells for run in cell.runs)
    return lines + ([f"{unsure} values of the sharpness reached the limit of products before 1e-3"] if unsure else [])


def against_fixed(cell: RateCell, cells: list[RateCell]) -> str:
    """DAL-p compared with the best fixed rates of its batch size, seed by seed."""
    parts = []
    for quantity, largest, scale, unit in (("training loss", False, 1, ""), ("test accuracy", True, 100, " points")):
        best = best_fixed(cells, quantity, largest)
        if best is None:
            parts.append(f"{quantity}: no fixed rate without a diverged run")
            continue
        difference = cell.values(last_value(quantity)) - best.values(last_value(quantity))
        parts.append(f"{quantity} {format_signed(difference, scale)}{unit} relative to {best.rule.name}")
    return f"batch size {cell.label}, {cell.rule.name} minus the best fixed rate: {'; '.join(parts)}"


def format_signed(difference: Tensor, scale: float = 1.0) -> str:
    """A mean difference with its sign and standard error, seeds paired."""
    text = format_mean(difference, scale)
    return text if text.startswith(("-", "–")) else f"+{text}"


def trade_off(cells: list[RateCell], size: str) -> list[str]:
    """The smallest and the largest power: the trade of stability for test performance that the paper reports."""
    powers = sorted((cell for cell in cells if not cell.rule.fixed), key=lambda cell: cell.rule.power)
    if len(powers) < 2:
        return []
    low, high = powers[0], powers[-1]
    steps = high.values(rising_fraction) - low.values(rising_fraction)
    accuracy = high.values(last_value("test accuracy")) - low.values(last_value("test accuracy"))
    return [
        f"batch size {size}, {high.rule.name} minus {low.rule.name}: "
        f"test accuracy {format_signed(accuracy, 100)} points, epochs that rose {format_signed(steps, 100)} points"
    ]


def edge_sentence(cell: RateCell, cap: float) -> str:
    """hλ₀ of DAL-1 with the full batch, at the weights where h was computed, and the fraction of rising steps."""
    observed = []
    for run in cell.runs:
        for epoch, sharpness in zip(run["sharpness epochs"].tolist(), run["sharpness"], strict=True):
            if epoch < len(run["rates"]) and run["rates"][epoch] < cap:  # one step per epoch
                observed.append(float(run["rates"][epoch] * sharpness))
    seen = f"hλ₀ = {format_range(observed)} in {len(observed)} observations" if observed else "the cap throughout"
    rose = format_mean(cell.values(rising_fraction), 100)
    return (
        f"all images, {cell.rule.name}: {seen}, and the loss rose in {rose} % of the steps; "
        "as v ≤ max|λ|, hλ₀ ≥ 2 under the cap wherever λ₀ = max|λ|: on a quadratic DAL-1 ends in a two-cycle"
    )


def failures_of(cell: RateCell, uninformed: float) -> str:
    """Diverged runs of a cell with their last step, and runs that learnt nothing."""
    untaught, parts = cell.count_untaught(uninformed), []
    if cell.diverged:
        steps = [str(len(run["rates"])) for run in cell.runs if not bool(run["finished"])]
        parts.append(f"{cell.diverged} of {len(cell.runs)} diverged, after step {', '.join(steps)}")
    if untaught:
        parts.append(f"{untaught} of {len(cell.runs)} ended at or above {uninformed:.3f}, the loss of a constant guess")
    return f"batch size {cell.label}, {cell.rule.name}: {'; '.join(parts)}" if parts else ""


def styles_of(cells: list[RateCell]) -> dict[str, dict[str, Any]]:
    """Styles: fixed rates in greys, darker for larger rates; DAL-p in colours; a marker and dashes for each."""
    rules = list(dict.fromkeys(cell.rule for cell in cells))
    fixed = [rule for rule in rules if rule.fixed]
    styles: dict[str, dict[str, Any]] = {}
    for i, rule in enumerate(rules):
        j = i - len(fixed)
        shade = str(0.72 - 0.5 * i / max(1, len(fixed) - 1))
        styles[rule.name] = {
            "color": shade if rule.fixed else COLOURS[j % len(COLOURS)],
            "linestyle": DASHES[(i if rule.fixed else j) % len(DASHES)],
            "marker": MARKERS[i % len(MARKERS)] if rule.fixed else "o",
            "markerfacecolor": None if rule.fixed or j % 2 == 0 else "white",
            "markersize": 4 if rule.fixed else 5,
            "linewidth": 1.0 if rule.fixed else 1.7,
        }
    return styles


def figure(cells: list[RateCell], training: Training) -> Figure:
    """Above: ends of the runs against batch size; below: the largest batch size over time."""
    drawn = Figure(figsize=(10.5, 6.4), layout="constrained")
    (loss, accuracy, scaled), (way, sharpness, rate) = drawn.subplots(2, 3)
    styles = styles_of(cells)
    against_size(loss, cells, styles, lambda cell: cell.values(last_value("training loss")))
    mark_diverged(loss, cells, styles)
    loss.axhline(training.uninformed, **EDGE)
    against_size(accuracy, cells, styles, lambda cell: 100 * cell.values(last_value("test accuracy")))
    stretch_percentages(accuracy)
    against_size(scaled, cells, styles, lambda cell: cell.values(cell.scaled_rate))
    scaled.axhline(2, **EDGE)
    label(loss, "batch size", "training loss at the end", "training loss (dotted: constant guess)", log="y")
    label(accuracy, "batch size", "test accuracy, %", "test accuracy (scale: log of the error)")
    label(scaled, "batch size", "hλ₀ at the end", "rate × sharpness (dotted: hλ₀ = 2)", log="y")
    size = max(cell.batch_size for cell in cells)
    chosen = [cell for cell in cells if cell.batch_size == size]
    over_time(way, chosen, styles, lambda cell: cell.series(lambda run: run["training loss"], training.epochs + 1))
    over_time(rate, chosen, styles, lambda cell: cell.series(cell.epoch_rates, training.epochs), first=1)
    looked = {int(epoch) for cell in chosen for run in cell.runs for epoch in run["sharpness epochs"]}
    at = sorted(looked)
    over_time(sharpness, chosen, styles, lambda cell: cell.series(lambda run: run["sharpness"], len(at)), epochs=at)
    title = "all images" if size == chosen[0].examples else f"batch size {size}"
    label(way, "epoch", "training loss", f"{title}: training loss", log="y")
    label(sharpness, "epoch", "sharpness λ₀", f"{title}: sharpness", log="y")
    label(rate, "epoch", "mean rate h of the epoch", f"{title}: learning rate", log="y")
    for axes in (loss, scaled, way, sharpness, rate):
        plain_numbers(axes)
    handles = [Line2D([], [], label=name, **style) for name, style in styles.items()]
    handles.append(Line2D([], [], label="diverged runs", color="black", marker="x", linestyle=""))
    drawn.legend(handles=handles, loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    return drawn


def against_size(
    axes: Axes, cells: list[RateCell], styles: dict[str, dict[str, Any]], values: Callable[[RateCell], Tensor]
) -> None:
    """Mean and standard error of each rule at every batch size, rules side by side."""
    for name, style in styles.items():
        chosen = [cell for cell in cells if cell.rule.name == name]
        numbers = [mean_and_error(values(cell)) for cell in chosen]
        middle, error = (np.array(column) for column in zip(*numbers, strict=True))
        axes.errorbar(places(chosen, styles), middle, yerr=np.nan_to_num(error), capsize=2, elinewidth=0.8, **style)
    sizes = {cell.batch_size: cell.label for cell in cells}
    axes.set_xscale("log")
    axes.set_xticks(list(sizes), [f"all ({n})" if text == "all" else text for n, text in sizes.items()], minor=False)
    axes.set_xticks([], minor=True)


def places(cells: list[RateCell], styles: dict[str, dict[str, Any]]) -> np.ndarray:
    """Abscissae of a rule's batch sizes, shifted so that rules do not overlap."""
    i = list(styles).index(cells[0].rule.name) - (len(styles) - 1) / 2
    return np.array([cell.batch_size for cell in cells]) * DODGE**i


def stretch_percentages(axes: Axes) -> None:
    """Set a logarithmic scale of the error 100 − y, for percentages y near 100."""
    axes.set_yscale(
        "function",
        functions=(lambda y: -np.log(np.maximum(100.2 - y, 0.05)), lambda z: 100.2 - np.exp(-z)),  # 100 is on it
    )
    low, high = axes.get_ylim()
    axes.set_yticks([y for y in (0, 20, 40, 60, 70, 80, 85, 90, 95, 98, 99, 100) if low <= y <= high])


def plain_numbers(axes: Axes) -> None:
    """Set tick labels without powers of ten on a logarithmic axis, also between decades if there are few."""
    low, high = axes.get_ylim()
    digits = {2, 3, 5} if high < 30 * low else set()
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
    axes.yaxis.set_minor_formatter(
        lambda y, _: f"{y:g}" if round(y / 10 ** math.floor(math.log10(y))) in digits else ""
    )


def mark_diverged(axes: Axes, cells: list[RateCell], styles: dict[str, dict[str, Any]]) -> None:
    """A cross for every diverged run, stacked from the top of the axes, which are extended for them."""
    if any(cell.diverged for cell in cells):
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.25)
    for cell in cells:
        (x,) = places([cell], styles)
        for i in range(cell.diverged):
            axes.plot(
                [x],
                [0.97 - 0.05 * i],
                transform=axes.get_xaxis_transform(),
                color=styles[cell.rule.name]["color"],
                marker="x",
                markersize=5,
            )


def over_time(
    axes: Axes,
    cells: list[RateCell],
    styles: dict[str, dict[str, Any]],
    series: Callable[[RateCell], Tensor],
    *,
    first: int = 0,
    epochs: list[int] | None = None,
) -> None:
    """Mean over the finite runs, smallest and largest shaded; a cross at the end if all runs diverged."""
    for cell in cells:
        values = series(cell).numpy()  # (seeds, T)
        going = np.isfinite(values).any(0)
        values = values[:, going]
        x = (np.arange(first, first + len(going)) if epochs is None else np.array(epochs))[going]
        if not len(x):
            continue
        style = styles[cell.rule.name]
        axes.fill_between(x, np.nanmin(values, 0), np.nanmax(values, 0), color=style["color"], alpha=0.12, linewidth=0)
        axes.plot(x, np.nanmean(values, 0), **style, markevery=max(1, len(x) // 6))
        if cell.diverged == len(cell.runs):
            axes.plot(x[-1:], np.nanmean(values, 0)[-1:], color=style["color"], marker="x", markersize=7)
