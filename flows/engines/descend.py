"""``descend``: a discrete optimiser for a number of steps, every state before a failure kept."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flows.descent import Descent
from flows.engines.configuration import Configuration, versions
from flows.engines.counting import all_finite, check_theta0, count_calls, curvature_sentence, finite_members
from flows.engines.endings import Status
from flows.engines.recorder import AnyObserver, Recorder
from flows.engines.state import State, model_name
from flows.engines.trajectory import Trajectory
from landscapes.errors import MOST, check_choice, check_count, check_flag, check_float_tensor, check_seed, short_form


def descend(
    descent: Descent,
    theta0: Tensor | State,
    steps: int,
    *,
    seed: int | None = None,
    every: int = 1,
    keep: str = "all",
    observers: Sequence[AnyObserver] = (),
    progress: bool = False,
) -> Trajectory:
    r"""Take ``steps`` steps from θ0 (..., d), or from a ``State``, and return the states on the clock t = elapsed(k).

    ``keep="all"`` keeps every ``every``-th state and the last one, ``"last"`` only the last; observers are called
    during the run. Random numbers come from one generator seeded with ``seed``, by default 0, on θ0's device.

    A run from a ``State``, such as the ``end`` of another, takes the steps after it with its generator; two parts
    equal the whole bit for bit. A ``seed`` other than the state's begins new random numbers.

    A member of the batch that leaves the finite numbers is frozen at its last finite state and flagged in ``alive``;
    the run ends when none is left, and its status names the step, the time and the Hessian's largest eigenvalue. There
    is no other threshold. KeyboardInterrupt ends a run and keeps its states.

    Raises TypeError or ValueError for invalid arguments, before anything is computed.
    """
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must be a Descent, got {type(descent).__name__}")
    check_steps(steps, every, keep)
    check_flag("progress", progress)
    with torch.no_grad():
        model, counts = count_calls(descent)
        start = starting_state(model, theta0, seed)
        recorder = Recorder(keep, every, observers, start.k + steps)
        run = DescentRun(model, start, recorder)
        with tqdm(total=steps, unit="step", desc=type(descent).__name__, disable=not progress) as bar:
            status = run.take(steps, bar)
    cost = {"steps": run.taken, **counts}
    begun = {"t": start.t, "k": start.k, "state": isinstance(theta0, State)}
    given = Configuration(
        descent, theta0=start.theta, steps=steps, seed=start.seed, every=every, keep=keep, start=begun
    )
    return recorder.trajectory(status, run.alive, cost, (), end=run.state(), configuration=given)


def check_steps(steps: int, every: int, keep: str) -> None:
    """Raise unless ``steps`` is a positive whole number and the states that are kept can be held in memory."""
    check_count("steps", steps, maximum=torch.iinfo(torch.int64).max)
    if check_choice("keep", keep, ("all", "last")) == "all" and steps > MOST * check_count("every", every):
        raise ValueError(
            f"steps must be at most {MOST:,} × every, as every {every}-th state is kept, got {short_form(steps)}; "
            "give a larger every, or keep='last'"
        )


def starting_state(descent: Descent, start: Tensor | State, seed: int | None) -> State:
    """The state that a run starts from, with its generator; raise unless it is one of the descent."""
    if not isinstance(start, State):
        theta0 = check_theta0(start)
        values = descent.start(theta0)
        start = State(values, descent.elapsed(0, values), seed=0 if seed is None else check_seed(seed))
    else:
        start.check_version()
        start.check_numbers()
        if seed is not None and check_seed(seed) != start.seed:
            start = replace(start, seed=seed, generator=None)
    theta, alive = positions_of(descent, start)
    if start.generator is None:
        seed = 0 if start.seed is None else start.seed
        generator = torch.Generator(theta.device).manual_seed(seed)
        start = replace(start, seed=seed, generator=generator.get_state())
    return replace(start, theta=theta, alive=alive)


def positions_of(descent: Descent, start: State) -> tuple[Tensor, Tensor]:
    """θ (..., d) of a state, that of lost members as the state has it, and the members alive (...)."""
    if start.model not in (None, model_name(descent)) and not is_position(descent, start.values):
        raise ValueError(
            f"the state is that of {start.model.rpartition('.')[2]}, {type(descent).__name__} has states of its own: "
            "start from its theta, or from State(values) with a state of this descent"
        )
    theta = check_float_tensor("theta of the state", descent.position(start.values)).detach()
    alive = start.members_alive(theta.shape[:-1], theta.device)
    if start.theta is None or bool(alive.all()):
        return theta, alive
    if start.theta.shape != theta.shape:
        raise ValueError(
            f"theta of the state must have the shape of its positions, {tuple(theta.shape)}, got "
            f"{tuple(start.theta.shape)}"
        )
    return torch.where(alive[..., None], theta, start.theta), alive


Point = tuple[int, float, Any, Tensor, Tensor]
"""A state of a descent: number of steps, time, the optimiser's state, θ, and the generator's state."""


def is_position(descent: Descent, values: Any) -> bool:
    """Whether a state of another model is θ, and θ is all that this descent's state holds."""
    return isinstance(values, Tensor) and descent.start(values) is values


