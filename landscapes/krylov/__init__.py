r"""Krylov methods on Hessian-vector products alone: functions of H, eigenpairs, densities and traces, layer by layer.

Every method asks for ``product``, v (d,) ↦ Hv (d,), such as ``landscape.expand(theta).hvp``, counts its products, and
says how far it is from converged. Vectors stay on their device and in their precision; projections, which are small,
are solved on the CPU in float64.
"""

from landscapes.krylov.functions import KrylovResult, matrix_function, spectral_action
from landscapes.krylov.space import KrylovSpace, Product

__all__ = ["KrylovResult", "KrylovSpace", "Product", "matrix_function", "spectral_action"]
