"""Landscapes: what is descended, a loss and its derivatives."""

from landscapes.errors import NotHolomorphicError, UnsupportedError
from landscapes.landscape import Expansion, FiniteSum, Landscape
from landscapes.wrappers import Counted, Regularised

__all__ = [
    "Counted",
    "Expansion",
    "FiniteSum",
    "Landscape",
    "NotHolomorphicError",
    "Regularised",
    "UnsupportedError",
]
