r"""``integrate``: a flow along output times, with every state before a failure kept.

The flow provides the velocity, a ``Method`` the integration, ``recorder`` keeps states and observations. This module
has the engine between them: it starts from θ0 or a ``State``, freezes the batch members that failed, and ends the run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from flows.engines.configuration import Configuration, versions
from flows.engines.counting import check_theta0, count_calls, curvature_sentence, finite_members
from flows.engines.endings import Status
from flows.engines.events import Event, EventWatch, check_events
from flows.engines.field import Field, Stop, WorkspaceField
from flows.engines.fixed import step_grid
from flows.engines.method import Method, MethodOptions, Reached
from flows.engines.methods import method_of
from flows.engines.noise_paths import NoisePath, whole_number
from flows.engines.output_times import array_of, check_times, rounding_of
from flows.engines.recorder import AnyObserver, Recorder
from flows.engines.state import State, model_name
from flows.engines.stochastic import Noise, check_noise_options, noise_field
from flows.engines.trajectory import Trajectory
from flows.flow import Flow, StochasticFlow, WorkspaceFlow, collect_flags
from landscapes import UnsupportedError
from landscapes.errors import check_flag, check_float_tensor, check_positive, check_seed, short_form


def integrate(
    flow: Flow,
    theta0: Tensor | State,
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
    observers: Sequence[AnyObserver] = (),
    restarts: Sequence[float] | Tensor = (),
    events: Event | Sequence[Event] = (),
    progress: bool = False,
) -> Trajectory:
    r"""Solve dX/dt = velocity(t, X) from θ0 (..., d), or a ``State``, at times[0]; return the states at the times.

    ``method``: any of torchdiffeq's, or exprb43; None is dopri5. Adaptive methods take ``rtol`` and ``atol`` (by
    default 1e-7 and 1e-9 in float64, 1e-4 and 1e-6 in float32), which hold for each batch member by itself, and accept
    a ``first_step``; more than ``max_steps`` steps from one output time to the next end the run as a step underflow.
    Fixed-step methods take ``dt``; the output times must lie on times[0] + k·dt. Times are float64 whatever the dtype
    of θ; given as float32, they are the points of that grid which they round, or else taken as they are.

    ``exprb43``, an exponential Rosenbrock method for flows too stiff for the others (gradient flow, and those that
    override ``linearised``), is adaptive as well; it lands on every output time, and each batch member has its own step
    size. A step takes three gradients and Krylov spaces of Hessian-vector products.

    A ``StochasticFlow`` takes ``dt`` and either a ``seed`` or a ``path`` of its noise; ``method`` is "euler" (the
    default: Euler–Maruyama), "milstein" (diagonal noise), "heun2" or "midpoint", all for the same Itô equation
    (``flows.engines.stochastic``). Equal seeds refine each other: dt and dt/2 see the same Brownian path.

    A run from a ``State``, such as the ``end`` of another run, continues at times[0] = state.t on the state's step grid
    and noise; a ``seed`` other than its own, or a path that begins there, is new noise. With fixed steps two parts
    equal the whole bit for bit. An adaptive method chooses its steps by the run's history, and the parts equal the
    whole to tolerance; they do bit for bit where both runs begin the integration anew at the cut: ``restarts``, some of
    the output times (useful also where a schedule jumps).

    ``events``: changes of sign of functions of (t, state), noted in ``Trajectory.events`` or made the end of a member's
    run (``Event``); scipy_solver and exprb43 have none.

    ``keep="all"`` keeps every ``every``-th state and the last one, ``"last"`` only the last; observers are called
    during the run. θ0 is detached; gradients do not flow through the run.

    A member of the batch that leaves the finite numbers, meets a singular mode or drives the step size to zero is
    frozen at its last state (adaptive: at an output time) and flagged in ``alive``; the others continue. ``status``
    tells whether the run ended before its last time, and why; KeyboardInterrupt ends it and keeps its states.

    Raises TypeError or ValueError for invalid arguments, before anything is computed.
    """
    if not isinstance(flow, Flow):
        raise TypeError(f"flow must be a Flow, got {type(flow).__name__}")
    outputs = check_times(times, dt, theta0.t if isinstance(theta0, State) else None)
    stretches, begins_anew = split(outputs, restarts)
    watched = check_events(events)
    check_flag("progress", progress)
    with torch.no_grad(), collect_flags() as flags:
        model, counts = count_calls(flow)
        start = starting_state(model, theta0, outputs[0])
        asked = MethodOptions(rtol, atol, dt, first_step, max_steps, step_origin(start, dt, seed, path))
        solver = method_of(flow, method)
        options = solver.check(check_noise_options(flow, asked), model, start.values)
        field = make_field(model, start, solver, options, outputs, seed, path)  # raises before an observer is called
        watch = event_watch(watched, solver, start)
        recorder = Recorder(keep, every, observers, len(outputs) - 1)
        run = IntegrationRun(field, start, outputs, watch, recorder, progress)
        status = run.run(solver, options, stretches, restart=begins_anew)
    notes = [f"{sentence} ({count} evaluations)" for sentence, count in flags.items()]
    cost = {"evaluations": run.field.evaluations, **counts}
    crossings = {} if watch is None else watch.crossings(run.alive.shape)
    begun = {"t": start.t, "state": isinstance(theta0, State), "restarts": list(restarts)}
    begun["events"] = [event.name for event in watched]
    settings = {
        "start": begun,
        "method": solver.name,
        **vars(options),
        "seed": field.seed,
        "path": path,
        "every": every,
        "keep": keep,
    }
    given = Configuration(flow, theta0=start.values, times=outputs, **settings)
    return recorder.trajectory(status, run.alive, cost, notes, end=run.state(), events=crossings, configuration=given)


def starting_state(flow: Flow, start: Tensor | State, t: float) -> State:
    """The state that a run starts from at time t; raise unless it is a finite state of a flow at that time."""
    if not isinstance(start, State):
        values = flow.start(check_theta0(start))
        return State(values, t, alive=torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device))
    start.check_version()
    start.check_numbers()
    if abs(start.t - t) > 1e-12 * max(1.0, abs(t)):
        raise ValueError(f"times must begin at the state's time t = {start.t!r}, got times[0] = {t!r}")
    values = check_float_tensor("values of the state", start.values).detach()
    if values.ndim == 0 or values.numel() == 0:
        raise ValueError(f"values of the state must have shape (..., s) with s >= 1, got {tuple(values.shape)}")
    alive = start.members_alive(values.shape[:-1], values.device)
    if not bool(finite_members(values)[alive].all()):
        raise ValueError("values of the state must be finite, got NaN or infinite entries")
    if start.history is not None and start.history.shape[1:] != values.shape:
        raise ValueError(
            f"history of the state must have shape (n, *{tuple(values.shape)}), got {tuple(start.history.shape)}"
        )
    if start.step is not None and start.step.shape not in ((), values.shape[:-1]):
        raise ValueError(f"step of the state must be one number or one a member, got {tuple(start.step.shape)}")
    start = replace(start, values=values, alive=alive)
    return start if start.model in (None, model_name(flow)) else of_another_flow(flow, start)


def of_another_flow(flow: Flow, start: State) -> State:
    """The state without memory and workspace, which are of another flow; raise unless it has the flow's size."""
    landscape = next(iter(flow.declared_landscapes), None)
    if landscape is not None:
        size = flow.start(start.values.new_zeros(landscape.dimension)).shape[-1]
        if start.values.shape[-1] != size:
            raise ValueError(
                f"the state is that of {str(start.model).rpartition('.')[2]}, of size {start.values.shape[-1]}, and "
                f"{flow.name} has states of size {size}: start from theta, or from State(flow.start(theta), t)"
            )
    return replace(start, history=None, workspace=None)


