r"""Functions of the Hessian times a vector by Krylov subspaces: f(H) g ≈ Q f(T) Q*g without eigenvectors of H.

With the residual's direction q = q_{m+1} and φ(z) = (f(z) − f(0))/z the error of Q f(T) Q*g begins with

    β (e_mᵀ φ(T) Q*g) q,

which costs no product (Saad 1992, SIAM J. Numer. Anal. 29, 209, for the exponential; the node is 0, as most of a
network's eigenvalues lie there). It is added to the value. The process stops when its norm, the residual, and the
change by the last product are both small.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import check_callable, check_count, check_float_tensor, check_real, is_dense, kind_of
from landscapes.krylov.precision import RESOLVED, check_full_precision
from landscapes.krylov.space import KrylovSpace, Product, check_product, norm

Spectral = Callable[[Tensor], Tensor]

# Estimates are too small while a mode of small weight in g is unresolved, above all near a singularity of f.
SAFETY = 50
UNEQUAL = 100  # multiple of the smallest relative error: between versions of T, more than that is no rounding


@dataclass(frozen=True)
class KrylovResult:
    """f(H)g with its cost in HVPs, the last Ritz values and two error estimates.

    ``converged``: the target is met, as estimated, or the space is invariant and the target below rounding.
    ``residual``: the first neglected term, ``change``: the change by the last product, both relative to ‖f(H)g‖; 0 if
    the result is exact, NaN if a product was not finite. If f has several rows, the largest over the rows.
    """

    value: Tensor  # (..., d)
    products: int
    ritz: Tensor  # (products,)
    residual: float
    change: float
    converged: bool


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues and eigenvectors V of a small matrix T, with the coefficients c of a vector b = V c."""

    eigenvalues: Tensor  # (..., n)
    vectors: Tensor  # (..., n, n), columns
    coefficients: Tensor  # (..., n)

    def action(self, values: Tensor) -> Tensor:
        """V diag(values) c, (..., n) for values (..., n)."""
        weighted = values * self.coefficients
        return (self.vectors.to(weighted.dtype) @ weighted[..., None])[..., 0]


def decompose(matrix: Tensor, vector: Tensor) -> Spectrum:
    """The spectrum of A (..., n, n), real symmetric or complex diagonalisable, with b (..., n) in its eigenbasis.

    A complex matrix that is real and symmetric to rounding is solved by ``eigh``, with orthogonal eigenvectors; any
    other complex matrix by its non-orthogonal eigenvectors.
    """
    if not matrix.is_complex() or is_real_symmetric(matrix):
        eigenvalues, vectors = torch.linalg.eigh(matrix.real if matrix.is_complex() else matrix)
        vectors = vectors.to(matrix.dtype)  # real entries: Vᵀ is the inverse for complex b, too
        return Spectrum(eigenvalues, vectors, (vectors.mT @ vector[..., None])[..., 0])
    eigenvalues, vectors = torch.linalg.eig(matrix)
    return Spectrum(eigenvalues, vectors, torch.linalg.solve(vectors, vector))


def spectral_action(matrix: Tensor, vector: Tensor, function: Spectral) -> tuple[Tensor, Tensor]:
    r"""f(A) b and the eigenvalues of A, for A (..., n, n) real symmetric or complex diagonalisable, b (..., n)."""
    check_callable("function", function, "eigenvalues (..., n) -> values (..., n)")
    check_full_precision("matrix", check_float_tensor("matrix", matrix))
    check_float_tensor("vector", vector)
    if vector.dtype != matrix.dtype:
        raise ValueError(f"vector must have the dtype of matrix, {matrix.dtype}, got {vector.dtype}")
    if matrix.ndim < 2 or matrix.shape[-1] != matrix.shape[-2] or vector.shape[-1:] != matrix.shape[-1:]:
        raise ValueError(
            f"matrix must have shape (..., n, n) and vector (..., n), got {tuple(matrix.shape)} and "
            f"{tuple(vector.shape)}"
        )
    try:
        spectrum = decompose(matrix, vector)
    except torch.linalg.LinAlgError as error:
        raise FloatingPointError(f"matrix must have eigenvalues, as one that is finite has: {error}") from None
    return spectrum.action(values_of(function, spectrum.eigenvalues)), spectrum.eigenvalues


def values_of(function: Spectral, z: Tensor) -> Tensor:
    """f at eigenvalues (..., n); raise unless it gives a dense tensor with as many last entries."""
    values = function(z)
    dense = isinstance(values, Tensor) and is_dense(values)
    if not dense or values.shape[-1:] != z.shape[-1:]:
        got = kind_of(values) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"function must map eigenvalues (n,) to values (..., n), at {kind_of(z)} it gave {got}")
    return values


