"""Errors and argument checks shared by all packages.

Errors are ``ValueError`` or ``TypeError`` (or subclasses), raised where arguments enter; the message names the
argument, the value given and the values accepted.
"""

from __future__ import annotations

import math
import numbers
import sys

import numpy as np
import torch
from torch import Tensor


class UnsupportedError(TypeError):
    """The operation is valid but this landscape or flow does not support it; the message names an alternative."""


class NotHolomorphicError(UnsupportedError):
    """Complex parameters were given to a loss that has no holomorphic derivative."""


class SmoothnessWarning(UserWarning):
    """A flow takes derivatives of a higher order than the landscape is known to have."""


PACKAGES = ("landscapes", "nets", "flows")
"""The packages of this project."""


def callers_level() -> int:
    """``stacklevel`` that attributes a warning raised by the caller to the innermost line outside our packages."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in PACKAGES:
        frame, level = frame.f_back, level + 1
    return level


def check_positive(name: str, value: float) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number above zero."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a positive real number, got {value!r} of type {type(value).__name__}")
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be positive and finite, got {value!r}")
    return float(value)


def check_real(name: str, value: float) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a real number, got {value!r} of type {type(value).__name__}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {value!r}")
    return float(value)


def check_nonnegative(name: str, value: float) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number that is at least zero."""
    if check_real(name, value) < 0:
        raise ValueError(f"{name} must be at least zero, got {value!r}")
    return float(value)


def check_count(name: str, value: int, minimum: int = 1, maximum: int | None = None) -> int:
    """Return ``value`` as an int; raise unless it is a whole number from ``minimum`` to ``maximum``, if given."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value!r}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {value!r}")
    return int(value)


def check_seed(seed: int) -> int:
    """Return ``seed`` as an int; raise unless it is a whole number that torch's generators take, [0, 2⁶³)."""
    check_count("seed", seed, minimum=0)
    if seed >= 2**63:
        raise ValueError(f"seed must be below 2**63, got {seed!r}")
    return int(seed)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return ``value``; raise unless it is one of ``choices``."""
    if value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return value


def check_float_tensor(name: str, value: Tensor) -> Tensor:
    """Return ``value``; raise unless it is a tensor of a floating or complex dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; wrap it in torch.tensor(...)")
    if not (value.is_floating_point() or value.is_complex()):
        raise TypeError(f"{name} must have a floating dtype, got {value.dtype}; convert it with .double() or .float()")
    return value


def check_index(index: Tensor, size: int) -> Tensor:
    """Return an index of examples; raise unless it holds whole numbers in [0, size) and is not empty."""
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
        kind = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an integer tensor of example numbers, got {kind}")
    if index.ndim == 0 or index.shape[-1] == 0:
        raise ValueError(f"index must have shape (..., m) with m >= 1, got {tuple(index.shape)}")
    if int(index.min()) < 0 or int(index.max()) >= size:
        raise ValueError(f"index must lie in [0, {size}), got values in [{int(index.min())}, {int(index.max())}]")
    return index
