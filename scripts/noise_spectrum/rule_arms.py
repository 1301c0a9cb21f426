"""One arm of the study of the rule: its runs and what they reached."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .looks import Look, over_seeds


@dataclass(frozen=True, eq=False)
class Arm:
    """A cell trained at one h: looks where λ̄ is measured and looks at the end, by seed."""

    h: float
    early: Sequence[Look]
    late: Sequence[Look]

    @property
    def mean_eigenvalue(self) -> float:
        """λ̄, the mean over seeds of tr D/d where it is measured."""
        return over_seeds([look.spectrum.mean for look in self.early]).mean

    @property
    def errors(self) -> list[float]:
        """Test errors at the end, in %."""
        return [100 * look.measured["test error"] for look in self.late]


Arms = Mapping[str, Arm]
