r"""Stochastic modified equations: SGD as a stochastic differential equation with the noise of its gradients.

    dX = −∇f dt + √h σ(X) dW   (order 1),      dX = −∇(f + (h/4)‖∇f‖²) dt + √h σ(X) dW   (order 2),

σσᵀ the covariance of the stochastic gradient. On a finite time, sup_k |E φ(θ_k) − E φ(X_{kh})| is O(h) and O(h²) for
smooth φ: the mean of one step, h∇f, and its covariance, h²σσᵀ, are matched to those orders. The stationary law is not
more accurate at order 2. Li, Tai & E 2017 (arXiv 1511.06251) and 2019 (JMLR 20(40)), Theorem 9.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import final

from torch import Tensor

from flows.arguments import check_model, check_noise
from flows.declared import Clock
from flows.flow import SameNoise, StochasticFlow
from flows.schedules import Schedule, check_callable, multiple_at
from landscapes import FiniteSum, Landscape, UnsupportedError
from landscapes.errors import check_count
from landscapes.landscape import warn_smoothness
from landscapes.noise import GradientNoise, MinibatchNoise
from landscapes.noise.base import Kind
from landscapes.sampling import Sampling, sampling_of

HIGHEST = 2


class GradientEquation(StochasticFlow):
    r"""dX = −∇f [− (h/2) H∇f] dt + √h σ(X) dW with the learning rate h = h₀·schedule(t); state θ (..., d).

    Base of the two equations. t is the clock of the descent, the sum of its learning rates: on it a slowly changing
    rate adds no term at either order.
    """

    landscape: Landscape
    h: float
    order: int
    schedule: Schedule | None
    noise: GradientNoise

    @property
    def name(self) -> str:
        return f"{type(self).__name__} order {self.order}"

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    @property
    def noise_kind(self) -> Kind:
        return self.noise.kind

    @property
    def noise_size(self) -> int:
        return self.noise.size

    def learning_rate(self, t: float | Tensor) -> float:
        """h₀·schedule(t). Raises ValueError unless that is positive and finite."""
        if self.schedule is None:
            return self.h
        return self.h * multiple_at(self.schedule, t)

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """−∇f or, at order 2, −∇f − (h/2)H∇f, shape (..., d)."""
        if self.order == 1:
            return -self.landscape.grad(state)
        point = self.landscape.expand(state)
        return -point.grad - self.learning_rate(t) / 2 * point.hvp(point.grad)

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """√h σ(X) dw, shape (..., d)."""
        return math.sqrt(self.learning_rate(t)) * self.noise.factor(state, self.noise.check_noise(state, dw, "dw"))

    def rate(self, t: float | Tensor, state: Tensor, dw_over_dt: Tensor) -> Tensor:
        """Drift and noise."""
        if self.order > 1:
            return super().rate(t, state, dw_over_dt)
        # Subtracting saves the negated copy of the gradient, a measurable cost with many paths of low dimension.
        return self.diffusion(t, state, dw_over_dt) - self.landscape.grad(state)

    def ito_correction(self, t: float | Tensor, state: Tensor) -> Tensor:
        """h times the Itô correction of the gradient noise, shape (..., d)."""
        return self.learning_rate(t) * self.noise.ito_correction(state)


@final
@dataclass(frozen=True)
class StochasticModifiedEquation(GradientEquation):
    r"""SGD with mini-batches of b as an SDE, with the covariance of the mini-batch gradient at every θ.

        dX = −∇f dt + √(hc) G(X) dW,  GGᵀ = D,  W ∈ R^N   (``order`` 1; at order 2 the drift is −∇(f + (h/4)‖∇f‖²))

    c = 1/b for "replacement", (1/b)(N − b)/(N − 1) for "subset". "epoch" is reshuffling: c = N/((N − 1)b), and the
    increments of W are reduced by their mean over each epoch, (N/b)·h, so that single steps have a subset's covariance
    and the noise of an epoch sums to zero; then b must divide N and dt must divide an epoch.

    At order 1 an evaluation with its noise is one reweighted gradient, −Σ w_i g_i, w_i = 1/N − √(hc/N)(Ẇ_i − mean);
    order 2 adds a Hessian-vector product and a gradient. Raises TypeError or ValueError for invalid arguments.
    Equations from Li, Tai & E 2017, arXiv 1511.06251, with their orders verified.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    order: int = 1
    sampling: str = "replacement"
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_order(self.order, self.landscape, type(self).__name__)
        if self.schedule is not None:
            check_callable("schedule", self.schedule)
        MinibatchNoise(self.landscape, self.batch_size, self.sampling)  # its checks
        if self.sampling == "epoch":
            self.sampler.steps_to_zero()
            if self.schedule is not None:
                raise UnsupportedError("a schedule has no epochs of one length: use sampling='subset'")

    @cached_property
    def sampler(self) -> Sampling:
        """The sampling of the mini-batches."""
        return sampling_of(self.landscape.size, self.batch_size, self.sampling)

    @cached_property
    def noise(self) -> MinibatchNoise:  # type: ignore[override]
        """The covariance of one step's gradient."""
        return MinibatchNoise(self.landscape, self.batch_size, self.sampling)

    @property
    def noise_period(self) -> float | None:
        """The length of an epoch if examples are reshuffled, else None."""
        steps = self.sampler.steps_to_zero()
        return None if steps is None else steps * self.h

    def weights(self, t: float | Tensor, dw: Tensor) -> Tensor:
        """w (..., N) with √h σ(X) dw = Σ_i w_i g_i: √(hc/N)(dw_i − mean)."""
        scale = math.sqrt(self.learning_rate(t) * self.sampler.diffusion_factor() / self.landscape.size)
        return scale * (dw - dw.mean(dim=-1, keepdim=True))

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """√(hc) G(X) dw, shape (..., d), one reweighted gradient."""
        return self.landscape.weighted_grad(state, self.weights(t, self.noise.check_noise(state, dw, "dw")))

    def rate(self, t: float | Tensor, state: Tensor, dw_over_dt: Tensor) -> Tensor:
        """Drift and noise: at order 1 in one backward pass."""
        if self.order > 1:
            return super().rate(t, state, dw_over_dt)
        weights = self.weights(t, self.noise.check_noise(state, dw_over_dt))
        return self.landscape.weighted_grad(state, weights - 1 / self.landscape.size)

    def ito_correction(self, t: float | Tensor, state: Tensor) -> Tensor:
        """½ Σ_j (∂σ_j)σ_j = (hc/4) ∇tr D, shape (..., d)."""
        one_step, c = self.sampler.variance_factor(), self.sampler.diffusion_factor()
        return super().ito_correction(t, state) * (c / one_step if one_step else 0.0)


