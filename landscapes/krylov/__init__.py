r"""Krylov methods on Hessian-vector products alone: functions of H, eigenpairs, densities and traces, layer by layer.

Every method takes ``product``, v (d,) ↦ Hv (d,), such as ``landscape.expand(theta).hvp``, counts its products and
estimates its error. Vectors keep their device and precision; the small projected problems are solved on the CPU in
float64.
"""

from landscapes.krylov.blocks import block_product
from landscapes.krylov.functions import KrylovResult, matrix_function, spectral_action
from landscapes.krylov.probes import Estimate, SpectralDensity, layer_traces, spectral_density, trace
from landscapes.krylov.ritz_pairs import Eigenpairs, continued_pairs, eigenpairs, random_block
from landscapes.krylov.space import KrylovSpace, Product
from landscapes.krylov.tracking import EigenpairTracker, FollowedPairs

__all__ = [
    "EigenpairTracker",
    "Eigenpairs",
    "Estimate",
    "FollowedPairs",
    "KrylovResult",
    "KrylovSpace",
    "Product",
    "SpectralDensity",
    "block_product",
    "continued_pairs",
    "eigenpairs",
    "layer_traces",
    "matrix_function",
    "random_block",
    "spectral_action",
    "spectral_density",
    "trace",
]
