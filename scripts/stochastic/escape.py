r"""Escape from a well: isotropic against anisotropic gradient noise of equal trace.

    f = (S/8)(x² − 1)² + (s/2)(y² + …),    (x, y, …) the coordinates θ turned by an angle in their first plane

has wells at x = ±1 with curvature S across the barrier of S/8 and s in all other directions. The gradient noise is
constant, of covariance C with tr C = 2Td/h: the SDE of rate h is dX = −∇f dt + √h C^{1/2} dW, whose x is a diffusion in
one dimension with temperature T_x = h C_xx/2, for every C. So there is an exact mean time for each of

    isotropic       C ∝ I, T_x = T
    aligned         C ∝ H at the minimum (Zhu et al. 2019, arXiv 1803.00195)
    diagonal        the diagonal of the aligned covariance in the coordinates θ
    anti-aligned    C ∝ H⁻¹

Escape is the first passage to the other minimum; its mean tends to Kramers' time for small T_x.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import sympy
import torch
from torch import Tensor

from flows import Descent, Flow, NoisyGradientDescent, NoisyModifiedEquation
from flows.ensembles.blocks import block_seed
from flows.steady.passage_laws import Values, chain_time, kramers_time, passage_integral, seen_target
from landscapes import Landscape, from_sympy
from landscapes.errors import check_count, check_positive, check_real, check_seed
from landscapes.noise import ConstantNoise, DiagonalNoise, GradientNoise, IsotropicNoise

from ..lab.command_line import check_device
from ..lab.experiment import align_rows
from ..lab.store import Store
from ..lab.tables import with_error
from .common import Stochastic
from .escape_figure import escape_figure
from .escape_results import Escapes
from .passage import MeanTime, mean_time, passage_times

NOISES = ("isotropic", "aligned", "diagonal", "anti-aligned")
METHOD = "heun2"  # weak order 2 for additive noise
SETTLED = 20.0  # time after which the law no longer depends on the start, in units of 1/S


@dataclass(frozen=True)
class Well:
    """The double well: curvatures S and s, dimension, and the angle of x to the first coordinate, in degrees."""

    sharp: float
    flat: float
    dimension: int
    angle: float

    @cached_property
    def axes(self) -> Tensor:
        """The directions of x, y, … as rows, (d, d)."""
        turned, phi = torch.eye(self.dimension, dtype=torch.float64), math.radians(self.angle)
        turned[0, 0] = turned[1, 1] = math.cos(phi)
        turned[0, 1], turned[1, 0] = math.sin(phi), -math.sin(phi)
        return turned

    @cached_property
    def landscape(self) -> Landscape:
        """f on θ (..., d)."""
        symbols = sympy.symbols(f"theta:{self.dimension}", real=True)
        x, *rest = (sum(float(a) * s for a, s in zip(row, symbols, strict=True) if a) for row in self.axes)
        return from_sympy(self.sharp / 8 * (x**2 - 1) ** 2 + self.flat / 2 * sum(y**2 for y in rest), list(symbols))

    @property
    def barrier(self) -> float:
        """S/8."""
        return self.sharp / 8

    def potential(self, x: Values) -> Values:
        """f along x."""
        return self.barrier * (x * x - 1) ** 2

    def slope(self, x: Values) -> Values:
        """f' along x."""
        return 4 * self.barrier * x * (x * x - 1)

    @property
    def start(self) -> Tensor:
        """The minimum at x = 1, (d,)."""
        return self.axes[0].clone()

    def has_escaped(self, theta: Tensor) -> Tensor:
        """x ≤ −1, (...,) of bool."""
        return theta @ self.axes[0].to(theta) <= -1

    def shape(self, noise: str) -> Tensor:
        """The covariance (d, d) of a noise relative to the isotropic one of the same trace; its trace is d."""
        hessian = self.landscape.hessian(self.start)
        if noise == "isotropic":
            return torch.eye(self.dimension, dtype=torch.float64)
        matrix = torch.linalg.inv(hessian) if noise == "anti-aligned" else hessian
        matrix = matrix * (self.dimension / matrix.trace())
        return torch.diag(matrix.diagonal()) if noise == "diagonal" else matrix

    def share(self, noise: str) -> float:
        """T_x/T."""
        return float(self.axes[0] @ self.shape(noise) @ self.axes[0])

    def gradient_noise(self, noise: str, variance: float) -> GradientNoise:
        """The gradient noise with mean ``variance`` per direction."""
        covariance = variance * self.shape(noise)
        if noise == "isotropic":
            return IsotropicNoise(variance, self.dimension)
        return DiagonalNoise(covariance.diagonal()) if noise == "diagonal" else ConstantNoise(square_root(covariance))


