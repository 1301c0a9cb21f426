r"""Landscapes of the scripts by name: toys and finite sums (networks: network.py), each a typed configuration.

``build(seed, dtype, device)`` returns the landscape and the default start θ0.
A toy of ``LANDSCAPES`` whose parameters are numbers is its own configuration, with its values as defaults; a toy made
of tensors has a configuration class.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol, Union

import torch
import tyro
from torch import Tensor

from landscapes import (
    LANDSCAPES,
    Landscape,
    LinearRegression,
    MatrixFactorisation,
    NoisyQuadratic,
    Quadratic,
    SphericalQuotient,
    Toy,
    TwoQuadratics,
)
from landscapes.errors import check_choice, check_count
from nets import load_data
from nets.data import DATA_SETS

from .network import NetGround


class Ground(Protocol):
    """A configuration that builds a landscape."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """The landscape and its default θ0."""
        ...


def with_start(toy: Toy, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
    """A toy and its start θ0 as a tensor."""
    return toy, torch.tensor(toy.start, dtype=dtype, device=device)


def diagonal(values: tuple[float, ...]) -> Tensor:
    """The diagonal matrix of the values."""
    return torch.diag(torch.tensor(values, dtype=torch.float64))


def toy_ground(toy: Toy) -> type:
    """A configuration named after the toy's class, with the fields of the toy as options and its values as defaults."""

    def build(self: Any, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: that of the toy."""
        return with_start(self.toy, dtype, device)

    formula = " ".join((type(toy).__doc__ or "").split("\n\n")[0].split())
    members = {"build": build, "__doc__": formula}
    field = ("toy", type(toy), dataclasses.field(default=toy))
    return dataclasses.make_dataclass(f"{type(toy).__name__}Ground", [field], namespace=members, frozen=True)


@dataclass(frozen=True)
class QuadraticGround:
    """Quadratic ½ θᵀHθ with a diagonal Hessian."""

    eigenvalues: tuple[float, ...] = (2.0, 0.02)
    """Eigenvalues of the Hessian."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: (−0.35, −0.2) in two dimensions (Rosca et al. 2023), all ones in others."""
        return with_start(Quadratic(diagonal(self.eigenvalues)), dtype, device)


@dataclass(frozen=True)
class SphericalQuotientGround:
    """Half the Rayleigh quotient θᵀAθ / (2 θᵀθ) of a diagonal A: constant along every ray."""

    eigenvalues: tuple[float, ...] = (0.5, 2.0)
    """Eigenvalues of A."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: a unit vector near the last eigenvector."""
        return with_start(SphericalQuotient(diagonal(self.eigenvalues)), dtype, device)


@dataclass(frozen=True)
class MatrixFactorisationGround:
    """Matrix factorisation ½ ‖UVᵀ − M‖²_F of a diagonal M."""

    singular_values: tuple[float, ...] = (2.0, 0.5)
    """Singular values of M."""
    rank: int | None = None
    """Columns of U and V; default: the number of singular values."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: the first singular vectors times 0.1."""
        rank = len(self.singular_values) if self.rank is None else check_count("rank", self.rank)
        return with_start(MatrixFactorisation(diagonal(self.singular_values), rank), dtype, device)


@dataclass(frozen=True)
class TwoQuadraticsGround:
    """Two quadratic examples with different minima: the smallest finite sum."""

    ratio: float = 4.0
    separation: float = 2.0

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: (1, 1)."""
        landscape = TwoQuadratics(self.ratio, self.separation)
        return landscape, torch.ones(landscape.dimension, dtype=dtype, device=device)


@dataclass(frozen=True)
class NoisyQuadraticGround:
    """Quadratic as a finite sum whose gradient noise has covariance H²."""

    eigenvalues: tuple[float, ...] = (1.0, 0.1)
    examples: int = 64

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: all ones."""
        landscape = NoisyQuadratic(diagonal(self.eigenvalues), self.examples, seed)
        return landscape, torch.ones(len(self.eigenvalues)).to(device, dtype)


@dataclass(frozen=True)
class RegressionGround:
    """Linear regression of the labels of a real data set."""

    data: Annotated[str, tyro.conf.arg(help=f"One of {', '.join(DATA_SETS)}.")] = "breast-cancer"
    root: Path | None = None
    """Folder with the files of the data; default: THALWEG_DATA if they are there, else they are downloaded."""
    examples: int | None = None
    """Class-balanced training examples; default: all."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: 0."""
        data = load_data(check_choice("data", self.data, DATA_SETS), root=self.root, limit=self.examples, seed=seed)
        landscape = LinearRegression(data.inputs.flatten(1), data.targets.double())
        return landscape, torch.zeros(landscape.dimension, dtype=dtype, device=device)


OWN: dict[str, type] = {
    "quadratic": QuadraticGround,
    "spherical-quotient": SphericalQuotientGround,
    "matrix-factorisation": MatrixFactorisationGround,
    "two-quadratics": TwoQuadraticsGround,
    "noisy-quadratic": NoisyQuadraticGround,
    "regression": RegressionGround,
    "net": NetGround,
}
"""The configurations that are not toys with numerical parameters."""
GROUNDS: dict[str, type] = {name: OWN.get(name) or toy_ground(make()) for name, make in LANDSCAPES.items()} | OWN
"""Every configuration by the name of its subcommand."""

if TYPE_CHECKING:
    AnyGround = Ground  # the members are known at run time only
else:
    AnyGround = Union[  # noqa: UP007  # computed members
        tuple(Annotated[ground, tyro.conf.subcommand(name)] for name, ground in GROUNDS.items())
    ]
