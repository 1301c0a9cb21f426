r"""The modified equation of one epoch of mini-batch steps in a given order: commutators of the batches' fields.

Euler steps of rate h with batch losses f_1 … f_m, g_k = ∇f_k and H_k = ∇²f_k, map x to

    x − h Σ_k g_k + h² Σ_{j<k} H_k g_j + O(h³);

the field −ḡ + hV, ḡ = (1/m) Σ_k g_k, maps it in time mh to x − mh ḡ + mh² V + ½h² (Σ_k H_k)(Σ_j g_j) + O(h³). Hence

    V = (1/m) Σ_k H_k (Σ_{j<k} g_j − ½ Σ_j g_j)
      = −∇ (1/4m) Σ_k ‖g_k‖²  +  (1/2m) Σ_{j<k} (H_k g_j − H_j g_k).

The first term does not depend on the order: it is the drift of reshuffling's modified loss. The second is half the sum
of the commutators [F_j, F_k] of the fields F_k = −g_k: it changes sign if the order is reversed, and has curl.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model
from flows.declared import Clock
from flows.flow import Flow
from landscapes import FiniteSum
from landscapes.landscape import check_finite_sum
from landscapes.wrappers.gradient_penalties import Batches, check_batches


@final
@dataclass(frozen=True, eq=False)
class EpochFlow(Flow):
    r"""Modified flow of an epoch in a given order  θ̇ = −ḡ + (h/m) Σ_k H_k (Σ_{j<k} g_j − ½ Σ_j g_j).

    g_k, H_k: gradient and Hessian of the mean over batch k, ḡ = (1/m) Σ_k g_k. ``batches``, in the order of the steps:
    an index tensor (m, b) or 1-D index tensors whose lengths may differ; examples may be missing or repeat. On
    the clock t = k·h an epoch takes mh, at whose end the error is O(h³) for fixed m; within the epoch it is O(h). With
    one batch it is ``ModifiedFlow`` of order 2. It is in general no gradient field: the mean over all orders is −∇ of
    ``reshuffling_loss``, a single order adds commutators, which have curl. The descent is
    ``IncrementalGradientDescent``.

    Cost of an evaluation: one gradient and one HVP of every batch; the graphs of all batches are in memory at once.
    Raises TypeError or ValueError for a landscape without examples, an h ≤ 0, or invalid batches.
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
        """1/m, as the epoch is one map of length mh. An estimate: batches may be sharper than their mean."""
        return 1 / len(self.batches)

    @property
    def epoch(self) -> float:
        """The length of an epoch, mh: the flow is accurate at multiples of it."""
        return len(self.batches) * self.h

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """The modified field at θ, shape (..., d)."""
        points = [self.landscape.restrict(batch).expand(state) for batch in self.batches]
        # Partial sums Σ_{j≤k} g_j make one HVP per batch enough, instead of one per pair j < k.
        upto = list(accumulate((point.grad for point in points), torch.add))
        total, m = upto[-1], len(points)
        products = [
            point.hvp(before - total / 2)
            for point, before in zip(points, (torch.zeros_like(total), *upto[:-1]), strict=True)
        ]
        return (self.h * torch.stack(products).sum(dim=0) - total) / m
