"""The principal flow restricted to the top of the spectrum, as in its paper on networks: for comparison only."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor

from flows.arguments import check_model, check_point
from flows.declared import Clock
from flows.flow import BranchError, WorkspaceFlow, flag_unconverged
from flows.models.principal import check_singular, each_member, real_coefficient
from landscapes import Landscape
from landscapes.errors import check_count, check_positive
from landscapes.krylov import Eigenpairs, continued_pairs, eigenpairs, random_block
from landscapes.krylov.precision import check_full_precision

GUARDS = 2  # extra rows of the block, as the last rows of a block converge slowly


@final
@dataclass(frozen=True)
class TruncatedPrincipalFlow(WorkspaceFlow):
    r"""θ̇ = −∇f + Σ_{i<k} (Re α(hλ_i) + 1)(u_iᵀ∇f) u_i: k = ``modes`` largest eigenpairs, the rest as gradient flow.

    One-step error O(h²), as for gradient flow, with the constant of the omitted modes. Each evaluation computes the
    eigenpairs to ``tolerance`` times the largest eigenvalue, in a run from those of the evaluation before, which are
    its workspace; they may still take more HVPs than ``PrincipalFlow(krylov=...)`` does for the whole spectrum. Real θ
    and the real branch only; singular at hλ = 1, like the principal flow.

    Source: Rosca et al. 2023, arXiv 2302.01952, which uses the top eigenvalues on networks.
    Raises ValueError if ``modes`` exceeds the dimension.
    """

    landscape: Landscape
    h: float
    modes: int
    tolerance: float = 1e-6

    def __post_init__(self) -> None:
        check_model(self.landscape, self.h)
        if check_count("modes", self.modes) > self.landscape.dimension:
            raise ValueError(f"modes must be at most the dimension, {self.landscape.dimension}, got {self.modes}")
        check_positive("tolerance", self.tolerance)

    @property
    def name(self) -> str:
        """TruncatedPrincipalFlow with its number of modes."""
        return f"TruncatedPrincipalFlow top {self.modes}"

    @property
    def declared_clock(self) -> Clock:
        return Clock()

    def evaluate(self, t: float | Tensor, state: Tensor, workspace: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """The truncated field at θ (..., d), and the blocks (..., k + 2, d) of the eigenvectors."""
        if check_full_precision("state", check_point("state", state)).is_complex():
            raise BranchError("the truncated flow takes real theta only; give theta.real, or use PrincipalFlow")
        rows = min(self.modes + GUARDS, self.landscape.dimension)
        find = eigenpairs if workspace is None else continued_pairs
        if workspace is None:
            workspace = random_block(state, rows).expand(*state.shape[:-1], rows, state.shape[-1])
        blocks: list[Tensor] = []

        def member(theta: Tensor) -> Tensor:
            velocity, block = self._at(theta, starts[len(blocks)], find)
            blocks.append(block)
            return velocity

        starts = workspace.reshape(-1, rows, state.shape[-1])
        velocity = each_member(member, state) if state.ndim > 1 else member(state)
        return velocity, torch.stack(blocks).reshape(workspace.shape)

    def _at(self, theta: Tensor, block: Tensor, find: Callable[..., Eigenpairs]) -> tuple[Tensor, Tensor]:
        """The truncated field at one θ (d,), and the block of eigenvectors found from ``block``."""
        point = self.landscape.expand(theta)
        if not bool(point.grad.isfinite().all()):
            return torch.full_like(theta, torch.nan), block
        pairs = find(point.hvp, block, self.modes, tolerance=self.tolerance, limit=100 * self.modes)
        finite = bool(pairs.values.isfinite().all())
        if not pairs.converged and finite:
            flag_unconverged(f"{self.name}: {pairs.products} HVPs did not reach tolerance {self.tolerance:g}")
        x = self.h * pairs.values
        check_singular(x, self.h)
        components = pairs.vectors @ point.grad  # (k,)
        velocity = (real_coefficient(x) + 1).to(theta) * components @ pairs.vectors - point.grad
        return velocity, pairs.block if finite and pairs.block.shape == block.shape else block
