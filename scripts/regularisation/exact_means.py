r"""The exact mean of SGD's iterate after an epoch of m fixed batches, over all orders or over all draws."""

from __future__ import annotations

import torch
from torch import Tensor

from landscapes import FiniteSum

MOST_SEQUENCES = 4096  # m^m sequences, so m up to 5


def mean_over_orders(epoch: FiniteSum, h: float, theta: Tensor) -> Tensor:
    """E θ_m over the m! orders of the m examples of ``epoch``, (d,); common beginnings of orders are computed once."""
    everything = frozenset(range(epoch.size))

    def mean_after(state: Tensor, left: frozenset[int]) -> Tensor:
        if not left:
            return state
        return mean_of([mean_after(descent_step(epoch, h, state, k), left - {k}) for k in sorted(left)])

    return mean_after(theta, everything)


def mean_over_draws(epoch: FiniteSum, h: float, theta: Tensor) -> Tensor:
    """E θ_m over the m^m sequences of m independent draws, (d,)."""

    def mean_after(state: Tensor, left: int) -> Tensor:
        if not left:
            return state
        return mean_of([mean_after(descent_step(epoch, h, state, k), left - 1) for k in range(epoch.size)])

    return mean_after(theta, epoch.size)


def descent_step(epoch: FiniteSum, h: float, theta: Tensor, k: int) -> Tensor:
    """θ − h ∇f_k(θ)."""
    return torch.add(theta, epoch.batch_grad(theta, torch.tensor([k], device=theta.device)), alpha=-h)


def mean_of(states: list[Tensor]) -> Tensor:
    """The mean of some states."""
    return torch.stack(states).mean(dim=0)
