"""Parts shared by the experiments on SGD's stochastic equations: options, result folder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..lab.experiment import Common
from ..lab.store import Store


@dataclass(frozen=True)
class Stochastic(Common):
    """Options of every experiment; default of --out: results/stochastic/EXPERIMENT."""

    def open(self, **more: Any) -> Store:
        """The result folder."""
        where = self if self.out is not None else replace(self, out=Path("results/stochastic") / self.name)
        return Common.store(where, **more)
