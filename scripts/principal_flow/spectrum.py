"""A small network at its full spectrum: regime, contribution and prediction of every mode, and the flows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from flows import Comparison, GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, compare
from flows.comparison.figure import positive
from flows.figures import COLOURS
from flows.observers import REGIMES, GradientPredictions, Loss, StabilityCoefficients, TopEigenpairs
from landscapes import Landscape

from ..lab.experiment import Common, align_rows, label, legend, model_style
from ..lab.network import NetGround
from ..lab.store import Tensors, descend_in_segments
from .networks import NAMES, SEEN

SHADES = ("#999999", COLOURS[0], "black", COLOURS[2], COLOURS[1])  # of the regimes


@dataclass(frozen=True)
class SpectrumExperiment(Common):
    """MLP on breast cancer at the full spectrum, through hλ₀ = 2."""

    examples: int | None = None
    """Class-balanced training examples; default: all."""
    width: float = 0.25
    """Factor of the 32 hidden units."""
    loss: Literal["square", "cross-entropy"] = "square"
    """Loss of each example."""
    h: float = 0.6
    """Learning rate of descent and flows."""
    steps: int = 150
    """Steps of gradient descent."""
    start: int = 90
    """First step of the window in which flows are compared; with the defaults the gradient along u₀ grows there."""
    window: int = 8
    """Steps of the window."""

    def run(self) -> None:
        """Train with every eigenpair at every step, integrate the flows over a window, print, plot."""
        store = self.store()
        ground = NetGround(
            "mlp",
            data="breast-cancer",
            examples=self.examples or "all",
            width=self.width,
            loss=self.loss,
            holomorphic=True,
        )
        landscape, theta0 = ground.build(self.seed, self.real, self.device)
        pairs = TopEigenpairs(landscape, landscape.dimension, tolerance=1e-8, limit=10 * landscape.dimension)
        seen = [Loss(landscape), pairs, StabilityCoefficients(pairs, self.h), GradientPredictions(pairs, self.h)]
        descent = GradientDescent(landscape, self.h)
        way = descend_in_segments(store, "training", descent, theta0, self.steps, min(self.steps, 20), seen, every=1)
        first = min(self.start, len(way["theta"]) - 1)
        run = compare_flows(landscape, descent, way["theta"][first].to(self.device), self.window)
        run.save(store.folder / "window")
        store.table(table(self, landscape, way, run, first))
        self.draw(store, figure(self, way, run, first))


def compare_flows(landscape: Landscape, descent: GradientDescent, theta: Tensor, steps: int) -> Comparison:
    """The flows compared with descent from θ, the principal flow on its complex branch at its full spectrum."""
    flows = {
        "gradient flow": GradientFlow(landscape),
        "IGR flow": ModifiedFlow(landscape, descent.h, 2),
        "principal flow": PrincipalFlow(landscape, descent.h, krylov=60, tolerance=1e-8),
    }
    return compare(descent, flows, theta, steps, rtol=1e-5, atol=1e-7).check_uninterrupted()


def table(options: SpectrumExperiment, landscape: Landscape, way: Tensors, run: Comparison, first: int) -> str:
    """Regimes over time, predicted loss changes over the full spectrum, and the flows' errors in the window."""
    codes, x = way["stability regimes"], way["stability scaled eigenvalues"]
    used = [code for code in range(len(REGIMES)) if bool((codes == code).any())]
    rows = [["step", "loss", "hλ₀", "least hλ", *(REGIMES[code] for code in used), "−dE/dt (PF)", "−dE/dt (GF)"]]
    for k in np.unique(np.linspace(0, len(x) - 1, 13).astype(int)):
        pf = -float(way["stability contributions"][k].real.sum() + way["stability remainder"][k])
        gf = float(way["stability gradient components"][k].square().sum())
        counts = [str(int((codes[k] == code).sum())) for code in used]
        rows.append(
            [
                str(k),
                f"{float(way['loss'][k]):.5f}",
                f"{float(x[k].max()):.3f}",
                f"{float(x[k].min()):.3f}",
                *counts,
                f"{pf:.3e}",
                f"{gf:.3e}",
            ]
        )
    observed = way["change of loss: observed"][1:]
    changes = [["", "mean |predicted − observed| change of f", "right signs"]]
    for key, name in NAMES.items():
        predicted = way[f"change of loss: {key}"][1:]
        right = float((predicted.sign() == observed.sign()).double().mean())
        changes.append([name, f"{float((predicted - observed).abs().mean()):.2e}", f"{right:.0%}"])
    return "\n".join(
        [
            f"MLP with {landscape.dimension} weights on breast cancer, gradient descent at h = {options.h:g}; "
            "modes by regime (hλ < 0, < 1, < 2, beyond)",
            align_rows(rows),
            f"change of the loss in a step, mean |observed| {float(observed.abs().mean()):.2e}:",
            align_rows(changes),
            f"flows from step {first} on, where hλ₀ = {float(x[first].max()):.3f}:",
            str(run),
        ]
    )


