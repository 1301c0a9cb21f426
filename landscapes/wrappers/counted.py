r"""``Counted``: a landscape, or a finite sum, that counts its oracle calls."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from landscapes.autodiff import inside_transform
from landscapes.description import describe_object
from landscapes.errors import check_index, check_positive
from landscapes.expansion import Expansion
from landscapes.landscape import Change, FiniteSum, Landscape, check_landscape
from landscapes.wrappers.base import Counts, Wrapper, no_counts, replace_attributes

KINDS = ("loss", "grad", "hvp", "third")
"""Keys of the counts of derivatives of order 0, 1, 2, 3; higher orders count as "higher"."""


class CountedExpansion(Expansion):
    """An expansion with counts: loss and gradient count once at first access, each product counts once.

    Slopes add to the same counts, each derivative by its order in f; the loss of a slope counts as its parent's
    gradient.
    """

    def __init__(self, inner: Expansion, counts: Counts, unit: float, parent: CountedExpansion | None = None):
        self.theta = inner.theta
        self._inner = inner
        self._counts = counts
        self._unit = unit
        self._parent = parent
        self._depth: int = 0 if parent is None else parent._depth + 1
        self._read: set[int] = set()

    def _count(self, order: int, products: int = 1) -> None:
        order += self._depth
        self._counts[KINDS[order] if order < len(KINDS) else "higher"] += self._unit * products

    def _count_once(self, order: int) -> None:
        if order not in self._read:
            self._read.add(order)
            self._count(order)

    @property
    def loss(self) -> Tensor:
        """f(θ), counted at first access; for a slope, counted as the parent's gradient."""
        if self._parent is None:
            self._count_once(0)
        else:
            self._parent._count_once(1)
        return self._inner.loss

    @property
    def grad(self) -> Tensor:
        """∇f(θ), counted at first access."""
        self._count_once(1)
        return self._inner.grad

    def hvp(self, v: Tensor) -> Tensor:
        """H v, one hvp."""
        self._count(2)
        return self._inner.hvp(v)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v], one third."""
        self._count(3)
        return self._inner.third(u, v)

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇fᵀw; counts nothing itself."""
        return CountedExpansion(self._inner.along(w), self._counts, self._unit, self)

    def hessian(self) -> Tensor:
        """H, d hvps."""
        self._count(2, self.theta.shape[-1])
        return self._inner.hessian()


class Counted(Wrapper):
    r"""A landscape that counts its oracle calls in ``counts``: {"loss", "grad", "hvp", "third", "higher"}.

    One unit is one product over the full sum for one θ: b of N examples count b/N, a batch of n states counts n,
    ``hessian`` counts d hvps. The derivatives of a slope ``along(w)`` count by their order in f: its gradient Hw as one
    hvp at first access, its products D³f[w, v] as one third each, orders above the third as one "higher" each; its loss
    ∇fᵀw needs the gradient, which counts once. Calls inside a torch.func transform also count as "higher", by the batch
    shape inside: vmap hides the mapped dimension. Attributes that ``Landscape`` does not have are the landscape's own,
    and calls of such methods are not counted.
    """

    def __new__(cls, landscape: Landscape, counts: Counts | None = None, unit: float = 1) -> Counted:
        """A ``CountedSum`` if the landscape is a finite sum."""
        return object.__new__(CountedSum if cls is Counted and isinstance(landscape, FiniteSum) else cls)

    def __init__(self, landscape: Landscape, counts: Counts | None = None, unit: float = 1):
        self.landscape = check_landscape(landscape)
        if counts is not None and not isinstance(counts, dict):
            raise TypeError(f"counts must be a dictionary of counts or None, got {type(counts).__name__}")
        check_positive("unit", unit)
        self.counts = no_counts() if counts is None else counts
        self.unit = unit

    def __getnewargs__(self) -> tuple[Landscape]:
        return (self.landscape,)

    def description(self) -> dict[str, Any]:
        return describe_object(self, "counts")

    def __getattr__(self, name: str) -> Any:
        # Attributes beyond Landscape's, such as Quadratic's minimum: a flow that reads them can be counted, too.
        if name.startswith("_") or "landscape" not in self.__dict__:
            raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")
        return getattr(self.landscape, name)

    def _count(self, name: str, theta: Tensor, share: float = 1, index: Tensor | None = None) -> None:
        shape = theta.shape[:-1] if index is None else torch.broadcast_shapes(theta.shape[:-1], index.shape[:-1])
        kind = "higher" if inside_transform() else name
        self.counts[kind] += self.unit * share * math.prod(shape)

    def with_parts(self, change: Change) -> Landscape:
        return replace_attributes(self, landscape=change(self.landscape, 1))

    def loss(self, theta: Tensor) -> Tensor:
        """f(θ), one loss a member."""
        self._count("loss", self.check(theta))
        return self.landscape.loss(theta)

    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ), one grad a member."""
        self._count("grad", self.check(theta))
        return self.landscape.grad(theta)

    def expand(self, theta: Tensor) -> Expansion:
        """Expansion with counts."""
        self.check(theta)
        return CountedExpansion(self.landscape.expand(theta), self.counts, self.unit * math.prod(theta.shape[:-1]))


class CountedSum(Counted, FiniteSum):
    """A finite sum with counts: b of N examples count b/N."""

    @property
    def size(self) -> int:
        return self.landscape.size

    def _share(self, index: Tensor | None) -> float:
        return 1 if index is None else check_index(index, self.size).shape[-1] / self.size

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_i(θ) of the examples, m/N losses a member."""
        self._count("loss", self.check(theta), self._share(index), index)
        return self.landscape.losses(theta, index)

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """The mini-batch gradient, m/N grads a member."""
        self._count("grad", self.check(theta), self._share(index), index)
        return self.landscape.batch_grad(theta, index)

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i ∇f_i(θ), one grad a member."""
        self._count("grad", self.check(theta), 1, self.check_weights(weights))
        return self.landscape.weighted_grad(theta, weights)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∇f_i(θ) of each example, m/N grads a member."""
        self._count("grad", self.check(theta), self._share(index), index)
        return self.landscape.example_grads(theta, index)

    def restrict(self, index: Tensor) -> FiniteSum:
        """The restricted sum, with the same counts, m/N a call."""
        return CountedSum(self.landscape.restrict(index), self.counts, self.unit * self._share(index))
