r"""``integrate``: a flow along output times, by torchdiffeq, with every state before a failure kept.

The flow provides the velocity, ``solvers`` drives torchdiffeq, ``exponential`` adds a method that torchdiffeq lacks,
and ``recorder`` keeps states and observations. This module has the loop that restarts a method after a failure, and
freezes the batch members that failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flows.engines.counting import check_theta0, count_calls, curvature_sentence
from flows.engines.exponential import Members, Tolerance
from flows.engines.noise_paths import NoisePath
from flows.engines.recorder import Observer, Recorder
from flows.engines.solvers import (
    ADAPTIVE,
    EXPONENTIAL,
    FIXED,
    SCIPY,
    SEGMENT,
    Field,
    Stop,
    adaptive_segment,
    clock,
    fixed_run,
    linearises,
    scipy_segment,
)
from flows.engines.stochastic import STEPPER, STOCHASTIC, noise_field
from flows.engines.trajectory import Status, Trajectory
from flows.flow import Flow, StochasticFlow, collect_flags
from landscapes import UnsupportedError
from landscapes.errors import check_choice, check_count, check_positive

METHODS = (*ADAPTIVE, *FIXED, SCIPY, EXPONENTIAL)
MOST_STEPS = 10**9
TOLERANCES = {torch.float64: (1e-7, 1e-9), torch.float32: (1e-4, 1e-6)}


def integrate(
    flow: Flow,
    theta0: Tensor,
    times: Tensor | Sequence[float],
    *,
    method: str | None = None,
    rtol: float | None = None,
    atol: float | None = None,
    dt: float | None = None,
    seed: int | None = None,
    path: NoisePath | None = None,
    first_step: float | None = None,
    max_steps: int = 100_000,
    every: int = 1,
    keep: str = "all",
    observers: Sequence[Observer] = (),
    progress: bool = False,
) -> Trajectory:
    r"""Solve dX/dt = velocity(t, X) from θ0 (..., d) at times[0] and return the states at the output times.

    ``method``: any of torchdiffeq's, or exprb43; None is dopri5. Adaptive methods take ``rtol`` and ``atol`` (by
    default 1e-7 and 1e-9 in float64, 1e-4 and 1e-6 in float32), which hold for each batch member by itself, and accept
    a ``first_step``; more than ``max_steps`` steps from one output time to the next end the run as a step underflow.
    Fixed-step methods take ``dt``; the output times must lie on times[0] + k·dt.

    ``exprb43``, an exponential Rosenbrock method for flows too stiff for the others (gradient flow, and those that
    override ``linearised``), is adaptive as well; it lands on every output time, and each batch member has its own step
    size. A step takes three gradients and Krylov spaces of Hessian-vector products.

    A ``StochasticFlow`` takes ``dt`` and either a ``seed`` or a ``path`` of its noise; ``method`` is "euler" (the
    default: Euler–Maruyama), "milstein" (diagonal noise), "heun2" or "midpoint", all for the same Itô equation
    (``flows.engines.stochastic``). Equal seeds refine each other: dt and dt/2 see the same Brownian path.

    ``keep="all"`` keeps every ``every``-th state and the last one, ``"last"`` only the last; observers are called
    during the run. θ0 is detached; gradients do not flow through the run.

    A member of the batch that leaves the finite numbers, meets a singular mode or drives the step size to zero is
    frozen at its last state (adaptive: at an output time) and flagged in ``alive``; the others continue. ``status``
    tells whether the run ended before its last time, and why; KeyboardInterrupt ends it and keeps its states.

    Raises TypeError or ValueError for invalid arguments, before anything is computed.
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a Flow, got {type(flow).__name__}")
    theta0 = check_theta0(theta0)
    outputs = check_times(times)
    with torch.no_grad(), collect_flags() as flags:
        model, counts = count_calls(flow)
        state = model.start(theta0)
        plan = make_plan(model, method, rtol, atol, dt, first_step, max_steps, state)
        field = make_field(model, state, plan, outputs, seed, path)  # raises before an observer sees anything
        if plan.method == EXPONENTIAL and not linearises(model):
            model.linearised(outputs[0], state)  # raises UnsupportedError, which names the alternatives
        recorder = Recorder(keep, every, observers, len(outputs) - 1)
        run = IntegrationRun(field, state, outputs, recorder, progress)
        status = run.run(plan)
    notes = [f"{sentence} ({count} evaluations)" for sentence, count in flags.items()]
    return recorder.trajectory(status, run.alive, {"evaluations": run.field.evaluations, **counts}, notes)


@dataclass(frozen=True)
class MethodPlan:
    """A method with its options: tolerances for the adaptive ones, dt for the fixed-step ones."""

    method: str
    rtol: float
    atol: float
    dt: float | None
    first_step: float | None
    max_steps: int


