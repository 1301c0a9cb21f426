"""Base class of the experiments: result folder, device, precision, figure."""

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

from flows.figures import COLOURS, DASHES, MARKERS, save_figure
from flows.tables import align

from .command_line import DTYPES, check_device, use_threads
from .store import Store

MODELS = {"gradient flow": 0, "IGR flow": 1, "principal flow": 2, "principal flow, real branch": 3}
"""Models by the index of their colour, the same in every figure."""
ELSEWHERE = {"out", "figure", "device", "threads", "root"}  # options without influence on the results


@dataclass(frozen=True)
class Common:
    """Options of every experiment."""

    out: Path | None = None
    """Folder of the results, including figure.png and table.txt; default results/PACKAGE/EXPERIMENT. An interrupted run
    resumes there."""
    figure: Path | None = None
    """Second path to which the figure is written."""
    device: str = "cpu"
    """Device: cpu, cuda, cuda:1, …"""
    threads: int | None = None
    """Threads on the CPU; default: torch's choice."""
    dtype: Literal["float64", "float32"] = "float64"
    """Precision."""
    seed: int = 0
    """Seed of weights, choice of data and mini-batches."""

    @property
    def name(self) -> str:
        """The experiment's subcommand: the class name in kebab case, without a final Experiment."""
        words = type(self).__name__.removesuffix("Experiment")
        return "".join(f"-{c.lower()}" if c.isupper() else c for c in words).lstrip("-")

    @property
    def real(self) -> torch.dtype:
        """The precision as a dtype."""
        return DTYPES[self.dtype]

    def configuration(self) -> dict[str, Any]:
        """The options on which the results depend."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {"experiment": self.name} | {key: value for key, value in values.items() if key not in ELSEWHERE}

    def store(self, **more: Any) -> Store:
        """The result folder for these options and the additional entries ``more`` of the configuration."""
        check_device(self.device)
        use_threads(self.threads)
        folder = Path("results/principal_flow") / self.name if self.out is None else self.out
        return Store(folder, self.configuration() | more)

    def draw(self, store: Store, figure: Figure) -> None:
        """Write the figure to the result folder and, if given, to the path of --figure."""
        for path in [store.folder / "figure.png", *([] if self.figure is None else [self.figure])]:
            print(f"figure: {save_figure(figure, path, dpi=160)}", flush=True)


def model_style(model: str) -> dict[str, Any]:
    """Colour, dashes and marker of a model."""
    i = MODELS[model]
    return {"color": COLOURS[i], "linestyle": DASHES[i], "marker": MARKERS[i], "markersize": 3.5}


def legend(figure: Figure, models: Sequence[str], others: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """One legend above the panels: models, and other lines with their styles."""
    handles = [Line2D([], [], label=model, **model_style(model)) for model in models]
    handles += [Line2D([], [], label=name, **dict(style)) for name, style in (others or {}).items()]
    figure.legend(
        handles=handles, loc="outside upper center", ncols=min(5, len(handles)), fontsize="small", frameon=False
    )


def label(axes: Axes, x: str, y: str, title: str, *, log: str = "") -> None:
    """Set axis labels, title, logarithmic axes ("x", "y", "xy") and a light grid."""
    axes.set(xlabel=x, ylabel=y)
    axes.set_title(title, fontsize="medium")
    if "x" in log:
        axes.set_xscale("log")
    if "y" in log:
        axes.set_yscale("log")
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_axisbelow(True)


def align_rows(rows: Sequence[Sequence[str]]) -> str:
    """Rows as the lines of a table, the first column left-aligned."""
    return "\n".join(align(rows))
