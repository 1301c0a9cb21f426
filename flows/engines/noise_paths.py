r"""Brownian motions that can be refined and replayed, and the path of a run's own mini-batches.

A path is a tree. Its roots are increments over intervals of one length, in order of time; an interval of length T and
increment W splits into halves, by the bridge's law,

    W_left = ½W + ½√T ξ,  W_right = W − W_left,  ξ standard normal.

Every level of the tree draws its ξ from its own generator, in order of time. A run at any halving of the step therefore
follows the same path, draws no more normals than it takes steps, holds one increment a level, and stores nothing.
Roots are anchored at the length of a step times a power of two, so that runs with equal seeds refine each other.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, islice
from typing import final

import numpy as np
import torch
from torch import Tensor

from flows.arguments import check_device
from flows.descent import MinibatchDescent, StochasticDescent
from landscapes.errors import MOST, check_count, check_float_tensor, check_positive, check_real, check_seed, short_form
from landscapes.sampling import Sampling

MANY = 4096  # number of doubles from which the vectorised Box–Muller transform is faster
LONGEST_ROOT = 6  # roots are at most 2^6 long: steps up to half of that are refined by equal seeds


class PathError(ValueError):
    """A noise path does not fit a run: too short, too coarse, or of the wrong shape; the message names the cause."""


class NoisePath(ABC):
    r"""Increments of a noise W (*shape) on [t0, t1], from a tree of ``levels`` halvings below each root.

    ``finest_dt`` is the shortest step. A path holds parameters only: it is replayed from its seed at every use.
    """

    seed: int
    dtype: torch.dtype
    device: str | torch.device
    t0: float
    t1: float
    finest_dt: float

    @property
    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Shape of an increment, the noise's size last."""

    @property
    @abstractmethod
    def levels(self) -> int:
        """The number of halvings from a root to ``finest_dt``."""

    @abstractmethod
    def roots(self) -> Iterator[Tensor]:
        """The roots' increments from t0 on."""

    def __call__(self, start: float, end: float) -> Tensor:
        """W(end) − W(start); both on the grid t0 + k·finest_dt."""
        first, last = self._place("start", start), self._place("end", end)
        if last < first:
            raise PathError(f"start must not be after end, got {start!r} and {end!r}")
        leaves = islice(self._leaves(self.levels, last), first, last)
        return sum(leaves, torch.zeros(self.shape, dtype=self.dtype, device=self.device))

    def increments(self, start: float, dt: float, steps: int, period: float | None = None) -> Iterator[Tensor]:
        r"""ΔW over ``steps`` steps of length dt from ``start``, each (*shape).

        With a ``period`` they are those of W less its straight line over each period, counted from ``start``, so that
        they sum to zero over it: the noise of reshuffled epochs. Raises PathError if the path is too short or too
        coarse, before anything is drawn.
        """
        check_positive("dt", dt)
        check_count("steps", steps)
        fine = whole_number(dt / self.finest_dt)
        if fine is None:
            raise PathError(
                f"the path is too coarse: dt = {dt!r} is no multiple of its finest step {self.finest_dt!r}; "
                f"{self.remedy}"
            )
        first = self._place("start", start)
        needed = steps if period is None else math.ceil(steps / steps_of(period, dt)) * steps_of(period, dt)
        end = start + needed * dt
        if first + needed * fine > self._size:
            raise PathError(
                f"the path is too short: it covers {self.t0!r} to {self.t1!r}, the run goes from {start!r} to {end!r}"
                f"{'' if period is None else ', whole epochs'}; make it with t1={end!r} at least"
            )
        walk = self._walk(first, fine, needed)
        return walk if period is None else islice(centre_periods(walk, steps_of(period, dt)), steps)

    @property
    def remedy(self) -> str:
        """Advice for a path that is too coarse."""
        return "make it with a finest_dt that is dt over a power of two"

    @property
    def _size(self) -> int:
        """The number of finest steps."""
        return round((self.t1 - self.t0) / self.finest_dt)

    def _place(self, name: str, t: float) -> int:
        place = whole_number((check_real(name, t) - self.t0) / self.finest_dt, minimum=0)
        if place is None or place > self._size:
            raise PathError(
                f"{name} must lie on the path's grid {self.t0!r} + k·{self.finest_dt!r} up to {self.t1!r}, got {t!r}"
            )
        return place

    def _walk(self, first: int, fine: int, steps: int) -> Iterator[Tensor]:
        """Increments over ``steps`` × ``fine`` of the finest steps from the first-th on."""
        halvings = (fine & -fine).bit_length() - 1  # the largest power of two in a step
        if first:
            halvings = min(halvings, (first & -first).bit_length() - 1)
        level = max(self.levels - halvings, 0)
        each, before = fine >> (self.levels - level), first >> (self.levels - level)
        leaves = islice(self._leaves(level, before + steps * each), before, None)
        return leaves if each == 1 else (sum(islice(leaves, each - 1), next(leaves)) for _ in range(steps))

    def _leaves(self, level: int, leaves: int) -> Iterator[Tensor]:
        """The first increments of a level, in order, each from the one above it in the tree."""
        generators = [self._generator(depth) for depth in range(level + 1)]
        width = 1 << level  # leaves below a root
        for root, start in zip(self.roots(), range(0, leaves, width), strict=False):
            waiting = [(0, start, root)]
            while waiting:
                depth, first, w = waiting.pop()
                if depth == level:
                    yield w
                    continue
                length = self.finest_dt * (1 << (self.levels - depth))
                left = torch.add(w / 2, self._normal(generators[depth + 1]), alpha=math.sqrt(length) / 2)
                half = width >> (depth + 1)
                if first + half < leaves:  # increments beyond the end are not drawn
                    waiting.append((depth + 1, first + half, w - left))
                waiting.append((depth + 1, first, left))

    def _generator(self, depth: int) -> torch.Generator:
        # torch's CPU generator keeps 32 bits of a seed; neighbouring seeds must not share streams between levels.
        state = np.random.SeedSequence([self.seed, depth]).generate_state(1, np.uint32)
        return torch.Generator(self.device).manual_seed(int(state[0]))

    def _normal(self, generator: torch.Generator) -> Tensor:
        return normal(self.shape, generator, self.dtype)


