"""Landscapes: what is descended, a loss and its derivatives."""

from landscapes.analytic import Product, Quadratic, Rosenbrock
from landscapes.closed_form import CriticalPoint, Toy
from landscapes.errors import NotHolomorphicError, SmoothnessWarning, UnsupportedError
from landscapes.finite_sums import LinearRegression, NoisyQuadratic, QuadraticSum, TwoQuadratics
from landscapes.landscape import Expansion, FiniteSum, Landscape
from landscapes.linear_nets import CatapultModel, DeepLinearChain, MatrixFactorisation
from landscapes.modified_losses import (
    LandscapeSum,
    modified_loss,
    random_partition_loss,
    replacement_loss,
    reshuffling_loss,
)
from landscapes.registry import LANDSCAPES
from landscapes.regularisers import GradientPenalty, VariancePenalty
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
    "GradientPenalty",
    "Himmelblau",
    "Landscape",
    "LandscapeSum",
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
    "SmoothnessWarning",
    "SphericalQuotient",
    "StyblinskiTang",
    "Toy",
    "TwoQuadratics",
    "UnsupportedError",
    "VariancePenalty",
    "from_sympy",
    "modified_loss",
    "random_partition_loss",
    "replacement_loss",
    "reshuffling_loss",
]
