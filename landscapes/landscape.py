r"""A loss f: R^d → R and its derivatives at flat parameters θ of shape (..., d).

A ``Landscape`` defines a loss; an ``Expansion`` gives loss, gradient and products at one point from one forward pass; a
``FiniteSum`` is a mean over examples. Toys and networks share this interface. Leading dimensions are batched: members
never interact. dtype and device are those of θ. Derivatives of any order are available, as the slope of f along a
vector has an expansion again.

Complex θ is accepted if the loss is holomorphic: ``grad`` is the holomorphic derivative and products are bilinear.
Results carry no autograd graph unless θ requires grad or the call is inside a torch.func transform, where ``loss`` and
``grad`` are available and ``expand`` is not.
"""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from landscapes.autodiff import gradient
from landscapes.description import describe, describe_object
from landscapes.errors import (
    NotHolomorphicError,
    SmoothnessWarning,
    callers_level,
    check_float_tensor,
    check_index,
)
from landscapes.expansion import AutogradExpansion, Expansion, spread

Change = Callable[["Landscape", float], "Landscape"]
"""(landscape, share) ↦ the landscape that takes its place; see ``Landscape.with_parts``."""


class Landscape(ABC):
    r"""A loss f: R^d → R on flat parameters θ of shape (..., d), leading dimensions batched.

    A subclass gives ``dimension`` and ``loss``; derivatives follow by automatic differentiation. Closed forms override
    ``grad`` and ``expand``. ``holomorphic``: whether the loss accepts complex θ.
    """

    holomorphic: bool = False

    @property
    def smoothness(self) -> float:
        """k, the number of continuous derivatives of f: math.inf unless kinks are known."""
        return math.inf

    @property
    @abstractmethod
    def dimension(self) -> int:
        """d, the number of parameters."""

    @abstractmethod
    def loss(self, theta: Tensor) -> Tensor:
        """f(θ), shape (...,)."""

    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ), shape (..., d)."""
        return gradient(self.loss, self.check(theta))

    def expand(self, theta: Tensor) -> Expansion:
        """Loss, gradient and products at θ from one forward pass."""
        return AutogradExpansion(self.loss, self.check(theta))

    def hvp(self, theta: Tensor, v: Tensor) -> Tensor:
        """H(θ) v, shape (..., d)."""
        return self.expand(theta).hvp(v)

    def third(self, theta: Tensor, u: Tensor, v: Tensor) -> Tensor:
        """D³f(θ)[u, v] = ∇(uᵀHv), shape (..., d)."""
        return self.expand(theta).third(u, v)

    def hessian(self, theta: Tensor) -> Tensor:
        """H(θ), shape (..., d, d); d Hessian-vector products if there is no closed form."""
        return self.expand(theta).hessian()

    def description(self) -> dict[str, Any]:
        """Class and parameters as JSON, for the configuration of a run: by default a dataclass's fields or attributes.

        Large tensors are given by their SHA-256. A class whose attributes do not identify it overrides this, with
        values from ``landscapes.description.describe``.
        """
        return describe_object(self)

    def with_parts(self, change: Change) -> Landscape:
        """The landscape with ``change(part, share)`` in place of each landscape that it evaluates; itself without one.

        ``share``: one product over the part's full sum in products over this landscape's full sum, 1 or, for one of the
        m terms of a mean, 1/m. Engines count oracle calls on the innermost landscapes, the ones that return themselves
        here. A wrapper overrides it: with ``landscapes.wrappers.base.replace_attributes`` if all its derivatives come
        from those of its parts; with ``return self`` if it is to be counted as one landscape. The cost of a run on a
        landscape that holds another and does not override this is not known.
        """
        return self

    def check(self, theta: Tensor) -> Tensor:
        """Return θ; raise unless it is a floating tensor (..., d), complex only if the loss is holomorphic."""
        check_float_tensor("theta", theta)
        if theta.ndim == 0 or theta.shape[-1] != self.dimension:
            raise ValueError(f"theta must have shape (..., {self.dimension}), got {tuple(theta.shape)}")
        if theta.is_complex() and not self.holomorphic:
            raise NotHolomorphicError(
                f"{type(self).__name__} does not accept complex theta ({theta.dtype}): its loss is not known to be "
                "holomorphic; give real theta, or for the principal flow use branch='real'"
            )
        return theta


class FiniteSum(Landscape):
    r"""A loss that is a mean over examples, f = (1/N) Σ_i f_i.

    A subclass gives ``dimension``, ``size`` and ``losses``. ``index`` selects examples: shape (m,) shared by the batch,
    or (..., m) with one selection for each member.
    """

    @property
    @abstractmethod
    def size(self) -> int:
        """N, the number of examples."""

    @abstractmethod
    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_i(θ) of the examples, shape (..., m); all N if the index is None."""

    def loss(self, theta: Tensor) -> Tensor:
        """(1/N) Σ_i f_i(θ), shape (...,)."""
        return self.losses(theta).mean(dim=-1)

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """(1/m) Σ_{i in index} ∇f_i(θ), shape (..., d): the mini-batch gradient."""
        check_index(index, self.size)
        members = spread(self.check(theta), index)
        return gradient(lambda x: self.losses(x, index).mean(dim=-1), members)

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i ∇f_i(θ), shape (..., d), for weights (..., N), in one backward pass."""
        members = spread(self.check(theta), self.check_weights(weights))
        return gradient(lambda x: (self.losses(x) * weights).sum(dim=-1), members)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∇f_i(θ) of each example, shape (..., m, d)."""
        if index is not None:
            check_index(index, self.size)
        self.check(theta)
        examples = torch.arange(self.size, device=theta.device) if index is None else index
        each = examples[..., None]  # (..., m, 1): one example for each copy of θ (..., m, d)
        copies = spread(theta[..., None, :], each)
        return gradient(lambda x: self.losses(x, each).squeeze(-1), copies)

    def restrict(self, index: Tensor) -> FiniteSum:
        """The finite sum of the examples in a 1-D ``index``."""
        return Restricted(self, index)

    def check_weights(self, weights: Tensor) -> Tensor:
        """Return ``weights``; raise unless they have shape (..., N)."""
        check_float_tensor("weights", weights)
        if weights.ndim == 0 or weights.shape[-1] != self.size:
            raise ValueError(f"weights must have shape (..., {self.size}), got {tuple(weights.shape)}")
        return weights


