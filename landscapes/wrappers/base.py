r"""Landscapes around landscapes: ``Counted`` counts oracle calls, ``Regularised`` adds weight decay, ``Rotated`` turns
the coordinates. The first two keep what they wrap: a wrapped ``FiniteSum`` is a ``FiniteSum``.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from landscapes.autodiff import release, transforming
from landscapes.errors import check_float_tensor, check_index, check_real
from landscapes.expansion import Expansion
from landscapes.landscape import FiniteSum, Landscape, check_landscape

Counts = dict[str, float]


def no_counts() -> Counts:
    """A fresh tally: loss, grad, hvp, third, and higher (above the third, or through a torch.func transform)."""
    return {"loss": 0, "grad": 0, "hvp": 0, "third": 0, "higher": 0}


class Wrapper(Landscape):
    """A landscape around another one, ``landscape``, whose dimension, domain and checks it keeps."""

    landscape: Any

    @property
    def holomorphic(self) -> bool:  # type: ignore[override]
        """Whether complex θ is accepted: the wrapped landscape's answer."""
        return self.landscape.holomorphic

    @property
    def smoothness(self) -> float:
        """How many continuous derivatives there are: the wrapped landscape's answer."""
        return self.landscape.smoothness

    @property
    def dimension(self) -> int:
        """d, the number of parameters."""
        return self.landscape.dimension

    def check(self, theta: Tensor) -> Tensor:
        """The wrapped landscape's check, so that errors name it."""
        return self.landscape.check(theta)


KINDS = ("loss", "grad", "hvp", "third")
"""What a derivative of order 0, 1, 2, 3 is counted as; any above is "higher"."""


class CountedExpansion(Expansion):
    """An expansion that counts: the loss and the gradient once however often they are read, each product once.

    Slopes add to the same counts, each derivative by its order in f; the loss of a slope is the gradient it is made of.
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
        """f(θ), counted at the first reading; of a slope, the gradient below it."""
        if self._parent is None:
            self._count_once(0)
        else:
            self._parent._count_once(1)
        return self._inner.loss

    @property
    def grad(self) -> Tensor:
        """∇f(θ), counted at the first reading."""
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
        """The slope ∇fᵀw, free until it is read."""
        return CountedExpansion(self._inner.along(w), self._counts, self._unit, self)

    def hessian(self) -> Tensor:
        """H, d hvps."""
        self._count(2, self.theta.shape[-1])
        return self._inner.hessian()


class Counted(Wrapper):
    r"""A landscape that counts its oracle calls in ``counts``: {"loss", "grad", "hvp", "third", "higher"}.

    One unit is one product over the full sum for one θ: b of N examples count b/N, a batch of n states counts n,
    ``hessian`` counts d hvps. A slope ``along(w)`` counts by the order of what is read: its gradient Hw as one hvp
    however often it is read, its products D³f[w, v] as one third each, whatever lies above the third as one "higher";
    its loss ∇fᵀw needs the gradient, which counts once. Calls inside a torch.func transform count as "higher" too, one
    for what the transform shows: vmap hides the dimension it maps over.
    """

    def __new__(cls, landscape: Landscape, counts: Counts | None = None, unit: float = 1) -> Counted:
        """A ``CountedSum`` where the landscape is a finite sum."""
        return object.__new__(CountedSum if cls is Counted and isinstance(landscape, FiniteSum) else cls)

    def __init__(self, landscape: Landscape, counts: Counts | None = None, unit: float = 1):
        self.landscape = check_landscape(landscape)
        self.counts = no_counts() if counts is None else counts
        self.unit = unit

    def _count(self, name: str, theta: Tensor, share: float = 1, index: Tensor | None = None) -> None:
        shape = theta.shape[:-1] if index is None else torch.broadcast_shapes(theta.shape[:-1], index.shape[:-1])
        kind = "higher" if transforming() else name
        self.counts[kind] += self.unit * share * math.prod(shape)

    def loss(self, theta: Tensor) -> Tensor:
        """f(θ), one loss a member."""
        self._count("loss", self.check(theta))
        return self.landscape.loss(theta)

    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ), one grad a member."""
        self._count("grad", self.check(theta))
        return self.landscape.grad(theta)

    def expand(self, theta: Tensor) -> Expansion:
        """Expansion whose readings and products are counted."""
        self.check(theta)
        return CountedExpansion(self.landscape.expand(theta), self.counts, self.unit * math.prod(theta.shape[:-1]))


