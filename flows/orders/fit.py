r"""Orders from errors along a ladder of learning rates: local slopes, a fitted order with its interval, and its range.

The model error of a rung is e(h) = C h^q (1 + c h + …), so that the slope of log e against log h between neighbouring
rungs is q + O(h). A rung is *trusted* if integration and rounding are below one per cent of its error. The order is
fitted on the finest trusted rungs, up to the largest h at which slopes agree with it, the end of the asymptotic range.
Slopes that drift one way (``orders.trend``) have no order yet, and no fit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
from scipy import stats

from flows.orders.trend import SlopeTrend, slope_trend
from landscapes.errors import as_list, check_count, check_nonnegative, check_positive, short_form

FRACTION = 0.01  # largest relative error by integration and rounding: the slope over a factor of two then errs by 0.03
# For rungs apart by two this deviation of a slope from the order means c h ≈ 0.14; the fit neglects its square.
TOLERANCE = 0.1
FEWEST = 3  # rungs of a fit: two slopes that agree
CONFIDENCE = 0.95


@dataclass(frozen=True)
class OrderFit:
    r"""log e = log C + q log h (+ c h for four or more rungs), by least squares on ladder[first:last + 1].

    ``order`` q; ``low``, ``high``: its interval at 95 %. Residuals are not noise but the next term of the series, so
    the half width is the sum of: Student's t times the standard error of the residuals; the change of q if the fit has
    one more correction or omits the coarsest rung, two estimates of its bias; and the effect of the recorded
    integration and rounding errors. On ladders with three random corrections it covers q for 97 % of those of eight
    rungs apart by two, and for 93 % of those of ten apart by 0.7. It reaches to the limit of the slopes' trend where
    they settle more slowly than h falls. Without the correction (three rungs) q is biased by about c h; with it, by
    O(h²). ``constant`` C; ``correction`` c, NaN for three rungs; ``rungs``: the number of rungs
    used, without untrusted ones.
    """

    order: float
    low: float
    high: float
    constant: float
    correction: float
    first: int
    last: int
    rungs: int


@dataclass(frozen=True)
class OrderStudy:
    r"""Errors along a ladder of decreasing learning rates h.

    ``ladder`` (L,); ``errors`` (L,), the largest over the batch, NaN if a run failed; ``floor``: smaller errors are
    attributed to rounding; ``integration_errors`` (L,), the distance to a looser integration, None if not measured;
    ``statuses`` (L,), the status of the runs of each rung, empty if not given; ``sharpness`` |λ|, the Hessian's
    eigenvalue of largest magnitude at θ0, NaN if unknown; ``quantity``: the name of the errors.
    """

    ladder: tuple[float, ...]
    errors: tuple[float, ...]
    floor: float
    integration_errors: tuple[float, ...] | None = None
    statuses: tuple[str, ...] = ()
    sharpness: float = math.nan
    quantity: str = "one-step error"

    @property
    def slopes(self) -> tuple[float, ...]:
        """log(e_i/e_{i+1}) / log(h_i/h_{i+1}), (L−1,); NaN if an error is zero or not finite."""
        rungs = zip(self.ladder, self.errors, strict=False)
        return tuple(slope(coarse, fine) for coarse, fine in pairwise(rungs))

    @property
    def uncertainties(self) -> tuple[float, ...]:
        """(integration error + rounding)/error of each rung (L,); infinite if the error is zero or not finite."""
        integration = self.integration_errors or (0.0,) * len(self.errors)
        return tuple(
            (i + FRACTION * self.floor) / e if 0 < e < math.inf and not math.isnan(i) else math.inf
            for e, i in zip(self.errors, integration, strict=True)
        )

    @property
    def trusted(self) -> tuple[bool, ...]:
        """Whether the error is the model's (L,): above the floor, and integration errors at most a hundredth of it."""
        integration = self.integration_errors or (0.0,) * len(self.errors)
        return tuple(
            self.floor < e < math.inf and i <= FRACTION * e for e, i in zip(self.errors, integration, strict=True)
        )

    @property
    def order(self) -> float:
        """The slope at the finest pair of rungs whose finer one is trusted, NaN if there is no such pair."""
        reliable = [s for s, t in zip(self.slopes, self.trusted[1:], strict=True) if t and not math.isnan(s)]
        return reliable[-1] if reliable else math.nan

    @cached_property
    def fit(self) -> OrderFit | None:
        """The order fitted on the largest window of the finest trusted rungs whose slopes all agree with it.

        Agreement is within 0.1 plus the effect of the rungs' uncertainties on a slope. None if fewer than three agree,
        or if the finest slopes drift.
        """
        trusted = [i for i, t in enumerate(self.trusted) if t]
        if self.drifts:
            return None
        for start in range(len(trusted) - FEWEST + 1):
            fitted = fit_order(self.ladder, self.errors, self.uncertainties, trusted[start:])
            if self._agrees(fitted.order, trusted[start:]):
                limit = None if self.trend is None else self.trend.limit
                return fitted if limit is None else include(fitted, limit)
        return None

    @cached_property
    def trend(self) -> SlopeTrend | None:
        """The trend of the slopes of the four finest trusted rungs; None if there are fewer."""
        trusted = [i for i, t in enumerate(self.trusted) if t]
        return slope_trend(self.ladder, self.errors, self.uncertainties, trusted)

    @property
    def drifts(self) -> bool:
        """Whether the finest slopes move one way without settling, so that the ladder ends before the order is seen."""
        return self.trend is not None and self.trend.drifts

    @property
    def least_order(self) -> float:
        """A lower bound of the order where rounding hides it: infinite if every error is rounding, the model exact.

        If only the finer rungs are: that of the slope from the last trusted error down to the floor. NaN if a run
        failed or no error is rounding.
        """
        small = [not e > self.floor for e in self.errors]
        if any(math.isnan(e) for e in self.errors) or not any(small):
            return math.nan
        first = small.index(True)
        if first == 0:
            return math.inf if all(small) else math.nan
        if not self.trusted[first - 1]:
            return math.nan
        return slope((self.ladder[first - 1], self.errors[first - 1]), (self.ladder[first], self.floor))

    @property
    def asymptotic_end(self) -> float:
        """The largest h from which all finer slopes agree with the fitted order; NaN without a fit."""
        return math.nan if self.fit is None else self.ladder[self.fit.first]

    def _agrees(self, order: float, window: Sequence[int]) -> bool:
        for i, j in pairwise(window):
            local = slope((self.ladder[i], self.errors[i]), (self.ladder[j], self.errors[j]))
            measured = (self.uncertainties[i] + self.uncertainties[j]) / math.log(self.ladder[i] / self.ladder[j])
            if not abs(local - order) <= TOLERANCE + measured:
                return False
        return True

    def __str__(self) -> str:
        width = max(14, len(self.quantity))
        lines = [f"{'h':>11}   {'hλ':>9}   {self.quantity:>{width}}   {'integration':>11}   {'slope':>6}"]
        integration = self.integration_errors or (math.nan,) * len(self.errors)
        rows = zip(self.ladder, self.errors, integration, (math.nan, *self.slopes), strict=True)
        for k, (h, e, i, s) in enumerate(rows):
            figures = [
                f"{h:11.4g}",
                f"{format_number(h * self.sharpness, '.4g'):>9}",
                f"{format_number(e, '.4e'):>{width}}",
            ]
            figures += [f"{format_number(i, '.1e'):>11}", f"{format_number(s, '.3f'):>6}{self._mark(k)}"]
            lines.append("   ".join(figures).rstrip())
        return "\n".join([*lines, self.sentence, f"observed order {self.observed}"])

    @property
    def observed(self) -> str:
        """The finest trusted slope, or its lower bound, in words where there is none."""
        if not math.isnan(self.order):
            return f"{self.order:.3f}"
        if math.isnan(self.least_order):
            return "none"
        return "at least any: exact" if math.isinf(self.least_order) else f"at least {self.least_order:.3f}"

    @property
    def sentence(self) -> str:
        """The fitted order, its interval and the end of the asymptotic range; or the reason why there is no fit."""
        if self.drifts:
            return f"no fitted order: not in the asymptotic range, the local slopes {self.trend}; add finer rungs"
        if self.fit is None:
            known = [e for e in self.errors if not math.isnan(e)]
            if known and max(known) <= self.floor:
                return "no fitted order: every error is rounding, the model is exact to this precision"
            few = "fewer than three rungs are trusted" if sum(self.trusted) < FEWEST else "slopes do not settle"
            remedy = (
                "add finer rungs" if few.startswith("slopes") else "add rungs above the rounding, or integrate tighter"
            )
            return f"no fitted order: {few}; {remedy}"
        fit = self.fit
        at = "" if math.isnan(self.sharpness) else f" (hλ = {self.asymptotic_end * self.sharpness:.3g})"
        blind = ", too few to see whether slopes drift" if self.trend is None else ""
        return (
            f"fitted order {fit.order:.4f}, 95 % interval [{fit.low:.4f}, {fit.high:.4f}], from {fit.rungs} rungs"
            f"{blind}; asymptotics end at h = {self.asymptotic_end:.4g}{at}"
        )

    def _mark(self, k: int) -> str:
        if self.statuses and self.statuses[k] != "finished":
            return f"  ({self.statuses[k]})"
        if self.errors[k] <= self.floor:
            return "  (rounding)"
        return "" if self.trusted[k] or math.isnan(self.errors[k]) else "  (integration)"


