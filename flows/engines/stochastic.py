r"""Stochastic differential equations by torchdiffeq's fixed steps: the noise rate ΔW/Δt is held over each step.

With the rate held, Euler's step is Euler–Maruyama's, of Itô's equation. Heun's and the midpoint rule evaluate the noise
at more than one state and so converge to Stratonovich's solution: they are given the drift less the Itô correction,
which makes it that of the same Itô equation. Milstein's step is Euler's with one term more in the rate. Strong orders:
Euler ½, the others 1, where the noise is additive or diagonal; Heun's and the midpoint rule ½ for general noise, whose
iterated integrals they lack. Weak order 1, all of them. Kloeden & Platen 1992, ch. 10 and 14.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor

from flows.engines.field import Field, like_state
from flows.engines.method import MethodOptions
from flows.engines.noise_paths import BrownianPath, NoisePath, PathError, steps_of
from flows.flow import Flow, StochasticFlow
from landscapes import UnsupportedError
from landscapes.errors import check_seed


class NoiseField(Field):
    """The rate of a stochastic flow as torchdiffeq calls it, with the noise of the current step: Itô's, for Euler."""

    def __init__(self, flow: StochasticFlow, increments: Iterator[Tensor]):
        super().__init__(flow)
        self._stochastic = flow
        self._increments = increments
        self._step = -1
        self._dw = torch.zeros(())
        self._dt = 0.0

    def begin(self, step: int, state: Tensor, dt: Tensor) -> None:
        """Hold the noise of a step; a step that is repeated, after members were frozen, uses the same noise."""
        if step == self._step:
            return
        self._step = step
        self._dt = float(dt)
        dw = next(self._increments).to(state)
        self._dw = dw.expand(*state.shape[:-1], dw.shape[-1])

    def evaluate(self, t: Tensor, state: Tensor) -> Tensor:
        """velocity + σ ΔW/Δt, with the method's additional term."""
        dw = self._dw if self.alive is None else self._dw[self.alive]
        with torch.enable_grad():  # a user's flow may call autograd; the run itself keeps no graph
            rate = like_state(self.flow, "rate", self._stochastic.rate(t, state, dw / self._dt), state)
            return rate if self._stochastic.noise_kind == "additive" else self.complete(t, state, dw, rate)

    def complete(self, t: Tensor, state: Tensor, dw: Tensor, rate: Tensor) -> Tensor:
        """The rate with the term that noise which depends on the state adds to it."""
        return rate


class StratonovichField(NoiseField):
    """The rate less the Itô correction, for methods that converge to Stratonovich's solution."""

    def complete(self, t: Tensor, state: Tensor, dw: Tensor, rate: Tensor) -> Tensor:
        return rate - like_state(self.flow, "ito_correction", self._stochastic.ito_correction(t, state), state)


class MilsteinField(NoiseField):
    r"""The rate with ½ σσ'(ΔW² − Δt)/Δt, for diagonal noise, σσ' by the difference (σ(X + σ√Δt) − σ(X))/√Δt.

    The difference has error O(√Δt), the term therefore O(Δt^{3/2}), and strong order 1 holds. Platen's form.
    """

    def complete(self, t: Tensor, state: Tensor, dw: Tensor, rate: Tensor) -> Tensor:
        root = math.sqrt(self._dt)
        ones = torch.ones_like(dw)
        sigma = self._stochastic.diffusion(t, state, ones).detach()
        beyond = self._stochastic.diffusion(t, state + sigma * root, ones)
        change = like_state(self.flow, "diffusion", beyond, state) - sigma
        return rate + change * (dw.square() - self._dt) / (2 * root * self._dt)


FIELDS: dict[str, type[NoiseField]] = {
    "euler": NoiseField,
    "milstein": MilsteinField,
    "heun2": StratonovichField,
    "midpoint": StratonovichField,
}
"""Stochastic methods and the rates that they integrate."""
STOCHASTIC = tuple(FIELDS)


@dataclass(frozen=True)
class Noise:
    """The noise of a run: the seed of a Brownian path from ``origin`` on, or a ``path``; ``index`` steps are past."""

    seed: int | None
    path: NoisePath | None
    origin: float
    index: int


def noise_field(flow: StochasticFlow, state: Tensor, method: str, dt: float, steps: int, noise: Noise) -> NoiseField:
    """The field of a run of ``steps`` steps since the origin of its noise.

    Raises if neither a seed nor a path is given, or if the path does not fit the run.
    """
    if state.is_complex():
        raise UnsupportedError(f"{flow.name} is a stochastic flow, which has real states only, got {state.dtype}")
    if (noise.seed is None) == (noise.path is None):
        given = "neither" if noise.seed is None else "both"
        raise ValueError(f"a stochastic flow needs either a seed or a path (BrownianPath), got {given}")
    check_method(flow, method, state)
    shape = (*state.shape[:-1], flow.noise_size)
    path = noise.path
    if path is None:
        assert noise.seed is not None
        epochs = 1 if flow.noise_period is None else steps_of(flow.noise_period, dt)
        end = noise.origin + math.ceil(steps / epochs) * epochs * dt
        path = BrownianPath(check_seed(noise.seed), noise.origin, end, dt, shape, state.dtype, state.device)
    check_path(path, shape)
    increments = path.increments(noise.origin, dt, steps, flow.noise_period)
    field = FIELDS[method](flow, islice(increments, noise.index, None))
    field.seed = noise.seed
    return field


def check_method(flow: StochasticFlow, method: str, state: Tensor) -> None:
    """Raise unless Milstein's noise is diagonal or additive, and diagonal noise has the state's size."""
    if method == "milstein" and flow.noise_kind == "general":
        raise UnsupportedError(
            f"method='milstein' is for diagonal noise; that of {flow.name} is general: use 'euler', "
            "or 'heun2' with the Itô correction"
        )
    if flow.noise_kind == "diagonal" and flow.noise_size != state.shape[-1]:
        raise ValueError(
            f"diagonal noise has one Brownian motion a component, {state.shape[-1]}; {flow.name} has {flow.noise_size}"
        )


def check_noise_options(flow: Flow, options: MethodOptions) -> MethodOptions:
    """The options; raise if those of a stochastic flow lack ``dt`` or have any of adaptive methods."""
    if not isinstance(flow, StochasticFlow):
        return options
    if options.dt is None:
        raise ValueError(f"dt must be given for {flow.name}, a stochastic flow; it must divide every output interval")
    if options.rtol is not None or options.atol is not None or options.first_step is not None:
        raise ValueError(
            "rtol, atol and first_step have no meaning for a stochastic flow, whose steps are fixed; give a smaller dt"
        )
    return options


def check_path(path: NoisePath, shape: tuple[int, ...]) -> None:
    """Raise unless the path's increments broadcast to ``shape`` with the same last dimension."""
    if not isinstance(path, NoisePath):
        raise TypeError(f"path must be a BrownianPath or MinibatchPath, got {type(path).__name__}; or give a seed")
    try:
        fits = path.shape[-1] == shape[-1] and torch.broadcast_shapes(path.shape, shape) == torch.Size(shape)
    except RuntimeError:
        fits = False
    if not fits:
        raise PathError(
            f"the path's increments must have shape {shape}, or one that broadcasts to it with size {shape[-1]}, got "
            f"{path.shape}"
        )
