r"""Rates and momenta set by optimal control of SGD's stochastic equation: cSGD and cMSGD.

Each coordinate is modelled separately as f = ½a(x − b)² with gradient noise of variance Σ. At the rate uh, 0 ≤ u ≤ 1,
the stochastic modified equation is dx = −ua(x − b)dt + u√(hΣ)dW, and m = ½a E(x − b)², the excess loss, obeys

    ṁ = −2aum + ½ahΣu²,   minimal at   u* = min(1, 2m/(hΣ)) if a > 0, and u* = 1 if a ≤ 0;

with momentum, the decay of m is fastest at μ* = min{(1 − 2√(ha))₊, (1 − hΣ/(4m))₊} if a > 0: critical damping while
m is large, less momentum if noise dominates. Li, Tai & E 2017, arXiv 1511.06251, section 4.

**Estimates.** From moving averages ⟨·⟩ over the run of g, g², x, x² and gx, g the mini-batch gradient:
a = (⟨gx⟩ − ⟨g⟩⟨x⟩)/(⟨x²⟩ − ⟨x⟩²), the slope of g regressed on x, and Σ = ⟨g²⟩ − ⟨g⟩². The excess loss is an
``ExcessLoss``: (Eg)² = 2am gives ``SquaredMean``, m = ½⟨g⟩²/a, which is zero at a minimum: the rate anneals once the
mean of the gradient is small compared with its noise. The authors' code has ``MeanSquare``, m = ½⟨g²⟩/a, which contains
½Σ/a: with it u* ≥ min(1, 1/(ah)) everywhere and the rate does not anneal.

**Taken from the authors' published code.** u and μ are moving averages of u* and μ* with the same decay rate as the
other averages, β = β_min + (β_max − β_min) Σ/⟨g²⟩, a long memory if noise dominates; averages are stored as means and
centred second moments, by a recursion that equals that of ⟨x²⟩ − ⟨x⟩² without its cancellation; a step takes the
u or μ of the steps before it, so that its mean is −uh∇f.

**Different here.** Averages start at the first step's values, not at zero, so that results do not depend on the origin.
If a is 0/0, as at the first step and in a coordinate that has not moved, u or μ is unchanged.

**Limit of the annealing.** u* = 0 if ⟨g⟩ = 0, but an average of finite memory does not vanish: u tends to a stationary
law and not to zero. If x moves by noise alone, with steps hu√Σ, g regressed on x over the memory overestimates a by
about (1 − β)/(hu), and ⟨g⟩² is about Σ(1 − β)/2; so u* ≈ u/2 and u decays geometrically, until ⟨g⟩ is again dominated
by the remaining a(x − b). On a quadratic with h = 0.3 and b = 2 the median of u ends at 0.010 for β_max = 0.99 and
0.002 for 0.999, with excursions to a few tenths, and E f at 2 to 3 % of SGD's floor and below 1 %.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_momentum, check_point
from flows.descent import MinibatchDescent
from flows.descents.gradient import GradientDescent, HeavyBall
from landscapes import FiniteSum, UnsupportedError
from landscapes.errors import check_real, short_form
from landscapes.noise import covariance_diagonal

DECAYS = (0.9, 0.99)  # the authors' defaults for cSGD


@dataclass(frozen=True)
class Averages:
    """Moving averages, each (..., d): means of g and x, their variances and covariance, and the decay rate β."""

    grad: Tensor
    theta: Tensor
    grad_variance: Tensor
    theta_variance: Tensor
    covariance: Tensor
    decay: Tensor

    @classmethod
    def of_one(cls, grad: Tensor, theta: Tensor, decay: float) -> Averages:
        """The averages of one observation."""
        nothing = torch.zeros_like(grad)
        return cls(grad, theta, nothing, nothing, nothing, torch.full_like(grad, decay))

    def update(self, grad: Tensor, theta: Tensor) -> Averages:
        """The averages with one more observation, of weight 1 − β."""
        # Centred moments are updated directly: ⟨g²⟩ − ⟨g⟩², ⟨x²⟩ − ⟨x⟩² and ⟨gx⟩ − ⟨g⟩⟨x⟩ would cancel.
        decay, new = self.decay, 1 - self.decay
        g, x = grad - self.grad, theta - self.theta
        return Averages(
            self.grad + new * g,
            self.theta + new * x,
            decay * (self.grad_variance + new * g * g),
            decay * (self.theta_variance + new * x * x),
            decay * (self.covariance + new * g * x),
            decay,
        )

    def adapt_decay(self, shortest: float, longest: float) -> Averages:
        """The averages with β = β_min + (β_max − β_min) Σ/⟨g²⟩ for the next observation; β_min if ⟨g²⟩ = 0."""
        square = self.grad * self.grad + self.grad_variance
        share = torch.where(square > 0, self.grad_variance / square, 0.0)
        return Averages(
            self.grad,
            self.theta,
            self.grad_variance,
            self.theta_variance,
            self.covariance,
            shortest + (longest - shortest) * share,
        )

    def curvature(self) -> Tensor:
        """a, shape (..., d); NaN if x has not varied."""
        return self.covariance / self.theta_variance

    def relax(self, value: Tensor, target: Tensor) -> Tensor:
        """βvalue + (1 − β)target; the value if the target is NaN."""
        relaxed = self.decay * value + (1 - self.decay) * target
        return torch.where(target.isnan(), value, relaxed)


class ExcessLoss(ABC):
    """An estimator of m, the excess loss of a coordinate, from averages of its gradient."""

    @abstractmethod
    def square(self, averages: Averages) -> Tensor:
        """2am, shape (..., d): the estimate of (Eg)²."""


@final
@dataclass(frozen=True)
class SquaredMean(ExcessLoss):
    """m = ½⟨g⟩²/a: the rate anneals at a minimum."""

    def square(self, averages: Averages) -> Tensor:
        """⟨g⟩²."""
        return averages.grad * averages.grad


@final
@dataclass(frozen=True)
class MeanSquare(ExcessLoss):
    """m = ½⟨g²⟩/a, as in the authors' code: it includes the noise, and the rate does not anneal."""

    def square(self, averages: Averages) -> Tensor:
        """⟨g²⟩ = ⟨g⟩² + Σ."""
        return averages.grad * averages.grad + averages.grad_variance


