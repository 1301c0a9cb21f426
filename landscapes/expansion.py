r"""Loss, gradient and products at one θ from one forward pass: the results of ``Landscape.expand``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property, reduce

import torch
from torch import Tensor

from landscapes.autodiff import Field, inside_transform, release, transposed_product, wants_graph
from landscapes.errors import UnsupportedError, check_float_tensor


def basis_products(product: Field, theta: Tensor) -> Tensor:
    """The matrix (..., d, d) whose columns are ``product`` of the unit vectors: d products, one at a time."""
    d = theta.shape[-1]
    columns = []
    for i in range(d):
        unit = torch.zeros_like(theta)
        unit[..., i] = 1
        columns.append(product(unit))
    return torch.stack(columns, dim=-1)


def spread(theta: Tensor, rows: Tensor) -> Tensor:
    """θ (..., d) with its leading dimensions broadcast with those of ``rows`` (..., m)."""
    if theta.shape[:-1] == rows.shape[:-1]:  # torch's broadcast_shapes takes longer than a product of small tensors
        return theta
    return theta.expand(*torch.broadcast_shapes(theta.shape[:-1], rows.shape[:-1]), theta.shape[-1])


class Expansion(ABC):
    r"""Loss, gradient and products with higher derivatives of a landscape at one point θ (..., d).

    Shapes: ``loss`` (...,), ``grad`` (..., d), ``hvp(v)`` = H v, ``third(u, v)`` = D³f[u, v] = ∇(uᵀHv) with u and v
    frozen, ``hessian()`` (..., d, d). u and v have θ's shape.

    ``along(w)`` is the expansion of θ ↦ ∇f(θ)ᵀw with w frozen, and gives derivatives of any order: its gradient is Hw,
    its products are D³f[w, v]; ``along(w).along(x)`` has the gradient D³f[w, x] and the products D⁴f[w, x, v].

    Directions are constants of every product. Where θ requires grad they may depend on it, as the gradient does, and
    results carry the graph of both.
    """

    theta: Tensor

    @property
    @abstractmethod
    def loss(self) -> Tensor:
        """f(θ), shape (...,)."""

    @property
    @abstractmethod
    def grad(self) -> Tensor:
        """∇f(θ), shape (..., d)."""

    @abstractmethod
    def hvp(self, v: Tensor) -> Tensor:
        """H v, shape (..., d)."""

    @abstractmethod
    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v], shape (..., d)."""

    def along(self, w: Tensor) -> Expansion:
        """The expansion at θ of the slope ∇fᵀw, w (..., d) frozen; terms that depend on w alone are computed once.

        Nothing is computed before a result is read. This default uses the products of f, and raises UnsupportedError
        for derivatives above the third.
        """
        return SlopeExpansion(self, w)

    def hessian(self) -> Tensor:
        """H, shape (..., d, d): d products unless the landscape has a closed form. Symmetrised."""
        matrix = basis_products(self.hvp, self.theta)
        return (matrix + matrix.mT) / 2

    def check_vector(self, name: str, v: Tensor) -> Tensor:
        """Return ``v``; raise unless it has θ's shape and dtype."""
        check_float_tensor(name, v)
        if v.shape != self.theta.shape or v.dtype != self.theta.dtype:
            raise ValueError(
                f"{name} must have the shape and dtype of theta, {tuple(self.theta.shape)} {self.theta.dtype}, "
                f"got {tuple(v.shape)} {v.dtype}"
            )
        return v


class SlopeExpansion(Expansion):
    """Expansion of θ ↦ ∇f(θ)ᵀw by f's products; a subclass with higher derivatives overrides ``third``."""

    def __init__(self, parent: Expansion, w: Tensor):
        self.theta = parent.theta
        self._parent = parent
        self._direction = parent.check_vector("w", w)

    @property
    def loss(self) -> Tensor:
        """∇fᵀw, shape (...,)."""
        return release((self._parent.grad * self._direction).sum(dim=-1), self.theta)

    @cached_property
    def grad(self) -> Tensor:
        """Hw, shape (..., d)."""
        return self._parent.hvp(self._direction)

    def hvp(self, v: Tensor) -> Tensor:
        """D³f[w, v], shape (..., d)."""
        return self._parent.third(self._direction, v)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """Raises UnsupportedError: f's expansion has no fourth derivative."""
        origin = self._parent
        while isinstance(origin, SlopeExpansion):
            origin = origin._parent
        raise UnsupportedError(
            f"{type(origin).__name__} has no derivatives above the third; define along(w), for instance as "
            "AutogradExpansion(loss, theta).along(w), or leave expand to Landscape, which differentiates loss"
        )


