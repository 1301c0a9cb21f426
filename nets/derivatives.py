r"""Check of a network's derivatives, once for each order, before the first product is returned.

torch's fused norms have wrong third derivatives and its weight norm wrong second ones, without an error, and a custom
autograd.Function may have any error. Therefore at the first Hessian-vector product, and at the first product of every
higher order, products of a few examples in float64 are compared with differences (differences.py). If the check fails,
the modules are checked one by one, with the inputs observed, to find the innermost one that fails by itself.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.utils.parametrizations import _SpectralNorm, _WeightNorm
from torch.nn.utils.weight_norm import WeightNorm

from landscapes.autodiff import wants_graph
from landscapes.errors import UnsupportedError
from landscapes.expansion import Expansion
from nets.differences import Piece, Verdict, draw, judge, piece_of
from nets.functional import ModuleFunction
from nets.observed import Call, Observation, observe

WEIGHT_NORM = "parametrise the weight as g·v/‖v‖ in a module of your own"
REMEDIES: tuple[tuple[type[nn.Module], str], ...] = (
    (nn.LayerNorm, "use nets.LayerNorm, which is written from primitives"),
    (nn.GroupNorm, "use nets.GroupNorm, which is written from primitives"),
    (_InstanceNorm, "use nets.GroupNorm(C, C), which is written from primitives"),
    (_WeightNorm, WEIGHT_NORM),
    (_SpectralNorm, "call module.eval(), since in training mode it takes singular vectors as constants"),
    (_BatchNorm, "use nets.BatchNorm, which is written from primitives, or module.eval() for running statistics"),
    (nn.Embedding, "drop padding_idx, which leaves a row's gradient out, and mask that token's output"),
)
ADVICE = (
    "write its forward pass from differentiable torch operations, without detach, no_grad or a custom backward pass"
)


class WrongDerivativeError(UnsupportedError):
    """A module's derivatives disagree with differences; the message names the module and an alternative."""


class PiecewiseLinearWarning(UserWarning):
    """A network has kinks: second and third derivatives are those of the smooth piece containing θ."""


class UncheckedDerivativesWarning(UserWarning):
    """A network's derivatives could not be compared with differences; the message gives the reason."""


class CheckedExpansion(Expansion):
    """An expansion of a network that checks its products before the first is returned.

    If θ requires grad, products will be differentiated once more, so the next order is checked, too.
    """

    def __init__(self, inner: Expansion, check: DerivativeCheck, depth: int = 0):
        self.theta = inner.theta
        self._inner = inner
        self._check = check
        self._depth = depth
        """Number of slopes taken: the loss is a derivative of this order."""
        self._more = int(wants_graph(inner.theta))

    @property
    def loss(self) -> Tensor:
        """f(θ), shape (...,)."""
        self._check_for(0)
        return self._inner.loss

    @property
    def grad(self) -> Tensor:
        """∇f(θ), shape (..., d)."""
        self._check_for(1)
        return self._inner.grad

    def hvp(self, v: Tensor) -> Tensor:
        """H v, shape (..., d)."""
        self._check_for(2)
        return self._inner.hvp(v)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v], shape (..., d)."""
        self._check_for(3)
        return self._inner.third(u, v)

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇fᵀw, checked at first access to a result."""
        return CheckedExpansion(self._inner.along(w), self._check, self._depth + 1)

    def hessian(self) -> Tensor:
        """H, shape (..., d, d)."""
        self._check_for(2)
        return self._inner.hessian()

    def _check_for(self, order: int) -> None:
        order += self._depth
        if order >= 2:
            self._check(order + self._more)


