r"""A few eigenpairs of the Hessian by one Krylov space, with warm starts.

Rayleigh–Ritz on a space (``RitzSpace``) that begins with one random row, or with the rows of a block carried from a
nearby Hessian, and grows by the residual of the least accurate pair. From one row this is Lanczos with full
reorthogonalisation; from a carried block it spends products only on pairs that have changed. A basis that is too large
is compressed to its best Ritz vectors (thick restart, Wu & Simon 2000).

**Error of a Ritz value.** Let u₁, u₂ be eigenvectors at a distance g that the space does not separate: it contains
a u₁ + b u₂ only, with a² + b² = 1. The Ritz value is off by b²g, at a residual of r = |ab| g: by r |b/a|, whatever the
distance to the other Ritz values. A random start has |b/a| > x with a probability of about 2/(πx). In a space from
one random row the error is therefore taken to be ``UNSEEN``·r. For several pairs a second random direction is mixed
into the second product, in which the second copy of a multiple eigenvalue has its part; the error is then taken to be
half of that.

A carried block has separated its modes. For pairs that lie mostly in it, the error is taken to be the second-order
estimate r²/gap (Parlett 1980), where the error of the gap is below half of it: in ``continued_pairs``, which takes the
caller's word, and in ``eigenpairs`` where the block's own Ritz pairs are closer to H than to its first guard. The modes
outside are met by random directions, of which the Ritz values and residuals must exclude that they outrank the wanted
ones, or the space be as deep as that of a cold start. This assumes that they belong to one bulk: a single mode that
does not couple to the block and overtakes it from one call to the next can be missed, for a few calls. In up to
``DEPTH`` dimensions the space grows to the whole of R^d.

``scripts.curvature hessians`` counts how often all of this fails.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import MOST, check_choice, check_count, check_float_tensor, check_positive, check_seed
from landscapes.krylov.precision import check_full_precision, check_resolved
from landscapes.krylov.ritz_space import Rank, RitzSpace
from landscapes.krylov.space import ROUNDING, Product, binary_unit, check_product, norm, row_norms

WHICH = ("largest", "smallest", "magnitude")
RANKS: dict[str, Rank] = {"largest": lambda x: x, "smallest": lambda x: -x, "magnitude": torch.abs}
DEPTH = 20  # products before a cold space may say converged, or 2k + 1 if that is more: ARPACK's default basis
LARGEST_BASIS = 32  # rows before a restart, or twice those that are judged and 8
UNSEEN = 4  # |b/a| of a pair of modes that a space from one random row may have missed
CHANCE = 0.3  # weight of the random direction in a look beyond a carried block
COPIES = 0.1  # weight of that in the second product of a cold space, for the copies of multiple eigenvalues
ALIGNED = 0.75  # part of the first Ritz vector in the first row, above which a start is a carried block
SPARE = 2  # directions of growth of a cold space, stored beside its basis
MOSTLY = 0.5  # part of a Ritz vector in the carried block, below which the pair is a new one
SCOUT_SEED = (
    2654435769  # random directions are not those of a ``random_block`` of the same seed; torch uses 32 bits of it
)


@dataclass(frozen=True)
class Eigenpairs:
    r"""The wanted eigenpairs, most wanted first, with error estimates.

    ``residuals`` ‖Hu − λu‖ of a symmetric H: it has an eigenvalue within that distance, up to rounding. ``errors``:
    |λ − exact|, from residuals and gaps as ``landscapes.krylov.ritz_pairs`` says, rounding included. ``converged``:
    every error is within the tolerance asked, in a space of the least depth or from a carried block. It does not see
    third copies of multiple eigenvalues, more modes in a cluster than the block has, modes that overtake a carried
    block at once, or a start that is not random and has no part in the wanted modes. ``block`` (p, d): the orthonormal
    rows to carry to the next, nearby Hessian. ``products``: HVPs spent.
    """

    values: Tensor  # (k,) float64 on the CPU
    vectors: Tensor  # (k, d)
    residuals: Tensor  # (k,)
    errors: Tensor  # (k,)
    converged: bool
    products: int
    block: Tensor  # (p, d)


@dataclass(frozen=True)
class Verdict:
    """Residuals and error estimates of the first Ritz pairs, the k wanted and then the guards, most wanted first.

    ``settled``: further products do not help, as the errors are within tolerance but for those of the products.
    """

    residuals: Tensor  # (p,)
    errors: Tensor  # (p,), of guards: by how much an eigenvalue near each may outrank the last wanted one
    settled: bool
    converged: bool


def random_block(like: Tensor, rows: int, seed: int = 0) -> Tensor:
    """Normal rows (rows, d) of the size, dtype and device of ``like`` (..., d): a start without prior information."""
    if check_float_tensor("like", like).ndim == 0:
        raise ValueError(f"like must have shape (..., d), got {tuple(like.shape)}")
    generator = torch.Generator(like.device).manual_seed(check_seed(seed))
    shape = (check_count("rows", rows, maximum=max(MOST // max(like.shape[-1], 1), 1)), like.shape[-1])
    return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)


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

    ``start`` (b, d): one row of ``random_block`` without prior information, or the ``block`` of an earlier call at a
    nearby θ. Rows of a carried block beyond ``count`` guard the last pairs and detect modes that enter the wanted set,
    by two products in any case: carry one or two. Unless its own Ritz pairs are closer to H than to the first guard, a
    block takes as many products as a random start at least; ``continued_pairs`` does not ask. Of random rows the first
    starts the space, and a random direction of ``seed`` finds the second copies of multiple eigenvalues; further
    copies, as the other rows, are met only once the space is invariant. Change the seed from call to call.

    Stops once every wanted eigenvalue is estimated to within ``tolerance`` times the largest Ritz value in magnitude,
    or after ``limit`` products. It takes at least min(d, max(2k + 1, 20)) products, unless the space closes earlier or
    the block is carried and d is larger than those. ``width``: the number of residuals added to the basis at a time; 1
    takes fewest products.

    Raises ValueError or TypeError for invalid arguments, such as a ``limit`` below ``count``, half precision, or a
    ``tolerance`` below the rounding of the precision. A product that is not finite gives NaN, not converged. Results
    carry no autograd graph.
    """
    search = checked_search(product, start, count, which, tolerance, limit, width, seed)
    search.begin()
    return search.finish(width)


