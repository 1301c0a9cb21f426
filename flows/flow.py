r"""Flow: a continuous-time model dθ/dt = velocity. It holds parameters only; ``integrate`` is its engine."""

from __future__ import annotations

import math
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flows.declared import Declared
from landscapes import Landscape, UnsupportedError
from landscapes.krylov import Product
from landscapes.noise import ito_correction
from landscapes.noise.base import Kind


class SingularModeError(ValueError):
    """The velocity does not exist: an eigenvalue λ of the Hessian has hλ = 1. ``members`` marks where, shape (...,)."""

    def __init__(self, sentence: str, members: Tensor):
        super().__init__(sentence)
        self.members = members


class BranchError(ValueError):
    """The velocity is complex, or requires complex θ, on the real branch; or it is real on the complex branch."""


class UnconvergedWarning(UserWarning):
    """An iterative evaluation reached its limit before its tolerance."""


_flags: ContextVar[dict[str, int] | None] = ContextVar("flags of the current run", default=None)


def flag_unconverged(sentence: str) -> None:
    """Report that an evaluation reached its limit: a note in the trajectory of the current run, else a warning."""
    flags = _flags.get()
    if flags is None:
        warnings.warn(sentence, UnconvergedWarning, stacklevel=3)
    else:
        flags[sentence] = flags.get(sentence, 0) + 1


@contextmanager
def collect_flags() -> Iterator[dict[str, int]]:
    """Collect the reports of ``flag_unconverged`` while an engine runs: sentence → number of times."""
    flags: dict[str, int] = {}
    token = _flags.set(flags)
    try:
        yield flags
    finally:
        _flags.reset(token)


@dataclass(frozen=True)
class Linearisation:
    """A flow's field to first order at one state (s,): ``velocity`` (s,) and ``product``, v (s,) ↦ Jv (s,).

    J = ∂velocity/∂X is symmetric, as a gradient's is; complex symmetric at complex states, where products are bilinear.
    """

    velocity: Tensor
    product: Product


class Flow(Declared, ABC):
    r"""A continuous-time model dX/dt = velocity(t, X) with position(X) = θ.

    Most flows' state is θ itself (..., d). A flow with more state overrides ``start`` and ``position``. Concrete flows
    are frozen dataclasses that hold parameters only, first of them the landscape, and are final.

    Engines and ``compare`` read a flow's statements about itself, the members of ``flows.declared.Declared``. They have
    defaults for dataclasses, whatever the fields are called:

    - ``declared_landscapes``, ``declared_noise``: found in the fields. Their oracle calls are the cost of a run; where
      they cannot be known (no dataclass, a closure, no landscape), the cost has none and tables print a dash.
    - ``declared_rate``: h, lr, learning_rate or rate, if it is a number; it must equal the descent's.
    - ``declared_clock``: the unit of h and of t, and the rule that the flow models, a ``Clock``; None is not checked.
    """

    landscape: Landscape

    @property
    def radius(self) -> float:
        """The |hλ| below which the model's series converges; ``compare`` notes a run that leaves it."""
        return math.inf

    @property
    def name(self) -> str:
        """The flow's name in tables and figures, unless the user gives one."""
        return type(self).__name__

    @abstractmethod
    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """dX/dt at time t, shape and dtype of the state (..., s)."""

    def linearised(self, t: float | Tensor, state: Tensor) -> Linearisation:
        """The field to first order at one state (s,), for method='exprb43'; only where velocity does not depend on t.

        Raises UnsupportedError unless the flow overrides it.
        """
        raise UnsupportedError(
            f"{self.name} has no linearisation of its velocity, which method='exprb43' needs: use "
            "method='dopri5' or 'scipy_solver', or override linearised (the Jacobian must be symmetric)"
        )

    def start(self, theta0: Tensor) -> Tensor:
        """The state (..., s) that the flow starts from at θ0 (..., d)."""
        return theta0

    def resume(self, theta: Tensor, velocity: Tensor) -> Tensor:
        """The state (..., s) at θ (..., d) of a descent with the ``velocity`` v (..., d), for momentum."""
        return self.start(theta)

    def position(self, state: Tensor) -> Tensor:
        """θ (..., d) of a state (..., s)."""
        return state