def rows_of(function: Spectral, rows: torch.Size, z: Tensor) -> Tensor:
    """f at eigenvalues (n,), without autograd graph; raise unless they are numbers, with the leading shape of f(0)."""
    values = values_of(function, z)
    if values.shape[:-1] != rows or values.dtype == torch.bool:
        raise ValueError(
            f"function must give numbers of shape {(*rows, len(z))} at {kind_of(z)}, got {kind_of(values)}"
        )
    return values.detach()


def is_real_symmetric(matrix: Tensor) -> bool:
    """Whether a complex matrix (..., n, n) has no imaginary part and is symmetric to rounding.

    The Hessenberg matrix of a complex symmetric H can be real and not symmetric.
    """
    if bool(matrix.imag.any()):
        return False
    asymmetry = (matrix.real - matrix.real.mT).abs().amax()
    return bool(asymmetry <= 1e3 * torch.finfo(matrix.dtype).eps * matrix.real.abs().amax())


def matrix_function(
    product: Product, vector: Tensor, function: Spectral, limit: int, tolerance: float, absolute: float = 0.0
) -> KrylovResult:
    r"""f(H) g for one g (d,), in at most ``limit`` products Hv.

    ``function`` maps eigenvalues (n,) to values (n,), or to (..., n) for several functions on one Krylov space, which
    gives a value (..., d). It must be analytic at the Ritz values and at 0. Complex values make the result complex; for
    a complex g, H is assumed to be complex symmetric.

    The target error is ``tolerance``·‖f(H)g‖ + ``absolute``: iterations stop when ``residual`` and ``change``, times
    ‖f(H)g‖, are both below a fiftieth of it (``SAFETY``), or when the space is invariant and the result exact.
    For a real g, converged then means that errors of the products, such as rounding or H ≠ Hᵀ, change the result by no
    more than the target either. A NaN or an infinity gives a value of NaN, not converged. The value carries no autograd
    graph.

    Raises ValueError or TypeError for invalid arguments, such as half precision.
    """
    check_product("product", product)
    check_callable("function", function, "eigenvalues (n,) -> values (..., n)")
    check_full_precision("vector", check_float_tensor("vector", vector))
    if vector.ndim != 1:
        raise ValueError(f"vector must have shape (d,), got {tuple(vector.shape)}; loop over batch members")
    check_count("limit", limit)
    for name, allowed in (("tolerance", tolerance), ("absolute", absolute)):
        if check_real(name, allowed) < 0:
            raise ValueError(f"{name} must not be negative, got {allowed!r}")
    vector = vector.detach()
    rows = at_zero(function, vector).shape
    values = functools.partial(rows_of, function, rows)
    size = norm(vector)
    if not math.isfinite(size):
        return not_a_number(vector, rows, 0)
    if size == 0:
        nothing = torch.zeros(0, dtype=torch.complex128 if vector.is_complex() else torch.float64)
        return KrylovResult(vector.new_zeros(*rows, vector.shape[-1]), 0, nothing, 0.0, 0.0, True)
    space = KrylovSpace(product, vector)
    previous: Tensor | None = None
    while True:
        space.grow()
        if not space.finite:
            return not_a_number(vector, rows, space.size)
        current, residual, ritz = projected_action(space, values)
        sizes = torch.linalg.vector_norm(current, dim=-1)
        change = change_norm(current, previous)
        target = tolerance * sizes + absolute / space.unit
        finite = bool(sizes.isfinite().all())
        settled = finite and (space.invariant or bool((torch.maximum(residual, change) <= target / SAFETY).all()))
        if settled or space.invariant or space.size == limit:
            break
        previous = current
    if not finite:
        return not_a_number(vector, rows, space.size, ritz)
    converged = settled and is_faithful(space, values, current, target)
    neglected, moved = (
        (0.0, 0.0) if space.invariant else (relative_error(residual, sizes), relative_error(change, sizes))
    )
    return KrylovResult(space.combine(space.unit * current), space.size, ritz, neglected, moved, converged)


