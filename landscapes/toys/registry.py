r"""The closed-form toys by name, with the default parameters of scripts and tests."""

from __future__ import annotations

from collections.abc import Callable

import torch

from landscapes.references import resolve_references
from landscapes.toys.closed_form import Toy
from landscapes.toys.linear_nets import CatapultModel, DeepLinearChain, MatrixFactorisation, Product
from landscapes.toys.quadratic import Quadratic
from landscapes.toys.separable import Cosine, DoubleWell, QuarticWell, Saddle, StyblinskiTang
from landscapes.toys.spherical import SphericalQuotient
from landscapes.toys.surfaces import Beale, Himmelblau, MonkeySaddle, MuellerBrown
from landscapes.toys.valleys import BarrierValley, BumpyBasin, Rosenbrock, SharpFlatWells

ENTRIES: dict[str, str | Callable[[], Toy]] = {
    "quadratic": lambda: Quadratic(torch.diag(torch.tensor([2.0, 0.02], dtype=torch.float64))),
    "saddle": Saddle,
    "monkey-saddle": MonkeySaddle,
    "double-well": lambda: DoubleWell(dimension=2),
    "tilted-double-well": lambda: DoubleWell(tilt=0.2, dimension=2),
    "quartic-well": lambda: QuarticWell(S=1.6, Q=1.0),
    "cosine": Cosine,
    "styblinski-tang": StyblinskiTang,
    "rosenbrock": Rosenbrock,
    "himmelblau": Himmelblau,
    "beale": Beale,
    "mueller-brown": MuellerBrown,
    "barrier-valley": BarrierValley,
    "bumpy-basin": BumpyBasin,
    "sharp-flat-wells": SharpFlatWells,
    "spherical-quotient": lambda: SphericalQuotient(torch.diag(torch.tensor([0.5, 2.0], dtype=torch.float64))),
    "product": Product,
    "deep-linear-chain": DeepLinearChain,
    "matrix-factorisation": lambda: MatrixFactorisation(
        torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64)), rank=2
    ),
    "catapult": CatapultModel,
}
"""Classes, functions or references by name; a new one is a line here (docs/extending.md)."""
LANDSCAPES: dict[str, Callable[[], Toy]] = resolve_references(ENTRIES)
"""Toys by name; the quadratic is from Rosca et al. 2023 (arXiv 2302.01952)."""
