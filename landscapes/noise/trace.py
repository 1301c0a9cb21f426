r"""Trace and diagonal of D(θ) = (1/N) Σ_i g_i g_iᵀ − g gᵀ, g_i = ∇f_i, one gradient an example, by blocks.

At complex θ the variances are of the modulus, and D is Hermitian.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from landscapes.landscape import FiniteSum, check_finite_sum

BLOCK = 256  # examples whose gradients are held at once


def centred_blocks(landscape: FiniteSum, theta: Tensor) -> Iterator[Tensor]:
    """g_i − g of the examples, (..., m, d) for m = ``BLOCK`` examples at a time."""
    mean = landscape.grad(theta)[..., None, :]
    for index in torch.arange(landscape.size, device=theta.device).split(BLOCK):
        yield landscape.example_grads(theta, index) - mean


def squares(rows: Tensor) -> Tensor:
    """|x|², real; differentiable at zero where x is real."""
    # |x| has no derivative at zero: the real case avoids it
    return rows.abs().square() if rows.is_complex() else rows.square()


def covariance_trace(landscape: FiniteSum, theta: Tensor) -> Tensor:
    r"""tr D(θ) = (1/N) Σ_i ‖g_i − g‖², shape (...,); one gradient an example, ``BLOCK`` held at a time."""
    check_finite_sum(landscape).check(theta)
    total = torch.zeros(theta.shape[:-1], dtype=theta.dtype.to_real(), device=theta.device)
    for rows in centred_blocks(landscape, theta):
        total = total + squares(rows).sum(dim=(-2, -1))
    return total / landscape.size


def covariance_diagonal(landscape: FiniteSum, theta: Tensor) -> Tensor:
    r"""diag D(θ) = (1/N) Σ_i (g_i − g)², shape (..., d); one gradient an example, ``BLOCK`` held at a time."""
    check_finite_sum(landscape).check(theta)
    total = torch.zeros_like(theta, dtype=theta.dtype.to_real())
    for rows in centred_blocks(landscape, theta):
        total = total + squares(rows).sum(dim=-2)
    return total / landscape.size


def covariance_matrix(landscape: FiniteSum, theta: Tensor) -> Tensor:
    r"""D(θ), dense, shape (..., d, d), for small d; one gradient an example, ``BLOCK`` held at a time."""
    check_finite_sum(landscape).check(theta)
    total = torch.zeros(*theta.shape, theta.shape[-1], dtype=theta.dtype, device=theta.device)
    for rows in centred_blocks(landscape, theta):
        total = total + rows.mT @ rows.conj()
    return total / landscape.size