class WorkspaceFlow(Flow):
    r"""A flow that evaluates at less cost from a workspace, a result of the evaluation before, such as eigenvectors.

    ``integrate`` passes the workspace from evaluation to evaluation of one run and keeps it in the run's ``State``. It
    holds tensors, numbers, tuples, dicts or dataclasses of these, for the batch in its order, and is never changed in
    place. It begins anew, as None, when members of the batch are frozen.
    """

    @abstractmethod
    def evaluate(self, t: float | Tensor, state: Tensor, workspace: Any) -> tuple[Tensor, Any]:
        """dX/dt at time t, like the state (..., s), and the workspace for the next evaluation; None is an empty one."""

    def velocity(self, t: float | Tensor, state: Tensor) -> Tensor:
        """dX/dt without a workspace."""
        return self.evaluate(t, state, None)[0]


class StochasticFlow(Flow):
    r"""A stochastic differential equation in Itô's sense, dX = velocity(t, X) dt + diffusion(t, X, dW).

    W is a Brownian motion in R^m, m = ``noise_size``. ``integrate`` solves it on steps dt, with a seed or a path of W:
    by Euler–Maruyama, Milstein where the noise is diagonal, or Heun's and the midpoint rule, to which it gives the
    Stratonovich drift velocity − ``ito_correction``. A flow meant in Stratonovich's sense is wrapped in
    ``Stratonovich``.
    """

    @property
    def noise_kind(self) -> Kind:
        """Kind of the noise: additive (does not depend on X), diagonal (component by component) or general."""
        return "general"

    @property
    def noise_period(self) -> float | None:
        """Time after which the noise sums to zero, as over a reshuffled epoch; None for Brownian increments."""
        return None

    @property
    @abstractmethod
    def noise_size(self) -> int:
        """m, the number of Brownian motions that drive one member."""

    @abstractmethod
    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        """σ(t, X) dw for dw (..., m), shape and dtype of the state (..., s); linear in dw."""

    def rate(self, t: float | Tensor, state: Tensor, dw_over_dt: Tensor) -> Tensor:
        """velocity + diffusion(dW/dt), which a flow may fuse into one backward pass."""
        return self.velocity(t, state) + self.diffusion(t, state, dw_over_dt)

    def ito_correction(self, t: float | Tensor, state: Tensor) -> Tensor:
        """½ Σ_j (∂σ_j) σ_j, like the state: Itô's drift less Stratonovich's; m jvps unless overridden."""
        return ito_correction(lambda x, dw: self.diffusion(t, x, dw), state, self.noise_size, self.noise_kind)


class SameNoise(StochasticFlow):
    """A stochastic flow with the states and the noise of another one, ``flow``; a subclass defines the velocity."""

    flow: StochasticFlow

    @property
    def noise_kind(self) -> Kind:
        return self.flow.noise_kind

    @property
    def noise_period(self) -> float | None:
        return self.flow.noise_period

    @property
    def noise_size(self) -> int:
        return self.flow.noise_size

    def diffusion(self, t: float | Tensor, state: Tensor, dw: Tensor) -> Tensor:
        return self.flow.diffusion(t, state, dw)

    def ito_correction(self, t: float | Tensor, state: Tensor) -> Tensor:
        return self.flow.ito_correction(t, state)

    def start(self, theta0: Tensor) -> Tensor:
        """The flow's own."""
        return self.flow.start(theta0)

    def resume(self, theta: Tensor, velocity: Tensor) -> Tensor:
        return self.flow.resume(theta, velocity)

    def position(self, state: Tensor) -> Tensor:
        return self.flow.position(state)


def unwrap(flow: Flow) -> Flow:
    """The flow, or the flow that it wraps."""
    return unwrap(flow.flow) if isinstance(flow, SameNoise) else flow
