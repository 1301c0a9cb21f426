r"""Stochastic modified equations of scaled momentum  v' = v − h(μv + ∇f_γ(x)),  x' = x + hv'.

∇f_γ is a stochastic gradient of mean ∇f and covariance C = σσᵀ. On the clock t = k·h, at learning rate h² and momentum
1 − hμ, the step's first two moments are those of

    order 1:  dX = V dt,   dV = −(μV + ∇f) dt + √h σ(X) dW
    order 2:  dX = [V − (h/2)(μV + ∇f)] dt,
              dV = −[μV + ∇f + (h/2)(μ²V + μ∇f − HV)] dt + √h σ(X) dW

up to O(h²) and O(h³) a step, so that laws differ by O(h^p) on a finite time. The drift is ``ModifiedHeavyBallFlow``'s.
Order 2 adds no term to the noise: over a step its covariance h²C in V is exact to O(h³), and its effect on X, h³C and
h⁴C, is itself O(h³). This does not hold at order 3, which is not implemented. Li, Tai & E 2019, JMLR 20(40), state the
equations of momentum in other units.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_friction, check_model, check_noise, halves
from flows.flow import StochasticFlow
from flows.models.momentum_modified import ScaledMomentumFlow
from flows.models.stochastic import check_order
from flows.series import HEAVY_BALL
from landscapes import FiniteSum, Landscape
from landscapes.noise import GradientNoise, MinibatchNoise
from landscapes.noise.base import Kind
from landscapes.sampling import Sampling


class StochasticMomentumFlow(ScaledMomentumFlow, StochasticFlow):
    """Base of the two momentum equations: state (x, v) (..., 2d), starting at rest; noise (0, √h σ(x) dW).

    σ depends on x only and its columns point along v: the derivative of a column along another vanishes, Itô and
    Stratonovich agree, and Euler–Maruyama has strong order 1 for every σ(x).
    """

    method = HEAVY_BALL

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_friction(self.friction, self.h)
        check_order(self.order, self.landscape, type(self).__name__)

    def ito_correction(self, t: float | Tensor, state: Tensor) -> Tensor:
        return torch.zeros_like(state)


@final
@dataclass(frozen=True)
class NoisyMomentumEquation(StochasticMomentumFlow):
    r"""Stochastic modified equation of order p = 1, 2 of scaled heavy ball with any ``noise``, μ = ``friction``.

    The equations are stated in ``flows.models.stochastic_momentum``; σ(x)ξ is ``noise.factor``. Weak error O(h^p) on a
    finite time against v' = v − h(μv + ∇f + σξ), x' = x + hv'. Order 1 takes one gradient and the noise per evaluation,
    order 2 one HVP more.

    Raises ValueError unless 0 ≤ hμ ≤ 1, p is 1 or 2, and the noise has the landscape's dimension.
    """

    landscape: Landscape
    h: float
    friction: float
    noise: GradientNoise
    order: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        check_noise(self.noise, self.landscape)

    @property
    def noise_kind(self) -> Kind:
        """Additive if the noise is, else general, since the noise drives V only."""
        return "additive" if self.noise.kind == "additive" else "general"

    @property
    def noise_size(self) -> int:
        return self.noise.size

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """(0, √h σ(x) dW), shape (..., 2d)."""
        x = self.position(state)
        kick = math.sqrt(self.h) * self.noise.factor(x, self.noise.check_noise(x, dw, "dw"))
        return torch.cat([torch.zeros_like(kick), kick], dim=-1)


@final
@dataclass(frozen=True)
class MomentumModifiedEquation(StochasticMomentumFlow):
    r"""Stochastic modified equation of order p = 1, 2 of scaled heavy ball with mini-batches; μ = ``friction``.

    C = cD(x), the covariance of a mini-batch gradient, and m = N: σ(x) dW = √c Σ_i (dW_i − mean dW) ∇f_i/√N. Weak
    error O(h^p) on a finite time; torch's learning rate is h², its momentum 1 − hμ. ``sampling`` as in SGD. For "epoch"
    the noise sums to zero over every ``noise_period`` N h/b, and c = N/((N − 1)b) before its mean is subtracted. At
    order 1 drift and noise take one gradient (``rate``); order 2 takes one more, and an HVP.

    Raises TypeError or ValueError unless the landscape is a FiniteSum, 0 ≤ hμ ≤ 1, 1 ≤ batch_size ≤ N, p is 1 or 2, and
    for "epoch" b divides N.
    """

    landscape: FiniteSum
    h: float
    friction: float
    batch_size: int
    order: int = 1
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        super().__post_init__()
        self.sampler.steps_to_zero()

    @cached_property
    def noise(self) -> MinibatchNoise:
        """The noise of one step's gradient."""
        return MinibatchNoise(self.landscape, self.batch_size, self.sampling)

    @property
    def sampler(self) -> Sampling:
        """The sampling of the mini-batches."""
        return self.noise.sampler

    @property
    def noise_period(self) -> float | None:
        """The time of an epoch for sampling="epoch", None otherwise."""
        steps = self.sampler.steps_to_zero()
        return None if steps is None else steps * self.h

    @property
    def noise_size(self) -> int:
        return self.landscape.size

    def weights(self, state: Tensor, dw: Tensor) -> Tensor:
        """w (..., N) with √h σ(x) dW = Σ_i w_i ∇f_i(x)."""
        self.noise.check_noise(state, dw, "dw")
        scale = math.sqrt(self.h * self.sampler.diffusion_factor() / self.landscape.size)
        return scale * (dw - dw.mean(dim=-1, keepdim=True))

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """(0, √h σ(x) dW), shape (..., 2d), by one backward pass."""
        kick = self.landscape.weighted_grad(self.position(state), self.weights(state, dw))
        return torch.cat([torch.zeros_like(kick), kick], dim=-1)

    def rate(self, t: float | Tensor, state: Tensor, dw_over_dt: Tensor) -> Tensor:
        """velocity + diffusion(dW/dt); at order 1 by one backward pass over examples reweighted by both."""
        if self.order > 1:
            return super().rate(t, state, dw_over_dt)
        x, v = halves(state, self.landscape.dimension)
        force = self.landscape.weighted_grad(x, 1 / self.landscape.size - self.weights(state, dw_over_dt))
        return torch.cat([v, -self.friction * v - force], dim=-1)