def square_root(covariance: Tensor) -> Tensor:
    """The symmetric square root of a positive definite matrix."""
    values, vectors = torch.linalg.eigh(covariance)
    # symmetric, unlike a Cholesky factor: a rotation of the coordinates only rotates the noise
    return vectors * values.sqrt() @ vectors.mT


@dataclass(frozen=True)
class Escape(Stochastic):
    """Escape times from a double well under isotropic, aligned, diagonal and anti-aligned noise of equal trace."""

    sharp: float = 2.0
    """S, curvature across the barrier at the minima; the barrier is S/8 high."""
    flat: float = 0.5
    """s, curvature in all other directions."""
    dimension: int = 2
    """Number of coordinates."""
    angle: float = 30.0
    """Degrees from the first coordinate to the direction of escape."""
    h: float = 0.1
    """Learning rate; C is scaled with it so that the temperatures do not depend on it."""
    temperatures: tuple[float, ...] = (0.125, 0.1, 0.08, 0.0625, 0.05, 0.04)
    """T = h tr C/(2d)."""
    paths: int = 10_000
    """Paths for each mean time."""
    substeps: int = 1
    """Steps of the SDE in h; a second run with twice as many shows the discretisation error."""
    horizon: float = 200.0
    """Time up to which paths are run; the table says how mean times beyond it are estimated."""

    def run(self) -> None:
        """Run, compare, print, plot."""
        self.check()
        well = Well(self.sharp, self.flat, self.dimension, self.angle)
        store = self.open()
        found = [self.mean_times(store, well, noise, T) for noise in NOISES for T in sorted(self.temperatures)[::-1]]
        store.table("\n\n".join([self.describe(well), table(found), gains(found), self.notes(found)]))
        self.draw(store, escape_figure(found, well.barrier))

    def check(self) -> None:
        """Raise ValueError for invalid options."""
        for name in ("sharp", "flat", "h", "horizon"):
            check_positive(name, getattr(self, name))
        check_real("angle", self.angle)
        check_count("dimension", self.dimension, minimum=2)
        check_count("paths", self.paths, minimum=2)
        check_count("substeps", self.substeps)
        if not self.temperatures:
            raise ValueError("temperatures must name at least one")
        for T in self.temperatures:
            check_positive("temperatures", T)
        if self.horizon <= self.settled:
            raise ValueError(
                f"horizon must be beyond {self.settled:g}, where the start no longer matters, got {self.horizon:g}"
            )
        check_seed(self.seed)
        check_device(self.device)

    def configuration(self) -> dict[str, object]:
        """All options except the temperatures, so that temperatures can be added."""
        return {key: value for key, value in super().configuration().items() if key != "temperatures"}

    @property
    def settled(self) -> float:
        """Time after which the law no longer depends on the start."""
        return SETTLED / self.sharp

    def mean_times(self, store: Store, well: Well, noise: str, T: float) -> Escapes:
        """All mean times of one noise at one temperature."""
        gradient_noise = well.gradient_noise(noise, 2 * T / self.h)
        flow = NoisyModifiedEquation(well.landscape, self.h, gradient_noise)
        descent = NoisyGradientDescent(well.landscape, self.h, gradient_noise)
        dt = self.h / self.substeps
        runs = [self.mean(store, well, f"{noise}-{T:.12g}-sde-{n}", flow, dt / n) for n in (1, 2)]
        runs.append(self.mean(store, well, f"{noise}-{T:.12g}-descent", descent, None))
        along = T * well.share(noise)
        ends = [well.landscape.hessian(x).numpy() for x in (well.start, torch.zeros_like(well.start))]
        return Escapes(
            noise,
            T,
            along,
            kramers_time(well.barrier, along, *ends),
            self.integral(well, along),
            (self.integral(well, along, dt), self.integral(well, along, dt / 2)),
            chain_time(well.potential, well.slope, along, self.h, 1.0, -1.0),
            (runs[0], runs[1], runs[2]),
        )

    def integral(self, well: Well, temperature: float, dt: float | None = None) -> float:
        """The exact mean time of the SDE to the other minimum, observed continuously or every dt."""
        target = -1.0 if dt is None else seen_target(-1.0, temperature, dt)
        return passage_integral(well.potential, temperature, 1.0, target)

    def mean(self, store: Store, well: Well, name: str, model: Flow | Descent, dt: float | None) -> MeanTime:
        """The mean passage time of a model, with the times of its paths on disk."""
        start = well.start.to(self.device, self.real).expand(self.paths, -1)
        seed = block_seed(self.seed, *name.encode())  # independent streams for the runs

        def compute() -> dict[str, Tensor]:
            method = None if dt is None else METHOD
            return {
                "times": passage_times(model, start, well.has_escaped, self.horizon, seed=seed, dt=dt, method=method)
            }

        return mean_time(store.part(name, compute)["times"], self.horizon, self.settled)

    def excess(self, found: list[Escapes], place: int, exact: list[float]) -> str:
        """Mean relative excess of the SDE's times at dt or dt/2 over exact ones, weighted over all rows."""
        runs = [e.runs[place] for e in found]
        away = [(mean.value / time - 1, mean.error / time) for mean, time in zip(runs, exact, strict=True)]
        bias, error = weighted_mean([(bias, error) for bias, error in away if not math.isnan(bias)])
        return f"{100 * bias:.2f} ± {100 * error:.2f} % at dt = {self.h / self.substeps / (place + 1):g}"

    def describe(self, well: Well) -> str:
        """Well, noise and settings, on a few lines."""
        shares = ", ".join(f"{noise} {well.share(noise):.4g}" for noise in NOISES)
        return (
            f"double well in {self.dimension} dimensions: curvatures {self.sharp:g} and {self.flat:g}, barrier "
            f"{well.barrier:g}, turned by {self.angle:g}°; h = {self.h:g}, {self.paths:,} paths a mean time\n"
            f"noise of equal trace 2Td/h; T_x/T: {shares}"
        )

    def notes(self, found: list[Escapes]) -> str:
        """Method of measurement, and the SDE's deviation from the exact times."""
        over = [self.excess(found, place, [e.exact for e in found]) for place in (0, 1)]
        late = [self.excess(found, place, [e.seen[place] for e in found]) for place in (0, 1)]
        measured = f"the SDE's mean times exceed the integral by {' and '.join(over)}, over all rows;\n"
        measured += f"the integral to the target shifted by observation every dt (Siegmund) by {' and '.join(late)}\n"
        return (
            f"{measured}"
            f"SDE by {METHOD}; a passage is recorded at the end of its step, also in the exact value of the descent\n"
            f"with paths left at t = {self.horizon:g}: mean up to there, and the rest at the rate of arrivals from "
            f"t = {self.settled:g} on; where too few arrived, > is a bound at 95 %; ± is one standard error"
        )