def make_field(
    flow: Flow, state: Tensor, plan: MethodPlan, outputs: list[float], seed: int | None, path: NoisePath | None
) -> Field:
    """The flow as the solvers call it; raise if steps, seed and path are inconsistent."""
    steps = 0 if plan.dt is None else step_grid(outputs, plan.dt)[1][-1]
    if isinstance(flow, StochasticFlow):
        assert plan.dt is not None
        return noise_field(flow, state, plan.method, outputs, plan.dt, steps, seed, path)
    if seed is not None or path is not None:
        raise ValueError(f"seed and path are for stochastic flows, {flow.name} has no noise; leave them out")
    return Field(flow)


def make_plan(
    flow: Flow,
    method: str | None,
    rtol: float | None,
    atol: float | None,
    dt: float | None,
    first_step: float | None,
    max_steps: int,
    state: Tensor,
) -> MethodPlan:
    """The plan of a run; raise if method, tolerances and steps are inconsistent."""
    if isinstance(flow, StochasticFlow):
        return stochastic_plan(flow, method, rtol, atol, dt, first_step)
    method = check_choice("method", "dopri5" if method is None else method, METHODS)
    if method == SCIPY and state.is_complex():
        raise UnsupportedError(
            "method='scipy_solver' integrates real states only; use method='dopri5' for complex ones"
        )
    fixed = method in FIXED
    if fixed and dt is None:
        raise ValueError(f"dt must be given for the fixed-step method {method!r}; or use method='dopri5'")
    if not fixed and dt is not None:
        raise ValueError(f"dt is for fixed-step methods, {method!r} chooses its own steps; give rtol and atol instead")
    adaptive = (*ADAPTIVE, EXPONENTIAL)
    if first_step is not None and method not in adaptive:
        raise ValueError(f"first_step is for the adaptive methods {', '.join(adaptive)}, got method={method!r}")
    takes_tolerances = not fixed or "adams" in method
    if not takes_tolerances and (rtol is not None or atol is not None):
        raise ValueError(f"rtol and atol have no meaning for the fixed-step method {method!r}; give a smaller dt")
    default = TOLERANCES.get(state.abs().dtype)
    if default is None and takes_tolerances and (rtol is None or atol is None):
        raise ValueError(f"rtol and atol must be given for states of dtype {state.dtype}")
    default = default or (1.0, 1.0)
    return MethodPlan(
        method,
        default[0] if rtol is None else check_positive("rtol", rtol),
        default[1] if atol is None else check_positive("atol", atol),
        None if dt is None else check_positive("dt", dt),
        None if first_step is None else check_positive("first_step", first_step),
        check_count("max_steps", max_steps),
    )


def stochastic_plan(
    flow: StochasticFlow,
    method: str | None,
    rtol: float | None,
    atol: float | None,
    dt: float | None,
    first_step: float | None,
) -> MethodPlan:
    """The plan of a run with noise: fixed steps, no tolerances."""
    method = "euler" if method is None else check_choice("method of a stochastic flow", method, STOCHASTIC)
    if dt is None:
        raise ValueError(f"dt must be given for {flow.name}, a stochastic flow; it must divide every output interval")
    if rtol is not None or atol is not None or first_step is not None:
        raise ValueError(
            "rtol, atol and first_step have no meaning for a stochastic flow, whose steps are fixed; give a smaller dt"
        )
    return MethodPlan(method, 1.0, 1.0, check_positive("dt", dt), None, 1)


def check_times(times: Tensor | Sequence[float]) -> list[float]:
    """Output times as floats; raise unless they are 1-D, real, finite, strictly increasing and at least two."""
    try:
        values = times.detach().cpu().numpy() if isinstance(times, Tensor) else np.asarray(times)
    except ValueError as error:
        raise ValueError(f"times must be one-dimensional real numbers ({error})") from error
    if values.dtype.kind not in "fiu":
        raise TypeError(f"times must be real numbers, got dtype {values.dtype}")
    if values.ndim != 1 or values.shape[0] < 2:
        raise ValueError(f"times must be one-dimensional with at least two entries, got shape {values.shape}")
    values = values.astype(np.float64)
    if not np.isfinite(values).all():
        raise ValueError("times must be finite, got NaN or infinite entries")
    if not (np.diff(values) > 0).all():
        raise ValueError("times must be strictly increasing, times[0] being the start")
    return values.tolist()


def step_grid(outputs: Sequence[float], dt: float) -> tuple[list[float], list[int]]:
    """The grid times[0] + k·dt and the indices of the outputs on it; raise if an output time lies off the grid."""
    times = np.asarray(outputs)
    if (times[-1] - times[0]) / dt > MOST_STEPS:
        raise ValueError(f"dt = {dt!r} would take more than {MOST_STEPS:.0e} steps; give a larger dt")
    places = np.rint((times - times[0]) / dt).astype(int)
    off = np.abs(times - times[0] - places * dt) > 1e-9 * np.maximum(times - times[0], dt)
    if off.any() or (np.diff(places) < 1).any():
        wrong = float(times[off][0] if off.any() else times[1])
        raise ValueError(
            f"times must lie on times[0] + k·dt, k = 0, 1, …, with dt = {dt!r}; {wrong!r} does not: "
            "choose a dt that divides every output interval"
        )
    grid = times[0] + np.arange(places[-1] + 1) * dt
    grid[places] = times
    return grid.tolist(), places.tolist()