class DescentRun:
    """The progress of one descent: the point reached, and the members alive."""

    def __init__(self, descent: Descent, start: State, recorder: Recorder):
        assert start.theta is not None
        assert start.alive is not None
        assert start.generator is not None
        self.descent = descent
        self.alive = start.alive
        self.taken = 0
        # The clock continues from the state's time, also where k steps of this descent take another, as at a new rate.
        self._ahead = start.t - descent.elapsed(start.k, start.values)
        # Replaced as a whole after each step, so that an interrupt at any moment leaves one consistent point.
        self._here: Point = (start.k, start.t, start.values, start.theta, start.generator)
        self._seed = start.seed
        self._recorder = recorder
        self._frozen = not bool(self.alive.all())
        self._lost: list[str] = []

    def state(self) -> State:
        """Where the run stands."""
        k, t, values, theta, generator = self._here
        return State(
            values,
            t,
            k,
            theta=theta,
            alive=self.alive,
            seed=self._seed,
            generator=generator,
            model=model_name(self.descent),
            version=versions()["thalweg"],
        )

    def take(self, steps: int, bar: tqdm) -> Status:
        """Take the steps; return the status."""
        k, t, values, theta, drawn = self._here
        generator = torch.Generator(theta.device)
        try:
            generator.set_state(drawn)
        except (RuntimeError, TypeError) as error:
            raise ValueError(
                f"generator of the state must be that of a torch.Generator on {theta.device}: {error}"
            ) from error
        first, k = k, k - 1
        try:
            self._recorder.record(first, t, theta, self.state)
            for k in range(first, first + steps):
                values = self.descent.step(values, k, generator)
                theta = self.descent.position(values)
                self.taken += 1
                t = self.descent.elapsed(k + 1, values) + self._ahead
                if self._frozen or not all_finite(theta):
                    theta = self._freeze(theta, k + 1, t)
                    if not bool(self.alive.any()):
                        self._keep_end()
                        return Status("diverged", " | ".join(self._lost))
                self._here = (k + 1, t, values, theta, generator.get_state())
                self._recorder.record(k + 1, t, theta, self.state)
                bar.update()
        except KeyboardInterrupt:
            self._keep_end()
            return Status("interrupted", f"interrupted in step {k + 1}; the {self.taken} steps taken are kept")
        lost = "".join(f" | {sentence}" for sentence in self._lost)
        return Status("finished", f"finished {steps} steps at t = {t:.6g}{lost}")

    def _keep_end(self) -> None:
        self._recorder.keep_end(self._here[1], self._here[3])

    def _freeze(self, theta: Tensor, k: int, t: float) -> Tensor:
        """Positions with every member that is not finite, now or earlier, held at its last finite one."""
        _, before, _, last, _ = self._here
        finite = finite_members(theta) & self.alive
        newly = self.alive & ~finite
        if bool(newly.any()):
            first = last[newly][0] if theta.ndim > 1 else last
            rate = t - before  # of the step just taken, which need not be descent.h
            curvature = curvature_sentence(self.descent, first, rate if math.isfinite(rate) else None)
            count = f"{int(newly.sum())} of {newly.numel()} members: " if newly.ndim else ""
            self._lost.append(
                f"{count}not finite after step {k}, last finite state at step {k - 1}, t = {before:.6g}{curvature}; "
                "gradient descent is stable for learning rates h below 2/λ: use a smaller one"
            )
        self.alive, self._frozen = finite, True
        return torch.where(finite[..., None], theta, last)