def projected_action(space: KrylovSpace, function: Spectral) -> tuple[Tensor, Tensor, Tensor]:
    """Coefficients (..., m + 1) of f(H)g/unit along Q and its next direction, ‖first neglected term‖, Ritz values."""
    start = torch.zeros(space.size, dtype=space.wide)
    start[0] = space.norm / space.unit
    spectrum = decompose(space.projected, start)
    values = values_of(function, spectrum.eigenvalues)
    inside = spectrum.action(values)
    if space.invariant:
        return inside, inside.new_zeros(inside.shape[:-1], dtype=torch.float64), spectrum.eigenvalues
    scale = max(float(spectrum.eigenvalues.abs().max()), space.beta)  # T can be zero where H is not
    slopes = divided_difference(function, spectrum.eigenvalues, values, scale)
    beyond = space.beta * spectrum.action(slopes)[..., -1]
    return torch.cat([inside, beyond[..., None].to(inside)], dim=-1), beyond.abs(), spectrum.eigenvalues


def is_faithful(space: KrylovSpace, function: Spectral, current: Tensor, target: Tensor) -> bool:
    r"""Whether errors of the products, at least rounding, change f(H)g by ``target`` (...,) at most.

    Real T has two versions, measured and of the recurrence, which differ by rounding, by noise of the products, and
    where H is not symmetric; the effect is taken for ‖f(T)Q*g − f(T')Q*g‖. A target below rounding can be met only by
    an invariant space, whose result is exact up to the effect of rounding.
    """
    rounding = RESOLVED * torch.finfo(space.basis.dtype).eps
    resolved = bool((target >= rounding * torch.linalg.vector_norm(current, dim=-1)).all())
    if not resolved and not space.invariant:
        return False
    if space.wide.is_complex:
        return True
    recurrence = space.recurrence
    if not resolved:
        size = float(recurrence.abs().max())
        return float((space.projected - recurrence).abs().max()) <= UNEQUAL * rounding * size
    start = torch.zeros(space.size, dtype=torch.float64)
    start[0] = space.norm / space.unit
    other = spectral_action(recurrence, start, function)[0]
    return bool((change_norm(current[..., : space.size], other) <= target).all())


def divided_difference(function: Spectral, z: Tensor, values: Tensor, scale: float) -> Tensor:
    """φ(z) = (f(z) − f(0))/z (..., n), and for small |z| the cubic through φ(±s) and φ(±2s).

    s = ε^{1/5} times the scale of z balances its error, O(s⁴), with the rounding of the quotient, ε/s.
    """
    step = torch.finfo(torch.float64).eps ** (1 / 5) * scale
    nodes = torch.tensor([-2, -1, 1, 2, 0], dtype=z.dtype)
    ends = function(step * nodes).to(values.dtype)
    left2, left1, right1, right2 = ((ends[..., :4] - ends[..., 4:]) / (step * nodes[:4])).unbind(-1)
    even = torch.stack([4 * (left1 + right1) - (left2 + right2), left2 + right2 - left1 - right1], -1) / 6
    odd = torch.stack([8 * (right1 - left1) - (right2 - left2), right2 - left2 - 2 * (right1 - left1)], -1) / 12
    x = z / step
    cubic = even[..., :1] + odd[..., :1] * x + even[..., 1:] * x**2 + odd[..., 1:] * x**3
    small = x.abs() < 1
    return torch.where(small, cubic, (values - ends[..., 4:]) / torch.where(small, 1, z))


def at_zero(function: Spectral, vector: Tensor) -> Tensor:
    """f(0) (...,): raise unless it is finite and f gives one value for each eigenvalue."""
    zero = torch.zeros(1, dtype=torch.complex128 if vector.is_complex() else torch.float64)
    values = values_of(function, zero)
    if not bool(values.isfinite().all()):
        raise ValueError(f"function must be analytic at 0, where it gave {values[..., 0]}; shift H and the function")
    return values[..., 0]


def not_a_number(vector: Tensor, rows: torch.Size, products: int, ritz: Tensor | None = None) -> KrylovResult:
    """The result if the vector, a product or f at a Ritz value is not finite."""
    ritz = torch.zeros(0, dtype=torch.float64) if ritz is None else ritz
    value = vector.new_full((*rows, vector.shape[-1]), torch.nan)
    return KrylovResult(value, products, ritz, math.nan, math.nan, False)


def change_norm(current: Tensor, previous: Tensor | None) -> Tensor:
    """‖current − previous‖ (...,), the basis having grown in between; infinite if ``previous`` is None."""
    if previous is None:
        return torch.full(current.shape[:-1], torch.inf, dtype=torch.float64)
    shared = current.clone()
    shared[..., : previous.shape[-1]] -= previous.to(current.dtype)
    return torch.linalg.vector_norm(shared, dim=-1)


def relative_error(error: Tensor, norm: Tensor) -> float:
    """The largest error/norm, 0 if both are 0."""
    return float(torch.where(error == 0, 0, error / norm).max())
