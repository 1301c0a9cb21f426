"""Gradient flow: the limit of gradient descent at vanishing learning rate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

from torch import Tensor

from flows.arguments import check_model
from flows.declared import Clock
from flows.flow import Flow, Linearisation
from landscapes import Landscape


@final
@dataclass(frozen=True)
class GradientFlow(Flow):
    r"""Gradient flow  θ̇ = −∇f(θ).

    One-step error against gradient descent O(h²): θ_k − X(h; θ_{k−1}) = −(h²/2) H∇f + O(h³). The loss does not increase
    along it. One gradient per evaluation. θ may be complex if the loss is holomorphic.
    """

    landscape: Landscape

    def __post_init__(self) -> None:
        check_model(self.landscape)

    @property
    def declared_clock(self) -> Clock:
        return Clock(free=True)

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """−∇f(θ), shape (..., d)."""
        return -self.landscape.grad(state)

    def linearised(self, t: float | Tensor, state: Tensor) -> Linearisation:
        """−∇f(θ) and v ↦ −H(θ) v at one θ (d,), from one expansion."""
        point = self.landscape.expand(state)
        return Linearisation(-point.grad, lambda v: -point.hvp(v))
