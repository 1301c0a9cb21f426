r"""Observed orders: how the one-step error of a flow against a descent falls along a ladder of learning rates.

A model of order p has a one-step error C h^{p+1} + O(h^{p+2}); the slope of log error against log h between
neighbouring rungs tends to p + 1. Integration runs near rounding, so that what is seen is the model;
rungs whose error has reached rounding are not used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flows.descend import descend
from flows.engine import check_theta0
from flows.flow import Descent, Flow
from flows.integrate import integrate
from landscapes.errors import check_positive

ROUNDING = 2e3  # errors below this many eps·‖θ‖ are taken for rounding and integration


@dataclass(frozen=True)
class OrderStudy:
    r"""Errors along a ladder of learning rates, h falling.

    ``ladder`` (L,); ``errors`` (L,), the largest over the batch; ``slopes`` (L−1,); ``order``: the slope at the finest
    pair of rungs above rounding, NaN where there is none.
    """

    ladder: tuple[float, ...]
    errors: tuple[float, ...]
    floor: float

    @property
    def slopes(self) -> tuple[float, ...]:
        """log(e_i/e_{i+1}) / log(h_i/h_{i+1}); NaN where an error is zero or not finite."""
        pairs = zip(self.ladder, self.ladder[1:], self.errors, self.errors[1:], strict=False)
        return tuple(
            math.log(e / f) / math.log(h / k) if 0 < f < math.inf and 0 < e < math.inf else math.nan
            for h, k, e, f in pairs
        )

    @property
    def order(self) -> float:
        """The slope at the finest pair of rungs whose errors are above rounding."""
        reliable = [
            s for s, e in zip(self.slopes, self.errors[1:], strict=True) if e > self.floor and not math.isnan(s)
        ]
        return reliable[-1] if reliable else math.nan

    def __str__(self) -> str:
        lines = ["          h   one-step error   slope"]
        for h, e, s in zip(self.ladder, self.errors, (math.nan, *self.slopes), strict=True):
            mark = "  (rounding)" if e <= self.floor else ""
            lines.append(f"{h:11.4g}   {e:14.4e}   {'' if math.isnan(s) else f'{s:.3f}':>5}{mark}")
        return "\n".join([*lines, f"observed order {self.order:.3f}"])


def one_step_order(
    flow: Callable[[float], Flow], descent: Callable[[float], Descent], theta0: Tensor, ladder: Sequence[float]
) -> OrderStudy:
    r"""One-step errors ‖X(h; θ0) − θ_1‖ along a ladder of h, for h → Flow and h → Descent.

    θ0 (..., d) in float64 or the errors drown early; the descent must be deterministic. Raises ValueError unless the
    ladder has at least two positive rungs, all different.
    """
    theta0 = check_theta0(theta0)
    rungs = sorted((check_positive("ladder", h) for h in ladder), reverse=True)
    if len(rungs) < 2 or len(set(rungs)) < len(rungs):
        raise ValueError(f"ladder must have at least two different learning rates, got {list(ladder)!r}")
    eps = torch.finfo(theta0.dtype).eps
    errors = []
    for h in rungs:
        moved = descend(descent(h), theta0, 1, keep="last").theta[-1]
        run = integrate(flow(h), theta0, [0.0, h], rtol=max(1e-13, 50 * eps), atol=50 * eps * 1e-2, keep="last")
        gap = torch.linalg.vector_norm(run.theta[-1] - moved, dim=-1)
        errors.append(float(gap.max()) if run.status == "finished" and bool(run.alive.all()) else math.nan)
    floor = ROUNDING * eps * float(torch.linalg.vector_norm(theta0, dim=-1).max().clamp(min=1e-3))
    return OrderStudy(tuple(rungs), tuple(errors), floor)
