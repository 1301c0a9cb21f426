r"""Comparison of derivatives of a scalar field with differences of lower derivatives.

    (D^{k−1}f(θ + εv) − D^{k−1}f(θ − εv))/2ε = D^k f(θ)[v] + O(ε²),
extrapolated from ε and ε/2, whose disagreement estimates the error. Wide steps have small rounding errors, but may
cross kinks, where differences are invalid; steps of 1e-7 rarely do, and then the two values disagree strongly.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscapes.autodiff import Field, gradient
from landscapes.errors import UnsupportedError
from landscapes.expansion import AutogradExpansion, along_each
from nets.observed import Call, floating_tensors

Verdict = Literal["right", "wrong", "unclear"]

TOLERANCE = 1e-5
"""Relative; errors of wrong products are far larger, those of extrapolated differences far smaller."""
ROUNDING = 1e-13
"""Relative rounding error of a derivative: some hundred times float64's epsilon."""
WIDE = (1e-4, 1.25e-5, 1.5e-6)
NARROW = (1e-6, 1e-7)
"""Steps along a unit vector, in units of 1 + ‖θ‖."""

SHARP = frozenset(
    "relu threshold leaky_relu prelu _prelu_kernel rrelu_with_noise hardtanh hardshrink softshrink hardsigmoid "
    "hardswish sharp_elu abs sgn sign max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d".split()
)
"""torch operations with a discontinuous slope or value."""
BENT = frozenset("elu celu smooth_l1_loss huber_loss".split())
"""Operations with a continuous slope and a discontinuous second derivative."""
KINKED = SHARP | BENT
"""torch operations with a kink in value or slope, always counted as kinks."""
POSSIBLY_KINKED = frozenset(
    "clamp clamp_min clamp_max maximum minimum max min amax amin fmax fmin where sort topk median round floor "
    "ceil".split()
)
"""Operations with kinks that a network may never reach, or used only to shift by a constant."""


def smoothness_of(operations: Collection[str]) -> float:
    """Number of continuous derivatives after these operations: 0, 1 or math.inf; possible kinks are ignored."""
    if SHARP.intersection(operations):
        return 0
    return 1 if BENT.intersection(operations) else math.inf


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of a network as a scalar field of its weights and inputs, with the names of its operations."""

    name: str
    field: Field
    position: Tensor
    operations: frozenset[str]
    module: nn.Module | None = None

    @property
    def kinks(self) -> frozenset[str]:
        """Operations inside that always have kinks."""
        return self.operations & KINKED

    @property
    def possible_kinks(self) -> frozenset[str]:
        """Operations inside that may have kinks."""
        return self.operations & POSSIBLY_KINKED


def judge(piece: Piece, order: int) -> Verdict:
    """Whether products of that order are right: by wide steps, or narrow ones in the presence of kinks or stiffness."""
    if not piece.kinks:
        verdict = compare_with_differences(piece, order, WIDE)
        if verdict == "right" or (verdict == "wrong" and not piece.possible_kinks):
            return verdict
    return compare_with_differences(piece, order, NARROW)


def compare_with_differences(piece: Piece, order: int, steps: tuple[float, ...]) -> Verdict:
    """ "right" at the first step that agrees, "wrong" if two converged steps disagree, else "unclear"."""
    v, *directions = (unit(piece.position, seed) for seed in range(20, 20 + max(order - 1, 1)))
    against = 0
    try:
        claimed = slope(piece, v) if order == 1 else derivative(piece, piece.position, *directions, v)
        below = value if order == 1 else derivative
        largest = below(piece, piece.position, *directions).norm()
        for step in steps:
            epsilon = step * (1 + float(piece.position.norm()))
            coarse, fine = (
                (below(piece, piece.position + e * v, *directions) - below(piece, piece.position - e * v, *directions))
                / (2 * e)
                for e in (epsilon, epsilon / 2)
            )
            best = (4 * fine - coarse) / 3  # Richardson: removes the error of order ε²
            rounding = ROUNDING * largest / epsilon
            doubt, error = (fine - coarse).norm() + rounding, (claimed - best).norm()
            settled = doubt <= 1e-2 * best.norm() + 10 * rounding
            if settled and error <= TOLERANCE * torch.maximum(claimed.norm(), best.norm()) + doubt:
                return "right"
            against += bool(settled and error > 10 * doubt)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnsupportedError(
            f"torch cannot differentiate {piece.name} {order} times: {str(error).splitlines()[0]}"
        ) from error
    return "wrong" if against >= 2 else "unclear"


def value(piece: Piece, x: Tensor) -> Tensor:
    """f(x), shape (1,)."""
    with torch.no_grad():
        return piece.field(x).reshape(1)


def slope(piece: Piece, v: Tensor) -> Tensor:
    """∇f·v, shape (1,)."""
    return (gradient(piece.field, piece.position) @ v).reshape(1)


def derivative(piece: Piece, x: Tensor, *directions: Tensor) -> Tensor:
    """D^{m+1}f(x)[w_1, …, w_m], shape (d,), by an expansion."""
    if not directions:
        return gradient(piece.field, x)
    *others, last = directions
    return along_each(AutogradExpansion(piece.field, x), others).hvp(last)


def unit(like: Tensor, seed: int) -> Tensor:
    """A random direction of length 1."""
    direction = draw(like, seed)
    return direction / direction.norm()


def draw(like: Tensor, seed: int) -> Tensor:
    """Standard normal numbers, the same on every device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(like.shape, generator=generator, dtype=like.dtype, device="cpu").to(like.device)


def piece_of(call: Call) -> Piece | None:
    """A module's call as a field of its weights and floating inputs: fixed random sums of outputs and their squares."""
    leaves, spec = tree_flatten((call.parameters, call.arguments))
    free = [i for i, leaf in enumerate(leaves) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    if not free or not call.outputs:
        return None
    weights = [(draw(out, 3), draw(out, 4) / (1 + out.abs().max())) for out in call.outputs]

    def scalar_field(z: Tensor) -> Tensor:
        filled = list(leaves)
        for i, part in zip(free, z.split([leaves[i].numel() for i in free]), strict=True):
            filled[i] = part.view(leaves[i].shape)
        parameters, (args, kwargs) = tree_unflatten(filled, spec)
        buffers = {name: buffer.clone() for name, buffer in call.buffers.items()}
        found = floating_tensors(torch.func.functional_call(call.module, {**parameters, **buffers}, args, kwargs))
        return torch.stack([(a * y + b * y * y).sum() for (a, b), y in zip(weights, found, strict=True)]).sum()

    seen = torch.cat([leaves[i].reshape(-1) for i in free])
    # away from ties, zeros and integers, where correct modules may have kinks, by far more than the widest step
    position = seen + (1e-2 * (seen.abs() + seen.square().mean().sqrt()) + 1e-3) * draw(seen, 7)
    name = f"module {call.name!r} ({type(call.module).__name__})" if call.name else type(call.module).__name__
    return Piece(name, scalar_field, position, frozenset(call.operations), call.module)
