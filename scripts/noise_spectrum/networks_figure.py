"""The figure of spectra along training: a histogram for each network with a line for each fraction of training."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flows.figures import COLOURS, DASHES, MARKERS
from landscapes.noise import NoiseSpectrum

from ..lab.experiment import label
from .measurements import NoiseMeasurement

PER_DECADE = 4  # bins of a histogram
DECADES = 9  # plotted below the largest eigenvalue; smaller ones are rounding of float32 gradients


def networks_figure(found: Mapping[str, Sequence[Sequence[NoiseMeasurement]]], at: Sequence[float]) -> Figure:
    """Counts of eigenvalues of D by size, means over seeds with standard errors; thresholds as vertical lines."""
    across = min(2, len(found))
    down = math.ceil(len(found) / across)
    drawn = Figure(figsize=(3.9 * across + 0.4, 2.9 * down + 0.6), layout="constrained")
    panels = drawn.subplots(down, across, squeeze=False)
    for axes, (name, runs) in zip(panels.flat, found.items(), strict=False):
        draw_spectra(axes, runs)
        label(
            axes,
            "eigenvalue λ of D",
            "eigenvalues in a bin",
            f"{name}, d = {runs[0][0].spectrum.dimension:,}",
            log="xy",
        )
        axes.set_ylim(bottom=0.25)
    for axes in list(panels.flat)[len(found) :]:
        axes.set_axis_off()
    handles = [
        Line2D([], [], label=f"{100 * fraction:g} % of training", **fraction_style(i)) for i, fraction in enumerate(at)
    ]
    handles.append(Line2D([], [], label="threshold of rank", color="0.35", linestyle=":", linewidth=1.2))
    drawn.legend(
        handles=handles, loc="outside upper center", ncols=min(4, len(handles)), fontsize="small", frameon=False
    )
    return drawn


def fraction_style(i: int) -> dict[str, Any]:
    """Colour, dashes and marker of a fraction of training."""
    n = len(COLOURS)
    return {
        "color": COLOURS[i % n],
        "linestyle": DASHES[i % n],
        "marker": MARKERS[i % n],
        "markersize": 3,
        "linewidth": 1.1,
    }


def draw_spectra(axes: Axes, runs: Sequence[Sequence[NoiseMeasurement]]) -> None:
    """Plot a network's histograms over common bins."""
    stages = [[each.spectrum for each in measurements] for measurements in zip(*runs, strict=True)]
    edges = bins([spectrum for stage in stages for spectrum in stage])
    middles = np.sqrt(edges[1:] * edges[:-1])
    for i, stage in enumerate(stages):
        counts = np.stack([count_eigenvalues(spectrum, edges) for spectrum in stage])  # (seeds, bins)
        mean = counts.mean(axis=0)
        error = counts.std(axis=0, ddof=1) / math.sqrt(len(counts)) if len(counts) > 1 else np.zeros_like(mean)
        seen = mean > 0
        axes.errorbar(middles[seen], mean[seen], yerr=error[seen], elinewidth=0.7, **fraction_style(i))
        threshold = float(np.exp(np.mean(np.log([spectrum.threshold for spectrum in stage]))))
        axes.axvline(threshold, color=COLOURS[i % len(COLOURS)], linestyle=":", linewidth=1.2)


def bins(spectra: Sequence[NoiseSpectrum]) -> np.ndarray:
    """Edges of bins of equal width in log λ, up to the largest of all eigenvalues."""
    largest = max(float(spectrum.eigenvalues[0]) for spectrum in spectra)
    top = math.ceil(PER_DECADE * math.log10(largest)) / PER_DECADE
    return 10 ** np.linspace(top - DECADES, top, PER_DECADE * DECADES + 1)


def count_eigenvalues(spectrum: NoiseSpectrum, edges: np.ndarray) -> np.ndarray:
    """The number of eigenvalues in each bin."""
    values = spectrum.eigenvalues[spectrum.eigenvalues > 0]
    return torch.histogram(values, torch.from_numpy(edges)).hist.numpy()
