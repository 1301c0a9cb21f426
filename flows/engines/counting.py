"""Shared by ``integrate`` and ``descend``: checks of θ0, counting, the curvature at a failure, given initial states."""

from __future__ import annotations

import cmath
import dataclasses
from typing import Any, TypeVar

import torch
from torch import Tensor

from flows.descent import Descent
from flows.flow import Flow
from landscapes import Counted, Landscape
from landscapes.errors import check_float_tensor
from landscapes.krylov import matrix_function
from landscapes.noise import GradientNoise
from landscapes.wrappers.base import Counts, no_counts

Model = TypeVar("Model", Flow, Descent)


def check_theta0(theta0: Tensor) -> Tensor:
    """θ0 detached; raise unless it is a finite floating tensor of shape (..., d)."""
    check_float_tensor("theta0", theta0)
    if theta0.ndim == 0 or theta0.numel() == 0:
        raise ValueError(f"theta0 must have shape (..., d) with d >= 1, got {tuple(theta0.shape)}")
    if not bool(theta0.isfinite().all()):
        raise ValueError(f"theta0 must be finite, got {int((~theta0.isfinite()).sum())} NaN or infinite entries")
    return theta0.detach()


def count_calls(model: Model) -> tuple[Model, Counts]:
    """The model on a counted copy of its landscape, and the tally; a model without a landscape field counts nothing."""
    if not (dataclasses.is_dataclass(model) and any(f.name == "landscape" for f in dataclasses.fields(model))):
        return model, no_counts()
    if not isinstance(model.landscape, Landscape):
        return model, no_counts()
    wrapped = Counted(model.landscape)
    fields = {"landscape": wrapped, **counted_noise(model, wrapped)}
    return dataclasses.replace(model, **fields), wrapped.counts


def counted_noise(model: Any, wrapped: Counted) -> dict[str, GradientNoise]:
    """The model's ``noise`` field, if any, with the landscape that both share replaced by the counted one."""
    noise = {f.name: getattr(model, f.name) for f in dataclasses.fields(model)}.get("noise")
    return {"noise": on_landscape(noise, wrapped)} if isinstance(noise, GradientNoise) else {}


def on_landscape(noise: GradientNoise, wrapped: Counted) -> GradientNoise:
    """The noise, and the noises that it holds, with ``wrapped`` in place of the landscape that ``wrapped`` wraps."""
    if not dataclasses.is_dataclass(noise):
        return noise
    held = {f.name: getattr(noise, f.name) for f in dataclasses.fields(noise)}
    ours = {name: wrapped for name, value in held.items() if value is wrapped.landscape}
    inner = {name: on_landscape(value, wrapped) for name, value in held.items() if isinstance(value, GradientNoise)}
    return dataclasses.replace(noise, **ours, **inner) if ours or inner else noise


def finite_members(state: Tensor) -> Tensor:
    """Which batch members of a state (..., s) are finite, shape (...,)."""
    return state.isfinite().all(dim=-1)


def all_finite(state: Tensor) -> bool:
    """Whether every entry is finite; a single reduction if all are, which is the case that must be fast."""
    return cmath.isfinite(state.sum().item()) or bool(state.isfinite().all())


def curvature_sentence(model: Any, theta: Tensor, h: float | None) -> str:
    """A clause with the Hessian's eigenvalue of largest magnitude at θ (d,); "" if the model's landscape has none."""
    landscape = getattr(model, "landscape", None)
    if not isinstance(landscape, Landscape) or theta.shape[-1:] != (landscape.dimension,):
        return ""
    try:  # on the uncounted landscape: a diagnosis is not part of the run's cost
        eigenvalue = extreme_eigenvalue(landscape.landscape if isinstance(landscape, Counted) else landscape, theta)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        return ""  # a loss without second derivatives: only the remark is missing
    if eigenvalue is None:
        return ""
    stability = "" if h is None else f" (hλ = {h * eigenvalue:.4g})"
    return (
        f"; the Hessian's eigenvalue of largest magnitude at the last finite state is λ = {eigenvalue:.4g}{stability}"
    )


def extreme_eigenvalue(landscape: Landscape, theta: Tensor, products: int = 20) -> float | None:
    """The Ritz value of largest magnitude of H(θ) from at most ``products`` HVPs; None if none is finite."""
    point = landscape.expand(theta)
    # Any function serves: only the Ritz values are used. A random start, since a unit vector may be orthogonal to the
    # eigenvector.
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(theta.shape[-1], generator=generator, dtype=torch.float64).to(theta)
    result = matrix_function(point.hvp, start, torch.ones_like, products, 0.0)
    values = result.ritz.real[result.ritz.isfinite()]
    return float(values[values.abs().argmax()]) if values.numel() else None
