r"""Shared by all figures: colours, dashes and markers of the i-th line, and writing a figure to disk."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from flows.engines.storage import FolderError, replace_file, writable_folder

# Okabe and Ito's colours are distinct to colour-blind readers; dashes and markers distinguish the lines in grey.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)), (0, (3, 1)), (0, (1, 1)))
MARKERS = ("s", "^", "D", "v", "P", "X")
Style = dict[str, Any]


def style(i: int) -> Style:
    """Colour, dashes and marker of the i-th flow."""
    colour = COLOURS[i % len(COLOURS)]
    return {"color": colour, "linestyle": DASHES[i % len(DASHES)], "marker": MARKERS[i % len(MARKERS)], "markersize": 3}


def with_markers(style: Style, length: int) -> Style:
    """The style with at most about ten markers on a line."""
    return {**style, "markevery": max(1, length // 10)}


def save_figure(figure: Figure, path: str | os.PathLike[str], dpi: int = 200) -> Path:
    """Write a figure, as PNG unless the path's ending says otherwise, and return its path. Raises FolderError."""
    target = Path(path) if Path(path).suffix else Path(path).with_suffix(".png")
    writable_folder(target.parent)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=dpi, format=target.suffix[1:])
    try:
        replace_file(target, drawn.getbuffer())
    except FolderError as error:
        raise FolderError(f"path {str(target)!r} cannot be written ({error.__cause__}); name another one") from error
    return target
