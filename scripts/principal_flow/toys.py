"""Two-parameter experiments of the paper: paths of the flows and their distances to gradient descent."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from flows import Comparison, Flow, GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, compare
from flows.comparison.figure import DESCENT, contour_levels, positive, worst_member
from landscapes import Cosine, DoubleWell, Landscape, Quadratic, Rosenbrock, Saddle, SharpFlatWells

from ..lab.experiment import Common, align_rows, label, legend, model_style

PAPER_START = (-0.35, -0.2)


@dataclass(frozen=True)
class Case:
    """One panel: a landscape, a start, a learning rate, a number of steps."""

    title: str
    landscape: Landscape
    start: tuple[float, ...]
    h: float
    steps: int


def quadratic(h: float, steps: int) -> Case:
    """E = θᵀ diag(1, 0.01) θ, whose Hessian is diag(2, 0.02), from the paper's start."""
    hessian = torch.diag(torch.tensor([2.0, 0.02], dtype=torch.float64))
    return Case(f"h = {h:g}: hλ₀ = {2 * h:g}", Quadratic(hessian), PAPER_START, h, steps)


CASES: dict[str, tuple[Case, ...]] = {
    "quadratics": tuple(quadratic(h, steps) for h, steps in ((0.5, 8), (0.9, 8), (1.0, 8), (1.05, 8))),
    "valleys": (
        Case("banana, h = 0.002", Rosenbrock(), (0.0, 0.5), 0.002, 40),
        Case("banana, h = 0.0075", Rosenbrock(), (-0.1, 0.2), 0.0075, 12),
        Case("cosine, h = 0.9", Cosine(), (1.0, 0.6), 0.9, 8),
        Case("cosine, h = 1.9", Cosine(), (0.5, 0.3), 1.9, 8),
    ),
    "saddles": (
        Case("saddle, hλ = (0.4, −0.4)", Saddle(1.0, 1.0), (1.0, 0.01), 0.4, 14),
        Case("saddle, hλ = (0.8, −2.4)", Saddle(1.0, 3.0), (1.0, 0.2), 0.8, 4),
        Case("double well, h = 0.3", DoubleWell(dimension=2), (0.1, 1.0), 0.3, 16),
        Case("double well, h = 2.2", DoubleWell(dimension=2), (0.1, 1.0), 2.2, 4),
    ),
    "escape": (
        Case("sharp bottom, hλ₀ = 1.8", SharpFlatWells(), (-2.2, 0.2), 0.09, 12),
        Case("sharp bottom, hλ₀ = 2.2", SharpFlatWells(), (-2.02, 0.01), 0.11, 12),
        Case("sharp bottom, hλ₀ = 5.6", SharpFlatWells(), (-2.2, 0.2), 0.28, 12),
        Case("flat bottom, hλ₀ = 0.28", SharpFlatWells(), (1.0, 0.5), 0.28, 12),
    ),
}
TITLES = {
    "quadratics": "½θᵀHθ, H = diag(2, 0.02): from the singular mode to instability",
    "valleys": "a curved valley and an egg box",
    "saddles": "escape from saddles: below hλ = −2 the IGR flow is attracted where descent escapes",
    "escape": "a sharp minimum beside a flat one: only large steps leave the sharp one",
}


@dataclass(frozen=True)
class Toys(Common):
    """Common base of the two-parameter experiments."""

    def run(self) -> None:
        """Compare, print, plot."""
        store = self.store()
        results = []
        for i, case in enumerate(CASES[self.name]):
            results.append((case, compare_case(case, self)))
            results[-1][1].save(store.folder / f"case-{i}")
        store.table("\n\n".join([TITLES[self.name], *(summary(case, result) for case, result in results)]))
        self.draw(store, figure(results))


@dataclass(frozen=True)
class Quadratics(Toys):
    """Quadratics at h = 0.5 (the singular mode), 0.9, 1.0 and 1.05, with the paper's matrix and start."""


@dataclass(frozen=True)
class Valleys(Toys):
    """Banana and cosine."""


@dataclass(frozen=True)
class Saddles(Toys):
    """Escape from saddles, and the spurious attraction of the IGR flow."""


@dataclass(frozen=True)
class EscapeExperiment(Toys):
    """Escape from a sharp minimum next to a flat one."""


def flows_of(landscape: Landscape, h: float) -> dict[str, Flow]:
    """The paper's three flows."""
    return {
        "gradient flow": GradientFlow(landscape),
        "IGR flow": ModifiedFlow(landscape, h, 2),
        "principal flow": PrincipalFlow(landscape, h),
    }


