r"""Functions of the Hessian times a vector from Krylov subspaces: f(H) g ≈ ‖g‖ Q f(T) e₁ without eigenvectors of H.

Q (m, d) is an orthonormal basis of span{g, Hg, …, H^{m−1}g} built by m products with full reorthogonalisation
(classical Gram–Schmidt, twice). Real symmetric H: Lanczos, T tridiagonal and real. Complex θ: H is complex symmetric,
T the Hessenberg matrix of the same process under the Hermitian inner product, which cannot break down early as the
bilinear three-term recurrence can. T lives on the CPU in double precision: it is m×m.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

Spectral = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class KrylovResult:
    """f(H)g with its cost in HVPs, the last Ritz values, the estimated relative change, and whether that converged."""

    value: Tensor  # (d,)
    products: int
    ritz: Tensor  # (products,)
    change: float
    converged: bool


def spectral_action(matrix: Tensor, vector: Tensor, function: Spectral) -> tuple[Tensor, Tensor]:
    r"""f(A) b and the eigenvalues of A, for A (..., n, n) real symmetric or complex diagonalisable, b (..., n).

    A complex matrix that is real and symmetric to rounding is treated as such: exact and orthogonal. A genuinely
    complex one goes through its (non-orthogonal) eigenvectors.
    """
    if not matrix.is_complex() or is_real_symmetric(matrix):
        eigenvalues, vectors = torch.linalg.eigh(matrix.real if matrix.is_complex() else matrix)
        vectors = vectors.to(matrix.dtype)
        coefficients = (vectors.mT @ vector[..., None])[..., 0]
    else:
        eigenvalues, vectors = torch.linalg.eig(matrix)
        coefficients = torch.linalg.solve(vectors, vector)
    weighted = function(eigenvalues) * coefficients
    return (vectors.to(weighted.dtype) @ weighted[..., None])[..., 0], eigenvalues


def is_real_symmetric(matrix: Tensor) -> bool:
    """Whether a complex matrix (..., n, n) has no imaginary part and is symmetric to rounding.

    The Hessenberg matrix of a complex symmetric H can be real and not symmetric.
    """
    if bool(matrix.imag.any()):
        return False
    asymmetry = (matrix.real - matrix.real.mT).abs().amax()
    return bool(asymmetry <= 1e3 * torch.finfo(matrix.dtype).eps * matrix.real.abs().amax())


def matrix_function(
    product: Callable[[Tensor], Tensor], vector: Tensor, function: Spectral, limit: int, tolerance: float
) -> KrylovResult:
    r"""f(H) g for one g (d,), in at most ``limit`` products Hv.

    Stops when the relative change of f(H)g from one more product falls below ``tolerance`` (an estimate of the error
    that lags one product behind), or when the space is invariant, where the result is exact.
    """
    norm = float(torch.linalg.vector_norm(vector))
    wide = torch.complex128 if vector.is_complex() else torch.float64
    if norm == 0:
        return KrylovResult(torch.zeros_like(vector), 0, torch.zeros(0, dtype=wide), 0.0, True)
    if not math.isfinite(norm):
        return not_a_number(vector, 0)
    limit = min(limit, vector.shape[-1])
    basis = torch.empty(limit, vector.shape[-1], dtype=vector.dtype, device=vector.device)
    basis[0] = vector / norm
    projected = torch.zeros(limit, limit, dtype=wide)
    start = torch.zeros(limit, dtype=wide)
    start[0] = norm
    previous = torch.zeros(0, dtype=wide)
    change = float("inf")
    for m in range(1, limit + 1):
        residual, column = orthogonalised(product(basis[m - 1]), basis[:m])
        column = column.to("cpu", wide)
        projected[:m, m - 1] = column
        if not vector.is_complex():
            projected[m - 1, :m] = column  # symmetric to the last bit, as eigh reads one triangle
        if not bool(projected[:m, :m].isfinite().all()):
            return not_a_number(vector, m)
        small, ritz = spectral_action(projected[:m, :m], start[:m], function)
        change = relative_change(small, previous)
        previous = small
        beta = float(torch.linalg.vector_norm(residual))
        # Below the rounding of the largest projected entry the residual is noise: the space is invariant.
        invariant = beta <= 10 * torch.finfo(vector.dtype).eps * float(projected[:m, :m].abs().max())
        if change < tolerance or invariant or m == limit:
            break
        basis[m] = residual / beta
        projected[m, m - 1] = beta
    exact = invariant or m == vector.shape[-1]
    value = torch.einsum(
        "m,md->d", small.to(vector.device, promoted(small, vector)), basis[:m].to(promoted(small, vector))
    )
    return KrylovResult(value, m, ritz, 0.0 if exact else change, exact or change < tolerance)


def not_a_number(vector: Tensor, products: int) -> KrylovResult:
    """The result where the vector or a product is not finite."""
    nothing = torch.zeros(0, dtype=torch.float64)
    return KrylovResult(torch.full_like(vector, torch.nan), products, nothing, math.nan, False)


def orthogonalised(image: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    """The part of ``image`` orthogonal to the basis (m, d), and its components along it (m,), by two passes."""
    first = basis.conj() @ image
    residual = image - first @ basis
    second = basis.conj() @ residual
    return residual - second @ basis, first + second


def relative_change(current: Tensor, previous: Tensor) -> float:
    """‖current − previous‖ / ‖current‖ in an orthonormal basis that has grown since ``previous``."""
    difference = current.clone()
    difference[: previous.shape[0]] -= previous
    return float(torch.linalg.vector_norm(difference) / torch.linalg.vector_norm(current))


def promoted(small: Tensor, vector: Tensor) -> torch.dtype:
    """The vector's dtype, made complex where the coefficients are."""
    return vector.dtype.to_complex() if small.is_complex() else vector.dtype