class IntegrationRun:
    """The progress of one integration: the last output reached, the members alive, the sentences of failures."""

    def __init__(self, field: Field, state: Tensor, outputs: list[float], recorder: Recorder, progress: bool):
        self.flow = field.flow
        self.state = state
        self.outputs = outputs
        self.field = field
        self.alive = torch.ones(state.shape[:-1], dtype=torch.bool, device=state.device)
        self._recorder = recorder
        self._sentences: list[Status] = []
        self._bar = tqdm(total=len(outputs) - 1, unit="output", desc=type(self.flow).__name__, disable=not progress)
        self._output = state  # the state at the last output time reached; fixed steps may be past it
        self._k = 0

    def run(self, plan: MethodPlan) -> Status:
        """Run the plan to its last output time, or to the failure that ends it."""
        try:
            self._take(0, self.state)
            if plan.dt is not None:
                self.run_fixed(plan)
            elif plan.method == EXPONENTIAL:
                self.run_exponential(plan)
            else:
                self.run_adaptive(plan)
        except KeyboardInterrupt as interrupt:
            self._goes_on(interrupt, self.outputs[self._k], self._output)
        return self._status(self._k)

    def run_adaptive(self, plan: MethodPlan) -> None:
        """Run an adaptive method (or scipy's) segment by segment."""
        k, first_step = 0, plan.first_step
        while k < len(self.outputs) - 1:
            times = self.outputs[k : k + SEGMENT + 1]
            if plan.method == SCIPY:
                states, stop = scipy_segment(self.field, self.state, times, plan.rtol, plan.atol)
            else:
                states, first_step, stop = adaptive_segment(
                    self.field, self.state, times, plan.method, plan.rtol, plan.atol, plan.max_steps, first_step
                )
            for state in states:
                k += 1
                # The dense output of a constant state differs from it by rounding: frozen members keep their state.
                self._take(
                    k, state if self.field.alive is None else torch.where(self.alive[..., None], state, self.state)
                )
            if stop is not None:
                first_step = None
                if not self._goes_on(stop, self.outputs[k], self.state):
                    break

    def run_exponential(self, plan: MethodPlan) -> None:
        """Run the exponential method from output to output."""
        tolerance = Tolerance(plan.rtol, plan.atol)
        members = Members(self.field, self.state, self.outputs[0], plan.first_step, tolerance, plan.max_steps)
        for k, end in enumerate(self.outputs[1:]):
            state, stops = members.advance(end, self.alive)
            for stop in stops:
                if not self._goes_on(stop, self.outputs[k], self.state):
                    return
            self._take(k + 1, torch.where(self.alive[..., None], state, self.state))

    def run_fixed(self, plan: MethodPlan) -> None:
        """Run a fixed-step method along its grid."""
        assert plan.dt is not None
        times, places = step_grid(self.outputs, plan.dt)
        grid = clock(times, self.state)
        number = {place: k for k, place in enumerate(places)}
        tolerances = {"rtol": plan.rtol, "atol": plan.atol}
        done, k = 0, 0

        def see(place: int, state: Tensor) -> None:
            nonlocal k
            if number.get(place, 0) > k:
                k = number[place]
                self._take(k, state)

        while done < len(times) - 1:
            method = STEPPER.get(plan.method, plan.method)
            done, self.state, stop = fixed_run(self.field, self.state, grid, done, method, tolerances, see)
            if stop is not None and not self._goes_on(stop, times[done], self.state):
                break

    def _take(self, k: int, state: Tensor) -> None:
        self.state = self._output = state
        self._k = k
        self._bar.update(min(k, 1))
        self._recorder.record(k, self.outputs[k], self.flow.position(state))

    def _goes_on(self, stop: BaseException, t: float, state: Tensor) -> bool:
        """Freeze the members that failed and note the reason; return whether any member is left."""
        if not isinstance(stop, Stop):
            self._sentences.append(Status("interrupted", f"interrupted after t = {t:.6g}; the states before are kept"))
            return False
        members = (stop.members & self.alive).reshape(self.alive.shape)
        first = state[members][0] if state.ndim > 1 else state
        curvature = curvature_sentence(self.flow, self.flow.position(first), getattr(self.flow, "h", None))
        advice = f"; {stop.advice}" if stop.advice else ""
        text = f"{stop.sentence}{curvature if stop.kind != 'singular mode' else ''}{advice}"
        count = f"{int(members.sum())} of {members.numel()} members: " if members.ndim else ""
        self._sentences.append(Status(stop.kind, f"{count}{text}; last state at t = {t:.6g}"))
        self.alive = self.alive & ~members
        self.field.alive = self.alive
        return bool(self.alive.any())

    def _status(self, k: int) -> Status:
        self._bar.close()
        if k < len(self.outputs) - 1:
            self._recorder.keep_end(self.outputs[k], self.flow.position(self._output))
            return Status(str(self._sentences[-1]), " | ".join(s.sentence for s in self._sentences))
        lost = "".join(f" | {s}: {s.sentence}" for s in self._sentences)
        return Status("finished", f"finished at t = {self.outputs[-1]:.6g}{lost}")