def compare_case(case: Case, options: Common) -> Comparison:
    """The flows compared with gradient descent; those that end early have their status in the table."""
    theta0 = torch.tensor(case.start, dtype=options.real, device=options.device)
    descent = GradientDescent(case.landscape, case.h)
    flows = flows_of(case.landscape, case.h)
    return compare(descent, flows, theta0, case.steps, rtol=1e-6, atol=1e-8).check_uninterrupted()


def summary(case: Case, result: Comparison) -> str:
    """Ends of descent and flows, their distances, and the status of each run."""
    rows = [["", "θ at the end", "error at end", "one-step error", "integration", "status"]]
    rows.append(["gradient descent", place(result.mean[-1]), "", "", "", str(result.descent.status)])
    for name, row in result.rows.items():
        run = row.trajectory
        assert run is not None
        steps = row.one_step[~row.one_step.isnan()]
        numbers = [
            row.errors[-1],
            steps.median() if len(steps) else torch.nan,
            row.integration[~row.integration.isnan()].max(),
        ]
        ended = str(run.status) if run.status == "finished" else f"{run.status} at t = {float(run.times[-1]):.3g}"
        rows.append([name, place(run.theta[-1]), *(f"{float(x):.2e}" for x in numbers), ended])
    said = [
        f"{name}: {row.trajectory.status.sentence}"
        for name, row in result.rows.items()
        if row.trajectory is not None and row.trajectory.status != "finished"
    ]
    early = [f"gradient descent after 5 steps: {place(result.mean[5])}"] if len(result.mean) > 5 else []
    return "\n".join([f"{case.title}, {case.steps} steps from {case.start}", align_rows(rows), *early, *said])


def place(theta: Tensor) -> str:
    """A point (2,) as text, with its largest imaginary part."""
    real = theta.real if theta.is_complex() else theta
    text = f"({', '.join(f'{float(x):.7g}' for x in real)})"
    return f"{text} ± {float(theta.imag.abs().max()):.0e}i" if theta.is_complex() else text


def figure(results: list[tuple[Case, Comparison]]) -> Figure:
    """Paths above, distances to descent below."""
    drawn = Figure(figsize=(10.5, 5.4), layout="constrained")
    panels = drawn.subplots(2, len(results), squeeze=False)
    for (above, below), (case, result) in zip(panels.T, results, strict=True):
        draw_paths(above, case, result)
        draw_distances(below, case, result)
    for axes in panels[:, 1:].flat:
        axes.set_ylabel("")
    dotted = {"integration error": {"color": "grey", "linestyle": ":"}}
    legend(drawn, list(results[0][1].rows), {"gradient descent": DESCENT} | dotted)
    return drawn


def draw_paths(axes: Axes, case: Case, result: Comparison) -> None:
    """Contours with the paths (their real parts), in a window around descent's iterates."""
    points = result.mean.cpu().double()
    low, high = points.amin(0), points.amax(0)
    half = 0.75 * (high - low).clamp(min=0.35 * float((high - low).max()))
    x, y = (
        np.linspace(float((low + high)[i] / 2 - half[i]), float((low + high)[i] / 2 + half[i]), 161) for i in (0, 1)
    )
    heights = case.landscape.loss(torch.tensor(np.stack(np.meshgrid(x, y), axis=-1))).numpy()
    axes.contour(x, y, heights, levels=contour_levels(heights), colors="0.8", linewidths=0.5, linestyles="solid")
    for name, row in result.rows.items():
        assert row.trajectory is not None
        theta = row.trajectory.theta.cpu()
        axes.plot(*(theta.real if theta.is_complex() else theta).numpy().T, **model_style(name), linewidth=1.1)
    axes.plot(*points.numpy().T, **DESCENT)
    label(axes, "θ₁", "θ₂", case.title)
    axes.set(xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
    axes.locator_params(nbins=4)


def draw_distances(axes: Axes, case: Case, result: Comparison) -> None:
    """Distance to descent at its times, the integrator's share dotted."""
    steps = np.arange(len(result.times))
    axes.plot(steps, worst_member(torch.linalg.vector_norm(result.mean, dim=-1)), **DESCENT)
    for name, row in result.rows.items():
        axes.plot(steps, positive(row.errors), **model_style(name), linewidth=1.1)
        axes.plot(steps, positive(row.integration), color=model_style(name)["color"], linestyle=":", linewidth=1)
        run = row.trajectory
        if run is not None and run.status != "finished":
            text = f"{name}:\n{run.status} at k = {len(run.times) - 1}"
            axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", fontsize="small")
    label(axes, "step k", "distance (circles: ‖θ_k‖)", "‖X(kh) − θ_k‖", log="y")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
