r"""Weak orders: the decrease of sup_k |E φ(X_{kh}) − E φ(θ_k)| with h at a fixed time, with Monte Carlo intervals.

The fit is that of ``weak_ladder``.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from flows.descent import Descent
from flows.engines.storage import save_tensors
from flows.ensembles.blocks import Function
from flows.ensembles.weak import Reference, weak_errors
from flows.ensembles.weak_figure import plot_weak_orders
from flows.ensembles.weak_ladder import WeakLadder, table
from flows.flow import StochasticFlow
from flows.orders.ladder import check_ladder, whole_steps


@dataclass(frozen=True)
class WeakOrderStudy(WeakLadder):
    """Weak errors along a decreasing ladder of h; ``str()`` is the table."""

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure: a panel for each observable, errors with their intervals against h. Raises FolderError."""
        return plot_weak_orders({self.name: self}, self.observables, path)

    def __str__(self) -> str:
        return table(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write errors, bars, integration errors of every rung, and the table, into ``folder``. Raises FolderError."""
        parts = ("mean", "difference", "standard_error", "integration", "integration_error")
        tensors: dict[str, Tensor] = {}
        for i, rung in enumerate(self.rungs):
            tensors[f"{i}.times"] = rung.times
            for j, name in enumerate(self.observables):
                tensors |= {f"{i}.{j}.{part}": getattr(rung, part)[name] for part in parts}
        text: dict[str, Any] = {"name": self.name, "ladder": list(self.ladder), "observables": list(self.observables)}
        text |= {"orders": {name: vars(order) for name, order in self.orders.items()}, "settings": dict(self.settings)}
        path = save_tensors(folder, "weak_order", tensors, text)
        (path / "table.txt").write_text(str(self) + "\n")
        return path


def weak_order(
    flow: Callable[[float], StochasticFlow],
    descent: Callable[[float], Descent],
    theta0: Tensor,
    time: float,
    ladder: Sequence[float],
    *,
    paths: int,
    seed: int,
    observables: Mapping[str, Function],
    substeps: int = 1,
    reference: Callable[[float, Tensor], Reference] | None = None,
    coupled: bool = False,
    extrapolate: bool = True,
    method: str | None = None,
    block: int | None = None,
    progress: bool = False,
) -> WeakOrderStudy:
    r"""Weak errors of h → flow against h → descent at a fixed ``time``, for every h of the ``ladder``.

    Every h must divide the time. ``reference``: (h, times) ↦ name → E φ(θ_k). Other arguments as in ``weak_errors``;
    every rung has its own seed. Raises TypeError or ValueError for invalid arguments.
    """
    rates = check_ladder(ladder)
    counts = [whole_steps(time, h) for h in rates]
    rungs = []
    for i, (h, steps) in enumerate(zip(tqdm(rates, unit="rung", disable=not progress), counts, strict=True)):
        exact = None if reference is None else (lambda times, h=h: reference(h, times))
        rungs.append(
            weak_errors(
                flow(h),
                descent(h),
                theta0,
                steps,
                paths=paths,
                seed=seed + i,
                observables=observables,
                substeps=substeps,
                reference=exact,
                coupled=coupled,
                extrapolate=extrapolate,
                method=method,
                block=block,
            )
        )
    settings: dict[str, object] = {"time": time, "paths": paths, "seed": seed, "substeps": substeps, "coupled": coupled}
    settings |= {"extrapolate": extrapolate, "method": method, "against": "reference" if reference else "runs"}
    return WeakOrderStudy(flow(rates[0]).name, tuple(rates), tuple(rungs), tuple(observables), settings=settings)
