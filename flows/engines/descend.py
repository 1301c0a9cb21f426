"""``descend``: a discrete optimiser for a number of steps, every state before a failure kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from flows.descent import Descent
from flows.engines.counting import all_finite, check_theta0, count_calls, curvature_sentence, finite_members
from flows.engines.recorder import Observer, Recorder
from flows.engines.trajectory import Status, Trajectory
from landscapes.errors import check_count, check_seed


def descend(
    descent: Descent,
    theta0: Tensor,
    steps: int,
    *,
    seed: int = 0,
    every: int = 1,
    keep: str = "all",
    observers: Sequence[Observer] = (),
    progress: bool = False,
) -> Trajectory:
    r"""Take ``steps`` steps from θ0 (..., d) and return the states on the clock t = elapsed(k).

    ``keep="all"`` keeps every ``every``-th state and the last one, ``"last"`` only the last; observers are called
    during the run. Random numbers come from one generator seeded with ``seed``, on θ0's device.

    A member of the batch that leaves the finite numbers is frozen at its last finite state and flagged in ``alive``;
    the run ends when none is left, and its status names the step, the time and the Hessian's largest eigenvalue. There
    is no other threshold. KeyboardInterrupt ends a run and keeps its states.

    Raises TypeError or ValueError for invalid arguments, before anything is computed.
    """
    return descend_seen(descent, theta0, steps, None, seed, every, keep, observers, progress)


def descend_seen(
    descent: Descent,
    theta0: Tensor,
    steps: int,
    see: Callable[[int, Any], None] | None,
    seed: int = 0,
    every: int = 1,
    keep: str = "all",
    observers: Sequence[Observer] = (),
    progress: bool = False,
) -> Trajectory:
    """``descend`` that calls see(k, state) with the descent's whole state before every step k; that is not counted."""
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must be a Descent, got {type(descent).__name__}")
    theta0 = check_theta0(theta0)
    check_count("steps", steps)
    generator = torch.Generator(theta0.device).manual_seed(check_seed(seed))
    recorder = Recorder(keep, every, observers, steps)
    with torch.no_grad():
        model, counts = count_calls(descent)
        run = DescentRun(model, theta0, recorder, see)
        with tqdm(total=steps, unit="step", desc=type(descent).__name__, disable=not progress) as bar:
            taken, status = run.steps(steps, generator, bar)
    return recorder.trajectory(status, run.alive, {"steps": taken, **counts}, ())


class DescentRun:
    """The progress of one descent: the optimiser's state, the reported positions, and the members alive."""

    def __init__(
        self, descent: Descent, theta0: Tensor, recorder: Recorder, see: Callable[[int, Any], None] | None = None
    ):
        self.descent = descent
        self.alive = torch.ones(theta0.shape[:-1], dtype=torch.bool, device=theta0.device)
        self._state = descent.start(theta0)
        self._theta = descent.position(self._state)
        self._recorder = recorder
        self._see = see
        self._lost: list[str] = []

    def steps(self, steps: int, generator: torch.Generator, bar: tqdm) -> tuple[int, Status]:
        """Take the steps; return the number of steps taken and the status."""
        t, k, taken = 0.0, -1, 0
        try:
            self._recorder.record(0, t, self._theta)
            for k in range(steps):
                if self._see is not None:
                    self._see(k, self._state)
                self._state = self.descent.step(self._state, k, generator)
                theta = self.descent.position(self._state)
                taken = k + 1
                if self._lost or not all_finite(theta):
                    theta = self._freeze(theta, k + 1, t)
                    if not bool(self.alive.any()):
                        self._recorder.keep_end(t, self._theta)
                        return k + 1, Status("diverged", " | ".join(self._lost))
                self._theta = theta
                t = self.descent.elapsed(k + 1, self._state)
                self._recorder.record(k + 1, t, theta)
                bar.update()
        except KeyboardInterrupt:
            self._recorder.keep_end(t, self._theta)
            return taken, Status("interrupted", f"interrupted in step {k + 1}; the {taken} steps taken are kept")
        lost = "".join(f" | {sentence}" for sentence in self._lost)
        return steps, Status("finished", f"finished {steps} steps at t = {t:.6g}{lost}")

    def _freeze(self, theta: Tensor, k: int, t: float) -> Tensor:
        """Positions with every member that is not finite, now or earlier, held at its last finite one."""
        finite = finite_members(theta) & self.alive
        newly = self.alive & ~finite
        if bool(newly.any()):
            first = self._theta[newly][0] if theta.ndim > 1 else self._theta
            rate = self.descent.elapsed(k, self._state) - t  # of the step just taken, which need not be descent.h
            curvature = curvature_sentence(self.descent, first, rate if math.isfinite(rate) else None)
            count = f"{int(newly.sum())} of {newly.numel()} members: " if newly.ndim else ""
            self._lost.append(
                f"{count}not finite after step {k}, last finite state at step {k - 1}, t = {t:.6g}{curvature}; "
                "gradient descent is stable for learning rates h below 2/λ: use a smaller one"
            )
        self.alive = finite
        return torch.where(finite[..., None], theta, self._theta)
