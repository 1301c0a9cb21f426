r"""The modified equation of one epoch of mini-batch steps in a given order: commutators of the batches' fields.

Euler steps of rate h with batch losses f_1 … f_m, g_k = ∇f_k and H_k = ∇²f_k, take x to

    x − h Σ_k g_k + h² Σ_{j<k} H_k g_j + O(h³);

a field −ḡ + hV, ḡ = (1/m) Σ_k g_k, takes it in time mh to x − mh ḡ + mh² V + ½h² (Σ_k H_k)(Σ_j g_j) + O(h³). Hence

    V = (1/m) Σ_k H_k (Σ_{j<k} g_j − ½ Σ_j g_j)
      = −∇ (1/4m) Σ_k ‖g_k‖²  +  (1/2m) Σ_{j<k} (H_k g_j − H_j g_k).

The first part belongs to every order: it is the drift of reshuffling's modified loss. The second is half the sum of the
commutators [F_j, F_k] of the fields F_k = −g_k: it changes sign with the order reversed, and has curl.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model
from flows.flow import Flow
from landscapes import FiniteSum
from landscapes.landscape import check_finite_sum
from landscapes.wrappers.gradient_penalties import Batches, check_batches


@final
@dataclass(frozen=True, eq=False)
class EpochFlow(Flow):
    r"""Modified flow of an epoch in a given order  θ̇ = −ḡ + (h/m) Σ_k H_k (Σ_{j<k} g_j − ½ Σ_j g_j).

    g_k, H_k: gradient and Hessian of the mean over batch k, ḡ = (1/m) Σ_k g_k. ``batches``, in the order they are
    taken: an index tensor (m, b) or 1-D index tensors whose lengths may differ; examples may be missing or repeat. On
    the clock t = k·h an epoch takes mh, at whose end the error is O(h³) for fixed m; within the epoch it is O(h). One
    batch: ``ModifiedFlow`` of order 2. In general no gradient field: the mean over all orders is −∇ of
    ``reshuffling_loss``, a single order adds commutators, which have curl. The steps are those of
    ``IncrementalGradientDescent``.

    Cost of an evaluation: one gradient and one HVP of every batch, whose graphs are held together.
    Raises TypeError or ValueError for a landscape without examples, an h ≤ 0, or batches out of place.
    """

    landscape: FiniteSum
    h: float
    batches: Batches

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_finite_sum(self.landscape)
        object.__setattr__(self, "batches", check_batches(self.batches, self.landscape.size))

    @property
    def radius(self) -> float:
        """1/m: the epoch is one map of length mh. A guide, as batches may be sharper than their mean."""
        return 1 / len(self.batches)

    @property
    def epoch(self) -> float:
        """The time an epoch takes, mh: the flow speaks of times that are multiples of it."""
        return len(self.batches) * self.h

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The modified field at θ, shape (..., d)."""
        points = [self.landscape.restrict(batch).expand(state) for batch in self.batches]
        upto = list(accumulate((point.grad for point in points), torch.add))  # Σ_{j≤k} g_j
        total, m = upto[-1], len(points)
        products = [
            point.hvp(before - total / 2)
            for point, before in zip(points, (torch.zeros_like(total), *upto[:-1]), strict=True)
        ]
        return (self.h * torch.stack(products).sum(dim=0) - total) / m
