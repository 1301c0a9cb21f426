r"""Langevin equations: gradient flow in a heat bath, whose stationary law is the Gibbs density of the landscape.

The noise is isotropic with temperature T, whereas mini-batch noise depends on the direction and on θ: these equations
are the isotropic baseline for it. SGD's step noise hσξ with σσᵀ = I has the temperature T = h/2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import at_rest, check_model, check_point, halves
from flows.declared import Clock
from flows.flow import StochasticFlow
from landscapes import Landscape
from landscapes.errors import check_positive
from landscapes.noise.base import Kind


@final
@dataclass(frozen=True)
class LangevinFlow(StochasticFlow):
    r"""Overdamped Langevin equation  dX = −∇f(X) dt + √(2T) dW,  T = ``temperature`` > 0; m = d, additive.

    Stationary density exp(−f/T)/Z, in detailed balance, if Z = ∫ exp(−f/T) is finite. One gradient per evaluation.
    Euler–Maruyama has strong order 1, as the noise is additive. Source: Pavliotis, Stochastic processes and
    applications, 2014, ch. 4. Raises ValueError unless T is positive and finite.
    """

    landscape: Landscape
    temperature: float

    def __post_init__(self) -> None:
        check_model(self.landscape)
        check_positive("temperature", self.temperature)

    @property
    def declared_clock(self) -> Clock:
        return Clock(free=True)

    @property
    def noise_kind(self) -> Kind:
        return "additive"

    @property
    def noise_size(self) -> int:
        return self.landscape.dimension

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """−∇f(θ), shape (..., d)."""
        return -self.landscape.grad(state)

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """√(2T) dW, shape (..., d)."""
        return math.sqrt(2 * self.temperature) * check_point("dw", dw)

    def log_density(self, state: Tensor) -> Tensor:
        """−f/T, the logarithm of the stationary density up to −log Z; shape (...,)."""
        return -self.landscape.loss(state) / self.temperature


@final
@dataclass(frozen=True)
class UnderdampedLangevinFlow(StochasticFlow):
    r"""Langevin equation with inertia  dX = V dt,  dV = −(γV + ∇f(X)) dt + √(2γT) dW;  γ = ``friction``, unit mass.

    State (θ, v) (..., 2d), starting at rest, (θ0, 0); m = d, additive noise in V only. Stationary density
    exp(−(f + ½‖v‖²)/T)/Z with temperature T > 0; the friction γ > 0 affects only the rate of convergence to it.
    At large γ and on the clock t/γ, X is that of ``LangevinFlow``. Its current v·∇_x − ∇f·∇_v does not vanish: detailed
    balance holds only with v reversed. One gradient per evaluation. Source: Pavliotis 2014, ch. 6.
    Raises ValueError unless both are positive and finite.
    """

    landscape: Landscape
    temperature: float
    friction: float

    def __post_init__(self) -> None:
        check_model(self.landscape)
        check_positive("temperature", self.temperature)
        check_positive("friction", self.friction)

    @property
    def declared_clock(self) -> Clock:
        return Clock(rule=None, free=True)

    @property
    def noise_kind(self) -> Kind:
        return "additive"

    @property
    def noise_size(self) -> int:
        return self.landscape.dimension

    def start(self, theta0: Tensor) -> Tensor:
        """(θ0, 0)."""
        return self.resume(theta0, at_rest(theta0))

    def resume(self, theta: Tensor, velocity: Tensor) -> Tensor:
        """(θ, v)."""
        return torch.cat([theta, velocity], dim=-1)

    def position(self, state: Tensor) -> Tensor:
        return halves(state, self.landscape.dimension)[0]

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """(v, −γv − ∇f), shape (..., 2d)."""
        theta, v = halves(state, self.landscape.dimension)
        return torch.cat([v, -self.friction * v - self.landscape.grad(theta)], dim=-1)

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """(0, √(2γT) dW), shape (..., 2d)."""
        kick = math.sqrt(2 * self.friction * self.temperature) * check_point("dw", dw)
        return torch.cat([torch.zeros_like(kick), kick], dim=-1)

    def log_density(self, state: Tensor) -> Tensor:
        """−(f + ½‖v‖²)/T, the logarithm of the stationary density up to −log Z; shape (...,)."""
        theta, v = halves(state, self.landscape.dimension)
        return -(self.landscape.loss(theta) + v.square().sum(dim=-1) / 2) / self.temperature
