r"""Weak errors: E φ(X_{kh}) − E φ(θ_k) of a stochastic flow and a descent, separated from integration errors.

E φ(X) is extrapolated to dt → 0 from runs at dt, dt/2 and dt/4 along one path of noise (``expectation``); every weak
error comes with an estimate of the remaining integration error and its standard error.

E φ(θ) is known exactly (``reference``), or estimated from independent runs, or from ``coupled`` runs, along the same
Brownian motion as ``NoisyGradientDescent``. Then the difference is averaged run by run, and its variance decreases with
h. Runs along the mini-batches of a descent are refused: these are not Brownian between the steps, and the law of X
along them is another one, by O(h²) where curvatures differ (``MinibatchPath``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

import torch
from scipy import stats
from torch import Tensor
from tqdm import tqdm

from flows.descent import Descent
from flows.descents.noisy import NoisyGradientDescent
from flows.ensembles.blocks import (
    Block,
    Course,
    Function,
    block_seed,
    block_size,
    blocks,
    check_functions,
    check_start,
)
from flows.ensembles.extrapolation import LEVELS, Levels, check_along_times
from flows.ensembles.statistics import CONFIDENCE, MOST, Moments, check_confidence
from flows.flow import StochasticFlow
from flows.models.stochastic import NoisyModifiedEquation
from landscapes import UnsupportedError
from landscapes.errors import (
    check_callable,
    check_choice,
    check_computable,
    check_count,
    check_flag,
    check_seed,
    short_form,
)

Reference = Mapping[str, Tensor]


@dataclass(frozen=True)
class Largest:
    """The largest weak error over k (and over members and components), with its uncertainty.

    ``low`` and ``high``: a confidence interval of sup_k |E φ(X) − E φ(θ)|, Bonferroni's over all k. ``share``: an upper
    bound of the integration error relative to the weak error: the estimate at the largest weak error plus twice its
    standard error, over that weak error.
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

    ``times`` (T,); each of the others maps observable → (T, ..., q): ``mean``, E φ(X); ``difference``, E φ(X) − E φ(θ);
    ``standard_error`` of the difference; ``integration``, an estimate of the difference's integration error, and its
    standard error ``integration_error``. ``diverged``: the number of diverged runs, of three per path and the
    descent's; they are included in every mean with their last finite position. ``cost`` of all runs. Raises TypeError
    or ValueError for values that are not along the times.
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

    def __post_init__(self) -> None:
        check_along_times(self, ("mean", "difference", "standard_error", "integration", "integration_error"))

    def largest(self, name: str, confidence: float = CONFIDENCE) -> Largest:
        """sup_k |E φ(X_{kh}) − E φ(θ_k)| of one observable, without the start, where both are at θ0."""
        check_confidence(confidence)
        check_observable(name, self.difference)
        error, bar = self.difference[name][1:], self.standard_error[name][1:]
        width = float(stats.norm.isf((1 - confidence) / (2 * error.numel())))
        place = int(error.abs().argmax())
        size = float(error.abs().reshape(-1)[place])
        steps = error[0].numel()
        left = self.integration[name][1:].abs() + 2 * self.integration_error[name][1:]
        return Largest(
            error=size,
            standard_error=float(bar.reshape(-1)[place]),
            time=float(self.times[1 + place // steps]),
            low=max(0.0, float((error.abs() - width * bar).max())),
            high=float((error.abs() + width * bar).max()),
            share=float(left.reshape(-1)[place]) / size if size else math.inf,
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
    dt/4. ``reference``: times (T,) ↦ name → E φ(θ_k) (T, ..., q) or broadcastable to it, if it is known exactly; the
    descent is then not run. ``coupled``, for a ``NoisyGradientDescent``: its runs share the flow's noise; without
    either the descent has as many runs as the flow, independent of it. ``extrapolate=False`` takes the mean at dt/4,
    and its distance to that at dt/2 as integration error.

    Raises TypeError or ValueError for invalid arguments, and KeyboardInterrupt if interrupted.
    """
    theta0 = check_start(theta0)
    check_count("paths", paths, minimum=2, maximum=MOST)
    check_functions(observables)
    check_pair(flow, descent, coupled)
    if reference is not None and coupled:
        raise ValueError("give either a reference or coupled=True: with a reference the descent is not run")
    check_reference(reference)
    check_count("substeps", substeps, maximum=MOST)
    check_count("every", every)
    check_seed(seed)
    clock = step_of(descent, theta0)
    outputs = tuple(k * clock for k in range(check_count("steps", steps, maximum=MOST) + 1))
    courses = [Course(flow, outputs, every=every, dt=clock / (substeps * n), method=method) for n in LEVELS]
    source = Source(descent, outputs, every, substeps, coupled, reference is None)
    run = WeakRun(Levels(courses, observables, extrapolate), observables, coupled)
    size = block_size(block, paths, theta0, [flow, descent], run.levels.path_size(theta0))
    with tqdm(total=paths, unit="path", desc=flow.name, disable=not check_flag("progress", progress)) as bar:
        for part in blocks(theta0, paths, size):
            run.take(part, source, seed)
            bar.update(part.paths)
    times = torch.tensor([outputs[k] for k in courses[0].kept], dtype=torch.float64)
    return run.result(times, paths, None if reference is None else check_expected(reference(times)))


def check_reference(reference: object) -> None:
    """Raise unless a reference, if there is one, is a function."""
    if reference is not None:
        check_callable("reference", reference, "a function that returns name -> E phi, or None")


def check_expected(found: Reference) -> Reference:
    """Return the values of a reference; raise unless they are a mapping of dense tensors."""
    if not isinstance(found, Mapping):
        raise TypeError(f"reference must return a mapping name -> E phi, got {short_form(found)}")
    for name, value in found.items():
        check_computable(f"reference[{short_form(name)}]", value)
    return found


def check_observable(name: str, known: Iterable[str]) -> None:
    """Raise unless an observable of that name is known."""
    if not isinstance(name, str):
        raise TypeError(f"name must be a string, one of {', '.join(map(repr, known))}, got {short_form(name)}")
    check_choice("name", name, tuple(known))


def step_of(descent: Descent, theta0: Tensor) -> float:
    """The length of a step in time; UnsupportedError unless it is the same for all steps and states."""
    start = descent.start(theta0)
    step = descent.elapsed(1, start)
    if not (step > 0 and math.isclose(descent.elapsed(2, start), 2 * step, rel_tol=1e-12)):
        raise UnsupportedError(
            f"descent must have a constant rate, known beforehand: {type(descent).__name__} has none; compare(...) "
            "works on the descent's own clock"
        )
    return step


def check_pair(flow: StochasticFlow, descent: Descent, coupled: bool) -> None:
    """Raise unless they are a stochastic flow and a descent of equal learning rate and, if coupled, equal noise."""
    if not isinstance(flow, StochasticFlow):
        raise TypeError(f"flow must be a StochasticFlow, got {type(flow).__name__}")
    if not isinstance(descent, Descent):
        raise TypeError(f"descent must be a Descent, got {type(descent).__name__}")
    rate = flow.declared_rate or descent.clock_rate
    if not math.isclose(rate, descent.clock_rate, rel_tol=1e-12):
        raise ValueError(f"h of {flow.name} is {rate!r}, of the descent {descent.clock_rate!r}: they must agree")
    if check_flag("coupled", coupled) and not isinstance(descent, NoisyGradientDescent):
        raise UnsupportedError(
            f"coupled is for a NoisyGradientDescent, whose noise is a Brownian motion's, got {type(descent).__name__}: "
            "along mini-batches the flow has another law, and its weak error would be wrong; leave coupled out, give a "
            "reference, or use NoisyGradientDescent(landscape, h, MinibatchNoise(...)), whose first two moments on "
            "quadratics are SGD's; paths along mini-batches are those of compare(..., coupled=True)"
        )
    if coupled and descent.noise.size != flow.noise_size:  # type: ignore[attr-defined]
        raise ValueError(
            f"flow must be driven by the descent's noise to be coupled: its noise has the size {flow.noise_size}, the "
            f"descent's {descent.noise.size}"  # type: ignore[attr-defined]
        )


@dataclass(frozen=True)
class Source:
    """The source of a block's noise and of the descent's runs."""

    descent: Descent
    outputs: tuple[float, ...]
    every: int
    substeps: int
    coupled: bool
    needed: bool

    def __post_init__(self) -> None:
        if self.coupled and self.substeps & (self.substeps - 1):
            raise ValueError(
                f"substeps must be a power of two for coupled flows, got {self.substeps}: paths halve steps"
            )

    def partner(self) -> Course:
        """The course for the descent: itself or, coupled, Euler's method with dt = h."""
        d = self.descent
        # One Euler step of the equation is the descent's step, and integrate gives it the flow's Brownian motion.
        if self.coupled:
            assert isinstance(d, NoisyGradientDescent)
            return Course(NoisyModifiedEquation(d.landscape, d.h, d.noise), self.outputs, every=self.every, dt=d.h)
        return Course(d, steps=len(self.outputs) - 1, every=self.every)


class WeakRun:
    """Statistics of the blocks so far: of the flow, of the descent, and of their difference run by run."""

    def __init__(self, levels: Levels, observables: Mapping[str, Function], coupled: bool):
        self.levels = levels
        self._coupled = coupled
        self._gap, self._descent = ({name: Moments() for name in observables} for _ in range(2))

    def take(self, block: Block, source: Source, seed: int) -> None:
        """Run a block of the flow at every level, and of the descent."""
        noise = block_seed(seed, block.number)
        samples = self.levels.take(block, noise)
        if not source.needed:
            return
        own = noise if source.coupled else block_seed(seed, block.number, 1)
        for name, values in self.levels.values(source.partner(), block, own).items():
            self._descent[name] = self._descent[name].add(values)
            self._gap[name] = self._gap[name].add(samples[name] - values)

    def result(self, times: Tensor, paths: int, reference: Reference | None) -> WeakErrors:
        """The weak errors with respect to the reference or to the descent's runs."""
        mean, own, left, left_error = self.levels.results()
        difference, bar = {}, {}
        for name in mean:
            if reference is not None:
                if name not in reference:
                    raise ValueError(f"reference must have every observable, {name!r} is missing in {list(reference)}")
                exact = reference[name].to(mean[name])
                exact = exact[..., None] if exact.ndim < mean[name].ndim else exact
                difference[name], bar[name] = mean[name] - exact, own[name]
            elif self._coupled:
                difference[name], bar[name] = self._gap[name].mean, self._gap[name].standard_error
            else:
                descent = self._descent[name]
                difference[name] = mean[name] - descent.mean
                bar[name] = (own[name].square() + descent.standard_error.square()).sqrt()
        lost, cost = self.levels.lost, self.levels.cost
        return WeakErrors(times, paths, mean, difference, bar, left, left_error, lost, cost)
