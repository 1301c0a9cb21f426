"""Observations along training under each noise: means over runs with bands of one standard error."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flows.figures import Style, with_markers

from ..lab.experiment import label
from ..lab.figures import legend_above, line_style, set_readable_ticks

PANELS = {"test accuracy": "", "loss": "y", "test loss": "y", "sharpness": "y", "noise trace": "y"}
"""Quantities with their own panel, and its logarithmic axes."""


def accuracy_figure(found: Mapping[str, Mapping[str, Tensor]], names: Mapping[str, str]) -> Figure:
    """Each quantity against t; the last panel shows test accuracy against training loss."""
    looks = {name: line_style(i) for i, name in enumerate(found)}
    drawn = Figure(figsize=(10.5, 6.2), layout="constrained")
    panels = drawn.subplots(2, 3).flat
    for axes, (key, log) in zip(panels, PANELS.items(), strict=False):
        for name, seen in found.items():
            draw_band(axes, seen["times"], seen[key], looks[name])
        unit = " in t⁻¹" if key == "sharpness" else ""
        label(axes, "time t = kh", names[key] + unit, names[key], log=log)
        if log:
            set_readable_ticks(axes.yaxis)
    last = panels[-1]
    for name, seen in found.items():
        x, y = (seen[key].mean(dim=0).numpy() for key in ("loss", "test accuracy"))
        last.plot(x, y, **with_markers(looks[name], len(x)))
    label(last, "training loss", "test accuracy", "means over runs", log="x")
    set_readable_ticks(last.xaxis)
    legend_above(drawn, looks, len(looks))
    return drawn


def draw_band(axes: Axes, times: Tensor, values: Tensor, style: Style) -> None:
    """The mean of runs (R, T) and a band of one standard error."""
    t, mean = times.numpy(), values.mean(dim=0).numpy()
    error = (values.std(dim=0) / len(values) ** 0.5).numpy()
    axes.plot(t, mean, **with_markers(style, len(t)))
    axes.fill_between(t, mean - error, mean + error, color=style["color"], alpha=0.2, linewidth=0)
