r"""Rows of a comparison for stochastic flows: by means over runs or, driven by the descent's mini-batches, by paths.

Laws are taken of runs independent of the descent. Along its mini-batches the first two moments of the noise of a step
are those of a Brownian motion and the higher ones are not, so that E φ(X) is off by O(h²) where curvatures differ, as
large as the weak error of an equation of order 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from flows.comparison.data import CUT_SHORT, Row
from flows.comparison.laws import LOSS, Laws
from flows.comparison.layout import LAWS
from flows.comparison.pairs import NO_MEMORY, lacks_memory, notes_on_pair
from flows.comparison.reference import NO_VELOCITY, Reference, distance, frozen_mask, lacks_velocity, pad, real_loss
from flows.descent import Descent
from flows.engines.fixed import step_grid
from flows.engines.integrate import integrate
from flows.engines.noise_paths import MinibatchPath, NoisePath, minibatch_path
from flows.engines.state import State
from flows.engines.stochastic import STOCHASTIC
from flows.engines.trajectory import Trajectory
from flows.flow import Flow, StochasticFlow
from landscapes import UnsupportedError
from landscapes.errors import MOST, check_count, check_flag, check_positive, check_seed
from landscapes.noise import MinibatchNoise

SUBSTEPS = 8  # of a stochastic flow in a step of the descent, by default: a power of two


@dataclass(frozen=True)
class Drive:
    """Method, dt and noise of the stochastic flows: the noise of a seed, or that of the descent's mini-batches."""

    method: str | None
    dt: float
    seed: int
    path: MinibatchPath | None = None

    @property
    def coupled(self) -> bool:
        """Whether the noise is the descent's."""
        return self.path is not None

    def on_clock(self, times: Tensor, h: float, *, chosen: bool) -> Drive:
        """The drive on a descent's clock: dt divides its shortest step unless it was ``chosen``; raise if it cannot.

        The clock of a descent that models the rate h by shorter steps, as SVAG does, is not k·h.
        """
        if chosen or self.coupled:
            dt = self.dt
        else:
            shortest = float(times.diff().min())
            parts = max(round(h / shortest), 1)
            dt = (h / parts if math.isclose(h, parts * shortest, rel_tol=1e-9) else shortest) / SUBSTEPS
        check_divides(dt, times.tolist())
        return replace(self, dt=dt)

    @property
    def independent(self) -> Drive:
        """The drive of the same seed that is independent of the descent's mini-batches."""
        return replace(self, path=None)

    def run(self, flow: Flow, start: Tensor, times: Any, dt: float, **more: Any) -> Any:
        """``integrate`` along the noise."""
        source: Mapping[str, Any] = {"seed": self.seed} if self.path is None else {"path": self.path}
        return integrate(flow, start, times, method=self.method, dt=dt, **source, **more)


def drive_of(
    flows: Mapping[str, Flow],
    descent: Descent,
    theta0: Tensor,
    steps: int,
    *,
    method: str | None,
    dt: float | None,
    seed: int,
    runs: int,
    coupled: bool,
) -> Drive | None:
    """The drive of the stochastic flows among ``flows``, None if there are none; raise for inconsistent arguments."""
    check_flag("coupled", coupled)
    noisy = [flow for flow in flows.values() if isinstance(flow, StochasticFlow)]
    if not noisy:
        if coupled:
            raise ValueError("coupled is for stochastic flows, none was given; leave it out")
        return None
    check_count("steps", steps, maximum=MOST)
    dt = check_positive("dt", descent.clock_rate / SUBSTEPS if dt is None else dt)
    used = method if method in STOCHASTIC else None
    if not coupled:
        if type(descent).elapsed is Descent.elapsed:  # the clock is known before the descent has run
            check_divides(dt, [0.0, descent.clock_rate])
        return Drive(used, dt, check_seed(seed))
    halvings = round(math.log2(descent.clock_rate / dt))
    if halvings < 0 or not math.isclose(dt * 2**halvings, descent.clock_rate, rel_tol=1e-12):
        raise ValueError(f"dt of coupled flows must be h over a power of two, h = {descent.clock_rate!r}, got {dt!r}")
    start = theta0.expand(runs, *theta0.shape) if runs > 1 else theta0
    # one halving more than dt needs: for the runs at dt/2
    path = minibatch_path(descent, start, steps, seed, halvings + 1)  # type: ignore[arg-type]
    for flow in noisy:
        check_shared(flow, descent)
    return Drive(used, dt, seed, path)


def check_divides(dt: float, times: list[float]) -> None:
    """Raise ValueError unless dt divides every step of a clock."""
    try:
        step_grid(times, dt)
    except ValueError as error:
        raise ValueError(
            f"dt must divide every step of the descent, whose clock has {error}; stochastic flows take steps of equal "
            "length, which divide all learning rates of a StepSchedule but not those of a schedule that varies smoothly"
        ) from error


