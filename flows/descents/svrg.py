r"""SVRG: variance reduction by the gradient of the same mini-batch at a snapshot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_point
from flows.declared import Clock
from flows.descent import MinibatchDescent
from flows.descents.gradient import GradientDescent
from landscapes import FiniteSum, UnsupportedError
from landscapes.errors import check_count
from landscapes.noise.trace import BLOCK


@dataclass(frozen=True)
class SnapshotState:
    """θ, the snapshot θ̃ and ∇f(θ̃), all (..., d), NaN before the first snapshot; the examples' order (..., N)."""

    theta: Tensor
    snapshot: Tensor
    gradient: Tensor
    order: Tensor


@final
@dataclass(frozen=True)
class SVRG(MinibatchDescent):
    r"""Stochastic variance reduced gradient  θ_{k+1} = θ_k − h[g_B(θ_k) − g_B(θ̃) + ∇f(θ̃)].

    The snapshot θ̃ is set to θ_k in every step k that ``period`` divides, and kept in the others. The gradient's mean
    over mini-batches is ∇f(θ) and its covariance c·Cov_i(g_i(θ) − g_i(θ̃)), which is O(‖θ − θ̃‖²), whereas SGD's is
    cD(θ): the noise decreases as the run converges, and convergence is linear at a fixed h on strongly convex sums.
    Steps that take a snapshot are full-batch steps: period 1 is gradient descent. Johnson & Zhang 2013, NeurIPS 26,
    option I (the snapshot is the last iterate, not a random one).

    Mini-batches are drawn as in ``StochasticGradientDescent``. A step costs 2b/N of a gradient, a snapshot one
    more. The clock is t = k·h. The noise depends on θ̃ too: ``noise_at`` returns a state's noise, ``step_noise`` raises
    UnsupportedError. Raises TypeError or ValueError for invalid arguments.
    """

    landscape: FiniteSum
    h: float
    batch_size: int
    period: int
    sampling: str = "replacement"

    def __post_init__(self) -> None:
        self.check_minibatches()
        check_count("period", self.period)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    @property
    def couples(self) -> bool:
        """False: the step is not along the mini-batch gradient alone."""
        return False

    def start(self, theta0: Tensor) -> SnapshotState:
        """θ0; the first step takes the snapshot."""
        nothing = torch.full_like(check_point("theta0", theta0), torch.nan)
        return SnapshotState(theta0, nothing, nothing, self.first_order(theta0))

    def step(self, state: SnapshotState, k: int, generator: torch.Generator) -> SnapshotState:
        """θ − h[g_B(θ) − g_B(θ̃) + ∇f(θ̃)], after θ̃ = θ if the period divides k."""
        theta, snapshot, gradient = state.theta, state.snapshot, state.gradient
        if k % self.period == 0:
            snapshot, gradient = theta, self.landscape.grad(theta)
        index, order = self.sampler.draw(state.order, k, generator)
        change = self.landscape.batch_grad(theta, index) - self.landscape.batch_grad(snapshot, index)
        return SnapshotState(torch.add(theta, change + gradient, alpha=-self.h), snapshot, gradient, order)

    def position(self, state: SnapshotState) -> Tensor:
        return state.theta

    def full_batch(self) -> GradientDescent:
        """Gradient descent at the same learning rate."""
        return GradientDescent(self.landscape, self.h)

    def covariance_trace(self, state: SnapshotState) -> Tensor:
        """tr Cov(g_B(θ) − g_B(θ̃)) = c·(1/N) Σ_i ‖g_i(θ) − g_i(θ̃) − mean‖², shape (...,); NaN before a snapshot.

        Cost: two gradients per example, in blocks.
        """
        mean = (self.landscape.grad(state.theta) - state.gradient)[..., None, :]
        total = torch.zeros(state.theta.shape[:-1], dtype=state.theta.dtype, device=state.theta.device)
        for index in torch.arange(self.landscape.size, device=state.theta.device).split(BLOCK):
            changes = [self.landscape.example_grads(theta, index) for theta in (state.theta, state.snapshot)]
            total = total + (changes[0] - changes[1] - mean).square().sum(dim=(-2, -1))
        return self.sampler.variance_factor() * total / self.landscape.size

    def noise_at(self, state: SnapshotState) -> Tensor:
        """Root mean square distance of a step with this state's snapshot from the full-batch step, shape (...,)."""
        return self.h * self.covariance_trace(state).sqrt()

    def noise_of_step(self, state: SnapshotState, k: int) -> Tensor:
        """``noise_at`` for step k, (...,): zero if the step takes a snapshot."""
        if k % self.period == 0:
            return torch.zeros(state.theta.shape[:-1], dtype=state.theta.dtype, device=state.theta.device)
        return self.noise_at(state)

    def step_noise(self, theta: Tensor) -> Tensor:
        """Raises UnsupportedError: θ does not determine the snapshot."""
        raise UnsupportedError(
            "the noise of an SVRG step depends on its snapshot, which theta does not determine: use "
            "noise_at(state), or compare flows with full_batch()"
        )
