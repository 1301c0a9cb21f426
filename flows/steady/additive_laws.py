r"""The exact law of SGD and of its equation with additive noise on a quadratic, for all three samplings.

From the minimum, in the eigenbasis of H, with p_i = 1 − δλ_i, the steps y' = y − δHy + ε with noise that sums to zero
over periods of M steps, Cov(ε_j, ε_k) = q (δ_jk − κ/M) D within a period and zero between two, have after s steps of a
period

    Cov y = p_iˢ S_ij p_jˢ + q D_ij [Σ_{k<s} (p_i p_j)ᵏ − (κ/M) Σ_{k<s} p_iᵏ Σ_{k<s} p_jᵏ],   S at the period's start.

SGD is δ = h, q = h²c, M = m = N/b; Euler's method for its equation δ = dt, q = dt·hc, M = mh/dt; κ = 1 for reshuffled
epochs, else 0; c is the sampling's diffusion factor. The equation itself is dt → 0, where the sums are integrals.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from landscapes import NoisyQuadratic
from landscapes.errors import MOST, check_count, check_nonnegative, check_positive
from landscapes.sampling import Sampling, sampling_of


@dataclass(frozen=True)
class AdditiveLaw:
    """Covariances and mean losses on one toy at one h, b and sampling; b must divide N."""

    landscape: NoisyQuadratic
    h: float
    batch_size: int
    sampling: str

    def __post_init__(self) -> None:
        if not isinstance(self.landscape, NoisyQuadratic):
            raise TypeError(f"landscape must be a NoisyQuadratic, got {type(self.landscape).__name__}")
        check_positive("h", self.h)
        sampling_of(self.landscape.size, self.batch_size, self.sampling)
        if self.landscape.size % self.batch_size:
            raise ValueError(f"batch_size must divide the {self.landscape.size} examples, got {self.batch_size}")

    @cached_property
    def sampler(self) -> Sampling:
        """The sampling of the mini-batches."""
        return sampling_of(self.landscape.size, self.batch_size, self.sampling)

    @property
    def epoch(self) -> int:
        """m = N/b, the number of steps of an epoch."""
        return self.landscape.size // self.batch_size

    @cached_property
    def _modes(self) -> tuple[Tensor, Tensor]:
        """λ (d,) and D (d, d) in the eigenbasis."""
        matrix = self.landscape.hessian(torch.zeros(self.landscape.dimension, dtype=torch.float64))
        values, vectors = torch.linalg.eigh(matrix)
        return values, vectors.mT @ (matrix @ matrix) @ vectors  # D = H²

    def descent(self, k: int) -> float:
        """E f of SGD after k steps from the minimum."""
        check_count("k", k, minimum=0, maximum=MOST)
        return self._mean_loss(self._chain_covariance(self.h, 1, k))

    def euler(self, k: int, substeps: int) -> float:
        """E f at t = kh of the equation by Euler's method with ``substeps`` steps in h."""
        check_count("k", k, minimum=0, maximum=MOST)
        check_count("substeps", substeps, maximum=max(MOST // (self.epoch * self.landscape.dimension), 1))
        return self._mean_loss(self._chain_covariance(self.h / substeps, substeps, k * substeps))

    def equation(self, t: float) -> float:
        """E f of the equation at time t from the minimum."""
        length = self.epoch * self.h
        if check_nonnegative("t", t) > MOST * length:
            raise ValueError(f"t must be at most {MOST * length:.3g}, {MOST} epochs, got {t!r}")
        # The shift makes a t that is whole epochs up to rounding count as whole; it is subtracted again below.
        whole, rest = divmod(t + 1e-9 * self.h, length)
        covariance = torch.zeros_like(self._modes[1])
        for _ in range(int(whole)):
            covariance = self._advance(covariance, length)
        return self._mean_loss(self._advance(covariance, max(rest - 1e-9 * self.h, 0.0)))

    def _advance(self, covariance: Tensor, s: float) -> Tensor:
        """The equation's covariance at time s after the start of a period, s at most a period."""
        values, noise = self._modes
        kept = torch.exp(-values * s)
        single, both = (1 - kept) / values, values[:, None] + values
        made = (1 - torch.exp(-both * s)) / both
        if self.sampling == "epoch":
            made = made - torch.outer(single, single) / (self.epoch * self.h)
        made = self.h * self.sampler.diffusion_factor() * noise * made
        return kept[:, None] * covariance * kept + made

    def _chain_covariance(self, dt: float, substeps: int, k: int) -> Tensor:
        """The covariance after k steps of dt."""
        values, noise = self._modes
        p = 1 - dt * values
        powers = p[:, None] ** torch.arange(self.epoch * substeps + 1, dtype=torch.float64)  # (d, M + 1)
        q = dt * self.h * self.sampler.diffusion_factor()

        def advance(covariance: Tensor, s: int) -> Tensor:
            before = powers[:, :s]
            made = before @ before.mT
            if self.sampling == "epoch":
                made = made - torch.outer(before.sum(dim=1), before.sum(dim=1)) / (self.epoch * substeps)
            return powers[:, s, None] * covariance * powers[:, s] + q * noise * made

        whole, rest = divmod(k, self.epoch * substeps)
        covariance = torch.zeros_like(noise)
        for _ in range(whole):
            covariance = advance(covariance, self.epoch * substeps)
        return advance(covariance, rest)

    def _mean_loss(self, covariance: Tensor) -> float:
        """E f = ½ Σ λ_i Cov_ii."""
        return float((self._modes[0] * covariance.diagonal()).sum()) / 2
