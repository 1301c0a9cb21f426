r"""The trend of the finest local slopes: whether they settle on an order, and where a slow trend would end.

In the asymptotic range e = C h^q (1 + c h + …), and slopes differ from q by c h: along rungs h_{i+1} = r h_i the
differences of neighbouring slopes fall with the ratio r. Where a smaller power takes over, e = a h^p + b h^q with
p < q, they grow until half of the error is the smaller power's, and fall with r only beyond. The ratio ρ of the last
two differences therefore tells whether an order can be read off: at |ρ| ≥ 1 the slopes have no limit yet, below it the
limit of the trend is Aitken's, s + δ ρ/(1 − ρ) for the last slope s and difference δ, which is Richardson's at ρ = r.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RUNGS = 4  # two differences of slopes
SETTLED = 0.03  # change of a slope as h falls by a factor e, below which it is one of an order seen to 0.1


@dataclass(frozen=True)
class SlopeTrend:
    r"""The three finest slopes, and the ratio of their two differences.

    ``slopes`` (3,), by falling h; ``ratio``: ρ = δ_2/δ_1, ``expected``: its value in the asymptotic range, r for rungs
    h_{i+1} = r h_i; ``least``: the smallest |ρ| within the errors of the slopes; ``speed``: the smallest |δ_2| within
    its error, over the change of log h.
    """

    slopes: tuple[float, float, float]
    ratio: float
    expected: float
    least: float
    speed: float

    @property
    def drifts(self) -> bool:
        """Whether the slopes move away from where they were, faster than SETTLED and no slower than before."""
        return self.least >= 1 and self.speed > SETTLED

    @property
    def limit(self) -> float | None:
        """Aitken's limit if the slopes settle, but more slowly than h falls; None if they settle as a power does."""
        if not (math.sqrt(self.expected) < self.least and self.ratio < 1):
            return None
        return self.slopes[2] + (self.slopes[2] - self.slopes[1]) * self.ratio / (1 - self.ratio)

    def __str__(self) -> str:
        way = "turn" if self.ratio < 0 else "fall" if self.slopes[2] < self.slopes[1] else "rise"
        return f"{', '.join(f'{each:.3f}' for each in self.slopes)} {way}"


def slope_trend(
    ladder: Sequence[float], errors: Sequence[float], uncertainties: Sequence[float], trusted: Sequence[int]
) -> SlopeTrend | None:
    """The trend of the last four of those rungs (their indices, by falling h); None if there are fewer."""
    if len(trusted) < RUNGS:
        return None
    rungs = list(trusted[-RUNGS:])
    h, log_e = np.array([ladder[i] for i in rungs]), np.log([errors[i] for i in rungs])
    measured = np.array([uncertainties[i] for i in rungs])
    log_steps = -np.diff(np.log(h))
    slopes = -np.diff(log_e) / log_steps
    doubts = (measured[:-1] + measured[1:]) / log_steps
    changes, changes_doubt = np.diff(slopes), doubts[:-1] + doubts[1:]
    # the slope of log(1 + ch) between two rungs is c times this mean of h, to first order
    means = -np.diff(h) / log_steps
    apart = np.diff(means)
    smallest = max(0.0, abs(changes[1]) - changes_doubt[1])
    return SlopeTrend(
        slopes=(float(slopes[0]), float(slopes[1]), float(slopes[2])),
        ratio=float(changes[1] / changes[0]) if changes[0] else math.copysign(math.inf, changes[1]),
        expected=float(apart[1] / apart[0]),
        least=float(smallest / (abs(changes[0]) + changes_doubt[0])) if smallest else 0.0,
        speed=float(smallest / np.mean(log_steps[1:])),
    )
