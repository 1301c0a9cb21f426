r"""The reference of a comparison: a descent's iterates or their mean over runs, its single steps, and its curvature."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flows.descent import Descent, StochasticDescent
from flows.engines.counting import extreme_eigenvalue
from flows.engines.descend import descend
from flows.engines.recorder import StateObserver
from flows.engines.state import State, map_tensors
from flows.engines.trajectory import Trajectory
from flows.flow import Flow, unwrap
from landscapes import Landscape

CURVATURE_SAMPLES = 5  # iterates at which max |hλ| is estimated where a flow's series has a radius

NO_VELOCITY = "no one-step errors: the descent carries no velocity to start from"


class Steps(StateObserver):
    """Recorded at every state of a descent: its velocity and, with noise, its mean step.

    With ``runs`` the mean step and its noise are those of the first run. ``mean_steps``: whether to record them.
    """

    name = "steps of a comparison"
    every = 1

    def __init__(self, descent: Descent, runs: int, steps: int, mean_steps: bool):
        self._steps = steps
        self._descent = descent
        self._mean_steps = mean_steps
        self._runs = runs
        self._velocities: list[Tensor] = []
        self._ends: list[Tensor] = []
        self._noise: list[Tensor] = []

    def __call__(self, k: int, t: float, theta: Tensor, state: State) -> dict[str, Tensor]:
        """Record the state before step k; no observations."""
        if k < self._steps:
            self._record(k, state.values)
        return {}

    def _record(self, k: int, state: Any) -> None:
        velocity = self._descent.velocity(state)
        if velocity is not None:
            self._velocities.append(velocity)
        if isinstance(self._descent, StochasticDescent):
            first = member(state, 0) if self._runs > 1 else state
            if self._mean_steps:
                self._ends.append(self._descent.mean_step(first, k))
            self._noise.append(self._descent.noise_of_step(first, k))

    def velocities(self, steps: int) -> Tensor | None:
        """v (steps, [runs,] ..., d) at the starts of the steps; None for a descent without a velocity."""
        return torch.stack(self._velocities[:steps]) if self._velocities else None

    def mean_ends(self, steps: int) -> Tensor | None:
        """θ after the full-batch step, (steps, ..., d); None without noise."""
        return torch.stack(self._ends[:steps]) if self._ends else None

    def noise(self, steps: int) -> Tensor | None:
        """Noise of the steps, (steps, ...); None for a descent without noise."""
        return torch.stack(self._noise[:steps]) if self._noise else None


def member(state: Any, i: int) -> Any:
    """The i-th run of a descent's state: of every tensor in it the i-th row."""
    return map_tensors(state, lambda tensor: tensor[i])


class Reference:
    """A descent's run and the quantities that flows are compared with; ``members`` (T, runs, ..., d) are its runs."""

    def __init__(
        self,
        descent: Descent,
        theta0: Tensor,
        steps: int,
        runs: int,
        seed: int,
        progress: bool,
        *,
        mean_steps: bool = True,
    ):
        self.theta0 = theta0.expand(runs, *theta0.shape) if runs > 1 else theta0
        seen = Steps(descent, runs, steps, mean_steps)
        self.descent = descent
        self.runs = runs
        self.seed = seed
        self.run: Trajectory = descend(descent, self.theta0, steps, seed=seed, observers=[seen], progress=progress)
        self.h = descent.clock_rate
        self.landscape: Landscape = descent.stated_landscape
        self.times = self.run.times
        self.members = self.by_runs(self.run.theta)
        self.members_lost = self.by_runs(frozen_mask(self.run))
        self.mean = self.members.mean(dim=1) if runs > 1 else self.run.theta
        self.mean[0] = theta0  # without the rounding of the mean over runs
        self.lost = self.members_lost.any(dim=1)
        self.member_losses = real_loss(self.landscape, self.members)
        mean_loss = self.member_losses.mean(dim=1)
        self.losses = mean_loss.masked_fill(self.lost, torch.nan) if runs > 1 else mean_loss
        self.standard_error = self.members.var(dim=1).sum(dim=-1).div(runs).sqrt() if runs > 1 else None
        last = len(self.times) - 1
        self.starts = self.members[:-1, 0]
        mean_ends = seen.mean_ends(last)
        self.ends = self.members[1:, 0] if mean_ends is None else mean_ends
        self.noise_floor = seen.noise(last)
        self.velocities = seen.velocities(last)
        self._curvature: float | None = None

    def by_runs(self, values: Tensor) -> Tensor:
        """Values (T, [runs,] ...) of a run from ``theta0`` as (T, runs, ...)."""
        return values if self.runs > 1 else values[:, None]

    @property
    def first_velocities(self) -> Tensor | None:
        """v (T−1, ..., d) at ``starts``; None for a descent without a velocity."""
        return self.velocities if self.velocities is None or self.runs == 1 else self.velocities[:, 0]

    def curvature(self) -> float:
        """The largest |hλ| at a few iterates along the descent."""
        if self._curvature is None:
            places = torch.linspace(0, len(self.mean) - 1, min(CURVATURE_SAMPLES, len(self.mean))).round().long()
            members = self.mean[places].reshape(-1, self.mean.shape[-1])
            eigenvalues = [extreme_eigenvalue(self.landscape, theta) for theta in members]
            self._curvature = self.h * max(abs(0.0 if e is None else e) for e in eigenvalues)
        return self._curvature


def carries_velocity(flow: Flow) -> bool:
    """Whether the flow's state holds more than θ, so that θ alone does not determine the rest of the run."""
    return type(unwrap(flow)).resume is not Flow.resume


def lacks_velocity(flow: Flow, reference: Reference) -> bool:
    """Whether one-step errors are undefined: the flow needs a velocity that the descent does not have."""
    return carries_velocity(flow) and reference.velocities is None


def real_loss(landscape: Landscape, theta: Tensor) -> Tensor:
    """f(θ) (T, ...) of θ (T, ..., d), the real part if θ is complex; time by time, as N may be large."""
    with torch.no_grad():
        loss = at_each_time(landscape.loss, theta)
    return loss.real if loss.is_complex() else loss


def at_each_time(phi: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """φ (T, ...) of θ (T, ..., d), time by time, written into one tensor.

    A list of small results would fragment the memory that φ frees after each time, so that it cannot be reused and
    memory grows as if all times had been evaluated at once.
    """
    first = phi(theta[0])
    values = first.new_empty(len(theta), *first.shape)
    values[0] = first
    del first
    for k in range(1, len(theta)):
        values[k] = phi(theta[k])
    return values


def distance(left: Tensor, right: Tensor) -> Tensor:
    """‖left − right‖ over the last dimension, by modulus."""
    return torch.linalg.vector_norm(left - right, dim=-1)


def frozen_mask(run: Trajectory, dt: float | None = None) -> Tensor:
    """A mask (T, ...) of the states that repeat the last finite one of a frozen member.

    With steps ``dt`` between the output times, the first such state belongs to a time before its output time.
    """
    same = (run.theta == run.theta[-1]).all(dim=-1).flip(0).long().cumprod(0).flip(0).bool()
    between = dt is not None and dt < 0.999 * float(run.times.diff().max()) if len(run.times) > 1 else False
    stays = same[1:] if between else same[:-1]
    return torch.cat([torch.zeros_like(run.alive)[None], stays & ~run.alive])


def pad(values: Tensor, nothing: Tensor) -> Tensor:
    """Values (T', ...) of a run that may have ended early on the full clock (T, ...), NaN past its end."""
    return torch.cat([values, nothing[len(values) :]])
