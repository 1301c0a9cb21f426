r"""Are a network's derivatives right? Asked once an order, before the first product is handed out.

torch's fused norms have silently wrong third derivatives, its weight norm second ones, and an autograd.Function of a
user's may have anything. So at the first Hessian-vector product, and again at the first third derivative, products of a
few examples in float64 are held against central differences of the derivative below,
    (D^{k−1}f(θ + εv) − D^{k−1}f(θ − εv))/2ε = D^k f(θ)[v] + O(ε²),
extrapolated from ε and ε/2; their disagreement is the yardstick. A network that fails is searched module by module,
each with the inputs it saw, for the innermost one that fails on its own.

A difference across a kink proves nothing. Networks of ReLU, max pooling and the like are therefore not judged as a
whole, but their smooth modules are; a ``PiecewiseLinearWarning`` says what their derivatives mean.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _WeightNorm
from torch.utils._pytree import tree_flatten, tree_unflatten

from landscapes.autodiff import Field, gradient
from landscapes.errors import UnsupportedError
from landscapes.landscape import AutogradExpansion, Expansion
from nets.functional import ModuleFunction
from nets.observed import Call, floating, observed

Verdict = Literal["right", "wrong", "unclear"]

TOLERANCE = 1e-5
"""Relative; wrong products are off by far more, extrapolated differences by far less."""
ROUNDING = 1e-13
"""What a derivative is rounded by, relative: some hundred times float64's epsilon."""

KINKED = frozenset(
    "relu threshold leaky_relu prelu _prelu_kernel rrelu_with_noise hardtanh hardshrink softshrink hardsigmoid "
    "hardswish elu celu abs sgn sign smooth_l1_loss huber_loss max_pool2d_with_indices max_pool3d_with_indices "
    "adaptive_max_pool2d adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d".split()
)
"""torch operations with a kink in value or slope."""
PERHAPS_KINKED = frozenset(
    "clamp clamp_min clamp_max maximum minimum max min amax amin where sort topk median round floor ceil".split()
)
"""Operations with kinks that a network may never meet, or that shift by a constant: asked only where products fail."""

REMEDIES: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.LayerNorm, "use nets.LayerNorm, which is written from primitives"),
    (nn.GroupNorm, "use nets.GroupNorm, which is written from primitives"),
    (_InstanceNorm, "use nets.GroupNorm(C, C), which is written from primitives"),
    (_WeightNorm, "parametrise the weight as g·v/‖v‖ in a module of your own"),
    (_BatchNorm, "use nets.BatchNorm, which is written from primitives, or module.eval() for running statistics"),
)


class WrongDerivativeError(UnsupportedError):
    """A module's derivatives disagree with differences; the text names the module and what to use instead."""


class PiecewiseLinearWarning(UserWarning):
    """A network has kinks: second and third derivatives are those of the smooth piece that θ lies in."""


class UncheckedDerivativesWarning(UserWarning):
    """A network's derivatives could not be held against differences; the text says why."""


