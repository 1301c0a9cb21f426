"""Argument checks that every model shares."""

from __future__ import annotations

from landscapes import Landscape
from landscapes.errors import check_positive


def check_model(landscape: Landscape, h: float | None = None) -> None:
    """Raise unless ``landscape`` is a Landscape and the learning rate h, where there is one, is positive and finite."""
    if not isinstance(landscape, Landscape):
        raise TypeError(f"landscape must be a Landscape, got {type(landscape).__name__}")
    if h is not None:
        check_positive("h", h)
