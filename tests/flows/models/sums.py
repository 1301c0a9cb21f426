"""Two losses that are means over eight examples, for epochs that are walked by hand, and the places they start at."""

import functools

from landscapes import QuadraticSum
from nets import MLP, NetworkLandscape
from tests.tensors import draw


def quadratics(size=8):
    """Examples in the plane whose Hessians do not commute."""
    a = draw(1, size, 2, 2)
    return QuadraticSum(a + a.mT, draw(2, size, 2))


@functools.cache
def network():
    """A tanh MLP of 13 weights on 8 points, with squares for a loss."""
    inputs, targets = draw(3, 8, 2), draw(4, 8, 1)
    return NetworkLandscape(MLP((2, 3, 1)).double(), lambda o, y: (o - y).square().sum(-1), inputs, targets)


def at(landscape, seed=5, *batch):
    """Random positions, half a unit from zero."""
    return 0.5 * draw(seed, *batch, landscape.dimension)
