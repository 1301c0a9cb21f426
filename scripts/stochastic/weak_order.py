r"""Weak orders of SGD's modified equations on sums of quadratics, whose laws are known in closed form.

Descent with the Gaussian noise of its mini-batches (``NoisyGradientDescent``) has SGD's first two moments at every
step, so that E φ of quadratic φ is SGD's; with the same Brownian path for the equation the difference is averaged run
by run.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor

from flows import NoisyGradientDescent, NoisyModifiedEquation
from flows.comparison.laws import LOSS
from flows.ensembles import WeakErrors, WeakOrderStudy, weak_errors
from flows.ensembles.blocks import Function, block_seed
from flows.ensembles.weak_figure import plot_weak_orders
from flows.ensembles.weak_ladder import fit_slope
from flows.orders.ladder import check_ladder, whole_steps
from flows.steady.second_moments import SecondMoments
from landscapes import QuadraticSum
from landscapes.errors import check_count, check_seed
from landscapes.noise import MinibatchNoise

from ..lab.experiment import align_rows
from ..lab.store import Store, Tensors
from .common import Stochastic

PARTS = ("mean", "difference", "standard_error", "integration", "integration_error")
Noise = Literal["additive", "multiplicative"]


@dataclass(frozen=True)
class WeakOrderExperiment(Stochastic):
    """How the weak error of the modified equations falls with h: additive and multiplicative noise, orders 1 and 2."""

    noises: tuple[Noise, ...] = ("additive", "multiplicative")
    """Examples that differ only in their minima, or also in their curvatures."""
    orders: tuple[int, ...] = (1, 2)
    """Orders of the equation."""
    ladder: tuple[float, ...] = (0.125, 0.0625, 0.03125, 0.015625)
    """Learning rates; each divides the time."""
    time: float = 1.0
    """T: errors are the largest up to this time."""
    examples: int = 4
    """N."""
    batch_size: int = 4
    """b, drawn with replacement."""
    paths: int = 40_000
    """Paths of every rung."""

    def configuration(self) -> dict[str, Any]:
        """All options except noises, orders and rungs, whose parts on disk are stored by name: they can be added."""
        said = super().configuration()
        return {key: value for key, value in said.items() if key not in {"noises", "orders", "ladder"}}

    def run(self) -> None:
        """Run, fit, print, plot."""
        ladder = check_ladder(self.ladder)
        check_count("paths", self.paths, minimum=2)
        check_seed(self.seed)
        for h in ladder:
            whole_steps(self.time, h)
        store = self.open()
        studies = {
            f"{noise}, order {order}": self.study(store, noise, order, ladder)
            for noise in self.noises
            for order in self.orders
        }
        rows = [["closed form", "φ", *(f"h = {h:g}" for h in ladder), "slope", "last slope", "paths off by, s.e."]]
        exact = {}
        for noise in self.noises:
            for order in self.orders:
                name = f"{noise}, order {order}"
                exact[name], off = self.exact_errors(studies[name], noise, order)
                rows += exact_rows(studies[name], exact[name], off)
        store.table("\n\n".join([*map(str, studies.values()), align_rows(rows)]))
        names = next(iter(studies.values())).observables
        for path in [store.folder / "figure.png", *([] if self.figure is None else [self.figure])]:
            print(f"figure: {plot_weak_orders(studies, names, path, exact)}", flush=True)

    def landscape(self, noise: Noise) -> QuadraticSum:
        """The examples: A_i = I + a_i a_iᵀ/5 or their mean, with minima at normal places."""
        generator = torch.Generator().manual_seed(self.seed)
        a = torch.randn(check_count("examples", self.examples, 2), 2, 2, generator=generator, dtype=self.real)
        minima = torch.randn(self.examples, 2, generator=generator, dtype=self.real)
        curvatures = torch.eye(2, dtype=self.real) + a @ a.mT / 5
        if noise == "additive":
            curvatures = curvatures.mean(dim=0).expand_as(curvatures).clone()
        return QuadraticSum(curvatures.to(self.device), minima.to(self.device))

    def start(self) -> Tensor:
        """θ0, away from the minimum."""
        return torch.tensor([1.0, -0.7], dtype=self.real, device=self.device)

    def study(self, store: Store, noise: Noise, order: int, ladder: list[float]) -> WeakOrderStudy:
        """The ladder of one equation; every rung is written to disk when it is finished."""
        landscape = self.landscape(noise)
        observables: dict[str, Function] = {LOSS: landscape.loss, "θ₁": partial(component, 0), "θ₁²": square}
        source = MinibatchNoise(landscape, self.batch_size)

        def rung(h: float) -> Tensors:
            found = weak_errors(
                NoisyModifiedEquation(landscape, h, source, order),
                NoisyGradientDescent(landscape, h, source),
                self.start(),
                whole_steps(self.time, h),
                paths=self.paths,
                seed=block_seed(self.seed, round(1e6 * h)),
                observables=observables,
                substeps=2 * order,
                coupled=True,
            )
            return tensors_of(found)

        rungs = [
            errors_of(store.part(f"{noise}-{order}-{h:g}", partial(rung, h)), self.paths, tuple(observables))
            for h in ladder
        ]
        name = f"{noise} noise, equation of order {order}"
        settings = {"coupled": True, "time": self.time, "substeps": 2 * order}
        return WeakOrderStudy(name, tuple(ladder), tuple(rungs), tuple(observables), settings=settings)

    def exact_errors(
        self, study: WeakOrderStudy, noise: Noise, order: int
    ) -> tuple[dict[str, list[float]], dict[str, float]]:
        """The closed form's largest errors at every rung, and the paths' largest deviation in standard errors."""
        landscape = self.landscape(noise)
        moments, factor = SecondMoments(landscape), 1 / self.batch_size
        sizes: dict[str, list[float]] = {phi: [] for phi in study.observables}
        off = dict.fromkeys(sizes, 0.0)
        for h, rung in zip(study.ladder, study.rungs, strict=True):
            ours = observables_of(landscape, moments.equation(self.start(), h, factor, rung.times, order))
            theirs = observables_of(landscape, moments.descent(self.start(), h, factor, len(rung.times) - 1))
            for phi, errors in sizes.items():
                exact = ours[phi] - theirs[phi]
                errors.append(float(exact.abs().max()))
                gap = (rung.difference[phi][1:, 0].cpu() - exact[1:]).abs()
                off[phi] = max(off[phi], float((gap / rung.standard_error[phi][1:, 0].cpu()).max()))
        return sizes, off


def exact_rows(study: WeakOrderStudy, exact: dict[str, list[float]], off: dict[str, float]) -> list[list[str]]:
    """A row for each observable; the slope is fitted like that of the paths, with the same weights."""
    rows, finest = [], math.log(study.ladder[-2] / study.ladder[-1])
    for phi, errors in exact.items():
        bars = [e * x.standard_error / x.error for e, x in zip(errors, study.largest(phi), strict=True)]
        slope = fit_slope(study.ladder, errors, bars, study.confidence).order
        last = math.log(errors[-2] / errors[-1]) / finest
        sizes = [f"{error:.3e}" for error in errors]
        rows.append([study.name, phi, *sizes, f"{slope:.3f}", f"{last:.3f}", f"{off[phi]:.1f}"])
    return rows


def component(i: int, theta: Tensor) -> Tensor:
    """θ_i."""
    return theta[..., i]


def square(theta: Tensor) -> Tensor:
    """θ₁²."""
    return theta[..., 0].square()


def observables_of(landscape: QuadraticSum, moments: Tensor) -> dict[str, Tensor]:
    """E φ of the second moments Z (T, d + 1, d + 1) of (θ, 1)."""
    loss = SecondMoments(landscape).expectations(moments)[LOSS]
    return {LOSS: loss, "θ₁": moments[:, 0, -1], "θ₁²": moments[:, 0, 0]}


def tensors_of(found: WeakErrors) -> Tensors:
    """Weak errors as a part on disk."""
    names = list(found.mean)
    tensors = {f"{part}.{i}": getattr(found, part)[name] for part in PARTS for i, name in enumerate(names)}
    return {"times": found.times, "diverged": torch.tensor(found.diverged), **tensors}


def errors_of(tensors: Tensors, paths: int, names: tuple[str, ...]) -> WeakErrors:
    """Weak errors from a part on disk."""
    mean, difference, bar, left, left_bar = (
        {name: tensors[f"{part}.{i}"] for i, name in enumerate(names)} for part in PARTS
    )
    return WeakErrors(tensors["times"], paths, mean, difference, bar, left, left_bar, int(tensors["diverged"]))