def gradient_noise(flow: StochasticFlow) -> object:
    """The noise that the flow, or the flow that it wraps, states; None without one."""
    return flow.declared_noise


def check_shared(flow: StochasticFlow, descent: Descent) -> None:
    """Raise ValueError if flow and descent draw different mini-batches."""
    noise = gradient_noise(flow)
    for name in ("batch_size", "sampling"):
        ours = getattr(descent, name)
        if getattr(noise, name, ours) != ours:
            raise ValueError(
                f"{name} of {flow.name} is {getattr(noise, name)!r}, of the descent {ours!r}: coupled, they must agree"
            )


def check_coupled(flow: StochasticFlow, path: MinibatchPath) -> None:
    """Raise UnsupportedError unless the path's mini-batches, epochs included, can be the flow's noise."""
    size, sampling = path.shape[-1], path.sampling
    if flow.noise_size != size or not isinstance(gradient_noise(flow), MinibatchNoise):
        raise UnsupportedError(
            f"coupled flows are driven by the weights of the {size} examples in each mini-batch, but the noise of "
            f"{flow.name} has size {flow.noise_size}: compare it with coupled=False (a flow of your own "
            "can be coupled if the noise that it holds is a MinibatchNoise)"
        )
    if flow.noise_period is None and sampling.diffusion_factor() != sampling.variance_factor():
        raise UnsupportedError(
            f"the noise of {flow.name} is that of single steps, while the noise of reshuffled epochs sums to zero: "
            "use StochasticModifiedEquation with sampling='epoch'"
        )


@dataclass(frozen=True)
class FlowRuns:
    """Runs of a stochastic flow along one noise: at dt and, ``fine``, at dt/2, None if the former was interrupted."""

    run: Trajectory
    fine: Trajectory | None
    reference: Reference
    dt: float

    @property
    def members(self) -> Tensor:
        """θ (T', runs, ..., d)."""
        return self.reference.by_runs(self.run.theta)

    @property
    def own(self) -> Tensor:
        """A mask (T', ...) of the times with a frozen run."""
        return self.reference.by_runs(frozen_mask(self.run, self.dt)).any(dim=1)

    @property
    def finer(self) -> Tensor:
        """θ (T'', runs, ..., d) at dt/2."""
        assert self.fine is not None
        return self.reference.by_runs(self.fine.theta)

    @property
    def whole(self) -> bool:
        """Whether no run was interrupted."""
        return self.fine is not None and self.fine.status != "interrupted"

    @property
    def integration(self) -> Tensor:
        """Mean over the runs of ‖X − X_fine‖ (T, ...)."""
        both = min(len(self.members), len(self.finer))
        return distance(self.members[:both], self.finer[:both]).mean(dim=1).masked_fill(self.own[:both], math.nan)

    @property
    def losses(self) -> Tensor:
        """Mean over the runs of f(X) (T', ...)."""
        return real_loss(self.reference.landscape, self.members).mean(dim=1).masked_fill(self.own, math.nan)


def run_flow(
    flow: StochasticFlow, reference: Reference, along: Drive, progress: bool, save: Callable[[Trajectory], None]
) -> FlowRuns:
    """The runs of a flow along a noise, as many as the descent's; the first is saved as soon as it is finished."""
    run = along.run(flow, reference.theta0, reference.times, along.dt, progress=progress)
    save(run)
    fine = None
    if run.status != "interrupted":
        fine = along.run(flow, reference.theta0, reference.times, along.dt / 2, progress=progress)
    return FlowRuns(run, fine, reference, along.dt)


def stochastic_row(
    flow: StochasticFlow,
    reference: Reference,
    along: Drive,
    laws: Laws | None,
    progress: bool,
    save: Callable[..., None],
) -> Row:
    """The row of one stochastic flow, from as many runs as the descent has; coupled, laws are of as many others."""
    if along.path is not None:
        check_coupled(flow, along.path)
    runs = run_flow(flow, reference, along, progress, save)
    row = begin_row(flow, runs, along.coupled)
    if row.interrupted:
        return row
    if not along.coupled:
        assert laws is not None
        return end_row(with_laws(row, runs, laws), runs.whole)
    row, whole = with_single_steps(replace(row, losses=pad(runs.losses, row.losses)), flow, along, runs)
    if laws is None or not whole:
        return end_row(row, whole)
    apart = run_flow(flow, reference, along.independent, progress, partial(save, part=LAWS))
    row = replace(row, ensemble=apart.run)
    return end_row(row if apart.fine is None else with_laws(row, apart, laws), apart.whole)


