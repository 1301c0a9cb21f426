r"""Common parts of both experiments: a network, a large rate H and a small one h = H/r, runs on disk, slopes.

Descent of rate η on F follows the flow of F + (η/4)‖∇F‖² up to O(η²) at a fixed time. With F = f + c‖∇f‖² that is
f + (c + η/4)‖∇f‖² up to O(cη): a small rate h needs c = (H − h)/4, not H/4, to reproduce the rate H.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows import Descent, descend
from flows.engines.recorder import Observer
from flows.orders.fit import OrderStudy
from flows.orders.ladder import Rung, check_ladder, sharpness_at, study_of
from landscapes import Counted, FiniteSum
from landscapes.errors import check_count, check_positive, check_seed
from nets import NetworkLandscape

from ..lab.experiment import Common, align_rows
from ..lab.network import NetGround
from ..lab.store import Store, Tensors

MLP = NetGround("mlp")
DIGITS = 2  # of a rate computed from the curvature, so that it is the same on every machine


@dataclass(frozen=True)
class OnNetwork(Common):
    """Options of both experiments; default of --out: results/regularisation/EXPERIMENT."""

    ground: NetGround = MLP
    """Network and data."""
    rate: float | None = None
    """The large learning rate H; default: that of --scaled."""
    scaled: float = 0.4
    """Hλ, λ the Hessian's eigenvalue of largest magnitude at the start; H is rounded to two digits."""
    slowdown: int = 4
    """r, small steps per large step: h = H/r."""
    ladder: tuple[float, ...] = (1, 0.5, 0.25, 0.125)
    """Rungs of the ladder, in units of H."""

    def configuration(self) -> dict[str, Any]:
        """All options except the ladder, whose parts on disk are stored by rate, so that rungs can be added."""
        ground = dataclasses.asdict(self.ground) | {"chosen": dataclasses.asdict(self.ground.chosen)}
        ground.pop("root")
        said = super().configuration() | {"ground": ground}
        return {key: value for key, value in said.items() if key not in {"ladder", "rate", "scaled"}}

    def open(self, **more: Any) -> Store:
        """The result folder."""
        where = self if self.out is not None else replace(self, out=Path("results/regularisation") / self.name)
        return Common.store(where, **more)

    def falling_ladder(self) -> list[float]:
        """The ladder's factors, falling."""
        check_count("slowdown", self.slowdown, minimum=2)
        check_seed(self.seed)
        return check_ladder(self.ladder)

    def build(self) -> tuple[NetworkLandscape, Tensor]:
        """The network's landscape and its initial weights."""
        return self.ground.build(self.seed, self.real, self.device)

    def large_rate(self, sharpness: float) -> float:
        """H: as given, or from the curvature λ at the start."""
        if self.rate is not None:
            return check_positive("rate", self.rate)
        if not (math.isfinite(sharpness) and sharpness > 0):
            raise ValueError("--rate must be given: the Hessian at the start has no eigenvalue to scale one by")
        return float(f"{check_positive('scaled', self.scaled) / sharpness:.{DIGITS}g}")

    def describe(self, landscape: FiniteSum, rate: float, sharpness: float) -> str:
        """Network, data and rates, on one line."""
        return (
            f"{self.ground.architecture} ({landscape.dimension:,} weights) on {self.ground.chosen.data}: "
            f"H = {rate:g}, h = H/{self.slowdown}, Hλ = {rate * sharpness:.3g} at the start"
        )


def counted_descent(
    store: Store,
    name: str,
    build: Callable[[FiniteSum], Descent],
    landscape: FiniteSum,
    theta0: Tensor,
    steps: int,
    *,
    every: int = 1,
    observers: Sequence[Observer] = (),
) -> Tensors:
    r"""The part of that name: "theta" (T, d), "times", "finished", observations, and the evaluations of f.

    ``build`` returns the descent on a counted copy of the landscape: "gradients" and "products" are those of f,
    including the ones inside a penalty.
    """

    def compute() -> Tensors:
        counted = Counted(landscape)
        assert isinstance(counted, FiniteSum)  # Counted keeps the kind of the landscape
        run = descend(build(counted), theta0, steps, every=every, observers=observers).check_uninterrupted()
        seen = {f"{key} times": times for key, (times, _) in run.observations.items()}
        seen |= {key: values for key, (_, values) in run.observations.items()}
        costs = {"gradients": counted.counts["grad"], "products": counted.counts["hvp"]}
        ended = run.complete
        numbers = {key: torch.tensor(value, dtype=torch.float64) for key, value in costs.items()}
        last = int(run.cost["steps"]) - (not ended)  # the last finite state, dropped if it is not kept
        kept = slice(last // every + 1)
        return {
            "theta": run.theta[kept],
            "times": run.times[kept],
            "finished": torch.tensor(ended),
            **seen,
            **numbers,
        }

    return store.part(name, compute)


def distance(one: Tensor, other: Tensor) -> Tensor:
    """‖θ − θ'‖ for each pair of states (T, d) that both runs have, (T',) float64."""
    length = min(len(one), len(other))
    return torch.linalg.vector_norm(one[:length].cpu().double() - other[:length].cpu().double(), dim=-1)


def study(
    ladder: Sequence[float],
    errors: Sequence[float],
    apart: Sequence[float],
    theta0: Tensor,
    sharpness: float,
    name: str,
) -> OrderStudy:
    """The order study of errors along a ladder of large rates; NaN for a failed run."""
    rungs = [
        Rung(h, error, gap, "descent diverged" if math.isnan(error) else "finished")
        for h, error, gap in zip(ladder, errors, apart, strict=True)
    ]
    return study_of(rungs, theta0, sharpness, name)


def curvature(landscape: FiniteSum, theta0: Tensor) -> float:
    """|λ| at the start, NaN if there is no eigenvalue."""
    return sharpness_at(landscape, theta0)


def ladder_table(studies: Mapping[str, OrderStudy]) -> str:
    """A row for each study: the error of each rung, the fitted order, and the largest Hλ of the asymptotic range."""
    first = next(iter(studies.values()))
    rows = [["H", *(f"{h:.4g}" for h in first.ladder), "order", "95 % interval", "up to Hλ"]]
    rows.append(["Hλ", *(f"{h * first.sharpness:.3g}" for h in first.ladder), "", "", ""])
    for name, found in studies.items():
        fit = found.fit
        shown = [name, *map(format_number, found.errors)]
        if fit is None:
            slopes = f"slopes {found.trend}" if found.drifts else "–"
            rows.append([*shown, "–" if math.isnan(found.order) else f"({found.order:.2f})", slopes, "–"])
        else:
            interval = f"[{fit.low:.2f}, {fit.high:.2f}]"
            rows.append([*shown, f"{fit.order:.3f}", interval, f"{found.asymptotic_end * found.sharpness:.3g}"])
    unfitted = any(found.fit is None for found in studies.values())
    note = "\nin brackets: the slope of the finest pair, if no three rungs agree on an order" if unfitted else ""
    if any(found.drifts for found in studies.values()):
        note += ", or if the finest slopes drift, without settling: the interval's column has them"
    return align_rows(rows) + note


def format_number(value: float) -> str:
    """A number in table form; a dash for NaN."""
    return "–" if math.isnan(value) else f"{value:.3e}"
