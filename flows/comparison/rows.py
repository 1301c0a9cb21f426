r"""``compare``: flows beside a descent on one clock, the model's error separated from the integrator's.

Each flow is integrated three times: along the times of the descent; again at tighter tolerance, where
the distance between the two runs is the integration error; and over single steps from every iterate of the descent, at
the tighter tolerance, where the distance to the next iterate is the model's one-step error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from flows.comparison.data import CUT_SHORT, Row
from flows.comparison.laws import LOSS, Laws, Observables, WeakError, check_observables
from flows.comparison.pairs import NO_MEMORY, lacks_memory, notes_on_pair, on_clock_of
from flows.comparison.reference import (
    NO_VELOCITY,
    Reference,
    carries_velocity,
    distance,
    frozen_mask,
    lacks_velocity,
    pad,
    real_loss,
)
from flows.comparison.result import Comparison, slug
from flows.comparison.stochastic_rows import Drive, drive_of, stochastic_row
from flows.descent import Descent, StochasticDescent
from flows.engines.counting import check_theta0
from flows.engines.integrate import integrate
from flows.engines.locks import FolderLock
from flows.engines.methods import ADAPTIVE, DETERMINISTIC, EXPONENTIAL, FIXED, METHODS
from flows.engines.state import State
from flows.engines.stochastic import STOCHASTIC
from flows.engines.trajectory import Trajectory
from flows.flow import BranchError, Flow, StochasticFlow
from landscapes import UnsupportedError
from landscapes.errors import MOST, check_choice, check_count, check_positive, short_form

MAX_STEPS = 2_000  # of an adaptive method from one output time to the next: beyond, |hλ| is in the thousands
TIGHTER = 10  # the factor between the tolerances of the two runs


def compare(
    descent: Descent,
    flows: Mapping[str, Flow] | Sequence[Flow],
    theta0: Tensor,
    steps: int,
    *,
    runs: int = 1,
    coupled: bool = False,
    observables: Observables | None = None,
    seed: int = 0,
    method: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    dt: float | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Comparison:
    r"""Run the descent for ``steps`` steps and integrate every flow along its clock, from θ0 (..., d).

    ``flows``: name → Flow, or a sequence of flows with unique names. ``runs`` repeats a stochastic descent; flows are
    then compared with its mean, and one-step errors are taken against the full-batch step from the iterates of the
    first run (each from time zero: for velocities that do not depend on t). ``method``, ``rtol``, ``atol`` and ``dt``
    are passed to ``integrate``. With ``folder`` every trajectory is saved as soon as it is finished.
    KeyboardInterrupt ends the comparison; the result has the rows so far, and ``check_uninterrupted`` raises it again.

    Stochastic flows take steps of ``dt``, by default an eighth of the descent's shortest step (h/8 at a constant rate),
    and run as often as the descent. Their laws are compared: E f, E‖∇f‖² and the user's ``observables`` (name → φ, θ
    (n, ..., d) ↦ (n, ...)), each with its standard error and integration error. The laws of deterministic flows are
    compared as well if there is a stochastic flow or if ``observables`` are given.

    ``coupled`` drives stochastic flows by the descent's own mini-batches and compares paths only: mini-batches are not
    Brownian between the steps (``MinibatchPath``), and means along them no laws. With ``coupled`` and ``observables``,
    {} for E f and E‖∇f‖² alone, each stochastic flow also has as many runs independent of the descent, of which its
    laws are taken and which its cost includes. dt must then be h over a power of two, and the descent a
    ``MinibatchDescent`` that ``couples``, as StochasticGradientDescent does. With stochastic flows, a ``method`` that
    solves SDEs applies to those only; any other method applies to the deterministic flows, which use ``dt`` only if the
    method has fixed steps.

    A flow's learning rate (``declared_rate``) must equal the descent's, or, for a scaled momentum flow beside torch's
    momentum, h = √lr and μ = (1 − β)/√lr: it then runs on the descent's clock (``TorchMomentumFlow``). A flow that
    states no rate, models another rule than the descent's or has another landscape has a note in its row. A flow that
    cannot run here (complex θ on a loss that is not holomorphic, say) gives a row with the reason. Raises ValueError or
    TypeError for invalid arguments.
    """
    named = named_flows(flows, descent)
    theta0 = check_start(theta0, descent)
    runs = check_runs(runs, descent)
    noisy = [isinstance(flow, StochasticFlow) for flow in named.values()]
    settings = settings_of(method, rtol, atol, dt, noisy=any(noisy))
    drive = drive_of(named, descent, theta0, steps, method=method, dt=dt, seed=seed, runs=runs, coupled=coupled)
    check_observables(observables, descent.stated_landscape, theta0)
    store = None if folder is None else FolderLock(folder)  # until the comparison ends
    reference = Reference(descent, theta0, steps, runs, seed, progress, mean_steps=not all(noisy))
    run = reference.run
    if len(run.times) < 2:
        raise ValueError(f"nothing to compare: {run.check_uninterrupted().status.sentence}")
    if drive is not None:
        drive = drive.on_clock(run.times, descent.clock_rate, chosen=dt is not None)
    name = unique_name(type(descent).__name__, named)
    keep(store, name, run)
    asked = observables is not None or (drive is not None and not drive.coupled)
    laws = Laws.of(observables, reference) if asked and not theta0.is_complex() else None
    rows = make_rows(named, theta0, reference, settings, drive, laws, progress, partial(keep, store))
    return Comparison(
        name=name,
        descent=run,
        mean=reference.mean,
        descent_losses=reference.losses,
        rows=rows,
        runs=runs,
        standard_error=reference.standard_error,
        noise_floor=reference.noise_floor,
        landscape=descent.stated_landscape,
        observed={} if laws is None else laws.means,
        coupled=coupled,
        settings={
            **settings,
            "seed": int(seed),
            "h": float(descent.clock_rate),
            **({} if drive is None else {"dt": drive.dt}),
        },
    )


def make_rows(
    flows: Mapping[str, Flow],
    theta0: Tensor,
    reference: Reference,
    settings: dict[str, Any],
    drive: Drive | None,
    laws: Laws | None,
    progress: bool,
    save: Callable[..., None],
) -> dict[str, Row]:
    """One row a flow, in order; an interrupted one is the last, and there is none after an interrupted descent."""
    rows: dict[str, Row] = {}
    if reference.run.status == "interrupted":
        return rows
    for name, flow in flows.items():
        keep_run = partial(save, name)
        if isinstance(flow, StochasticFlow):
            rows[name] = noisy_row(flow, reference, drive, laws, progress, keep_run)
        else:
            rows[name] = make_row(
                flow, theta0, reference, settings_without_noise(settings, drive), laws, progress, keep_run
            )
        if rows[name].interrupted:
            break
    return rows


def check_start(theta0: Tensor, descent: Descent) -> Tensor:
    """θ0 detached; raise unless it is a finite floating tensor (..., d) of the dimension of the descent's landscape."""
    theta0, landscape = check_theta0(theta0), descent.stated_landscape
    if theta0.shape[-1] != landscape.dimension:
        raise ValueError(
            f"theta0 must have shape (..., {landscape.dimension}), the dimension of the descent's landscape, "
            f"{type(landscape).__name__}, got {tuple(theta0.shape)}"
        )
    return theta0


