r"""Weak errors along a ladder of learning rates, the slopes fitted to them, and their table.

The slope p of log error against log h is fitted by least squares weighted by the standard errors. Its interval is the
normal one of these, or Student's with the residuals' scatter if this is larger than the standard errors explain.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy import stats

from flows.engines.trajectory import check_mapping
from flows.ensembles.statistics import CONFIDENCE, check_confidence
from flows.ensembles.weak import Largest, WeakErrors, check_observable
from landscapes.errors import short_form

SMALL = 0.1  # largest relative integration error that the table does not mark


@dataclass(frozen=True)
class WeakOrder:
    """A fitted slope with its interval, from ``rungs`` of the ladder; NaN if fewer than two differ from zero."""

    order: float
    low: float
    high: float
    rungs: int

    def __str__(self) -> str:
        return f"{self.order:.3f} [{self.low:.3f}, {self.high:.3f}]" if self.rungs > 1 else "–"


@dataclass(frozen=True)
class WeakLadder:
    """Weak errors along a decreasing ladder of h; ``configuration``: JSON values that identify the study.

    Raises TypeError or ValueError for other fields, and unless there is a rung for each h.
    """

    name: str
    ladder: tuple[float, ...]
    rungs: tuple[WeakErrors, ...]
    observables: tuple[str, ...]
    confidence: float = CONFIDENCE
    settings: Mapping[str, object] = field(default_factory=dict)
    configuration: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, kind in (("ladder", float), ("rungs", WeakErrors), ("observables", str)):
            values = getattr(self, name)
            if not isinstance(values, (tuple, list)) or not all(isinstance(value, kind) for value in values):
                raise TypeError(f"{name} must be a tuple of {kind.__name__}, got {short_form(values)}")
        if len(self.rungs) != len(self.ladder) or not self.rungs:
            raise ValueError(f"rungs must be one for each h of the ladder {self.ladder!r}, got {len(self.rungs)}")
        if not isinstance(self.name, str):
            raise TypeError(f"name must be a string, got {short_form(self.name)}")
        check_confidence(self.confidence)
        check_mapping("settings", self.settings)
        check_mapping("configuration", self.configuration)

    def largest(self, name: str) -> list[Largest]:
        """The largest weak error of an observable at every rung."""
        check_observable(name, self.observables)
        return [rung.largest(name, self.confidence) for rung in self.rungs]

    def order(self, name: str) -> WeakOrder:
        """The slope of an observable's errors; rungs whose error is within two standard errors of zero are omitted."""
        found = [(h, x) for h, x in zip(self.ladder, self.largest(name), strict=True) if is_significant(x)]
        h = [step for step, _ in found]
        return fit_slope(h, [x.error for _, x in found], [x.standard_error for _, x in found], self.confidence)

    @property
    def orders(self) -> dict[str, WeakOrder]:
        """Observable → its slope."""
        return {name: self.order(name) for name in self.observables}


def is_significant(x: Largest) -> bool:
    """Whether an error exceeds two standard errors."""
    return math.isfinite(x.error) and x.error > 2 * x.standard_error


def fit_slope(h: Sequence[float], errors: Sequence[float], bars: Sequence[float], confidence: float) -> WeakOrder:
    """The weighted slope of log error against log h."""
    if len(h) < 2:
        return WeakOrder(math.nan, math.nan, math.nan, len(h))
    x, y = np.log(h), np.log(errors)
    sigma = np.maximum(np.asarray(bars) / np.asarray(errors), 1e-6)  # exact errors have bar 0, and no infinite weight
    weights = sigma**-2
    centre = (weights * x).sum() / weights.sum()
    spread = (weights * (x - centre) ** 2).sum()
    slope = (weights * (x - centre) * y).sum() / spread
    level = (weights * (y - slope * (x - centre))).sum() / weights.sum()
    free = len(x) - 2
    chi = float((weights * (y - level - slope * (x - centre)) ** 2).sum())
    width = float(stats.norm.isf((1 - confidence) / 2))
    if free and chi > free:
        width = math.sqrt(chi / free) * float(stats.t.isf((1 - confidence) / 2, free))
    half = width / math.sqrt(spread)
    return WeakOrder(float(slope), float(slope - half), float(slope + half), len(x))


def table(study: WeakLadder) -> str:
    """A row for each rung and observable, and the orders below."""
    side = "known exactly" if study.settings.get("against") == "reference" else "from runs"
    side = "coupled" if study.settings.get("coupled") else side
    paths = study.rungs[0].paths
    lines = [
        f"{study.name}: sup over k of |E φ(X) − E φ(θ)|, {paths} paths, the descent's side {side}",
        f"{'φ':<12}{'h':>10}{'error':>12}{'± s.e.':>10}{'low':>12}{'high':>12}{'at t':>8}{'integration':>13}",
    ]
    for name in study.observables:
        for h, x in zip(study.ladder, study.largest(name), strict=True):
            marks = "" if is_significant(x) else "  zero within its error"
            marks += "" if x.share <= SMALL else "  integration error"
            lines.append(
                f"{name:<12}{h:>10.5g}{x.error:>12.3e}{x.standard_error:>10.1e}{x.low:>12.3e}{x.high:>12.3e}"
                f"{x.time:>8.3g}{x.share:>12.1%}{marks}"
            )
    orders = [f"{name}: {order}" for name, order in study.orders.items()]
    lost = sum(rung.diverged for rung in study.rungs)
    lines.append(f"weak order, {study.confidence:.0%} interval: {'; '.join(orders)}")
    return "\n".join([*lines, *([f"{lost} runs diverged and stay at their last finite position"] if lost else [])])
