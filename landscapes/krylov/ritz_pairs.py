r"""A few eigenpairs of the Hessian by a block method with warm starts.

Rayleigh–Ritz on a basis that begins with the rows of ``start`` (the block carried from a nearby Hessian, or random) and
grows by the residuals of the least accurate pairs (Davidson 1975 without a preconditioner). From one random row this is
Lanczos with full reorthogonalisation; from a carried block it spends products only on pairs that have changed. A basis
that is too large is compressed to its best Ritz vectors (thick restart, Wu & Simon 2000).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import check_choice, check_count, check_float_tensor, check_positive, check_seed
from landscapes.krylov.space import Product

WHICH = ("largest", "smallest", "magnitude")
LARGEST_BASIS = 60  # rows before a restart, or three times those that are carried
SCOUTS = 2  # products from the guards before the first test of convergence
CHANCE = 0.3  # weight of the random direction in such a product
NEGLIGIBLE = 100  # eps times the largest Ritz value: a residual below is rounding


@dataclass(frozen=True)
class Eigenpairs:
    r"""The wanted eigenpairs, most wanted first, with error estimates.

    ``residuals`` ‖Hu − λu‖: H has an eigenvalue within that distance. ``errors``: |λ − exact|, estimated by min(‖r‖,
    ‖r‖²/gap) with the gap to the interval of the last carried value; too small if the space misses an eigenvalue, such
    as one of a multiple eigenvalue or cluster wider than the block. ``converged``: every error is within tolerance, and
    no guard can be a better pair. ``block`` (p, d): the orthonormal rows to carry to the next, nearby Hessian.
    ``products``: HVPs spent.
    """

    values: Tensor  # (k,) float64 on the CPU
    vectors: Tensor  # (k, d)
    residuals: Tensor  # (k,)
    errors: Tensor  # (k,)
    converged: bool
    products: int
    block: Tensor  # (p, d)


def random_block(like: Tensor, rows: int, seed: int = 0) -> Tensor:
    """Normal rows (rows, d) of the size, dtype and device of ``like`` (..., d): a start without prior information."""
    generator = torch.Generator(like.device).manual_seed(check_seed(seed))
    shape = (check_count("rows", rows), check_float_tensor("like", like).shape[-1])
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


class RitzSpace:
    """Orthonormal rows Q (m, d) with their images QH, and the Ritz pairs of QHQᵀ in the order that a subclass gives."""

    def __init__(self, start: Tensor):
        self.products = 0
        self.rows = start[:0]
        self.images = start[:0]
        self.values = torch.zeros(0, dtype=torch.float64)
        self._mixing = torch.zeros(0, 0, dtype=torch.float64)

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


class RitzBasis(RitzSpace):
    """Orthonormal rows Q (m, d) with their images HQ, and the Ritz pairs of QHQᵀ, most wanted first."""

    def __init__(self, product: Product, start: Tensor, which: str):
        super().__init__(start)
        self._product = product
        self._which = which

    def extend(self, directions: Tensor, room: int) -> int:
        """Add the parts of ``directions`` (n, d) outside the span, at most ``room``; returns the number of products."""
        added = 0
        for direction in directions:
            row = unit_part_outside(direction, self.rows)  # one by one, so that the rows added are orthogonal, too
            if row is not None and added < room:
                self.rows = torch.cat([self.rows, row[None]])
                self.images = torch.cat([self.images, self._product(row).detach()[None]])
                added += 1
        self.products += added
        if added:
            self._solve()
        return added

    def _solve(self) -> None:
        projection = (self.rows @ self.images.mT).to("cpu", torch.float64)
        if not bool(projection.isfinite().all()):
            self.values = torch.full(projection.shape[:1], torch.nan, dtype=torch.float64)
            return
        # QHQᵀ is symmetric only up to the rounding of the products, and eigh reads one triangle
        values, mixing = torch.linalg.eigh((projection + projection.mT) / 2)
        order = self._rank(values).argsort(descending=True, stable=True)
        self.values, self._mixing = values[order], mixing[:, order]

    def _rank(self, values: Tensor) -> Tensor:
        return {"largest": values, "smallest": -values, "magnitude": values.abs()}[self._which]

    @property
    def ranks(self) -> Tensor:
        """λ, −λ or |λ| of the Ritz values, descending."""
        return self._rank(self.values)

    @property
    def finite(self) -> bool:
        """Whether every product was finite."""
        return bool(self.values.isfinite().all())

    def compress(self, count: int) -> None:
        """Keep the first ``count`` Ritz vectors, whose images need no product."""
        super().compress(count)
        self._solve()


def eigenpairs(
    product: Product,
    start: Tensor,
    count: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-4,
    limit: int = 300,
    width: int = 1,
    seed: int = 0,
) -> Eigenpairs:
    r"""The ``count`` largest, smallest or largest-in-magnitude eigenpairs of a real symmetric H (d, d).

    ``start`` (b, d): rows to begin with, ``random_block`` or the ``block`` of an earlier call at a nearby θ. Rows
    beyond ``count`` guard the last pairs, whose errors would be of first order in the residual without them, and detect
    modes that enter the wanted set, by two products from the guards in any case: carry one or two. A single row finds
    each multiple eigenvalue once.

    Stops once every wanted eigenvalue is estimated to within ``tolerance`` times the largest Ritz value in magnitude
    and no guard can outrank the last of them by more, or after ``limit`` products. ``width``: the number of residuals
    added to the basis at a time; 1 takes fewest products. ``seed`` of the random part of the products from the guards:
    change it from call to call.

    Raises ValueError or TypeError for invalid arguments, such as a ``limit`` below ``count``. A product that is not
    finite gives NaN, not converged. Results carry no autograd graph.
    """
    check_start(start, count)
    check_choice("which", which, WHICH)
    check_positive("tolerance", tolerance)
    check_count("limit", limit, minimum=count)
    check_count("width", width)
    check_seed(seed)
    start = start.detach()
    carried = min(max(len(start), count), start.shape[-1])
    basis = RitzBasis(product, start, which)
    basis.extend(start, limit)
    for i in range(SCOUTS if len(start) > count else 0):
        scout(basis, count, carried, limit, seed + i)
    while basis.finite and len(basis.rows):
        k = min(count, len(basis.rows))
        residuals = basis.residuals(carried)
        sizes = torch.linalg.vector_norm(residuals, dim=-1).to("cpu", torch.float64)
        shortfalls = carried_shortfalls(basis.ranks[:carried], sizes, k)
        scale = float(basis.values.abs().max())
        allowed = max(tolerance, NEGLIGIBLE * torch.finfo(start.dtype).eps) * scale
        enough = k == count or len(basis.rows) == start.shape[-1]
        converged = enough and bool((shortfalls <= allowed).all())
        if converged or basis.products >= limit:
            break
        if len(basis.rows) + width > max(LARGEST_BASIS, 3 * carried):
            basis.compress(max(carried, LARGEST_BASIS // 3))
        # stable: ties are broken the same way on every device
        worst = shortfalls.argsort(descending=True, stable=True)[:width].to(start.device)
        if not basis.extend(residuals[worst], limit - basis.products):  # the space is invariant
            if enough or not basis.extend(random_block(start, 1, seed=basis.products), 1):
                break
    if not basis.finite or not len(basis.rows):
        return no_pairs(start, count, basis.products)
    values, vectors, errors = basis.values[:k], basis.vectors(k), shortfalls[:k]
    return Eigenpairs(values, vectors, sizes[:k], errors, converged, basis.products, basis.vectors(carried))


def carried_shortfalls(ranks: Tensor, residuals: Tensor, k: int) -> Tensor:
    r"""Error estimates of the carried pairs (p,).

    The k wanted pairs: min(‖r‖, ‖r‖²/gap), with gaps to the interval of the last carried value, which is known up to
    its own residual. The guards: by how much the eigenvalue near each may outrank the last wanted one.
    """
    gaps = ranks - ranks[-1] - residuals[-1]
    errors = torch.where(gaps > residuals, residuals.square() / gaps, residuals)
    return torch.cat([errors[:k], (ranks + residuals - ranks[k - 1])[k:]])


def scout(basis: RitzBasis, count: int, carried: int, limit: int, seed: int) -> None:
    """Extend the basis by the largest residual of a guard plus a random direction.

    A mode that enters the wanted set uncoupled from the wanted pairs does not appear in their residuals; it does in a
    guard's.
    """
    if not basis.finite or len(basis.rows) <= count:
        return
    residuals = basis.residuals(carried)[count:]
    sizes = torch.linalg.vector_norm(residuals, dim=-1)
    worst = residuals[sizes.argmax()] / sizes.max().clamp_min(torch.finfo(residuals.dtype).tiny)
    chance = random_block(worst, 1, seed)
    chance = chance / torch.linalg.vector_norm(chance)
    basis.extend(worst + CHANCE * chance, limit - basis.products)


def unit_part_outside(direction: Tensor, rows: Tensor) -> Tensor | None:
    """The direction without its part in the span of orthonormal rows, as a unit vector; None if it is rounding."""
    size = torch.linalg.vector_norm(direction)
    if not float(size) > 0:
        return None
    unit = direction / size
    for _ in range(2):  # one projection leaves an error of eps relative to the remaining part
        unit = unit - (rows @ unit) @ rows
        left = torch.linalg.vector_norm(unit)
        if float(left) < NEGLIGIBLE * torch.finfo(rows.dtype).eps:
            return None
        unit = unit / left
    return unit


def no_pairs(start: Tensor, count: int, products: int) -> Eigenpairs:
    """The result if a product was not finite."""
    nothing = torch.full((count,), torch.nan, dtype=torch.float64)
    vectors = start.new_full((count, start.shape[-1]), torch.nan)
    return Eigenpairs(nothing, vectors, nothing, nothing, False, products, random_block(start, len(start)))


def check_start(start: Tensor, count: int) -> None:
    """Raise unless ``start`` is a real block (b, d) of finite rows, and d ≥ count."""
    check_float_tensor("start", start)
    if start.ndim != 2 or start.shape[0] == 0 or start.is_complex():
        raise ValueError(f"start must be a real block (b, d), b >= 1, got {tuple(start.shape)} {start.dtype}")
    if check_count("count", count) > start.shape[-1]:
        raise ValueError(f"count must be at most d = {start.shape[-1]}, got {count}")
    if not bool(start.isfinite().all()) or not bool(start.any()):
        raise ValueError("start must be finite and not zero; use random_block without prior information")
