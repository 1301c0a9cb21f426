"""Heat maps over learning rate and batch size."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch, Rectangle
from torch import Tensor

LOWEST, HIGHEST = 3e-3, 3.0  # range of the colours; values beyond it have the colour of its end
SHARE = 0.25  # fraction of a value above which its integration error is marked
DARK = 0.06  # below, the colours are dark and the text is white
MAP = "cividis"


def validity_figure(
    panels: Sequence[Mapping[str, Any]], batches: Sequence[int], rates: Sequence[float], rising: Tensor
) -> Figure:
    """Four maps with one scale of colours; a cell shows its value and standard error in per cent."""
    drawn = Figure(figsize=(7.6, 6.4), layout="constrained")
    axes = drawn.subplots(2, 2).flat
    norm = LogNorm(LOWEST, HIGHEST)
    for place, panel in zip(axes, panels, strict=True):
        heat(place, panel, norm, rising)
        place.set_title(panel["title"], fontsize="x-small")
        place.set_xticks(range(len(batches)), [str(b) for b in batches])
        place.set_yticks(range(len(rates)), [f"{x:.2g}" for x in rates])
        place.set(xlabel="batch size b", ylabel="hλ, λ at the start")
    image = place.images[0]
    bar = drawn.colorbar(image, ax=list(drawn.axes), shrink=0.7, extend="both")
    bar.set_label("relative difference at T")
    marks = [
        Patch(facecolor="white", edgecolor="0.3", hatch="//", label=f"integration error above {SHARE:.0%} of it"),
        Patch(facecolor="white", edgecolor="#D55E00", linewidth=2, label="SGD's mean loss at T above its start"),
        Patch(facecolor="0.9", edgecolor="0.7", label="not run"),
    ]
    drawn.legend(handles=marks, loc="outside lower center", ncols=3, fontsize="small", frameon=False)
    return drawn


def heat(axes: Axes, panel: Mapping[str, Any], norm: LogNorm, rising: Tensor) -> None:
    """One map with its numbers and marks."""
    values, errors, left = (panel[name].numpy() for name in ("values", "errors", "integration"))
    axes.set_facecolor("0.9")
    axes.imshow(np.ma.masked_invalid(values), cmap=MAP, norm=norm, aspect="auto")
    for i, j in np.ndindex(values.shape):
        value = values[i, j]
        if not math.isfinite(value):
            continue
        colour = "white" if value < DARK else "black"
        error = f"\n± {percent(errors[i, j])}" if math.isfinite(errors[i, j]) else ""
        axes.text(j, i, f"{percent(value)} %{error}", ha="center", va="center", fontsize="x-small", color=colour)
        noise = errors[i, j] if math.isfinite(errors[i, j]) else 0.0
        if left[i, j] > SHARE * max(value, noise):
            corner = (j - 0.5, i - 0.5)
            axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="//", edgecolor=colour, linewidth=0, alpha=0.25))
        if bool(rising[i, j]):
            frame = Rectangle((j - 0.46, i - 0.46), 0.92, 0.92, fill=False, edgecolor="#D55E00", linewidth=2)
            axes.add_patch(frame)


def percent(value: float) -> str:
    """A fraction in per cent, to at least two digits and all those before the decimal point."""
    return f"{100 * value:.0f}" if abs(value) >= 0.0995 else f"{100 * value:.2g}"