def best_rate(averages: Averages, excess: ExcessLoss, h: float) -> Tensor:
    """u* = min(1, 2m/(hΣ)) if a > 0, 1 if a ≤ 0, NaN if a is; shape (..., d)."""
    a = averages.curvature()
    signal, noise = excess.square(averages), h * a * averages.grad_variance
    inside = signal < noise  # false if a ≤ 0, as the signal is not negative
    return torch.where(a.isnan(), a, torch.where(inside, signal / noise, 1.0))


def best_momentum(averages: Averages, excess: ExcessLoss, h: float) -> Tensor:
    """μ* = min{(1 − 2√(ha))₊, (1 − hΣ/(4m))₊} if a > 0, 1 if a ≤ 0, NaN if a is; shape (..., d)."""
    a = averages.curvature()
    signal, noise = excess.square(averages), h * a * averages.grad_variance
    ratio = torch.where(noise > 0, noise / (2 * signal), 0.0)  # hΣ/(4m); no constraint without noise
    damped = torch.minimum(1 - 2 * (h * a.abs()).sqrt(), 1 - ratio).clamp(min=0)
    return torch.where(a.isnan(), a, torch.where(a > 0, damped, 1.0))


@dataclass(frozen=True)
class ControlledState:
    """θ, the last step v, and the control u or μ, all (..., d); the averages; the order of the examples."""

    theta: Tensor
    velocity: Tensor
    control: Tensor
    averages: Averages | None
    order: Tensor


