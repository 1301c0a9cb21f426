r"""Derivatives of a scalar field against differences of the derivatives below them.

    (D^{k−1}f(θ + εv) − D^{k−1}f(θ − εv))/2ε = D^k f(θ)[v] + O(ε²),
extrapolated from ε and ε/2, whose disagreement is the yardstick. Wide steps see much and round little, but may cross
kinks, where a difference proves nothing; steps of 1e-7 hardly ever do, and where they do, the two disagree wildly.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscapes.autodiff import Field, gradient
from landscapes.errors import UnsupportedError
from landscapes.landscape import AutogradExpansion
from nets.observed import Call, floating

Verdict = Literal["right", "wrong", "unclear"]

TOLERANCE = 1e-5
"""Relative; wrong products are off by far more, extrapolated differences by far less."""
ROUNDING = 1e-13
"""What a derivative is rounded by, relative: some hundred times float64's epsilon."""
WIDE = (1e-4, 1.25e-5, 1.5e-6)
NARROW = (1e-6, 1e-7)
"""Steps along a unit vector, in units of 1 + ‖θ‖."""

KINKED = frozenset(
    "relu threshold leaky_relu prelu _prelu_kernel rrelu_with_noise hardtanh hardshrink softshrink hardsigmoid "
    "hardswish elu celu abs sgn sign smooth_l1_loss huber_loss max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d".split()
)
"""torch operations with a kink in value or slope."""
PERHAPS_KINKED = frozenset(
    "clamp clamp_min clamp_max maximum minimum max min amax amin fmax fmin where sort topk median round floor "
    "ceil".split()
)
"""Operations with kinks that a network may never come near, or that only shift by a constant."""


@dataclass(frozen=True, eq=False)
class Piece:
    """Part of a network as a scalar field of its weights and inputs, with the names of the operations inside."""

    name: str
    field: Field
    position: Tensor
    operations: frozenset[str]
    module: nn.Module | None = None

    @property
    def kinks(self) -> frozenset[str]:
        """Operations inside that have kinks for certain."""
        return self.operations & KINKED

    @property
    def perhaps(self) -> frozenset[str]:
        """Operations inside that may have kinks."""
        return self.operations & PERHAPS_KINKED


def judge(piece: Piece, order: int) -> Verdict:
    """Whether products of that order are right: by wide steps, and by narrow ones where kinks or stiffness forbid."""
    if not piece.kinks:
        verdict = compare_with_differences(piece, order, WIDE)
        if verdict == "right" or (verdict == "wrong" and not piece.perhaps):
            return verdict
    return compare_with_differences(piece, order, NARROW)


def compare_with_differences(piece: Piece, order: int, steps: tuple[float, ...]) -> Verdict:
    """Right at the first step that shows it, wrong where two that have converged say so."""
    u, v = (draw(piece.position, seed) for seed in (1, 2))
    u, v = u / u.norm(), v / v.norm()
    below, product = DERIVATIVES[order]
    against = 0
    try:
        claimed = product(piece.field, piece.position, u, v)
        largest = below(piece.field, piece.position, u).norm()
        for step in steps:
            epsilon = step * (1 + float(piece.position.norm()))
            coarse, fine = (central(piece, below, u, v, e) for e in (epsilon, epsilon / 2))
            best = (4 * fine - coarse) / 3
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


def central(piece: Piece, below: Callable[[Field, Tensor, Tensor], Tensor], u: Tensor, v: Tensor, e: float) -> Tensor:
    """(D(θ + εv) − D(θ − εv))/2ε of the derivative below."""
    return (below(piece.field, piece.position + e * v, u) - below(piece.field, piece.position - e * v, u)) / (2 * e)


def value(f: Field, x: Tensor, u: Tensor) -> Tensor:
    """f(x), shape (1,)."""
    with torch.no_grad():
        return f(x).reshape(1)


def slope(f: Field, x: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """∇f·v, shape (1,)."""
    return (gradient(f, x) @ v).reshape(1)


DERIVATIVES: dict[int, tuple[Callable[[Field, Tensor, Tensor], Tensor], Callable[..., Tensor]]] = {
    1: (value, slope),
    2: (lambda f, x, u: gradient(f, x), lambda f, x, u, v: AutogradExpansion(f, x).hvp(v)),
    3: (lambda f, x, u: AutogradExpansion(f, x).hvp(u), lambda f, x, u, v: AutogradExpansion(f, x).third(u, v)),
}
"""By order: the derivative below, whose change along v is to equal the product of this order."""


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

    def scalar(z: Tensor) -> Tensor:
        filled = list(leaves)
        for i, part in zip(free, z.split([leaves[i].numel() for i in free]), strict=True):
            filled[i] = part.view(leaves[i].shape)
        parameters, (args, kwargs) = tree_unflatten(filled, spec)
        buffers = {name: buffer.clone() for name, buffer in call.buffers.items()}
        found = floating(torch.func.functional_call(call.module, {**parameters, **buffers}, args, kwargs))
        return torch.stack([(a * y + b * y * y).sum() for (a, b), y in zip(weights, found, strict=True)]).sum()

    seen = torch.cat([leaves[i].reshape(-1) for i in free])
    # off ties, zeros and whole numbers, where right modules have kinks too; far more than the widest step
    position = seen + (1e-2 * (seen.abs() + seen.square().mean().sqrt()) + 1e-3) * draw(seen, 7)
    name = f"module {call.name!r} ({type(call.module).__name__})" if call.name else type(call.module).__name__
    return Piece(name, scalar, position, frozenset(call.operations), call.module)
