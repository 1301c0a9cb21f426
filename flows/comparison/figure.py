r"""Figures of a comparison: paths over contours in two dimensions; errors and losses against t = k·h in any."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from flows.comparison.data import ComparisonData
from flows.figures import Style, save_figure, style, with_markers
from landscapes import Landscape

LARGEST = 1e100  # larger values are not drawn: axes overflow
# Open circles: a flow that lies on the descent stays visible inside them.
DESCENT: Style = {"color": "black", "marker": "o", "markersize": 6, "markerfacecolor": "none", "linewidth": 0.6}
STATISTICAL: Style = {"color": "0.5", "linestyle": (0, (8, 3)), "linewidth": 1}


def plot_comparison(comparison: ComparisonData, path: str | os.PathLike[str]) -> Path:
    """Write the figure of a comparison (format by the ending of ``path``) and return the path. Raises FolderError."""
    laws = list(comparison.observed)
    rows = 2 + (len(laws) + 1) // 2
    figure = Figure(figsize=(7.2, 3.0 * rows), layout="constrained")
    grid = figure.subplots(rows, 2)
    styles = {name: style(i) for i, name in enumerate(comparison.rows)}
    draw_errors(grid[0, 1], comparison, styles)
    draw_one_step(grid[1, 0], comparison, styles)
    draw_losses(grid[1, 1], comparison, styles)
    if comparison.mean.shape[-1] == 2:
        draw_paths(grid[0, 0], comparison, styles)
    else:
        draw_distances(grid[0, 0], comparison, styles)
    for phi, axes in zip(laws, grid[2:].flat, strict=False):
        draw_law(axes, phi, comparison, styles)
    for axes in list(grid.flat)[4 + len(laws) :]:
        axes.set_axis_off()
    figure.legend(
        handles=legend(comparison, styles), loc="outside upper center", ncols=3, fontsize="small", frameon=False
    )
    return save_figure(figure, path)


def legend(comparison: ComparisonData, styles: dict[str, Style]) -> list[Line2D]:
    """One entry for each kind of line in the figure."""
    handles = [Line2D([], [], label=comparison.name, **DESCENT)]
    handles += [Line2D([], [], label=name, **styles[name]) for name in styles]
    handles.append(Line2D([], [], color="grey", linestyle=":", linewidth=1, label="integration error"))
    lines = {
        "error of the mean": comparison.standard_error is not None,
        "noise of one step": comparison.noise_floor is not None,
        "error of a law": bool(comparison.observed) and comparison.runs > 1,
    }
    present = [name for name, drawn in lines.items() if drawn]
    return handles + ([Line2D([], [], label="; ".join(present), **STATISTICAL)] if present else [])


def worst_member(values: Tensor) -> np.ndarray:
    """(T,): the largest over batch members of (T, ...), NaN where none is finite."""
    flat = values.detach().cpu().reshape(len(values), -1)
    flat = torch.where(flat.isnan() | (flat.abs() > LARGEST), -torch.inf, flat).amax(dim=1)
    return torch.where(flat == -torch.inf, torch.nan, flat).numpy()


def positive(values: Tensor) -> np.ndarray:
    """The worst member, NaN if it is not positive, for a logarithmic axis."""
    numbers = worst_member(values)
    return np.where(numbers > 0, numbers, np.nan)


def draw_errors(axes: Axes, comparison: ComparisonData, styles: dict[str, Style]) -> None:
    """Distance to the descent on its clock, the integration error dotted."""
    t = comparison.times.cpu().numpy()
    for name, row in comparison.rows.items():
        axes.plot(t, positive(row.errors), **with_markers(styles[name], len(t)))
        axes.plot(t, positive(row.integration), color=styles[name]["color"], linestyle=":", linewidth=1)
    if comparison.standard_error is not None:
        axes.plot(t, positive(comparison.standard_error), **STATISTICAL)
    label(axes, "‖X(t) − θ‖", "distance to the descent")


def draw_one_step(axes: Axes, comparison: ComparisonData, styles: dict[str, Style]) -> None:
    """Error of one step from each iterate: the model's own."""
    t = comparison.times[1:].cpu().numpy()
    for name, row in comparison.rows.items():
        axes.plot(t, positive(row.one_step), **with_markers(styles[name], len(t)))
    if comparison.noise_floor is not None:
        axes.plot(t, positive(comparison.noise_floor), **STATISTICAL)
    label(axes, "‖X(t + h; θ) − θ′‖", "model error of each step")


