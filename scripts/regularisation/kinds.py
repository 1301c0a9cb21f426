r"""The compared runs by name: rates, penalties, names in tables and figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """A descent: at the rate H, or the small one h, on f + c‖∇f‖² with c a function of (H, h)."""

    label: str
    small: bool
    coefficient: Callable[[float, float], float]


KINDS = {
    "large": Kind("descent at H", False, lambda H, h: 0.0),
    "small": Kind("descent at h", True, lambda H, h: 0.0),
    "whole": Kind("at h, with H/4 · ‖∇f‖²", True, lambda H, h: H / 4),
    "explicit": Kind("at h, with (H − h)/4 · ‖∇f‖²", True, lambda H, h: (H - h) / 4),
    "cancelled": Kind("at H, with −H/4 · ‖∇f‖²", False, lambda H, h: -H / 4),
}
FLOWS = {"flow": "gradient flow", "penalised-flow": "flow of f + H/4 · ‖∇f‖²"}
"""The limits for small rates: gradient flow of f, and of the modified loss of descent at H."""
Pair = tuple[str, str]
PAIRS: tuple[Pair, ...] = (
    ("small", "large"),
    ("whole", "large"),
    ("explicit", "large"),
    ("penalised-flow", "large"),
    ("large", "flow"),
    ("cancelled", "flow"),
)
"""Pairs of runs whose distance is measured."""
PREDICTIONS = {"plain": "f", "norm": "f + ‖∇f‖² term", "variance": "f + ‖∇f‖² and variance terms"}
SAMPLINGS = {"epoch": "reshuffled", "replacement": "with replacement"}
OWN = {"epoch": "variance", "replacement": "norm"}
"""The prediction that is the modified loss of a sampling."""


def label_of(name: str) -> str:
    """Name of a full-batch run in tables and figures."""
    return KINDS[name].label if name in KINDS else FLOWS[name]


def pair_label(pair: Pair) -> str:
    """Name of a distance in tables and figures."""
    return f"{label_of(pair[0])} to {label_of(pair[1])}"
