"""Parts shared by the figures of the experiments: line styles, one legend above the panels, readable ticks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from flows.figures import COLOURS, DASHES, MARKERS, Style

NOISE: Style = {"color": "0.5", "linestyle": (0, (8, 3)), "linewidth": 1}
SCATTERED: Style = {"color": "black", "linestyle": "-", "linewidth": 0.9}
SLOPE: Style = {"color": "0.35", "linewidth": 0.8}


def line_style(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of the i-th line."""
    return {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i], "markersize": 3.5, "linewidth": 1.2}


def legend_above(figure: Figure, looks: Mapping[str, Mapping[str, Any]], columns: int) -> None:
    """Draw one legend above the panels."""
    handles = [Line2D([], [], label=name, **dict(style)) for name, style in looks.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, fontsize="small", frameon=False)


def set_readable_ticks(axis: Axis) -> None:
    """Set ticks at 1, 2 and 5 on a logarithmic axis that spans one or two decades."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


GUIDE: dict[str, Any] = {"color": "0.35", "linewidth": 0.8, "linestyle": (0, (8, 3))}
EQUATION: dict[str, Any] = {"color": "black", "linewidth": 1.0}


def point_style(i: int) -> dict[str, Any]:
    """Colour and marker of the i-th set of points, with error bars."""
    return {"color": COLOURS[i], "marker": MARKERS[i], "markersize": 4, "capsize": 2, "elinewidth": 0.9}


def powers_of_two(axes: Axes, levels: Sequence[int]) -> None:
    """Set the levels as ticks of a logarithmic axis."""
    axes.xaxis.set_major_locator(FixedLocator(list(levels)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
