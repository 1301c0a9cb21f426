"""Drift of gradient descent from gradient flow per iteration, and ‖Hg‖, along training."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure

from flows import GradientDescent
from flows.figures import COLOURS
from flows.observers import Drift as DriftObserver
from flows.observers import GradientCurvature, GradientNorm, Loss

from ..lab.experiment import align_rows, label
from ..lab.store import Tensors, descend_in_segments
from .networks import EdgePlan, OnNetworks

TOLERANCE = 1e-3  # of a step of gradient flow over h, as a fraction of the predicted drift


@dataclass(frozen=True)
class DriftExperiment(OnNetworks):
    """The drift of an iteration compared with ‖Hg‖ along training."""

    def run(self) -> None:
        """Train, measure, print, plot."""
        store, plan = self.store(), self.plan
        landscape = self.landscape(plan)
        seen = [
            Loss(landscape),
            DriftObserver(landscape, plan.h, tolerance=TOLERANCE, every=plan.every),
            GradientCurvature(landscape, every=plan.every),
            GradientNorm(landscape, every=plan.every),
        ]
        way = descend_in_segments(
            store, "training", GradientDescent(landscape, plan.h), landscape.theta0, plan.steps, 4 * plan.every, seen
        )
        store.table(table(self.describe(landscape, plan), plan, way))
        self.draw(store, figure(plan, way))


def table(caption: str, plan: EdgePlan, way: Tensors) -> str:
    """Measured and predicted drift at a dozen observations, and their correlation over all observations."""
    measured, predicted = way["drift measured"].double(), way["drift predicted"].double()
    steps = (way["drift measured times"] / plan.h).round().long()
    rows = [["step", "‖θ′ − X(h)‖", "(h²/2)‖Hg‖", "ratio", "‖Hg‖/‖g‖", "gᵀHg/‖g‖²", "h‖Hg‖/‖g‖"]]
    for i in np.unique(np.linspace(0, len(steps) - 1, 12).astype(int)):
        ratio = float(way["gradient curvature Hg norm"][i] / way["gradient norm"][i])
        rows.append(
            [
                str(int(steps[i])),
                f"{float(measured[i]):.3e}",
                f"{float(predicted[i]):.3e}",
                f"{float(measured[i] / predicted[i]):.4f}",
                f"{ratio:.4g}",
                f"{float(way['gradient curvature'][i]):.4g}",
                f"{plan.h * ratio:.4g}",
            ]
        )
    both = measured.isfinite() & (measured > 0)
    logs = torch.stack([measured[both].log(), predicted[both].log()])
    ratios = (measured / predicted)[both]
    tracks = (
        f"correlation of log drift with log ‖Hg‖ over {len(ratios)} observations: "
        f"{float(torch.corrcoef(logs)[0, 1]):.4f}; "
        f"ratio from {float(ratios.min()):.3f} to {float(ratios.max()):.3f}; gradient flow X(h) by steps with a "
        f"tolerance of {TOLERANCE:g} of the prediction each, which is no bound of its error"
    )
    return "\n".join([f"{caption}, {plan.steps} steps", align_rows(rows), tracks])


def figure(plan: EdgePlan, way: Tensors) -> Figure:
    """Loss; measured and predicted drift; their ratio against h‖Hg‖/‖g‖, the curvature along the gradient."""
    drawn = Figure(figsize=(10.5, 3.4), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    left.plot(way["loss times"] / plan.h, way["loss"], color="black", linewidth=0.9)
    label(left, "step k", "training loss f", "loss", log="y")
    k = way["drift measured times"] / plan.h
    middle.plot(k, way["drift measured"], color=COLOURS[0], marker="o", markersize=3, label="measured, ‖θ′ − X(h; θ)‖")
    middle.plot(k, way["drift predicted"], color=COLOURS[1], linestyle="--", label="predicted, (h²/2)‖Hg‖")
    middle.legend(fontsize="x-small", frameon=False)
    label(middle, "step k", "drift of one iteration", "drift from gradient flow", log="y")
    seen = plan.h * way["gradient curvature Hg norm"] / way["gradient norm"]
    right.scatter(seen, way["drift ratio"], s=12, color=COLOURS[0])
    right.axhline(1, color="black", linewidth=0.8, linestyle=":")
    label(right, "h‖Hg‖ / ‖g‖", "measured over predicted", "the next order: O(h³)")
    return drawn