def draw_law(axes: Axes, phi: str, comparison: ComparisonData, styles: dict[str, Style]) -> None:
    """Distance of the mean of φ from the descent's; its standard error long dashes, the integration error dotted."""
    t = comparison.times[1:].cpu().numpy()  # all start at θ₀, where means over runs differ by rounding only
    for name, row in comparison.rows.items():
        if phi in row.weak:
            error, colour = row.weak[phi], styles[name]["color"]
            axes.plot(t, positive(error.difference[1:].abs()), **with_markers(styles[name], len(t)))
            axes.plot(t, positive(error.standard_error[1:]), **{**STATISTICAL, "color": colour})
            axes.plot(t, positive(error.integration[1:].abs()), color=colour, linestyle=":", linewidth=1)
    label(axes, f"|E φ(X) − E φ(θ)|, φ = {phi}", f"law: {phi}")


def draw_losses(axes: Axes, comparison: ComparisonData, styles: dict[str, Style]) -> None:
    """Loss along the descent and along each flow."""
    t = comparison.times.cpu().numpy()
    curves = {name: worst_member(values) for name, values in comparison.losses.items()}
    for name, curve in curves.items():
        look = styles.get(name, DESCENT)
        axes.plot(t, curve, **with_markers(look, len(t)))
    finite = np.concatenate([c[np.isfinite(c)] for c in curves.values()])
    decades = len(finite) > 0 and finite.min() > 0 and finite.max() > 10 * finite.min()
    label(axes, "loss f", "loss", "log" if decades else "linear")


def draw_distances(axes: Axes, comparison: ComparisonData, styles: dict[str, Style]) -> None:
    """Distance of descent and flows from θ0."""
    t = comparison.times.cpu().numpy()
    runs = {comparison.name: comparison.mean} | {
        name: row.mean for name, row in comparison.rows.items() if row.mean is not None
    }
    for name, theta in runs.items():
        look = styles.get(name, DESCENT)
        travelled = torch.linalg.vector_norm(theta - theta[0], dim=-1)
        axes.plot(t[: len(theta)], worst_member(travelled), **with_markers(look, len(t)))
    label(axes, "‖θ − θ₀‖", "distance from the start", "linear")


def draw_paths(axes: Axes, comparison: ComparisonData, styles: dict[str, Style]) -> None:
    """The paths, over contours if the landscape is known; the window follows the descent, not a flow that leaves it."""
    mean = comparison.mean.detach().cpu()
    mean = mean.real if mean.is_complex() else mean
    points = mean.double().reshape(-1, 2)
    low, high = points.amin(dim=0), points.amax(dim=0)
    centre, half = (low + high) / 2, 0.65 * (high - low).clamp(min=0.25 * float((high - low).max()) + 1e-6)
    x, y = (np.linspace(float(centre[i] - half[i]), float(centre[i] + half[i]), 161) for i in (0, 1))
    if comparison.landscape is not None:
        draw_contours(axes, comparison.landscape, x, y, comparison.mean)
    for name, row in comparison.rows.items():
        if row.mean is not None:
            theta = row.mean.detach().cpu()
            draw_path(axes, theta.real if theta.is_complex() else theta, {**styles[name], "linewidth": 1.2})
    draw_path(axes, mean, DESCENT)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]), xlabel="θ₁", ylabel="θ₂")
    axes.set_title("paths at t = k·h (real part)" if comparison.has_complex else "paths at t = k·h", fontsize="medium")


def draw_contours(axes: Axes, landscape: Landscape, x: np.ndarray, y: np.ndarray, like: Tensor) -> None:
    """Contours of the loss on the grid of x and y, evaluated in the dtype and on the device of ``like``."""
    mesh = torch.tensor(np.stack(np.meshgrid(x, y), axis=-1)).to(like)
    with torch.no_grad():
        loss = landscape.loss(mesh).cpu()
    heights = (loss.real if loss.is_complex() else loss).double().numpy()
    levels = contour_levels(heights)
    if len(levels):
        axes.contour(x, y, heights, levels=levels, colors="0.75", linewidths=0.6)


def draw_path(axes: Axes, theta: Tensor, look: Style) -> None:
    """The path of every batch member, (T, ..., 2)."""
    for path in theta.reshape(len(theta), -1, 2).unbind(dim=1):
        axes.plot(*path.numpy().T, **with_markers(look, len(path)))


def contour_levels(heights: np.ndarray) -> np.ndarray:
    """Levels spaced by the logarithm of the height above the window's lowest point; none if it is flat."""
    heights = heights[np.isfinite(heights)]
    if heights.size == 0 or heights.max() == heights.min():
        return np.empty(0)
    lowest = heights.min()
    levels = np.unique(lowest + (heights.max() / 2 - lowest / 2) * np.logspace(-4, 0, 17) * 2)
    return levels[np.isfinite(levels)]


def label(axes: Axes, quantity: str, title: str, scale: str = "log") -> None:
    """Axis names, title, scale and a light grid."""
    axes.set(xlabel="time t = k·h", ylabel=quantity, yscale=scale)
    axes.set_title(title, fontsize="medium")
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)
