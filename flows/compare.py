r"""``compare``: flows beside a descent on one clock, the model's error told apart from the integrator's.

Three runs a flow: along the descent's times as asked; again at tighter tolerance, whose distance to the first is the
integration error; and over single steps from every iterate of the descent, at the tighter tolerance, whose distance to
the next iterate is the model's one-step error.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from flows.comparison import Comparison, Row, slug
from flows.descend import descend
from flows.engine import Resumed, check_theta0, extreme_eigenvalue
from flows.flow import BranchError, Descent, Flow, StochasticDescent
from flows.integrate import integrate
from flows.solvers import ADAPTIVE, EXPONENTIAL
from flows.trajectory import Trajectory, writable_folder
from landscapes import Landscape, UnsupportedError
from landscapes.errors import check_count

CURVATURE_SAMPLES = 5  # iterates at which max |hλ| is estimated where a flow's series has a radius
MAX_STEPS = 2_000  # of an adaptive method from one output time to the next: beyond, |hλ| is in the thousands
TIGHTER = 10  # by how much the second run's tolerances are smaller


def compare(
    descent: Descent,
    flows: Mapping[str, Flow] | Sequence[Flow],
    theta0: Tensor,
    steps: int,
    *,
    runs: int = 1,
    seed: int = 0,
    method: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    dt: float | None = None,
    folder: str | os.PathLike[str] | None = None,
    progress: bool = False,
) -> Comparison:
    r"""Run the descent for ``steps`` steps and every flow along its clock, from θ0 (..., d).

    ``flows``: name → Flow, or flows with names of their own. ``runs`` repeats a stochastic descent; flows are then
    held against its mean, and one-step errors are taken against the full-batch step from the first run's iterates.
    ``method``, ``rtol``, ``atol`` and ``dt`` are those of ``integrate``. With ``folder`` every trajectory is on disk as
    soon as it is finished.

    A flow's h must be the descent's. A flow that cannot run here (complex θ on a loss that is not holomorphic, say) is
    a row that says why. Raises ValueError or TypeError for arguments out of place.
    """
    named = check_flows(flows, descent)
    theta0 = check_theta0(theta0)
    check_count("runs", runs)
    if runs > 1 and not isinstance(descent, StochasticDescent):
        raise ValueError(f"runs is for stochastic descents, got {runs} with {type(descent).__name__}; leave it at 1")
    check_full_batch_steps(descent, theta0)
    store = None if folder is None else writable_folder(folder)
    start = theta0.expand(runs, *theta0.shape) if runs > 1 else theta0
    run = descend(descent, start, steps, seed=seed, progress=progress)
    if len(run.times) < 2:
        raise ValueError(f"nothing to compare: {run.status.sentence}")
    against = Reference(descent, run, runs)
    name = unique_name(type(descent).__name__, named)
    keep(run, store, name)
    settings: dict[str, Any] = {"method": method, "rtol": rtol, "atol": atol, "dt": dt, "max_steps": MAX_STEPS}
    rows: dict[str, Row] = {}
    for label, flow in named.items():
        rows[label] = make_row(flow, theta0, against, settings, progress)
        keep(rows[label].trajectory, store, label)
        if rows[label].trajectory is not None and rows[label].trajectory.status == "interrupted":  # type: ignore[union-attr]
            break
    return Comparison(
        name=name,
        descent=run,
        mean=against.mean,
        descent_losses=against.losses,
        rows=rows,
        runs=runs,
        standard_error=against.standard_error,
        noise_floor=against.noise_floor,
        landscape=descent.landscape,
        settings={**settings, "seed": seed, "h": float(descent.h)},
    )


def check_full_batch_steps(descent: Descent, theta0: Tensor) -> None:
    """Raise for a stochastic descent with momentum: θ alone does not say what its full-batch step is."""
    if isinstance(descent, StochasticDescent) and descent.velocity(descent.start(theta0)) is not None:
        raise UnsupportedError(
            f"compare takes full-batch steps from θ alone, and {type(descent).__name__} carries a velocity: run it "
            "with descend and the flow with integrate, or compare the deterministic descent that full_batch() gives"
        )


def check_flows(flows: Mapping[str, Flow] | Sequence[Flow], descent: Descent) -> dict[str, Flow]:
    """The flows by name; raise where names clash, something is no flow, or a learning rate is not the descent's."""
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must be a Descent, got {type(descent).__name__}")
    if isinstance(flows, Flow) or not isinstance(flows, (Mapping, Sequence)) or not flows:
        raise TypeError(f"flows must be a non-empty mapping name -> Flow or a sequence of Flows, got {flows!r}")
    members = list(flows.values() if isinstance(flows, Mapping) else flows)
    for flow in members:
        if not isinstance(flow, Flow):
            raise TypeError(f"flows must hold Flows, got {type(flow).__name__}")
        h = getattr(flow, "h", descent.h)
        if not math.isclose(h, descent.h, rel_tol=1e-12):
            raise ValueError(f"h of {flow.name} is {h!r}, of the descent {descent.h!r}: they must agree")
    names = list(flows) if isinstance(flows, Mapping) else [flow.name for flow in members]
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"flows must have strings for names, got {name!r}")
    if len(set(map(slug, names))) < len(names):
        raise ValueError(f"flows must have unique names, got {names}; give a mapping name -> Flow")
    return dict(zip(names, members, strict=True))


