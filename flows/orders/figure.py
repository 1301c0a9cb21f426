r"""Figure of order studies: errors against h, with slopes, integration errors and the end of the asymptotic range."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullFormatter

from flows.figures import Style, save_figure, style
from flows.orders.fit import OrderStudy
from flows.orders.trend import RUNGS

MARKER = 5
INTEGRATION: Style = {"linestyle": (0, (3, 2)), "linewidth": 0.7}
DRIFT: Style = {"linestyle": (0, (1, 1)), "linewidth": 5, "alpha": 0.35}
END: Style = {"marker": "|", "markersize": 16, "markeredgewidth": 1.4, "linestyle": "none"}
HIGH = 1e3  # largest ratio of the upper end of the axis to the largest trusted error


def plot_orders(panels: Sequence[Mapping[str, OrderStudy]], path: str | os.PathLike[str]) -> Path:
    """Write a figure with a panel for each mapping name → study (the same names in each). Raises FolderError."""
    if not panels or not all(panels):
        raise ValueError("panels must have at least one mapping name -> OrderStudy, none of them empty")
    names = list(dict.fromkeys(name for panel in panels for name in panel))
    looks = {name: {**style(i), "markersize": MARKER} for i, name in enumerate(names)}
    figure = Figure(figsize=(max(5.2, 4.6 * len(panels)), 4.6), layout="constrained")
    for axes, studies in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw_studies(axes, studies, looks)
    columns = 3 if len(panels) == 1 else 5
    figure.legend(
        handles=legend(looks, panels), loc="outside upper center", ncols=columns, fontsize="small", frameon=False
    )
    return save_figure(figure, path)


def legend(looks: Mapping[str, Style], panels: Sequence[Mapping[str, OrderStudy]]) -> list[Line2D]:
    """Entries for the flows and for the other marks, for slopes that drift only if some do."""
    grey: dict[str, Any] = {"color": "0.4"}
    drifts = any(study.drifts for panel in panels for study in panel.values())
    return [
        *(Line2D([], [], label=name, **look) for name, look in looks.items()),
        Line2D([], [], label="integration error", **grey, **INTEGRATION),
        Line2D([], [], label="not trusted", marker="o", markerfacecolor="none", linestyle="none", **grey),
        Line2D([], [], label="asymptotics end", **grey, **END),
        *([Line2D([], [], label="slopes drift: no order", **grey, **DRIFT)] if drifts else []),
    ]


def draw_studies(axes: Axes, studies: Mapping[str, OrderStudy], looks: Mapping[str, Style]) -> None:
    """Errors of every flow against h, with a fan of the fitted slopes."""
    for name, study in studies.items():
        draw_study(axes, study, looks[name])
    first = next(iter(studies.values()))
    axes.set(xscale="log", yscale="log", xlabel="learning rate h", ylabel="‖X − θ‖ (units of θ)")
    axes.set_title(first.quantity, fontsize="medium")
    limit(axes, studies)
    draw_slopes(axes, studies)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_locator(LogLocator(numticks=10))
    if math.isfinite(first.sharpness) and first.sharpness > 0:
        scale = first.sharpness
        scaled: Any = (lambda h: h * scale, lambda x: x / scale)
        above = axes.secondary_xaxis("top", functions=scaled)
        above.set_xlabel("hλ, λ the sharpness at the start", fontsize="small")
        above.xaxis.set_minor_formatter(NullFormatter())


def draw_study(axes: Axes, study: OrderStudy, look: Style) -> None:
    """One flow: its errors, with hollow markers if not trusted, and its integration errors below."""
    h, errors = np.array(study.ladder), positive_values(study.errors)
    trusted = np.array(study.trusted)
    axes.plot(h, errors, **{**look, "marker": "none"}, linewidth=1.2)
    marker = {**look, "linestyle": "none"}
    axes.plot(h[trusted], errors[trusted], **marker)
    axes.plot(h[~trusted], errors[~trusted], **marker, markerfacecolor="white")
    if study.integration_errors is not None:
        axes.plot(h, positive_values(study.integration_errors), color=look["color"], **INTEGRATION)
    if study.fit is not None:
        axes.plot(h[study.fit.first], errors[study.fit.first], color=look["color"], **END)
    if study.drifts:
        finest = np.flatnonzero(trusted)[-RUNGS:]
        axes.plot(h[finest], errors[finest], color=look["color"], **DRIFT)


def positive_values(values: Sequence[float]) -> np.ndarray:
    """The values, NaN unless they are finite and positive, for a logarithmic axis."""
    numbers = np.array(values, dtype=float)
    return np.where(np.isfinite(numbers) & (numbers > 0), numbers, np.nan)


def limit(axes: Axes, studies: Mapping[str, OrderStudy]) -> None:
    """End the axis at HIGH times the largest trusted error, so that diverged runs do not compress the rest."""
    kept = [e for study in studies.values() for e, t in zip(study.errors, study.trusted, strict=True) if t]
    if kept:
        low, high = axes.get_ylim()
        axes.set_ylim(low, min(high, HIGH * max(kept)))


def draw_slopes(axes: Axes, studies: Mapping[str, OrderStudy]) -> None:
    """A fan of lines h^q below the curves, one for each fitted order q, rounded to an integer."""
    orders = sorted({round(study.fit.order) for study in studies.values() if study.fit is not None})
    ladder = next(iter(studies.values())).ladder
    fine = min(2, len(ladder) - 1)
    below = [study.errors[i] for study in studies.values() for i in range(fine + 1) if study.trusted[i]]
    if not orders or not below:
        return
    h, base = np.array([ladder[fine], ladder[0]]), min(below) / 20
    for order in orders:
        line = base * (h / h[0]) ** order
        axes.plot(h, line, color="0.35", linewidth=0.8)
        axes.annotate(
            f"{order}", (h[1], line[1]), xytext=(3, 0), textcoords="offset points", fontsize="small", va="center"
        )
    axes.annotate(
        "slopes", (h[1], base), xytext=(0, -2), textcoords="offset points", fontsize="small", ha="right", va="top"
    )
