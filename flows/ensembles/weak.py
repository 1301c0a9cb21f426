r"""Weak errors: E φ(X_{kh}) − E φ(θ_k) of a stochastic flow and a descent, the integrator's share told apart.

Fixed steps have a weak error that expands in dt, E φ(X^{dt}) = E φ(X) + c dt + O(dt²). So the same path of noise is run
at dt, dt/2 and dt/4, and Talay and Tubaro's extrapolation, path by path,

    R = 2φ(X^{dt/4}) − φ(X^{dt/2}),      E R = E φ(X) + O(dt²),

is averaged. 2φ(X^{dt/2}) − φ(X^{dt}) is off by four times as much, so that a third of its distance to R is the
integration error left in R, up to O(dt³); it stands beside every error, with a standard error of its own. Talay &
Tubaro 1990, Stochastic Anal. Appl. 8(4).

The descent's side is known exactly (``reference``), or has runs of its own, or ``coupled`` runs: along the very
mini-batches of ``StochasticGradientDescent``, or with the Gaussian noise of ``NoisyGradientDescent``. What is averaged
is then the difference run by run, whose variance falls with h. Mini-batches have the Brownian motion's first two
moments, not its third ones: along them the law of X itself is off by O(h²) where those count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from flows.brownian import NoisePath, minibatch_path
from flows.descents.noisy import NoisyGradientDescent
from flows.ensembles.blocks import (
    Block,
    Course,
    Function,
    add_costs,
    block_seed,
    block_size,
    blocks,
    check_functions,
    check_start,
    observed,
)
from flows.ensembles.statistics import CONFIDENCE, Moments, check_confidence
from flows.flow import Descent, StochasticFlow
from flows.models.stochastic import NoisyModifiedEquation
from landscapes.errors import check_count, check_seed

LEVELS = (1, 2, 4)  # by what dt is divided
Reference = Mapping[str, Tensor]


@dataclass(frozen=True)
class Largest:
    """A weak error where it is largest in k (and over members and components), with what is known of it.

    ``low`` and ``high``: an interval that holds sup_k |E φ(X) − E φ(θ)| with the confidence asked for, Bonferroni's
    over all k. ``share``: the integration error where the weak error is largest, over that.
    """

    error: float
    standard_error: float
    time: float
    low: float
    high: float
    share: float


@dataclass(frozen=True)
class WeakErrors:
    r"""E φ(X_{kh}) − E φ(θ_k) of every observable at every kept step.

    ``times`` (T,); observable → (T, ..., q) for all of: ``mean``, E φ(X); ``difference``, that less the descent's;
    ``standard_error`` of the difference; ``integration``, an estimate of what integration has left in it (see above),
    and its ``integration_error``, a standard error. ``diverged``: how many paths left the finite numbers at any level;
    they are in every mean with their last finite position. ``cost`` of everything that was run.
    """

    times: Tensor
    paths: int
    mean: Mapping[str, Tensor]
    difference: Mapping[str, Tensor]
    standard_error: Mapping[str, Tensor]
    integration: Mapping[str, Tensor]
    integration_error: Mapping[str, Tensor]
    diverged: int = 0
    cost: Mapping[str, float] = field(default_factory=dict)

    def largest(self, name: str, confidence: float = CONFIDENCE) -> Largest:
        """sup_k |E φ(X_{kh}) − E φ(θ_k)| of one observable; the start, where both are at θ0, counts as exact."""
        check_confidence(confidence)
        error, bar = self.difference[name][1:], self.standard_error[name][1:]
        width = float(stats.norm.isf((1 - confidence) / (2 * error.numel())))
        place = int(error.abs().argmax())
        size = float(error.abs().reshape(-1)[place])
        steps = error[0].numel()
        return Largest(
            error=size,
            standard_error=float(bar.reshape(-1)[place]),
            time=float(self.times[1 + place // steps]),
            low=max(0.0, float((error.abs() - width * bar).max())),
            high=float((error.abs() + width * bar).max()),
            share=float(self.integration[name][1:].abs().reshape(-1)[place]) / size if size else math.inf,
        )


def weak_errors(
    flow: StochasticFlow,
    descent: Descent,
    theta0: Tensor,
    steps: int,
    *,
    paths: int,
    seed: int,
    observables: Mapping[str, Function],
    substeps: int = 1,
    reference: Callable[[Tensor], Reference] | None = None,
    coupled: bool = False,
    extrapolate: bool = True,
    method: str | None = None,
    every: int = 1,
    block: int | None = None,
    progress: bool = False,
) -> WeakErrors:
    r"""The weak errors of a flow against ``steps`` steps of a descent from θ0 (..., d), at every ``every``-th step.

    ``observables``: name → φ, θ (n, ..., d) ↦ (n, ...) or (n, ..., q). The flow is run at dt = h/``substeps``, dt/2 and
    dt/4. ``reference``: times (T,) ↦ name → E φ(θ_k) (T, ..., q) or broadcastable to it, where that is known exactly:
    the descent is then not run. ``coupled`` as told above; without either the descent has as many runs as the flow,
    independent of it. ``extrapolate=False`` takes dt/4 as it is, and its distance to dt/2 for the integration error.

    Raises TypeError or ValueError for arguments out of place, and KeyboardInterrupt where it is interrupted.
    """
    theta0 = check_start(theta0)
    check_count("paths", paths, minimum=2)
    check_functions(observables)
    if not isinstance(flow, StochasticFlow):
        raise TypeError(f"flow must be a StochasticFlow, got {type(flow).__name__}")
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must be a Descent, got {type(descent).__name__}")
    if reference is not None and coupled:
        raise ValueError("give either a reference or coupled=True: a descent that is known is not run")
    check_count("substeps", substeps)
    check_seed(seed)
    dt = descent.h / substeps
    outputs = tuple(k * descent.h for k in range(check_count("steps", steps) + 1))
    courses = [Course(flow, outputs, every=every, dt=dt / n, method=method) for n in LEVELS]
    kept = courses[0].kept
    source = Source(descent, Course(descent, steps=steps, every=every), dt, coupled, reference is None)
    run = Run(dict(observables), extrapolate, coupled)
    held = (len(LEVELS) + 1) * len(kept) * len(observables) * theta0[..., 0].numel()
    size = block_size(block, paths, theta0, [flow, descent], held)
    with tqdm(total=paths, unit="path", desc=flow.name, disable=not progress) as bar:
        for part in blocks(theta0, paths, size):
            run.take(part, courses, source, seed)
            bar.update(part.paths)
    times = torch.tensor([outputs[k] for k in kept], dtype=torch.float64)
    return run.result(times, paths, None if reference is None else reference(times))


@dataclass(frozen=True)
class Source:
    """Where a block's noise and the descent's side come from."""

    descent: Descent
    course: Course
    dt: float
    coupled: bool
    needed: bool

    def path(self, block: Block, seed: int) -> NoisePath | None:
        """The noise of a block of the flow: the mini-batches', or None for what the seed gives."""
        if not self.coupled or isinstance(self.descent, NoisyGradientDescent):
            return None
        halvings = round(math.log2(self.descent.h / self.dt)) + len(LEVELS) - 1
        if not math.isclose(self.dt * 2 ** (halvings + 1 - len(LEVELS)), self.descent.h, rel_tol=1e-12):
            raise ValueError("substeps must be a power of two for coupled flows: bridges halve a step")
        return minibatch_path(self.descent, block.theta0, self.course.steps, seed, halvings)  # type: ignore[arg-type]

    def partner(self) -> Course:
        """What is run for the descent: itself or, coupled with Gaussian noise, Euler's step of its equation at h."""
        if not (self.coupled and isinstance(self.descent, NoisyGradientDescent)):
            return self.course
        d = self.descent
        outputs = tuple(k * d.h for k in range(self.course.steps + 1))
        return Course(NoisyModifiedEquation(d.landscape, d.h, d.noise), outputs, every=self.course.every, dt=d.h)


