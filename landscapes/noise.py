r"""The noise of the mini-batch gradient: D(θ) = (1/N) Σ_i g_i g_iᵀ − g gᵀ, g_i = ∇f_i."""

from __future__ import annotations

import torch
from torch import Tensor

from landscapes.landscape import FiniteSum

BLOCK = 256  # examples whose gradients are held at once


def covariance_trace(landscape: FiniteSum, theta: Tensor) -> Tensor:
    r"""tr D(θ) = (1/N) Σ_i ‖g_i − g‖², shape (...,); one gradient an example, ``BLOCK`` held at a time."""
    mean = landscape.grad(theta)[..., None, :]
    total = torch.zeros(theta.shape[:-1], dtype=theta.dtype, device=theta.device)
    for index in torch.arange(landscape.size, device=theta.device).split(BLOCK):
        total = total + (landscape.example_grads(theta, index) - mean).square().sum(dim=(-2, -1))
    return total / landscape.size
