"""Errors of SVAG along a ladder of levels, on a toy and on a network: numbers and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from flows.comparison.laws import LOSS, SQUARED_NORM
from flows.ensembles.statistics import CONFIDENCE
from flows.ensembles.weak_ladder import WeakOrder, fit_slope
from flows.steady.second_moments import OFFSET

from ..lab.experiment import align_rows
from ..lab.store import Tensors
from .runs import ACCURACY, SEPARATED, Curves, Pair, cell

Ladder = tuple[int, ...]
ON_TOYS = (LOSS, SQUARED_NORM, OFFSET)
ON_NETWORK = (LOSS, SQUARED_NORM, ACCURACY)


@dataclass(frozen=True, eq=False)
class ToyLadder:
    """E φ at the end on one toy: exact for every level and for the equation, and from paths."""

    heading: str
    levels: Ladder
    exact: Sequence[Mapping[str, Tensor]]
    equation: Mapping[str, Tensor]
    found: Mapping[int, Tensors]

    def exact_errors(self, name: str) -> list[float]:
        """E φ(SVAG) − E φ(X), exactly, for every level."""
        return [float(values[name] - self.equation[name]) for values in self.exact]

    def measured_errors(self, name: str) -> list[tuple[float, float]]:
        """The same from paths, with standard errors."""
        parts = [self.found[level] for level in self.levels]
        return [(float(part[name] - self.equation[name]), float(part[f"{name} error"])) for part in parts]

    def slopes(self, name: str) -> tuple[WeakOrder, WeakOrder]:
        """Slope of |measured| in 1/l, and of the exact errors at the same levels with the same weights.

        Uses the levels above 1 (level 1 is SGD) whose exact error is more than two standard errors of the paths.
        """
        rows = zip(self.levels, self.measured_errors(name), self.exact_errors(name), strict=True)
        seen = [(1 / level, abs(x), s, abs(e)) for level, (x, s), e in rows if level > 1 and abs(e) > 2 * s]
        rates, errors, bars, exact = ([row[i] for row in seen] for i in range(4))
        same = [bar * e / x for bar, e, x in zip(bars, exact, errors, strict=True)]
        return fit_slope(rates, errors, bars, CONFIDENCE), fit_slope(rates, exact, same, CONFIDENCE)

    def exact_slope(self, name: str) -> float:
        """Slope between the two largest levels; NaN for one level."""
        if len(self.levels) < 2:
            return math.nan
        (a, b), (m, n) = self.exact_errors(name)[-2:], self.levels[-2:]
        return math.log(abs(a / b)) / math.log(n / m)

    def table(self) -> str:
        """A column for each level and one for the equation; rows from paths, exact, and their difference."""
        rows = [["l", *map(str, self.levels), "SDE"]]
        for name in ON_TOYS:
            parts = [self.found[level] for level in self.levels]
            found = [cell(float(part[name]), float(part[f"{name} error"])) for part in parts]
            exact = [f"{float(values[name]):.5f}" for values in (*self.exact, self.equation)]
            rows.append([f"{name}, from paths", *found, ""])
            rows.append([f"{name}, exact", *exact])
            rows.append([f"{name}, exact − SDE", *(f"{away:.2e}" for away in self.exact_errors(name)), ""])
        slopes = [["slope in 1/l", "from paths, 95 % interval", "levels", "exact, same levels", "exact, last two"]]
        for name in ON_TOYS:
            measured, same = self.slopes(name)
            beside = [f"{same.order:.3f}" if same.rungs > 1 else "–", f"{self.exact_slope(name):.3f}"]
            slopes.append([name, str(measured), str(measured.rungs), *beside])
        lost = sum(int(part["lost"]) for part in self.found.values())
        note = [f"{lost} paths diverged and stay at their last finite position"] if lost else []
        return "\n".join([self.heading, align_rows(rows), align_rows(slopes), *note])


@dataclass(frozen=True, eq=False)
class NetworkLadder:
    """Runs of SVAG on a network at every level, and of the equation."""

    heading: str
    levels: Mapping[int, Curves]
    equation: Curves
    left: Mapping[str, Pair]
    names: Sequence[str] = field(default=ON_NETWORK)

    def difference(self, level: int, name: str) -> tuple[float, float]:
        """Mean of SVAG less that of the equation at the end, and its standard error."""
        (mean, error), (theirs, bar) = self.levels[level].mean(name), self.equation.mean(name)
        return float(mean[-1] - theirs[-1]), math.hypot(float(error[-1]), float(bar[-1]))

    def agreeing_level(self, name: str) -> int | None:
        """The smallest level from which on all means are within three standard errors of the equation, or None."""
        smallest = None
        for level in sorted(self.levels, reverse=True):
            away, error = self.difference(level, name)
            if not abs(away) <= SEPARATED * error:
                break
            smallest = level
        return smallest

    def table(self) -> str:
        """A row for each level: means at the end, and their distance from the equation's."""
        rows = [["l", *(f"{name}{suffix}" for name in self.names for suffix in ("", " − SDE"))]]
        for level, curves in self.levels.items():
            row = [f"{level}, SGD" if level == 1 else str(level)]
            for name in self.names:
                mean, error = curves.mean(name)
                row += [cell(float(mean[-1]), float(error[-1])), cell(*self.difference(level, name))]
            rows.append(row)
        ends = [tuple(float(x[-1]) for x in self.equation.mean(name)) for name in self.names]
        rows.append(["SDE", *(text for mean, error in ends for text in (cell(mean, error), ""))])
        gaps = [f"{name} {cell(*(float(x[-1]) for x in self.left[name]))}" for name in self.names]
        agreed = [
            f"{name} {'at none' if self.agreeing_level(name) is None else self.agreeing_level(name)}"
            for name in self.names
        ]
        lost = sum(curves.lost for curves in (*self.levels.values(), self.equation))
        said = [
            f"integration of the SDE at the finer step was off by: {'; '.join(gaps)}; extrapolated here",
            f"within three standard errors of the SDE from l on: {'; '.join(agreed)}",
            *([f"{lost} runs diverged and stay at their last finite position"] if lost else []),
        ]
        return "\n".join([self.heading, align_rows(rows), *said])
