"""A flow's velocity as the methods call it, and the ``Stop`` of members that cannot continue."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from flows.flow import Flow, Linearisation, SingularModeError, WorkspaceFlow


class Stop(Exception):
    """A run cannot continue for some batch members: the kind, the members (...,), and a sentence with time and step."""

    def __init__(self, kind: str, members: Tensor, sentence: str, advice: str = ""):
        super().__init__(sentence)
        self.kind = kind
        self.members = members
        self.sentence = sentence
        self.advice = advice


def stop_of(error: Stop | SingularModeError, device: torch.device) -> Stop:
    """The Stop of an error in a velocity."""
    if isinstance(error, Stop):
        return error
    return Stop("singular mode", error.members.to(device), str(error))


class Field:
    """A flow's velocity as torchdiffeq calls it: counted, checked, zero for frozen members."""

    def __init__(self, flow: Flow):
        self.flow = flow
        self.evaluations = 0
        self.alive: Tensor | None = None  # None: all of them
        self.workspace: Any = None
        self.seed: int | None = None  # of the noise, if it is that of a seed

    def __call__(self, t: Tensor, state: Tensor) -> Tensor:
        """The velocity at (t, state)."""
        self.evaluations += 1
        if self.alive is None:
            return self.evaluate(t, state)
        velocity = torch.zeros_like(state)
        some = state[self.alive]
        try:
            velocity[self.alive] = self.evaluate(t, some)
        except SingularModeError as error:
            members = torch.zeros_like(self.alive)
            members[self.alive] = error.members.to(members.device)
            raise SingularModeError(str(error), members) from error
        return velocity

    def evaluate(self, t: Tensor, state: Tensor) -> Tensor:
        """The velocity of states without frozen members."""
        return velocity_of(self.flow, t, state)

    def keep_only(self, members: Tensor) -> None:
        """Freeze all but the ``members`` (...); the workspace, which belongs to the batch as it was, begins anew."""
        self.alive = members
        self.workspace = None

    def begin(self, step: int, state: Tensor, dt: Tensor) -> None:
        """Called by fixed-step methods before the step of length dt from the grid index ``step``."""


class WorkspaceField(Field):
    """The velocity of a flow with a workspace, which passes from evaluation to evaluation."""

    flow: WorkspaceFlow

    def evaluate(self, t: Tensor, state: Tensor) -> Tensor:
        with torch.enable_grad():  # a user's flow may call autograd; the run itself keeps no graph
            velocity, self.workspace = self.flow.evaluate(t, state, self.workspace)
        return like_state(self.flow, "velocity", velocity, state)


def velocity_of(flow: Flow, t: float | Tensor, state: Tensor) -> Tensor:
    """The flow's velocity, detached; raise unless it has the state's shape and dtype."""
    with torch.enable_grad():  # a user's flow may call autograd; the run itself keeps no graph
        velocity = flow.velocity(t, state)
    return like_state(flow, "velocity", velocity, state)


def like_state(flow: Flow, name: str, value: Tensor, state: Tensor) -> Tensor:
    """A flow's return value, detached; raise unless it has the state's shape and dtype."""
    if not isinstance(value, Tensor) or value.shape != state.shape or value.dtype != state.dtype:
        got = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(
            f"{name} of {type(flow).__name__} must have the shape and dtype of the state, "
            f"{tuple(state.shape)} {state.dtype}, got {got}"
        )
    return value.detach()


def linearisation_of(flow: Flow, t: float, state: Tensor) -> Linearisation:
    """The flow's linearisation at one state (s,), detached; raise unless it has the state's shape and dtype."""
    with torch.enable_grad():
        here = flow.linearised(t, state)
    if not isinstance(here, Linearisation):
        raise TypeError(
            f"linearised of {type(flow).__name__} must return a Linearisation, got {type(here).__name__}; "
            "write Linearisation(velocity, product)"
        )

    def product(v: Tensor) -> Tensor:
        with torch.enable_grad():
            return like_state(flow, "product of linearised", here.product(v), state)

    return Linearisation(like_state(flow, "velocity of linearised", here.velocity, state), product)


def linearises(flow: Flow) -> bool:
    """Whether the flow overrides ``linearised``."""
    return getattr(flow.linearised, "__func__", None) is not Flow.linearised


def clock(times: Sequence[float], state: Tensor) -> Tensor:
    """Times as torchdiffeq expects them: float64 on the state's device."""
    return torch.tensor(times, dtype=torch.float64, device=state.device)
