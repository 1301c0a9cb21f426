"""The tables of spectra along training, with the numbers of the paper."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from landscapes.noise import NoiseSpectrum

from ..lab.experiment import align_rows
from .common import format_seeds
from .measurements import NoiseMeasurement


@dataclass(frozen=True)
class Published:
    """The paper's numbers for a network: λ(D) mean ± deviation with clipping, rank in % of d."""

    mean: float
    std: float
    rank: float


PUBLISHED = {
    ("small-allcnn", "cifar-10"): Published(0.27, 0.84, 0.34),
    ("small-allcnn", "cifar-100"): Published(0.98, 2.16, 0.47),
    ("small-lenet", "mnist"): Published(0.3e-3, 2.11e-3, 1.8),
    ("small-fc", "mnist"): Published(0.9e-3, 18.5e-3, 0.6),
}
"""Chaudhari & Soatto 2018, figure 1."""


Stages = Sequence[Sequence[NoiseMeasurement]]
"""Measurements by fraction of training, then by seed."""


def columns(
    stages: Stages, at: Sequence[float], read: Mapping[str, Callable[[NoiseMeasurement], float]]
) -> list[list[str]]:
    """A heading and a row for each fraction of training: means over seeds with standard errors."""
    rows = [["training", *read]]
    for fraction, measurements in zip(at, stages, strict=True):
        rows.append(
            [f"{100 * fraction:g} %", *(format_seeds([value(m) for m in measurements]) for value in read.values())]
        )
    return rows


def training_table(stages: Stages, at: Sequence[float]) -> str:
    """Losses, errors, traces and the noise scale."""
    read: dict[str, Callable[[NoiseMeasurement], float]] = {
        "loss": lambda m: m.measured["training loss"],
        "training error, %": lambda m: 100 * m.measured["training error"],
        "test error, %": lambda m: 100 * m.measured["test error"],
        "tr D": lambda m: m.spectrum.trace,
        "b tr Cov, batches": lambda m: m.measured["batch trace"],
        "‖∇f‖²": lambda m: m.measured["square"],
        "tr D/‖∇f‖²": lambda m: m.noise_scale,
    }
    return align_rows(columns(stages, at, read))


SPECTRUM: dict[str, Callable[[NoiseSpectrum], float]] = {
    "λ mean": lambda spectrum: spectrum.mean,
    "λ deviation": lambda spectrum: spectrum.std,
    "threshold": lambda spectrum: spectrum.threshold,
    "clipped mean": lambda spectrum: spectrum.clipped_mean,
    "clipped deviation": lambda spectrum: spectrum.clipped_std,
    "rank": lambda spectrum: spectrum.rank,
    "rank/d, %": lambda spectrum: 100 * spectrum.rank_fraction,
}


def spectrum_table(stages: Stages, at: Sequence[float], published: Published | None) -> str:
    """Mean and deviation of λ(D) over all d, with and without clipping at the threshold; rank; the paper's numbers."""
    read: dict[str, Callable[[NoiseMeasurement], float]] = {"λ_max": lambda m: m.largest}
    for name, value in SPECTRUM.items():
        read[name] = lambda m, value=value: value(m.spectrum)  # type: ignore[misc]
    read["rank, half the images"] = lambda m: m.half.rank
    rows = columns(stages, at, read)
    if published is not None:
        said = {
            "clipped mean": f"{published.mean:.3g}",
            "clipped deviation": f"{published.std:.3g}",
            "rank/d, %": f"{published.rank:.3g}",
        }
        rows.append(["the paper's", *(said.get(name, "") for name in read)])
    notes = {note(m.spectrum) for measurements in stages for m in measurements} - {""}
    return "\n".join([align_rows(rows), *sorted(notes)])


def note(spectrum: NoiseSpectrum) -> str:
    """Remark on a spectrum that is not complete."""
    if not spectrum.converged:
        return "a spectrum did not converge: its rank is a lower bound"
    return "" if spectrum.whole else "eigenvalues below the threshold were not all found: deviations are to within 1 %"


def layer_table(runs: Sequence[Mapping[str, NoiseSpectrum]]) -> str:
    """The diagonal blocks of D at the end of training."""
    chosen = ("λ mean", "λ deviation", "threshold", "rank", "rank/d, %")
    rows = [["layer, at the end", "weights d", "share of tr D, %", *chosen]]
    totals = [sum(spectrum.trace for spectrum in layers.values()) for layers in runs]
    for name, first in runs[0].items():
        spectra = [layers[name] for layers in runs]
        shares = [100 * each.trace / total for each, total in zip(spectra, totals, strict=True)]
        cells = [format_seeds([SPECTRUM[key](each) for each in spectra]) for key in chosen]
        rows.append([name, f"{first.dimension:,}", format_seeds(shares), *cells])
    return align_rows(rows)