def include(fit: OrderFit, order: float) -> OrderFit:
    """The fit with its interval extended to an order."""
    return replace(fit, low=min(fit.low, order), high=max(fit.high, order))


def format_number(value: float, form: str) -> str:
    """A number in that format; empty for NaN."""
    return "" if math.isnan(value) else format(value, form)


def slope(coarse: tuple[float, float], fine: tuple[float, float]) -> float:
    """The slope of log e against log h between two rungs (h, e); NaN if an error is zero or not finite."""
    (h, e), (k, f) = coarse, fine
    return math.log(e / f) / math.log(h / k) if 0 < f < math.inf and 0 < e < math.inf else math.nan


def check_window(window: Sequence[int], size: int) -> list[int]:
    """The indices of a fit's rungs; raise unless they are three or more, increasing, and below ``size``."""
    places = [check_count("window", i, minimum=0, maximum=size - 1) for i in as_list("window", window, "indices")]
    if len(places) < FEWEST or any(i >= j for i, j in pairwise(places)):
        raise ValueError(f"window must have {FEWEST} or more increasing indices, got {short_form(places)}")
    return places


def check_rungs(
    ladder: Sequence[float], errors: Sequence[float], uncertainties: Sequence[float], window: Sequence[int]
) -> tuple[list[int], np.ndarray, np.ndarray, np.ndarray]:
    """The window, its learning rates, logarithms of errors and uncertainties; raise as ``fit_order`` says."""
    rates, found = as_list("ladder", ladder, "learning rates"), as_list("errors", errors, "numbers")
    bounds = as_list("uncertainties", uncertainties, "numbers")
    for name, values in (("errors", found), ("uncertainties", bounds)):
        if len(values) != len(rates):
            raise ValueError(
                f"{name} must be as many as the learning rates of the ladder, {len(rates)}, got {len(values)}"
            )
    places = check_window(window, len(rates))
    h = np.array([check_positive("ladder", rates[i]) for i in places])
    if not (np.diff(h) < 0).all():
        raise ValueError(f"ladder must decrease, got {h.tolist()}")
    logs = np.log([check_positive("errors", found[i]) for i in places])
    measured = np.array([check_nonnegative("uncertainties", bounds[i]) for i in places])
    return places, h, logs, measured


