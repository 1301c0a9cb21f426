"""What the experiments on SGD's stochastic equations share: options, folders, error bars in tables."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..lab.experiment import Common
from ..lab.store import Store


@dataclass(frozen=True)
class Stochastic(Common):
    """Options of every experiment; out is by default results/stochastic/EXPERIMENT."""

    def open(self, **more: Any) -> Store:
        """The folder of results."""
        where = self if self.out is not None else replace(self, out=Path("results/stochastic") / self.name)
        return Common.store(where, **more)
