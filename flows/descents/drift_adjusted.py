r"""Drift-adjusted learning rates (DAL-p): a rate from the curvature along the gradient, h(θ) = min(2/vᵖ, cap).

The drift of gradient descent from gradient flow is θ_{k+1} − X(h; θ_k) = −(h²/2)Hg + O(h³); with v = ‖Hg‖/‖g‖ its
size is (h²/2)v times that of the gradient. p = 1 is DAL, p = 0 a constant rate given by the user. Rosca, Wu, Qin &
Dherin 2023, arXiv 2302.01952.

**On quadratics** with H ⪰ 0 and largest eigenvalue λ₀, from starts with a component along u₀, for every window:
v ≤ λ₀ and hence h ≥ min(cap, 2/λ₀ᵖ), so

- cap < 2/λ₀: every mode contracts, the run converges for every p.
- p = 1, cap ≥ 2/λ₀: ends in a 2-cycle along u₀, h → 2/λ₀, not at the minimum. Mode 0 never decreases, as
  |1 − hλ₀| ≥ 1, and every other mode decreases relative to it, so v → λ₀.
- p < 1, λ₀ > 1, cap > 2/λ₀: diverges along u₀; asymptotically the gradient grows by λ₀ min(cap, 2/λ₀ᵖ) − 1 > 1 a step.
- p < 1, λ₀ < 1: converges geometrically, if not monotonically. Mode i can grow only if hλ_i > 2, that is
  v < λ_i^{1/p} < λ_i, which bounds the modes up to i by a multiple of the flatter ones. The flattest, with
  |1 − hλ| < 1 always, tends to zero, and by induction so does every mode.

For p < 1 convergence thus depends on whether λ₀ exceeds 1 in the units of the loss: 2/vᵖ has the units of a learning
rate at p = 1 only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model, check_point
from flows.declared import Clock
from flows.descent import Descent, MinibatchDescent
from landscapes import Expansion, FiniteSum, Landscape, UnsupportedError
from landscapes.errors import MOST, check_choice, check_count, check_float_tensor, check_positive, check_real

DRIFTS = ("exact", "difference")


def norm(vector: Tensor) -> Tensor:
    """‖x‖ over the last dimension, (...,), also if squares under- or overflow; NaN if x is not finite."""
    scale = vector.abs().amax(dim=-1)
    safe = torch.where(scale > 0, scale, 1)
    return safe * torch.linalg.vector_norm(vector / safe[..., None], dim=-1)


def unit(vector: Tensor) -> Tensor:
    """x/‖x‖ over the last dimension, (..., d); zero if x is."""
    scale = vector.abs().amax(dim=-1, keepdim=True)
    scaled = vector / torch.where(scale > 0, scale, 1)  # before the norm: ‖x‖ may lie outside the dtype's range
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1)


def drift_ratio(point: Expansion) -> Tensor:
    """v = ‖Hg‖/‖g‖, shape (...,), by a gradient and an HVP; zero if g is. Raises UnsupportedError at complex θ."""
    check_real_theta(point.theta)
    return norm(point.hvp(unit(point.grad)))


def difference_length(theta: Tensor, precision: torch.dtype | None = None) -> Tensor:
    r"""ε = √eps (1 + ‖θ‖), shape (...,): the displacement of a difference; eps is that of θ's dtype, or ``precision``.

    Let S = 1 + ‖θ‖ be the scale on which the loss varies. g at θ + εĝ has a rounding error of about eps·λ₀S, from
    its evaluation and from the sum; the difference adds (ε/2)‖T[ĝ, ĝ]‖ ≈ (ε/2)λ₀/S. The sum of eps·λ₀S/ε and
    ελ₀/(2S) is minimal at ε = √(2eps)·S, with the value √(2eps)·λ₀; the usual √eps·S gives 1.5 √eps·λ₀, 6 % more.
    """
    return torch.finfo(theta.dtype if precision is None else precision).eps ** 0.5 * (1 + norm(theta))


def difference_ratio(gradient: Callable[[Tensor], Tensor], theta: Tensor, grad: Tensor) -> Tensor:
    r"""v ≈ ‖g(θ + εĝ) − g(θ)‖/ε, shape (...,), by one more gradient; zero if g is. ``grad`` is g(θ).

    The error is about 1.5 √eps·λ₀ if H, of size λ₀, varies on the scale 1 + ‖θ‖ (see ``difference_length``): 2e-8 λ₀
    in float64, 5e-4 λ₀ in float32. Across a kink the difference includes the jump of the gradient, which H does not.
    """
    length = difference_length(theta)
    moved = theta + length[..., None] * unit(grad)
    return norm(gradient(moved) - grad) / length


def adjusted_rate(v: Tensor, power: float, cap: float) -> Tensor:
    """h = clip(2/vᵖ, 0, cap) for v of any shape, the cap where v = 0. Raises ValueError unless p > 0 and cap > 0."""
    check_float_tensor("v", v)
    if v.is_complex():
        raise TypeError(f"v must be real, as a ratio of norms, got {v.dtype}")
    if check_real("power", power) == 0:
        raise ValueError("power must be above 0, got 0: the rate is then a constant chosen by the user, not 2")
    return (2 / v ** check_positive("power", power)).clamp(0, check_positive("cap", cap))


def check_real_theta(theta: Tensor) -> Tensor:
    """Return θ; raise UnsupportedError if it is complex."""
    if check_point("theta", theta).is_complex():
        raise UnsupportedError(f"drift-adjusted rates need real theta, got {theta.dtype}; give theta.real")
    return theta


def check_adjustment(power: float, cap: float, window: int, drift: str) -> None:
    """Raise unless power ≥ 0, cap > 0, window ≥ 1 and drift is "exact" or "difference"."""
    if check_real("power", power) < 0:
        raise ValueError(f"power must be at least 0, got {power!r}; 0 is the constant rate, 1 is DAL")
    check_positive("cap", cap)
    check_count("window", window, maximum=MOST)
    check_choice("drift", drift, DRIFTS)


@dataclass(frozen=True)
class DriftState:
    """θ (..., d), the last values of v (..., m), m ≤ window, and the sum of the rates taken (...,), float64 on the CPU.

    Every batch member has its own rate, and hence its own time.
    """

    theta: Tensor
    recent: Tensor
    time: Tensor


def start_state(theta0: Tensor) -> DriftState:
    """θ0 at time zero, without values of v."""
    check_real_theta(theta0)
    return DriftState(theta0, theta0[..., :0], torch.zeros(theta0.shape[:-1], dtype=torch.float64))


def constant_step(state: DriftState, grad: Tensor, h: float) -> DriftState:
    """θ − hg, in the arithmetic of ``GradientDescent``."""
    return DriftState(torch.add(state.theta, grad, alpha=-h), state.recent, state.time + h)


def adjusted_step(state: DriftState, grad: Tensor, v: Tensor, window: int, power: float, cap: float) -> DriftState:
    """θ − h g with h from the mean of the last ``window`` values of v, of which ``v`` (...,) is the latest."""
    recent = torch.cat([state.recent, v[..., None]], dim=-1)[..., -window:]
    rate = adjusted_rate(recent.mean(dim=-1), power, cap)
    theta = torch.addcmul(state.theta, rate[..., None], grad, value=-1)
    return DriftState(theta, recent, state.time + rate.to("cpu", torch.float64))


def common_time(state: DriftState) -> float:
    """The common time of all finite members; UnsupportedError if their times differ."""
    times = state.time[state.theta.isfinite().all(dim=-1).cpu()]
    if times.numel() == 0:
        return float("nan")
    earliest, latest = float(times.min()), float(times.max())
    if latest - earliest > 1e3 * torch.finfo(state.theta.dtype).eps * latest:  # beyond rounding
        raise UnsupportedError(
            f"members of a batch have their own rates and have reached different times, t = {earliest:.6g} to "
            f"{latest:.6g}, but a run has one clock; run the members one by one"
        )
    return latest


@final
@dataclass(frozen=True)
class DriftAdjustedDescent(Descent):
    r"""Gradient descent at a drift-adjusted rate  θ_{k+1} = θ_k − h(θ_k) g(θ_k),  h = min(2/vᵖ, cap),  v = ‖Hg‖/‖g‖.

    ``power`` p: 1 is DAL, 0 gradient descent at the constant rate ``h``. ``window`` w: v is the mean of its last w
    values (of all if there are fewer). ``drift``: "exact" takes Hg by an HVP, a step costs a gradient and an HVP;
    "difference" takes it from a second gradient at θ + εĝ, a step costs two gradients (error: ``difference_ratio``).
    If g or Hg is zero the rate is the cap. Convergence on quadratics: see ``flows.descents.drift_adjusted``; with p = 1
    the cap must be below 2/λ₀.

    ``h`` is the rate at p = 0. At p > 0 no step uses it: it is the nominal rate, with which the h of compared flows
    must agree, while the clock is the sum of the rates taken; the flow to compare is one without an h,
    ``GradientFlow``. Batch members have their own rates, but ``descend`` needs one clock: it raises
    UnsupportedError as soon as their times differ; run them one by one. θ is real.

    Rosca et al. 2023, arXiv 2302.01952. Raises ValueError or TypeError unless h > 0, power ≥ 0, cap > 0, window ≥ 1.
    """

    landscape: Landscape
    h: float
    power: float = 1.0
    cap: float = 5.0
    window: int = 1
    drift: str = "exact"

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_adjustment(self.power, self.cap, self.window, self.drift)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def start(self, theta0: Tensor) -> DriftState:
        """θ0, without values of v. Raises UnsupportedError for complex θ0."""
        return start_state(theta0)

    def step(self, state: DriftState, k: int, generator: torch.Generator) -> DriftState:
        """θ − h(θ) g(θ), at each member's own rate."""
        if self.power == 0:
            return constant_step(state, self.landscape.grad(state.theta), self.h)
        if self.drift == "exact":
            point = self.landscape.expand(state.theta)
            grad, v = point.grad, drift_ratio(point)
        else:
            grad = self.landscape.grad(state.theta)
            v = difference_ratio(self.landscape.grad, state.theta, grad)
        return adjusted_step(state, grad, v, self.window, self.power, self.cap)

    def position(self, state: DriftState) -> Tensor:
        return state.theta

    def elapsed(self, k: int, state: DriftState) -> float:
        """Sum of the rates of the steps taken. Raises UnsupportedError if it differs between members."""
        return k * self.h if self.power == 0 else common_time(state)