@final
@dataclass(frozen=True)
class NoisyModifiedEquation(GradientEquation):
    r"""dX = −∇f dt + √h σ(X) dW with a given noise, order 1; order 2 with the drift −∇(f + (h/4)‖∇f‖²).

    ``noise``: any GradientNoise of the landscape's dimension: isotropic or diagonal of equal trace, analytic, of
    labels. It models the descent θ' = θ − h(∇f + σ(θ)ξ). Raises TypeError or ValueError for invalid arguments.
    """

    landscape: Landscape
    h: float
    noise: GradientNoise
    order: int = 1
    schedule: Schedule | None = None

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_noise(self.noise, self.landscape)
        check_order(self.order, self.landscape, type(self).__name__)
        if self.schedule is not None:
            check_callable("schedule", self.schedule)


@final
@dataclass(frozen=True)
class Stratonovich(SameNoise):
    r"""The Itô equation of a stochastic flow whose own equation is read in Stratonovich's sense.

    dX = a dt + σ ∘ dW is dX = (a + ½ Σ_j (∂σ_j)σ_j) dt + σ dW. For additive noise both senses agree.
    """

    flow: StochasticFlow

    def __post_init__(self) -> None:
        if not isinstance(self.flow, StochasticFlow):
            raise TypeError(f"flow must be a StochasticFlow, got {type(self.flow).__name__}")

    @property
    def landscape(self) -> Landscape:  # type: ignore[override]
        """The landscape of the flow."""
        return self.flow.landscape

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """Itô's drift a + ½ Σ_j (∂σ_j)σ_j."""
        return self.flow.velocity(t, state) + self.flow.ito_correction(t, state)


def check_order(order: int, landscape: Landscape, who: str) -> None:
    """Raise unless the order is 1 or 2; warn if order 2 takes second derivatives of a landscape with kinks."""
    if check_count("order", order) > HIGHEST:
        raise ValueError(
            f"order must be at most {HIGHEST}, the highest implemented, got {order}: at order 3 the noise term changes"
        )
    warn_smoothness(landscape, order, who)