def step_origin(start: State, dt: float | None, seed: int | None, path: NoisePath | None) -> float:
    """The time from which steps and noise are counted: that of the state's grid, unless the noise is new."""
    if start.origin is None or dt is None:
        return start.t
    check_positive("dt", dt)
    new_seed = seed is not None and check_seed(seed) != start.seed
    new_path = isinstance(path, NoisePath) and path.t0 > start.origin + 1e-9 * dt
    if new_seed or new_path:
        return start.t
    if whole_number((start.t - start.origin) / dt, minimum=0) is not None:
        return start.origin
    if start.seed is None or path is not None:
        return start.t
    raise ValueError(
        f"dt must divide the time {start.t - start.origin!r} since the state's noise began, got {dt!r}; or give "
        "another seed for new noise"
    )


def split(outputs: list[float], restarts: Sequence[float] | Tensor) -> tuple[list[tuple[int, int]], bool]:
    """First and last index of each stretch of output times between restarts, and whether the first is a restart.

    Raises TypeError or ValueError unless restarts are output times.
    """
    try:
        given = array_of("restarts", restarts)
        values = given.astype(float)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"restarts must be some of the output times, got {short_form(restarts)}") from error
    if given.ndim != 1:
        raise TypeError(f"restarts must be a sequence of output times, got the shape {given.shape}")
    near = rounding_of(restarts, given) + 1e-12 * np.maximum(1.0, np.abs(values))
    places = np.searchsorted(outputs, values - near)
    for value, place, close in zip(values, places, near, strict=True):
        if place == len(outputs) or abs(outputs[place] - value) > close:
            raise ValueError(f"restarts must be output times, {float(value)!r} is not one of times")
    cuts = sorted({0, len(outputs) - 1, *places.tolist()})
    return list(pairwise(cuts)), 0 in places.tolist()


