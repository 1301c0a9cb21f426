"""Numbers with standard errors, formatted for tables."""

from __future__ import annotations

import math


def with_error(value: float, error: float) -> str:
    """A number with its standard error, both to the second digit of the error; a dash for NaN."""
    if math.isnan(value):
        return "–"
    if not (math.isfinite(error) and error > 0):
        return f"{value:.4g}"
    digits = max(0, 1 - math.floor(math.log10(error)))
    if digits > 5 or abs(value) >= 1e5:
        return f"{value:.3e} ± {error:.1e}"
    return f"{value:.{digits}f} ± {error:.{digits}f}"
