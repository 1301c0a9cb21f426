r"""Full batch: descent at a large rate, its reproduction by a small rate with a penalty, and its drift cancelled."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from flows.orders.fit import OrderStudy
from landscapes.errors import check_count

from ..lab.command_line import check_device
from .common import (
    OnNetwork,
    curvature,
    ladder_table,
)
from .figures import full_batch_figure
from .full_batch_runs import Runs
from .kinds import Pair, pair_label


@dataclass(frozen=True)
class FullBatch(OnNetwork):
    """Gradient descent at a large rate compared with a small one with a penalty; its drift cancelled by a penalty."""

    steps: int = 32
    """Steps of the large rate: T = steps · H, which every rung of the ladder must divide."""
    ladder: tuple[float, ...] = (8, 4, 2, 1, 0.5, 0.25, 0.125)
    """Rungs of the ladder, in units of H."""

    def run(self) -> None:
        """Run, compare, print, plot."""
        counts = self.counts()
        check_device(self.device)
        landscape, theta0 = self.build()
        sharpness = curvature(landscape, theta0)
        rate = self.large_rate(sharpness)
        runs = Runs(self.open(H=rate), self, self.steps, landscape, theta0, rate)
        largest = float(runs.main["large"]["sharpness"].max())
        studies = runs.studies([rate * factor for factor in counts], list(counts.values()), largest)
        heading = (
            f"{self.describe(landscape, rate, sharpness)}, at most {rate * largest:.3g} along the run; "
            f"T = {self.steps} H = {self.steps * rate:.4g}"
        )
        distances = ladder_table({pair_label(pair): found for pair, found in studies.items()})
        blocks = [heading, runs.table(), f"distances at T, λ the largest along descent at H\n{distances}"]
        runs.store.table("\n\n".join([*blocks, penalty_summary(studies)]))
        self.draw(runs.store, full_batch_figure(runs, studies))

    def counts(self) -> dict[float, int]:
        """Steps of each rung, falling in H; raises unless all are whole numbers."""
        check_count("steps", self.steps)
        counts = {factor: round(self.steps / factor) for factor in self.falling_ladder()}
        for factor, count in counts.items():
            if count < 1 or abs(count * factor - self.steps) > 1e-9 * self.steps:
                raise ValueError(f"--ladder must divide --steps {self.steps} into whole steps, {factor:g} does not")
        return counts


def penalty_summary(studies: Mapping[Pair, OrderStudy]) -> str:
    """Ratio of the distances with and without a penalty, rung by rung, and the Hλ from which it exceeds a half."""
    said = []
    for name, without, with_it in (
        ("penalty (H − h)/4", ("small", "large"), ("explicit", "large")),
        ("penalty −H/4", ("large", "flow"), ("cancelled", "flow")),
    ):
        before, after = studies[without], studies[with_it]
        scaled = [h * before.sharpness for h in before.ladder]
        ratios = [b / a if a else math.nan for a, b in zip(before.errors, after.errors, strict=True)]
        shown = ", ".join(f"{ratio:.2g} at {x:.2g}" for x, ratio in zip(scaled, ratios, strict=True))
        poor = [x for x, ratio in zip(scaled, ratios, strict=True) if not ratio < 0.5]
        broken = f"leaves more than half of it at Hλ = {min(poor):.2g}" if poor else "leaves less than half everywhere"
        said.append(f"{name}: distance over that without it, by Hλ: {shown}; {broken}")
    return "\n".join(said)
