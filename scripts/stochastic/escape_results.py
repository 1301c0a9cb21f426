"""Escape times of one noise: measured, exact and approximate."""

from __future__ import annotations

from dataclasses import dataclass

from .passage import MeanTime


@dataclass(frozen=True)
class Escapes:
    """Mean times of one noise at one temperature; ``runs``: SDE at dt, SDE at dt/2, noisy gradient descent."""

    noise: str
    temperature: float
    along: float
    """T_x."""
    kramers: float
    exact: float
    """The integral for the SDE."""
    seen: tuple[float, float]
    """The integral to the target as shifted by observation every dt and every dt/2."""
    chain: float
    """The exact mean time of noisy gradient descent."""
    runs: tuple[MeanTime, MeanTime, MeanTime]
