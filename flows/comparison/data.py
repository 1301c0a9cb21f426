r"""The numbers of a comparison: errors of each flow against the descent on one clock."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from torch import Tensor

from flows.comparison.laws import WeakError
from flows.engines.endings import InterruptedRun
from flows.engines.trajectory import Trajectory
from landscapes import Landscape
from landscapes.errors import check_count, check_float_tensor

Whole = TypeVar("Whole", bound="ComparisonData")

CUT_SHORT = "interrupted while its errors were measured; missing errors are NaN, and later flows were not run"


@dataclass(frozen=True)
class Row:
    r"""One flow beside the descent.

    ``errors`` (T, ...): ‖X(t_k) − θ_k‖ (modulus where complex), NaN past the end of a run. ``one_step`` (T−1, ...):
    ‖X(t_{k+1}; θ_k) − θ_{k+1}‖, integrated at the tighter tolerance. ``integration`` (T, ...): ‖X − X_tight‖, the same
    run at tighter tolerance. ``losses`` (T, ...). ``imaginary`` (T, ...): max |Im θ|, None for real flows.
    ``outside``: the largest |hλ| along the descent if it is beyond the radius of the flow's series, else None. ``mean``
    (T', ..., d): θ of the flow, for a stochastic flow its mean over the runs. ``weak``: φ → E φ(X) − E φ(θ), if laws
    were compared. A flow that could not run has no trajectory, and its notes have the reason. ``interrupted``: a
    KeyboardInterrupt during its run or the measurement of its errors ended the comparison with this row.

    Stochastic flows: ``errors`` are the mean over runs of ‖X(t_k) − θ_k‖ if they are coupled to the descent's
    mini-batches, else ‖mean X(t_k) − mean θ_k‖, NaN for one run; ``one_step`` is pathwise with the mini-batch of the
    step if coupled, else NaN; ``integration`` is the mean over runs of ‖X − X_tight‖ along the same noise, and
    ``losses`` are means over these runs. ``weak`` is always from runs that are independent of the descent: coupled,
    from those of ``ensemble``, a second set, as along mini-batches means are not those of the equation's law.
    """

    trajectory: Trajectory | None
    errors: Tensor
    one_step: Tensor
    integration: Tensor
    losses: Tensor
    imaginary: Tensor | None = None
    outside: float | None = None
    notes: tuple[str, ...] = ()
    mean: Tensor | None = None
    weak: Mapping[str, WeakError] = field(default_factory=dict)
    interrupted: bool = False
    ensemble: Trajectory | None = None

    @property
    def trajectories(self) -> tuple[Trajectory, ...]:
        """The trajectory and the ensemble, those that there are."""
        return tuple(run for run in (self.trajectory, self.ensemble) if run is not None)

    @property
    def is_of_runs(self) -> bool:
        """Whether the trajectory has several runs of a stochastic flow, not one of a flow without noise."""
        return self.trajectory is not None and self.trajectory.theta.ndim > self.errors.ndim + 1

    @property
    def cost(self) -> dict[str, float]:
        """The cost of the runs, summed; empty for a flow that could not run."""
        total: dict[str, float] = {}
        for run in self.trajectories:
            total |= {kind: total.get(kind, 0) + value for kind, value in run.cost.items()}
        return total


@dataclass(frozen=True)
class ComparisonData:
    r"""Flows beside one descent on the clock t = elapsed(k).

    ``descent_losses`` (T, ...); with a stochastic descent ``mean`` is its mean over ``runs``, ``standard_error``
    (T, ...) the norm of the mean's standard error, and ``noise_floor`` (T−1, ...) the root mean square distance of one
    step from the full-batch step, h·√tr Cov(g_batch), both None otherwise. If laws were compared, ``observed`` is
    φ → E φ(θ_k) over the runs and its standard error, each (T, ...); ``coupled``: stochastic flows ran along the
    descent's own mini-batches, and again independently of them if laws were compared. Raises TypeError or ValueError
    for values that are not along the descent's clock.
    """

    name: str
    descent: Trajectory
    mean: Tensor
    descent_losses: Tensor
    rows: Mapping[str, Row]
    runs: int = 1
    standard_error: Tensor | None = None
    noise_floor: Tensor | None = None
    settings: Mapping[str, object] = field(default_factory=dict)
    landscape: Landscape | None = None
    observed: Mapping[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    coupled: bool = False

    def __post_init__(self) -> None:
        check_count("runs", self.runs)
        if not isinstance(self.name, str) or not isinstance(self.descent, Trajectory):
            raise TypeError("name must be a string and descent a Trajectory")
        along = {"mean": self.mean, "descent_losses": self.descent_losses, "standard_error": self.standard_error}
        along |= {f"observed[{phi!r}]": value for phi, pair in self.observed.items() for value in pair}
        steps = {"noise_floor": self.noise_floor}
        for name, row in self.rows.items():
            for part in ("errors", "integration", "losses", "imaginary"):
                along[f"{part} of {name}"] = getattr(row, part)
            along |= {f"weak[{phi!r}] of {name}": x for phi, error in row.weak.items() for x in vars(error).values()}
            steps[f"one_step of {name}"] = row.one_step
        last = len(self.descent.times) - 1
        check_lengths({name: x for name, x in along.items() if x is not None}, last + 1)
        check_lengths({name: x for name, x in steps.items() if x is not None}, last)

    @property
    def times(self) -> Tensor:
        """The clock (T,)."""
        return self.descent.times

    def check_uninterrupted(self: Whole) -> Whole:
        """The comparison itself; raises ``InterruptedRun``, a KeyboardInterrupt, if a run or a row was interrupted."""
        cut = [name for name, row in self.rows.items() if row.interrupted]
        if self.descent.status == "interrupted":
            raise InterruptedRun(f"{self.name}: {self.descent.status.sentence}", self)
        if cut:
            raise InterruptedRun(f"{cut[0]}: {CUT_SHORT}", self)
        return self

    @property
    def errors(self) -> dict[str, Tensor]:
        """Flow → ‖X(t_k) − θ_k‖ (T, ...)."""
        return {name: row.errors for name, row in self.rows.items()}

    @property
    def one_step(self) -> dict[str, Tensor]:
        """Flow → one-step errors (T−1, ...), the model's own."""
        return {name: row.one_step for name, row in self.rows.items()}

    @property
    def integration_errors(self) -> dict[str, Tensor]:
        """Flow → distance to the run at tighter tolerance (T, ...), the integrator's own."""
        return {name: row.integration for name, row in self.rows.items()}

    @property
    def weak_errors(self) -> dict[str, dict[str, Tensor]]:
        """Flow → φ → E φ(X(t_k)) − E φ(θ_k) (T, ...), if laws were compared."""
        return self._weak(lambda error: error.difference)

    @property
    def weak_standard_errors(self) -> dict[str, dict[str, Tensor]]:
        """Flow → φ → the standard error of that difference (T, ...), NaN for one run."""
        return self._weak(lambda error: error.standard_error)

    @property
    def weak_integration_errors(self) -> dict[str, dict[str, Tensor]]:
        """Flow → φ → E φ less that of the run at tighter integration (T, ...)."""
        return self._weak(lambda error: error.integration)

    def _weak(self, part: Callable[[WeakError], Tensor]) -> dict[str, dict[str, Tensor]]:
        return {name: {phi: part(e) for phi, e in row.weak.items()} for name, row in self.rows.items() if row.weak}

    @property
    def losses(self) -> dict[str, Tensor]:
        """Descent and flows → f (T, ...), the real part if θ is complex."""
        return {self.name: self.descent_losses, **{name: row.losses for name, row in self.rows.items()}}

    @property
    def cost(self) -> dict[str, dict[str, float]]:
        """Descent and flows → cost of the runs (without tighter runs and single steps)."""
        return {
            self.name: dict(self.descent.cost),
            **{name: row.cost for name, row in self.rows.items() if row.trajectories},
        }

    @property
    def has_old_laws(self) -> bool:
        """Whether laws of coupled flows were taken along the mini-batches, as in comparisons that version 0.1 saved."""
        return self.coupled and any(row.weak and row.ensemble is None and row.is_of_runs for row in self.rows.values())

    @property
    def has_complex(self) -> bool:
        """Whether a flow ran at complex θ."""
        return any(row.imaginary is not None for row in self.rows.values())


def check_lengths(values: Mapping[str, Tensor], length: int) -> None:
    """Raise unless each value is a floating tensor (length, ...)."""
    for name, value in values.items():
        check_float_tensor(name, value)
        if value.ndim == 0 or len(value) != length:
            raise ValueError(f"{name} must have shape ({length}, ...), got {tuple(value.shape)}")
