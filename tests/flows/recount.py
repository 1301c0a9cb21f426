"""A landscape that recounts its oracle calls by itself: the oracle of every bill."""

from collections import Counter
from math import prod

from torch import broadcast_shapes

from landscapes import Expansion, FiniteSum, Landscape
from landscapes.autodiff import inside_transform

KINDS = ["loss", "grad", "hvp", "third"]


class Point(Expansion):
    """An expansion whose derivatives go to ``note(order, products)``; ``depth`` directions are frozen in it."""

    def __init__(self, inner, note, above=None, depth=0):
        self.theta, self.inner, self.note, self.above, self.depth = inner.theta, inner, note, above, depth
        self.read = set()

    def once(self, order):
        if order not in self.read:
            self.read.add(order)
            self.note(order + self.depth, 1)

    @property
    def loss(self):
        if self.above is None:
            self.once(0)
        else:
            self.above.once(1)  # the loss of a slope is a product with the gradient of the point
        return self.inner.loss

    @property
    def grad(self):
        self.once(1)
        return self.inner.grad

    def hvp(self, v):
        self.note(2 + self.depth, 1)
        return self.inner.hvp(v)

    def third(self, u, v):
        self.note(3 + self.depth, 1)
        return self.inner.third(u, v)

    def along(self, w):
        return Point(self.inner.along(w), self.note, self, self.depth + 1)

    def hessian(self):
        self.note(2 + self.depth, self.theta.shape[-1])
        return self.inner.hessian()


class Recount(Landscape):
    """``inner``, every call counted in ``tally`` in units of the full sum and of one member."""

    def __init__(self, inner, tally=None, unit=1):
        self.inner, self.tally, self.unit = inner, Counter() if tally is None else tally, unit

    @property
    def dimension(self):
        return self.inner.dimension

    @property
    def holomorphic(self):
        return self.inner.holomorphic

    @property
    def smoothness(self):
        return self.inner.smoothness

    def with_parts(self, change):
        return self  # one landscape

    def note(self, order, members, share=1):
        kind = KINDS[order] if order < len(KINDS) and not inside_transform() else "higher"
        self.tally[kind] += self.unit * share * members

    def loss(self, theta):
        self.note(0, prod(theta.shape[:-1]))
        return self.inner.loss(theta)

    def grad(self, theta):
        self.note(1, prod(theta.shape[:-1]))
        return self.inner.grad(theta)

    def expand(self, theta):
        members = prod(theta.shape[:-1])
        return Point(self.inner.expand(theta), lambda order, products: self.note(order, members * products))


class RecountSum(Recount, FiniteSum):
    """A finite sum that recounts: m of N examples are m/N."""

    @property
    def size(self):
        return self.inner.size

    def examples(self, order, theta, index):
        shape = theta.shape[:-1] if index is None else broadcast_shapes(theta.shape[:-1], index.shape[:-1])
        self.note(order, prod(shape), 1 if index is None else index.shape[-1] / self.size)

    def losses(self, theta, index=None):
        self.examples(0, theta, index)
        return self.inner.losses(theta, index)

    def batch_grad(self, theta, index):
        self.examples(1, theta, index)
        return self.inner.batch_grad(theta, index)

    def weighted_grad(self, theta, weights):
        self.note(1, prod(broadcast_shapes(theta.shape[:-1], weights.shape[:-1])))
        return self.inner.weighted_grad(theta, weights)

    def example_grads(self, theta, index=None):
        self.examples(1, theta, index)
        return self.inner.example_grads(theta, index)

    def restrict(self, index):
        return RecountSum(self.inner.restrict(index), self.tally, self.unit * len(index) / self.size)


def billed(cost):
    """The oracle calls of a cost, zeros left out."""
    return {kind: float(cost[kind]) for kind in (*KINDS, "higher") if cost[kind]}


def recounted(*landscapes):
    """The sum of some tallies, zeros left out."""
    total = Counter()
    for tally in {id(landscape.tally): landscape.tally for landscape in landscapes}.values():
        total.update(tally)
    return {kind: float(number) for kind, number in total.items() if number}
