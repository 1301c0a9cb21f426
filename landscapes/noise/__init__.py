r"""Gradient noise: models that drive flows and descents, and its covariance as an operator with diagnostics."""

from landscapes.noise.analytic import AnalyticNoise, ConstantNoise, noise_from_covariance
from landscapes.noise.base import GradientNoise, ito_correction
from landscapes.noise.covariance import CovarianceOperator, NoiseEstimate, noise_covariance
from landscapes.noise.diagnostics import alignment, noise_along, noise_scales, subspace_overlap
from landscapes.noise.eigenpairs import NoiseEigenpairs, top_eigenpairs
from landscapes.noise.label import LabelNoise
from landscapes.noise.minibatch import MinibatchNoise
from landscapes.noise.roots import IndefiniteCovarianceError
from landscapes.noise.spectrum import NoiseSpectrum, layer_spectra, noise_spectrum, noise_threshold
from landscapes.noise.surrogates import (
    DiagonalNoise,
    DiagonalSurrogate,
    FrozenNoise,
    IsotropicNoise,
    IsotropicSurrogate,
    freeze,
)
from landscapes.noise.tails import batch_kurtosis, hill_index, random_directions, tail_check
from landscapes.noise.trace import covariance_diagonal, covariance_matrix, covariance_trace
from landscapes.noise.variance_reduced import VarianceReducedNoise

__all__ = [
    "AnalyticNoise",
    "ConstantNoise",
    "CovarianceOperator",
    "DiagonalNoise",
    "DiagonalSurrogate",
    "FrozenNoise",
    "GradientNoise",
    "IndefiniteCovarianceError",
    "IsotropicNoise",
    "IsotropicSurrogate",
    "LabelNoise",
    "MinibatchNoise",
    "NoiseEigenpairs",
    "NoiseEstimate",
    "NoiseSpectrum",
    "VarianceReducedNoise",
    "alignment",
    "batch_kurtosis",
    "covariance_diagonal",
    "covariance_matrix",
    "covariance_trace",
    "freeze",
    "hill_index",
    "ito_correction",
    "layer_spectra",
    "noise_along",
    "noise_covariance",
    "noise_from_covariance",
    "noise_scales",
    "noise_spectrum",
    "noise_threshold",
    "random_directions",
    "subspace_overlap",
    "tail_check",
    "top_eigenpairs",
]
