"""The figure of the linear scaling rule: a toy's variance, a network's loss along t, and its means at the end."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from flows.comparison.laws import LOSS, SQUARED_NORM
from flows.figures import COLOURS, DASHES

from ..lab.experiment import label
from ..lab.figures import EQUATION, point_style, powers_of_two
from .linear_scaling_results import LinearScalingStudy, ScalingToy
from .runs import ACCURACY, NOTHING

NAMES = {"replacement": "with replacement", "subset": "subsets"}
DRIFT: dict[str, Any] = {"color": "0.45", "linestyle": (0, (1, 1)), "linewidth": 1.4}
CURVES = 4  # factors plotted along t
BEYOND = 8  # distances from gradient flow to the equation: means farther away are printed as text


def linear_scaling_figure(toy: ScalingToy, study: LinearScalingStudy) -> Figure:
    """Six panels; bars are one standard error."""
    drawn = Figure(figsize=(10.5, 6.6), layout="constrained")
    panels = drawn.subplots(2, 3)
    draw_toy(panels[0, 0], toy)
    draw_along(panels[0, 1], study)
    log = {"scatter": "xy"}
    for axes, name in zip((panels[0, 2], *panels[1]), ("scatter", LOSS, SQUARED_NORM, ACCURACY), strict=True):
        draw_ends(axes, study, name)
        caption = "Σ Var θ over runs" if name == "scatter" else f"mean {name}"
        label(axes, "s: rate sh, mini-batch sb", f"{caption} at the end", f"network: {name}", log=log.get(name, "x"))
        powers_of_two(axes, study.factors)
    panels[0, 2].legend(fontsize="small", frameon=False)
    return drawn


def draw_toy(axes: Axes, toy: ScalingToy) -> None:
    """Stationary variances from paths, exact, and the equation's."""
    for i, (sampling, name) in enumerate(NAMES.items()):
        rows = [row for row in toy.rows if row.sampling == sampling]
        factors = [row.factor for row in rows]
        found = np.array([row.found for row in rows])
        shown = found[:, 0] > NOTHING  # a full batch has no noise but rounding
        exact = [row.exact if row.exact > 0 else np.nan for row in rows]
        axes.plot(factors, exact, color=COLOURS[i], linestyle=DASHES[i], linewidth=1.1)
        places = np.array(factors)[shown]
        axes.errorbar(places, found[shown, 0], yerr=found[shown, 1], linestyle="", label=name, **point_style(i))
    with_replacement = [row for row in toy.rows if row.sampling == "replacement"]
    axes.plot(
        [row.factor for row in with_replacement], [row.equation for row in with_replacement], label="SDE", **EQUATION
    )
    label(axes, "s: rate sh, mini-batch sb", "stationary variance", "toy ½θ²; coloured lines: exact", log="xy")
    powers_of_two(axes, [row.factor for row in with_replacement])
    axes.legend(fontsize="small", frameon=False)


def draw_along(axes: Axes, study: LinearScalingStudy) -> None:
    """Mean loss along t for some factors with replacement, for the equation and for gradient flow."""
    chosen = study.factors[:: max(1, -(-len(study.factors) // CURVES))]
    ceiling = 3 * float(study.drift[LOSS][0])
    for i, factor in enumerate(chosen):
        curves = study.found[factor, "replacement"]
        mean, error = curves.mean(LOSS)
        name = f"SGD, s = {factor}"
        axes.errorbar(curves.times, mean, yerr=error, linestyle=DASHES[i], linewidth=1, label=name, **point_style(i))
    mean, error = study.equation.mean(LOSS)
    axes.errorbar(study.equation.times, mean, yerr=error, capsize=2, elinewidth=0.9, label="SDE", **EQUATION)
    axes.plot(study.drift["times"], study.drift[LOSS], label="gradient flow", **DRIFT)
    label(axes, "time t = kh", "mean loss", "network: loss along t", log="y")
    axes.set_ylim(top=min(axes.get_ylim()[1], ceiling))
    axes.legend(fontsize="small", frameon=False)


def draw_ends(axes: Axes, study: LinearScalingStudy, name: str) -> None:
    """An observable at the end against the factor, both samplings; the equation as a band; a line at hλ = 2."""
    mean, error = study.end(study.equation, name)
    axes.axhline(mean, label="SDE", **EQUATION)
    axes.axhspan(mean - error, mean + error, color="0.85")
    reach = np.inf
    if name in study.drift:
        drift = float(study.drift[name][-1])
        axes.axhline(drift, label="gradient flow", **DRIFT)
        reach = BEYOND * max(abs(drift - mean), error)
    outside: dict[int, list[str]] = {}
    for i, (sampling, caption) in enumerate(NAMES.items()):
        ends = np.array([study.end(study.found[factor, sampling], name) for factor in study.factors])
        seen = np.abs(ends[:, 0] - mean) <= reach
        places = np.array(study.factors) * (0.97, 1.03)[i]
        axes.errorbar(places[seen], ends[seen, 0], yerr=ends[seen, 1], linestyle="", label=caption, **point_style(i))
        for j in np.flatnonzero(~seen):
            outside.setdefault(study.factors[j], []).append(f"{ends[j, 0]:.2f}")
    edge = 2 / (study.setting.h * study.setting.sharpness)
    if study.factors[0] < edge < study.factors[-1]:
        axes.axvline(edge, color="0.6", linewidth=0.8)
        how: dict[str, Any] = {"xytext": (-11, 0), "textcoords": "offset points", "rotation": 90}
        axes.annotate("hλ = 2", (edge, 0.6), xycoords=("data", "axes fraction"), fontsize="small", color="0.35", **how)
    caption = "\n".join(f"s = {factor}: {' and '.join(values)}" for factor, values in outside.items())
    bottom = name == ACCURACY
    axes.annotate(
        caption,
        (0.03, 0.03 if bottom else 0.97),
        xycoords="axes fraction",
        va="bottom" if bottom else "top",
        color="0.35",
    )
    axes.set_xlim(study.factors[0] / 1.3, study.factors[-1] * 1.3)
