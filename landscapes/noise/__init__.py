r"""The noise of stochastic gradients: as what drives a flow or a descent, and as an operator that is looked at."""

from landscapes.noise.base import GradientNoise, ito_correction
from landscapes.noise.minibatch import MinibatchNoise
from landscapes.noise.trace import covariance_diagonal, covariance_matrix, covariance_trace

__all__ = [
    "GradientNoise",
    "MinibatchNoise",
    "covariance_diagonal",
    "covariance_matrix",
    "covariance_trace",
    "ito_correction",
]
