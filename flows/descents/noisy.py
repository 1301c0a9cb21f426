r"""Gradient descent with a given noise in the gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model, check_noise
from flows.declared import Clock
from flows.descent import StochasticDescent
from flows.descents.gradient import GradientDescent
from landscapes import Landscape
from landscapes.noise import GradientNoise, MinibatchNoise


@final
@dataclass(frozen=True)
class NoisyGradientDescent(StochasticDescent):
    r"""Noisy gradient descent  θ_{k+1} = θ_k − h(∇f(θ_k) + σ(θ_k)ξ_k),  ξ_k ~ N(0, I) in R^m; state θ (..., d).

    ``noise`` defines σξ: with ``MinibatchNoise`` this is SGD with Gaussian noise of the same covariance at every θ,
    with isotropic noise the control of Xing et al. 2018 (arXiv 1802.08770), with label noise descent on fresh labels.
    Batch members draw their own ξ; it is real even if θ is complex. Its flow is ``NoisyModifiedEquation``: Euler's
    method on it with dt = h, ξ = ΔW/√h, is this descent.

    A step costs a gradient and one evaluation of the noise; mini-batch noise on the same landscape shares the backward
    pass and adds no cost. Raises TypeError or ValueError unless ``noise`` is a noise of the landscape's dimension.
    """

    landscape: Landscape
    h: float
    noise: GradientNoise

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        check_noise(self.noise, self.landscape)

    def noisy_gradient(self, theta: Tensor, xi: Tensor) -> Tensor:
        """∇f + σ(θ)ξ, shape (..., d): one backward pass over reweighted examples for mini-batch noise."""
        noise = self.noise
        if isinstance(noise, MinibatchNoise) and noise.landscape is self.landscape:
            weights = noise.weights(noise.check_noise(theta, xi))
            return noise.landscape.weighted_grad(theta, weights + 1 / noise.size)
        return self.landscape.grad(theta) + noise.factor(theta, xi)

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def step(self, state: Tensor, k: int, generator: torch.Generator) -> Tensor:
        """θ − h(∇f(θ) + σ(θ)ξ)."""
        shape, real = (*state.shape[:-1], self.noise.size), state.dtype.to_real()
        xi = torch.randn(shape, generator=generator, dtype=real, device=state.device).to(state.dtype)
        return torch.add(state, self.noisy_gradient(state, xi), alpha=-self.h)

    def full_batch(self) -> GradientDescent:
        """Gradient descent at the same learning rate."""
        return GradientDescent(self.landscape, self.h)

    def step_noise(self, theta: Tensor) -> Tensor:
        """h·√tr σσᵀ(θ), shape (...,)."""
        return self.h * self.noise.trace(theta).sqrt()
