"""First passages of many paths by the engines of flows, and the mean passage time if some paths never arrive."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.stats import chi2
from torch import Tensor

from flows import Descent, Flow, descend, integrate
from flows.engines.trajectory import Trajectory
from flows.ensembles.blocks import block_seed
from landscapes.errors import check_count, check_nonnegative, check_positive

SEGMENT = 200  # steps between removals of the paths that have arrived
NORMAL = 1.96  # standard errors on either side of a 95 % interval
FEW = 5  # arrivals below which a rate is bounded instead of estimated

Reached = Callable[[Tensor], Tensor]


class Arrival:
    """The observer that records the first step after which each path has ``reached``: θ (n, d) ↦ (n,) of bool."""

    name = "arrival"
    every = 1

    def __init__(self, reached: Reached, theta0: Tensor):
        self._reached = reached
        self.step = torch.zeros(len(theta0), dtype=torch.int64, device=theta0.device)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """Record step k; nothing is stored in the trajectory."""
        self.step = torch.where((self.step == 0) & self._reached(theta), k, self.step)
        return {}


def passage_times(
    model: Flow | Descent,
    theta0: Tensor,
    reached: Reached,
    horizon: float,
    *,
    seed: int,
    dt: float | None = None,
    method: str | None = None,
    segment: int = SEGMENT,
) -> Tensor:
    r"""First observed passage time of each path from θ0 (n, d) to ``reached``; ∞ if not before the horizon; (n,).

    Paths are observed after every step, of dt for a flow and of h for a descent: a passage is dated to the end of its
    step, and one that is undone within a step is missed. Paths that have arrived are removed every ``segment`` steps.
    Raises ValueError for a start that has already arrived or a horizon of a fractional number of steps,
    ArithmeticError if a path becomes non-finite.
    """
    check_count("segment", segment)
    step = model.h if isinstance(model, Descent) else check_positive("dt", dt)  # type: ignore[arg-type]
    steps = round(check_positive("horizon", horizon) / step)
    if steps < 1 or abs(steps * step - horizon) > 1e-9 * horizon:
        raise ValueError(f"horizon must be a whole number of steps of {step:g}, got {horizon!r}")
    if bool(reached(theta0).any()):
        raise ValueError("theta0 must lie outside of the target set")
    times = torch.full((len(theta0),), math.inf, dtype=torch.float64)
    going, theta = torch.arange(len(theta0)), theta0
    for number, first in enumerate(range(0, steps, segment)):
        watch = Arrival(reached, theta)
        run = advance(model, theta, min(segment, steps - first), dt, method, block_seed(seed, number), watch)
        arrived = (watch.step > 0).cpu()
        times[going[arrived]] = (first + watch.step.cpu()[arrived]).double() * step
        going, theta = going[~arrived], run.theta[-1][watch.step == 0]
        if not len(going):
            break
    return times


def advance(
    model: Flow | Descent,
    theta: Tensor,
    steps: int,
    dt: float | None,
    method: str | None,
    seed: int,
    watch: Arrival,
) -> Trajectory:
    """A run of ``steps`` steps with the observer; only its last state is kept."""
    if isinstance(model, Flow):
        assert dt is not None
        times = torch.arange(steps + 1, dtype=torch.float64) * dt
        run = integrate(model, theta, times, dt=dt, method=method, seed=seed, keep="last", observers=[watch])
    else:
        run = descend(model, theta, steps, seed=seed, keep="last", observers=[watch])
    return run.check_finished(type(model).__name__)


@dataclass(frozen=True)
class MeanTime:
    """A mean time with its standard error; if too few paths arrived NaN, with a lower bound at 95 %."""

    value: float
    error: float
    bound: float
    arrived: int
    paths: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval on the logarithm, where times over decades are nearly normal; (bound, ∞) if few arrived."""
        if math.isnan(self.value):
            return self.bound, math.inf
        factor = math.exp(NORMAL * self.error / self.value)
        return self.value / factor, self.value * factor


def mean_time(times: Tensor, horizon: float, settled: float) -> MeanTime:
    r"""The mean of times (n,) of which those not by the ``horizon`` L are ∞.

        E T = E min(T, L) + P(T > L)/r,    r = #{settled < T ≤ L} / Σ (min(T, L) − settled)₊

    The first term is the mean of the censored times, Kaplan and Meier's restricted mean, as all have the same L. The
    second assumes a constant rate of arrivals from ``settled``, when the law no longer depends on the start, to L and
    beyond (maximum likelihood with censored times). If all paths arrive this is the plain mean, without any assumption.
    The standard error is that of the sum to first order in each path's share of it. If fewer than ``FEW`` arrive after
    ``settled``, the bound is that of a Poisson number of arrivals.
    """
    check_positive("horizon", horizon)
    if check_nonnegative("settled", settled) >= horizon:
        raise ValueError(f"settled must be before the horizon {horizon!r}, got {settled!r}")
    seen = times.double().clamp(max=horizon)
    late, exposure = (times > horizon).double(), (seen - settled).clamp(min=0)
    events = (times > settled).double() - late
    n = len(times)
    arrived = n - int(late.sum())
    if arrived < n and float(events.sum()) < FEW:
        most = float(chi2.ppf(0.95, 2 * float(events.sum()) + 2)) / 2  # 95 % bound of the mean number
        return MeanTime(math.nan, math.nan, float(exposure.sum()) / most, arrived, n)
    if arrived == n:
        return MeanTime(float(seen.mean()), float(seen.std()) / math.sqrt(n), 0.0, n, n)
    share, rest, rate = late.mean(), exposure.mean(), events.mean()
    # influence function of the value: its standard deviation includes the correlations between share, rest and rate
    each = seen + rest / rate * (late - share) + share / rate * (exposure - rest - rest / rate * (events - rate))
    value = seen.mean() + share * rest / rate
    return MeanTime(float(value), float(each.std()) / math.sqrt(n), 0.0, arrived, n)