def figure(options: SpectrumExperiment, way: Tensors, run: Comparison, first: int) -> Figure:
    """Spectrum by regime, loss decrease by regime, predictions, and distances to descent in the window."""
    drawn = Figure(figsize=(10.5, 5.6), layout="constrained")
    grid = drawn.subplots(2, 3)
    k = np.arange(len(way["loss"]))
    draw_regimes(grid[0, 0], grid[0, 1], k, way)
    grid[0, 2].plot(k, way["loss"], color="black", linewidth=0.9)
    label(grid[0, 2], "step k", "training loss f", "loss", log="y")
    top = way["change before: eigenvalues"].argmax(-1, keepdim=True)[1:]
    before = way["change before: gradient components"][1:].gather(1, top)[:, 0]
    for key in ("observed", *NAMES):
        change = way[f"change of gradient components: {key}"][1:].gather(1, top)[:, 0]
        style: dict[str, Any] = SEEN if key == "observed" else model_style(NAMES[key])
        grid[1, 0].plot(k[1:], (before + change).abs() / before.abs(), **{**style, "linewidth": 0.9})
        grid[1, 1].plot(k[1:], way[f"change of loss: {key}"][1:], **{**style, "linewidth": 0.9})
    label(grid[1, 0], "step k", "|gᵀu₀| after over before a step", "gradient along the sharpest mode")
    grid[1, 0].set_ylim(0, 2.5)
    label(grid[1, 1], "step k", "change of f in a step", "loss, all modes predicted")
    grid[1, 1].set_yscale("symlog", linthresh=1e-3)
    for name, row in run.rows.items():
        steps = first + np.arange(len(row.errors))
        grid[1, 2].plot(steps, positive(row.errors), **model_style(name))
        grid[1, 2].plot(steps, positive(row.integration), color=model_style(name)["color"], linestyle=":", linewidth=1)
    label(grid[1, 2], "step k", "distance (dotted: integration)", "‖X(kh) − θ_k‖", log="y")
    legend(drawn, list(run.rows), {"observed": SEEN})
    return drawn


def draw_regimes(spectrum: Any, budget: Any, k: np.ndarray, way: Tensors) -> None:
    """hλ_i of every mode coloured by its regime; contributions of each regime to the loss along the flow."""
    x, codes = way["stability scaled eigenvalues"], way["stability regimes"]
    contributions = way["stability contributions"].real
    for code in range(len(REGIMES) - 1):
        chosen = codes == code
        if not bool(chosen.any()):
            continue
        at = np.broadcast_to(k[:, None], x.shape)[chosen.numpy()]
        spectrum.scatter(at, x[chosen], s=3, color=SHADES[code], label=REGIMES[code])
        share = torch.where(chosen, -contributions, 0).sum(-1)
        budget.plot(k, share, color=SHADES[code], linewidth=1, label=REGIMES[code])
    spectrum.set_yscale("symlog", linthresh=0.1)
    label(spectrum, "step k", "hλ_i of every mode", "spectrum by regime")
    budget.set_yscale("symlog", linthresh=1e-5)
    budget.legend(fontsize="x-small", frameon=False)
    label(budget, "step k", "−Σ sc_i (gᵀu_i)²", "loss lowered along the principal flow")
