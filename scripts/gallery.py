"""A figure of all toys: contours, critical points, gradient descent and gradient flow. python -m scripts.gallery"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from torch import Tensor

from flows import GradientDescent, GradientFlow, descend, integrate
from flows.engines.storage import FolderError, writable_folder
from landscapes import LANDSCAPES, Toy

from .lab.command_line import exit_status_of, parse
from .lab.starts import gentle_rate

# Step size and number of steps that show the purpose of each toy; the others use STEPS and a step size with hλ ≤ ½;
# gradient flow runs to the same time.
STEPS = 40
RUNS: dict[str, tuple[float, int]] = {
    "quadratic": (0.95, 60),
    "saddle": (0.2, 30),
    "monkey-saddle": (0.05, 44),
    "double-well": (0.3, 30),
    "tilted-double-well": (0.3, 30),
    "quartic-well": (1.35, 40),
    "cosine": (0.5, 20),
    "styblinski-tang": (0.02, 40),
    "rosenbrock": (0.002, 200),
    "himmelblau": (0.014, 40),
    "beale": (0.01, 150),
    "mueller-brown": (4e-4, 40),
    "barrier-valley": (0.098, 100),
    "bumpy-basin": (1.2, 40),
    "sharp-flat-wells": (0.3, 60),
    "spherical-quotient": (1.5, 30),
    "product": (0.6, 60),
    "deep-linear-chain": (0.3, 60),
    "matrix-factorisation": (0.2, 150),
    "catapult": (1.5, 60),
}
# Okabe and Ito's colours; the marker shapes differ too, for readers who cannot see the colours.
KINDS: dict[str, dict[str, Any]] = {
    "minimum": {"marker": "o", "color": "#009E73"},
    "saddle": {"marker": "X", "color": "#E69F00"},
    "maximum": {"marker": "^", "color": "#D55E00"},
    "degenerate": {"marker": "D", "color": "#CC79A7"},
}
MARK: dict[str, Any] = {"markersize": 4.5, "markeredgecolor": "black", "markeredgewidth": 0.5, "linestyle": "none"}
START: dict[str, Any] = {"marker": "s", "color": "white", **MARK}
DESCENT: dict[str, Any] = {"color": "black", "marker": ".", "markersize": 1.8, "linewidth": 0.35}
FLOW: dict[str, Any] = {"color": "#56B4E9", "linewidth": 2.4}
COLUMNS, MESH, LEVELS = 4, 181, 18


@dataclass(frozen=True)
class GallerySettings:
    """Options of the figure."""

    out: Path = Path("docs/gallery.png")
    """File of the figure; its suffix sets the format."""


@dataclass(frozen=True)
class Slice:
    """The plane origin + a·axes[0] + b·axes[1] with orthonormal axes, and the plotted rectangle of (a, b)."""

    origin: Tensor
    axes: Tensor
    window: tuple[tuple[float, float], ...]

    def lift(self, points: Tensor) -> Tensor:
        """θ (..., d) of coordinates (..., 2)."""
        return self.origin + points @ self.axes

    def project(self, theta: Tensor) -> Tensor:
        """Coordinates (..., 2) of the nearest point in the plane."""
        return (theta - self.origin) @ self.axes.T

    def contains(self, theta: Tensor) -> bool:
        """Whether θ (d,) lies in the plane."""
        return bool((self.lift(self.project(theta)) - theta).abs().max() < 1e-9)


def run_paths(toy: Toy, h: float, steps: int) -> tuple[Tensor, Tensor]:
    """Gradient descent (T, d) and gradient flow (T', d) from the toy's start; a flow that blows up is drawn so far."""
    theta0 = torch.tensor(toy.start, dtype=torch.float64)
    path = descend(GradientDescent(toy, h), theta0, steps).check_finished("gradient descent").theta
    times = torch.linspace(0, h * steps, 400, dtype=torch.float64)
    return path, integrate(GradientFlow(toy), theta0, times).check_uninterrupted().theta


def run_of(name: str, toy: Toy) -> tuple[float, int]:
    """Step size and number of steps of the toy of that name."""
    if name in RUNS:
        return RUNS[name]
    return gentle_rate(toy, torch.tensor(toy.start, dtype=torch.float64)), STEPS


def choose_slice(toy: Toy, end: Tensor) -> Slice:
    """The coordinate plane in two dimensions; above, the plane through start, end and the first critical point.

    If the three points are collinear, the direction of largest curvature at the end replaces the third.
    """
    start = torch.tensor(toy.start, dtype=torch.float64)
    if toy.dimension == 2:
        return Slice(torch.zeros_like(start), torch.eye(2, dtype=torch.float64), toy.window)
    positions = [point.position for point in toy.critical_points()]
    origin = positions[0]
    sharpest = torch.linalg.eigh(toy.hessian(end)).eigenvectors[:, -1]
    first, *others = end - origin, start - origin, sharpest
    axes = [first / first.norm()]
    across = [v - (v @ axes[0]) * axes[0] for v in others]
    second = next(v for v in across if float(v.norm()) > 1e-6)
    axes.append(second / second.norm())
    plane = Slice(origin, torch.stack(axes), ())
    shown = plane.project(torch.stack([start, end, *(p for p in positions if plane.contains(p))]))
    middle = (shown.amax(dim=0) + shown.amin(dim=0)) / 2
    half = 0.75 * float((shown.amax(dim=0) - shown.amin(dim=0)).max())
    return Slice(origin, plane.axes, tuple((float(m) - half, float(m) + half) for m in middle))


def draw_plane(axes: Axes, toy: Toy, h: float, steps: int) -> None:
    """Contours whose levels divide the area evenly, with paths and critical points on top."""
    descent, flow = run_paths(toy, h, steps)
    plane = choose_slice(toy, descent[-1])
    x, y = (torch.linspace(low, high, MESH, dtype=torch.float64) for low, high in plane.window)
    mesh = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    heights = toy.loss(plane.lift(mesh)).numpy()
    # quantiles, as equal steps of the loss leave the floors of steep toys without a contour
    levels = np.unique(np.nanquantile(heights, np.linspace(0, 1, LEVELS)))
    norm = BoundaryNorm(levels, ncolors=256)
    axes.contourf(x, y, heights, levels=levels, cmap="Greys", norm=norm, alpha=0.45)
    axes.contour(x, y, heights, levels=levels, colors="0.45", linewidths=0.25, linestyles="solid")
    for path, look in ((flow, FLOW), (descent, DESCENT)):
        axes.plot(*plane.project(path).numpy().T, **look)
    axes.plot(*plane.project(descent[:1]).numpy().T, **START)
    for point in toy.critical_points():
        if plane.contains(point.position):
            axes.plot(*plane.project(point.position).numpy(), **KINDS[point.kind], **MARK)
    names = ("x", "y") if toy.dimension == 2 else ("a, first axis of a slice", "b, second axis")
    axes.set(xlim=plane.window[0], ylim=plane.window[1], xlabel=names[0], ylabel=names[1])


def draw_line(axes: Axes, toy: Toy, h: float, steps: int) -> None:
    """The curve of a toy with one coordinate, with paths and critical points on it."""
    descent, flow = run_paths(toy, h, steps)
    x = torch.linspace(*toy.window[0], MESH, dtype=torch.float64)[:, None]
    axes.plot(x[:, 0], toy.loss(x), color="0.45", linewidth=0.8)
    for path, look in ((flow, FLOW), (descent, DESCENT), (descent[:1], START)):
        axes.plot(path[:, 0], toy.loss(path), **look)
    for point in toy.critical_points():
        axes.plot(point.position, toy.loss(point.position), **KINDS[point.kind], **MARK)
    axes.set(xlim=toy.window[0], xlabel="x", ylabel="loss f")


def draw(path: Path) -> Path:
    """Write the figure and return its path; raises FolderError where it cannot be written."""
    writable_folder(path.parent)
    rows = -(-len(LANDSCAPES) // COLUMNS)
    figure = Figure(figsize=(7.2, 1.85 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, squeeze=False).flat
    for name, panel in zip(LANDSCAPES, panels, strict=False):
        toy = LANDSCAPES[name]()
        (draw_line if toy.dimension == 1 else draw_plane)(panel, toy, *run_of(name, toy))
        panel.set_title(name if toy.dimension <= 2 else f"{name}, d = {toy.dimension}", fontsize=7, pad=3)
        panel.xaxis.label.set_size(6)
        panel.yaxis.label.set_size(6)
        panel.locator_params(nbins=5)
        panel.tick_params(labelsize=5.5, length=2, pad=1.5)
    for panel in panels:
        panel.set_axis_off()
    figure.legend(
        handles=legend(),
        loc="outside upper center",
        ncols=8,
        fontsize=6.5,
        frameon=False,
        columnspacing=1.0,
        handletextpad=0.4,
    )
    if not path.suffix or path.is_dir():
        raise FolderError(f"--out {str(path)!r} must be a file with a suffix such as .png or .pdf; name another one")
    try:
        figure.savefig(path, dpi=160)
    except (OSError, ValueError) as error:
        raise FolderError(f"--out {str(path)!r} cannot be written ({error}); name another one") from error
    return path


def legend() -> list[Artist]:
    """One entry for each marker, line and shade."""
    marks = [Line2D([], [], label=kind, **look, **MARK) for kind, look in KINDS.items()]
    lines = {"gradient descent": DESCENT, "gradient flow": FLOW}
    paths = [Line2D([], [], label=name, **look) for name, look in lines.items()]
    return [*marks, Line2D([], [], label="start", **START), *paths, Patch(color="0.7", label="higher loss")]


def main(arguments: Sequence[str]) -> int:
    """Exit status: 0, or 2 after one line about invalid input."""

    def run() -> None:
        settings = parse(GallerySettings, arguments, f"python -m {__package__}.gallery", __doc__ or "")
        print(f"figure: {draw(settings.out)}")

    return exit_status_of(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
