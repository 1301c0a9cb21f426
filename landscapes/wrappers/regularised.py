r"""``Regularised``: a landscape, or a finite sum, with weight decay."""

from __future__ import annotations

import torch
from torch import Tensor

from landscapes.autodiff import release
from landscapes.errors import check_real
from landscapes.expansion import Expansion
from landscapes.landscape import Change, FiniteSum, Landscape, check_landscape
from landscapes.wrappers.base import Wrapper, replace_attributes


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
        """D³f[u, v], as the penalty is quadratic."""
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
        return release(self._inner.loss + (self._b * self.theta).sum(dim=-1) + self._c, self.theta)

    @property
    def grad(self) -> Tensor:
        """∇f + b."""
        return release(self._inner.grad + self._b, self.theta)

    def hvp(self, v: Tensor) -> Tensor:
        return self._inner.hvp(v)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v]."""
        return self._inner.third(u, v)

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇fᵀw + bᵀw."""
        return TiltedExpansion(self._inner.along(w), torch.zeros_like(self._b), (self._b * w).sum(dim=-1))

    def hessian(self) -> Tensor:
        return self._inner.hessian()


class Regularised(Wrapper):
    r"""Weight decay: f(θ) + (l2/2) θᵀθ, gradient ∇f + l2 θ, as torch.optim's ``weight_decay``.

    l2 is any finite real number (negative values make a landscape less convex). In a finite sum every example has the
    penalty, so that mini-batch gradients contain it.
    """

    def __new__(cls, landscape: Landscape, l2: float) -> Regularised:
        """A ``RegularisedSum`` if the landscape is a finite sum."""
        return object.__new__(RegularisedSum if cls is Regularised and isinstance(landscape, FiniteSum) else cls)

    def __init__(self, landscape: Landscape, l2: float):
        self.landscape = check_landscape(landscape)
        self.l2 = check_real("l2", l2)

    def with_parts(self, change: Change) -> Landscape:
        return replace_attributes(self, landscape=change(self.landscape, 1))

    def __getnewargs__(self) -> tuple[Landscape, float]:
        return self.landscape, self.l2

    def loss(self, theta: Tensor) -> Tensor:
        """f(θ) + (l2/2) θᵀθ, shape (...,)."""
        return self.landscape.loss(theta) + penalty(theta, self.l2)

    def grad(self, theta: Tensor) -> Tensor:
        """∇f(θ) + l2 θ, shape (..., d)."""
        return self.landscape.grad(theta) + self.l2 * theta

    def expand(self, theta: Tensor) -> Expansion:
        return RegularisedExpansion(self.landscape.expand(theta), self.l2)


class RegularisedSum(Regularised, FiniteSum):
    """A finite sum with the penalty in every example."""

    @property
    def size(self) -> int:
        return self.landscape.size

    def losses(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """f_i(θ) + (l2/2) θᵀθ, shape (..., m)."""
        return self.landscape.losses(theta, index) + penalty(theta, self.l2)[..., None]

    def batch_grad(self, theta: Tensor, index: Tensor) -> Tensor:
        """Mini-batch gradient + l2 θ."""
        return self.landscape.batch_grad(theta, index) + self.l2 * theta

    def weighted_grad(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Σ_i w_i (∇f_i + l2 θ)."""
        total = self.check_weights(weights).sum(dim=-1, keepdim=True).to(self.check(theta))
        return release(self.landscape.weighted_grad(theta, weights) + self.l2 * total * theta, theta)

    def example_grads(self, theta: Tensor, index: Tensor | None = None) -> Tensor:
        """∇f_i(θ) + l2 θ of each example."""
        return self.landscape.example_grads(theta, index) + self.l2 * theta[..., None, :]

    def restrict(self, index: Tensor) -> FiniteSum:
        return RegularisedSum(self.landscape.restrict(index), self.l2)


def penalty(theta: Tensor, l2: float) -> Tensor:
    """(l2/2) θᵀθ, bilinear, shape (...,)."""
    return l2 / 2 * (theta * theta).sum(dim=-1)
