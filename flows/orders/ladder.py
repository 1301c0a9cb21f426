r"""Observed orders: the decrease of the error of a flow against a descent along a ladder of learning rates.

A model of order p has a one-step error ‖X(h; θ0) − θ_1‖ = C h^{p+1} + O(h^{p+2}), and at a fixed time T, after T/h
steps, an error C h^p + O(h^{p+1}). Each rung is integrated twice, near rounding and ten times looser (or in steps twice
as long): the distance of the two is recorded as its integration error and compared with the model's error.
Approximations within an evaluation of the velocity (a Krylov tolerance) are the same in both runs and are not detected.
``orders.fit`` fits orders to the errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from flows.descent import Descent, StochasticDescent
from flows.engines.counting import all_finite, check_theta0, extreme_eigenvalue
from flows.engines.descend import descend
from flows.engines.endings import KINDS
from flows.engines.integrate import integrate
from flows.engines.methods import ADAPTIVE, DETERMINISTIC, EXPONENTIAL, FIXED
from flows.engines.state import State
from flows.flow import Flow
from flows.orders.fit import FRACTION, OrderStudy
from landscapes import Landscape, UnsupportedError
from landscapes.errors import MOST, as_list, check_callable, check_choice, check_count, check_positive, short_form

# Measured error of a run's end in units of eps·‖θ‖, as torchdiffeq interpolates to it. The descent's steps add √steps.
ROUNDING = 20
SMALL = 1e-3  # ‖θ0‖ from which tolerances and the floor are relative to it; they are absolute at θ0 = 0
LOOSER = 10
MAX_STEPS = 500  # of an adaptive method, and 20 for each step of the descent: asymptotic rungs need far fewer
STATUSES = (*KINDS, "members lost", "descent diverged")
"""Statuses of a rung: those of a trajectory, or "members lost" if some starts diverged, or "descent diverged".

