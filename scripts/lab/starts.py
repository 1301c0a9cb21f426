"""Start, default learning rate and title of a run."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, eigsh
from torch import Tensor

from landscapes import FiniteSum, Landscape, Toy
from nets import GhostBatchLandscape

from .grounds import Ground
from .models import DENSE
from .network import NetGround


def build_start(given: tuple[float, ...] | None, landscape: Landscape, default: Tensor) -> Tensor:
    """θ0 as given, or the default start of the landscape."""
    if given is None:
        return default
    if len(given) != landscape.dimension:
        raise ValueError(f"--theta0 must have {landscape.dimension} coordinates, got {len(given)}")
    return torch.tensor(given, dtype=torch.float64).to(default)


def gentle_rate(landscape: Landscape, theta0: Tensor) -> float:
    """Half the inverse of the largest curvature at θ0 and at the critical points of a toy, so hλ ≤ ½; at most 1."""
    if landscape.dimension > DENSE:
        curvature = largest_curvature(landscape, theta0)
    else:
        points = [theta0.double()]
        if isinstance(landscape, Toy):
            points += [point.position.to(theta0.device) for point in landscape.critical_points()]
        curvature = float(torch.linalg.eigvalsh(landscape.hessian(torch.stack(points))).abs().max())
    return min(1.0, float(f"{0.5 / curvature:.2g}")) if curvature > 0 else 1.0


def largest_curvature(landscape: Landscape, theta0: Tensor) -> float:
    """The Hessian's eigenvalue of largest magnitude at θ0, to one per cent, by ARPACK on Hessian-vector products."""
    point = landscape.expand(theta0)

    def product(v: np.ndarray) -> np.ndarray:
        return point.hvp(torch.from_numpy(v).to(theta0)).double().cpu().numpy()

    operator = LinearOperator((landscape.dimension,) * 2, matvec=product, dtype=np.float64)
    ones = np.ones(landscape.dimension)  # ARPACK's own start is random: the rate must not change between runs
    return float(abs(eigsh(operator, k=1, which="LM", v0=ones, tol=1e-2, return_eigenvectors=False)[0]))


def describe(ground: Ground, landscape: Landscape) -> str:
    """Name, dimension and examples of the landscape, on one line."""
    examples = f", a mean over {landscape.size}" if isinstance(landscape, FiniteSum) else ""
    name = type(landscape).__name__
    if isinstance(ground, NetGround):
        name, examples = f"{ground.architecture} on {ground.chosen.data}", f"{examples} examples"
        if isinstance(landscape, GhostBatchLandscape):
            batches, each = landscape.ghost_batches.shape
            examples = f", a mean over {batches} ghost batches of {each}"
    return f"{name}, {landscape.dimension:,} parameters{examples}"
