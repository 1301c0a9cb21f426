"""Results of the linear scaling rule, on a toy and on a network: numbers and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from landscapes.sampling import sampling_of

from ..lab.experiment import align_rows
from ..lab.store import Tensors
from .runs import SEPARATED, SHOWN, Curves, Pair, cell

SCATTER = "scatter"


ROWS = (*SHOWN, SCATTER)


@dataclass(frozen=True)
class ScalingToyRow:
    """The stationary variance at one factor: from paths, with its standard error, and by formulas (λ = 1)."""

    factor: int
    sampling: str
    h: float
    c: float
    found: tuple[float, float]

    @property
    def exact(self) -> float:
        """hcλ/(2 − hλ), that of SGD."""
        return self.h * self.c / (2 - self.h)

    @property
    def equation(self) -> float:
        """hcλ/2, that of the order-1 equation."""
        return self.h * self.c / 2


@dataclass(frozen=True)
class ScalingToy:
    """Stationary variances on ½θ² for all factors and samplings."""

    rows: Sequence[ScalingToyRow]

    def table(self) -> str:
        """A row for each factor and sampling."""
        heading = ["s", "sampling", "hλ", "b", "variance", "exact, hcλ/(2 − hλ)", "SDE, hcλ/2"]
        rows = [
            [str(row.factor), row.sampling, f"{row.h:.3g}", str(row.factor), cell(*row.found)]
            + [f"{value:.5f}" for value in (row.exact, row.equation)]
            for row in self.rows
        ]
        caption = f"stationary variance on ½θ² with {TOY_SIZE} examples; c is 1/b, for subsets (1/b)(N − b)/(N − 1)"
        return f"{caption}\n{align_rows([heading, *rows])}"


@dataclass(frozen=True)
class Setting:
    """h and b at the factor 1, the number of examples, and λ, the larger of start and end."""

    h: float
    batch_size: int
    size: int
    sharpness: float

    def noise(self, factor: int, sampling: str) -> float:
        """h·c at a factor, over that at the factor 1 with replacement."""
        c = sampling_of(self.size, factor * self.batch_size, sampling).variance_factor()
        return factor * c * self.batch_size


@dataclass(frozen=True, eq=False)
class LinearScalingStudy:
    """The network's runs by factor and sampling, the common equation, and gradient flow."""

    heading: str
    setting: Setting
    found: Mapping[tuple[int, str], Curves]
    equation: Curves
    left: Mapping[str, Pair]
    drift: Tensors

    @cached_property
    def factors(self) -> list[int]:
        """s, rising."""
        return list(dict.fromkeys(factor for factor, _ in self.found))

    def end(self, curves: Curves, name: str) -> tuple[float, float]:
        """Mean at the end and its standard error, or scatter and its standard error."""
        mean, error = curves.scatter() if name == SCATTER else curves.mean(name)
        return float(mean[-1]), float(error[-1])

    def largest_valid(self, sampling: str, name: str, reference: Curves) -> int | None:
        """The largest factor up to which all means are within three standard errors of a reference, or None."""
        theirs, bar = self.end(reference, name)
        largest = None
        for factor in self.factors:
            mine, error = self.end(self.found[factor, sampling], name)
            if not abs(mine - theirs) <= SEPARATED * math.hypot(error, bar):
                break
            largest = factor
        return largest

    def table(self) -> str:
        """A row for each factor and sampling, the equation and gradient flow; the range of the rule."""
        rows = [["s", "sampling", "h", "b", "hλ", "hc", *ROWS]]
        for (factor, sampling), curves in self.found.items():
            h = factor * self.setting.h
            row = [str(factor), sampling, f"{h:.4g}", str(factor * self.setting.batch_size)]
            row += [f"{h * self.setting.sharpness:.3g}", f"{self.setting.noise(factor, sampling):.3f}"]
            rows.append([*row, *(cell(*self.end(curves, name)) for name in ROWS)])
        rows.append(["SDE", "", "", "", "", "1.000", *(cell(*self.end(self.equation, name)) for name in ROWS)])
        rows.append(["gradient flow", *[""] * 4, "0.000", *(f"{float(self.drift[n][-1]):.4f}" for n in SHOWN), "0"])
        first = self.found[self.factors[0], SAMPLINGS[0]]
        said = [
            f"{sampling}: within three standard errors of {caption} up to s: "
            + "; ".join(f"{name} {self.largest_valid(sampling, name, reference) or 'none'}" for name in ROWS)
            for caption, reference in ((f"s = {self.factors[0]} with replacement", first), ("the SDE", self.equation))
            for sampling in SAMPLINGS
        ]
        gaps = [f"{name} {cell(*(float(x[-1]) for x in self.left[name]))}" for name in SHOWN]
        lost = sum(curves.lost for curves in (*self.found.values(), self.equation))
        more = [f"{lost} runs diverged and stay at their last finite position"] if lost else []
        note = f"integration of the SDE at the finer step was off by: {'; '.join(gaps)}; extrapolated here"
        caption = f"hc: noise per unit of time over that at s = 1; {SCATTER}: Σ Var θ over the runs; λ: start or end"
        return "\n".join([self.heading, align_rows(rows), caption, note, *said, *more])


SAMPLINGS = ("replacement", "subset")


TOY_SIZE = 32  # examples of the toy: b = N at the factor 32