@final
@dataclass(frozen=True)
class BrownianPath(NoisePath):
    r"""A Brownian motion W ∈ R^m on [t0, t1], replayed at any step that is a multiple of ``finest_dt``.

    ``size``: m, or the shape (*batch, m) of an increment. A batch of states needs (*batch, m), a motion for each
    member, or a shape that broadcasts with it: (m,) drives all members by one motion. ``integrate`` with equal ``seed``
    and the same start follows this path. Increments are drawn on ``device`` in ``dtype`` and moved to the state's: a
    path on the CPU is the same for a run on a GPU.

    Raises ValueError if t1 ≤ t0, a size is not positive, or finest_dt does not divide t1 − t0.
    """

    seed: int
    t0: float
    t1: float
    finest_dt: float
    size: int | tuple[int, ...]
    dtype: torch.dtype = torch.float64
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_drawn(self.dtype, self.device)
        check_positive("finest_dt", self.finest_dt)
        if not check_real("t1", self.t1) > check_real("t0", self.t0):
            raise ValueError(f"t1 must be after t0, got t0 = {self.t0!r} and t1 = {self.t1!r}")
        for n in self.shape:
            check_count("size", n, maximum=MOST)
        if (self.t1 - self.t0) / self.finest_dt > MOST:
            raise ValueError(f"finest_dt must make at most {MOST:,} steps of t1 − t0, got {self.finest_dt!r}")
        if whole_number((self.t1 - self.t0) / self.finest_dt) is None:
            raise ValueError(
                f"finest_dt must divide t1 − t0 = {self.t1 - self.t0!r}, got {self.finest_dt!r}; move t1 to the next "
                "multiple"
            )

    @property
    def shape(self) -> tuple[int, ...]:
        """``size`` as a shape."""
        return self.size if isinstance(self.size, tuple) else (self.size,)

    @property
    def levels(self) -> int:
        """Halvings from a root, which is the finest step times a power of two and at most 2^6 long."""
        return max(LONGEST_ROOT - math.frexp(self.finest_dt)[1], 0)

    def roots(self) -> Iterator[Tensor]:
        """√T ξ for roots of length T."""
        generator = self._generator(0)
        scale = math.sqrt(self.finest_dt * (1 << self.levels))
        return (self._normal(generator).mul_(scale) for _ in count())


