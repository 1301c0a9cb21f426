r"""Eigenpairs along a run: warm starts, and modes identified across crossings of eigenvalues.

At the edge of stability θ oscillates with period two, and the Hessian of two steps ago is closer than that of the last
step. The starting block is therefore that of the closer of the last two θ.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from landscapes.errors import check_choice, check_count, check_float_tensor, check_positive, check_seed
from landscapes.krylov.precision import check_full_precision
from landscapes.krylov.ritz_pairs import WHICH, Eigenpairs, continued_pairs, eigenpairs, random_block
from landscapes.krylov.space import Product

GUARDS = 1  # rows carried beyond those wanted
DRAWS = 3  # random directions of a call


@dataclass(frozen=True)
class FollowedPairs:
    r"""Eigenpairs with the modes of the previous call identified.

    ``order`` (k,): the index in ``pairs`` of each followed mode, constant for a mode while eigenvalues cross.
    ``overlaps`` (k,): |uᵀu_before| of each mode, the larger over the last two calls; 0 at the first call. Below ½ a
    mode has left the wanted set and another takes its index. Signs are such that uᵀu_before ≥ 0.
    """

    pairs: Eigenpairs
    order: Tensor
    overlaps: Tensor
    vectors: Tensor  # (k, d), followed

    @property
    def values(self) -> Tensor:
        """λ of the followed modes (k,)."""
        return self.pairs.values[self.order]


class EigenpairTracker:
    r"""The wanted eigenpairs of a Hessian that changes from call to call, such as along a run.

    Stores the blocks and θ of the last two calls, which must be close: a mode that does not couple to the block, as in
    separable functions, and overtakes it between two calls can be missed for a few calls, which say converged. Restart
    with a new tracker where θ jumps. ``tolerance``, ``which``, ``limit`` and ``width`` are those of ``eigenpairs``.
    """

    def __init__(
        self,
        count: int,
        *,
        which: str = "largest",
        tolerance: float = 1e-4,
        limit: int = 300,
        width: int = 1,
        seed: int = 0,
    ):
        self.count = check_count("count", count)
        self._options = {
            "which": check_choice("which", which, WHICH),
            "tolerance": check_positive("tolerance", tolerance),
            "limit": check_count("limit", limit, minimum=self.count),
            "width": check_count("width", width),
        }
        self._seed = check_seed(seed)
        self._calls = 0
        self._converged = False
        self._past: list[tuple[Tensor, Tensor, Tensor]] = []  # (θ, block, followed vectors), the latest last

    def __call__(self, product: Product, theta: Tensor) -> FollowedPairs:
        """The wanted eigenpairs at θ (d,), with H by its product.

        Raises ValueError or TypeError unless θ is one real vector of the same size as before.
        """
        self._check(theta)
        theta = theta.detach().clone()  # an optimiser of the caller may update θ in place
        count = min(self.count, theta.shape[-1])
        start = self._start(theta, min(count + GUARDS, theta.shape[-1]))
        self._calls += DRAWS
        find = continued_pairs if self._converged else eigenpairs
        pairs = find(product, start, count, seed=self._seed + self._calls, **self._options)  # type: ignore[arg-type]
        if not bool(pairs.values.isfinite().all()):
            return FollowedPairs(pairs, torch.arange(count), torch.zeros(count, dtype=torch.float64), pairs.vectors)
        followed = self._follow(pairs)
        self._converged = pairs.converged
        self._past = [*self._past[-1:], (theta, pairs.block, followed.vectors)]
        return followed

    def _check(self, theta: Tensor) -> None:
        check_full_precision("theta", check_float_tensor("theta", theta))
        if theta.ndim != 1 or theta.is_complex():
            raise ValueError(f"theta must be one real vector (d,), got {tuple(theta.shape)} {theta.dtype}")
        if self._past and theta.shape != self._past[0][0].shape:
            before = tuple(self._past[0][0].shape)
            raise ValueError(
                f"theta must be {before} as before, got {tuple(theta.shape)}; use one tracker for each run"
            )

    def _start(self, theta: Tensor, rows: int) -> Tensor:
        if not self._past:
            return random_block(theta, rows, self._seed)
        nearest = min(self._past, key=lambda past: float(torch.linalg.vector_norm(theta - past[0])))
        return nearest[1]

    def _follow(self, pairs: Eigenpairs) -> FollowedPairs:
        k = len(pairs.values)
        if not self._past:
            return FollowedPairs(pairs, torch.arange(k), torch.zeros(k, dtype=torch.float64), pairs.vectors)
        products = torch.stack([vectors @ pairs.vectors.mT for _, _, vectors in self._past]).to("cpu", torch.float64)
        # (calls, k before, k now): the assignment of largest total overlap over both calls
        order = torch.from_numpy(linear_sum_assignment(products.abs().sum(0).numpy(), maximize=True)[1])
        own = products[:, torch.arange(k), order]  # (calls, k)
        closest = own.gather(0, own.abs().argmax(0, keepdim=True))[0]
        signs = torch.where(closest < 0, -1, 1).to(pairs.vectors)
        vectors = pairs.vectors[order.to(pairs.vectors.device)] * signs[:, None]
        return FollowedPairs(pairs, order, closest.abs(), vectors)