def continued_pairs(
    product: Product,
    block: Tensor,
    count: int,
    *,
    which: str = "largest",
    tolerance: float = 1e-4,
    limit: int = 300,
    width: int = 1,
    seed: int = 0,
) -> Eigenpairs:
    """As ``eigenpairs``, from the ``block`` of a call at a nearby Hessian, with fewer products: it is not examined.

    The block must have guards, rows beyond ``count``; the first call gives them if it starts from count + 1 random rows
    or more. A block that is not carried, such as random rows, can give other eigenvalues than those wanted, called
    converged, as can one whose guards do not reach beyond a cluster of the wanted ones.
    """
    search = checked_search(product, block, count, which, tolerance, limit, width, seed)
    check_guards(block, count)
    search.begin_carried()
    return search.finish(width)


def checked_search(
    product: Product, start: Tensor, count: int, which: str, tolerance: float, limit: int, width: int, seed: int
) -> RitzSearch:
    """A search that has not begun; raise for invalid arguments."""
    check_product("product", product)
    check_start(start, count)
    check_choice("which", which, WHICH)
    check_resolved(check_positive("tolerance", tolerance), start)
    check_count("limit", limit, minimum=count)
    check_count("width", width)
    return RitzSearch(product, start.detach(), count, RANKS[which], tolerance, limit, check_seed(seed))


