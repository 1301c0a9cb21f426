r"""Why there is no modified loss beyond order 2: python -m scripts.curl [options].

A field is a gradient only if its curl vanishes. The curl of gradient descent's modified flow of order 2 vanishes; from
order 3 on it is h²/6 times the off-diagonal entry of the commutator of D³f[∇f] and H plus O(h³), and the work around a
closed loop is not zero. Plotted and integrated on the Rosenbrock valley.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import torch
from torch import Tensor

from flows import ModifiedFlow
from flows.invariants import asymmetry
from landscapes import Rosenbrock

from .lab.command_line import exit_status_of, parse


@dataclass(frozen=True)
class CurlSettings:
    """Options of the figure."""

    h: float = 0.02
    """Learning rate."""
    b: float = 5.0
    """Steepness of the valley (1 − x)² + b (y − x²)²."""
    centre: tuple[float, float] = (-0.4, 0.6)
    """Centre of the loop."""
    radius: float = 0.3
    """Radius of the loop."""
    orders: tuple[int, ...] = (2, 3, 4, 5)
    """Orders of the modified flow."""
    points: int = 64
    """Points on the loop, and on each ring of the disc."""
    out: Path = Path("results/curl.png")
    """File of the figure."""


def curl(flow: ModifiedFlow, theta: Tensor) -> Tensor:
    """∂_x v_y − ∂_y v_x at θ (..., 2), shape (...,)."""
    return 2 * asymmetry(flow, theta)[..., 1, 0]


def circulation(flow: ModifiedFlow, settings: CurlSettings) -> float:
    """∮ v·dθ around the loop by the trapezoidal rule, which converges exponentially on a circle."""
    angle = torch.arange(settings.points, dtype=torch.float64) * (2 * math.pi / settings.points)
    outward = torch.stack([angle.cos(), angle.sin()], dim=-1)
    tangent = torch.stack([-angle.sin(), angle.cos()], dim=-1)
    velocity = flow.velocity(0.0, torch.tensor(settings.centre).double() + settings.radius * outward)
    return float((velocity * tangent).sum() * settings.radius * 2 * math.pi / settings.points)


def flux(flow: ModifiedFlow, settings: CurlSettings) -> float:
    """∬ curl over the disc, by Stokes the circulation; Gauss–Legendre in the radius, trapezoidal in the angle."""
    nodes, weights = map(torch.from_numpy, np.polynomial.legendre.leggauss(16))
    radii = settings.radius * (nodes + 1) / 2
    angle = torch.arange(settings.points, dtype=torch.float64) * (2 * math.pi / settings.points)
    outward = torch.stack([angle.cos(), angle.sin()], dim=-1)
    places = torch.tensor(settings.centre).double() + radii[:, None, None] * outward
    return float((curl(flow, places).sum(dim=-1) * radii * weights).sum() * settings.radius * math.pi / settings.points)


def draw_curl(settings: CurlSettings) -> None:
    """Plot the curl of order 3 over the plane, and the loop."""
    landscape = Rosenbrock(b=settings.b)
    x, y = (torch.linspace(c - 0.8, c + 0.8, 161, dtype=torch.float64) for c in settings.centre)
    grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)
    values = curl(ModifiedFlow(landscape, settings.h, 3), grid)
    figure, axes = plt.subplots(figsize=(4.6, 3.6), layout="constrained")
    bound = float(values.abs().quantile(0.7))
    image = axes.pcolormesh(x, y, values, cmap="RdBu_r", vmin=-bound, vmax=bound, rasterized=True)
    axes.contour(x, y, landscape.loss(grid), levels=torch.logspace(-1, 2, 9).tolist(), colors="0.4", linewidths=0.5)
    angle = torch.linspace(0, 2 * math.pi, 200)
    axes.plot(
        settings.centre[0] + settings.radius * angle.cos(), settings.centre[1] + settings.radius * angle.sin(), "k-"
    )
    axes.set(xlabel="x", ylabel="y", title=f"modified flow of order 3, h = {settings.h:g}", aspect="equal")
    figure.colorbar(image, label="curl ∂v_y/∂x − ∂v_x/∂y  (1/time)", extend="both")
    settings.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(settings.out, dpi=150)
    plt.close(figure)


def run(settings: CurlSettings) -> None:
    """Print both sides of Stokes' theorem for each order, and write the figure."""
    landscape = Rosenbrock(b=settings.b)
    print(f"Rosenbrock b = {settings.b:g}, h = {settings.h:g}, loop of radius {settings.radius:g} at {settings.centre}")
    print(f"{'order':>5}  {'work around the loop':>20}  {'curl over the disc':>20}")
    for order in settings.orders:
        flow = ModifiedFlow(landscape, settings.h, order)
        print(f"{order:>5}  {circulation(flow, settings):>20.10e}  {flux(flow, settings):>20.10e}")
    draw_curl(settings)
    print(f"figure: {settings.out}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run from the command line; returns the exit status."""
    given = sys.argv[1:] if arguments is None else arguments
    return exit_status_of(lambda: run(parse(CurlSettings, given, f"python -m {__package__}.curl", __doc__ or "")))


if __name__ == "__main__":
    sys.exit(main())
