"""Shared by ``integrate`` and ``descend``: checks of θ0, counting, the curvature at a failure."""

from __future__ import annotations

import cmath
from typing import TypeVar

import torch
from torch import Tensor

from flows.declared import hides_landscape
from flows.descent import Descent
from flows.flow import Flow
from landscapes import Counted, Landscape, UnsupportedError
from landscapes.errors import check_float_tensor
from landscapes.krylov import matrix_function
from landscapes.wrappers.base import Counts, no_counts

Model = TypeVar("Model", Flow, Descent)


def check_theta0(theta0: Tensor, name: str = "theta0") -> Tensor:
    """θ0 detached; raise unless it is a finite floating tensor of shape (..., d)."""
    check_float_tensor(name, theta0)
    if theta0.ndim == 0 or theta0.numel() == 0:
        raise ValueError(f"{name} must have shape (..., d) with d >= 1, got {tuple(theta0.shape)}")
    if not bool(theta0.isfinite().all()):
        raise ValueError(f"{name} must be finite, got {int((~theta0.isfinite()).sum())} NaN or infinite entries")
    return theta0.detach()


def count_calls(model: Model) -> tuple[Model, Counts]:
    """The model on counted copies of its innermost landscapes, and their common tally.

    Every landscape that the model states counts, through wrappers, noises, inner flows and descents; one object used
    twice counts as one. Products inside a penalised landscape thus count by kind. If the calls cannot be counted (the
    model states no landscape, cannot be rebuilt on others, or a landscape holds another and does not override
    ``with_parts``) the model itself is returned, and the tally is empty.
    """
    counts = no_counts()
    known: dict[tuple[int, float], Landscape] = {}

    def count(landscape: Landscape, unit: float = 1) -> Landscape:
        key = (id(landscape), unit)
        if key not in known:
            check_parts(landscape)
            inside = landscape.with_parts(lambda part, share: count(part, unit * share))
            known[key] = Counted(landscape, counts, unit) if inside is landscape else inside
        return known[key]

    try:
        copy = model.on_landscapes(count)
    except UnsupportedError:
        return model, {}
    return (copy, counts) if known else (model, {})


def check_parts(landscape: Landscape) -> None:
    """Raise UnsupportedError for a landscape with another in its attributes that does not say how it is counted."""
    if type(landscape).with_parts is not Landscape.with_parts:
        return
    entered = {id(landscape): landscape}  # a method bound to the landscape itself is no other landscape
    if any(hides_landscape(x, entered) for x in vars(landscape).values()):
        raise UnsupportedError(f"{type(landscape).__name__} evaluates another landscape: override with_parts")


def without_counts(landscape: Landscape) -> Landscape:
    """The landscape without the ``Counted`` in it, for evaluations that are no part of a run's cost."""
    if isinstance(landscape, Counted):
        return without_counts(landscape.landscape)
    return landscape.with_parts(lambda part, share: without_counts(part))


def finite_members(state: Tensor) -> Tensor:
    """Which batch members of a state (..., s) are finite, shape (...,)."""
    return state.isfinite().all(dim=-1)


def all_finite(state: Tensor) -> bool:
    """Whether every entry is finite; a single reduction if all are, which is the case that must be fast."""
    return cmath.isfinite(state.sum().item()) or bool(state.isfinite().all())


def curvature_sentence(model: Flow | Descent, theta: Tensor, h: float | None) -> str:
    """A clause with the Hessian's eigenvalue of largest magnitude at θ (d,); "" if the model's landscape has none."""
    landscape = next(iter(model.declared_landscapes), None)
    if landscape is None or theta.shape[-1:] != (landscape.dimension,):
        return ""
    try:  # on the uncounted landscape: a diagnosis is not part of the run's cost
        eigenvalue = extreme_eigenvalue(without_counts(landscape), theta)
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
