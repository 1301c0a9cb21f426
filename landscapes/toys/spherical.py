r"""A scale-invariant loss, as normalisation layers make of the loss in the preceding weights."""

from __future__ import annotations

from typing import Any, final

import torch
from torch import Tensor

from landscapes.autodiff import Field
from landscapes.description import describe
from landscapes.toys.closed_form import Toy, Window, cast, symmetric_matrix


@final
class SphericalQuotient(Toy):
    r"""f(θ) = θᵀAθ / (2 θᵀθ): half the Rayleigh quotient, constant along rays; ``matrix`` A (d, d), d ≥ 2.

    f(cθ) = f(θ), so ∇f ⟂ θ and Hθ = −∇f: gradient flow conserves ‖θ‖, and gradient descent increases it, ‖θ'‖² = ‖θ‖² +
    h²‖∇f‖², which lowers the effective step h/‖θ‖² of the direction. The critical rays are A's eigenvectors,
    represented by ± unit vectors; f is constant along each, so the ends of the spectrum are degenerate and the others
    saddles. Eigenspaces of equal eigenvalues are represented by a basis. Not defined at 0, nor if θᵀθ overflows or
    underflows in θ's precision: results are then not finite. van Laarhoven 2017, arXiv 1706.05350; Arora, Li & Lyu
    2019, arXiv 1812.03981.
    """

    def __init__(self, matrix: Tensor):
        self._matrix = symmetric_matrix("matrix", matrix)
        if self._matrix.ndim != 2 or self.dimension < 2:
            raise ValueError(f"matrix must have shape (d, d) with d >= 2, got {tuple(matrix.shape)}")

    def description(self) -> dict[str, Any]:
        return super().description() | {"matrix": describe(self._matrix)}

    @property
    def dimension(self) -> int:
        return self._matrix.shape[-1]

    def loss(self, theta: Tensor) -> Tensor:
        """θᵀAθ / (2 θᵀθ), shape (...,)."""
        image = self.check(theta) @ cast(self._matrix, theta)
        return (theta * image).sum(dim=-1) / (2 * (theta * theta).sum(dim=-1))

    def grad(self, theta: Tensor) -> Tensor:
        """(Aθ − 2fθ) / θᵀθ, shape (..., d)."""
        image = self.check(theta) @ cast(self._matrix, theta)
        square = (theta * theta).sum(dim=-1, keepdim=True)
        return (image - (theta * image).sum(dim=-1, keepdim=True) / square * theta) / square

    def curvature(self, theta: Tensor) -> Field:
        """v ↦ (Av − 2f v − 2 (g·v) θ − 2 (θ·v) g) / θᵀθ with g = ∇f: from θᵀθ f = ½ θᵀAθ by Leibniz's rule, twice."""
        matrix, g = cast(self._matrix, theta), self.grad(theta)
        square, twice_f = (theta * theta).sum(dim=-1, keepdim=True), 2 * self.loss(theta)[..., None]

        def product(v: Tensor) -> Tensor:
            along_g, along_theta = ((a * v).sum(dim=-1, keepdim=True) for a in (g, theta))
            return (v @ matrix - twice_f * v - 2 * (along_g * theta + along_theta * g)) / square

        return product

    def third_product(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """−(2/θᵀθ) ((θ·u) Hv + (θ·v) Hu + (uᵀHv) θ + (u·v) g + (g·v) u + (g·u) v): by Leibniz's rule again."""
        curvature, g = self.curvature(theta), self.grad(theta)
        bent_u, bent_v = curvature(u), curvature(v)
        pairs = ((theta, u), (theta, v), (u, bent_v), (u, v), (g, v), (g, u))
        along_u, along_v, twice, uv, g_v, g_u = ((a * b).sum(dim=-1, keepdim=True) for a, b in pairs)
        square = (theta * theta).sum(dim=-1, keepdim=True)
        parts = along_u * bent_v + along_v * bent_u + twice * theta + uv * g + g_v * u + g_u * v
        return -2 / square * parts

    @property
    def curvature_scale(self) -> float:
        """The largest entry of A: θᵀθ H is a difference of terms of that size."""
        return float(self._matrix.abs().max())

    @property
    def window(self) -> Window:
        """±2 along every coordinate."""
        return ((-2.0, 2.0),) * self.dimension

    @property
    def start(self) -> tuple[float, ...]:
        """A unit vector near the eigenvector of the largest eigenvalue, with a part of the smallest's."""
        vectors = torch.linalg.eigh(self._matrix.double()).eigenvectors
        mixed = vectors[:, -1] + 0.2 * vectors[:, 0]
        return tuple((mixed / torch.linalg.vector_norm(mixed)).tolist())

    def critical_positions(self) -> list[list[float]]:
        """± unit eigenvectors, ascending by eigenvalue."""
        vectors = torch.linalg.eigh(self._matrix.double()).eigenvectors.mT
        return [sign.tolist() for vector in vectors for sign in (vector, -vector)]
