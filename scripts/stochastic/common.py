"""What the experiments on SGD's stochastic equations share: options, folders, error bars in tables."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from scripts.lab.experiment import Common
from scripts.lab.store import Store


@dataclass(frozen=True)
class Stochastic(Common):
    """Options of every experiment; out is by default results/stochastic/EXPERIMENT."""

    def open(self, **more: Any) -> Store:
        """The folder of results."""
        where = self if self.out is not None else replace(self, out=Path("results/stochastic") / self.name)
        return Common.store(where, **more)


def with_error(value: float, error: float) -> str:
    """A number with its standard error, both to the error's second digit; a dash where there is none."""
    if math.isnan(value):
        return "–"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    if digits > 5 or abs(value) >= 1e5:
        return f"{value:.3e} ± {error:.1e}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"
