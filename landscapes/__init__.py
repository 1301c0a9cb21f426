"""Landscapes: what is descended, a loss and its derivatives."""

from landscapes.analytic import Product, Quadratic, Rosenbrock
from landscapes.closed_form import CriticalPoint, Toy
from landscapes.errors import NotHolomorphicError, UnsupportedError
from landscapes.finite_sums import LinearRegression, NoisyQuadratic, QuadraticSum, TwoQuadratics
from landscapes.landscape import Expansion, FiniteSum, Landscape
from landscapes.linear_nets import CatapultModel, DeepLinearChain, MatrixFactorisation
from landscapes.registry import LANDSCAPES
from landscapes.separable import Cosine, DoubleWell, QuarticWell, Saddle, StyblinskiTang
from landscapes.spherical import SphericalQuotient
from landscapes.surfaces import Beale, Himmelblau, MonkeySaddle, MuellerBrown
from landscapes.symbolic import from_sympy
from landscapes.valleys import BarrierValley, BumpyBasin, SharpFlatWells
from landscapes.wrappers import Counted, Regularised

__all__ = [
    "LANDSCAPES",
    "BarrierValley",
    "Beale",
    "BumpyBasin",
    "CatapultModel",
    "Cosine",
    "Counted",
    "CriticalPoint",
    "DeepLinearChain",
    "DoubleWell",
    "Expansion",
    "FiniteSum",
    "Himmelblau",
    "Landscape",
    "LinearRegression",
    "MatrixFactorisation",
    "MonkeySaddle",
    "MuellerBrown",
    "NoisyQuadratic",
    "NotHolomorphicError",
    "Product",
    "Quadratic",
    "QuadraticSum",
    "QuarticWell",
    "Regularised",
    "Rosenbrock",
    "Saddle",
    "SharpFlatWells",
    "SphericalQuotient",
    "StyblinskiTang",
    "Toy",
    "TwoQuadratics",
    "UnsupportedError",
    "from_sympy",
]