def along_each(point: Expansion, directions: Iterable[Tensor]) -> Expansion:
    """The expansion along one direction after another."""
    return reduce(lambda slope, w: slope.along(w), directions, point)


class AutogradExpansion(Expansion):
    """Expansion of any differentiable loss: one forward pass, its graph kept for all products.

    Each slope adds one backward pass to that graph. If θ and the direction both require grad, the slope repeats the
    forward pass, so that its products treat the direction as a constant.
    """

    def __init__(self, field: Field, theta: Tensor):
        if inside_transform():
            raise UnsupportedError(
                "expand, hvp, third and hessian cannot be called inside a torch.func transform; "
                "use loss or grad there, or differentiate grad with the transform"
            )
        self.theta = theta
        self._field = field
        self._attached = wants_graph(theta)
        # An alias of θ: the graph of a direction leads to θ and not to the alias, so products do not differentiate it.
        self._leaf = theta.view_as(theta) if self._attached else theta.detach().requires_grad_()

    @cached_property
    def _loss(self) -> Tensor:
        with torch.enable_grad():
            return self._field(self._leaf)

    @cached_property
    def _grad(self) -> Tensor:
        return self._transposed_product(self._loss, None, create_graph=True)

    def _transposed_product(self, output: Tensor, cotangent: Tensor | None, create_graph: bool) -> Tensor:
        with torch.enable_grad():
            return transposed_product(output, self._leaf, cotangent, create_graph, retain_graph=True)

    def _release(self, tensor: Tensor) -> Tensor:
        return tensor if self._attached else tensor.detach()

    def _with_new_leaf(self) -> AutogradExpansion:
        """The same expansion on a new alias of θ."""
        return AutogradExpansion(self._field, self.theta)

    @property
    def loss(self) -> Tensor:
        """f(θ), shape (...,)."""
        return self._release(self._loss)

    @property
    def grad(self) -> Tensor:
        """∇f(θ), shape (..., d)."""
        return self._release(self._grad)

    def hvp(self, v: Tensor) -> Tensor:
        """H v by one backward pass through the kept gradient graph."""
        self.check_vector("v", v)
        return self._release(self._transposed_product(self._grad, v, self._attached))

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """D³f[u, v] by two backward passes through the kept gradient graph."""
        self.check_vector("u", u)
        self.check_vector("v", v)
        return self.along(v).hvp(u)

    def along(self, w: Tensor) -> AutogradExpansion:
        """The slope ∇fᵀw, whose gradient Hw is one backward pass through the kept gradient graph."""
        self.check_vector("w", w)
        if not w.requires_grad:
            return AutogradSlope(self, w)
        return AutogradSlope(self._with_new_leaf(), w) if self._attached else AutogradSlope(self, w.detach())


class AutogradSlope(AutogradExpansion):
    """Expansion of θ ↦ ∇f(θ)ᵀw on the graph of f's expansion, by one more reverse pass."""

    def __init__(self, parent: AutogradExpansion, w: Tensor):
        self.theta = parent.theta
        self._parent = parent
        self._direction = w
        self._attached = parent._attached
        self._leaf = parent._leaf

    @cached_property
    def _loss(self) -> Tensor:
        with torch.enable_grad():
            return (self._parent._grad * self._direction).sum(dim=-1)

    @cached_property
    def _grad(self) -> Tensor:
        return self._transposed_product(self._parent._grad, self._direction, create_graph=True)

    def _with_new_leaf(self) -> AutogradExpansion:
        return AutogradSlope(self._parent._with_new_leaf(), self._direction)
