"""Escape times against the barrier over the temperature, at equal trace and at equal noise across the barrier."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.figures import Style

from ..lab.experiment import label
from ..lab.figures import legend_above, line_style
from .escape_results import Escapes
from .passage import MeanTime

KRAMERS: Style = {"color": "0.35", "linestyle": ":", "linewidth": 1.2}
INTEGRAL: Style = {"color": "0.35", "linestyle": "-", "linewidth": 1.0}
CHAIN: Style = {"color": "black", "linestyle": (0, (8, 3)), "linewidth": 1.0}
SURE = 0.05  # relative standard error up to which a measured time is compared with the exact one
HIGHEST = 100.0  # times the longest measured mean; larger values are not drawn

Place = Callable[["Escapes"], float]


def escape_figure(found: Sequence[Escapes], barrier: float) -> Figure:
    """Times at equal trace; the same against the noise across the barrier; measured over exact ones."""
    noises = list(dict.fromkeys(e.noise for e in found))
    looks = {noise: {**line_style(i), "linestyle": "none", "markersize": 4.5} for i, noise in enumerate(noises)}
    drawn = Figure(figsize=(10.5, 4.0), layout="constrained")
    trace, across, bias = drawn.subplots(1, 3)
    top = HIGHEST * max((e.runs[1].value for e in found if not math.isnan(e.runs[1].value)), default=1.0)
    for noise, style in looks.items():
        rows = [e for e in found if e.noise == noise]
        draw_times(trace, rows, lambda e: barrier / e.temperature, style, top)
        draw_times(across, rows, lambda e: barrier / e.along, style, top, laws=False)
        draw_bias(bias, rows, lambda e: barrier / e.along, style)
    ordered = sorted(found, key=lambda e: e.along)
    draw_law(across, ordered, barrier, top)
    draw_chain(bias, [e for e in ordered if is_accurate(e.runs[1])], barrier)
    by_noise = "$ΔV/T_x$, by the noise across the barrier"
    label(trace, "$ΔV/T$, by the trace of the noise", "mean escape time t", "equal trace", log="y")
    label(across, by_noise, "mean escape time t", "equal noise across the barrier", log="y")
    label(bias, by_noise, "mean time over the integral", "measured over exact")
    others = {"integral for the SDE": INTEGRAL, "Kramers": KRAMERS, "exact for the descent": CHAIN}
    kinds = {"SDE (full marks)": {"color": "0.35", "marker": "o", "markersize": 4.5, "linestyle": "none"}}
    kinds["noisy descent (open marks)"] = {**kinds["SDE (full marks)"], "markerfacecolor": "none"}
    legend_above(drawn, {**looks, **others, **kinds}, 5)
    return drawn


def draw_times(
    axes: Axes, rows: Sequence[Escapes], place: Place, style: Style, top: float, *, laws: bool = True
) -> None:
    """The finer SDE's times with 95 % intervals, arrows up from bounds, and the exact times in the noise's colour."""
    for e in rows:
        mean = e.runs[1]
        low, high = mean.interval
        if math.isnan(mean.value):
            axes.plot(place(e), low, **{**style, "marker": "_"})
            axes.annotate("", (place(e), 3 * low), (place(e), low), arrowprops={"arrowstyle": "->", **arrow(style)})
        else:
            spread = [[mean.value - low], [high - mean.value]]
            axes.errorbar(place(e), mean.value, yerr=spread, capsize=2, elinewidth=0.8, **style)
    if laws:
        x = [place(e) for e in rows]
        for law, line in ((lambda e: e.exact, INTEGRAL), (lambda e: e.kramers, KRAMERS)):
            y = np.array([law(e) for e in rows])
            axes.plot(x, np.where(y < top, y, np.nan), **{**line, "color": style["color"]})


def arrow(style: Style) -> Style:
    """The arrow in the colour of its noise."""
    return {"color": style["color"], "linewidth": 0.9}


def draw_law(axes: Axes, rows: Sequence[Escapes], barrier: float, top: float) -> None:
    """The exact times of all rows as one curve each: they depend only on the noise across the barrier."""
    x = np.array([barrier / e.along for e in rows])
    for values, line in (([e.exact for e in rows], INTEGRAL), ([e.kramers for e in rows], KRAMERS)):
        y = np.array(values)
        axes.plot(x[y < top], y[y < top], **line)


def is_accurate(mean: MeanTime) -> bool:
    """Whether the standard error of a mean is small enough for a comparison with the exact one."""
    return not math.isnan(mean.value) and mean.error < SURE * mean.value


def draw_bias(axes: Axes, rows: Sequence[Escapes], place: Place, style: Style) -> None:
    """Measured over exact times: filled for the SDE, open for the descent, both over the integral for the SDE."""
    for e in rows:
        for mean, face in ((e.runs[1], style["color"]), (e.runs[2], "none")):
            if is_accurate(mean):
                low, high = (end / e.exact for end in mean.interval)
                value = mean.value / e.exact
                look = {**style, "capsize": 2, "elinewidth": 0.8, "markerfacecolor": face}
                axes.errorbar(place(e), value, yerr=[[value - low], [high - value]], **look)


def draw_chain(axes: Axes, rows: Sequence[Escapes], barrier: float) -> None:
    """One, for the SDE, and the exact mean times of the descent over the integral."""
    axes.axhline(1, **INTEGRAL)
    axes.plot([barrier / e.along for e in rows], [e.chain / e.exact for e in rows], **CHAIN)
