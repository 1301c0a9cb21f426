"""The figure of the three samplings: a toy's mean loss against b and within an epoch; a network's scatter and loss."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flows.comparison.laws import LOSS
from flows.figures import COLOURS, DASHES
from flows.steady.additive_laws import AdditiveLaw
from landscapes.sampling import SAMPLINGS

from ..lab.experiment import label
from ..lab.figures import point_style, powers_of_two
from .sampling_results import SamplingStudy, SamplingToy

NAMES = {"replacement": "with replacement", "subset": "subsets", "epoch": "reshuffled epochs"}
LOWEST = 1e-12  # smaller values are rounding errors of zero
ALONG = 100  # points of an equation's line in an epoch


def sampling_figure(toy: SamplingToy, study: SamplingStudy) -> Figure:
    """Toy above, network below; bars are one standard error."""
    drawn = Figure(figsize=(10.5, 6.8), layout="constrained")
    panels = drawn.subplots(2, 3)
    for j, place in enumerate(("middle", "end")):
        draw_toy(panels[0, j], toy, j)
        label(panels[0, j], "mini-batch b", "mean loss", f"toy: {place} of a late epoch", log="xy")
        powers_of_two(panels[0, j], sorted({row.law.batch_size for row in toy.rows}))
    draw_epoch(panels[0, 2], toy)
    for j, place in enumerate(("middle", "end")):
        draw_scatter(panels[1, j], study, j)
        label(panels[1, j], "mini-batch b", "Σ Var θ over runs", f"network: {place} of the last epoch", log="xy")
        powers_of_two(panels[1, j], study.sizes)
    draw_loss(panels[1, 2], study)
    label(panels[1, 2], "mini-batch b", "mean loss", "network: end of the last epoch", log="x")
    powers_of_two(panels[1, 2], study.sizes)
    handles = []
    for i, name in enumerate(NAMES.values()):
        look = {key: point_style(i)[key] for key in ("color", "marker")}
        handles.append(Line2D([], [], linestyle="", label=f"SGD, {name}", **look))
        handles.append(Line2D([], [], label="toy: exact; network: for the eye", **line(i)))
    handles.append(
        Line2D([], [], linestyle="", label="SDE by Euler", color="black", marker="o", markerfacecolor="none")
    )
    drawn.legend(handles=handles, loc="outside upper center", ncols=4, fontsize="small", frameon=False)
    return drawn


def draw_toy(axes: Axes, toy: SamplingToy, j: int) -> None:
    """E f of SGD: exact lines, paths with bars; the equation's paths as circles."""
    for i, sampling in enumerate(SAMPLINGS):
        rows = [row for row in toy.rows if row.law.sampling == sampling]
        sizes = np.array([row.law.batch_size for row in rows])
        exact = np.array([row.law.descent((row.k - row.law.epoch // 2, row.k)[j]) for row in rows])
        axes.plot(sizes, np.where(exact > LOWEST, exact, np.nan), color=COLOURS[i], linestyle=DASHES[i], linewidth=1.1)
        for part, look in (("descent", point_style(i)), ("equation", circles(i))):
            found = np.array([[float(getattr(row, part)[key][j]) for key in ("mean", "error")] for row in rows])
            seen = found[:, 0] > LOWEST
            axes.errorbar(sizes[seen], found[seen, 0], yerr=found[seen, 1], linestyle="", **look)


def line(i: int) -> dict[str, Any]:
    """Colour and dashes of the i-th line."""
    return {"color": COLOURS[i], "linestyle": DASHES[i]}


def circles(i: int) -> dict[str, Any]:
    """Open circles around the points of the i-th set."""
    return {"color": COLOURS[i], "marker": "o", "markersize": 8, "markerfacecolor": "none", "elinewidth": 0.9}


def draw_epoch(axes: Axes, toy: SamplingToy) -> None:
    """E f within a late epoch at a middle b: SGD's steps as points, the equations as lines."""
    sizes = sorted({row.law.batch_size for row in toy.rows})
    b = sizes[len(sizes) // 2]
    for i, row in enumerate(row for row in toy.rows if row.law.batch_size == b):
        law: AdditiveLaw = row.law
        steps = np.arange(law.epoch + 1)
        first = row.k - law.epoch
        axes.plot(
            steps,
            [law.descent(first + s) for s in steps],
            color=COLOURS[i],
            marker=point_style(i)["marker"],
            markersize=4,
            linestyle="",
        )
        fine = np.linspace(0, law.epoch, ALONG)
        along = [law.equation((first + s) * law.h) for s in fine]
        axes.plot(fine, along, color=COLOURS[i], linestyle=DASHES[i], linewidth=1)
    label(axes, "step of the epoch", "mean loss, exact", f"toy, b = {b}: points SGD, lines SDE")
    axes.set_ylim(bottom=0)


def draw_scatter(axes: Axes, study: SamplingStudy, j: int) -> None:
    """Σ Var θ of SGD against b, the equations as circles; j = 0 is the middle, 1 the end of the last epoch."""
    for i, sampling in enumerate(SAMPLINGS):
        found = np.array([[float(x[-j]) for x in study.found[b, sampling].scatter()] for b in study.sizes])
        seen = found[:, 0] > LOWEST
        axes.errorbar(
            np.array(study.sizes)[seen],
            found[seen, 0],
            yerr=found[seen, 1],
            linestyle=DASHES[i],
            linewidth=0.9,
            **point_style(i),
        )
        mean, error = (float(x[-j]) for x in study.equations[sampling].scatter())
        if mean > LOWEST:
            axes.errorbar([study.equation_batch_size], [mean], yerr=[error], linestyle="", **circles(i))


def draw_loss(axes: Axes, study: SamplingStudy) -> None:
    """Mean loss of SGD against b, the equations as circles."""
    for i, sampling in enumerate(SAMPLINGS):
        found = np.array([[float(x[-1]) for x in study.found[b, sampling].mean(LOSS)] for b in study.sizes])
        axes.errorbar(study.sizes, found[:, 0], yerr=found[:, 1], linestyle=DASHES[i], linewidth=0.9, **point_style(i))
        mean, error = (float(x[-1]) for x in study.equations[sampling].mean(LOSS))
        axes.errorbar([study.equation_batch_size], [mean], yerr=[error], linestyle="", **circles(i))
