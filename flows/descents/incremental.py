r"""Mini-batches in a given order, epoch after epoch: the incremental gradient method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model
from flows.declared import Clock
from flows.descent import Descent
from landscapes import FiniteSum
from landscapes.landscape import check_finite_sum
from landscapes.wrappers.gradient_penalties import Batches, check_batches


@final
@dataclass(frozen=True, eq=False)
class IncrementalGradientDescent(Descent):
    r"""Steps θ_{k+1} = θ_k − h ∇f_{k mod m}(θ_k) with fixed batches in a fixed order; state θ (..., d).

    ``batches``: an index tensor (m, b) or 1-D index tensors whose lengths may differ. Deterministic; ``EpochFlow`` is
    its modified flow, at the ends of epochs. The clock is t = k·h. Bertsekas 2011. Raises TypeError or ValueError for a
    landscape without examples, an h ≤ 0, or invalid batches.
    """

    landscape: FiniteSum
    h: float
    batches: Batches

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_finite_sum(self.landscape)
        object.__setattr__(self, "batches", check_batches(self.batches, self.landscape.size))

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def step(self, state: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """θ − h∇f_{k mod m}(θ)."""
        batch = self.batches[k % len(self.batches)]
        return torch.add(state, self.landscape.batch_grad(state, batch), alpha=-self.h)
