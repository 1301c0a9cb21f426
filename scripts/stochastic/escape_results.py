"""Escape times of one noise: measured, exact and approximate."""

from __future__ import annotations

from dataclasses import dataclass

from .passage import MeanTime


@dataclass(frozen=True)
class Escapes:
    """Mean times of one noise at one temperature; ``runs``: dt and dt/2 of the SDE, and noisy gradient descent."""

    noise: str
    temperature: float
    along: float
    """T_x."""
    kramers: float
    exact: float
    """The integral for the SDE."""
    seen: tuple[float, float]
    """The same to where the target seems to lie, looked at every dt and every dt/2."""
    chain: float
    """The exact mean time of noisy gradient descent."""
    runs: tuple[MeanTime, MeanTime, MeanTime]