def check_runs(runs: int, descent: Descent) -> int:
    """The number of runs; raise unless it is a positive integer, and 1 for a descent without noise."""
    runs = check_count("runs", runs, maximum=MOST)
    if runs > 1 and not isinstance(descent, StochasticDescent):
        raise ValueError(f"runs is for stochastic descents, got {runs} with {type(descent).__name__}; leave it at 1")
    return runs


def settings_of(
    method: str | None, rtol: float | None, atol: float | None, dt: float | None, *, noisy: bool
) -> dict[str, Any]:
    """The keyword arguments of ``integrate``; raise for an unknown method, even if no flow would use it."""
    if method is not None:
        check_choice("method", method, tuple(METHODS) if noisy else DETERMINISTIC)
    numbers = {"rtol": rtol, "atol": atol, "dt": dt}
    given = {name: None if value is None else check_positive(name, value) for name, value in numbers.items()}
    return {"method": method, **given, "max_steps": MAX_STEPS}


def settings_without_noise(settings: dict[str, Any], drive: Drive | None) -> dict[str, Any]:
    """The settings of flows without noise: beside stochastic flows, without the options that apply to those only."""
    if drive is None:
        return settings
    method = None if settings["method"] in STOCHASTIC else settings["method"]
    return {**settings, "dt": settings["dt"] if method in FIXED else None, "method": method}