def make_field(
    flow: Flow,
    start: State,
    method: Method,
    options: MethodOptions,
    outputs: list[float],
    seed: int | None,
    path: NoisePath | None,
) -> Field:
    """The flow as the methods call it; raise if steps, seed and path are inconsistent."""
    if isinstance(flow, StochasticFlow):
        assert options.dt is not None
        places = step_grid(outputs, options.dt, options.origin)[1]
        noise = Noise(seed_of(start, seed, path), path, options.origin, places[0])
        return noise_field(flow, start.values, method.name, options.dt, places[-1], noise)
    if options.dt is not None:
        step_grid(outputs, options.dt, options.origin)  # raises unless the output times lie on the grid
    if seed is not None or path is not None:
        raise ValueError(f"seed and path are for stochastic flows, {flow.name} has no noise; leave them out")
    field = WorkspaceField(flow) if isinstance(flow, WorkspaceFlow) else Field(flow)
    field.workspace = start.workspace
    return field


def seed_of(start: State, seed: int | None, path: NoisePath | None) -> int | None:
    """The seed of a run's noise: the one given, or the state's where neither a seed nor a path is."""
    return start.seed if seed is None and path is None else seed


def event_watch(events: tuple[Event, ...], method: Method, start: State) -> EventWatch | None:
    """The watch of a run's events, None without events; raise if the method cannot locate them."""
    if not events:
        return None
    if not method.locates_events:
        raise UnsupportedError(f"method={method.name!r} does not locate events; use method='dopri5', or fixed steps")
    assert start.alive is not None
    return EventWatch(events, start.t, start.values, start.alive)


class Here(NamedTuple):
    """The last output time reached: its number, the state there, and the workspace after it."""

    k: int
    point: Reached
    workspace: Any