def fit_order(
    ladder: Sequence[float], errors: Sequence[float], uncertainties: Sequence[float], window: Sequence[int]
) -> OrderFit:
    """The fit of ``OrderFit`` on the rungs of that window (three or more increasing indices).

    Raises TypeError or ValueError unless, on the window, the ladder decreases and errors are positive.
    """
    window, h, logs, measured = check_rungs(ladder, errors, uncertainties, window)
    scale = h[0]
    # Unknowns log C, q, c scale, c₂ scale²: with h/scale all columns are of order one, and the system well conditioned.
    columns = np.stack([np.ones_like(h), np.log(h / scale), h / scale, (h / scale) ** 2], axis=1)
    terms = 2 if len(window) == FEWEST else 3
    solved = np.linalg.pinv(columns[:, :terms])  # (terms, n)
    found = solved @ logs
    further = float(np.linalg.pinv(columns[:, : terms + 1])[1] @ logs)  # q with one more correction
    finer = float(np.linalg.pinv(columns[1:, :terms])[1] @ logs[1:])  # q without the coarsest rung
    freedom = len(window) - terms
    residual = logs - columns[:, :terms] @ found
    standard_error = math.sqrt(float(residual @ residual) / freedom) * float(np.linalg.norm(solved[1]))
    half = (
        float(stats.t.ppf((1 + CONFIDENCE) / 2, freedom)) * standard_error
        + abs(further - float(found[1]))
        + abs(finer - float(found[1]))
        + float(np.abs(solved[1]) @ measured)
    )
    order = float(found[1])
    return OrderFit(
        order=order,
        low=order - half,
        high=order + half,
        constant=float(np.exp(found[0] - order * math.log(scale))),
        correction=float(found[2] / scale) if terms > 2 else math.nan,
        first=window[0],
        last=window[-1],
        rungs=len(window),
    )
