"""Landscapes: loss functions and their derivatives."""

from landscapes.errors import NotHolomorphicError, SmoothnessWarning, UnsupportedError
from landscapes.expansion import Expansion
from landscapes.landscape import FiniteSum, Landscape
from landscapes.toys.closed_form import CriticalPoint, Toy
from landscapes.toys.finite_sums import LinearRegression, NoisyQuadratic, QuadraticSum, TwoQuadratics
from landscapes.toys.linear_nets import CatapultModel, DeepLinearChain, MatrixFactorisation, Product
from landscapes.toys.quadratic import Quadratic
from landscapes.toys.registry import LANDSCAPES
from landscapes.toys.separable import Cosine, DoubleWell, QuarticWell, Saddle, StyblinskiTang
from landscapes.toys.spherical import SphericalQuotient
from landscapes.toys.surfaces import Beale, Himmelblau, MonkeySaddle, MuellerBrown
from landscapes.toys.symbolic import from_sympy
from landscapes.toys.valleys import BarrierValley, BumpyBasin, Rosenbrock, SharpFlatWells
from landscapes.wrappers.counted import Counted
from landscapes.wrappers.gradient_penalties import GradientPenalty, VariancePenalty
from landscapes.wrappers.modified_losses import (
    LandscapeSum,
    modified_loss,
    random_partition_loss,
    replacement_loss,
    reshuffling_loss,
)
from landscapes.wrappers.regularised import Regularised

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
