r"""What is measured at one θ: the spectrum of D over single examples, ‖∇f‖², errors; kept on disk as tensors."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscapes.noise import CovarianceOperator, NoiseSpectrum, noise_covariance, noise_spectrum
from nets import NetworkLandscape

from ..lab.store import Store, Tensors
from .training import Network, error_and_loss

WHOLE = 4000  # sides up to which all eigenvalues are found by a dense solver
KEPT_BYTES = 2**29  # of gradients that are held, so that every layer's spectrum takes no more passes
MEMORY = 2**31  # bytes that a spectrum may take beside them
NUMBERS = ("dimension", "size", "trace", "threshold", "residual", "whole", "converged", "passes", "bytes")
MEASURED = ("square", "batch trace", "training error", "training loss", "test error", "test loss")


@dataclass(frozen=True, eq=False)
class Look:
    """D's spectrum at one θ, of half its images, of every layer, and the numbers of ``MEASURED``.

    ``square``: ‖∇f‖² over all training images; ``batch trace``: b·tr Cov of mini-batches' gradients.
    """

    spectrum: NoiseSpectrum
    half: NoiseSpectrum
    layers: dict[str, NoiseSpectrum]
    measured: dict[str, float]

    @property
    def largest(self) -> float:
        """λ_max."""
        return float(self.spectrum.eigenvalues[0])

    @property
    def noise_scale(self) -> float:
        """tr D/‖∇f‖², the batch size at which noise and mean weigh the same (McCandlish et al. 2018)."""
        square = self.measured["square"]
        return self.spectrum.trace / square if square > 0 else math.inf

    @property
    def score(self) -> float:
        """Chaudhari & Soatto's: rank(D)/d + var λ(D), eigenvalues below the threshold taken as it."""
        return self.spectrum.rank_fraction + self.spectrum.clipped_std**2


def solver(operator: CovarianceOperator) -> str:
    """The method of a spectrum: all eigenvalues where the smaller of D and the Gram matrix is small."""
    side = min(operator.size, operator.dimension)
    if side > WHOLE:
        return "auto"
    return "dense" if operator.dimension <= operator.size else "gram"


def spectrum_of(operator: CovarianceOperator, seed: int) -> NoiseSpectrum:
    """The operator's spectrum by that method."""
    return noise_spectrum(operator, method=solver(operator), memory=MEMORY, seed=seed)


def covariance_of(landscape: NetworkLandscape, theta: Tensor) -> CovarianceOperator:
    """D over the landscape's examples, their gradients held where they fit."""
    size = landscape.size * theta.nbytes
    return noise_covariance(landscape, theta, keep_gradients=size <= KEPT_BYTES)


def look_at(network: Network, theta: Tensor, images: int, layers: bool) -> Look:
    """Measure a network at θ, D over that many of its training images."""
    module = network.frozen(theta)
    chosen = network.examples(module, network.subset(images))
    operator = covariance_of(chosen, theta)
    first = torch.randperm(images, generator=torch.Generator().manual_seed(network.seed))[: max(images // 2, 1)]
    parts = {}
    if layers:
        blocks = {name: operator.layer(part) for name, part in chosen.layers.items()}
        parts = {name: spectrum_of(block, network.seed) for name, block in blocks.items()}
    return Look(
        spectrum_of(operator, network.seed),
        spectrum_of(covariance_of(chosen.restrict(first), theta), network.seed),
        parts,
        measured_at(network, module, theta),
    )


def measured_at(network: Network, module: nn.Module, theta: Tensor) -> dict[str, float]:
    """The numbers of ``MEASURED``, of a network whose frozen module is given."""
    train, test = (network.examples(module, data) for data in (network.train, network.test))
    square = float(train.grad(theta).double().square().sum())
    fitted = error_and_loss(train, theta, network.train.targets)
    held_out = error_and_loss(test, theta, network.test.targets)
    values = (square, network.batch_trace(theta), *fitted, *held_out)
    return dict(zip(MEASURED, values, strict=True))


def packed(spectrum: NoiseSpectrum, name: str) -> Tensors:
    """A spectrum as tensors."""
    numbers = torch.tensor([float(getattr(spectrum, key)) for key in NUMBERS], dtype=torch.float64)
    return {f"{name} eigenvalues": spectrum.eigenvalues, f"{name} numbers": numbers}


def unpacked(tensors: Tensors, name: str) -> NoiseSpectrum:
    """The spectrum that was packed; its method is not kept."""
    found = dict(zip(NUMBERS, tensors[f"{name} numbers"].tolist(), strict=True))
    return NoiseSpectrum(
        eigenvalues=tensors[f"{name} eigenvalues"],
        dimension=int(found["dimension"]),
        size=int(found["size"]),
        trace=found["trace"],
        threshold=found["threshold"],
        whole=bool(found["whole"]),
        residual=found["residual"],
        converged=bool(found["converged"]),
        method="stored",
        passes=found["passes"],
        bytes=int(found["bytes"]),
    )


LAYER = "layer "


def kept_look(store: Store, name: str, measure: Callable[[], Look]) -> Look:
    """The look of that name: read where it is on disk, else measured and written."""

    def compute() -> Tensors:
        look = measure()
        tensors = packed(look.spectrum, "whole") | packed(look.half, "half")
        for i, (layer, spectrum) in enumerate(look.layers.items()):
            tensors |= packed(spectrum, f"{LAYER}{i:03d} {layer}")
        return tensors | {key: torch.tensor(value, dtype=torch.float64) for key, value in look.measured.items()}

    tensors = store.part(name, compute)
    suffix = " numbers"
    names = sorted(key.removesuffix(suffix) for key in tensors if key.startswith(LAYER) and key.endswith(suffix))
    return Look(
        unpacked(tensors, "whole"),
        unpacked(tensors, "half"),
        {key.removeprefix(LAYER).partition(" ")[2]: unpacked(tensors, key) for key in names},
        {key: float(tensors[key]) for key in MEASURED},
    )


@dataclass(frozen=True)
class Statistic:
    """A mean over seeds and its standard error, NaN for one seed."""

    mean: float
    error: float


def over_seeds(values: Sequence[float]) -> Statistic:
    """Mean and standard error."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2 or not math.isfinite(mean):
        return Statistic(mean, math.nan)
    spread = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return Statistic(mean, math.sqrt(spread / n))
