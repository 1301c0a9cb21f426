r"""Loss and accuracy on held-out examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import final

import torch
from torch import Tensor

from flows.engines.recorder import LandscapeObserver
from flows.observers.modes import each_member
from landscapes import Landscape, UnsupportedError
from landscapes.errors import check_computable, check_dense, short_form

Outputs = Callable[[Tensor], Tensor]


@final
class Evaluation(LandscapeObserver):
    r"""Loss and accuracy on held-out data: "test loss" and "test accuracy", (...,).

    ``landscape``: the loss on these data. ``outputs``: θ (d,) ↦ outputs of the examples, (N, C), the largest one for
    the predicted class, or (N,) or (N, 1), positive for class 1 and non-positive for class 0 (log-odds).
    ``targets`` (N,): their classes, integers. A network on test data provides all three:

        test = NetworkLandscape(module, cross_entropy, inputs, targets)
        Evaluation(test, test.outputs, targets)

    "test accuracy" is the fraction of correct predictions, in θ's precision; an example with a NaN output is incorrect.
    For the loss alone use ``Loss(test, name="test loss")``. Two forward passes per member and state, both counted as
    losses. Classes are not defined at complex θ, which raises UnsupportedError.

    Raises TypeError or ValueError for targets that are not integers, and, when called, for outputs of another shape.
    """

    def __init__(self, landscape: Landscape, outputs: Outputs, targets: Tensor, *, every: int = 1, name: str = "test"):
        super().__init__(landscape, every, name)
        if not callable(outputs):
            raise TypeError(f"outputs must be callable, theta (d,) -> (N, C), got {short_form(outputs)}")
        self._outputs = outputs
        self._targets = check_classes(targets)

    def __call__(self, k: int, t: float, theta: Tensor) -> dict[str, Tensor]:
        """{"test loss": (...,), "test accuracy": (...,)}."""
        members = self.landscape.check(theta).detach().reshape(-1, theta.shape[-1])
        if theta.is_complex():
            raise UnsupportedError(
                f"observer {self.name!r} takes real theta only, got {theta.dtype}: complex outputs define no class; "
                "observe the loss alone by Loss(landscape, name='test loss')"
            )
        return each_member(lambda i: self._quantities(members[i]), theta.shape[:-1])

    def _quantities(self, theta: Tensor) -> dict[str, Tensor]:
        loss = self.counted.loss(theta)
        self.counts["loss"] += 1
        outputs = check_dense("outputs(theta)", self._outputs(theta)).detach()
        right = predicted_classes(outputs, self._targets.shape) == self._targets.to(outputs.device)
        return {f"{self.name} loss": loss, f"{self.name} accuracy": right.to(theta.dtype).mean()}


def predicted_classes(outputs: Tensor, shape: torch.Size) -> Tensor:
    """The classes predicted by outputs (*shape, C), (*shape, 1) or (*shape,), int64 (*shape,); −1 if one is NaN."""
    if not outputs.is_floating_point() or outputs.shape[: len(shape)] != shape or outputs.ndim > len(shape) + 1:
        raise ValueError(
            f"outputs must be real numbers of shape {(*shape, 'C')} or {tuple(shape)}, targets having shape "
            f"{tuple(shape)}, got {tuple(outputs.shape)} {outputs.dtype}"
        )
    several = outputs if outputs.ndim > len(shape) else outputs[..., None]
    classes = several.argmax(-1) if several.shape[-1] > 1 else (several[..., 0] > 0).long()
    return torch.where(several.isnan().any(-1), -1, classes)


def check_classes(targets: Tensor) -> Tensor:
    """Return the targets; raise unless they are integers (N, ...), at least one."""
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        kind = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"targets must be a tensor of classes, whole numbers, got {kind}; convert with .long()")
    check_computable("targets", targets)
    if targets.ndim == 0 or targets.numel() == 0:
        raise ValueError(f"targets must have shape (N,) with N >= 1, got {tuple(targets.shape)}")
    return targets
