"""Errors and argument checks shared by all packages.

Errors are ``ValueError`` or ``TypeError`` (or subclasses), raised where arguments enter; the message names the
argument, the value given and the values accepted.
"""

from __future__ import annotations

import math
import numbers
import sys
from collections.abc import Iterable, Sequence
from typing import Any

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


REAL = (int, float, np.integer, np.floating)
FLOATING = frozenset(
    (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128)
)  # dtypes that torch computes in: float8, sub-byte and complex32 only store numbers
WHOLE = frozenset((torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool))
LONGEST = 80  # characters of a value in a message
MOST = 10**8
"""The largest number of things that are computed, or held in memory, one by one: probes, rows, dimensions of a toy."""


def short_form(value: object) -> str:
    """A value for a message: short, also where its repr is long or, as of tensors of 4 bits, raises."""
    if isinstance(value, Tensor):
        return f"a tensor of {value.dtype}"
    try:
        text = repr(value)
    except (RuntimeError, ValueError, TypeError):  # of tensors of 4 bits in a list, of integers of 10⁴ digits
        return f"a {type(value).__name__}"
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def check_number(name: str, value: float, wanted: str = "a real number") -> float:
    """Return ``value`` as a float, infinite for integers beyond its range; raise TypeError unless it is real."""
    if isinstance(value, bool) or not isinstance(value, REAL):
        raise TypeError(f"{name} must be {wanted}, got {short_form(value)} of type {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


def check_positive(name: str, value: float) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number above zero."""
    number = check_number(name, value, "a positive real number")
    if not (math.isfinite(number) and number > 0):
        raise ValueError(f"{name} must be positive and finite, got {short_form(value)}")
    return number


def check_real(name: str, value: float) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number."""
    number = check_number(name, value)
    if not math.isfinite(number):
        raise ValueError(f"{name} must be finite, got {short_form(value)}")
    return number


def check_nonnegative(name: str, value: float) -> float:
    """Return ``value`` as a float; raise unless it is a finite real number that is at least zero."""
    number = check_real(name, value)
    if number < 0:
        raise ValueError(f"{name} must be at least zero, got {short_form(value)}")
    return number


def check_count(name: str, value: int, minimum: int = 1, maximum: int | None = None) -> int:
    """Return ``value`` as an int; raise unless it is a whole number from ``minimum`` to ``maximum``, if given."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be a whole number, got {short_form(value)} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {short_form(value)}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name} must be at most {maximum}, got {short_form(value)}")
    return int(value)


def check_seed(seed: int) -> int:
    """Return ``seed`` as an int; raise unless it is a whole number that torch's generators take, [0, 2⁶³)."""
    check_count("seed", seed, minimum=0)
    if seed >= 2**63:
        raise ValueError(f"seed must be below 2**63, got {short_form(seed)}")
    return int(seed)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> str:
    """Return ``value``; raise unless it is one of ``choices``."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{name} must be one of {', '.join(map(repr, choices))}, got {short_form(value)}")
    return value


def check_flag(name: str, value: bool) -> bool:
    """Return ``value``; raise unless it is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {short_form(value)} of type {type(value).__name__}")
    return value


def check_callable(name: str, value: object, form: str) -> None:
    """Raise unless ``value`` can be called; ``form`` says how: "v (d,) -> Hv (d,)"."""
    if not callable(value):
        raise TypeError(f"{name} must be callable, {form}, got {short_form(value)} of type {type(value).__name__}")


def check_sequence(name: str, value: object, form: str) -> None:
    """Raise unless ``value`` is a list, a tuple or another sequence, and no string."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise TypeError(f"{name} must be a sequence {form}, got {short_form(value)} of type {type(value).__name__}")


def as_list(name: str, value: object, form: str) -> list[Any]:
    """The entries of anything that can be looped over; raise TypeError for other values and strings."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable) or getattr(value, "ndim", 1) == 0:
        raise TypeError(f"{name} must be a sequence of {form}, got {short_form(value)} of type {type(value).__name__}")
    return list(check_dense(name, value) if isinstance(value, Tensor) else value)


def is_dense(value: Tensor) -> bool:
    """Whether a tensor has numbers at strides: it is not sparse, nested, quantised or on the meta device."""
    return value.layout is torch.strided and not (value.is_nested or value.is_meta or value.is_quantized)


def check_dense(name: str, value: Tensor) -> Tensor:
    """Return ``value``; raise unless it is a tensor with numbers at strides, in any dtype."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(value).__name__}; wrap it in torch.tensor(...)")
    if is_dense(value):
        return value
    if value.is_nested:
        raise TypeError(
            f"{name} must be one dense tensor, got a nested one; stack rows of one length, or loop over them"
        )
    if value.is_meta:
        raise ValueError(
            f"{name} must have numbers, got a tensor on the meta device, which has none; build it on the CPU"
        )
    if value.is_quantized:
        raise TypeError(f"{name} must not be quantised, got {value.dtype}; convert it with .dequantize()")
    raise TypeError(f"{name} must be dense, got the layout {value.layout}; convert it with .to_dense()")


def check_float_tensor(name: str, value: Tensor) -> Tensor:
    """Return ``value``; raise unless it is a dense tensor of a floating or complex dtype that torch computes in."""
    # the first line is the usual case, in the inner loop of every evaluation
    if isinstance(value, Tensor) and value.dtype in FLOATING and value.layout is torch.strided:
        if not (value.is_nested or value.is_meta):
            return value
    if check_dense(name, value).dtype not in FLOATING:
        raise TypeError(f"{name} must have a floating dtype, got {value.dtype}; convert it with .double() or .float()")
    return value


def check_computable(name: str, value: Tensor) -> Tensor:
    """Return ``value``; raise unless it is a dense tensor of real, complex or whole numbers, or of truth values."""
    if check_dense(name, value).dtype not in FLOATING and value.dtype not in WHOLE:
        raise TypeError(f"{name} must have a dtype that torch computes in, got {value.dtype}; use .long() or .float()")
    return value


def check_image(name: str, image: Tensor, like: Tensor) -> Tensor:
    """Return the result of a user's function; raise unless it has the shape, dtype and device of ``like``."""
    if not isinstance(image, Tensor) or not is_dense(image):
        kind = kind_of(image) if isinstance(image, Tensor) else type(image).__name__
        raise TypeError(f"{name} must return a dense tensor like its argument, {kind_of(like)}, got {kind}")
    if image.shape != like.shape or image.dtype != like.dtype or image.device != like.device:
        raise ValueError(
            f"{name} must return a tensor of its argument's shape, dtype and device, {kind_of(like)}, got "
            f"{kind_of(image)}"
        )
    return image


def kind_of(tensor: Tensor) -> str:
    """Shape, dtype and device of a tensor; layout and dtype of one that is not dense."""
    if not is_dense(tensor):
        return f"{tensor.dtype} with the layout {tensor.layout}, on {tensor.device}"
    return f"{tuple(tensor.shape)} {tensor.dtype} on {tensor.device}"


def check_index(index: Tensor, size: int) -> Tensor:
    """Return an index of examples; raise unless it holds whole numbers in [0, size) and is not empty."""
    if not isinstance(index, Tensor) or index.dtype not in (torch.int64, torch.int32):
        kind = index.dtype if isinstance(index, Tensor) else type(index).__name__
        raise TypeError(f"index must be an integer tensor of example numbers, got {kind}")
    check_dense("index", index)
    if index.ndim == 0 or index.numel() == 0:
        raise ValueError(f"index must have shape (..., m) with m >= 1, got {tuple(index.shape)}")
    if int(index.min()) < 0 or int(index.max()) >= size:
        raise ValueError(f"index must lie in [0, {size}), got values in [{int(index.min())}, {int(index.max())}]")
    return index
