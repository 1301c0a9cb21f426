r"""Losses of each example from exp, log and products: correct derivatives of every order, holomorphic in the outputs.

They replace torch's fused losses for complex θ. Exponents are shifted by a constant that cancels exactly, the largest
real part, to avoid overflow. At complex outputs a loss is determined up to multiples of 2πi (branches of the
logarithm); its derivatives are unique.
"""

from __future__ import annotations

import torch
from torch import Tensor

from landscapes.autodiff import inside_transform
from landscapes.errors import check_computable, check_float_tensor


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""−Σ_c p_c log softmax(z)_c of each example, (m,), for outputs z (m, C); softmax(z)_c = exp z_c / Σ_k exp z_k.

    ``targets``: classes (m,), integers in [0, C), or probabilities p (m, C), each row of sum 1. Raises TypeError or
    ValueError for other shapes or dtypes, or a class out of range (on a GPU a device assertion).
    """
    shifted = check_outputs(outputs) - real_part(outputs).amax(-1, keepdim=True)
    normaliser = shifted.exp().sum(-1, keepdim=True).log()
    if check_computable("targets", targets).is_floating_point():
        wanted = check_values(outputs, targets)
        # an output of −∞ with probability zero would give 0 · ∞
        return torch.where(wanted != 0, wanted * (normaliser - shifted), 0).sum(-1)
    return (normaliser - shifted.gather(-1, check_classes(outputs, targets)[:, None])).squeeze(-1)


def binary_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""log(1 + exp z) − y z of each example, (m,), for outputs z (m,) or (m, 1) and targets y (m,) in [0, 1].

    z is the log-odds of class 1. Raises ValueError for other shapes.
    """
    check_float_tensor("outputs", outputs)
    check_computable("targets", targets)
    z = outputs.squeeze(-1) if outputs.ndim == 2 and outputs.shape[1] == 1 else outputs
    if z.ndim != 1 or targets.shape != z.shape:
        raise ValueError(
            "outputs must have shape (m,) or (m, 1) and targets (m,), "
            f"got {tuple(outputs.shape)} and {tuple(targets.shape)}; use cross_entropy for two outputs"
        )
    shift = real_part(z).clamp_min(0)
    return shift + ((-shift).exp() + (z - shift).exp()).log() - targets * z


def square_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    r"""½ Σ_c (z_c − y_c)² of each example, (m,), for outputs z (m, C), bilinear and not |z − y|² at complex outputs.

    ``targets``: classes (m,), taken as one-hot rows, or values y (m, C). Raises TypeError or ValueError for other
    shapes or dtypes.
    """
    check_outputs(outputs)
    if check_computable("targets", targets).is_floating_point():
        offset = outputs - check_values(outputs, targets)
    else:
        place = check_classes(outputs, targets)[:, None]
        offset = outputs - torch.zeros_like(outputs).scatter(-1, place, 1)
    return (offset * offset).sum(-1) / 2


def real_part(outputs: Tensor) -> Tensor:
    """Re z as a constant."""
    return outputs.detach().real if outputs.is_complex() else outputs.detach()


def check_outputs(outputs: Tensor) -> Tensor:
    """Return outputs; raise unless they have shape (m, C)."""
    if check_float_tensor("outputs", outputs).ndim != 2:
        raise ValueError(f"outputs must have shape (m, C), got {tuple(outputs.shape)}")
    return outputs


def check_values(outputs: Tensor, targets: Tensor) -> Tensor:
    """Return floating targets; raise unless they have the outputs' shape."""
    if targets.shape != outputs.shape:
        raise ValueError(
            f"targets must have the outputs' shape {tuple(outputs.shape)} or be classes {tuple(outputs.shape[:1])} of "
            f"whole numbers, got {tuple(targets.shape)} {targets.dtype}"
        )
    return targets


def check_classes(outputs: Tensor, targets: Tensor) -> Tensor:
    """Classes (m,) as int64; raise unless they are integers in [0, C), checked on the CPU only."""
    if targets.is_complex() or targets.dtype == torch.bool:
        raise TypeError(f"targets must be whole numbers or real values, got {targets.dtype}; convert with .long()")
    if targets.shape != outputs.shape[:1]:
        raise ValueError(f"targets must have shape {tuple(outputs.shape[:1])}, got {tuple(targets.shape)}")
    # reading values would synchronise a GPU, and is not possible inside a transform
    if targets.device.type == "cpu" and len(targets) and not inside_transform():
        lowest, highest = int(targets.min()), int(targets.max())
        if not 0 <= lowest <= highest < outputs.shape[1]:
            raise ValueError(f"targets must be classes in [0, {outputs.shape[1]}), got {lowest} to {highest}")
    return targets.long()


LOSSES = {"cross-entropy": cross_entropy, "square": square_loss, "binary-cross-entropy": binary_cross_entropy}
"""Losses by name."""
