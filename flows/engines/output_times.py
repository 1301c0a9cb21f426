r"""Output times: float64 whatever the precision of θ, and where they are given in less, the times that they round.

Times of float32 or less are within 2 eps max|t| of those that were meant (``torch.linspace`` rounds its step and its
sums). A fixed step says which those are: if all lie that close to times[0] + k·dt, they are taken to be these. So does
a ``State`` that a run starts from. Adaptive methods take the others as they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from landscapes.errors import check_computable

ROUNDINGS = 2  # errors of times in units of eps max|t|


def check_times(times: Tensor | Sequence[float], dt: float | None = None, begin: float | None = None) -> list[float]:
    """Output times as floats; raise unless they are 1-D, real, finite, strictly increasing and at least two.

    Times of less than float64 are replaced by the points of the grid of steps ``dt`` that they round, and their first
    by the time ``begin`` that it rounds.
    """
    given = array_of("times", times)
    if given.dtype.kind not in "fiu":
        raise TypeError(f"times must be real numbers, got dtype {given.dtype}")
    if given.ndim != 1 or given.shape[0] < 2:
        raise ValueError(f"times must be one-dimensional with at least two entries, got shape {given.shape}")
    values = given.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("times must be finite, got NaN or infinite entries")
    if not (np.diff(values) > 0).all():
        raise ValueError("times must be strictly increasing, times[0] being the start")
    return meant_times(values, rounding_of(times, values), dt, begin).tolist()


def array_of(name: str, times: Tensor | Sequence[float]) -> np.ndarray:
    """The times as an array of their own precision, bfloat16 as float32; raise ValueError unless they form one."""
    if isinstance(times, Tensor):
        times = check_computable(name, times).detach().cpu()
        return (times.float() if times.dtype.is_floating_point and times.dtype.itemsize == 2 else times).numpy()
    try:
        return np.asarray(times)
    except (ValueError, TypeError, RuntimeError) as error:  # of ragged rows, and of tensors that are no numbers
        raise ValueError(f"{name} must be one-dimensional real numbers ({error})") from error


def rounding_of(times: Tensor | Sequence[float], values: np.ndarray) -> float:
    """How far times may be from those that were meant: 2 eps max|t| below float64, 0 for float64 and integers."""
    if isinstance(times, Tensor):
        eps = torch.finfo(times.dtype).eps if times.dtype.is_floating_point else 0.0
    else:
        given = np.asarray(times).dtype
        eps = float(np.finfo(given).eps) if given.kind == "f" else 0.0
    if eps <= np.finfo(np.float64).eps or not values.size:
        return 0.0
    return ROUNDINGS * eps * float(np.abs(values).max())


def meant_times(values: np.ndarray, rounding: float, dt: float | None, begin: float | None) -> np.ndarray:
    """The times that float64 values round, to within ``rounding``; the values themselves where nothing says which."""
    start = values[0] if begin is None or abs(values[0] - begin) > rounding else begin
    if not rounding:
        return values
    meant = np.concatenate([[start], values[1:]])
    if not isinstance(dt, (int, float)) or not 4 * rounding < dt < math.inf:
        return meant
    grid = start + np.rint((meant - start) / dt) * dt
    return grid if (np.abs(values - grid) <= rounding).all() else meant
