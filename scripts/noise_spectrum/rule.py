r"""Chaudhari & Soatto's rule put to the test: keep (h/b) · mean λ(D) the same from task to task.

Three arms at one batch size b, with λ̄ the mean of D's eigenvalues, tr D/d, measured in the first arm's own training:

    fixed      h for every pair
    rule       h·Λ/λ̄, so that (h/b) λ̄ is the same for all, as far as λ̄ stays what it was at the fixed h
    reverse    h·λ̄/Λ, as far from the fixed h, the other way

Λ is the geometric mean of λ̄ over an architecture's pairs (or over all cells, ``--over all``): the geometric mean of h
is then the same in every arm, and an arm cannot win by larger steps as such.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..lab.experiment import align_rows
from ..lab.store import Store
from .cells import Cell, OnPairs, Run
from .common import Architecture, shown, shown_statistic, whole_epochs
from .looks import Statistic, over_seeds
from .pairs_figures import rule_figure
from .rule_arms import Arm, Arms

ARMS = {"fixed": 0, "rule": -1, "reverse": 1}
"""Arms by the power of λ̄/Λ that h is multiplied by."""


@dataclass(frozen=True)
class Rule(OnPairs):
    """The rule that keeps (h/b) mean λ(D) constant against a fixed h/b and against its reverse: test errors."""

    architectures: tuple[Architecture, ...] = ("small-lenet", "small-fc")
    """Networks."""
    over: Literal["architecture", "all"] = "architecture"
    """What (h/b) mean λ(D) is kept constant over: the pairs of each network, or all pairs of all networks."""
    at: float = 0.2
    """Fraction of training at which mean λ(D) is measured."""

    def run(self) -> None:
        """Train at the fixed h, choose h by the rule, train again, print, draw."""
        self.check()
        epochs = whole_epochs((self.at, 1.0) if self.at != 1 else (1.0,), self.epochs)
        store = self.open()
        arms: dict[Cell, dict[str, Arm]] = {}
        for cell in self.cells:
            arms[cell] = {"fixed": self.arm(store, cell, self.h, epochs)}
        scales = {cell: self.scale(cell, arms) for cell in arms}
        for cell, own in arms.items():
            ratio = own["fixed"].mean_eigenvalue / scales[cell]
            for name in ("rule", "reverse"):
                own[name] = self.arm(store, cell, self.h * ratio ** ARMS[name], epochs)
        heading = (
            f"{self.says()}: {self.epochs} epochs of SGD in "
            f"mini-batches of b = {self.batch_size}, norm {self.norm}; λ̄ = tr D/d of {self.images} images after "
            f"{100 * self.at:g} % of training, {self.seeds} seeds"
        )
        store.table("\n\n".join([heading, cell_table(arms, self.batch_size), self.summary(arms)]))
        self.draw(store, rule_figure(arms, self.batch_size))

    def configuration(self) -> dict[str, Any]:
        """Without what the rule is kept over: parts on disk are kept by h."""
        return {key: value for key, value in super().configuration().items() if key != "over"}

    def arm(self, store: Store, cell: Cell, h: float, epochs: Sequence[int]) -> Arm:
        """A cell trained at h with every seed."""
        runs = [Run(self, store, cell, h, seed).looks(epochs) for seed in range(self.seed, self.seed + self.seeds)]
        return Arm(h, [looks[0] for looks in runs], [looks[-1] for looks in runs])

    def scale(self, cell: Cell, arms: Mapping[Cell, Arms]) -> float:
        """Λ, the geometric mean of λ̄ over the cells that the cell is grouped with."""
        return geometric_mean(
            [own["fixed"].mean_eigenvalue for other, own in arms.items() if self.together(cell, other)]
        )

    def together(self, one: Cell, other: Cell) -> bool:
        """Whether the rule makes (h/b) λ̄ of two cells the same."""
        return self.over == "all" or one.architecture == other.architecture

    def summary(self, arms: Mapping[Cell, Arms]) -> str:
        """For each architecture and for all: spread of (h/b) λ̄ in each arm, and differences in test error."""
        groups: dict[str, list[Arms]] = {}
        for cell, own in arms.items():
            groups.setdefault(cell.architecture, []).append(own)
        if len(groups) > 1:
            groups["all"] = list(arms.values())
        rows = [
            ["network", *(f"spread of (h/b) λ̄, {arm}" for arm in ARMS), "λ̄ ∝ h^s, s", "rule − fixed", "reverse − fixed"]
        ]
        for name, members in groups.items():
            spreads = [f"{spread([own[arm].h * own[arm].mean_eigenvalue for own in members]):.2f}" for arm in ARMS]
            differences = [shown_statistic(mean_difference(members, arm)) for arm in ("rule", "reverse")]
            rows.append([name, *spreads, shown(powers(members)), *differences])
        note = (
            "spread: largest over smallest, over pairs; differences of test error in points of %, means over pairs "
            "with standard errors over seeds"
        )
        return f"{align_rows(rows)}\n{note}"


def geometric_mean(values: Sequence[float]) -> float:
    """exp of the mean logarithm; raise ArithmeticError unless all are positive."""
    if not all(value > 0 for value in values):
        raise ArithmeticError("mean λ(D) is zero for a pair: the rule would ask for an infinite learning rate")
    return math.exp(math.fsum(map(math.log, values)) / len(values))


def spread(values: Sequence[float]) -> float:
    """Largest over smallest."""
    return max(values) / min(values)


def difference(own: Arms, arm: str) -> list[float]:
    """Test error of an arm less that at the fixed h, in points of %, of trainings with equal seeds."""
    return [one - other for one, other in zip(own[arm].errors, own["fixed"].errors, strict=True)]


def mean_difference(members: Sequence[Arms], arm: str) -> Statistic:
    """Mean over cells, whose seeds are independent and who are what they are: errors add in squares."""
    found = [over_seeds(difference(own, arm)) for own in members]
    return Statistic(
        math.fsum(each.mean for each in found) / len(found),
        math.sqrt(math.fsum(each.error**2 for each in found)) / len(found),
    )


def powers(members: Sequence[Arms]) -> list[float]:
    r"""For each seed the s of λ̄ ∝ h^s that fits best between the arms rule and reverse of the cells: the response to h.

    The rule makes (h/b) λ̄ constant where s = 0, and cannot where s = −1. Cells whose rule keeps h say nothing.
    """
    steps = [math.log(own["rule"].h / own["reverse"].h) for own in members]
    size = math.fsum(step**2 for step in steps)
    found = []
    for i in range(len(members[0]["rule"].early)):
        ends = [(own["rule"].early[i].spectrum.mean, own["reverse"].early[i].spectrum.mean) for own in members]
        if size == 0 or not all(one > 0 and other > 0 for one, other in ends):
            found.append(math.nan)
            continue
        changes = [math.log(one / other) for one, other in ends]
        found.append(math.fsum(change * step for change, step in zip(changes, steps, strict=True)) / size)
    return found


def cell_table(arms: Mapping[Cell, Arms], batch_size: int) -> str:
    """A row for each cell: h, (h/b) λ̄ and test error in each arm, means over seeds with standard errors."""
    heading = ["network", "pair", "λ̄ at the fixed h", *(f"h, {arm}" for arm in ARMS)]
    heading += [f"(h/b) λ̄, {arm}" for arm in ARMS] + [f"test error, %, {arm}" for arm in ARMS] + ["rule − fixed"]
    rows = [heading]
    for cell, own in arms.items():
        row = [cell.architecture, cell.pair, shown([look.spectrum.mean for look in own["fixed"].early])]
        row += [f"{own[arm].h:.3g}" for arm in ARMS]
        row += [shown([own[arm].h / batch_size * look.spectrum.mean for look in own[arm].early]) for arm in ARMS]
        row += [shown(own[arm].errors) for arm in ARMS]
        rows.append([*row, shown(difference(own, "rule"))])
    return align_rows(rows)