An interrupted rung is none: KeyboardInterrupt is raised. "interrupted" keeps its place for numbers on disk.
"""


@dataclass(frozen=True)
class Integration:
    r"""The integration of each rung: an adaptive ``method`` with tolerances, or a fixed-step one with ``substeps``.

    Adaptive: ``rtol`` is by default max(1e-13, 50 eps), and ``atol`` 0.5 eps, less in proportion to ‖θ0‖ below 1e-3;
    the looser run has ten times both. Its first step is h, that of the tight run h/2, since two runs with the same
    steps would have the same errors and a distance of zero. Fixed: steps of h/(2·substeps), in the looser run
    h/substeps. dopri8 takes a third of dopri5's evaluations at such tolerances.
    """

    method: str = "dopri8"
    rtol: float | None = None
    atol: float | None = None
    substeps: int | None = None

    def __post_init__(self) -> None:
        check_choice("method", self.method, DETERMINISTIC)
        if self.method in FIXED:
            if self.substeps is None:
                raise ValueError(f"substeps must be given for the fixed-step method {self.method!r}; or use 'dopri8'")
            check_count("substeps", self.substeps)
            if self.rtol is not None or self.atol is not None:
                raise ValueError(f"rtol and atol are for adaptive methods, got method={self.method!r}; give substeps")
            return
        if self.substeps is not None:
            raise ValueError(f"substeps are for fixed-step methods, got method={self.method!r}; give rtol and atol")
        for name in ("rtol", "atol"):
            if getattr(self, name) is not None:
                check_positive(name, getattr(self, name))

    def arguments(self, h: float, dtype: torch.dtype, looser: bool, size: float = 1.0) -> dict[str, Any]:
        """Keyword arguments of ``integrate``, for the tight run or for the looser one, from a start of that size."""
        if self.substeps is not None:
            return {"method": self.method, "dt": h / (self.substeps * (1 if looser else 2))}
        eps = torch.finfo(dtype).eps
        rtol = max(1e-13, 50 * eps) if self.rtol is None else self.rtol
        atol = 0.5 * eps * min(1.0, size / SMALL) if self.atol is None else self.atol
        factor = LOOSER if looser else 1
        settings: dict[str, Any] = {"method": self.method, "rtol": rtol * factor, "atol": atol * factor}
        if self.method in (*ADAPTIVE, EXPONENTIAL):
            settings["first_step"] = h if looser else h / 2
        return settings


@dataclass(frozen=True)
class Rung:
    """One learning rate: the largest error over the batch, the distance of its two integrations, and their status."""

    h: float
    error: float
    integration_error: float
    status: str


def one_step_order(
    flow: Callable[[float], Flow],
    descent: Callable[[float], Descent],
    theta0: Tensor,
    ladder: Sequence[float],
    integration: Integration | None = None,
) -> OrderStudy:
    r"""One-step errors ‖X(h; θ0) − θ_1‖ along a ladder of h, for h → Flow and h → Descent.

    Their order is p + 1 for a model of order p. θ0 (..., d) should be float64, as errors otherwise reach rounding
    early; for a batch of starts the largest error counts. A rung whose runs fail has the error NaN, and the reason in
    ``statuses``; an interrupted one is none, and KeyboardInterrupt is raised.

    Raises ValueError unless the ladder has at least two positive rungs, all different, and flow(h) and descent(h) have
    the learning rate h; UnsupportedError for a stochastic descent (see ``flows.ensembles.weak_order``).
    """
    check_makers(flow, descent)
    theta0 = check_theta0(theta0)
    rungs = [measured_rung(flow, descent, theta0, h, 1, integration) for h in check_ladder(ladder)]
    return study_of(rungs, theta0, sharpness_at(descent(rungs[0].h).stated_landscape, theta0), "one-step error")


def global_order(
    flow: Callable[[float], Flow],
    descent: Callable[[float], Descent],
    theta0: Tensor,
    ladder: Sequence[float],
    time: float,
    integration: Integration | None = None,
) -> OrderStudy:
    r"""Errors ‖X(T; θ0) − θ_{T/h}‖ at the time T along a ladder of h.

    Their order is p for a model of order p. Otherwise as ``one_step_order``; ValueError also if T is no integer
    multiple of the step of a rung.
    """
    check_makers(flow, descent)
    theta0 = check_theta0(theta0)
    steps = [whole_steps(time, h) for h in check_ladder(ladder)]
    rungs = [measured_rung(flow, descent, theta0, time / n, n, integration) for n in steps]
    sharpness = sharpness_at(descent(rungs[0].h).stated_landscape, theta0)
    return study_of(rungs, theta0, sharpness, f"error at t = {time:.4g}", max(steps))


def settled_order(
    flow: Callable[[float], Flow],
    descent: Callable[[float], Descent],
    theta0: Tensor,
    ladder: Sequence[float],
    time: float,
    integration: Integration | None = None,
) -> OrderStudy:
    r"""One-step errors from the descent's state at the time T, after its initial transient.

    For flows that a descent follows only after the transient: momentum at a fixed β keeps β^{T/h} of its start, so T/h
    must be large on every rung, with the same T, so that all rungs start near the same point. Their order is p + 1 for
    a model of order p. Arguments and errors as in ``global_order``.
    """
    check_makers(flow, descent)
    theta0 = check_theta0(theta0)
    steps = [whole_steps(time, h) for h in check_ladder(ladder)]
    rungs = [settled_rung(flow, descent, theta0, time / n, n, integration) for n in steps]
    sharpness = sharpness_at(descent(rungs[0].h).stated_landscape, theta0)
    return study_of(rungs, theta0, sharpness, f"one-step error from t = {time:.4g}")


def check_ladder(ladder: Sequence[float]) -> list[float]:
    """Return the rungs by decreasing h; raise unless there are at least two, positive and all different."""
    rates = as_list("ladder", ladder, "learning rates")
    rungs = sorted((check_positive("ladder", h) for h in rates), reverse=True)
    if len(rungs) < 2 or len(set(rungs)) < len(rungs):
        raise ValueError(f"ladder must have at least two different learning rates, got {rates!r}")
    return rungs


def whole_steps(time: float, h: float) -> int:
    """T/h; raise unless it is an integer."""
    if check_positive("time", time) / h > MOST:
        raise ValueError(f"time must be at most {MOST:,} steps of every rung, got {time!r} and h = {h!r}")
    steps = round(time / h)
    if steps < 1 or abs(steps * h - time) > 1e-9 * time:
        raise ValueError(f"time must be a whole number of steps of every rung, got {time!r} and h = {h!r}: use time/n")
    return steps


def measured_rung(
    flow: Callable[[float], Flow],
    descent: Callable[[float], Descent],
    theta0: Tensor,
    h: float,
    steps: int,
    integration: Integration | None = None,
) -> Rung:
    r"""Both runs of one rung: ``steps`` steps of descent(h) from θ0 (..., d), and flow(h) to their end, twice."""
    return rung_from(descent(h), flow(h), theta0, theta0, h, steps, integration)


def rung_from(
    taken: Descent,
    model: Flow,
    descent_start: Tensor | State,
    flow_start: Tensor | State,
    h: float,
    steps: int,
    integration: Integration | None,
) -> Rung:
    """Both runs of one rung, each from its own start, at time 0: θ0 (..., d), or a ``State``."""
    check_deterministic(taken)
    how = check_integration(integration)
    check_flow(model)
    for name, rate in (("descent", taken.clock_rate), ("flow", model.declared_rate or h)):
        if not math.isclose(rate, h, rel_tol=1e-12):
            raise ValueError(f"{name}(h) must have the learning rate h, got {rate!r} for h = {h!r}")
    path = descend(taken, descent_start, steps, keep="last").check_uninterrupted()
    if not path.complete:
        return Rung(h, math.nan, math.nan, "descent diverged")
    begun = descent_start if isinstance(descent_start, Tensor) else taken.position(descent_start.values)
    ends = []
    for looser in (False, True):
        settings = how.arguments(h, path.theta.abs().dtype, looser, size_of(begun))
        most = MAX_STEPS + 20 * steps
        run = integrate(model, flow_start, [0.0, float(path.times[-1])], keep="last", max_steps=most, **settings)
        if not run.check_uninterrupted().complete:
            return Rung(h, math.nan, math.nan, str(run.status) if run.status != "finished" else "members lost")
        ends.append(run.theta[-1])
    error = torch.linalg.vector_norm(ends[0] - path.theta[-1], dim=-1).max()
    distance = torch.linalg.vector_norm(ends[0] - ends[1], dim=-1).max()
    return Rung(h, float(error), float(distance), "finished")


def settled_rung(
    flow: Callable[[float], Flow],
    descent: Callable[[float], Descent],
    theta0: Tensor,
    h: float,
    steps: int,
    integration: Integration | None = None,
) -> Rung:
    r"""Both runs of one rung: one step of descent(h) and flow(h), from the descent's state after ``steps`` steps."""
    taken, model = check_deterministic(descent(h)), check_flow(flow(h))
    state, generator = taken.start(theta0), torch.Generator(theta0.device)
    for k in range(steps):
        state = taken.step(state, k, generator)
    theta, velocity = taken.position(state), taken.velocity(state)
    if not all_finite(theta):
        return Rung(h, math.nan, math.nan, "descent diverged")
    start = model.start(theta) if velocity is None else model.resume(theta, velocity)
    return rung_from(taken, model, State(state), State(start), h, 1, integration)