@final
@dataclass(frozen=True)
class StochasticDriftAdjustedDescent(MinibatchDescent):
    r"""SGD at a drift-adjusted rate  θ_{k+1} = θ_k − h_B g_B(θ_k),  h_B = min(2/vᵖ, cap),  v = ‖H_B g_B‖/‖g_B‖.

    g_B and H_B are those of one mini-batch B, drawn as in ``StochasticGradientDescent`` (``batch_size`` b,
    ``sampling``), separately for each batch member; the other arguments are those of ``DriftAdjustedDescent``. A step
    costs b/N of a gradient and b/N of an HVP, or 2b/N of a gradient by "difference"; p = 0 is SGD at the constant rate
    h. The rate varies with the mini-batch, so a step's mean is not the full-batch step: ``step_noise``, and with it
    ``compare``, raise UnsupportedError at p > 0. Rosca et al. 2023, arXiv 2302.01952.
    Raises ValueError or TypeError as these two classes do.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    sampling: str = "replacement"
    power: float = 1.0
    cap: float = 5.0
    window: int = 1
    drift: str = "exact"

    def __post_init__(self) -> None:
        self.check_minibatches()
        check_adjustment(self.power, self.cap, self.window, self.drift)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def start(self, theta0: Tensor) -> tuple[DriftState, Tensor]:
        """θ0 without values of v, and the first order of the examples. Raises UnsupportedError for complex θ0."""
        return start_state(theta0), self.first_order(theta0)

    def step(self, state: tuple[DriftState, Tensor], k: int, generator: torch.Generator) -> tuple[DriftState, Tensor]:
        """θ − h_B g_B(θ), with each member's own mini-batch and rate."""
        before, order = state
        index, order = self.sampler.draw(order, k, generator)
        if self.power == 0:
            return constant_step(before, self.landscape.batch_grad(before.theta, index), self.h), order
        if self.drift == "exact":
            grad, v = self._exact_ratio(before.theta, index)
        else:
            grad = self.landscape.batch_grad(before.theta, index)
            v = difference_ratio(lambda theta: self.landscape.batch_grad(theta, index), before.theta, grad)
        return adjusted_step(before, grad, v, self.window, self.power, self.cap), order

    def _exact_ratio(self, theta: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        """g_B (..., d) and v (...,): members one at a time, as each has a finite sum of its own examples."""
        grads, ratios = [], []
        members = zip(theta.reshape(-1, theta.shape[-1]), index.reshape(-1, index.shape[-1]), strict=True)
        for member, examples in members:
            point = self.landscape.restrict(examples).expand(member)
            grads.append(point.grad)
            ratios.append(drift_ratio(point))
        return torch.stack(grads).reshape(theta.shape), torch.stack(ratios).reshape(theta.shape[:-1])

    def position(self, state: tuple[DriftState, Tensor]) -> Tensor:
        return state[0].theta

    def elapsed(self, k: int, state: tuple[DriftState, Tensor]) -> float:
        """Sum of the rates of the steps taken. Raises UnsupportedError if it differs between members."""
        return k * self.h if self.power == 0 else common_time(state[0])

    def full_batch(self) -> DriftAdjustedDescent:
        """The same rule on the full gradient; at p > 0 not the mean of a step, as its rate varies with the batch."""
        return DriftAdjustedDescent(self.landscape, self.h, self.power, self.cap, self.window, self.drift)

    def step_noise(self, theta: Tensor) -> Tensor:
        """h·√tr Cov(g_B) at p = 0, shape (...,). Raises UnsupportedError at p > 0, where the rate is random too."""
        if self.power != 0:
            raise UnsupportedError(
                f"the noise of a step has no closed form at power {self.power:g}, as the rate varies with the "
                "mini-batch; compare flows with DriftAdjustedDescent, or run this descent by descend"
            )
        return super().step_noise(theta)