def weighted_mean(pairs: list[tuple[float, float]]) -> tuple[float, float]:
    """Mean of values with errors, weighted by 1/error², and its standard error; NaN for an empty list."""
    if not pairs:
        return math.nan, math.nan
    weights = np.array([error for _, error in pairs]) ** -2.0
    return float(np.average([value for value, _ in pairs], weights=weights)), float(weights.sum() ** -0.5)


def format_mean(mean: MeanTime) -> str:
    """A mean time in table form."""
    return f"> {mean.bound:.3g}" if math.isnan(mean.value) else with_error(mean.value, mean.error)


def table(found: list[Escapes]) -> str:
    """A row for each noise and temperature."""
    heading = ["noise", "T", "T_x", "Kramers", "integral", "SDE, dt", "SDE, dt/2", "seen"]
    rows = [[*heading, "exact descent", "noisy descent", "seen"]]
    for e in found:
        exact = [f"{x:.4g}" for x in (e.along, e.kramers, e.exact)]
        times = [format_mean(mean) for mean in e.runs]
        seen = [f"{100 * mean.arrived / mean.paths:.4g} %" for mean in e.runs[1:]]
        chain = "–" if math.isnan(e.chain) else f"{e.chain:.4g}"
        rows.append([e.noise, f"{e.temperature:g}", *exact, *times[:2], seen[0], chain, times[2], seen[1]])
    return align_rows(rows)


def gains(found: list[Escapes]) -> str:
    """Ratio of the time under isotropic noise of the same trace to each time, for the integral and the finer SDE."""
    slow = {e.temperature: e for e in found if e.noise == "isotropic"}
    rows = [["times sooner than isotropic", "T", "integral", "SDE, dt/2", "exact descent", "noisy descent"]]
    for e in found:
        if e.noise == "isotropic":
            continue
        base = slow[e.temperature]
        pairs = [(base.runs[i], e.runs[i]) for i in (1, 2)]
        measured = [ratio(*pair) for pair in pairs]
        exact = [f"{a / b:.4g}".replace("nan", "–") for a, b in ((base.exact, e.exact), (base.chain, e.chain))]
        rows.append([e.noise, f"{e.temperature:g}", exact[0], measured[0], exact[1], measured[1]])
    return align_rows(rows)


def ratio(one: MeanTime, other: MeanTime) -> str:
    """Ratio of two mean times with its error; a bound if the second has no value."""
    if math.isnan(one.value):
        return "–"
    if math.isnan(other.value):
        return f"< {one.value / other.bound:.2g}"
    value = one.value / other.value
    return with_error(value, value * math.hypot(one.error / one.value, other.error / other.value))