@final
@dataclass(frozen=True)
class MinibatchPath(NoisePath):
    r"""The path W ∈ R^N that drives an SDE by the mini-batches of a stochastic descent.

    Step k of the descent weighs example i by w_i = (times drawn)/b. Over that step the path moves by

        ΔW_i = −√(hN/c) (w_i − 1/N),

    so that √(hc) G ΔW is the step's noise −h Σ_i (w_i − 1/N) g_i, D = GGᵀ. Its mean is zero and, up to the mean over
    the examples, which G does not see, its covariance hI, as a Brownian motion's. Below h the path is refined by
    Brownian bridges. Euler's method with dt = h then IS the descent; a smaller dt follows the SDE along the same noise.

    It is no Brownian motion, and means over it are no laws: it is for paths. Its third and higher moments over a step
    are those of the mini-batches, so that E φ(X) along it is off by O(h²). Where the examples share one Hessian, so
    that the noise is additive and a linear drift keeps two moments, this is seen by φ that are not quadratic: for f_i =
    ½λ(θ − c_i)² with κ₃ = mean (c_i − c̄)³ the third central moment is h²λ²κ₃(1 − e^{−3λt})/(3b²) instead of 0, up to
    O(h³). Where curvatures differ, every φ sees it: for f_i = ½a_iθ², as dt → 0,

        E X_t^p = θ_0^p exp(−pāt + p(p − 1)hvt/2 + (t/h) Σ_{j≥3} κ_j (ph)^j/j!),

    κ_j the cumulants and v the variance of ā − a_B, a_B the mean curvature of a mini-batch; along a Brownian motion the
    sum is absent. Of the weak error of an equation of order 1, O(h), that is a share of O(h): of the error of E X, for
    curvatures 0.3, 0.3, 0.3 and 4 with b = 1, at t = 1, 19 % at h = 0.2 and 10 % at h = 0.1; beside an equation of
    order 2 all of its order.

    ``sampling``, ``h``, ``steps`` and the descent's ``seed`` are those of ``descend``, ``batch`` the leading shape of
    its θ0; ``device`` must be θ0's, as generators differ between devices. The finest step is h/2^``halvings``.
    ``minibatch_path`` reads all this off a descent.
    """

    sampling: Sampling
    h: float
    steps: int
    seed: int
    batch: tuple[int, ...] = ()
    halvings: int = 0
    dtype: torch.dtype = torch.float64
    device: str | torch.device = "cpu"

    def __post_init__(self) -> None:
        if not isinstance(self.sampling, Sampling):
            raise TypeError(
                f"sampling must be a Sampling, the sampler of a descent, got {type(self.sampling).__name__}; "
                "minibatch_path takes the descent"
            )
        check_positive("h", self.h)
        check_seed(self.seed)
        check_drawn(self.dtype, self.device)
        check_count("steps", self.steps, maximum=MOST)
        if not isinstance(self.batch, tuple):
            raise TypeError(f"batch must be a tuple, theta0's leading shape, got {short_form(self.batch)}")
        for n in self.batch:
            check_count("batch", n, maximum=MOST)
        check_count("halvings", self.halvings, minimum=0, maximum=MOST.bit_length() - 1)

    @property
    def t0(self) -> float:  # type: ignore[override]
        """0: the descent's start."""
        return 0.0

    @property
    def t1(self) -> float:  # type: ignore[override]
        """steps·h: its end."""
        return self.steps * self.h

    @property
    def finest_dt(self) -> float:  # type: ignore[override]
        """h/2^halvings."""
        return self.h / (1 << self.halvings)

    @property
    def shape(self) -> tuple[int, ...]:
        """(*batch, N)."""
        return (*self.batch, self.sampling.size)

    @property
    def remedy(self) -> str:
        return "make it with more halvings, and dt = h over a power of two"

    @property
    def levels(self) -> int:
        return self.halvings

    def increments(self, start: float, dt: float, steps: int, period: float | None = None) -> Iterator[Tensor]:
        """ΔW over the steps; ``period`` is ignored, as the noise of epochs of mini-batches sums to zero by itself."""
        return super().increments(start, dt, steps)

    def roots(self) -> Iterator[Tensor]:
        """ΔW of each step of the descent, its mini-batches drawn as ``descend`` draws them."""
        generator = torch.Generator(self.device).manual_seed(int(self.seed))
        order = self.sampling.first_order(torch.Size(self.batch), torch.device(self.device))
        N, c = self.sampling.size, self.sampling.diffusion_factor()
        scale = math.sqrt(self.h * N / c) if c else 0.0
        for k in range(self.steps):
            index, order = self.sampling.draw(order, k, generator)
            ones = torch.full(index.shape, 1 / index.shape[-1], dtype=self.dtype, device=index.device)
            weights = torch.zeros(self.shape, dtype=self.dtype, device=index.device).scatter_add_(-1, index, ones)
            yield (weights - 1 / N).mul_(-scale)


