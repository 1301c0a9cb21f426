r"""Runs of one cell (h, b) of the grid: SGD and its equations along the same mini-batches, laws of independent runs.

All runs are observed at common times t_j. θ is stored for paths, φ(θ) for laws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flows import GradientFlow, StochasticGradientDescent, StochasticModifiedEquation, descend, integrate
from flows.engines.noise_paths import minibatch_path
from flows.engines.trajectory import Trajectory
from flows.ensembles.blocks import block_seed
from landscapes import FiniteSum
from landscapes.noise import covariance_trace

from ..lab.store import Store, Tensors

GROUP = 4  # runs in a part on disk
PATHS, SGD_LAW, SDE_LAW = range(3)  # kinds of runs, with disjoint seeds

Observables = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class GridCell:
    """One learning rate and batch size; ``steps`` to T, ``stride`` from one common time to the next."""

    h: float
    batch_size: int
    steps: int
    stride: int

    @property
    def times(self) -> list[float]:
        """The common times as multiples of h."""
        return [k * self.h for k in range(0, self.steps + 1, self.stride)]

    @property
    def label(self) -> str:
        """Name of the cell's parts on disk."""
        return f"{self.h:.12g}-{self.batch_size}"


@dataclass(frozen=True)
class Coupled:
    r"""Pathwise distances at T of S runs, each over ‖θ_T − θ_0‖ of its SGD run; all (S,).

    ``error``: ‖X − θ‖ at the finest dt; ``integration``: ‖X^{dt} − X^{2dt}‖; ``without``: gradient flow's distance.
    """

    error: Tensor
    integration: Tensor
    without: Tensor


@dataclass(frozen=True)
class Law:
    r"""E φ of SGD and of its equation at the common times after the start, all (T,).

    ``difference`` is E φ(X) − E φ(θ) with φ(X) = 2φ(X^{dt}) − φ(X^{2dt}) path by path, ``error`` its standard error,
    ``moved`` the change of the mean by that extrapolation.
    """

    sgd: Tensor
    sgd_error: Tensor
    difference: Tensor
    error: Tensor
    moved: Tensor


