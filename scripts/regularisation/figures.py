"""The two figures: full batch along t and along a ladder, mini-batches of one epoch and of many."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.figures import Style, with_markers
from flows.orders.fit import OrderStudy

from ..lab.experiment import label
from ..lab.figures import NOISE, SCATTERED, SLOPE, legend_above, line_style, set_readable_ticks
from .full_batch_runs import Runs
from .kinds import PAIRS, PREDICTIONS, SAMPLINGS, Pair, label_of
from .mini_batch_mean import Mean

LARGE: Style = {**line_style(0), "color": "black", "marker": "o", "markerfacecolor": "none", "linewidth": 0.8}


def full_batch_figure(runs: Runs, studies: Mapping[Pair, OrderStudy]) -> Figure:
    """Distances along t, orders; below, loss, gradient norm and accuracy minus those of gradient flow."""
    looks = {
        "large": LARGE,
        "small": line_style(0),
        "whole": line_style(3),
        "explicit": line_style(1),
        "cancelled": line_style(2),
    }
    looks["penalised-flow"] = line_style(4)
    drawn = Figure(figsize=(10.5, 6.6), layout="constrained")
    panels = drawn.subplots(2, 3)
    for axes, reference in zip(panels[0], ("large", "flow"), strict=False):
        for name, other in PAIRS:
            if other == reference:
                away = runs.distances_of(name, other).numpy()
                t = runs.main[name]["times"][: len(away)].numpy()
                axes.plot(t[1:], away[1:], **with_markers(looks[name], len(away)))
        label(axes, "time t = kH", "distance", f"to {label_of(reference)}", log="y")
        set_readable_ticks(axes.yaxis)
    draw_ladder(panels[0, 2], [(found, looks[name]) for (name, _), found in studies.items()], (1, 2))
    label(panels[0, 2], "Hλ, λ the largest along descent at H", "distance at T", "along a ladder of H", log="xy")
    draw_differences(panels[1], runs, looks)
    legend_above(drawn, {label_of(name): style for name, style in looks.items()}, 3)
    return drawn


def draw_differences(panels: Iterable[Axes], runs: Runs, looks: Mapping[str, Style]) -> None:
    """Plot loss, gradient norm and test accuracy minus those of gradient flow."""
    quantities = (("loss", "f", 1), ("gradient norm", "‖∇f‖", 1), ("test accuracy", "test accuracy, %", 100))
    for axes, (key, name, scale) in zip(panels, quantities, strict=True):
        reference = scale * runs.main["flow"][key].double()
        for run in ("large", "small", "explicit", "cancelled"):
            values = scale * runs.main[run][key].double()
            length = min(len(values), len(reference))
            difference = (values[:length] - reference[:length]).numpy()
            axes.plot(runs.main[run]["times"][:length].numpy(), difference, **with_markers(looks[run], length))
        label(axes, "time t = kH", "difference", f"{name}, less gradient flow's")


def draw_ladder(axes: Axes, studies: Iterable[tuple[OrderStudy, Style]], slopes: tuple[int, ...]) -> None:
    """Plot errors against Hλ, and lines of the expected slopes below them."""
    lowest, x = np.inf, np.array([])
    for study, style in studies:
        x = np.array(study.ladder) * study.sharpness
        errors = np.array(study.errors)
        axes.plot(x, errors, **style)
        lowest = np.nanmin([lowest, errors[-1]])
    span = np.array([x[-1], x[max(0, len(x) - 4)]])
    for slope in slopes if np.isfinite(lowest) else ():
        y = lowest / 3 * (span / span[0]) ** slope
        axes.plot(span, y, **SLOPE)
        end = (span[1], y[1])
        axes.annotate(f"{slope}", end, xytext=(3, 0), textcoords="offset points", fontsize="small", va="center")


def mini_batch_figure(exact: Mapping[str, Mapping[str, OrderStudy]], means: Mapping[str, Mean]) -> Figure:
    """A row for each sampling: one epoch along a ladder, many epochs, and the coordinates of the mean."""
    looks = {name: line_style(i) for i, name in enumerate(PREDICTIONS)}
    drawn = Figure(figsize=(10.5, 6.6), layout="constrained")
    rows = drawn.subplots(len(means), 3, squeeze=False)
    for (ladder, along, place), (sampling, mean) in zip(rows, means.items(), strict=True):
        name = SAMPLINGS[sampling]
        if sampling in exact:
            draw_ladder(ladder, zip(exact[sampling].values(), looks.values(), strict=True), (2, 3))
            label(ladder, "Hλ, λ at the start", "distance", f"{name}: one epoch", log="xy")
            set_readable_ticks(ladder.xaxis)
        else:
            ladder.set_axis_off()
        draw_mean(along, mean, looks)
        label(along, "time t", "distance", f"{name}: mean of {len(mean.runs)} runs", log="y")
        set_readable_ticks(along.yaxis)
        draw_place(place, mean)
        label(place, "time t", "a, b", f"{name}: coordinates of the mean")
    shown = {f"at h on {PREDICTIONS[name]}": style for name, style in looks.items()}
    others = {"noise of the mean": NOISE, "a: ‖∇f‖² term": line_style(3), "b: variance term": line_style(4)}
    legend_above(drawn, {**shown, **others, "a and b with the runs' scatter": SCATTERED}, 3)
    return drawn


def draw_mean(axes: Axes, mean: Mean, looks: Mapping[str, Style]) -> None:
    """Plot distances with error bars of one standard error, and the noise of the mean."""
    t = mean.times[1:].numpy()
    for name, style in looks.items():
        away, error = (x[1:].numpy() for x in mean.distances(name))
        axes.errorbar(t, away, yerr=error, capsize=2, elinewidth=0.8, **style)
    axes.plot(t, mean.standard_error[1:].numpy(), **NOISE)


def draw_place(axes: Axes, mean: Mean) -> None:
    """Plot a and b with error bars of one standard error, and as predicted from the runs' scatter; lines at 0 and 1."""
    t = mean.times[1:].numpy()
    values, errors = (x.numpy() for x in mean.place())
    expected = mean.coordinates(mean.scattered).numpy()
    for column, i in ((0, 3), (1, 4)):
        axes.errorbar(t, values[:, column], yerr=errors[:, column], capsize=2, elinewidth=0.8, **line_style(i))
        axes.plot(t, expected[:, column], **SCATTERED)
    for level in (0, 1):
        axes.axhline(level, color="black", linewidth=0.7, linestyle=":")
    axes.set_ylim(min(-0.25, axes.get_ylim()[0]), max(1.3, axes.get_ylim()[1]))
