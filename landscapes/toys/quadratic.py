r"""The quadratic loss."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.description import describe
from landscapes.toys.closed_form import Toy, Window, cast, check_real_tensor, symmetric_matrix


@final
class Quadratic(Toy):
    r"""f(θ) = ½ (θ − m)ᵀ H (θ − m), any d; ``hessian`` H (d, d), ``minimum`` m (d,), zero by default.

    H must be real, finite and symmetric to rounding, else ValueError or TypeError; it may be indefinite, and m is then
    a saddle or a maximum. If H is singular, m represents an affine space of critical points.
    """

    def __init__(self, hessian: Tensor, minimum: Tensor | None = None):
        self._matrix = symmetric_matrix("hessian", hessian)
        if self._matrix.ndim != 2:
            raise ValueError(f"hessian must have shape (d, d), got {tuple(hessian.shape)}")
        centre = self._matrix.new_zeros(self.dimension) if minimum is None else check_real_tensor("minimum", minimum)
        self.minimum = centre.detach().clone()
        if self.minimum.shape != (self.dimension,):
            raise ValueError(f"minimum must have shape ({self.dimension},), got {tuple(self.minimum.shape)}")

    def description(self) -> dict[str, Any]:
        return super().description() | {"hessian": describe(self._matrix)}

    @property
    def dimension(self) -> int:
        return self._matrix.shape[-1]

    def loss(self, theta: Tensor) -> Tensor:
        """½ δᵀHδ with δ = θ − m, shape (...,)."""
        offset = self.check(theta) - cast(self.minimum, theta)
        return (offset * (offset @ cast(self._matrix, theta))).sum(dim=-1) / 2

    def grad(self, theta: Tensor) -> Tensor:
        """H (θ − m), shape (..., d)."""
        return (self.check(theta) - cast(self.minimum, theta)) @ cast(self._matrix, theta)

    def curvature(self, theta: Tensor) -> Field:
        matrix = cast(self._matrix, theta)
        return lambda v: v @ matrix

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        return torch.zeros_like(theta)

    @property
    def window(self) -> Window:
        """m ± 2 along every coordinate."""
        return tuple((m - 2, m + 2) for m in self.minimum.tolist())

    @property
    def start(self) -> tuple[float, ...]:
        """m + (−0.35, −0.2) in two dimensions (Rosca et al. 2023), m + 1 in others."""
        offset = self.minimum.new_tensor((-0.35, -0.2)) if self.dimension == 2 else 1.0
        return tuple((self.minimum + offset).tolist())

    def critical_positions(self) -> list[list[float]]:
        return [self.minimum.tolist()]
