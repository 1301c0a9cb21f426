r"""Top eigenpairs of a noise covariance by the cheapest of its matrix, the Gram matrix and a block Krylov method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import check_choice, check_count, check_positive, check_seed
from landscapes.krylov import random_block
from landscapes.krylov.precision import check_full_precision
from landscapes.krylov.ritz_pairs import carried_errors
from landscapes.krylov.space import row_norms
from landscapes.noise.covariance import CovarianceOperator
from landscapes.noise.plans import METHODS, Plan, choose, guarded_rows
from landscapes.noise.ritz import NEGLIGIBLE, BlockRitz, RitzPairs, check_finite, top_pairs

MEMORY = 2**30  # bytes


@dataclass(frozen=True)
class NoiseEigenpairs:
    r"""The largest eigenpairs of C, largest first, with errors, method and cost.

    ``residuals`` ‖Cu − λu‖; ``errors``: |λ − exact|, estimated by ‖r‖²/gap where the gap is known to half of it, and by
    ‖r‖ elsewhere. ``converged``: every error is within tolerance, relative to its eigenvalue, or rounding. ``method``:
    "dense", "gram" or "krylov"; ``passes``: gradients of all examples taken; ``bytes``: memory beyond the landscape's
    own, by the method's plan.
    """

    values: Tensor  # (k,) float64 on the CPU
    vectors: Tensor  # (k, n)
    residuals: Tensor  # (k,) float64 on the CPU
    errors: Tensor  # (k,) float64 on the CPU
    converged: bool
    method: str
    passes: float
    bytes: int


def top_eigenpairs(
    operator: CovarianceOperator,
    count: int,
    *,
    method: str = "auto",
    memory: int = MEMORY,
    tolerance: float = 1e-4,
    limit: int = 100,
    seed: int = 0,
) -> NoiseEigenpairs:
    r"""The ``count`` largest eigenpairs of C, by its matrix, the Gram matrix or a block Krylov method.

    ``method`` "auto": the one of least expected cost that fits in ``memory`` bytes beyond the landscape's own
    (``landscapes.noise.plans``). ``tolerance`` is relative to each eigenvalue, down to rounding of the largest.
    ``limit``: passes after which the Krylov method stops, not converged; ``seed`` of its first block.

    Raises ValueError or TypeError for invalid arguments, such as a ``memory`` too small for every method;
    FloatingPointError if gradients are not finite.
    """
    if check_count("count", count) > check_operator(operator).dimension:
        raise ValueError(f"count must be at most the order of the covariance, {operator.dimension}, got {count}")
    check_options(method, memory, tolerance, limit, seed)
    plan, before = choose(operator, count, method, memory), operator.passes
    if plan.method == "krylov":
        start = random_block(operator.like, guarded_rows(operator, count), seed)
        pairs = krylov_pairs(operator, start, count, plan, tolerance, limit)
    else:
        pairs = refine(operator, direct_vectors(operator, count, plan), count, tolerance, seed)
    return NoiseEigenpairs(
        pairs.values[:count],
        pairs.vectors[:count],
        pairs.residuals[:count],
        pairs.errors,
        pairs.converged,
        plan.method,
        operator.passes - before,
        plan.bytes,
    )


def krylov_pairs(
    operator: CovarianceOperator, start: Tensor, count: int, plan: Plan, tolerance: float, limit: int
) -> RitzPairs:
    """Eigenpairs by the block method with the first block ``start``."""
    return top_pairs(operator.products, start, count, tolerance=tolerance, limit=limit, largest_basis=plan.rows)


def direct_vectors(operator: CovarianceOperator, count: int, plan: Plan) -> Tensor:
    """The first eigenvectors (count, n) of the matrix, or images of those of the Gram matrix, Σ_i w_i (g_i − g)."""
    if plan.method == "dense":
        return torch.linalg.eigh(check_finite(operator.dense()))[1][:, -count:].mT.flip(0).to(operator.like)
    gram = check_finite(operator.gram(plan.rows * operator.like.nbytes))
    vectors = torch.linalg.eigh(gram)[1][:, -count:].flip(1)
    total = operator.like.new_zeros(vectors.shape[1], operator.dimension)
    for place, rows in operator.gradients.blocks():
        total += vectors[place].mT.to(rows) @ rows[:, operator.part]
    return total


def refine(operator: CovarianceOperator, vectors: Tensor, count: int, tolerance: float, seed: int) -> RitzPairs:
    """Ritz pairs of the span of ``vectors``, by one pass; random rows complete it to ``count`` dimensions."""
    basis = BlockRitz(operator.products, operator.like.new_empty(0, operator.dimension))
    basis.extend(vectors)
    if len(basis.rows) < count:
        basis.extend(random_block(operator.like, count - len(basis.rows), seed))
    sizes = row_norms(basis.residuals(count))
    values = basis.values[:count]
    errors = carried_errors(values, sizes, count)
    rounding = NEGLIGIBLE * torch.finfo(operator.like.dtype).eps * float(values[0].clamp_min(0))
    converged = bool((errors <= (tolerance * values).clamp_min(rounding)).all())
    return RitzPairs(values, basis.vectors(count), sizes, errors, converged, basis.products)


def check_options(method: str, memory: int, tolerance: float, limit: int, seed: int) -> None:
    """Raise unless the options of ``top_eigenpairs`` are valid."""
    check_choice("method", method, METHODS)
    check_count("memory", memory)
    check_positive("tolerance", tolerance)
    check_count("limit", limit)
    check_seed(seed)


def check_operator(operator: CovarianceOperator) -> CovarianceOperator:
    """Return ``operator``; raise unless it is a CovarianceOperator in full precision."""
    if not isinstance(operator, CovarianceOperator):
        raise TypeError(
            f"operator must be a CovarianceOperator, got {type(operator).__name__}; "
            "noise_covariance(landscape, theta) makes one"
        )
    check_full_precision("theta", operator.like)
    return operator
