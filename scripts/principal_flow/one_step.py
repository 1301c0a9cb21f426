"""A step of gradient descent on a holomorphic network, from hλ₀ = 0.3 to 2.4, compared with one step of every flow."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor

from flows import Flow, GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, integrate
from landscapes import Landscape
from landscapes.krylov import eigenpairs, random_block

from ..lab.experiment import MODELS, Common, align_rows, label, legend, model_style
from ..lab.network import NetGround
from ..lab.store import Tensors, descend_in_segments

LADDER = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 1.02, 1.05, 1.1, 1.2, 1.25, 1.3, 1.5, 1.7, 1.9, 2.1, 2.4)
KRYLOV, TOLERANCE = 60, 1e-9  # far below the measured errors
GROWTH = {"color": "black", "linewidth": 0.8, "marker": "o", "markerfacecolor": "none", "markersize": 4}


@dataclass(frozen=True)
class OneStepExperiment(Common):
    """One-step errors of every flow on a holomorphic tanh network, and the predictions of the real branch."""

    data: str = "digits"
    """Data set included in scikit-learn, or one found on disk."""
    examples: int = 200
    """Class-balanced training examples."""
    width: float = 0.5
    """Factor of the 32 hidden units."""
    loss: Literal["square", "cross-entropy"] = "square"
    """Loss of each example."""
    rate: float = 0.1
    """Learning rate of the training whose iterates are the starts; it oscillates along u₀ there (hλ₀ = 1.8)."""
    points: tuple[int, ...] = (10, 15, 20)
    """Training steps after which a step is studied."""
    rtol: float = 1e-7
    """Relative tolerance of the integration; a second run at a tenth of it gives the integration error."""

    def run(self) -> None:
        """Train, step, print, plot."""
        store = self.store()
        ground = NetGround(
            "mlp", data=self.data, examples=self.examples, width=self.width, loss=self.loss, holomorphic=True
        )
        landscape, theta0 = ground.build(self.seed, self.real, self.device)
        descent = GradientDescent(landscape, self.rate)
        path = descend_in_segments(store, "training", descent, theta0, max(self.points), max(self.points), every=1)[
            "theta"
        ]
        studies = [store.part(f"step-{k:05d}", partial(study, landscape, path[k], self.rtol)) for k in self.points]
        store.table(table(studies, self, landscape.dimension))
        self.draw(store, figure(studies, self.points))


def flows_at(landscape: Landscape, h: float) -> dict[str, Flow]:
    """The flows at a learning rate h."""
    krylov = {"krylov": KRYLOV, "tolerance": TOLERANCE}
    return {
        "gradient flow": GradientFlow(landscape),
        "IGR flow": ModifiedFlow(landscape, h, 2),
        "principal flow": PrincipalFlow(landscape, h, **krylov),  # type: ignore[arg-type]
        "principal flow, real branch": PrincipalFlow(landscape, h, branch="real", **krylov),  # type: ignore[arg-type]
    }


def study(landscape: Landscape, theta: Tensor, rtol: float) -> Tensors:
    """Errors in θ, integration errors and |gᵀu₀| after a step, (models, ladder), with descent's own (ladder,)."""
    point = landscape.expand(theta)
    top = eigenpairs(point.hvp, random_block(theta, 3), 1, tolerance=1e-8)
    sharpness, u = float(top.values[0]), top.vectors[0]
    component = float(point.grad @ u)
    errors, integration, growth = torch.full((3, len(MODELS), len(LADDER)), torch.nan, dtype=torch.float64)
    descended = torch.zeros(len(LADDER), dtype=torch.float64)
    for j, x in enumerate(LADDER):
        h = x / sharpness
        stepped = torch.add(theta, point.grad, alpha=-h)
        descended[j] = abs(float(landscape.grad(stepped) @ u) / component)
        for i, flow in enumerate(flows_at(landscape, h).values()):
            runs = [
                integrate(flow, theta, [0, h], rtol=r, atol=r / 100, max_steps=2000).check_uninterrupted()
                for r in (rtol, rtol / 10)
            ]
            if not all(run.complete for run in runs):
                continue  # NaN: the integration stops before the end of the step
            loose, tight = (run.theta[-1] for run in runs)
            errors[i, j] = torch.linalg.vector_norm(tight - stepped)
            integration[i, j] = torch.linalg.vector_norm(tight - loose)
            growth[i, j] = (landscape.grad(tight) @ u.to(tight.dtype)).abs() / abs(component)
    length = torch.linalg.vector_norm(point.grad) / sharpness * torch.tensor(LADDER, dtype=torch.float64)
    return {
        "errors": errors,
        "integration": integration,
        "growth": growth,
        "descended": descended,
        "length": length,
        "sharpness": torch.tensor(sharpness),
        "alignment": torch.tensor(abs(component) / float(torch.linalg.vector_norm(point.grad))),
    }