class Run:
    """Statistics of the blocks so far."""

    def __init__(self, observables: Mapping[str, Function], extrapolate: bool, coupled: bool):
        self._observables = observables
        self._extrapolate = extrapolate
        self._coupled = coupled
        self._mean, self._gap, self._left, self._descent = ({name: Moments() for name in observables} for _ in range(4))
        self._lost = 0
        self._cost: dict[str, float] = {}

    def take(self, block: Block, courses: Sequence[Course], source: Source, seed: int) -> None:
        """Run a block at every level, and the descent's side of it."""
        noise = block_seed(seed, block.number)
        path = source.path(block, noise)
        coarse, middle, fine = (self._values(way, block, noise, path) for way in courses)
        theirs = None
        if source.needed:
            own = noise if source.coupled else block_seed(seed, block.number, 1)
            theirs = self._values(source.partner(), block, own, None)
        for name in self._observables:
            one = 2 * fine[name] - middle[name] if self._extrapolate else fine[name]
            other = 2 * middle[name] - coarse[name] if self._extrapolate else middle[name]
            self._mean[name] = self._mean[name].add(one)
            self._left[name] = self._left[name].add((other - one) / (3 if self._extrapolate else 1))
            if theirs is not None:
                self._descent[name] = self._descent[name].add(theirs[name])
                self._gap[name] = self._gap[name].add(one - theirs[name])

    def _values(self, way: Course, block: Block, seed: int, path: NoisePath | None) -> dict[str, Tensor]:
        """φ along a run, name → (n, T, ..., q)."""
        seen: dict[str, list[Tensor]] = {name: [] for name in self._observables}

        def see(j: int, t: float, theta: Tensor) -> None:
            for name, function in self._observables.items():
                seen[name].append(observed(name, function, theta))

        run, _ = way.run(block, seed, see, path)
        if run.status == "interrupted":
            raise KeyboardInterrupt(run.status.sentence)
        self._lost += int((~run.alive).sum())
        add_costs(self._cost, run.cost)
        return {name: torch.stack(values, dim=1) for name, values in seen.items()}

    def result(self, times: Tensor, paths: int, reference: Reference | None) -> WeakErrors:
        """The weak errors, against the reference or the descent's side."""
        difference, bar = {}, {}
        for name, mean in self._mean.items():
            if reference is not None:
                if name not in reference:
                    raise ValueError(f"reference must have every observable, {name!r} is missing in {list(reference)}")
                exact = reference[name].to(mean.mean)
                exact = exact[..., None] if exact.ndim < mean.mean.ndim else exact
                difference[name], bar[name] = mean.mean - exact, mean.standard_error
            elif self._coupled:
                difference[name], bar[name] = self._gap[name].mean, self._gap[name].standard_error
            else:
                theirs = self._descent[name]
                difference[name] = mean.mean - theirs.mean
                bar[name] = (mean.standard_error.square() + theirs.standard_error.square()).sqrt()
        return WeakErrors(
            times,
            paths,
            {name: moments.mean for name, moments in self._mean.items()},
            difference,
            bar,
            {name: moments.mean for name, moments in self._left.items()},
            {name: moments.standard_error for name, moments in self._left.items()},
            self._lost,
            self._cost,
        )
