r"""The catalogue as tables of the pages, between the comments ``<!-- NAME -->`` and ``<!-- end -->``.

``python -m flows.catalogue README.md docs/models.md`` rewrites them after a change of a row.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch

from flows.catalogue.descents import DESCENTS
from flows.catalogue.flows import FLOWS
from flows.catalogue.observers import OBSERVERS
from flows.catalogue.optimisers import models_of
from flows.catalogue.rows import DescentRow, Example, FlowRow, write_power

USUAL = DESCENTS["GradientDescent"].gradients
BLOCK = re.compile(r"<!-- ([\w-]+) -->\n(.*?)<!-- end -->", flags=re.DOTALL)


def write_table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; a bar within a cell is escaped, as GitHub reads it as the end of the cell."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def write_costs(examples: Mapping[str, Example]) -> str:
    """The costs of a row's examples, those that are equal once."""
    found: dict[str, str] = {}
    for name, example in examples.items():
        found.setdefault(str(example.cost), name)
    if len(found) == 1:
        return next(iter(found))
    return "; ".join(f"{name}: {cost}" for cost, name in found.items())


def write_form(row: DescentRow, gradients: str) -> str:
    """The torch call that a descent is, with its gradients unless they are the usual ones."""
    if row.torch is None:
        return row.equals
    return f"`{row.torch.text}`" + ("" if gradients == USUAL else f", gradients {gradients}")


def write_clock(row: DescentRow) -> str:
    """The clock of a descent with its unit of h: t = k·h, h = lr."""
    return row.clock if row.rate == "h" else f"{row.clock}, {row.rate}"


def flow_table() -> str:
    """The descent that each flow models, its clock, and the orders."""
    headings = ("flow", "models", "clock", "error of one step", "at a fixed time", "noise")
    return write_table(headings, map(flow_cells, FLOWS.values()))


def flow_cells(row: FlowRow) -> tuple[str, ...]:
    """A line of ``flow_table``."""
    models = row.reason if row.descent is None else f"`{row.descent.name}`, {write_form(row.descent, row.gradients)}"
    per_span = f"{write_power(row.local)}{' over an epoch' if row.span != 1 else ''}"
    after = " after the transient" if row.settles else ""
    noise = ", ".join(row.noise) or "–"
    clock = row.clock if row.descent is None else write_clock(row.descent)
    return f"`{row.name}`", models, clock, per_span + after, write_power(row.whole), noise


def validity_table() -> str:
    """Where each flow is valid, the cost of an evaluation, and the source."""
    rows = ((f"`{row.name}`", row.valid, write_costs(row.examples), row.source) for row in FLOWS.values())
    return write_table(("flow", "valid where", "cost of an evaluation", "source"), rows)


def descent_table() -> str:
    """Each descent, the torch optimiser that it is, its state, clock and cost."""
    headings = ("descent", "torch.optim", "clock", "state", "cost of a step", "random", "source")
    return write_table(headings, map(descent_cells, DESCENTS.values()))


def descent_cells(row: DescentRow) -> tuple[str, ...]:
    """A line of ``descent_table``."""
    torchs = write_form(row, row.gradients) + ("" if row.torch is None or row.torch.exact else ", up to rounding")
    draws = "yes" if row.draws else "no"
    return f"`{row.name}`", torchs, write_clock(row), row.state, write_costs(row.examples), draws, row.source


def observer_table() -> str:
    """The quantities that each observer records, its cost and needs."""
    headings = ("observer", "records", "cost of a state", "takes", "complex θ", "source")
    rows = (
        (f"`{row.name}`", row.about, str(row.cost), row.needs, "refused" if row.real else "taken", row.source)
        for row in OBSERVERS.values()
    )
    return write_table(headings, rows)


def optimiser_table() -> str:
    """The flows of torch.optim.SGD, a line for its arguments and gradients, a column for each conversion."""
    kinds: dict[tuple[str, str], dict[str, list[str]]] = {}
    conversions: dict[str, None] = {}
    for row in FLOWS.values():
        if row.descent is not None and row.descent.torch is not None:
            form = row.descent.torch
            conversions[form.conversion] = None
            cells = kinds.setdefault((form.call, row.gradients), {})
            cells.setdefault(form.conversion, []).append(f"`{row.name}`")
    lines = (
        (f"`{call}`", gradients, *(", ".join(cells.get(conversion, [])) for conversion in conversions))
        for (call, gradients), cells in kinds.items()
    )
    return write_table(("torch.optim", "gradients", *(f"flows with {c}" for c in conversions)), lines)


def example() -> str:
    """The result of ``models_of`` for SGD with momentum, as it prints."""
    return f"```text\n{models_of(torch.optim.SGD, lr=0.01, momentum=0.9)}\n```"


TABLES: dict[str, Callable[[], str]] = {
    "flows": flow_table,
    "validity": validity_table,
    "descents": descent_table,
    "observers": observer_table,
    "optimisers": optimiser_table,
    "example": example,
}
"""The blocks by the name in their comment."""


def rewrite(page: str) -> str:
    """The page with every block as the catalogue has it; ValueError if it has none, or one of another name."""
    names = [match[1] for match in BLOCK.finditer(page)]
    unknown = sorted(set(names) - TABLES.keys())
    if unknown or not names:
        raise ValueError(
            f"page must have blocks <!-- NAME --> … <!-- end -->, NAME one of {', '.join(TABLES)}, "
            f"got {', '.join(unknown) or 'none'}"
        )
    return BLOCK.sub(lambda match: f"<!-- {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->", page)