class CheckedExpansion(Expansion):
    """An expansion of a network that asks whether its products are right before it gives the first of them."""

    def __init__(self, inner: Expansion, check: DerivativeCheck):
        self.theta = inner.theta
        self._inner = inner
        self._check = check

    @property
    def loss(self) -> Tensor:
        """f(θ), shape (...,)."""
        return self._inner.loss

    @property
    def grad(self) -> Tensor:
        """∇f(θ), shape (..., d)."""
        return self._inner.grad

    def hvp(self, v: Tensor) -> Tensor:
        """H v, shape (..., d)."""
        self._check(2)
        return self._inner.hvp(v)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v], shape (..., d)."""
        self._check(3)
        return self._inner.third(u, v)

    def hessian(self) -> Tensor:
        """H, shape (..., d, d)."""
        self._check(2)
        return self._inner.hessian()


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


@dataclass(eq=False)
class DerivativeCheck:
    """Holds a network's products against differences, each order once for each mode (training or evaluation)."""

    function: ModuleFunction
    forward: Callable[[Tensor], Tensor]
    """Losses (m,) of a few examples in float64, at θ (d,) in float64."""
    asked: set[tuple[int, tuple[bool, ...]]] = field(default_factory=set)

    def __call__(self, order: int) -> None:
        """Raise WrongDerivativeError if products of that order, or below, are wrong; warn where it cannot be known."""
        mode = self.function.mode()
        for lower in range(1, order + 1):
            if (lower, mode) not in self.asked:
                with self.function.kernels():
                    self._judge(lower)
                self.asked.add((lower, mode))

    def _judge(self, order: int) -> None:
        try:
            whole, *parts = self._pieces()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:  # float32 constants inside, or a device without float64
            if order == 2:
                warn(
                    UncheckedDerivativesWarning, f"the module cannot be run in float64 to check its products ({error})"
                )
            return
        verdict = "unclear" if whole.kinks else judge(whole, order)
        if verdict == "right":
            return
        wrong = next((part for part in parts if is_wrong_alone(part, order)), None)
        if wrong is None and not whole.kinks | (whole.operations & PERHAPS_KINKED):
            wrong = whole if verdict == "wrong" else None
        if wrong is not None:
            raise WrongDerivativeError(complaint(wrong, order))
        if order == 2:
            self._warn(whole, parts)

    def _warn(self, whole: Piece, parts: Sequence[Piece]) -> None:
        if not whole.operations & (KINKED | PERHAPS_KINKED):
            warn(UncheckedDerivativesWarning, "differences of the gradient do not settle, so products are not checked")
            return
        leaves = [p for p in parts if p.operations & (KINKED | PERHAPS_KINKED) and not has_children(p.module)]
        kinds = sorted({type(p.module).__name__ for p in leaves if p.module is not None})
        found = ", ".join(kinds) or ", ".join(sorted(whole.operations & (KINKED | PERHAPS_KINKED)))
        warn(
            PiecewiseLinearWarning,
            f"the network has kinks ({found}): Hessian-vector products and third derivatives are those of the smooth "
            "piece that theta lies in, which flows leave; use tanh, gelu or softplus and average pooling for a smooth "
            "landscape",
        )

    def _pieces(self) -> list[Piece]:
        """The whole network first, then its modules in the order in which their calls end: the innermost before."""
        theta = self.function.theta0.double()
        scale = 0.05 * theta.square().mean().sqrt() + 1e-2  # off symmetric points, such as layers that start at zero
        position = theta + scale * draw(theta, 0)
        with torch.no_grad(), observed(self.function.module) as seen:
            self.forward(position)
        whole = Piece("the network as a whole", lambda x: self.forward(x).mean(), position, frozenset(seen.operations))
        return [whole, *(piece for call in seen.calls if (piece := piece_of(call)) is not None)]


def is_wrong_alone(part: Piece, order: int) -> bool:
    """Whether a smooth module fails by itself; one that cannot run apart from the rest is not to blame."""
    try:
        return not part.kinks and judge(part, order) == "wrong"
    except UnsupportedError:
        return False


def judge(piece: Piece, order: int) -> Verdict:
    """Whether products of that order agree with differences of those below, in up to three sizes of step."""
    u, v = (draw(piece.position, seed) for seed in (1, 2))
    u, v = u / u.norm(), v / v.norm()
    below, product = DERIVATIVES[order]
    try:
        claimed = product(piece.field, piece.position, u, v)
        largest = below(piece.field, piece.position, u).norm()
        step = 1e-4 * (1 + float(piece.position.norm()))
        for epsilon in (step, step / 8, step / 64):
            coarse, fine = (central(piece, below, u, v, e) for e in (epsilon, epsilon / 2))
            best = (4 * fine - coarse) / 3
            size = torch.maximum(claimed.norm(), best.norm())
            rounding = ROUNDING * largest / epsilon
            doubt = (fine - coarse).norm() + rounding
            error = (claimed - best).norm()
            if error <= TOLERANCE * size + doubt and doubt <= 1e-2 * size + 10 * rounding:
                return "right"
            if error > 10 * doubt:
                return "wrong"
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise UnsupportedError(
            f"torch cannot differentiate {piece.name} {order} times: {str(error).splitlines()[0]}"
        ) from error
    return "unclear"


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
    return torch.randn(like.shape, generator=generator, dtype=like.dtype).to(like.device)


def complaint(piece: Piece, order: int) -> str:
    """What is wrong, where, and what to do."""
    product = {1: "gradient", 2: "Hessian-vector product", 3: "third derivative"}[order]
    remedy = next((text for kind, text in REMEDIES if isinstance(piece.module, kind)), None)
    return (
        f"{piece.name} has a wrong {product}: it disagrees with differences in float64; "
        f"{remedy or 'write its forward pass from differentiable torch operations, without custom backward passes'}"
    )


def warn(category: type[UserWarning], text: str) -> None:
    """Warn, attributed to this module so that a filter can name it."""
    warnings.warn(text, category, stacklevel=1)


def has_children(module: nn.Module | None) -> bool:
    """Whether a module has modules of its own."""
    return module is not None and next(module.children(), None) is not None


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

    position = torch.cat([leaves[i].reshape(-1) for i in free])
    name = f"module {call.name!r} ({type(call.module).__name__})" if call.name else type(call.module).__name__
    return Piece(name, scalar, position, frozenset(call.operations), call.module)
