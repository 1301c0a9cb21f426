r"""Sums too large for one graph: f = Σ_c f_c over chunks of the examples, with θ (..., d) one member at a time.

Loss, gradient and products are linear in f, so each is a sum over the chunks. The graph of a chunk is built, used and
freed before the next one: memory is that of one chunk, at the cost of a forward and a backward pass for every product,
and for products of a slope also the passes for its directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cached_property

import torch
from torch import Tensor

from landscapes.autodiff import Field, inside_transform, transposed_product, wants_graph
from landscapes.errors import UnsupportedError
from landscapes.expansion import AutogradExpansion, Expansion, SlopeExpansion, along_each


def total(terms: Iterable[Tensor]) -> Tensor:
    """Σ of at least one term; a generator's terms are computed one at a time."""
    terms = iter(terms)
    result = next(terms)
    for term in terms:
        result = result + term
    return result


def each_member(function: Callable[..., Tensor], theta: Tensor, *others: Tensor) -> Tensor:
    """``function`` of each member of θ (..., d) and others (..., m), leading dimensions broadcast, in a loop."""
    rows = (theta, *others)
    if all(row.ndim == 1 for row in rows):
        return function(*rows)
    shapes = [row.shape[:-1] for row in rows]
    try:
        shape = torch.broadcast_shapes(*shapes)
    except RuntimeError as error:
        raise ValueError(f"leading dimensions must broadcast with theta's, got {[tuple(s) for s in shapes]}") from error
    members = [row.expand(*shape, row.shape[-1]).reshape(-1, row.shape[-1]).unbind() for row in rows]
    return torch.stack([function(*member) for member in zip(*members, strict=True)]).unflatten(0, shape)


class ChunkedExpansion(Expansion):
    r"""Expansion of Σ_c f_c, each f_c a field of one member (d,) → (), with the graph of one chunk at a time.

    Loss and gradient share a forward pass and are computed once; ``hvp``, ``third``, ``hessian`` and the results of
    slopes rebuild each chunk's graph. If θ requires grad, results carry their graphs, and all chunks' graphs are kept.
    """

    def __init__(self, fields: list[Field], theta: Tensor):
        if inside_transform():
            raise UnsupportedError(
                "expand, hvp, third and hessian cannot be called inside a torch.func transform; "
                "use loss or grad there, or differentiate grad with the transform"
            )
        self.theta = theta
        self._fields = fields

    @cached_property
    def _loss_and_grad(self) -> Tensor:
        """Loss and gradient in one tensor, (..., 1 + d), by one pass over the chunks."""
        return each_member(lambda x: total(loss_and_grad(field, x) for field in self._fields), self.theta)

    @property
    def loss(self) -> Tensor:
        """Σ_c f_c(θ), shape (...,)."""
        return self._loss_and_grad[..., 0]

    @property
    def grad(self) -> Tensor:
        """Σ_c ∇f_c(θ), shape (..., d)."""
        return self._loss_and_grad[..., 1:]

    def hvp(self, v: Tensor) -> Tensor:
        """Σ_c H_c v, one chunk's graph at a time."""
        self.check_vector("v", v)
        return self._walk(lambda point, w: point.hvp(w), v)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """Σ_c D³f_c[u, v], one chunk's graph at a time."""
        self.check_vector("u", u)
        self.check_vector("v", v)
        return self._walk(lambda point, a, b: point.third(a, b), u, v)

    def along(self, w: Tensor) -> Expansion:
        """The slope ∇fᵀw, which rebuilds each chunk's graph for every result."""
        return ChunkedSlope(self, self, (), w)

    def hessian(self) -> Tensor:
        """Σ_c H_c, with one graph a chunk for all d products."""
        return self._walk(lambda point: point.hessian())

    def _walk(self, product: Callable[..., Tensor], *vectors: Tensor) -> Tensor:
        """Σ_c ``product`` of the chunk's expansion and the vectors (..., d), for each member."""
        return each_member(
            lambda x, *rows: total(product(AutogradExpansion(f, x), *rows) for f in self._fields), self.theta, *vectors
        )


class ChunkedSlope(SlopeExpansion):
    """Expansion of θ ↦ Σ_c D^m f_c[w_1, …, w_m]: a slope of a sum over chunks, or of such a slope, along w = w_m."""

    def __init__(self, origin: ChunkedExpansion, parent: Expansion, before: tuple[Tensor, ...], w: Tensor):
        super().__init__(parent, w)
        self._origin = origin
        self._directions = (*before, w)

    def third(self, u: Tensor, v: Tensor) -> Tensor:
        """Σ_c D^{m+3}f_c[w_1, …, w_m, u, v], one chunk's graph at a time."""
        self.check_vector("u", u)
        self.check_vector("v", v)

        def product(point: Expansion, *rows: Tensor) -> Tensor:
            *directions, a, b = rows
            return along_each(point, directions).third(a, b)

        return self._origin._walk(product, *self._directions, u, v)

    def along(self, w: Tensor) -> Expansion:
        return ChunkedSlope(self._origin, self, self._directions, w)

    def hessian(self) -> Tensor:
        """Σ_c D^{m+2}f_c[w_1, …, w_m], with one graph a chunk for all d products."""
        return self._origin._walk(lambda point, *rows: along_each(point, rows).hessian(), *self._directions)


def loss_and_grad(field: Field, theta: Tensor) -> Tensor:
    """f(θ) and ∇f(θ) in one vector (1 + d,) for θ (d,), attached to θ only where θ requires grad."""
    attached = wants_graph(theta)
    with torch.enable_grad():
        leaf = theta if attached else theta.detach().requires_grad_()
        value = field(leaf)
        gradient = transposed_product(value, leaf, None, create_graph=attached)
    return torch.cat([(value if attached else value.detach()).reshape(1), gradient])