def unique_name(name: str, taken: Mapping[str, object]) -> str:
    """The descent's name, set apart from the flows'."""
    slugs = set(map(slug, taken))
    while slug(name) in slugs:
        name = f"{name} (descent)"
    return name


def keep(run: Trajectory | None, store: Path | None, name: str) -> None:
    """Put a finished trajectory on disk where a folder was given."""
    if run is not None and store is not None:
        run.save(store / slug(name))


class Reference:
    """What flows are held against: the descent's iterates or their mean, its single steps, and its curvature."""

    def __init__(self, descent: Descent, run: Trajectory, runs: int):
        self.h = descent.h
        self.landscape: Landscape = descent.landscape
        self.times = run.times
        self.mean = run.theta.mean(dim=1) if runs > 1 else run.theta
        self.lost = lost(run).any(dim=1) if runs > 1 else lost(run)
        self.losses = real_loss(self.landscape, run.theta)
        self.losses = self.losses.mean(dim=1) if runs > 1 else self.losses
        self.standard_error = run.theta.var(dim=1).sum(dim=-1).div(runs).sqrt() if runs > 1 else None
        iterates = run.theta[:, 0] if runs > 1 else run.theta
        self.starts = iterates[:-1]
        self.ends = iterates[1:]
        self.noise_floor: Tensor | None = None
        if isinstance(descent, StochasticDescent):
            mean = descent.full_batch()
            generator = torch.Generator(self.starts.device)  # a full-batch step draws nothing from it
            self.ends = mean.position(mean.step(mean.start(self.starts), 0, generator))
            self.noise_floor = torch.stack([descent.step_noise(theta) for theta in self.starts])
        self._curvature: float | None = None
        self._descent = descent
        self._theta0 = run.theta[0]

    @cached_property
    def velocities(self) -> Tensor | None:
        """v (T−1, ..., d) at the starts of the steps, which a deterministic descent takes again; None without one."""
        if isinstance(self._descent, StochasticDescent):
            return None
        state, velocities = self._descent.start(self._theta0), []
        generator = torch.Generator(self._theta0.device)
        for k in range(len(self.starts)):
            velocity = self._descent.velocity(state)
            if velocity is None:
                return None
            velocities.append(velocity)
            state = self._descent.step(state, k, generator)
        return torch.stack(velocities)

    def curvature(self) -> float:
        """The largest |hλ| seen at a few iterates along the descent."""
        if self._curvature is None:
            places = torch.linspace(0, len(self.mean) - 1, min(CURVATURE_SAMPLES, len(self.mean))).round().long()
            members = self.mean[places].reshape(-1, self.mean.shape[-1])
            eigenvalues = [extreme_eigenvalue(self.landscape, theta) for theta in members]
            self._curvature = self.h * max(abs(0.0 if e is None else e) for e in eigenvalues)
        return self._curvature


def real_loss(landscape: Landscape, theta: Tensor) -> Tensor:
    """f(θ), the real part where θ is complex."""
    with torch.no_grad():
        loss = landscape.loss(theta)
    return loss.real if loss.is_complex() else loss


def tighter(settings: Mapping[str, Any], dtype: torch.dtype) -> dict[str, Any]:
    """The same run with a smaller integration error: tolerances down by TIGHTER, or half the step."""
    if settings["dt"] is not None:
        return {**settings, "dt": settings["dt"] / 2}
    floor = 50 * torch.finfo(dtype).eps  # below it an adaptive method fights rounding
    rtol, atol = (settings["rtol"], settings["atol"])
    loose = (1e-7, 1e-9) if dtype == torch.float64 else (1e-4, 1e-6)
    rtol, atol = loose[0] if rtol is None else rtol, loose[1] if atol is None else atol
    return {**settings, "rtol": max(rtol / TIGHTER, min(rtol, floor)), "atol": atol / TIGHTER}


