"""The tables of spectra along training, with the paper's figures beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from landscapes.noise import NoiseSpectrum

from ..lab.experiment import align_rows
from .common import shown
from .looks import Look


@dataclass(frozen=True)
class Published:
    """What the paper prints for a network: λ(D) mean ± deviation with clipping, rank in % of d."""

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


Stages = Sequence[Sequence[Look]]
"""Looks by fraction of training, then by seed."""


def columns(stages: Stages, at: Sequence[float], read: Mapping[str, Callable[[Look], float]]) -> list[list[str]]:
    """A heading and a row for each fraction of training: means over seeds with standard errors."""
    rows = [["training", *read]]
    for fraction, looks in zip(at, stages, strict=True):
        rows.append([f"{100 * fraction:g} %", *(shown([value(look) for look in looks]) for value in read.values())])
    return rows


def training_table(stages: Stages, at: Sequence[float]) -> str:
    """Losses, errors, traces and the noise scale."""
    read: dict[str, Callable[[Look], float]] = {
        "loss": lambda look: look.measured["training loss"],
        "training error, %": lambda look: 100 * look.measured["training error"],
        "test error, %": lambda look: 100 * look.measured["test error"],
        "tr D": lambda look: look.spectrum.trace,
        "b tr Cov, batches": lambda look: look.measured["batch trace"],
        "‖∇f‖²": lambda look: look.measured["square"],
        "tr D/‖∇f‖²": lambda look: look.noise_scale,
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
    """Mean and deviation of λ(D) over all d, with and without clipping at the threshold; rank; the paper's figures."""
    read: dict[str, Callable[[Look], float]] = {"λ_max": lambda look: look.largest}
    for name, value in SPECTRUM.items():
        read[name] = lambda look, value=value: value(look.spectrum)  # type: ignore[misc]
    read["rank, half the images"] = lambda look: look.half.rank
    rows = columns(stages, at, read)
    if published is not None:
        said = {
            "clipped mean": f"{published.mean:.3g}",
            "clipped deviation": f"{published.std:.3g}",
            "rank/d, %": f"{published.rank:.3g}",
        }
        rows.append(["the paper's", *(said.get(name, "") for name in read)])
    notes = {note(look.spectrum) for looks in stages for look in looks} - {""}
    return "\n".join([align_rows(rows), *sorted(notes)])


def note(spectrum: NoiseSpectrum) -> str:
    """What to know of a spectrum that is not whole."""
    if not spectrum.converged:
        return "a spectrum did not converge: its rank is at least what is shown"
    return "" if spectrum.whole else "eigenvalues below the threshold were not all found: deviations are to within 1 %"


def layer_table(runs: Sequence[Mapping[str, NoiseSpectrum]]) -> str:
    """The diagonal blocks of D at the end of training."""
    chosen = ("λ mean", "λ deviation", "threshold", "rank", "rank/d, %")
    rows = [["layer, at the end", "weights d", "share of tr D, %", *chosen]]
    totals = [sum(spectrum.trace for spectrum in layers.values()) for layers in runs]
    for name, first in runs[0].items():
        spectra = [layers[name] for layers in runs]
        shares = [100 * each.trace / total for each, total in zip(spectra, totals, strict=True)]
        cells = [shown([SPECTRUM[key](each) for each in spectra]) for key in chosen]
        rows.append([name, f"{first.dimension:,}", shown(shares), *cells])
    return align_rows(rows)