def table(studies: list[Tensors], settings: OneStepExperiment, weights: int) -> str:
    """Errors relative to the step's length, medians over the points, and the model with the smallest error."""
    relative = torch.stack([s["errors"] / s["length"] for s in studies])  # (points, models, ladder)
    middle = relative.median(0).values
    models = list(MODELS)
    rows = [["hλ₀", *models, "closest", "|gᵀu₀| grows by", *(f"{m} predicts" for m in models)]]
    growth = torch.stack([s["growth"] for s in studies]).median(0).values
    descended = torch.stack([s["descended"] for s in studies]).median(0).values
    for j, x in enumerate(LADDER):
        closest = models[int(torch.nan_to_num(middle[:, j], nan=torch.inf).argmin())]
        numbers = [f"{float(e):.2e}" for e in middle[:, j]]
        factors = [f"{float(g):.3f}" for g in growth[:, j]]
        rows.append([f"{x:g}", *numbers, closest, f"{float(descended[j]):.3f}", *factors])
    inside = [j for j, x in enumerate(LADDER) if 0.5 <= x <= 2.1]
    ours, others = relative[:, 2, inside], relative[:, :2, inside].amin(1)
    loses = [x for j, x in enumerate(LADDER) if float(middle[3, j]) > float(middle[0, j])]
    sharpness, alignment = (", ".join(f"{float(s[key]):.4g}" for s in studies) for key in ("sharpness", "alignment"))
    share = max(float((s["integration"] / s["errors"]).nan_to_num().max()) for s in studies)
    lines = [
        f"MLP with {weights} weights on {settings.examples} examples of {settings.data}; steps from iterates "
        f"{settings.points}, λ₀ = {sharpness}, |cos(g, u₀)| = {alignment}",
        "errors ‖X(h) − θ′‖ / ‖θ′ − θ‖, medians",
        align_rows(rows),
        f"0.5 ≤ hλ₀ ≤ 2.1: the principal flow's error over the smaller of the other two's: at most "
        f"{float((ours / others).max()):.3f}, median {float((ours / others).median()):.3f}",
        f"the real branch's error in θ is larger than gradient flow's at hλ₀ = {', '.join(f'{x:g}' for x in loses)}",
        f"largest integration error over error: {share:.1e}",
    ]
    return "\n".join(lines)


def figure(studies: list[Tensors], points: tuple[int, ...]) -> Figure:
    """Errors in θ; the real branch over gradient flow; growth of the gradient along u₀."""
    drawn = Figure(figsize=(10.5, 3.6), layout="constrained")
    left, middle, right = drawn.subplots(1, 3)
    relative = torch.stack([s["errors"] / s["length"] for s in studies]).numpy()
    growth = torch.stack([s["growth"] for s in studies]).numpy()
    descended = torch.stack([s["descended"] for s in studies]).numpy()
    for i, model in enumerate(MODELS):
        left.fill_between(
            LADDER, relative[:, i].min(0), relative[:, i].max(0), color=model_style(model)["color"], alpha=0.15
        )
        left.plot(LADDER, torch.tensor(relative[:, i]).median(0).values, **model_style(model))
        right.plot(LADDER, torch.tensor(growth[:, i]).median(0).values, **model_style(model))
    for k, errors in zip(points, relative, strict=True):
        middle.plot(
            LADDER, errors[3] / errors[0], color=model_style("principal flow, real branch")["color"], linewidth=0.8
        )
        middle.annotate(f"k = {k}", (LADDER[0], (errors[3] / errors[0])[0]), fontsize="x-small", ha="right")
    middle.set_xlim(0, 2.5)
    middle.axhline(1, color="black", linewidth=0.8, linestyle=":")
    right.plot(LADDER, torch.tensor(descended).median(0).values, **GROWTH)
    label(left, "hλ₀", "‖X(h) − θ′‖ / ‖θ′ − θ‖", "error of one step in θ", log="y")
    label(middle, "hλ₀", "error over gradient flow's", "real branch in θ: worse above 1", log="y")
    label(right, "hλ₀", "|g(X(h))ᵀu₀| / |gᵀu₀|", "growth of the gradient along u₀")
    legend(drawn, list(MODELS), {"gradient descent": GROWTH})
    return drawn
