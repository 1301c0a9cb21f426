r"""First passages of many paths, by the project's own engines, and the mean time to them where some never arrive."""

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

from ..lab.store import check_uninterrupted

SEGMENT = 200  # steps between the sortings out of paths that have arrived
NORMAL = 1.96  # standard errors on either side of a 95 % interval
FEW = 5  # arrivals below which a rate is bounded and not estimated

Reached = Callable[[Tensor], Tensor]


class Arrival:
    """The observer that notes the first step after which each path has ``reached``: θ (n, d) ↦ (n,) of bool."""

    name = "arrival"
    every = 1

    def __init__(self, reached: Reached, theta0: Tensor):
        self._reached = reached
        self.step = torch.zeros(len(theta0), dtype=torch.int64, device=theta0.device)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """Notes step k; nothing to keep in the trajectory."""
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
    r"""When each path from θ0 (n, d) is first seen where ``reached`` holds; ∞ where not by the horizon; (n,).

    Paths are looked at after every step, of dt for a flow and of h for a descent: a passage is dated to the end of its
    step, and one that is undone within a step is not seen. Those that have arrived are taken out every ``segment``
    steps. Raises ValueError for a start that is there already or a horizon of no whole number of steps, ArithmeticError
    where a path leaves the finite numbers.
    """
    check_count("segment", segment)
    step = model.h if isinstance(model, Descent) else check_positive("dt", dt)  # type: ignore[arg-type]
    steps = round(check_positive("horizon", horizon) / step)
    if steps < 1 or abs(steps * step - horizon) > 1e-9 * horizon:
        raise ValueError(f"horizon must be a whole number of steps of {step:g}, got {horizon!r}")
    if bool(reached(theta0).any()):
        raise ValueError("theta0 must lie where the passage is still to come")
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
    """A run of ``steps`` steps, watched, whose last state alone is kept."""
    if isinstance(model, Flow):
        assert dt is not None
        times = torch.arange(steps + 1, dtype=torch.float64) * dt
        run = integrate(model, theta, times, dt=dt, method=method, seed=seed, keep="last", observers=[watch])
    else:
        run = descend(model, theta, steps, seed=seed, keep="last", observers=[watch])
    check_uninterrupted(run)
    if not bool(run.alive.all()):
        raise ArithmeticError(f"{type(model).__name__}: {run.status.sentence}")
    return run


@dataclass(frozen=True)
class MeanTime:
    """A mean time with its standard error; where too few of the paths arrived NaN, and a bound below it at 95 %."""

    value: float
    error: float
    bound: float
    arrived: int
    paths: int

    @property
    def interval(self) -> tuple[float, float]:
        """95 %, on the logarithm, on which times over decades are nearly normal; (bound, ∞) where few arrived."""
        if math.isnan(self.value):
            return self.bound, math.inf
        factor = math.exp(NORMAL * self.error / self.value)
        return self.value / factor, self.value * factor


def mean_time(times: Tensor, horizon: float, settled: float) -> MeanTime:
    r"""The mean of times (n,) of which those not by the ``horizon`` L are ∞.

        E T = E min(T, L) + P(T > L)/r,    r = #{settled < T ≤ L} / Σ (min(T, L) − settled)₊

    The first term is the mean of what was seen, Kaplan and Meier's restricted mean, as all are watched for the same L.
    The second takes the rate of arrivals, after paths have forgotten their start, to stay as it is from ``settled`` to
    L (maximum likelihood with censored times). Where all arrive this is the plain mean, and nothing is taken for
    granted. The standard error is that of the sum to first order in each path's share of it. Where fewer than ``FEW``
    arrive from ``settled`` on, there is the bound that a Poisson number of arrivals gives.
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
        most = float(chi2.ppf(0.95, 2 * float(events.sum()) + 2)) / 2  # mean number of events at 95 %
        return MeanTime(math.nan, math.nan, float(exposure.sum()) / most, arrived, n)
    if arrived == n:
        return MeanTime(float(seen.mean()), float(seen.std()) / math.sqrt(n), 0.0, n, n)
    share, rest, rate = late.mean(), exposure.mean(), events.mean()
    each = seen + rest / rate * (late - share) + share / rate * (exposure - rest - rest / rate * (events - rate))
    value = seen.mean() + share * rest / rate
    return MeanTime(float(value), float(each.std()) / math.sqrt(n), 0.0, arrived, n)