class CellRuns:
    """The runs of all cells of one configuration, each written to disk when it is finished."""

    def __init__(self, store: Store, landscape: FiniteSum, theta0: Tensor, sampling: str, seed: int):
        self.store, self.landscape, self.theta0 = store, landscape, theta0
        self._sampling, self._seed = sampling, seed

    def descent(self, cell: GridCell) -> StochasticGradientDescent:
        """SGD of a cell."""
        return StochasticGradientDescent(self.landscape, cell.h, cell.batch_size, self._sampling)

    def equation(self, cell: GridCell, order: int) -> StochasticModifiedEquation:
        """The stochastic equation of a cell."""
        return StochasticModifiedEquation(self.landscape, cell.h, cell.batch_size, order, self._sampling)

    def gradient_flow(self, times: Sequence[float]) -> Tensor:
        """θ (T, d) of gradient flow at the common times."""

        def compute() -> Tensors:
            return {"theta": all_states(integrate(GradientFlow(self.landscape), self.theta0, times), len(times))}

        return self.store.part("gradient-flow", compute)["theta"]

    def coupled_states(self, cell: GridCell, order: int, number: int, halvings: int) -> Tensors:
        """θ (T, d) of SGD, and of its equation along SGD's mini-batches at dt = h/2^halvings, twice that, and h."""
        descent, flow = self.descent(cell), self.equation(cell, order)
        seed = block_seed(self._seed, PATHS, number)

        def states_at(dt: float) -> Tensor:
            # the finest grid is drawn for every dt, so that all runs of a seed share one path
            path = minibatch_path(descent, self.theta0, cell.steps, seed, halvings)
            return all_states(integrate(flow, self.theta0, cell.times, dt=dt, path=path), len(cell.times))

        def compute() -> Tensors:
            sgd = descend(descent, self.theta0, cell.steps, seed=seed, every=cell.stride).check_uninterrupted()
            dt = cell.h / 2**halvings
            same = {"step": states_at(cell.h)} if order == 1 else {}
            return {"sgd": all_states(sgd, len(cell.times)), "fine": states_at(dt), "coarse": states_at(2 * dt), **same}

        return self.store.part(f"paths-{order}-{cell.label}-{halvings}-{number:03d}", compute)

    def path_distances(self, cell: GridCell, order: int, seeds: int, halvings: int) -> Coupled:
        """Pathwise distances at T over the first seeds."""
        flow = self.gradient_flow(cell.times)[-1]
        rows = []
        for number in range(seeds):
            run = self.coupled_states(cell, order, number, halvings)
            sgd, fine, coarse = (run[name][-1] for name in ("sgd", "fine", "coarse"))
            moved = torch.linalg.vector_norm(sgd - self.theta0.cpu())
            rows.append(torch.stack([(x - y).norm() / moved for x, y in ((fine, sgd), (fine, coarse), (flow, sgd))]))
        error, integration, without = torch.stack(rows, dim=1).double()
        return Coupled(error, integration, without)

    def step_gap(self, cell: GridCell, halvings: int) -> float:
        """‖X − θ‖/‖θ − θ_0‖ at T of the first seed at dt = h, where Euler's method is SGD."""
        run = self.coupled_states(cell, 1, 0, halvings)
        sgd = run["sgd"][-1]
        return float((run["step"][-1] - sgd).norm() / (sgd - self.theta0.cpu()).norm())

    def values(self, cell: GridCell, runs: int, phi: Observables, halvings: int | None) -> dict[str, Tensor]:
        """φ of SGD (T, runs) or, with ``halvings``, of the equation at dt = h/2^halvings and 2dt (2, T, runs)."""
        groups = [range(first, min(first + GROUP, runs)) for first in range(0, runs, GROUP)]
        parts = [self._group(cell, group, phi, halvings) for group in groups]
        return {name: torch.cat([part[name] for part in parts], dim=-1).double() for name in phi}

    def _group(self, cell: GridCell, group: range, phi: Observables, halvings: int | None) -> Tensors:
        kind = SGD_LAW if halvings is None else SDE_LAW
        seed = block_seed(self._seed, kind, group.start, cell.batch_size, cell.steps)
        theta0 = self.theta0.expand(len(group), -1)

        def states() -> Tensor:
            if halvings is None:
                run = descend(self.descent(cell), theta0, cell.steps, seed=seed, every=cell.stride)
                return all_states(run, len(cell.times))
            flow, dt = self.equation(cell, 1), cell.h / 2**halvings
            both = (integrate(flow, theta0, cell.times, dt=step, seed=seed) for step in (dt, 2 * dt))  # the same path
            return torch.stack([all_states(run, len(cell.times)) for run in both])

        def compute() -> Tensors:
            theta = states()
            lost = theta.isnan().any(dim=-1)
            return {name: function(theta).masked_fill(lost, torch.nan) for name, function in phi.items()}

        form = "sgd" if halvings is None else f"sde-{halvings}"
        return self.store.part(f"law-{form}-{cell.label}-{group.start:04d}-{len(group)}", compute)

    def laws(self, cell: GridCell, runs: tuple[int, int], phi: Observables, halvings: int) -> dict[str, Law]:
        """φ → its law at the common times after the start, of (SGD, equation) runs."""
        theirs = self.values(cell, runs[0], phi, None)
        ours = self.values(cell, runs[1], phi, halvings)
        found = {}
        for name in phi:
            sgd, (fine, coarse) = theirs[name][1:], ours[name][:, 1:]
            extrapolated = 2 * fine - coarse
            sgd_error, error = (x.std(dim=-1) / math.sqrt(x.shape[-1]) for x in (sgd, extrapolated))
            difference = extrapolated.mean(dim=-1) - sgd.mean(dim=-1)
            moved = (fine - coarse).mean(dim=-1)
            found[name] = Law(sgd.mean(dim=-1), sgd_error, difference, (error**2 + sgd_error**2).sqrt(), moved)
        return found

    def scales(self, times: Sequence[float]) -> Tensors:
        r"""Means along gradient flow's common times of tr D, ‖g‖², gᵀHg and tr(HD), D the examples' covariance."""

        def compute() -> Tensors:
            rows = [self._scales(theta) for theta in self.gradient_flow(times).to(self.theta0.device)]
            return {name: torch.stack([row[name] for row in rows]).mean() for name in rows[0]}

        return self.store.part("scales", compute)

    def _scales(self, theta: Tensor) -> Tensors:
        point = self.landscape.expand(theta)
        rows = self.landscape.example_grads(theta) - point.grad
        products = sum((row @ point.hvp(row) for row in rows), torch.zeros_like(rows[0, 0]))
        return {
            "trace": covariance_trace(self.landscape, theta),
            "signal": point.grad @ point.grad,
            "curved signal": point.grad @ point.hvp(point.grad),
            "curved trace": products / self.landscape.size,
        }


def all_states(run: Trajectory, times: int) -> Tensor:
    """States (times, ..., d) of a run, NaN after its end and in members that diverged."""
    theta = run.check_uninterrupted().theta
    later = theta.new_full((times - len(theta), *theta.shape[1:]), torch.nan)
    lost = ~run.alive.expand(theta.shape[1:-1])
    states = torch.cat([theta, later])
    return torch.cat([states[:1], states[1:].masked_fill(lost[..., None], torch.nan)])
