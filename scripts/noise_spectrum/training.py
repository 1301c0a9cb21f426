r"""A network, its images, its training by SGD, and the sum over single examples for which its noise is defined.

Batch norm couples the examples of a batch, so that a single example has no gradient. Networks with batch norm are
trained as usual, with separate statistics for every mini-batch (``GhostBatchLandscape``: the batches are drawn once,
their order anew every epoch). D is then computed with the statistics fixed at their means over the training batches
at that θ, those of evaluation mode: f_i depends on example i and θ alone, and the dependence of the statistics on θ is
omitted. ``batch_trace`` measures that omission: b·tr Cov of the gradients of whole batches with their statistics.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from flows import StochasticGradientDescent
from landscapes.errors import check_count
from nets import (
    BatchNorm,
    Data,
    GhostBatchLandscape,
    NetworkLandscape,
    build_network,
    cross_entropy,
    limit_examples,
    load_data,
    only_classes,
    pool_images,
)

from ..lab.store import Store, descend_in_segments

CHUNK = 250  # examples per chunk
BATCHES = 30  # mini-batches for the covariance of their gradients
FULLY_CONNECTED = ("small-fc", "tiny-fc")
POOLED_SIZE = 8  # pixels per side of CIFAR images for these networks; MNIST: 7


@dataclass(frozen=True)
class Task:
    """A data set, or some of its classes."""

    data: str
    classes: tuple[int, ...] | None = None


def load_images(task: Task, architecture: str, train: bool, root: Path | None, seed: int) -> Data:
    """The images of a task as inputs of the architecture: averaged to 7×7 or 8×8 pixels for fully connected ones."""
    dense, name = architecture in FULLY_CONNECTED, task.data
    if dense and name in ("mnist", "fashion-mnist"):
        name = f"{name}-7x7"
    data = load_data(name, root=root, train=train, seed=seed)
    if task.classes is not None:
        data = only_classes(data, task.classes)
    large = data.inputs.ndim == 4 and data.inputs.shape[-1] > POOLED_SIZE
    return pool_images(data, POOLED_SIZE) if dense and large and not data.inputs.shape[-1] % POOLED_SIZE else data


@dataclass(frozen=True, eq=False)
class Network:
    """A network by name with its training and test images; ``norm`` is "batch", "group" or "none"."""

    architecture: str
    train: Data
    test: Data
    norm: str
    batch_size: int
    seed: int
    dtype: torch.dtype = torch.float32
    device: str = "cpu"

    def module(self) -> nn.Module:
        """A new module with the weights of the seed."""
        shape = tuple(self.train.inputs.shape[1:])
        module = build_network(self.architecture, shape, self.train.classes, norm=self.norm, seed=self.seed)
        return module.to(self.device, self.dtype)

    @property
    def coupled(self) -> bool:
        """Whether examples of a batch share statistics."""
        return self.norm == "batch"

    @cached_property
    def landscape(self) -> NetworkLandscape:
        """The objective of SGD: the mean over mini-batches if they share statistics, else over examples."""
        inputs, targets = self._on_device(self.train)
        b = check_count("batch_size", self.batch_size)
        if not self.coupled:
            return NetworkLandscape(self.module(), cross_entropy, inputs, targets, CHUNK)
        if len(targets) < b:
            raise ValueError(f"batch_size must be at most the number of training images, {len(targets)}, got {b}")
        kept = len(targets) - len(targets) % b
        return GhostBatchLandscape(self.module(), cross_entropy, inputs[:kept], targets[:kept], b, 1, seed=self.seed)

    @property
    def steps_per_epoch(self) -> int:
        """Mini-batches per epoch."""
        return self.landscape.size if self.coupled else math.ceil(self.landscape.size / self.batch_size)

    def descent(self, h: float) -> StochasticGradientDescent:
        """SGD that reshuffles the mini-batches, or the examples, every epoch."""
        return StochasticGradientDescent(self.landscape, h, 1 if self.coupled else self.batch_size, "epoch")

    def weights_after(self, store: Store, name: str, h: float, epochs: Sequence[int]) -> list[Tensor]:
        """θ after these numbers of epochs, fewer if training became non-finite, in parts on disk."""
        segment = math.gcd(*epochs)
        steps = max(epochs) * self.steps_per_epoch
        run = descend_in_segments(
            store,
            f"train-{name}",
            self.descent(h),
            self.landscape.theta0,
            steps,
            segment * self.steps_per_epoch,
            seed=self.seed,
        )
        kept = [epoch // segment for epoch in epochs]
        return [run["theta"][i].to(self.device) for i in kept if i < len(run["theta"])]

    def evaluation_module(self, theta: Tensor) -> nn.Module:
        """The module at θ in evaluation mode, its statistics the means of those of the training batches at θ."""
        module = self.module()
        torch.nn.utils.vector_to_parameters(theta, module.parameters())
        norms = [layer for layer in module.modules() if isinstance(layer, BatchNorm)]
        if norms:
            average_statistics(module, norms, self._batches())
        return module.eval()

    def _batches(self) -> list[Tensor]:
        """The inputs of every training batch."""
        assert isinstance(self.landscape, GhostBatchLandscape)
        inputs = self.train.inputs.to(self.device, self.dtype)
        return [inputs[batch] for batch in self.landscape.ghost_batches]

    def examples(self, module: nn.Module, data: Data) -> NetworkLandscape:
        """The mean over single examples of a frozen module."""
        inputs, targets = self._on_device(data)
        return NetworkLandscape(module, cross_entropy, inputs, targets, CHUNK)

    def subset(self, count: int) -> Data:
        """Class-balanced training images, chosen by the seed."""
        return limit_examples(self.train, count, self.seed)

    def batch_trace(self, theta: Tensor) -> float:
        r"""b·tr of the covariance of whole mini-batches' gradients at θ, NaN for fewer than two batches.

        If the batches partition N examples, the expected unbiased covariance is (N/(N − 1)) D/b when f_i depends on
        example i alone; any other difference to tr D is due to the shared statistics, and to chance.
        """
        if not self.coupled or self.landscape.size < 2:
            return math.nan
        N = self.landscape.size * self.batch_size
        index = torch.arange(min(BATCHES, self.landscape.size), device=theta.device)
        grads = torch.stack([self.landscape.batch_grad(theta, index[k : k + 1]) for k in range(len(index))])
        return self.batch_size * (N - 1) / N * float(grads.double().var(dim=0).sum())

    def _on_device(self, data: Data) -> tuple[Tensor, Tensor]:
        return data.inputs.to(self.device, self.dtype), data.targets.to(self.device)


def average_statistics(module: nn.Module, norms: Sequence[BatchNorm], batches: Sequence[Tensor]) -> None:
    """Set running means and variances to the means of those of the batches."""
    kept = [layer.momentum for layer in norms]
    module.train()
    with torch.no_grad():
        for count, inputs in enumerate(batches, start=1):
            for layer in norms:
                layer.momentum = 1 / count  # makes the exponential average of torch the plain mean of the batches
            module(inputs)
    for layer, momentum in zip(norms, kept, strict=True):
        layer.momentum = momentum


def error_and_loss(landscape: NetworkLandscape, theta: Tensor, targets: Tensor) -> tuple[float, float]:
    """The fraction of examples that are classified wrongly, and the mean loss."""
    outputs = landscape.outputs(theta)
    targets = targets.to(outputs.device)
    return float((outputs.argmax(dim=-1) != targets).double().mean()), float(cross_entropy(outputs, targets).mean())
