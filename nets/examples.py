r"""The examples of a network's loss, N of them: one or more input tensors and one tensor of targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from landscapes.errors import check_computable


@dataclass(frozen=True, eq=False)
class Examples:
    """``inputs``, each (N, ...), and ``targets`` (N, ...), on one device."""

    inputs: tuple[Tensor, ...]
    targets: Tensor

    def __len__(self) -> int:
        """N."""
        return self.targets.shape[0]

    def select(self, index: Tensor | slice) -> Examples:
        """The examples of ``index`` (m,) or of a slice, which makes no copy."""
        return Examples(tuple(x[index] for x in self.inputs), self.targets[index])

    def double(self) -> Examples:
        """The examples with floating tensors in float64."""
        return Examples(tuple(_in_double(x) for x in self.inputs), _in_double(self.targets))

    def chunks(self, size: int, index: Tensor | None) -> Iterator[tuple[slice, Examples]]:
        """The examples, or those of ``index`` (m,), ``size`` at a time, each with its slice of the m."""
        m = len(self) if index is None else index.shape[0]
        if index is None and m <= size:
            yield slice(0, m), self
            return
        for start in range(0, m, size):
            place = slice(start, min(start + size, m))
            yield place, self.select(place if index is None else index[place])


def examples_of(
    inputs: Tensor | tuple[Tensor, ...], targets: Tensor, dtype: torch.dtype, device: torch.device
) -> Examples:
    """Examples with floating tensors cast to ``dtype``, all on ``device``; raise unless their lengths agree."""
    several = check_lengths(inputs, targets)
    return Examples(tuple(_cast_floating(x, dtype, device) for x in several), _cast_floating(targets, dtype, device))


def check_lengths(inputs: Tensor | tuple[Tensor, ...], targets: Tensor) -> tuple[Tensor, ...]:
    """The inputs as a tuple; raise unless all are tensors of the targets' length N ≥ 1."""
    several = inputs if isinstance(inputs, tuple) else (inputs,)
    if not several or not all(isinstance(x, Tensor) for x in several):
        kinds = [type(x).__name__ for x in several]
        raise TypeError(f"inputs must be a tensor or a tuple of tensors, got {kinds}; use torch.as_tensor(...)")
    if not isinstance(targets, Tensor):
        raise TypeError(f"targets must be a tensor, got {type(targets).__name__}; use torch.as_tensor(...)")
    for name, tensor in [("targets", targets), *(("inputs", x) for x in several)]:
        check_computable(name, tensor)
        if tensor.ndim == 0 or tensor.shape[0] == 0:
            raise ValueError(f"{name} must have shape (N, ...) with N >= 1, got {tuple(tensor.shape)}")
        if tensor.shape[0] != targets.shape[0]:
            raise ValueError(
                f"inputs and targets must have the same length N, got inputs {tuple(tensor.shape)} and targets "
                f"{tuple(targets.shape)}"
            )
    return several


def _in_double(tensor: Tensor) -> Tensor:
    return tensor.double() if tensor.is_floating_point() else tensor


def _cast_floating(tensor: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """``tensor`` on the device, cast if floating; integers (classes, tokens) keep their dtype."""
    return tensor.detach().to(device=device, dtype=dtype if tensor.is_floating_point() else tensor.dtype)