def noisy_row(
    flow: StochasticFlow,
    reference: Reference,
    drive: Drive | None,
    laws: Laws | None,
    progress: bool,
    save: Callable[..., None],
) -> Row:
    """The row of a stochastic flow; without a trajectory if the flow cannot run on this landscape."""
    assert drive is not None
    if reference.theta0.is_complex():
        given = reference.theta0.dtype
        return cannot_run(UnsupportedError(f"a stochastic flow has real states only, got theta0 of {given}"), reference)
    try:
        return stochastic_row(flow, reference, drive, laws, progress, save)
    except UnsupportedError as error:
        return cannot_run(error, reference)


def cannot_run(error: Exception, reference: Reference) -> Row:
    """A row of NaN with the reason as its note."""
    nothing = torch.full(reference.mean.shape[:-1], math.nan)
    return Row(None, nothing, nothing[1:], nothing, nothing, notes=(f"cannot run here: {error}",))


def named_flows(flows: Mapping[str, Flow] | Sequence[Flow], descent: Descent) -> dict[str, Flow]:
    """The flows by name, on the descent's clock; raise unless names are unique, all are Flows, and rates agree."""
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must be a Descent, got {type(descent).__name__}")
    if isinstance(flows, Flow) or not isinstance(flows, (Mapping, Sequence)) or not flows:
        raise TypeError(
            f"flows must be a non-empty mapping name -> Flow or a sequence of Flows, got {short_form(flows)}"
        )
    members = list(flows.values() if isinstance(flows, Mapping) else flows)
    for flow in members:
        if not isinstance(flow, Flow):
            raise TypeError(f"flows must hold Flows, got {type(flow).__name__}")
    names = list(flows) if isinstance(flows, Mapping) else [flow.name for flow in members]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"flows must have strings for names, got {short_form(name)}")
    if len(set(map(slug, names))) < len(names):
        raise ValueError(f"flows must have unique names, got {names}; give a mapping name -> Flow")
    return {name: on_clock_of(descent, flow) for name, flow in zip(names, members, strict=True)}


def unique_name(name: str, taken: Mapping[str, object]) -> str:
    """The descent's name, made different from the flows' names."""
    slugs = set(map(slug, taken))
    while slug(name) in slugs:
        name = f"{name} (descent)"
    return name


def keep(store: FolderLock | None, name: str, run: Trajectory, part: str = "") -> None:
    """Save a trajectory that was not interrupted if a folder was given, in its flow's folder or a ``part`` of that."""
    if store is not None and run.status != "interrupted":
        run.save(store.folder / slug(name) / part)