@dataclass(eq=False)
class DerivativeCheck:
    """Compares a network's products with differences, each order once for each mode (training or evaluation)."""

    function: ModuleFunction
    forward: Callable[[Tensor], Tensor]
    """Losses (m,) of a few examples in float64, at θ (d,) in float64."""
    trusted_loss: bool
    """Whether the loss is one of nets.losses, whose constant shifts (amax, clamp) cause no kinks."""
    asked: set[tuple[int, tuple[bool, ...]]] = field(default_factory=set)

    def __call__(self, order: int) -> None:
        """Raise WrongDerivativeError if products up to that order are wrong; warn if they cannot be checked."""
        mode = self.function.mode()
        for lower in range(1, order + 1):
            if (lower, mode) not in self.asked:
                with self.function.kernels():
                    self._ask(lower)
                self.asked.add((lower, mode))

    def _ask(self, order: int) -> None:
        try:
            position, seen = self._observe()
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError, ValueError) as error:  # float32 constants, or a device without float64
            if order == 2:
                reason = str(error).splitlines()[0]
                warn(
                    UncheckedDerivativesWarning,
                    f"the network cannot be run in float64, so its derivatives are not checked ({reason})",
                )
            return
        operations = seen.operations if self.trusted_loss else seen.operations | seen.outside
        whole = Piece("the network as a whole", lambda x: self.forward(x).mean(), position, frozenset(operations))
        verdict = judge(whole, order)
        if verdict != "right":
            wrong = next((part for part in parts(seen) if is_wrong_alone(part, order)), None)
            if wrong is not None or verdict == "wrong":
                raise WrongDerivativeError(error_text(wrong or whole, order))
        if order == 2 or verdict == "unclear":
            warn_about(whole, seen.calls, verdict, order)

    def _observe(self) -> tuple[Tensor, Observation]:
        """A position near θ0 at which the losses are finite, and the observation of the module there."""
        theta = self.function.theta0.double()
        noise = draw(theta, 0)
        shift = (0.05 * theta.square().mean().sqrt() + 1e-2) * noise  # off symmetric points, such as layers at zero
        failure: Exception = ValueError("the loss is not finite")
        for position in (theta + shift, theta * (1 + 1e-3 * noise), theta):
            try:
                with torch.no_grad(), observe(self.function.module) as seen:
                    losses = self.forward(position)
                if bool(losses.isfinite().all()):
                    return position, seen
            except torch.OutOfMemoryError:
                raise
            except (RuntimeError, TypeError, ValueError) as error:
                failure = error
        raise failure


def parts(seen: Observation) -> Iterator[Piece]:
    """The called modules, innermost first; of identical layers of nets or torch only one."""
    known = set()
    for call in seen.calls:
        module = call.module
        if not has_children(module) and type(module).__module__.startswith(("torch.nn.", "nets.")):
            shapes = [tuple(out.shape) for out in (*call.parameters.values(), *call.outputs)]
            kind = (type(module), module.extra_repr(), module.training, str(shapes), len(module._forward_pre_hooks))
            if kind in known:
                continue
            known.add(kind)
        piece = piece_of(call)
        if piece is not None:
            yield piece


def is_wrong_alone(part: Piece, order: int) -> bool:
    """Whether a module fails by itself; False for one that cannot run by itself."""
    try:
        return judge(part, order) == "wrong"
    except torch.OutOfMemoryError:
        raise
    except Exception:  # a custom module may raise anything at perturbed inputs
        return False


def warn_about(whole: Piece, calls: Sequence[Call], verdict: Verdict, order: int) -> None:
    """Warn of kinks, at order 2, or that differences do not converge."""
    if whole.kinks and order == 2:
        leaves = {type(c.module).__name__ for c in calls if c.operations & whole.kinks and not has_children(c.module)}
        warn(
            PiecewiseLinearWarning,
            f"the network has kinks ({', '.join(sorted(leaves or whole.kinks))}): Hessian-vector products and third "
            "derivatives are those of the smooth piece that theta lies in, which flows leave; use tanh, gelu or "
            "softplus and average pooling for a smooth landscape",
        )
    elif verdict == "unclear" and not whole.kinks:
        warn(
            UncheckedDerivativesWarning, f"differences do not converge, so derivatives of order {order} are not checked"
        )


def error_text(piece: Piece, order: int) -> str:
    """The message of an error: the module, the wrong product and the remedy."""
    names = {1: "gradient", 2: "Hessian-vector product", 3: "third derivative"}
    product = names.get(order, f"derivative of order {order}")
    remedy = next((text for kind, text in REMEDIES if isinstance(piece.module, kind)), ADVICE)
    if piece.module is not None and any(isinstance(h, WeightNorm) for h in piece.module._forward_pre_hooks.values()):
        remedy = WEIGHT_NORM
    return f"{piece.name} has a wrong {product}: it disagrees with differences in float64; {remedy}"


def warn(category: type[UserWarning], text: str) -> None:
    """Warn with this module as origin, so that filters can select it."""
    warnings.warn(text, category, stacklevel=1)


def has_children(module: nn.Module) -> bool:
    """Whether a module has submodules."""
    return next(module.children(), None) is not None