class Restricted(FiniteSum):
    """The mean over a subset of another sum's examples."""

    def __init__(self, parent: FiniteSum, index: Tensor):
        check_index(index, parent.size)
        if index.ndim != 1:
            raise ValueError(f"index must have shape (m,), got {tuple(index.shape)}")
        self.parent = parent
        self.index = index

    @property
    def holomorphic(self) -> bool:  # type: ignore[override]
        """Whether the parent accepts complex θ."""
        return self.parent.holomorphic

    @property
    def smoothness(self) -> float:
        """The number of continuous derivatives of the parent."""
        return self.parent.smoothness

    @property
    def dimension(self) -> int:
        return self.parent.dimension

    @property
    def size(self) -> int:
        return self.index.shape[0]

    def with_parts(self, change: Change) -> Restricted:  # derivatives are of its own losses: it counts as one
        return self

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_i(θ) of the kept examples, shape (..., m)."""
        chosen = self.index.to(theta.device)
        return self.parent.losses(theta, chosen if index is None else chosen[check_index(index, self.size)])


@describe.register
def _(value: Landscape) -> dict[str, Any]:
    return value.description()


def innermost_landscapes(landscape: Landscape) -> tuple[Landscape, ...]:
    """The landscapes without parts inside a landscape, each object once; itself if it has no parts."""
    found: dict[int, Landscape] = {}

    def look(part: Landscape, share: float) -> Landscape:
        if part.with_parts(look) is part:
            found[id(part)] = part
        return part

    look(landscape, 1)
    return tuple(found.values())


def warn_smoothness(landscape: Landscape, order: int, who: str) -> None:
    """Warn if ``who`` takes derivatives of a higher order than the landscape has; gradients never warn.

    The warning is attributed to the line that called into our packages, so that Python shows it once for each line.
    """
    smoothness = landscape.smoothness
    if order > max(smoothness, 1):
        known = "jumps" if smoothness < 0 else f"is continuous up to its order-{smoothness} derivative only"
        warnings.warn(
            f"{who} takes derivatives of order {order}, and the landscape {known} (kinks): beyond it they are those of "
            "the smooth piece that theta lies in, and the flow may follow descent no better than gradient flow does; "
            "use tanh, gelu or softplus and average pooling, or a flow of order 1",
            SmoothnessWarning,
            stacklevel=callers_level(),
        )


def check_finite_sum(landscape: Landscape) -> FiniteSum:
    """Return ``landscape``; raise unless it is a finite sum."""
    if not isinstance(landscape, FiniteSum):
        raise TypeError(
            f"landscape must be a FiniteSum, a mean over examples, got {type(landscape).__name__}; a loss without "
            "examples has no batches: use GradientDescent, GradientPenalty or ModifiedFlow, or AnalyticNoise"
        )
    return landscape


def check_landscape(landscape: Landscape) -> Landscape:
    """Return ``landscape``; raise unless it is a Landscape."""
    if not isinstance(landscape, Landscape):
        raise TypeError(f"landscape must be a Landscape, got {type(landscape).__name__}")
    return landscape
