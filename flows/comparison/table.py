r"""A comparison as text: a row for each flow, notes below, and the table of laws if those were compared."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from torch import Tensor

from flows.comparison.data import ComparisonData
from flows.comparison.laws import WeakError
from flows.tables import align


def worst(values: Tensor) -> float:
    """The largest entry that is not NaN; NaN if there is none."""
    values = values[~values.isnan()]
    return float(values.max()) if values.numel() else float("nan")


def at_end(values: Tensor) -> float:
    """The worst member's value at the last time; NaN where the run ended before, or never began."""
    return worst(values[-1]) if len(values) else float("nan")


KINDS = {"grad": "gradients", "hvp": "HVPs", "third": "thirds", "higher": "higher"}
"""Oracle calls and their columns; derivatives above the third have a column if a flow uses them."""


NOT_COUNTED = (
    "cost not known (–): no landscape in its fields, or one that cannot be counted, as in a closure, in a class that "
    "is no dataclass, or inside a landscape that does not override with_parts; see declared_landscapes and "
    "on_landscapes of flows.Flow"
)


ALONG_BATCHES = (
    "coupled flows follow the descent's mini-batches, which are not Brownian between its steps: their errors and "
    "losses are those of paths, and means over them are no laws"
)


def table(comparison: ComparisonData) -> str:
    """Rows aligned under their headings, notes below."""
    is_complex = comparison.has_complex
    heading = ["", "error at end", "largest error", "one-step error", "integration", "loss at end"]
    costs = comparison.cost.values()
    kinds = {k: v for k, v in KINDS.items() if k != "higher" or any(cost.get(k) for cost in costs)}
    heading += ["max |Im θ|"] * is_complex + [*kinds.values(), "status"]
    cost = comparison.descent.cost
    first = [comparison.name, "", "", "", "", f"{at_end(comparison.descent_losses):.6g}"]
    lines = [heading, first + [""] * is_complex + [*oracle_calls(cost, kinds), str(comparison.descent.status)]]
    for name, row in comparison.rows.items():
        if row.trajectory is None:
            lines.append([name] + [""] * (len(heading) - 2) + ["cannot run here"])
            continue
        median = row.one_step[~row.one_step.isnan()]
        numbers = [at_end(row.errors), worst(row.errors)]
        numbers += [float(median.median()) if median.numel() else float("nan"), worst(row.integration)]
        cells = [f"{x:.3e}" for x in numbers]
        cells[2] = cells[2] if median.numel() else ""  # the notes have the reason
        cells += [f"{at_end(row.losses):.6g}"]
        cells += [""] * is_complex if row.imaginary is None else [f"{worst(row.imaginary):.1e}"]
        series = "" if row.outside is None else f", outside its series: |hλ| = {row.outside:.4g}"
        lines.append([name, *cells, *oracle_calls(row.cost, kinds), f"{row.trajectory.status}{series}"])
    text = align(lines, left=(0, len(heading) - 1))
    return "\n".join([caption(comparison), *text, *footnotes(comparison), *laws(comparison)])


def laws(comparison: ComparisonData) -> list[str]:
    """The table of weak errors: a row for each observable and flow; empty if no laws were compared."""
    if not comparison.observed:
        return []
    lines = [["φ", "", "E φ at end", "± s.e.", "difference", "± s.e.", "largest", "± s.e.", "integration"]]
    for phi, (mean, error) in comparison.observed.items():
        lines.append([phi, comparison.name, *number_and_error(at_end(mean), at_end(error)), "", "", "", "", ""])
        for name, row in comparison.rows.items():
            if phi in row.weak:
                lines.append(["", name, *weak_cells(row.weak[phi])])
    if comparison.has_old_laws:
        told = "Laws: means over runs, less the descent's; standard errors, of differences run by run for coupled flows"
        return ["", told, *align(lines, left=(0, 1))]
    apart = ", of coupled flows over other runs, independent of the mini-batches" if comparison.coupled else ""
    return ["", f"Laws: means over runs{apart}, less the descent's; standard errors", *align(lines, left=(0, 1))]


def weak_cells(error: WeakError) -> list[str]:
    """The mean at the end, the difference there and where it is largest, and the largest integration error."""
    difference, bar = error.difference.reshape(-1), error.standard_error.reshape(-1)
    place = int(difference.abs().nan_to_num(-1.0).argmax())
    at_last = largest_member(error.difference[-1])
    last, last_bar = (float(x[-1].reshape(-1)[at_last]) for x in (error.difference, error.standard_error))
    cells = [
        f"{at_end(error.mean):.4g}",
        "",
        *number_and_error(last, last_bar),
        *number_and_error(float(difference[place]), float(bar[place])),
    ]
    return [*cells, f"{worst(error.integration.abs()):.1e}"]


def largest_member(values: Tensor) -> int:
    """The number of the batch member (...) with the largest modulus."""
    return int(values.reshape(-1).abs().nan_to_num(-1.0).argmax())


def number_and_error(value: float, error: float) -> list[str]:
    """A number and its standard error, if it has one."""
    return [f"{value:.4g}", "" if math.isnan(error) else f"{error:.1e}"]


def oracle_calls(cost: Mapping[str, float], kinds: Iterable[str]) -> list[str]:
    """Gradients, HVPs and higher derivatives of a run; dashes if they are not known."""
    return [f"{cost.get(kind, 0):.5g}" for kind in kinds] if counts_calls(cost) else ["–" for _ in kinds]


def counts_calls(cost: Mapping[str, float]) -> bool:
    """Whether a run's oracle calls were counted."""
    return any(kind in cost for kind in KINDS)


def caption(comparison: ComparisonData) -> str:
    """The title: descent, steps, time."""
    steps, end = len(comparison.times) - 1, float(comparison.times[-1])
    against = comparison.name if comparison.runs == 1 else f"the mean of {comparison.runs} runs of {comparison.name}"
    batch = tuple(comparison.mean.shape[1:-1])
    members = f", worst member of the batch {batch}" if batch else ""
    return f"Flows against {against}: {steps} steps, t = 0 … {end:.6g}{members}; one-step errors are medians"


def footnotes(comparison: ComparisonData) -> list[str]:
    """The notes below the table."""
    lines = []
    if comparison.standard_error is not None:
        lines.append(f"standard error of the mean at the end: {at_end(comparison.standard_error):.3e}")
    if comparison.noise_floor is not None:
        floor = float(comparison.noise_floor.nanmedian())
        coupled = ", of coupled flows against the step itself" if comparison.coupled else ""
        noise = f"noise floor h·sqrt(tr Cov): {floor:.3e} (median)"
        lines.append(f"one-step errors are against the full-batch step{coupled}; {noise}")
    if comparison.coupled and not comparison.has_old_laws:
        both = "; the cost includes the independent runs of their laws" if comparison.observed else ""
        lines.append(f"{ALONG_BATCHES}{both}")
    if comparison.descent.status != "finished" or not bool(comparison.descent.alive.all()):
        lines.append(f"{comparison.name}: {comparison.descent.status.sentence}")
    if not counts_calls(comparison.descent.cost):
        lines.append(f"{comparison.name}: {NOT_COUNTED}")
    for name, row in comparison.rows.items():
        ended = [
            run.status.sentence for run in row.trajectories if run.status != "finished" or not bool(run.alive.all())
        ]
        said = [*ended, *(note for run in row.trajectories for note in run.notes), *row.notes]
        lines += [f"{name}: {note}" for note in dict.fromkeys(said)]
        if row.trajectories and not counts_calls(row.cost):
            lines.append(f"{name}: {NOT_COUNTED}")
    return lines