def check_makers(flow: object, descent: object) -> None:
    """Raise unless both are functions of the learning rate."""
    check_callable("flow", flow, "h -> Flow")
    check_callable("descent", descent, "h -> Descent")


def check_integration(integration: Integration | None) -> Integration:
    """The integration of a rung, by default ``Integration()``; raise for another object."""
    if integration is None:
        return Integration()
    if not isinstance(integration, Integration):
        raise TypeError(f"integration must be an Integration or None, got {short_form(integration)}")
    return integration


def check_flow(model: Flow) -> Flow:
    """Return the flow of a rung; raise for another object."""
    if not isinstance(model, Flow):
        raise TypeError(f"flow must be a Flow, got {type(model).__name__}; flow maps h to one")
    return model


def check_deterministic(descent: Descent) -> Descent:
    """Return the descent; UnsupportedError if it is stochastic."""
    if isinstance(descent, StochasticDescent):
        raise UnsupportedError(
            f"descent must be deterministic, got {type(descent).__name__}: its error is a random variable; use "
            "flows.ensembles.weak_order for errors of means, or descent.full_batch() for its mean step"
        )
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must map h to a Descent, got {type(descent).__name__}")
    return descent


def study_of(rungs: Sequence[Rung], theta0: Tensor, sharpness: float, quantity: str, steps: int = 1) -> OrderStudy:
    """The study of measured rungs by decreasing h, of at most ``steps`` steps from θ0 (..., d)."""
    eps = torch.finfo(theta0.dtype).eps
    return OrderStudy(
        ladder=tuple(rung.h for rung in rungs),
        errors=tuple(rung.error for rung in rungs),
        floor=(ROUNDING + math.sqrt(steps)) / FRACTION * eps * size_of(theta0),
        integration_errors=tuple(rung.integration_error for rung in rungs),
        statuses=tuple(rung.status for rung in rungs),
        sharpness=sharpness,
        quantity=quantity,
    )


def size_of(theta: Tensor) -> float:
    """The largest ‖θ‖ over a batch of starts θ (..., d), SMALL if all are 0."""
    return float(torch.linalg.vector_norm(theta, dim=-1).max()) or SMALL


def relative_ladder(landscape: Landscape, theta0: Tensor, multiples: Sequence[float]) -> list[float]:
    r"""The learning rates h with hλ = ``multiples``, λ = ``sharpness_at``: the same rungs in any units of f and θ.

    Raises ValueError unless the Hessian at the starts θ0 (..., d) has an eigenvalue other than 0.
    """
    sharpness = sharpness_at(landscape, check_theta0(theta0))
    if not (math.isfinite(sharpness) and sharpness > 0):
        raise ValueError(f"ladder must be given where the Hessian has no eigenvalue to scale one by, got {sharpness!r}")
    return [multiple / sharpness for multiple in check_ladder(multiples)]


def sharpness_at(landscape: Landscape, theta0: Tensor) -> float:
    """|λ|, the Hessian's eigenvalue of largest magnitude over the starts θ0 (..., d); NaN if there is no Hessian."""
    try:
        found = [extreme_eigenvalue(landscape, theta) for theta in theta0.reshape(-1, theta0.shape[-1])]
    except (RuntimeError, TypeError, ValueError, NotImplementedError):
        landscape.loss(theta0)  # raises for a start that is none of this landscape
        return math.nan  # a loss without second derivatives: the study only lacks its column hλ
    return max((abs(value) for value in found if value is not None), default=math.nan)
