r"""The drift that scatter adds to a mean: E∇f(θ) − ∇f(Eθ) = ½ D³f[Cov θ] + O(Cov²)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows import Flow
from landscapes import FiniteSum, Landscape


@final
@dataclass(frozen=True, eq=False)
class ScatteredFlow(Flow):
    r"""Gradient flow of F with the drift s of scattered runs, θ̇ = −∇F(θ) − s(t).

    ``times`` (T,) rising; ``drift`` (T, d): s at these times, linear in between, constant outside. With
    s = E∇f(θ_r) − ∇f(Eθ_r) of runs θ_r with modified loss F, the solution is their mean.
    """

    landscape: Landscape
    times: Tensor
    drift: Tensor

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """−∇F(θ) − s(t), shape (..., d)."""
        now = min(max(float(t), float(self.times[0])), float(self.times[-1]))
        i = min(int(torch.searchsorted(self.times, now, right=True)), len(self.times) - 1)
        before, after = float(self.times[i - 1]), float(self.times[i])
        drift = torch.lerp(self.drift[i - 1], self.drift[i], (now - before) / (after - before))
        return -self.landscape.grad(state) - drift


def scatter_drift(landscape: FiniteSum, runs: Tensor) -> Tensor:
    """s (T, d) of runs (R, T, d): the mean gradient less the gradient at the mean, one gradient per state."""
    drifts = []
    for states in runs.unbind(dim=1):
        total = torch.zeros_like(states[0])  # one state at a time: a batch over R runs need not fit into memory
        for theta in states:
            total += landscape.grad(theta)
        drifts.append(total / len(states) - landscape.grad(states.mean(dim=0)))
    return torch.stack(drifts)
