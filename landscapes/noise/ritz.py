r"""Top eigenpairs of a positive semidefinite matrix by a block method: one pass over the examples for each block.

Rayleigh–Ritz on the block Krylov space span{V, CV, C²V, …} of a random V with a few more rows than wanted (Musco &
Musco 2015, arXiv 1504.05477). Differences from their algorithm: the space is extended by the residuals of the Ritz
pairs, which give the same span and an orthonormal basis; it stops by error estimates and not after a fixed number of
steps; and it is compressed to its best Ritz vectors at its memory limit (thick restart, Wu & Simon 2000). Vectors keep
their precision, projections are in float64.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.krylov import random_block
from landscapes.krylov.ritz_pairs import carried_errors
from landscapes.krylov.space import row_norms
from landscapes.noise.covariance import wide_product

NEGLIGIBLE = 100  # eps times the largest Ritz value: a residual below is rounding

BlockProduct = Callable[[Tensor], Tensor]
"""V (k, n) ↦ the rows Cv, (k, n)."""


@dataclass(frozen=True)
class RitzPairs:
    """The carried pairs, largest first: all p of the block, the first k of them wanted."""

    values: Tensor  # (p,) float64 on the CPU
    vectors: Tensor  # (p, n)
    residuals: Tensor  # (p,) float64 on the CPU
    errors: Tensor  # (k,) float64 on the CPU
    converged: bool
    products: int  # of blocks


class BlockRitz:
    """Orthonormal rows Q (m, n), their images QC and the Ritz pairs of QCQᵀ, largest first."""

    def __init__(self, product: BlockProduct, start: Tensor):
        self._product = product
        self.products = 0
        self.rows = start[:0]
        self.images = start[:0]
        self.values = torch.zeros(0, dtype=torch.float64)
        self._mixing = torch.zeros(0, 0, dtype=torch.float64)
        self._projection = torch.zeros(0, 0, dtype=torch.float64)

    def extend(self, directions: Tensor) -> bool:
        """Add the part of ``directions`` (k, n) outside the span by one product with a block; False if it is empty."""
        new = orthonormal_outside(directions, self.rows)
        new = new[: self.rows.shape[-1] - len(self.rows)]
        if not len(new):
            return False
        images = check_finite(self._product(new))
        self.products += 1
        self.rows, self.images = torch.cat([self.rows, new]), torch.cat([self.images, images])
        edge = wide_product(new, self.images).cpu()  # (k, m), the new rows only: the rest is known
        wider = torch.zeros(len(self.rows), len(self.rows), dtype=torch.float64)
        old = len(self.rows) - len(new)
        wider[:old, :old] = self._projection
        wider[old:], wider[:, old:] = edge, edge.mT
        self._solve((wider + wider.mT) / 2)
        return True

    def _solve(self, projection: Tensor) -> None:
        self._projection = projection
        values, mixing = torch.linalg.eigh(projection)
        self.values, self._mixing = values.flip(0), mixing.flip(1)

    def vectors(self, count: int) -> Tensor:
        """The first ``count`` Ritz vectors (count, d)."""
        return self._mixing[:, :count].mT.to(self.rows) @ self.rows

    def residuals(self, count: int) -> Tensor:
        """Hu − λu of the first ``count`` Ritz pairs (count, d)."""
        mixing = self._mixing[:, :count].mT.to(self.rows)
        return mixing @ self.images - self.values[:count, None].to(self.rows) * (mixing @ self.rows)

    def compress(self, count: int) -> None:
        """Keep the first ``count`` Ritz vectors, whose images need no product."""
        mixing = self._mixing[:, :count].mT.to(self.rows)
        self.rows, self.images = mixing @ self.rows, mixing @ self.images
        self._solve(torch.diag(self.values[:count]))


def top_pairs(
    product: BlockProduct, start: Tensor, count: int, *, tolerance: float, limit: int, largest_basis: int
) -> RitzPairs:
    r"""The ``count`` largest eigenpairs from the rows of ``start`` (p, n), p ≥ count; the other rows are guards.

    Stops when the error estimate of every wanted eigenvalue is within ``tolerance`` times the eigenvalue, or rounding,
    and no guard can outrank the last by more, or after ``limit`` products with blocks. ``largest_basis``: rows held
    before the space is compressed, at least twice the carried. Raises FloatingPointError if a product is not finite.
    """
    basis = BlockRitz(product, start)
    basis.extend(start)
    while True:
        carried = min(len(start), len(basis.rows))
        residuals = basis.residuals(carried)
        sizes = row_norms(residuals)
        values = basis.values[:carried]
        shortfalls = carried_errors(values, sizes, min(count, carried))
        rounding = NEGLIGIBLE * torch.finfo(start.dtype).eps * float(values[0])
        allowed = (tolerance * values).clamp_min(max(rounding, 0.0))
        allowed[count:] = allowed[min(count, carried) - 1]
        missed = shortfalls > allowed
        if not bool(missed.any()) or basis.products >= limit:
            break
        if len(basis.rows) + carried > largest_basis:
            basis.compress(carried)
        # residuals at the level of rounding have random directions: they would cost rows without improving a pair
        if not basis.extend(residuals[(sizes > rounding / NEGLIGIBLE).to(residuals.device)]):
            missed = missed & False
            break
    errors = shortfalls[:count]
    return RitzPairs(values, basis.vectors(carried), sizes, errors, not bool(missed.any()), basis.products)


def check_finite(numbers: Tensor) -> Tensor:
    """Return the numbers; raise FloatingPointError unless all are finite, as dense solvers require."""
    if not bool(numbers.isfinite().all()):
        raise FloatingPointError(
            "products with the covariance are not finite: gradients of single examples are not finite, or "
            f"their squares overflow in {numbers.dtype}"
        )
    return numbers


def orthonormal_outside(directions: Tensor, rows: Tensor) -> Tensor:
    """Orthonormal rows (j, n), j ≤ k, that span the part of ``directions`` (k, n) outside orthonormal ``rows``."""
    eps = torch.finfo(rows.dtype).eps
    kept = directions[directions.any(-1)]
    kept = kept / kept.abs().amax(-1, keepdim=True)  # squares of its entries may underflow
    kept = kept / torch.linalg.vector_norm(kept, dim=-1, keepdim=True)
    if not len(kept):
        return kept
    kept = part_outside(kept, rows)
    _, strengths, axes = torch.linalg.svd(kept, full_matrices=False)
    # smaller singular values are rounding of the subtracted part; a second projection makes the rest orthogonal
    new = part_outside(axes[strengths > eps**0.5], rows)
    return torch.linalg.qr(new.mT)[0].mT.contiguous()


def part_outside(directions: Tensor, rows: Tensor) -> Tensor:
    """The directions projected onto the complement of orthonormal rows, twice."""
    for _ in range(2):  # one projection leaves an error of eps relative to the remaining part
        directions = directions - (directions @ rows.mT) @ rows
    return directions


def widened_block(vectors: Tensor, rows: int, seed: int) -> Tensor:
    """``vectors`` (p, n) and random rows below them, ``rows`` in all: a start from some known pairs."""
    missing = rows - len(vectors)
    return torch.cat([vectors, random_block(vectors, missing, seed)]) if missing > 0 else vectors[:rows]
