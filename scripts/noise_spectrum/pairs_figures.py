"""The figures of the experiments on pairs of classes: errors against scores, and the rule for h against a fixed h."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from flows.figures import COLOURS, MARKERS

from ..lab.experiment import label
from .cells import Cell
from .measurements import NoiseMeasurement, SeedStatistic, over_seeds
from .rule_arms import Arms

NARROW = 1.5  # decades


def looks_of(names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Colour and marker of each architecture."""
    unique = list(dict.fromkeys(names))
    return {
        name: {
            "color": COLOURS[i % len(COLOURS)],
            "marker": MARKERS[i % len(MARKERS)],
            "markersize": 4.5,
            "linestyle": "",
        }
        for i, name in enumerate(unique)
    }


def legend_of_architectures(figure: Figure, styles: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw one legend above the panels."""
    handles = [Line2D([], [], label=name, **dict(style)) for name, style in styles.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), fontsize="small", frameon=False)


def set_few_ticks(axis: Axis) -> None:
    """Set few ticks on a logarithmic axis: at 1, 2 and 5 over a narrow range, evenly spaced over a very narrow one."""
    low, high = axis.get_view_interval()
    decades = math.log10(high / low) if low > 0 else math.inf
    if decades <= NARROW:
        axis.set_major_locator(MaxNLocator(6) if decades < NARROW / 3 else LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def tasks_figure(found: Mapping[Cell, Sequence[NoiseMeasurement]]) -> Figure:
    """Test error and gap against the score and its two parts: one point per cell, bars of one standard error."""
    across: dict[str, Callable[[NoiseMeasurement], float]] = {
        "score  rank(D)/d + var λ(D)": lambda m: m.score,
        "rank(D)/d": lambda m: m.spectrum.rank_fraction,
        "var λ(D)": lambda m: m.spectrum.clipped_std**2,
    }
    down: dict[str, Callable[[NoiseMeasurement], float]] = {
        "test error, %": lambda m: 100 * m.measured["test error"],
        "test − training error, %": lambda m: 100 * (m.measured["test error"] - m.measured["training error"]),
    }
    styles = looks_of([cell.architecture for cell in found])
    drawn = Figure(figsize=(9.6, 5.6), layout="constrained")
    panels = drawn.subplots(2, 3, sharex="col", sharey="row")
    for i, (y_name, y) in enumerate(down.items()):
        for j, (x_name, x) in enumerate(across.items()):
            axes = panels[i, j]
            for cell, measurements in found.items():
                point(axes, [x(m) for m in measurements], [y(m) for m in measurements], styles[cell.architecture])
            label(axes, x_name if i else "", y_name if j == 0 else "", "", log="x")
            set_few_ticks(axes.xaxis)
    legend_of_architectures(drawn, styles)
    return drawn


def point(axes: Axes, x: Sequence[float], y: Sequence[float], style: Mapping[str, Any]) -> None:
    """Means over seeds with bars of one standard error."""
    one, other = over_seeds(x), over_seeds(y)
    axes.errorbar(one.mean, other.mean, xerr=bar(one), yerr=bar(other), elinewidth=0.7, **style)


def bar(found: SeedStatistic) -> float:
    """A standard error, zero for one seed."""
    return 0.0 if math.isnan(found.error) else found.error


def rule_figure(arms: Mapping[Cell, Arms], batch_size: int) -> Figure:
    """Left: (h/b) mean λ(D) of every cell in each arm. Right: effect of another h on the test error."""
    styles = looks_of([cell.architecture for cell in arms])
    names = list(next(iter(arms.values())))
    drawn = Figure(figsize=(8.6, 3.7), layout="constrained")
    left, right = drawn.subplots(1, 2)
    for cell, own in arms.items():
        style = styles[cell.architecture]
        heights = [own[name].h / batch_size * own[name].mean_eigenvalue for name in names]
        left.plot(range(len(names)), heights, **{**style, "linestyle": "-"}, linewidth=0.6)
        for name in names[1:]:
            pairs = zip(own[name].errors, own["fixed"].errors, strict=True)
            found = over_seeds([one - other for one, other in pairs])
            filled = {} if name == "rule" else {"markerfacecolor": "none"}
            ratio = own[name].h / own["fixed"].h
            right.errorbar(ratio, found.mean, yerr=bar(found), elinewidth=0.7, **{**style, **filled})
    label(left, "", "(h/b) · mean λ(D)", "kept constant by the rule", log="y")
    left.set_xticks(range(len(names)), names)
    set_few_ticks(left.yaxis)
    label(right, "h over the fixed h", "change of test error, points of %", "filled: rule, open: reverse", log="x")
    set_few_ticks(right.xaxis)
    right.axhline(0, color="black", linewidth=0.7)
    legend_of_architectures(drawn, styles)
    return drawn
