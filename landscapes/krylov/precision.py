"""Precisions and tolerances for which the estimates of Krylov methods hold."""

from __future__ import annotations

import torch
from torch import Tensor

FULL = (torch.float32, torch.float64, torch.complex64, torch.complex128)
RESOLVED = 8  # eps of the precision: the smallest relative tolerance that can be met


def check_full_precision(name: str, tensor: Tensor) -> Tensor:
    """Return ``tensor``; raise TypeError in half precision, whose rounding exceeds every useful tolerance."""
    if tensor.dtype not in FULL:
        raise TypeError(
            f"{name} must be float32 or float64, or complex of these, got {tensor.dtype}, whose eigenvalues are known "
            f"to {100 * torch.finfo(tensor.dtype).eps:.2g} of the largest only; pass {name}.float() and a product in "
            "float32"
        )
    return tensor


def check_resolved(tolerance: float, like: Tensor) -> float:
    """Return ``tolerance``; raise ValueError if it is below the rounding of the precision of ``like``."""
    least = RESOLVED * torch.finfo(like.dtype).eps
    if tolerance < least:
        wider = "; use float64" if torch.finfo(like.dtype).bits == 32 else ""
        raise ValueError(f"tolerance must be at least {least:.2g} in {like.dtype}, got {tolerance!r}{wider}")
    return tolerance
