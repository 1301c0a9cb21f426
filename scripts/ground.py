r"""What a script can descend, by name: toys, finite sums and networks on data, each a typed configuration.

``build(seed, dtype, device)`` gives the landscape and the θ0 that the run starts from unless the user gives another.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol

import torch
import torch.nn.functional as F
import tyro
from torch import Tensor, nn

from landscapes import (
    Cosine,
    DoubleWell,
    Landscape,
    LinearRegression,
    NoisyQuadratic,
    Product,
    Quadratic,
    QuarticWell,
    Rosenbrock,
    Saddle,
    TwoQuadratics,
)
from nets import ARCHITECTURES, NetworkLandscape, load_data

LossFunction = Callable[[Tensor, Tensor], Tensor]


class Ground(Protocol):
    """A configuration that builds what is descended."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """The landscape and its default θ0."""
        ...


def point(dtype: torch.dtype, device: str, *coordinates: float) -> Tensor:
    """A default θ0."""
    return torch.tensor(coordinates, dtype=dtype, device=device)


@dataclass(frozen=True)
class QuadraticGround:
    """Quadratic ½ θᵀHθ with a diagonal Hessian."""

    eigenvalues: tuple[float, ...] = (2.0, 0.02)
    """Eigenvalues of the Hessian."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: (−0.35, −0.2) in two dimensions (Rosca et al. 2023), all ones in others."""
        hessian = torch.diag(torch.tensor(self.eigenvalues, dtype=torch.float64))
        start = (-0.35, -0.2) if len(self.eigenvalues) == 2 else (1.0,) * len(self.eigenvalues)
        return Quadratic(hessian), point(dtype, device, *start)


@dataclass(frozen=True)
class RosenbrockGround:
    """Rosenbrock's valley (a − x)² + b(y − x²)²."""

    a: float = 1.0
    b: float = 100.0

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: (0, 0.5), on the wall of the valley."""
        return Rosenbrock(self.a, self.b), point(dtype, device, 0.0, 0.5)


@dataclass(frozen=True)
class SaddleGround:
    """A saddle: attracting along the first coordinate, escaping along the second."""

    a: float = 1.0
    b: float = 1.0

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: (1, 0.01)."""
        return Saddle(self.a, self.b), point(dtype, device, 1.0, 0.01)


@dataclass(frozen=True)
class DoubleWellGround:
    """Double well (x² − 1)²/4 + tilt·x + y²/2."""

    tilt: float = 0.0

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: (0.1, 1)."""
        return DoubleWell(tilt=self.tilt, dimension=2), point(dtype, device, 0.1, 1.0)


@dataclass(frozen=True)
class QuarticWellGround:
    """Quartic well (S/2)x² − (Q/4)x⁴ in one dimension."""

    S: float = 1.6
    """Sharpness at the bottom."""
    Q: float = 1.0
    """How fast the sharpness falls."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: 0.3."""
        return QuarticWell(self.S, self.Q), point(dtype, device, 0.3)


@dataclass(frozen=True)
class CosineGround:
    """Cosines of every coordinate."""

    amplitude: float = 1.0
    frequency: float = 1.0
    dimension: int = 2

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: 0.5 along every coordinate."""
        landscape = Cosine(self.amplitude, self.frequency, self.dimension)
        return landscape, point(dtype, device, *(0.5,) * self.dimension)


@dataclass(frozen=True)
class ProductGround:
    """Product model ½(y − a·b·x)²."""

    y: float = 1.0
    x: float = 1.0

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: (1.8, 0.1), unbalanced."""
        return Product(self.y, self.x), point(dtype, device, 1.8, 0.1)


@dataclass(frozen=True)
class TwoQuadraticsGround:
    """Two quadratic examples that pull to different minima: the smallest finite sum."""

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
        hessian = torch.diag(torch.tensor(self.eigenvalues, dtype=torch.float64))
        return NoisyQuadratic(hessian, self.examples, seed), torch.ones(len(self.eigenvalues)).to(device, dtype)


@dataclass(frozen=True)
class RegressionGround:
    """Linear regression of the labels of a real data set."""

    data: Literal["breast-cancer", "digits"] = "breast-cancer"
    examples: int | None = None
    """Class-balanced training examples; all of them by default."""

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: 0."""
        data = load_data(self.data, limit=self.examples, seed=seed)
        landscape = LinearRegression(data.inputs.flatten(1), data.targets.double())
        return landscape, torch.zeros(landscape.dimension, dtype=dtype, device=device)


@dataclass(frozen=True)
class NetGround:
    """A network on real data, full batch or mini-batches of it."""

    architecture: Literal["lenet", "mlp"] = "lenet"
    data: Literal["digits", "breast-cancer"] = "digits"
    examples: int | None = 300
    """Class-balanced training examples; None for all."""
    width: float = 0.5
    """Multiplies channels and hidden units."""
    activation: str = "tanh"
    loss: Literal["cross-entropy", "square"] = "cross-entropy"
    chunk_size: int | None = None
    """Examples whose graph is held at once; None for all."""

    def parts(self, seed: int, dtype: torch.dtype, device: str) -> tuple[nn.Module, LossFunction, Tensor, Tensor]:
        """Module, loss of each example, inputs and targets."""
        data = load_data(self.data, limit=self.examples, seed=seed)
        shape = tuple(data.inputs.shape[1:])
        build = functools.partial(ARCHITECTURES[self.architecture], shape, data.classes)
        module = build(width=self.width, activation=self.activation, seed=seed).to(device, dtype)
        loss = cross_entropy if self.loss == "cross-entropy" else square_error
        return module, loss, data.inputs.to(device, dtype), data.targets.to(device)

    def build(self, seed: int, dtype: torch.dtype, device: str) -> tuple[Landscape, Tensor]:
        """Start: the network's own random weights, drawn with the seed."""
        landscape = NetworkLandscape(*self.parts(seed, dtype, device), chunk_size=self.chunk_size)
        return landscape, landscape.theta0


def cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example, (m,)."""
    return F.cross_entropy(outputs, targets, reduction="none")


def square_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """½ Σ_c (output_c − [c = target])² of each example, (m,)."""
    return (outputs - F.one_hot(targets, outputs.shape[-1])).square().sum(dim=-1) / 2


AnyGround = (
    Annotated[QuadraticGround, tyro.conf.subcommand("quadratic")]
    | Annotated[RosenbrockGround, tyro.conf.subcommand("rosenbrock")]
    | Annotated[SaddleGround, tyro.conf.subcommand("saddle")]
    | Annotated[DoubleWellGround, tyro.conf.subcommand("double-well")]
    | Annotated[QuarticWellGround, tyro.conf.subcommand("quartic-well")]
    | Annotated[CosineGround, tyro.conf.subcommand("cosine")]
    | Annotated[ProductGround, tyro.conf.subcommand("product")]
    | Annotated[TwoQuadraticsGround, tyro.conf.subcommand("two-quadratics")]
    | Annotated[NoisyQuadraticGround, tyro.conf.subcommand("noisy-quadratic")]
    | Annotated[RegressionGround, tyro.conf.subcommand("regression")]
    | Annotated[NetGround, tyro.conf.subcommand("net")]
)
