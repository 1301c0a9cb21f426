r"""Changes of gᵀu_i and of the loss: observed, and predicted by gradient flow, IGR and the principal flow.

With λ_i and u_i frozen, the components under a model of coefficient α obey d(gᵀu_i)/dt = λ_i α(hλ_i) gᵀu_i, so that
after n = Δt/h steps gᵀu_i is multiplied by F_i = exp(n x α(x)), x = hλ_i:

    gradient flow exp(−nx),   modified flow (IGR) exp(−n(x + x²/2)),   principal flow (1 − x)ⁿ,

and the loss, which in each mode is (gᵀu_i)²/(2λ_i) above its minimum, changes by Σ_i (F_i² − 1)(gᵀu_i)²/(2λ_i).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.engines.recorder import LandscapeObserver
from flows.models.principal import real_coefficient
from flows.observers.curvature import TopEigenpairs, check_pairs
from flows.observers.modes import Modes, check_real_theta, each_member, same_kind
from landscapes import Counted
from landscapes.errors import check_positive


@final
@dataclass(frozen=True)
class FrozenModel:
    r"""A model of gradient descent with constant Hessian and eigenvectors.

    ``coefficient``: x = hλ ↦ Re α(x). ``turns``: whether for x > 1 it changes sign at every step, Im(x α(x)) = π.
    """

    coefficient: Callable[[Tensor], Tensor]
    turns: bool = False

    def component_change(self, component: Tensor, x: Tensor, steps: float) -> Tensor:
        """(F − 1) gᵀu, the real part if (1 − x)ⁿ is complex: x > 1 and a number of steps that is no integer."""
        return component * self._growth(x, steps)

    def loss_change(self, component: Tensor, x: Tensor, steps: float, h: float) -> Tensor:
        """(F² − 1)(gᵀu)²/(2λ), or its real part; −(gᵀu)² n h at λ = 0."""
        flat = x == 0
        return component.square() * h * torch.where(flat, -steps, self._growth(x, 2 * steps) / (2 * (x + flat)))

    def _growth(self, x: Tensor, steps: float) -> Tensor:
        """Re F − 1, by expm1 without cancellation near F = 1."""
        exponent = steps * (x * self.coefficient(x)) if steps else 0 * x  # 0 · ∞ at x = 1
        turn = torch.where(x > 1, math.cos(math.pi * steps), 1.0) if self.turns else torch.ones_like(x)
        return torch.expm1(exponent) * turn + (turn - 1)


FROZEN_MODELS = {
    "gradient flow": FrozenModel(lambda x: -torch.ones_like(x)),
    "modified flow": FrozenModel(lambda x: -1 - x / 2),
    "principal flow": FrozenModel(real_coefficient, turns=True),
}
"""The models whose predictions are recorded, by name; the modified flow is that of order 2 (IGR)."""


@dataclass(frozen=True)
class Outlook:
    """The inputs of predictions from one member's state: its modes, and the rest of the gradient as one more mode."""

    modes: Modes
    loss: float
    remainder: float  # ‖r‖, r the gradient outside the modes
    curvature: float  # rᵀHr/‖r‖²


@final
class GradientPredictions(LandscapeObserver):
    r"""Predicted and observed changes of gᵀu_i and of the loss since the previously observed state.

    "change of gradient components: observed" (..., k) is uᵀ(g − g_before) with the u_i of the previous state, in its
    followed order; ": gradient flow", ": modified flow" (order 2, IGR) and ": principal flow" are the predictions of
    each model from that state for the elapsed time, n = Δt/h steps. "change of loss: …" (...,) likewise. "change
    before: eigenvalues" and "change before: gradient components" (..., k): λ_i and gᵀu_i at the previous state;
    "change before: remainder norm" and "change before: remainder curvature" (...,): those of the rest of the gradient.
    All are NaN at the first state.

    The rest of the gradient, r outside the modes, is treated as one mode with its Rayleigh quotient rᵀHr/‖r‖², the
    one-point Gauss rule of its spectral measure. On a quadratic each model's predictions are then exact for its own
    flow, the principal flow's for gradient descent, up to that rule, which is itself exact for the principal flow at
    n = 1. Otherwise, compared with one step of descent, gᵀu_i has an error O(h²), as H changes, and the loss O(h³), for
    gradient flow O(h²). If the principal flow is complex, hλ_i > 1 and n no integer, the real part is returned.

    ``pairs``: the observer whose eigenpairs are shared; further cost: one loss and one HVP per member and state. One
    run at a time: a k that does not grow starts a new run. Source: Rosca et al. 2023, arXiv 2302.01952. Raises as
    ``TopEigenpairs``.
    """

    def __init__(self, pairs: TopEigenpairs, h: float, *, every: int = 1, name: str = "change"):
        super().__init__(check_pairs(pairs).landscape, every, name)
        self.h = check_positive("h", h)
        self._follower = pairs.follower
        self._before: list[Outlook] = []
        self._k, self._t = -1, 0.0
        self._theta = torch.zeros(0)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        theta = check_real_theta(self, theta)
        modes = self._follower.find(self.counted, k, theta)
        members = theta.reshape(-1, theta.shape[-1])
        now = [outlook(self.counted, x, m) for x, m in zip(members, modes, strict=True)]
        continues = k > self._k and same_kind(theta, self._theta)
        before, steps = (self._before, (t - self._t) / self.h) if continues else (now, math.nan)
        self._before, self._k, self._t, self._theta = now, k, t, theta
        return each_member(lambda i: self._quantities(before[i], now[i], steps), theta.shape[:-1])

    def _quantities(self, before: Outlook, now: Outlook, steps: float) -> dict[str, Tensor]:
        components = before.modes.components(before.modes.gradient)
        x = self.h * before.modes.eigenvalues
        observed = before.modes.components(now.modes.gradient) - components
        losses = {"observed": torch.tensor(now.loss - before.loss, dtype=torch.float64)}
        changes = {"observed": observed}
        remainder, rest = scalars(before.remainder, self.h * before.curvature)
        for name, model in FROZEN_MODELS.items():
            changes[name] = model.component_change(components, x, steps)
            modes = model.loss_change(components, x, steps, self.h).sum()
            losses[name] = modes + model.loss_change(remainder, rest, steps, self.h)
        starts = {
            "eigenvalues": before.modes.eigenvalues,
            "gradient components": components,
            "remainder norm": remainder,
            "remainder curvature": rest / self.h,
        }
        groups = {"of gradient components": changes, "of loss": losses, "before": starts}
        nothing = math.nan if math.isnan(steps) else 0.0
        return {
            f"{self.name} {group}: {quantity}": value + nothing
            for group, quantities in groups.items()
            for quantity, value in quantities.items()
        }


def outlook(counted: Counted, theta: Tensor, modes: Modes) -> Outlook:
    """The inputs of predictions from θ (d,): its modes, and one loss and one HVP."""
    point = counted.expand(theta)
    remainder = modes.remainder()
    size = float(torch.linalg.vector_norm(remainder))
    along = remainder / size if size else remainder
    return Outlook(modes, float(point.loss), size, float(along @ point.hvp(along)))


def scalars(*values: float) -> list[Tensor]:
    """Numbers as float64 tensors on the CPU."""
    return [torch.tensor(value, dtype=torch.float64) for value in values]
