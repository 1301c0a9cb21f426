"""Results of the study of samplings, on a toy and on a network: numbers and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from flows.comparison.laws import LOSS, SQUARED_NORM
from flows.steady.additive_laws import AdditiveLaw
from landscapes.sampling import sampling_of

from ..lab.experiment import align_rows
from ..lab.store import Tensors
from .runs import ACCURACY, Curves, Pair, cell

PLACES = ("middle", "end")


def middle_step(k: int, epoch: int) -> int:
    """The step in the middle of the epoch that ends with step k; k itself if an epoch is one step."""
    return k - epoch // 2


def ends(epoch: int) -> list[int]:
    """Indices of the middle and the end of the last epoch among the kept states; one index if they coincide."""
    return [-2, -1] if epoch > 1 else [-1]


@dataclass(frozen=True)
class SamplingToyRow:
    """One b and sampling on the toy after k steps; parts contain the middle of the last epoch and its end."""

    law: AdditiveLaw
    k: int
    descent: Tensors
    equation: Tensors
    substeps: int

    def cells(self, j: int) -> list[str]:
        """SGD and its equation, each from paths and exactly, and Euler's error; j = 0 is the middle."""
        k = (middle_step(self.k, self.law.epoch), self.k)[j]
        found = [cell(float(part["mean"][j]), float(part["error"][j])) for part in (self.descent, self.equation)]
        exact = self.law.descent(k), self.law.equation(k * self.law.h)
        off = self.law.euler(k, self.substeps) - exact[1]
        return [found[0], f"{exact[0]:.4g}", found[1], f"{exact[1]:.4g}", f"{off:.1e}"]


@dataclass(frozen=True)
class SamplingToy:
    """The toy's results for all b and samplings."""

    rows: Sequence[SamplingToyRow]

    def table(self) -> str:
        """Mean losses in the middle of an epoch, then at its end."""
        blocks = []
        for j, place in enumerate(PLACES):
            rows = [["b", "sampling", "steps", "SGD", "exact", "SDE by Euler", "SDE exact", "Euler off by"]]
            rows += [[str(r.law.batch_size), r.law.sampling, str(r.k), *r.cells(j)] for r in self.rows]
            blocks.append(
                f"toy, {TOY_SIZE} examples: E f at the {place} of a late epoch of N/b steps\n{align_rows(rows)}"
            )
        return "\n\n".join(blocks)


@dataclass(frozen=True, eq=False)
class SamplingStudy:
    """The network's runs by b and sampling; its equations at one b."""

    heading: str
    size: int
    found: Mapping[tuple[int, str], Curves]
    equation_batch_size: int
    equations: Mapping[str, Curves]
    left: Mapping[str, Mapping[str, Pair]]
    drift: float
    """The loss of gradient flow at the end."""

    @cached_property
    def sizes(self) -> list[int]:
        """b, rising."""
        return list(dict.fromkeys(b for b, _ in self.found))

    def table(self) -> str:
        """A row for each b and sampling, and for each equation."""
        names = (LOSS, SQUARED_NORM, ACCURACY)
        rows = [
            ["b", "sampling", "bc", "scatter, middle", "scatter, end", f"{LOSS}, middle", *(f"{n}, end" for n in names)]
        ]
        models = [(b, sampling, "", curves) for (b, sampling), curves in self.found.items()]
        models += [(self.equation_batch_size, s, " SDE", curves) for s, curves in self.equations.items()]
        for b, sampling, kind, curves in models:
            scatter, error = curves.scatter()
            row = [str(b) + kind, sampling, f"{b * sampling_of(self.size, b, sampling).variance_factor():.3f}"]
            row += [cell(float(scatter[j]), float(error[j])) for j in (0, -1)]
            mean, error = curves.mean(LOSS)
            j = ends(self.size // b)[0]
            row.append(cell(float(mean[j]), float(error[j])))
            row += [cell(*(float(x[-1]) for x in curves.mean(name))) for name in names]
            rows.append(row)
        gaps = [
            f"{sampling} {'; '.join(f'{name} {cell(*(float(x[-1]) for x in left[name]))}' for name in names)}"
            for sampling, left in self.left.items()
        ]
        lost = sum(curves.lost for curves in (*self.found.values(), *self.equations.values()))
        more = [f"{lost} runs diverged and stay at their last finite position"] if lost else []
        caption = (
            "scatter: Σ Var θ over the runs; bc: variance of one step over that with replacement; SDEs extrapolated"
        )
        caption += f"\nwithout noise the SDEs are gradient flow, whose loss is {self.drift:.4f} at the end"
        return "\n".join(
            [self.heading, align_rows(rows), caption, f"integration was off by: {' | '.join(gaps)}", *more]
        )


TOY_SIZE = 16