class RitzSearch:
    """A space that grows until the wanted pairs are within tolerance."""

    def __init__(
        self, product: Product, start: Tensor, count: int, rank: Rank, tolerance: float, limit: int, seed: int
    ):
        self._start = start
        self._count = count
        self._carried = min(max(len(start), count), start.shape[-1])
        self._pairs = max(self._carried, count + 1)  # judged: wanted and guards, one at least
        self._rows = max(LARGEST_BASIS, 2 * self._pairs + 8)  # before a restart
        self.space = RitzSpace(product, start, rank, self._rows + SPARE)
        self._depth = max(2 * count + 1, DEPTH)
        self._tolerance = tolerance
        self._limit = limit
        self._seed = seed
        self._unused = list(start)
        self._begun = 0  # independent rows, given or random, from which the space has grown
        self._known: Tensor | None = None  # coordinates of a carried block in Q, None for a cold space

    @property
    def left(self) -> int:
        """Products that may still be spent; 0 once one was not finite."""
        return self._limit - self.space.products if self.space.finite else 0

    def begin(self) -> None:
        """Two products from the first row, and the other rows of a carried block."""
        self._add_given()
        self._grow()
        if self.left and self.space.directions and self._count == 1:  # copies of λ₁ do not matter
            self._grow()
        else:
            self._scout(0, COPIES)
        if self.left and self._is_aligned():
            self._grow_given()
            if self.space.finite and self._is_separated():
                self._look_beyond(1)

    def begin_carried(self) -> None:
        """The products of a block that is known to be carried, and two looks beyond it."""
        self._grow_given()
        if self.space.finite:
            self._look_beyond(2)

    def _grow_given(self) -> None:
        while self.left and self._add_given():
            self._grow()

    def _is_aligned(self) -> bool:
        """Whether the first row is close to the first Ritz vector: then the others are likely to help."""
        self.space.solve()
        return bool(self.space.shares(torch.eye(1, self.space.size, dtype=torch.float64), 1) >= ALIGNED)

    def _given(self) -> Tensor:
        """Coordinates (r, m) of an orthonormal basis of the start in Q, of the directions that are in Q."""
        _, sizes, axes = torch.linalg.svd(self.space.components(self._start), full_matrices=False)
        return axes[sizes > sizes[0] * torch.finfo(self._start.dtype).eps ** 0.5]

    def _is_separated(self) -> bool:
        """Whether the start has the wanted modes: its own Ritz pairs are closer to H than to the first guard.

        Random rows have not, and one of them can be close to the first Ritz vector, if the modes beyond it are many.
        """
        ranks, residuals = self.space.pairs_on(self._given())
        k = self._count
        return len(ranks) > k and bool(residuals[:k].max() < (ranks[k - 1] - ranks[k]) / 2)

    def _look_beyond(self, looks: int) -> None:
        self._known = self._given()
        for look in range(looks):
            if self.left:
                self.space.solve()
                # a block without guards looks from its last pair
                guards = self.space.residuals(self._carried)[:, min(self._count, self._carried - 1) :]
                guards = torch.nn.functional.pad(guards, (0, 1))  # with too few pairs, there is no residual
                self._scout(1 + look, CHANCE, guards[:, row_norms(guards.mT).argmax()])

    def _scout(self, number: int, chance: float, residual: Tensor | None = None) -> None:
        """A product from a residual, as components along W, or the only direction, plus a random direction.

        It meets copies of multiple eigenvalues and, from the residual of a guard, modes that enter the wanted set
        uncoupled from the wanted pairs.
        """
        if not self.left:
            return
        weights = torch.ones(self.space.directions, dtype=torch.float64) if residual is None else residual
        weights = weights / (norm(weights) or 1.0)
        along = self._open_random(number)
        if len(along) > len(weights):
            # of the sign for which −H, whose residuals are the opposite, gives the same space
            sign = -1.0 if float(along[:-1] @ weights) < 0 else 1.0
            self.space.turn(torch.cat([weights, weights.new_tensor([sign * chance])]))
        if self.space.directions:
            self._grow()

    def finish(self, width: int) -> Eigenpairs:
        """The pairs, once they are within tolerance or the limit is reached."""
        while self._known is None and self.space.directions == 1 and self.left and self.space.products < self._depth:
            self._grow()  # too early to stop, and in one direction there is nothing to choose
        verdict = self.judge()
        while not verdict.settled and self.left and self.extend(verdict.errors, width):
            verdict = self.judge()
        return self.result(verdict)

    def extend(self, errors: Tensor, width: int) -> bool:
        """Grow by the residuals of the ``width`` least accurate pairs; False if the space is the whole of R^d."""
        if self.space.size >= self._rows:
            mixing = self.space.compress(self._pairs + (self._rows - self._pairs) // 3)
            self._known = None if self._known is None else self._known @ mixing
        if not self.space.directions:  # invariant
            if self._add_given() or len(self._open_random(1 + self._begun)):
                self._grow()
                return True
            return False
        # stable: ties are broken the same way on every device
        for pair in errors[: self.space.size].argsort(descending=True, stable=True)[:width].tolist():
            residual = self.space.residuals(pair + 1)[:, pair]
            if self.left and self.space.directions:
                if self.space.directions > 1 and bool(residual.any()):
                    self.space.turn(residual)
                self._grow()
        return True

    def _add_given(self) -> bool:
        """Turn to the next row of the start that is outside the space; False if there is none."""
        while self._unused:
            along = self.space.open(self._unused.pop(0))
            if bool((along.abs() > ROUNDING * torch.finfo(self._start.dtype).eps).any()):
                self.space.turn(along)
                self._begun += 1
                return True
        return False

    def _open_random(self, number: int) -> Tensor:
        row = random_block(self._start, 1, (SCOUT_SEED + self._seed + number) % 2**63)[0]
        directions = self.space.directions
        along = self.space.open(row)
        self._begun += len(along) > directions
        return along

    def _grow(self) -> None:
        size = self.space.size
        self.space.grow()
        if self._known is not None:
            self._known = torch.nn.functional.pad(self._known, (0, self.space.size - size))

    def judge(self) -> Verdict:
        """Residuals, error estimates, and whether they are within tolerance."""
        space = self.space
        if not space.finite:
            nothing = torch.full((self._count,), torch.nan, dtype=torch.float64)
            return Verdict(nothing, nothing, True, False)
        space.solve()
        k, pairs = min(self._count, space.size), min(self._pairs, space.size)
        residuals, asymmetries = space.residual_norms(space.size)
        carried = self._known is not None and bool((space.shares(self._known, k) >= MOSTLY).all())
        if carried:
            errors = carried_errors(space.ranks[:pairs], residuals[:pairs], k)
            if space.products < self._depth:  # every pair met is a guard
                errors = torch.cat([errors, (space.ranks + residuals - space.ranks[k - 1])[pairs:]])
        else:
            errors = UNSEEN / min(self._begun, 2) * residuals[:k]
        errors, allowed = errors + space.rounding, self._tolerance * space.scale
        closed = not space.directions and (space.full or self._begun >= max(self._count, 2))
        deep = closed or space.products >= self._depth or (carried and self._start.shape[-1] > self._depth)
        settled = k == self._count and deep and bool((errors <= allowed).all())
        errors = errors + asymmetries[: len(errors)]
        converged = settled and bool((errors <= allowed).all())
        return Verdict(torch.hypot(residuals, asymmetries), errors, settled, converged)

    def result(self, verdict: Verdict) -> Eigenpairs:
        """The pairs, with the block to carry."""
        space, k = self.space, self._count
        if not space.finite:
            vectors = self._start.new_full((k, self._start.shape[-1]), torch.nan)
            block = random_block(self._start, len(self._start))
            return Eigenpairs(verdict.errors, vectors, verdict.residuals, verdict.errors, False, space.products, block)
        block = space.vectors(min(self._carried, space.size))
        k = min(k, space.size)
        values, residuals, errors = space.values[:k].clone(), verdict.residuals[:k], verdict.errors[:k]
        return Eigenpairs(values, block[:k], residuals, errors, verdict.converged, space.products, block)


def carried_errors(ranks: Tensor, residuals: Tensor, k: int) -> Tensor:
    r"""Error estimates (p,) of the first p pairs in a space that has grown from a carried block.

    The k wanted pairs: ‖r‖²/gap, with the gap to the interval of the last of the p values, which is known up to its own
    residual; ‖r‖ where that is not below half the gap, or where ‖r‖ is above the rest of it. The guards: by how much
    the eigenvalue near each may outrank the last wanted one.
    """
    unit = binary_unit(float(ranks.abs().max()))
    ranks, residuals = ranks / unit, residuals / unit
    gaps, own = ranks - ranks[-1], residuals[-1]
    known = (own < gaps / 2) & (residuals < gaps - own)
    wanted = torch.where(known, residuals.square() / (gaps - own), residuals)
    return unit * torch.cat([wanted[:k], (ranks + residuals - ranks[k - 1])[k:]])


def check_guards(block: Tensor, count: int) -> None:
    """Raise ValueError unless ``block`` (b, d) has rows beyond ``count``, or d is not larger."""
    if block.shape[0] <= count < block.shape[1]:
        raise ValueError(
            f"block must have guards, rows beyond count = {count}, got {block.shape[0]} rows; start the first call "
            "from random_block(like, count + 1)"
        )


def check_start(start: Tensor, count: int) -> None:
    """Raise unless ``start`` is a real block (b, d) of finite rows, and d ≥ count."""
    check_float_tensor("start", start)
    check_full_precision("start", start)
    if start.ndim != 2 or start.shape[0] == 0 or start.is_complex():
        raise ValueError(f"start must be a real block (b, d), b >= 1, got {tuple(start.shape)} {start.dtype}")
    if check_count("count", count) > start.shape[-1]:
        raise ValueError(f"count must be at most d = {start.shape[-1]}, got {count}")
    if not bool(start.isfinite().all()) or not bool(start.any()):
        raise ValueError("start must be finite and not zero; use random_block without prior information")