class ControlledDescent(MinibatchDescent):
    """Base of cSGD and cMSGD: mini-batches, averages and a control for each coordinate."""

    landscape: FiniteSum
    h: float
    batch_size: int
    excess: ExcessLoss
    decay: tuple[float, float]
    sampling: str

    def __post_init__(self) -> None:
        self.check_minibatches()
        if not isinstance(self.excess, ExcessLoss):
            given = short_form(self.excess)
            raise TypeError(f"excess must be an ExcessLoss, SquaredMean() or MeanSquare(), got {given}")
        check_decay(self.decay)

    @property
    def couples(self) -> bool:
        return False

    @abstractmethod
    def target(self, averages: Averages) -> Tensor:
        """u* or μ*, (..., d)."""

    @abstractmethod
    def move(self, state: ControlledState, grad: Tensor) -> Tensor:
        """The step v' (..., d) for the mini-batch gradient ``grad`` (..., d)."""

    def begin(self, theta0: Tensor, control: float) -> ControlledState:
        """θ0 at rest, without averages. Raises UnsupportedError for complex θ0."""
        controls = torch.full_like(check_real_theta(theta0), control)
        return ControlledState(theta0, torch.zeros_like(theta0), controls, None, self.first_order(theta0))

    def observe(self, state: ControlledState, grad: Tensor) -> tuple[Averages, Tensor]:
        """The averages and the control after this step's gradient."""
        if state.averages is None:
            return Averages.of_one(grad, state.theta, self.decay[0]), state.control
        averages = state.averages.update(grad, state.theta)
        return averages.adapt_decay(*self.decay), averages.relax(state.control, self.target(averages))

    def step(self, state: ControlledState, k: int, generator: torch.Generator) -> ControlledState:
        """One step with the control of the steps before it; the control is then updated with this step's gradient."""
        index, order = self.sampler.draw(state.order, k, generator)
        grad = self.landscape.batch_grad(state.theta, index)
        velocity = self.move(state, grad)
        averages, control = self.observe(state, grad)
        return ControlledState(state.theta + velocity, velocity, control, averages, order)

    def position(self, state: ControlledState) -> Tensor:
        return state.theta

    def mean_step(self, state: ControlledState, k: int) -> Tensor:
        """θ after a step along ∇f with the state's controls."""
        return state.theta + self.move(state, self.landscape.grad(state.theta))

    def gradient_variances(self, theta: Tensor) -> Tensor:
        """c·diag D(θ), shape (..., d)."""
        return self.sampler.variance_factor() * covariance_diagonal(self.landscape, theta)


