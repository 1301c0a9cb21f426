r"""The noise of a stochastic gradient: g̃ = ∇f(θ) + σ(θ)ξ with ξ ∈ R^m of mean 0 and covariance I.

A ``GradientNoise`` defines σ(θ)ξ. Its covariance is C(θ) = σσᵀ; a step of learning rate h adds −hσξ, and the stochastic
differential equation with the same covariance has the noise term √h σ(X) dW.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor

from landscapes.autodiff import gradient
from landscapes.errors import MOST, check_callable, check_choice, check_count, check_float_tensor, check_image

Kind = Literal["additive", "diagonal", "general"]
"""additive: σ does not depend on θ; diagonal: m = d, and component i of σ(θ)ξ depends on θ_i and ξ_i only."""

KINDS: tuple[Kind, ...] = ("additive", "diagonal", "general")

Diffusion = Callable[[Tensor, Tensor], Tensor]


class GradientNoise(ABC):
    r"""σ(θ)ξ and its moments; θ (..., d), ξ (..., m) with leading dimensions that broadcast.

    A subclass gives ``dimension``, ``size`` and ``factor``; the defaults below build all m columns of σ, for small m.
    Concrete subclasses are frozen dataclasses.
    """

    @property
    def kind(self) -> Kind:
        """The structure of σ: additive, diagonal or general."""
        return "general"

    @property
    @abstractmethod
    def dimension(self) -> int:
        """d."""

    @property
    @abstractmethod
    def size(self) -> int:
        """m, the number of normal variables ξ."""

    @abstractmethod
    def factor(self, theta: Tensor, xi: Tensor) -> Tensor:
        """σ(θ)ξ, shape (..., d); linear in ξ."""

    def columns(self, theta: Tensor) -> Tensor:
        """The columns of σ as rows, (..., m, d)."""
        self.check_theta(theta)
        return self.factor(theta[..., None, :], torch.eye(self.size, dtype=theta.dtype, device=theta.device))

    def covariance(self, theta: Tensor) -> Tensor:
        """C(θ) = σσᵀ, dense, shape (..., d, d)."""
        columns = self.columns(theta)
        return columns.mT @ columns

    def diagonal(self, theta: Tensor) -> Tensor:
        """diag C(θ), shape (..., d)."""
        return self.columns(theta).square().sum(dim=-2)

    def trace(self, theta: Tensor) -> Tensor:
        """tr C(θ), shape (...,)."""
        return self.diagonal(theta).sum(dim=-1)

    def trace_gradient(self, theta: Tensor) -> Tensor:
        """∇ tr C(θ), shape (..., d): zero if the noise is additive, else by a backward pass through ``trace``."""
        if self.kind == "additive":
            return torch.zeros_like(self.check_theta(theta))
        return gradient(self.trace, self.check_theta(theta))

    def ito_correction(self, theta: Tensor) -> Tensor:
        """½ Σ_j (∂σ_j) σ_j, shape (..., d): the Itô drift minus the Stratonovich drift for the noise σ dW."""
        return ito_correction(self.factor, self.check_theta(theta), self.size, self.kind)

    def check_theta(self, theta: Tensor) -> Tensor:
        """Return θ; raise unless it is a floating tensor of shape (..., d)."""
        check_float_tensor("theta", theta)
        if theta.ndim == 0 or theta.shape[-1] != self.dimension:
            raise ValueError(f"theta must have shape (..., {self.dimension}), got {tuple(theta.shape)}")
        return theta

    def check_noise(self, theta: Tensor, xi: Tensor, name: str = "xi") -> Tensor:
        """Return ξ; raise, by that name of it, unless it has shape (..., m) and θ's dtype."""
        check_float_tensor("theta", theta)
        check_float_tensor(name, xi)
        if xi.ndim == 0 or xi.shape[-1] != self.size or xi.dtype != theta.dtype:
            raise ValueError(
                f"{name} must have shape (..., {self.size}) and theta's dtype {theta.dtype}, "
                f"got {tuple(xi.shape)} {xi.dtype}"
            )
        return xi


def ito_correction(diffusion: Diffusion, state: Tensor, size: int, kind: Kind) -> Tensor:
    r"""½ Σ_j (∂σ_j) σ_j of a noise σ(X)ξ = ``diffusion(X, ξ)``, X (..., s), by one jvp a column; one if diagonal.

    ``diffusion`` must be differentiable by torch.func, as landscapes' gradients are.
    """
    check_callable("diffusion", diffusion, "diffusion(state, xi) -> like state")
    if check_float_tensor("state", state).ndim == 0:
        raise ValueError("state must have shape (..., s), got ()")
    check_count("size", size, maximum=MOST)
    if check_choice("kind", kind, KINDS) == "additive":
        return torch.zeros_like(state)
    unit = torch.eye(size, dtype=state.dtype, device=state.device)
    directions = unit.sum(dim=0, keepdim=True) if kind == "diagonal" else unit
    state = state.contiguous()  # forward mode rejects expanded tensors, such as one start for a batch of paths
    total = torch.zeros_like(state)
    for direction in directions:
        xi = direction.expand(*state.shape[:-1], size)

        def column(x: Tensor, xi: Tensor = xi) -> Tensor:
            return check_image("diffusion", diffusion(x, xi), x)

        # the tangent σ_j is detached: its own dependence on X is no part of (∂σ_j)σ_j
        total = total + torch.func.jvp(column, (state,), (column(state).detach().contiguous(),))[1]
    return total.detach() / 2
