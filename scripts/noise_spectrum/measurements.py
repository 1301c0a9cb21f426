r"""Measurements at one θ: the spectrum of D over single examples, ‖∇f‖², errors; stored on disk as tensors."""

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

WHOLE = 4000  # largest side for which a dense solver computes all eigenvalues
KEPT_BYTES = 2**29  # limit of stored gradients, which save passes for the spectra of the layers
MEMORY = 2**31  # bytes of a spectrum in addition to them
NUMBERS = ("dimension", "size", "trace", "threshold", "residual", "whole", "converged", "passes", "bytes")
MEASURED = ("square", "batch trace", "training error", "training loss", "test error", "test loss")


@dataclass(frozen=True, eq=False)
class NoiseMeasurement:
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
        """tr D/‖∇f‖², the batch size at which noise and mean are equal (McCandlish et al. 2018)."""
        square = self.measured["square"]
        return self.spectrum.trace / square if square > 0 else math.inf

    @property
    def score(self) -> float:
        """Chaudhari & Soatto's score rank(D)/d + var λ(D), with eigenvalues below the threshold set to it."""
        return self.spectrum.rank_fraction + self.spectrum.clipped_std**2


def solver(operator: CovarianceOperator) -> str:
    """The method of a spectrum: all eigenvalues if the smaller of D and the Gram matrix is small."""
    side = min(operator.size, operator.dimension)
    if side > WHOLE:
        return "auto"
    return "dense" if operator.dimension <= operator.size else "gram"


def spectrum_of(operator: CovarianceOperator, seed: int) -> NoiseSpectrum:
    """The operator's spectrum by that method."""
    return noise_spectrum(operator, method=solver(operator), memory=MEMORY, seed=seed)


def covariance_of(landscape: NetworkLandscape, theta: Tensor) -> CovarianceOperator:
    """D over the landscape's examples, with their gradients stored if they fit."""
    size = landscape.size * theta.nbytes
    return noise_covariance(landscape, theta, keep_gradients=size <= KEPT_BYTES)


def measure_at(network: Network, theta: Tensor, images: int, layers: bool) -> NoiseMeasurement:
    """Measure a network at θ, D over that many of its training images."""
    module = network.evaluation_module(theta)
    chosen = network.examples(module, network.subset(images))
    operator = covariance_of(chosen, theta)
    first = torch.randperm(images, generator=torch.Generator().manual_seed(network.seed))[: max(images // 2, 1)]
    parts = {}
    if layers:
        blocks = {name: operator.layer(part) for name, part in chosen.layers.items()}
        parts = {name: spectrum_of(block, network.seed) for name, block in blocks.items()}
    return NoiseMeasurement(
        spectrum_of(operator, network.seed),
        spectrum_of(covariance_of(chosen.restrict(first), theta), network.seed),
        parts,
        numbers_at(network, module, theta),
    )


def numbers_at(network: Network, module: nn.Module, theta: Tensor) -> dict[str, float]:
    """The numbers of ``MEASURED``, for a network with its module at θ in evaluation mode."""
    train, test = (network.examples(module, data) for data in (network.train, network.test))
    square = float(train.grad(theta).double().square().sum())
    fitted = error_and_loss(train, theta, network.train.targets)
    held_out = error_and_loss(test, theta, network.test.targets)
    values = (square, network.batch_trace(theta), *fitted, *held_out)
    return dict(zip(MEASURED, values, strict=True))


def pack_spectrum(spectrum: NoiseSpectrum, name: str) -> Tensors:
    """A spectrum as tensors."""
    numbers = torch.tensor([float(getattr(spectrum, key)) for key in NUMBERS], dtype=torch.float64)
    return {f"{name} eigenvalues": spectrum.eigenvalues, f"{name} numbers": numbers}


def unpack_spectrum(tensors: Tensors, name: str) -> NoiseSpectrum:
    """The spectrum stored by ``pack_spectrum``, without its method."""
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


def stored_measurement(store: Store, name: str, measure: Callable[[], NoiseMeasurement]) -> NoiseMeasurement:
    """The measurement of that name, read from disk if present, else computed and written."""

    def compute() -> Tensors:
        m = measure()
        tensors = pack_spectrum(m.spectrum, "whole") | pack_spectrum(m.half, "half")
        for i, (layer, spectrum) in enumerate(m.layers.items()):
            tensors |= pack_spectrum(spectrum, f"{LAYER}{i:03d} {layer}")
        return tensors | {key: torch.tensor(value, dtype=torch.float64) for key, value in m.measured.items()}

    tensors = store.part(name, compute)
    suffix = " numbers"
    names = sorted(key.removesuffix(suffix) for key in tensors if key.startswith(LAYER) and key.endswith(suffix))
    return NoiseMeasurement(
        unpack_spectrum(tensors, "whole"),
        unpack_spectrum(tensors, "half"),
        {key.removeprefix(LAYER).partition(" ")[2]: unpack_spectrum(tensors, key) for key in names},
        {key: float(tensors[key]) for key in MEASURED},
    )


@dataclass(frozen=True)
class SeedStatistic:
    """A mean over seeds and its standard error, NaN for one seed."""

    mean: float
    error: float


def over_seeds(values: Sequence[float]) -> SeedStatistic:
    """Mean and standard error over seeds."""
    n = len(values)
    mean = math.fsum(values) / n
    if n < 2 or not math.isfinite(mean):
        return SeedStatistic(mean, math.nan)
    spread = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return SeedStatistic(mean, math.sqrt(spread / n))
