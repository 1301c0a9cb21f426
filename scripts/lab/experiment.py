"""What every experiment has: where to write, how to run, how to draw."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from flows.engines.trajectory import writable_folder
from flows.figures import COLOURS, DASHES, MARKERS

from .command_line import DTYPES, check_device, use_threads
from .store import Store

MODELS = {"gradient flow": 0, "IGR flow": 1, "principal flow": 2, "principal flow, real branch": 3}
"""Models by the number of their colour, the same in every figure."""
ELSEWHERE = {"out", "figure", "device", "threads", "root"}  # options that leave the results as they are


@dataclass(frozen=True)
class Common:
    """Options of every experiment."""

    out: Path | None = None
    """Folder of results, figure.png and table.txt among them; by default results/PACKAGE/EXPERIMENT. A run that was
    stopped goes on there."""
    figure: Path | None = None
    """Where else to write the figure."""
    device: str = "cpu"
    """Where to run: cpu, cuda, cuda:1, …"""
    threads: int | None = None
    """Threads on the CPU, torch's own choice by default."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision."""
    seed: int = 0
    """Seeds weights, data limits and mini-batches."""

    @property
    def name(self) -> str:
        """The experiment's subcommand."""
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in type(self).__name__).lstrip("-")

    @property
    def real(self) -> torch.dtype:
        """The precision as a dtype."""
        return DTYPES[self.dtype]

    def configuration(self) -> dict[str, Any]:
        """What the results depend on."""
        said = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"experiment": self.name} | {key: value for key, value in said.items() if key not in ELSEWHERE}

    def store(self, **more: Any) -> Store:
        """The folder of results, for these options and ``more`` of the configuration."""
        check_device(self.device)
        use_threads(self.threads)
        folder = Path("results/principal_flow") / self.name if self.out is None else self.out
        return Store(folder, self.configuration() | more)

    def draw(self, store: Store, figure: Figure) -> None:
        """Write the figure beside the results, and where else it was asked for."""
        for path in [store.folder / "figure.png", *([] if self.figure is None else [self.figure])]:
            writable_folder(path.parent)
            figure.savefig(path, dpi=160)
            print(f"figure: {path}", flush=True)


def look(model: str) -> dict[str, Any]:
    """Colour, dashes and marker of a model."""
    i = MODELS[model]
    return {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i], "markersize": 3.5}


def legend(figure: Figure, models: Sequence[str], others: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """One legend above the panels: models, and other lines with their looks."""
    handles = [Line2D([], [], label=model, **look(model)) for model in models]
    handles += [Line2D([], [], label=name, **dict(style)) for name, style in (others or {}).items()]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(5, len(handles)), fontsize="small", frameon=False
    )


def label(axes: Axes, x: str, y: str, title: str, *, log: str = "") -> None:
    """Names, title, logarithmic axes ("x", "y", "xy") and a light grid."""
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize="medium")
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of a table under their heading, the first column to the left."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in rows
    ]
    return "\n".join(line.rstrip() for line in lines)