def tighten(settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same run with a smaller integration error: tolerances down by TIGHTER, or half the step."""
    if settings["dt"] is not None:
        return {**settings, "dt": settings["dt"] / 2}
    floor = 50 * torch.finfo(dtype).eps  # at smaller tolerances rounding dominates an adaptive method's error estimate
    rtol, atol = (settings["rtol"], settings["atol"])
    loose = (1e-7, 1e-9) if dtype == torch.float64 else (1e-4, 1e-6)
    rtol, atol = loose[0] if rtol is None else rtol, loose[1] if atol is None else atol
    return {**settings, "rtol": max(rtol / TIGHTER, min(rtol, floor)), "atol": atol / TIGHTER}


def make_row(
    flow: Flow,
    theta0: Tensor,
    reference: Reference,
    settings: dict[str, Any],
    laws: Laws | None,
    progress: bool,
    save: Callable[[Trajectory], None],
) -> Row:
    """The row of a flow without noise; without a trajectory if the flow cannot run on this landscape."""
    try:
        run = integrate(flow, theta0, reference.times, progress=progress, **settings)
    except (UnsupportedError, BranchError) as error:
        return cannot_run(error, reference)
    save(run)
    nothing = torch.full(reference.mean.shape[:-1], math.nan, dtype=run.theta.abs().dtype, device=theta0.device)
    if run.status == "interrupted":
        errors = pad(distance(run.theta, reference.mean[: len(run.theta)]), nothing)
        return Row(run, errors, nothing[1:], nothing, nothing, mean=run.theta, interrupted=True)
    fine_settings = tighten(settings, theta0.abs().dtype)
    fine = integrate(flow, theta0, reference.times, progress=progress, **fine_settings)
    one_step, whole = one_step_errors(flow, reference, fine_settings, begin=fine.status != "interrupted")
    notes = (*notes_on_pair(flow, reference.descent), *one_step_reason(flow, reference))
    both = min(len(run.theta), len(fine.theta))
    own = frozen_mask(run, settings["dt"])
    gone = own | reference.lost[: len(run.theta)]
    weak = weak_errors(run, fine, own, laws, nothing)
    return Row(
        trajectory=run,
        errors=pad(distance(run.theta, reference.mean[: len(run.theta)]).masked_fill(gone, math.nan), nothing),
        one_step=one_step,
        integration=pad(distance(run.theta[:both], fine.theta[:both]).masked_fill(own[:both], math.nan), nothing),
        losses=weak[LOSS].mean if weak else pad(losses_of(run, own, reference), nothing),
        imaginary=pad(run.theta.imag.abs().amax(dim=-1), nothing) if run.theta.is_complex() else None,
        outside=outside_series(flow, reference),
        mean=run.theta,
        weak=weak,
        notes=notes if whole else (*notes, CUT_SHORT),
        interrupted=not whole,
    )


def one_step_reason(flow: Flow, reference: Reference) -> tuple[str, ...]:
    """The note of a flow whose single steps cannot be compared with the descent's; empty if they can."""
    if lacks_memory(flow, reference.descent):
        return (NO_MEMORY,)
    return (NO_VELOCITY,) if lacks_velocity(flow, reference) else ()


def losses_of(run: Trajectory, own: Tensor, reference: Reference) -> Tensor:
    """f along a run without noise, NaN for frozen members."""
    return real_loss(reference.landscape, run.theta).masked_fill(own, math.nan)


def weak_errors(
    run: Trajectory, fine: Trajectory, own: Tensor, laws: Laws | None, nothing: Tensor
) -> dict[str, WeakError]:
    """φ(X) − E φ(θ) for a flow without noise; empty if no laws are compared or θ is complex."""
    if laws is None or run.theta.is_complex():
        return {}
    found = laws.weak_errors(run.theta[:, None], fine.theta[:, None], own)
    return {name: error.on_clock(nothing) for name, error in found.items()}


def one_step_errors(
    flow: Flow, reference: Reference, settings: dict[str, Any], *, begin: bool = True
) -> tuple[Tensor, bool]:
    """‖X(t_{k+1}; θ_k) − θ_{k+1}‖ (T−1, ...): one batch of starts for each length of step; NaN where a run failed.

    The second value is False after a KeyboardInterrupt, and the remaining errors are NaN; all are unless ``begin``.
    """
    lengths, velocities = reference.times.diff(), reference.first_velocities
    errors = torch.full(reference.starts.shape[:-1], math.nan, dtype=reference.starts.abs().dtype).to(
        reference.starts.device
    )
    if one_step_reason(flow, reference) or not begin:
        return errors, begin
    remaining = torch.ones(len(lengths), dtype=torch.bool)
    while bool(remaining.any()):
        length = float(lengths[remaining][0])
        chosen = remaining & ((lengths - length).abs() <= 1e-9 * length)
        remaining &= ~chosen
        where = chosen.to(reference.starts.device)
        # One step of the descent is about one step of an adaptive method: try it whole.
        first_step = length if settings["dt"] is None and settings["method"] in (None, *ADAPTIVE, EXPONENTIAL) else None
        starts = reference.starts[where]
        begin_at: Tensor | State = starts
        if carries_velocity(flow) and velocities is not None:
            begin_at = State(flow.resume(starts, velocities[where]))
        run = integrate(flow, begin_at, [0.0, length], keep="last", first_step=first_step, **settings)
        if run.status == "interrupted":
            return errors, False
        gap = distance(run.theta[-1], reference.ends[where])
        errors[where] = torch.where(run.alive, gap, math.nan)
    return errors, True


def outside_series(flow: Flow, reference: Reference) -> float | None:
    """The largest |hλ| along the descent if it reaches the radius of the flow's series, else None."""
    largest = 0.0 if math.isinf(flow.radius) else reference.curvature()
    return largest if largest >= flow.radius else None
