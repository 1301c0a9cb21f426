r"""Explicit Runge–Kutta steps on gradient flow, as descents."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model
from flows.declared import Clock
from flows.descent import Descent
from flows.series import ExplicitMethod
from flows.series.methods import check_method
from landscapes import Landscape


@final
@dataclass(frozen=True)
class RungeKuttaDescent(Descent):
    r"""One explicit Runge–Kutta step on gradient flow:  Y_i = θ − h Σ_j A_ij ∇f(Y_j),  θ' = θ − h Σ_i b_i ∇f(Y_i).

    ``method`` from ``flows.series.runge_kutta``; A = [[0, 0], [1, 0]], b = (0, 1) is the extragradient method. State θ
    (..., d); a step costs one gradient per stage. Raises TypeError for a method of another kind.
    """

    landscape: Landscape
    h: float
    method: ExplicitMethod

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_method(self.method)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def step(self, state: Tensor, k: int, generator: torch.Generator) -> Tensor:
        ((_, tableau),) = self.method.tableaux
        slopes: list[Tensor] = []
        for row in tableau.stages:
            stage = state
            for a, slope in zip(row, slopes, strict=False):
                stage = torch.add(stage, slope, alpha=-self.h * float(a)) if a else stage
            slopes.append(self.landscape.grad(stage))
        for b, slope in zip(tableau.weights, slopes, strict=True):
            state = torch.add(state, slope, alpha=-self.h * float(b)) if b else state
        return state
