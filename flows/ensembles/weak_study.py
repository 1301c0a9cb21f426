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
from flows.engines.configuration import Configuration, as_json
from flows.engines.locks import FolderLock
from flows.engines.storage import load_tensors, read_error, save_tensors, write_text
from flows.engines.trajectory import check_notes
from flows.ensembles.blocks import Function
from flows.ensembles.statistics import CONFIDENCE, check_confidence, numbers_of
from flows.ensembles.weak import Reference, WeakErrors, check_reference, weak_errors
from flows.ensembles.weak_figure import plot_weak_orders
from flows.ensembles.weak_ladder import WeakLadder, table
from flows.flow import StochasticFlow
from flows.orders.ladder import check_ladder, check_makers, whole_steps
from landscapes.errors import check_flag, check_positive, check_seed


@dataclass(frozen=True)
class WeakOrderStudy(WeakLadder):
    """Weak errors along a decreasing ladder of h; ``str()`` is the table."""

    def plot(self, path: str | os.PathLike[str]) -> Path:
        """Write the figure: a panel for each observable, errors with their intervals against h. Raises FolderError."""
        return plot_weak_orders({self.name: self}, self.observables, path)

    def __str__(self) -> str:
        return table(self)

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write the study into ``folder``/weak_order.safetensors, beside it the table. Raises FolderError."""
        with FolderLock(folder) as lock:
            path = save_tensors(lock.folder, "weak_order", *parts_of_study(self))
            write_text(path / "table.txt", str(self) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> WeakOrderStudy:
        """Read a study that ``save`` wrote, on the CPU. Raises FolderError.

        Saves of format 1 have no costs, no number of diverged runs and the default confidence.
        """
        tensors, text = load_tensors(folder, "weak_order")
        try:
            return study_of(tensors, text)
        except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
            raise read_error(Path(folder), "weak_order", error) from error


PARTS = ("mean", "difference", "standard_error", "integration", "integration_error")


def parts_of_study(study: WeakOrderStudy) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A study as named tensors and JSON."""
    tensors: dict[str, Tensor] = {}
    for i, rung in enumerate(study.rungs):
        tensors[f"{i}.times"] = rung.times
        for j, name in enumerate(study.observables):
            tensors |= {f"{i}.{j}.{part}": getattr(rung, part)[name] for part in PARTS}
    text: dict[str, Any] = {"name": study.name, "ladder": list(study.ladder), "observables": list(study.observables)}
    text |= {"orders": {name: vars(order) for name, order in study.orders.items()}, "settings": as_json(study.settings)}
    rungs = [{"paths": rung.paths, "diverged": rung.diverged, "cost": dict(rung.cost)} for rung in study.rungs]
    return tensors, text | {
        "confidence": study.confidence,
        "rungs": rungs,
        "configuration": as_json(study.configuration),
    }


def study_of(tensors: Mapping[str, Tensor], text: Mapping[str, Any]) -> WeakOrderStudy:
    """The study of ``parts_of_study``. Raises KeyError, TypeError or ValueError for other parts."""
    names = check_notes(text["observables"], "observables")
    ladder = tuple(check_positive("ladder", h) for h in text["ladder"])
    numbers = text.get("rungs", [{"paths": text["settings"]["paths"]}] * len(ladder))
    rungs = []
    for i, rung in enumerate(numbers):
        found = {part: {name: tensors[f"{i}.{j}.{part}"] for j, name in enumerate(names)} for part in PARTS}
        rungs.append(
            WeakErrors(
                times=tensors[f"{i}.times"],
                paths=rung["paths"],
                mean=found["mean"],
                difference=found["difference"],
                standard_error=found["standard_error"],
                integration=found["integration"],
                integration_error=found["integration_error"],
                diverged=rung.get("diverged", 0),
                cost=rung.get("cost", {}),
            )
        )
    return WeakOrderStudy(
        name=text["name"],
        ladder=ladder,
        rungs=tuple(rungs),
        observables=tuple(names),
        confidence=check_confidence(text.get("confidence", CONFIDENCE)),
        settings=text["settings"],
        configuration=text.get("configuration", {}),
    )


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
    check_makers(flow, descent)
    check_flag("progress", progress)
    check_reference(reference)
    check_seed(seed)
    rates = check_ladder(numbers_of("ladder", ladder).reshape(-1).tolist())
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
    first = flow(rates[0])
    configuration = Configuration(first, theta0=theta0, descent=descent(rates[0]), observables=dict(observables))
    return WeakOrderStudy(
        first.name, tuple(rates), tuple(rungs), tuple(observables), settings=settings, configuration=configuration
    )
