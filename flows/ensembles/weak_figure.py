r"""Figure of weak orders: the largest weak error against h with its interval, integration errors dotted below."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import NullFormatter

from flows.ensembles.weak_ladder import WeakLadder, WeakOrder
from flows.figures import Style, save_figure, style

INTEGRATION: Style = {"linestyle": ":", "linewidth": 1.0}
EXACT: Style = {"color": "black", "marker": "o", "markersize": 8, "markerfacecolor": "none", "linestyle": "none"}


def plot_weak_orders(
    studies: Mapping[str, WeakLadder],
    observables: Sequence[str],
    path: str | os.PathLike[str],
    exact: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> Path:
    """Write a figure with a panel for each observable, a line for each study in it. Raises FolderError.

    ``exact``: study → observable → exact errors of its rungs, if known; drawn as circles.
    """
    if not studies or not observables:
        raise ValueError("studies and observables must not be empty: there is nothing to draw")
    figure = Figure(figsize=(max(4.2, 3.4 * len(observables)), 3.9), layout="constrained")
    looks = {name: {**style(i), "markersize": 4} for i, name in enumerate(studies)}
    for axes, phi in zip(figure.subplots(1, len(observables), squeeze=False)[0], observables, strict=True):
        draw_errors(axes, studies, phi, looks)
        for name, errors in (exact or {}).items():
            axes.plot(studies[name].ladder, errors[phi], **EXACT)
    handles = [Line2D([], [], label=name, **look) for name, look in looks.items()]
    handles.append(Line2D([], [], color="0.4", label="integration error, at most", **INTEGRATION))
    handles += [Line2D([], [], label="closed form", **EXACT)] if exact else []
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize="small", frameon=False)
    return save_figure(figure, path)


def draw_errors(axes: Axes, studies: Mapping[str, WeakLadder], phi: str, looks: Mapping[str, Style]) -> None:
    """One observable: errors with bars, and the fitted slope of each line."""
    for name, study in studies.items():
        found = study.largest(phi)
        h, error = np.array(study.ladder), np.array([x.error for x in found])
        bars = np.array([[x.error - x.low, x.high - x.error] for x in found]).clip(min=0).T
        axes.errorbar(h, error, yerr=bars, capsize=2, elinewidth=0.8, **looks[name])
        share = np.array([x.share for x in found]) * error
        axes.plot(h, np.where(share > 0, share, np.nan), color=looks[name]["color"], **INTEGRATION)
    axes.set(xscale="log", yscale="log", xlabel="learning rate h", ylabel=f"sup |E φ(X) − E φ(θ)|, φ = {phi}")
    ticks = sorted({h for study in studies.values() for h in study.ladder})
    axes.set_xticks(ticks, [f"{h:g}" for h in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", labelrotation=45)
    show_slopes(axes, {name: study.order(phi) for name, study in studies.items()}, looks)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def show_slopes(axes: Axes, orders: Mapping[str, WeakOrder], looks: Mapping[str, Style]) -> None:
    """The fitted slopes in the upper left corner, with space above the lines."""
    found = {name: order for name, order in orders.items() if order.rungs > 1}
    low, high = (math.log10(y) for y in axes.get_ylim())
    axes.set_ylim(top=10 ** (high + 0.085 * len(found) * (high - low)))
    for i, (name, order) in enumerate(found.items()):
        text = f"slope {order.order:.2f}  [{order.low:.2f}, {order.high:.2f}]"
        place = (0.03, 0.97 - 0.065 * i)
        axes.text(*place, text, transform=axes.transAxes, va="top", color=looks[name]["color"], fontsize="x-small")