def make_row(flow: Flow, theta0: Tensor, against: Reference, settings: dict[str, Any], progress: bool) -> Row:
    """Everything about one flow; a row without a trajectory where it cannot run on this landscape."""
    try:
        run = integrate(flow, theta0, against.times, progress=progress, **settings)
    except (UnsupportedError, BranchError) as error:
        shape = against.mean.shape[:-1]
        nothing = torch.full(shape, math.nan)
        return Row(None, nothing, nothing[1:], nothing, nothing, notes=(f"cannot run here: {error}",))
    nothing = torch.full(against.mean.shape[:-1], math.nan, dtype=run.theta.abs().dtype, device=theta0.device)
    if run.status == "interrupted":
        return Row(
            run, padded(distance(run.theta, against.mean[: len(run.theta)]), nothing), nothing[1:], nothing, nothing
        )
    fine_settings = tighter(settings, theta0.abs().dtype)
    fine = integrate(flow, theta0, against.times, progress=progress, **fine_settings)
    both = min(len(run.theta), len(fine.theta))
    gone = lost(run) | against.lost[: len(run.theta)]
    return Row(
        trajectory=run,
        errors=padded(distance(run.theta, against.mean[: len(run.theta)]).masked_fill(gone, math.nan), nothing),
        one_step=one_step_errors(flow, against, fine_settings),
        integration=padded(distance(run.theta[:both], fine.theta[:both]), nothing),
        losses=padded(real_loss(against.landscape, run.theta), nothing),
        imaginary=padded(run.theta.imag.abs().amax(dim=-1), nothing) if run.theta.is_complex() else None,
        outside=outside_series(flow, against),
        notes=("no one-step errors: the descent carries no velocity to start from",) if silent(flow, against) else (),
    )


def distance(left: Tensor, right: Tensor) -> Tensor:
    """‖left − right‖ over the last dimension, by modulus."""
    return torch.linalg.vector_norm(left - right, dim=-1)


def lost(run: Trajectory) -> Tensor:
    """Where a state (T, ...) only repeats the last finite one of a member that has left the run."""
    stays = (run.theta[1:] == run.theta[:-1]).all(dim=-1).flip(0).long().cumprod(0).flip(0).bool()
    return torch.cat([torch.zeros_like(run.alive)[None], stays & ~run.alive])


def padded(values: Tensor, nothing: Tensor) -> Tensor:
    """Values (T', ...) of a run that may have ended early on the full clock (T, ...), NaN past its end."""
    return torch.cat([values, nothing[len(values) :]])


def one_step_errors(flow: Flow, against: Reference, settings: dict[str, Any]) -> Tensor:
    """‖X(t_{k+1}; θ_k) − θ_{k+1}‖ (T−1, ...): one batch of starts for each length of step; NaN where a run failed."""
    lengths = against.times.diff()
    errors = torch.full(against.starts.shape[:-1], math.nan, dtype=against.starts.abs().dtype).to(against.starts.device)
    if silent(flow, against):
        return errors
    remaining = torch.ones(len(lengths), dtype=torch.bool)
    while bool(remaining.any()):
        length = float(lengths[remaining][0])
        chosen = remaining & ((lengths - length).abs() <= 1e-9 * length)
        remaining &= ~chosen
        where = chosen.to(against.starts.device)
        # One step is about as far as an adaptive method goes at once: try it whole.
        first_step = length if settings["dt"] is None and settings["method"] in (None, *ADAPTIVE, EXPONENTIAL) else None
        starts = against.starts[where]
        model = flow
        if carries_velocity(flow) and against.velocities is not None:
            model = Resumed(flow, flow.resume(starts, against.velocities[where]))
        run = integrate(model, starts, [0.0, length], keep="last", first_step=first_step, **settings)
        gap = distance(run.theta[-1], against.ends[where])
        errors[where] = torch.where(run.alive, gap, math.nan)
    return errors


def carries_velocity(flow: Flow) -> bool:
    """Whether the flow's state holds more than θ, so that θ alone does not say how it goes on."""
    return type(flow).resume is not Flow.resume


def silent(flow: Flow, against: Reference) -> bool:
    """Whether one-step errors cannot be had: the flow needs a velocity that the descent does not carry."""
    return carries_velocity(flow) and against.velocities is None


def outside_series(flow: Flow, against: Reference) -> float | None:
    """The largest |hλ| along the descent where it reaches the radius of the flow's series, else None."""
    largest = 0.0 if math.isinf(flow.radius) else against.curvature()
    return largest if largest >= flow.radius else None