class CountedSum(Counted, FiniteSum):
    """A finite sum that counts: b of N examples count b/N."""

    @property
    def size(self) -> int:
        """N, the number of examples."""
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
        """A sum over fewer examples that adds to the same counts, m/N a call."""
        return CountedSum(self.landscape.restrict(index), self.counts, self.unit * self._share(index))


class RegularisedExpansion(Expansion):
    """Expansion of f + (l2/2) θᵀθ from the expansion of f."""

    def __init__(self, inner: Expansion, l2: float):
        self.theta = inner.theta
        self._inner = inner
        self._l2 = l2

    @property
    def loss(self) -> Tensor:
        """f + (l2/2) θᵀθ."""
        return self._inner.loss + penalty(self.theta, self._l2)

    @property
    def grad(self) -> Tensor:
        """∇f + l2 θ."""
        return self._inner.grad + self._l2 * self.theta

    def hvp(self, v: Tensor) -> Tensor:
        """H v + l2 v."""
        return release(self._inner.hvp(v) + self._l2 * v, self.theta)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v]: a quadratic has no third derivative."""
        return self._inner.third(u, v)

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇fᵀw + l2 θᵀw."""
        return TiltedExpansion(self._inner.along(w), self._l2 * w)

    def hessian(self) -> Tensor:
        """H + l2 I."""
        identity = torch.eye(self.theta.shape[-1], dtype=self.theta.dtype, device=self.theta.device)
        return self._inner.hessian() + self._l2 * identity


class TiltedExpansion(Expansion):
    """Expansion of f + bᵀθ + c from the expansion of f, b (..., d) and c (...,) constants."""

    def __init__(self, inner: Expansion, b: Tensor, c: Tensor | float = 0.0):
        self.theta = inner.theta
        self._inner = inner
        self._b = b
        self._c = c

    @property
    def loss(self) -> Tensor:
        """f + bᵀθ + c."""
        return release(self._inner.loss + (self._b * self.theta).sum(dim=-1) + self._c, self.theta)

    @property
    def grad(self) -> Tensor:
        """∇f + b."""
        return release(self._inner.grad + self._b, self.theta)

    def hvp(self, v: Tensor) -> Tensor:
        """H v."""
        return self._inner.hvp(v)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v]."""
        return self._inner.third(u, v)

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇fᵀw + bᵀw."""
        return TiltedExpansion(self._inner.along(w), torch.zeros_like(self._b), (self._b * w).sum(dim=-1))

    def hessian(self) -> Tensor:
        """H."""
        return self._inner.hessian()


class Regularised(Wrapper):
    r"""Weight decay: f(θ) + (l2/2) θᵀθ, gradient ∇f + l2 θ, as torch.optim's ``weight_decay``.

    l2 is any finite real number (negative values make a landscape less convex). On a finite sum every example carries
    the penalty, so mini-batches see it too.
    """

    def __new__(cls, landscape: Landscape, l2: float) -> Regularised:
        """A ``RegularisedSum`` where the landscape is a finite sum."""
        return object.__new__(RegularisedSum if cls is Regularised and isinstance(landscape, FiniteSum) else cls)

    def __init__(self, landscape: Landscape, l2: float):
        self.landscape = check_landscape(landscape)
        self.l2 = check_real("l2", l2)

    def loss(self, theta: Tensor) -> Tensor:
        """f(θ) + (l2/2) θᵀθ, shape (...,)."""
        return self.landscape.loss(theta) + penalty(theta, self.l2)

    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ) + l2 θ, shape (..., d)."""
        return self.landscape.grad(theta) + self.l2 * theta

    def expand(self, theta: Tensor) -> Expansion:
        """Expansion of the penalised loss."""
        return RegularisedExpansion(self.landscape.expand(theta), self.l2)


class RegularisedSum(Regularised, FiniteSum):
    """A finite sum whose every example carries the penalty."""

    @property
    def size(self) -> int:
        """N, the number of examples."""
        return self.landscape.size

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_i(θ) + (l2/2) θᵀθ, shape (..., m)."""
        return self.landscape.losses(theta, index) + penalty(theta, self.l2)[..., None]

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """Mini-batch gradient + l2 θ."""
        return self.landscape.batch_grad(theta, index) + self.l2 * theta

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i (∇f_i + l2 θ)."""
        total = self.check_weights(weights).sum(dim=-1, keepdim=True).to(theta)
        return release(self.landscape.weighted_grad(theta, weights) + self.l2 * total * theta, theta)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∇f_i(θ) + l2 θ of each example."""
        return self.landscape.example_grads(theta, index) + self.l2 * theta[..., None, :]

    def restrict(self, index: Tensor) -> FiniteSum:
        """The penalised mean over fewer examples."""
        return RegularisedSum(self.landscape.restrict(index), self.l2)