def minibatch_path(
    descent: StochasticDescent, theta0: Tensor, steps: int, seed: int = 0, halvings: int = 0
) -> MinibatchPath:
    """The path of the mini-batches of ``descend(descent, theta0, steps, seed=seed)``.

    Raises TypeError for a descent that does not follow one mini-batch a step at a constant rate.
    """
    if not (isinstance(descent, MinibatchDescent) and descent.couples):
        raise TypeError(
            "descent must follow one mini-batch a step at a constant rate: StochasticGradientDescent, "
            f"ScaledStochasticHeavyBall or a MinibatchDescent of your own that couples, got {type(descent).__name__}"
        )
    batch = tuple(check_float_tensor("theta0", theta0).shape[:-1])
    return MinibatchPath(descent.sampler, descent.h, steps, seed, batch, halvings, theta0.dtype, theta0.device)


def normal(shape: tuple[int, ...], generator: torch.Generator, dtype: torch.dtype) -> Tensor:
    """Independent standard normals on the generator's device."""
    n = math.prod(shape)
    if dtype != torch.float64 or generator.device.type != "cpu" or n < MANY:
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)
    # torch draws double normals one by one on the CPU; the same Box–Muller transform is faster on vectors.
    pairs = torch.empty(2, (n + 1) // 2, dtype=dtype)
    radius, angle = torch.rand(pairs.shape, generator=generator, dtype=dtype)
    radius.neg_().log1p_().mul_(-2).sqrt_()
    angle.mul_(2 * math.pi)
    torch.cos(angle, out=pairs[0]).mul_(radius)
    torch.sin(angle, out=pairs[1]).mul_(radius)
    return pairs.view(-1)[:n].view(shape)


def check_drawn(dtype: torch.dtype, device: str | torch.device) -> None:
    """Raise unless ``dtype`` is a real floating dtype and ``device`` a device."""
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise TypeError(f"dtype must be a real floating torch.dtype, got {short_form(dtype)}")
    check_device(device)


def centre_periods(increments: Iterator[Tensor], steps: int) -> Iterator[Tensor]:
    """Increments less their mean over each run of ``steps`` of them."""
    while epoch := list(islice(increments, steps)):
        mean = sum(epoch[1:], epoch[0]) / len(epoch)
        yield from (w - mean for w in epoch)


def steps_of(period: float, dt: float) -> int:
    """The number of steps in a period; raise PathError unless dt divides it."""
    steps = whole_number(period / dt)
    if steps is None:
        raise PathError(
            f"dt must divide an epoch of length {period!r}, got {dt!r}; the learning rate over 1, 2, 3 does"
        )
    return steps


def whole_number(ratio: float, minimum: int = 1) -> int | None:
    """The whole number that equals ``ratio`` to 1e-9 relative; None if there is none of at least ``minimum``."""
    nearest = round(ratio)
    return nearest if nearest >= minimum and abs(ratio - nearest) <= 1e-9 * max(ratio, 1) else None
