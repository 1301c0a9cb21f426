"""Landscapes: what is descended, a loss and its derivatives."""

from landscapes.analytic import LANDSCAPES, Product, Quadratic, Rosenbrock
from landscapes.closed_form import CriticalPoint
from landscapes.errors import NotHolomorphicError, UnsupportedError
from landscapes.finite_sums import LinearRegression, NoisyQuadratic, QuadraticSum, TwoQuadratics
from landscapes.landscape import Expansion, FiniteSum, Landscape
from landscapes.separable import Cosine, DoubleWell, QuarticWell, Saddle
from landscapes.symbolic import from_sympy
from landscapes.wrappers import Counted, Regularised

__all__ = [
    "LANDSCAPES",
    "Cosine",
    "Counted",
    "CriticalPoint",
    "DoubleWell",
    "Expansion",
    "FiniteSum",
    "Landscape",
    "LinearRegression",
    "NoisyQuadratic",
    "NotHolomorphicError",
    "Product",
    "Quadratic",
    "QuadraticSum",
    "QuarticWell",
    "Regularised",
    "Rosenbrock",
    "Saddle",
    "TwoQuadratics",
    "UnsupportedError",
    "from_sympy",
]
