r"""Batch norm in training mode as a finite sum: f(θ) = (1/M) Σ_b f_b(θ), b the fixed ghost batches of the examples.

With batch statistics an example's loss depends on the others in its batch, so the loss of N examples is no sum over
them, and mini-batch descent has no objective f. With fixed ghost batches of g examples it has: f_b is the mean loss of
batch b with that batch's statistics, and SGD on this sum, b batches a step, is ordinary SGD with each ghost batch
normalised separately. Hoffer, Hubara & Soudry 2017, arXiv 1705.08741.
"""

from __future__ import annotations

import copy
from typing import cast, final

import torch
from torch import Tensor, nn

from landscapes.errors import check_count, check_seed
from nets.examples import Examples, check_lengths
from nets.network import LossFunction, NetworkLandscape

FEWEST = 4  # examples of a ghost batch in checks: batch norm of two values gives ±1


@final
class GhostBatchLandscape(NetworkLandscape):
    r"""f(θ) = (1/M) Σ_b f_b(θ), f_b(θ) = (1/g) Σ_{i in b} loss_fn(module_θ(x_b), y_b)_i: a finite sum of M = N/g.

    ``size`` is M, and index, weights, ``example_grads`` and a descent's ``batch_size`` refer to ghost batches;
    ``outputs`` are (..., M, g, ...), in the order of ``ghost_batches``. ``ghost_size`` g divides N; the partition is
    drawn once, by ``seed``. ``chunk_size`` ghost batches are differentiated at a time, each by its own call of the
    module. For modules without batch statistics f is the mean over the N examples as in ``NetworkLandscape``.

    Raises ValueError if g does not divide N; otherwise as ``NetworkLandscape``.
    """

    def __init__(
        self,
        module: nn.Module,
        loss_fn: LossFunction,
        inputs: Tensor | tuple[Tensor, ...],
        targets: Tensor,
        ghost_size: int,
        chunk_size: int | None = None,
        *,
        seed: int = 0,
    ):
        check_count("ghost_size", ghost_size)
        generator = torch.Generator().manual_seed(check_seed(seed))
        several = check_lengths(inputs, targets)
        N = len(targets)
        if N % ghost_size:
            raise ValueError(
                f"ghost_size must divide the {N} examples, got {ghost_size}; drop {N % ghost_size} of them"
            )
        batches = torch.randperm(N, generator=generator, device="cpu").reshape(-1, ghost_size)  # (M, g)
        self.ghost_batches = batches
        """Indices of the examples of each ghost batch, (M, g)."""
        super().__init__(
            module,
            loss_fn,
            tuple(x[batches.to(x.device)] for x in several),
            targets[batches.to(targets.device)],
            chunk_size,
        )

    def _coupling(self) -> None:
        """None: the examples of a ghost batch are always evaluated together."""
        return

    def _forward(self, theta: Tensor, part: Examples) -> Tensor:
        """f_b(θ) of some ghost batches at one member, (m,), by one call of the module a batch."""
        batches = (Examples(tuple(x[b] for x in part.inputs), part.targets[b]) for b in range(len(part)))
        return torch.stack([super(GhostBatchLandscape, self)._forward(theta, batch).mean() for batch in batches])

    def _outputs(self, theta: Tensor, part: Examples) -> Tensor:
        """Outputs of some ghost batches at one member, (m, g, ...), by one call of the module a batch."""
        batches = (Examples(tuple(x[b] for x in part.inputs), part.targets[b]) for b in range(len(part)))
        return torch.stack([super(GhostBatchLandscape, self)._outputs(theta, batch) for batch in batches])

    def _first_examples(self, m: int) -> NetworkLandscape:
        """The network on some examples of the first ghost batch, for checks of its derivatives."""
        few = copy.copy(self)
        first, m = self._examples.select(slice(0, 1)), max(m, FEWEST)
        few._examples = Examples(tuple(x[:, :m].clone() for x in first.inputs), first.targets[:, :m].clone())
        return few

    def restrict(self, index: Tensor) -> GhostBatchLandscape:
        """The mean over the ghost batches in a 1-D ``index``."""
        fewer = cast(GhostBatchLandscape, super().restrict(index))
        fewer.ghost_batches = self.ghost_batches[index.cpu()]
        return fewer
