"""Networks through the onset of the edge of stability: curvature, stability coefficients, predictions, flows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from flows import Flow, GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, integrate
from flows.figures import COLOURS
from flows.observers import GradientPredictions, Loss, StabilityCoefficients, TopEigenpairs
from nets import NetworkLandscape

from ..lab.experiment import align_rows, label, legend, model_style
from ..lab.store import Tensors, descend_in_segments
from .networks import NAMES, SEEN, EdgePlan, OnNetworks

SUBSTEPS = 8  # of rk4 in one of h for flows that need at most one product: IGR's rate (1 + hλ/2)hλ is 7 at hλ = 3
TOLERANCE = 1e-3  # of the principal flow's Krylov space: far below the model's error at the edge


@dataclass(frozen=True)
class Edge(OnNetworks):
    """MLP on MNIST, VGG-11 and ResNet on CIFAR-10 through the onset of the edge of stability."""

    def run(self) -> None:
        """Train, observe a window step by step, take a step of every flow, print, plot."""
        store, plan = self.store(), self.plan
        landscape = self.landscape(plan)
        descent = GradientDescent(landscape, plan.h)
        looks = observers(landscape, plan, plan.every)
        way = descend_in_segments(
            store, "training", descent, landscape.theta0, plan.steps, 5 * plan.every, looks, every=plan.every
        )
        first = min(onset(way) + plan.wait // plan.every, len(way["theta"]) - 1)
        window = descend_in_segments(
            store,
            "window",
            descent,
            way["theta"][first].to(self.device),
            plan.window,
            plan.window,
            observers(landscape, plan, 1),
            every=1,
        )
        places = np.linspace(0, len(window["theta"]) - 1, plan.studied + 1).astype(int)[:-1].tolist()
        studies = [
            store.part(
                f"step-{k:04d}", partial(study, landscape, window["theta"][k].to(self.device), plan.h, plan.substeps)
            )
            for k in places
        ]
        store.table(table(self.describe(landscape, plan), plan, way, window, studies, first * plan.every))
        self.draw(store, figure(plan, way, window, first * plan.every))


def onset(way: Tensors) -> int:
    """Index of the first observation with hλ₀ ≥ 2, or of the last if there is none."""
    beyond = (way["stability scaled eigenvalues"].amax(-1) >= 2).nonzero()
    return int(beyond[0, 0]) if len(beyond) else len(way["theta"]) - 1


def observers(landscape: NetworkLandscape, plan: EdgePlan, every: int) -> list:
    """Observers of the loss at every step, and of eigenpairs and derived quantities every ``every`` steps."""
    top = TopEigenpairs(landscape, plan.modes, tolerance=1e-3, every=every)
    return [
        Loss(landscape),
        top,
        StabilityCoefficients(top, plan.h, every=every),
        GradientPredictions(top, plan.h, every=every),
    ]


def study(landscape: NetworkLandscape, theta: Tensor, h: float, substeps: int) -> Tensors:
    """Error of one step of every flow in θ and in |gᵀu₀|, from θ (d,); NaN for a flow that ends within the step."""
    point = landscape.expand(theta)
    modes = TopEigenpairs(landscape, 1, tolerance=1e-3, vectors=True)(0, 0.0, theta)
    u, component = modes["top vectors"][0], modes["top gradient components"][0]
    stepped = torch.add(theta, point.grad, alpha=-h)
    flows: tuple[tuple[Flow, int], ...] = (
        (GradientFlow(landscape), SUBSTEPS),
        (ModifiedFlow(landscape, h, 2), SUBSTEPS),
        (PrincipalFlow(landscape, h, krylov=30, tolerance=TOLERANCE, branch="real"), substeps),
    )
    errors, growth, hvps = [], [], []
    for flow, n in flows:
        run = integrate(flow, theta, [0, h], method="rk4", dt=h / n).check_uninterrupted()
        end = run.theta[-1] if run.complete else torch.full_like(theta, torch.nan)
        errors.append(torch.linalg.vector_norm(end - stepped) / torch.linalg.vector_norm(stepped - theta))
        growth.append((landscape.grad(end) @ u).abs().cpu() / component.abs())
        hvps.append(torch.tensor(run.cost["hvp"] / run.cost["evaluations"]))
    descended = (landscape.grad(stepped) @ u).abs().cpu() / component.abs()
    return {
        "errors": torch.stack(errors).cpu().double(),
        "growth": torch.stack(growth).double(),
        "hvps": torch.stack(hvps),
        "descended": descended.double(),
        "sharpness": modes["top eigenvalues"][0],
    }


def crossings(way: Tensors, plan: EdgePlan) -> str:
    """The first observed steps with hλ₀ ≥ 1 and ≥ 2."""
    x = way["stability scaled eigenvalues"].amax(-1)
    steps = (way["stability scaled eigenvalues times"] / plan.h).round().long()
    found = []
    for level in (1.0, 2.0):
        beyond = (x >= level).nonzero()
        found.append(
            f"hλ₀ ≥ {level:g} from step {int(steps[beyond[0, 0]])} (observed every {plan.every})"
            if len(beyond)
            else f"hλ₀ < {level:g} throughout"
        )
    return "; ".join(found)


def table(caption: str, plan: EdgePlan, way: Tensors, window: Tensors, studies: list[Tensors], first: int) -> str:
    """Onset of the edge, predictions of each model along it, and errors of single steps."""
    last = window["stability scaled eigenvalues"].amax(-1)
    lines = [
        f"{caption}, {plan.steps} steps, and a window of {plan.window} from step {first}",
        f"{crossings(way, plan)}; in the window hλ₀ = {float(last.min()):.3f} … {float(last.max()):.3f}, "
        f"loss {float(way['loss'][0]):.4g} → {float(window['loss'][-1]):.4g}",
        f"HVPs per observation: {float(window['top products'][1:].double().mean()):.1f} in the window, "
        f"{float(way['top products'][1:].double().mean()):.1f} every {plan.every} steps",
        "change in a step of the window, predicted over observed (median; 1 is right), and share of right signs",
        align_rows(predictions(window)),
    ]
    rows = [
        [
            "one step from",
            *(f"{m}: θ" for m in ("gradient flow", "IGR flow", "real PF")),
            "|gᵀu₀| grows by",
            "gradient flow",
            "IGR flow",
            "real PF",
            "HVPs a velocity",
        ]
    ]
    for i, s in enumerate(studies):
        rows.append(
            [
                f"{i}: hλ₀ = {plan.h * float(s['sharpness']):.3f}",
                *(f"{float(e):.2e}" for e in s["errors"]),
                f"{float(s['descended']):.3f}",
                *(f"{float(g):.3f}" for g in s["growth"]),
                f"{float(s['hvps'][-1]):.1f}",
            ]
        )
    return "\n".join(
        [*lines, "errors in θ over the step's length; the real branch predicts |gᵀu₀| only", align_rows(rows)]
    )


def predictions(window: Tensors) -> list[list[str]]:
    """For gᵀu₀ and the loss: predicted over observed change of each model."""
    seen = window["change of gradient components: observed"][1:, 0], window["change of loss: observed"][1:]
    rows = [["", "gᵀu₀: ratio", "signs", "loss: ratio", "signs"]]
    for key, name in NAMES.items():
        said = window[f"change of gradient components: {key}"][1:, 0], window[f"change of loss: {key}"][1:]
        cells = []
        for observed, predicted in zip(seen, said, strict=True):
            cells += [
                f"{float((predicted / observed).median()):.3f}",
                f"{float((predicted.sign() == observed.sign()).double().mean()):.0%}",
            ]
        rows.append([name, *cells])
    return rows


def figure(plan: EdgePlan, way: Tensors, window: Tensors, first: int) -> Figure:
    """Loss, map of hλ, decrease of the loss along the principal flow; in the window gᵀu₀ and predicted changes."""
    drawn = Figure(figsize=(10.5, 5.6), layout="constrained")
    grid = drawn.subplots(2, 3)
    draw_training(grid[0], plan, way)
    steps = first + np.arange(len(window["loss"]))
    grid[1, 0].plot(steps, window["stability gradient components"][:, 0], **SEEN)
    grid[1, 0].axhline(0, color="grey", linewidth=0.6)
    label(grid[1, 0], "step k", "gᵀu₀", "window: gradient along u₀")
    draw_changes(grid[1, 1], steps, window, "change of gradient components", lambda v: v[1:, 0])
    label(grid[1, 1], "step k", "change of gᵀu₀ in a step", "window: predicted and observed")
    draw_changes(grid[1, 2], steps, window, "change of loss", lambda v: v[1:])
    label(grid[1, 2], "step k", "change of f in a step", "window: predicted and observed")
    legend(drawn, list(NAMES.values()), {"observed": SEEN})
    return drawn


def draw_training(axes: np.ndarray, plan: EdgePlan, way: Tensors) -> None:
    """Loss; hλ_i with the regimes; contributions of the top modes and the rest to the loss along the principal flow."""
    k = way["loss times"] / plan.h
    axes[0].plot(k, way["loss"], color="black", linewidth=0.9)
    label(axes[0], "step k", "training loss f", "loss", log="y")
    looks = way["stability scaled eigenvalues times"] / plan.h
    x = way["stability scaled eigenvalues"].sort(-1, descending=True).values
    for i in range(x.shape[-1]):
        axes[1].plot(looks, x[:, i], color=COLOURS[i], marker=".", linewidth=0.9, label=f"hλ_{i}")
    for level, text in ((1.0, "complex above"), (2.0, "unstable above")):
        axes[1].axhline(level, color="black", linewidth=0.8, linestyle=":")
        axes[1].annotate(text, (float(looks[-1]), level), fontsize="x-small", va="bottom", ha="right")
    axes[1].set_ylim(top=1.25 * float(x.max()))  # room for the legend
    axes[1].legend(fontsize="x-small", frameon=False, ncols=2, loc="upper right")
    label(axes[1], "step k", "hλ_i", "map of validity")
    modes = way["stability contributions"].real.sum(-1)
    axes[2].plot(looks, -modes, color=COLOURS[2], marker="D", markersize=3, label=f"top {plan.modes} modes")
    axes[2].plot(
        looks, -way["stability remainder"], color=COLOURS[0], linestyle="--", marker="s", markersize=3, label="the rest"
    )
    threshold = max(1e-12, 1e-2 * float((-way["stability remainder"]).max()))
    axes[2].set_yscale("symlog", linthresh=threshold)
    axes[2].yaxis.get_major_locator().set_params(numticks=7)
    axes[2].legend(fontsize="x-small", frameon=False)
    label(axes[2], "step k", "−dE/dt = −Σ sc_i (gᵀu_i)²", "loss lowered along the principal flow")


def draw_changes(axes: Axes, steps: np.ndarray, window: Tensors, group: str, pick: Callable[[Tensor], Tensor]) -> None:
    """Observed changes and those of each model."""
    axes.plot(steps[1:], pick(window[f"{group}: observed"]), **SEEN)
    for key, name in NAMES.items():
        axes.plot(steps[1:], pick(window[f"{group}: {key}"]), **model_style(name), linewidth=0.9)