@final
@dataclass(frozen=True)
class ControlledGradientDescent(ControlledDescent):
    r"""cSGD  θ' = θ − h u∘g_B(θ), with a multiple u ∈ [0, 1] of the largest rate h for each coordinate, u_0 = 1.

    u follows u* = min(1, 2m/(hΣ)), estimated along the run (see ``flows.descents.controlled``). ``excess`` is the
    estimator of m: ``SquaredMean()`` anneals at a minimum, as far as the memory allows; ``MeanSquare()`` is the
    authors' code and does not. ``decay``: the smallest and the largest decay rate of the averages, equal for a constant
    rate.

    The rates of the coordinates differ and have no common sum: the clock is t = k·h by definition. θ is real.
    Mini-batches are drawn as in ``StochasticGradientDescent``; a step costs b/N of a gradient. ``noise_at`` returns a
    state's noise; ``step_noise`` raises UnsupportedError, as θ does not determine u.
    Li, Tai & E 2017, arXiv 1511.06251. Raises TypeError or ValueError for invalid arguments.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    excess: ExcessLoss = field(default_factory=SquaredMean)
    decay: tuple[float, float] = DECAYS
    sampling: str = "replacement"

    def start(self, theta0: Tensor) -> ControlledState:
        """θ0 with u = 1, without averages. Raises UnsupportedError for complex θ0."""
        return self.begin(theta0, 1.0)

    def target(self, averages: Averages) -> Tensor:
        return best_rate(averages, self.excess, self.h)

    def move(self, state: ControlledState, grad: Tensor) -> Tensor:
        return -self.h * state.control * grad

    def full_batch(self) -> GradientDescent:
        """Gradient descent at the largest rate h: the mean of a step with u = 1, as the first."""
        return GradientDescent(self.landscape, self.h)

    def noise_at(self, state: ControlledState) -> Tensor:
        """Root mean square distance of the next step from its mean −hu∘∇f, h·√(c Σ_i u_i² D_ii(θ)), shape (...,)."""
        return self.h * (state.control.square() * self.gradient_variances(state.theta)).sum(dim=-1).sqrt()

    def step_noise(self, theta: Tensor) -> Tensor:
        """Raises UnsupportedError: θ does not determine u."""
        raise UnsupportedError(
            "the noise of a step depends on the rates of the run, which theta does not determine: use "
            "noise_at(state), or StochasticGradientDescent for the noise at the largest rate"
        )


@final
@dataclass(frozen=True)
class ControlledMomentumDescent(ControlledDescent):
    r"""cMSGD  v' = μ∘v − h g_B(θ),  θ' = θ + v',  v_0 = 0, with a momentum μ ∈ [0, 1] for each coordinate.

    μ starts at ``momentum`` and follows μ* = min{(1 − 2√(ha))₊, (1 − hΣ/(4m))₊}, 1 if a ≤ 0, estimated along the run
    (see ``flows.descents.controlled``). ``excess`` and ``decay`` are those of ``ControlledGradientDescent``; with
    ``SquaredMean()`` the momentum tends to zero at a minimum, and the rate stays h.

    The clock is t = k·h. θ is real. Mini-batches are drawn as in ``StochasticGradientDescent``; a step costs
    b/N of a gradient. Li, Tai & E 2017, arXiv 1511.06251. Raises TypeError or ValueError for invalid arguments.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    momentum: float = 0.9
    excess: ExcessLoss = field(default_factory=SquaredMean)
    decay: tuple[float, float] = DECAYS
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_momentum(self.momentum)

    def start(self, theta0: Tensor) -> ControlledState:
        """θ0 at rest, without averages. Raises UnsupportedError for complex θ0."""
        return self.begin(theta0, self.momentum)

    def target(self, averages: Averages) -> Tensor:
        return best_momentum(averages, self.excess, self.h)

    def move(self, state: ControlledState, grad: Tensor) -> Tensor:
        return torch.add(state.control * state.velocity, grad, alpha=-self.h)

    def velocity(self, state: ControlledState) -> Tensor:
        return state.velocity

    def full_batch(self) -> HeavyBall:
        """Heavy ball at the initial momentum: the mean of a step while μ has this value."""
        return HeavyBall(self.landscape, self.h, self.momentum)

    def step_noise(self, theta: Tensor) -> Tensor:
        """h·√(c·tr D(θ)), independent of v and μ, shape (...,)."""
        return self.h * self.gradient_variances(theta).sum(dim=-1).sqrt()


def check_decay(decay: tuple[float, float]) -> None:
    """Raise unless decay is a pair of rates with 0 ≤ smallest ≤ largest < 1."""
    if not isinstance(decay, tuple) or len(decay) != 2:
        raise TypeError(f"decay must be a pair (smallest, largest) of decay rates, got {short_form(decay)}")
    smallest, largest = check_real("decay[0]", decay[0]), check_real("decay[1]", decay[1])
    if not 0 <= smallest <= largest < 1:
        raise ValueError(f"decay must hold rates with 0 <= smallest <= largest < 1, got {decay!r}")


def check_real_theta(theta: Tensor) -> Tensor:
    """Return θ; raise UnsupportedError if it is complex."""
    if check_point("theta", theta).is_complex():
        raise UnsupportedError(f"controlled descents need real theta, got {theta.dtype}; give theta.real")
    return theta
