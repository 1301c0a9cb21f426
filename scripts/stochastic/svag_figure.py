"""The figure of the SVAG ladder: weak errors on toys against 1/l; means on a network against l and along t."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.comparison.laws import LOSS, SQUARED_NORM
from flows.figures import COLOURS, DASHES

from ..lab.experiment import label
from ..lab.figures import EQUATION, GUIDE, point_style, powers_of_two
from .svag_ladders import NetworkLadder, ToyLadder


def svag_figure(toys: Sequence[ToyLadder], ladder: NetworkLadder) -> Figure:
    """Toys and the loss along t above, the network's three observables below."""
    drawn = Figure(figsize=(10.5, 6.6), layout="constrained")
    panels = drawn.subplots(2, 3)
    for axes, toy, kind in zip(panels[0], toys, ("additive noise", "multiplicative noise"), strict=False):
        draw_toy(axes, toy)
        label(axes, "l (l = 1 is SGD)", "|E φ(SVAG) − E φ(SDE)| at the end", f"toy, {kind}", log="xy")
        powers_of_two(axes, toy.levels)
        axes.legend(fontsize="small", frameon=False, loc="lower left")
    draw_along(panels[0, 2], ladder)
    label(panels[0, 2], "time t = kh", "mean loss", "network: loss along t")
    panels[0, 2].legend(fontsize="small", frameon=False, loc="upper right")
    for i, (axes, name) in enumerate(zip(panels[1], ladder.names, strict=True)):
        draw_ends(axes, ladder, name, i)
        label(axes, "l (l = 1 is SGD)", f"mean {name} at the end", f"network: {name}", log="x")
        powers_of_two(axes, list(ladder.levels))
        axes.legend(fontsize="small", frameon=False)
    return drawn


def draw_toy(axes: Axes, toy: ToyLadder) -> None:
    """Exact errors as lines, errors of paths with bars of one standard error, and 1/l."""
    levels = np.array(toy.levels)
    for i, name in enumerate((LOSS, SQUARED_NORM)):
        exact = np.abs(toy.exact_errors(name))
        measured = np.array(toy.measured_errors(name))
        axes.plot(levels, exact, color=COLOURS[i], linestyle=DASHES[i], linewidth=1.1)
        size = np.abs(measured[:, 0])
        bars = np.stack([np.minimum(measured[:, 1], 0.9 * size), measured[:, 1]])  # positive ends
        axes.errorbar(levels, size, yerr=bars, linestyle="", label=f"φ = {name}", **point_style(i))
        if i == 0:
            axes.plot(levels, exact[-1] * levels[-1] / levels / 4, label="∝ 1/l", **GUIDE)
    axes.set_ylim(bottom=abs(toy.exact_errors(LOSS)[-1]) / 8)


def draw_along(axes: Axes, ladder: NetworkLadder) -> None:
    """Mean loss of SGD, of the largest level and of the equation along t."""
    levels = list(ladder.levels)
    for i, level in enumerate(dict.fromkeys((levels[0], levels[-1]))):
        curves = ladder.levels[level]
        mean, error = curves.mean(LOSS)
        name = "SGD" if level == 1 else f"SVAG, l = {level}"
        axes.errorbar(
            curves.times, mean, yerr=error, linestyle=DASHES[i + 1], linewidth=1, label=name, **point_style(i)
        )
    mean, error = ladder.equation.mean(LOSS)
    axes.errorbar(ladder.equation.times, mean, yerr=error, capsize=2, elinewidth=0.9, label="SDE", **EQUATION)


"""Means at the end with bars of one standard error; the equation as a band of one standard error."""


def draw_ends(axes: Axes, ladder: NetworkLadder, name: str, i: int) -> None:
    """Means at the end with bars of one standard error; the equation's as a band of one."""
    mean, error = (float(x[-1]) for x in ladder.equation.mean(name))
    axes.axhline(mean, label="SDE ± one s.e.", **EQUATION)
    axes.axhspan(mean - error, mean + error, color="0.85")
    ends = [[float(x[-1]) for x in curves.mean(name)] for curves in ladder.levels.values()]
    means, errors = np.array(ends).T
    axes.errorbar(list(ladder.levels), means, yerr=errors, linestyle="", label="SVAG", **point_style(i))
