"""One arm of the study of the rule: its runs and their results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .measurements import NoiseMeasurement, over_seeds


@dataclass(frozen=True, eq=False)
class Arm:
    """A cell trained at one h: measurements for λ̄ and at the end, by seed."""

    h: float
    early: Sequence[NoiseMeasurement]
    late: Sequence[NoiseMeasurement]

    @property
    def mean_eigenvalue(self) -> float:
        """λ̄, the mean over seeds of tr D/d at the time of measurement."""
        return over_seeds([m.spectrum.mean for m in self.early]).mean

    @property
    def errors(self) -> list[float]:
        """Test errors at the end, in %."""
        return [100 * m.measured["test error"] for m in self.late]


Arms = Mapping[str, Arm]