def begin_row(flow: StochasticFlow, runs: FlowRuns, coupled: bool) -> Row:
    """The row with its errors and integration errors, all else NaN."""
    run, members, reference = runs.run, runs.members, runs.reference
    nothing = torch.full(reference.mean.shape[:-1], math.nan, dtype=run.theta.dtype, device=run.theta.device)
    descents = reference.members[: len(members)]
    notes = notes_on_pair(flow, reference.descent)
    if coupled:
        errors = distance(members, descents).mean(dim=1)
    elif reference.runs > 1:
        errors = distance(members.mean(dim=1), descents.mean(dim=1))
    else:
        errors = nothing[: len(members)]
        notes = (*notes, "no distance: laws cannot be compared from one run of each; give runs, or coupled=True")
    gone = runs.own | reference.lost[: len(members)]
    return Row(
        trajectory=run,
        errors=pad(errors.masked_fill(gone, math.nan), nothing),
        one_step=nothing[1:],
        integration=nothing if runs.fine is None else pad(runs.integration, nothing),
        losses=nothing,
        mean=members.mean(dim=1),
        notes=notes,
        interrupted=runs.fine is None,
    )


def end_row(row: Row, whole: bool) -> Row:
    """The row of whole runs, or of runs that an interrupt has ended, with a note on that."""
    return row if whole else replace(row, notes=(*row.notes, CUT_SHORT), interrupted=True)


def with_laws(row: Row, runs: FlowRuns, laws: Laws) -> Row:
    """The row with the laws of runs that are independent of the descent, and with their losses if they are its own."""
    nothing = torch.full_like(row.errors, math.nan)
    weak = {
        name: error.on_clock(nothing) for name, error in laws.weak_errors(runs.members, runs.finer, runs.own).items()
    }
    return replace(row, weak=weak, losses=row.losses if row.ensemble is runs.run else weak[LOSS].mean)


def with_single_steps(row: Row, flow: StochasticFlow, along: Drive, runs: FlowRuns) -> tuple[Row, bool]:
    """The row with the errors of single steps or with the reason why there are none; False after an interrupt."""
    reference = runs.reference
    if lacks_memory(flow, reference.descent):
        return replace(row, notes=(*row.notes, NO_MEMORY)), runs.whole
    if lacks_velocity(flow, reference):
        return replace(row, notes=(*row.notes, NO_VELOCITY)), runs.whole
    if not runs.whole:
        return row, False
    one_step, whole = one_step_errors(flow, reference, along)
    return replace(row, one_step=one_step), whole


class StepPath(NoisePath):
    """The increments of one step of the descent, from t0."""

    def __init__(self, path: NoisePath, increments: list[Tensor], t0: float, h: float):
        self.t0, self.t1, self.finest_dt = t0, t0 + h, h / len(increments)
        self._shape, self._increments = path.shape, increments

    @property
    def shape(self) -> tuple[int, ...]:
        return self._shape

    @property
    def levels(self) -> int:
        return 0

    def roots(self) -> Iterator[Tensor]:
        return iter(self._increments)

    def increments(self, start: float, dt: float, steps: int, period: float | None = None) -> Iterator[Tensor]:
        return iter(self._increments)


def one_step_errors(flow: StochasticFlow, reference: Reference, along: Drive) -> tuple[Tensor, bool]:
    r"""Mean over the runs of ‖X(t_{k+1}; θ_k) − θ_{k+1}‖ (T−1, ...) with the mini-batch of step k, at dt/2.

    The second value is False after a KeyboardInterrupt, and the errors from that step on are NaN.
    """
    assert along.path is not None
    steps, h, dt = len(reference.times) - 1, reference.h, along.dt / 2
    each = round(h / dt)
    increments = along.path.increments(0.0, dt, steps * each)
    errors = torch.full(
        reference.mean[1:].shape[:-1], math.nan, dtype=reference.mean.dtype, device=reference.mean.device
    )
    for k in range(steps):
        path = StepPath(along.path, list(islice(increments, each)), float(reference.times[k]), h)
        start = reference.members[k] if reference.runs > 1 else reference.members[k, 0]
        velocity = None if reference.velocities is None else reference.velocities[k]
        here: Tensor | State = start
        if velocity is not None:
            here = State(flow.resume(start, velocity), float(reference.times[k]))
        run = integrate(flow, here, reference.times[k : k + 2], method=along.method, dt=dt, path=path, keep="last")
        if run.status == "interrupted":
            return errors, False
        gap = distance(run.theta[-1], reference.run.theta[k + 1])
        gap = torch.where(run.alive, gap, math.nan)
        errors[k] = gap.mean(dim=0) if reference.runs > 1 else gap
    return errors, True
