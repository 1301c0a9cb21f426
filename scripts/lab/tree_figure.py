"""Rooted trees drawn with their coefficients, sized for one column of text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import sympy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextPath

from flows.figures import COLOURS
from flows.series import Series, Tree
from flows.series.latex import oriented
from flows.series.methods import Exact

WIDTH, UNIT = 3.4, 0.15  # inches: of the figure, and between neighbouring vertices
GAP, LABEL, FIRST = 1.3, 1.4, 3.4  # units: between trees, below a root for its coefficient, before a row for its order
SMALL = 7  # points
LOOKS = {"f": ("o", "black"), "x": ("o", COLOURS[0]), "r": ("s", COLOURS[4]), "g": ("^", COLOURS[2])}
MEANINGS = {"x": "x, (v, 0)", "r": "r, (0, −μv)", "g": "g, (0, −∇f)"}


@dataclass(frozen=True)
class Shape:
    """A tree in units: vertices (x, y, colour) and edges between vertex numbers; vertex 0 is the root, at y = 0."""

    vertices: list[tuple[float, float, str]]
    edges: list[tuple[int, int]]

    @property
    def height(self) -> float:
        """Height above the root in units."""
        return max(y for _, y, _ in self.vertices)


@dataclass(frozen=True)
class TreeCell:
    """A tree with its coefficient, ``width`` units wide."""

    shape: Shape
    label: str
    width: float
    faint: bool


def shape_of(whole: Tree) -> Shape:
    """Place the leaves side by side and every other vertex centred below its children."""
    vertices: list[tuple[float, float, str]] = []
    edges: list[tuple[int, int]] = []
    leaves = iter(range(whole.order))

    def place(vertex: Tree, depth: int) -> int:
        number = len(vertices)
        vertices.append((0.0, depth, vertex.colour))
        above = [place(child, depth + 1) for child in vertex.children]
        x = (vertices[above[0]][0] + vertices[above[-1]][0]) / 2 if above else next(leaves)
        vertices[number] = (x, depth, vertex.colour)
        edges.extend((number, child) for child in above)
        return number

    place(whole, 0)
    return Shape(vertices, edges)


def coefficient_label(c: Exact) -> str:
    """A fraction on one line; a quotient with symbols in mathematical notation."""
    sign, size = oriented(c)
    minus = "−" if sign < 0 else ""
    return f"{minus}{size}" if size.is_Rational else f"${minus}{sympy.latex(size)}$"


def cell_of(whole: Tree, series: Series) -> TreeCell:
    """The tree with the larger of its width and the width of its typeset coefficient."""
    shape = shape_of(whole)
    c = series.coefficient(whole)
    label = coefficient_label(c)
    text = TextPath((0, 0), label, prop=FontProperties(size=SMALL)).get_extents().width / 72 / UNIT
    return TreeCell(shape, label, max(*(x for x, _, _ in shape.vertices), text), c == 0)


def rows_of(trees: Sequence[Tree], series: Series) -> Iterator[tuple[int, list[TreeCell]]]:
    """Order and cells of each row; an order starts a row and continues in another one if the width is exceeded."""
    room = WIDTH / UNIT - FIRST - GAP
    for order in sorted({whole.order for whole in trees}):
        row: list[TreeCell] = []
        for cell in (cell_of(whole, series) for whole in trees if whole.order == order):
            if row and sum(c.width + GAP for c in row) + cell.width > room:
                yield order, row
                row = []
            row.append(cell)
        yield order, row


def draw_trees(trees: Sequence[Tree], series: Series) -> Figure:
    """The trees of each order in rows, roots below, with b/σ beneath; trees with coefficient zero are faint."""
    rows = list(rows_of(trees, series))
    split = len(series.grammar) > 1
    heights = [max(cell.shape.height for cell in row) + LABEL + GAP for _, row in rows]
    taken = max((FIRST + sum(cell.width + GAP for cell in row) for _, row in rows), default=0.0)
    across, total = max(WIDTH / UNIT, taken), sum(heights) + (2.4 if split else 0.8)
    figure = Figure(figsize=(across * UNIT, total * UNIT))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, across), ylim=(-total, 0), aspect="equal")
    axes.set_axis_off()
    y, before = -(2.0 if split else 0.4), 0
    for (order, row), height in zip(rows, heights, strict=True):
        y -= height
        if order != before:
            axes.text(0.2, y + LABEL + 0.2, f"order {order}", fontsize=SMALL - 0.5, color="0.45", va="center")
        draw_row(axes, row, y + LABEL + 0.2)
        before = order
    if split:
        marks = [
            Line2D([], [], marker=LOOKS[c][0], color=LOOKS[c][1], linestyle="none", markersize=4, label=meaning)
            for c, meaning in MEANINGS.items()
        ]
        figure.legend(handles=marks, loc="upper center", ncols=3, fontsize=SMALL, frameon=False, handletextpad=0.1)
    return figure


def draw_row(axes: Axes, row: Sequence[TreeCell], ground: float) -> None:
    """Cells side by side, roots at height ``ground``."""
    left = FIRST
    for cell in row:
        xs = [x for x, _, _ in cell.shape.vertices]
        middle = left + cell.width / 2
        shift = middle - (min(xs) + max(xs)) / 2
        for a, b in cell.shape.edges:
            (x0, y0, _), (x1, y1, _) = cell.shape.vertices[a], cell.shape.vertices[b]
            axes.plot(
                [x0 + shift, x1 + shift], [y0 + ground, y1 + ground], color="0.8" if cell.faint else "0.3", lw=0.8
            )
        for x, y, colour in cell.shape.vertices:
            marker, ink = LOOKS[colour]
            shown = "0.8" if cell.faint else ink
            axes.plot([x + shift], [y + ground], marker=marker, color=shown, markersize=4, linestyle="none", zorder=3)
        axes.text(
            middle,
            ground - 0.6,
            cell.label,
            fontsize=SMALL,
            ha="center",
            va="top",
            color="0.6" if cell.faint else "black",
        )
        left += cell.width + GAP