class IntegrationRun:
    """The progress of one integration: the last output reached, the members alive, the sentences of failures."""

    def __init__(
        self,
        field: Field,
        start: State,
        outputs: list[float],
        events: EventWatch | None,
        recorder: Recorder,
        progress: bool,
    ):
        assert start.alive is not None
        self.flow = field.flow
        self.outputs = outputs
        self.field = field
        self.alive = start.alive
        self.events = events
        self._moving = start.members_moving(start.alive)  # the members alive that no event has stopped
        self._start = start
        self._recorder = recorder
        self._sentences: list[Status] = []
        self._bar = tqdm(total=len(outputs) - 1, unit="output", desc=type(self.flow).__name__, disable=not progress)
        # Replaced as a whole, so that an interrupt at any moment leaves one consistent state.
        self._here = Here(0, Reached(start.values, outputs[0], step=start.step), start.workspace)
        self._first = 0
        if not bool(self._moving.all()):
            self.field.alive = self._moving
        if events is not None:
            events.moving = self._moving

    def run(self, method: Method, options: MethodOptions, stretches: list[tuple[int, int]], *, restart: bool) -> Status:
        """Integrate stretch by stretch to the last output time, or to the failure that ends the run."""
        self._options = options
        point = self._here.point
        if self._start.dt == options.dt and self._start.origin == options.origin and not restart:
            point = point._replace(history=unstack(self._start.history))
        if options.first_step is not None:
            point = point._replace(step=torch.tensor(options.first_step, dtype=torch.float64))
        try:
            self._record()
            for self._first, last in stretches:
                method.advance(self.field, point, self.outputs[self._first : last + 1], options, self)
                if self._here.k < last:
                    break
                point = self._here.point._replace(history=())
        except KeyboardInterrupt:
            t = self._here.point.t
            self._sentences.append(Status("interrupted", f"interrupted after t = {t:.6g}; the states before are kept"))
        return self._status()

    def reach(self, k: int, point: Reached) -> None:
        """Take the state at an output time, the k-th of the current stretch."""
        self._here = Here(self._first + k, point, self.field.workspace)
        self._bar.update()
        self._record()

    def _record(self) -> None:
        here = self._here
        self._recorder.record(here.k, self.outputs[here.k], self.flow.position(here.point.state), self.state)

    def halt(self, stop: Stop, point: Reached) -> bool:
        """Freeze the members that stop, and note the reason; return whether any other is left."""
        members = (stop.members & self._moving).reshape(self.alive.shape)
        count = f"{int(members.sum())} of {members.numel()} members: " if members.ndim else ""
        self._moving = self._moving & ~members
        if stop.kind == "stopped":
            self._sentences.append(Status(stop.kind, f"{count}{stop.sentence}"))
            if not bool(self._moving.any()):
                self._here = Here(self._here.k, point, self.field.workspace)
        else:
            self.alive = self.alive & ~members
            self._sentences.append(Status(stop.kind, count + self._cause(stop, point, members)))
        self.field.keep_only(self._moving)
        if self.events is not None:
            self.events.moving = self._moving
        return bool(self._moving.any())

    def _cause(self, stop: Stop, point: Reached, members: Tensor) -> str:
        """The sentence of a failure of the members (...), with the curvature at the first of them."""
        first = point.state[members][0] if point.state.ndim > 1 else point.state
        curvature = curvature_sentence(self.flow, self.flow.position(first), self.flow.declared_rate)
        advice = f"; {stop.advice}" if stop.advice else ""
        cause = stop.sentence if stop.kind == "singular mode" else f"{stop.sentence}{curvature}"
        return f"{cause}{advice}; last state at t = {point.t:.6g}"

    def state(self) -> State:
        """Where the run stands: at the last output time reached, or at the event that ended it."""
        here, point = self._here, self._here.point
        fixed = self._options.dt is not None
        return State(
            point.state,
            point.t,
            alive=self.alive,
            seed=self.field.seed,
            origin=self._options.origin if fixed else None,
            dt=self._options.dt,
            index=point.place,
            step=point.step,
            history=torch.stack(point.history) if point.history else None,
            workspace=here.workspace,
            stopped=self.alive & ~self._moving if self._some_have_stopped() else None,
            model=model_name(self.flow),
            version=versions()["thalweg"],
        )

    def _some_have_stopped(self) -> bool:
        """Whether events have ended some members while others go on."""
        return bool((self.alive & ~self._moving).any()) and bool(self._moving.any())

    def _status(self) -> Status:
        self._bar.close()
        here = self._here
        last = str(self._sentences[-1]) if self._sentences else ""
        # an interrupt at the last output time may have kept an observer from seeing it
        ended = last == "interrupted" or (last == "stopped" and not bool(self._moving.any()))
        if here.k < len(self.outputs) - 1 or ended:
            self._recorder.keep_end(here.point.t, self.flow.position(here.point.state))
            return Status(str(self._sentences[-1]), " | ".join(s.sentence for s in self._sentences))
        lost = "".join(f" | {s}: {s.sentence}" for s in self._sentences)
        return Status("finished", f"finished at t = {self.outputs[-1]:.6g}{lost}")


def unstack(history: Tensor | None) -> tuple[Tensor, ...]:
    """The remembered velocities of a state, latest first."""
    return () if history is None else tuple(history)