class RotatedExpansion(Expansion):
    """Expansion of f(Qᵀθ) from the expansion of f at Qᵀθ."""

    def __init__(self, inner: Expansion, theta: Tensor, rotation: Tensor):
        self.theta = theta
        self._inner = inner
        self._rotation = rotation

    @property
    def loss(self) -> Tensor:
        """f(Qᵀθ)."""
        return self._inner.loss

    @property
    def grad(self) -> Tensor:
        """Q ∇f(Qᵀθ)."""
        return self._inner.grad @ self._rotation.mT

    def hvp(self, v: Tensor) -> Tensor:
        """Q H Qᵀ v."""
        return self._inner.hvp(v @ self._rotation) @ self._rotation.mT

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """Q D³f[Qᵀu, Qᵀv]."""
        return self._inner.third(u @ self._rotation, v @ self._rotation) @ self._rotation.mT

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇f(Qᵀθ)ᵀ Qᵀw."""
        return RotatedExpansion(self._inner.along(w @ self._rotation), self.theta, self._rotation)


class Rotated(Wrapper):
    r"""The landscape seen in rotated coordinates: f(Qᵀθ) for an orthogonal Q (d, d).

    What does not depend on coordinates (gradient descent, every flow built from it) commutes with the rotation.
    Raises ValueError unless Q is square, of the landscape's dimension and orthogonal.
    """

    def __init__(self, landscape: Landscape, rotation: Tensor):
        self.landscape = check_landscape(landscape)
        d = landscape.dimension
        check_float_tensor("rotation", rotation)
        if rotation.shape != (d, d):
            raise ValueError(f"rotation must have shape {(d, d)}, got {tuple(rotation.shape)}")
        identity = torch.eye(d, dtype=rotation.dtype, device=rotation.device)
        error = float((rotation @ rotation.mT - identity).abs().max())
        if error > 1e3 * torch.finfo(rotation.dtype).eps:
            raise ValueError(f"rotation must be orthogonal, got |QQᵀ − I| up to {error:.2g}")
        self.rotation = rotation

    def loss(self, theta: Tensor) -> Tensor:
        """f(Qᵀθ), shape (...,)."""
        return self.landscape.loss(self.check(theta) @ self.rotation.to(theta))

    def grad(self, theta: Tensor) -> Tensor:
        """Q ∇f(Qᵀθ), shape (..., d)."""
        rotation = self.rotation.to(theta)
        return self.landscape.grad(self.check(theta) @ rotation) @ rotation.mT

    def expand(self, theta: Tensor) -> Expansion:
        """Expansion in the rotated coordinates."""
        rotation = self.rotation.to(theta)
        return RotatedExpansion(self.landscape.expand(self.check(theta) @ rotation), theta, rotation)


def penalty(theta: Tensor, l2: float) -> Tensor:
    """(l2/2) θᵀθ, bilinear, shape (...,)."""
    return l2 / 2 * (theta * theta).sum(dim=-1)
