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

import torch
from torch import Tensor

from flows.engines.noise_paths import BrownianPath, NoisePath, PathError, steps_of
from flows.engines.solvers import Field, like_state
from flows.flow import StochasticFlow
from landscapes import UnsupportedError
from landscapes.errors import check_choice, check_seed

MILSTEIN = "milstein"
STRATONOVICH = ("heun2", "midpoint")
STOCHASTIC = ("euler", MILSTEIN, *STRATONOVICH)
STEPPER = {MILSTEIN: "euler"}
"""Stochastic methods and the torchdiffeq method that takes their steps; the field adds the remaining terms."""


class NoiseField(Field):
    """The rate of a stochastic flow as torchdiffeq calls it, with the noise of the current step."""

    def __init__(self, flow: StochasticFlow, method: str, increments: Iterator[Tensor]):
        super().__init__(flow)
        self._stochastic = flow
        self._method = method
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
            if self._method in STRATONOVICH and self._stochastic.noise_kind != "additive":
                correction = self._stochastic.ito_correction(t, state)
                rate = rate - like_state(self.flow, "ito_correction", correction, state)
            if self._method == MILSTEIN and self._stochastic.noise_kind != "additive":
                rate = rate + self._milstein(t, state, dw)
        return rate

    def _milstein(self, t: Tensor, state: Tensor, dw: Tensor) -> Tensor:
        r"""½ σσ'(ΔW² − Δt)/Δt for diagonal noise, σσ' by the difference (σ(X + σ√Δt) − σ(X))/√Δt.

        The difference has error O(√Δt), the term therefore O(Δt^{3/2}), and strong order 1 holds. Platen's form.
        """
        root = math.sqrt(self._dt)
        ones = torch.ones_like(dw)
        sigma = self._stochastic.diffusion(t, state, ones).detach()
        beyond = self._stochastic.diffusion(t, state + sigma * root, ones)
        change = like_state(self.flow, "diffusion", beyond, state) - sigma
        return change * (dw.square() - self._dt) / (2 * root * self._dt)


def noise_field(
    flow: StochasticFlow,
    state: Tensor,
    method: str,
    outputs: list[float],
    dt: float,
    steps: int,
    seed: int | None,
    path: NoisePath | None,
) -> NoiseField:
    """The field of a run; raises if neither a seed nor a path is given, or if the path does not fit the run."""
    if state.is_complex():
        raise UnsupportedError(f"{flow.name} is a stochastic flow, which has real states only, got {state.dtype}")
    if (seed is None) == (path is None):
        given = "neither" if seed is None else "both"
        raise ValueError(f"a stochastic flow needs either a seed or a path (BrownianPath), got {given}")
    check_method(flow, method, state)
    shape = (*state.shape[:-1], flow.noise_size)
    start, period = outputs[0], flow.noise_period
    if path is None:
        assert seed is not None
        epochs = 1 if period is None else steps_of(period, dt)
        end = start + math.ceil(steps / epochs) * epochs * dt
        path = BrownianPath(check_seed(seed), start, end, dt, shape, state.dtype, state.device)
    check_path(path, shape)
    return NoiseField(flow, method, path.increments(start, dt, steps, period))


def check_method(flow: StochasticFlow, method: str, state: Tensor) -> None:
    """Raise unless the method solves SDEs, and Milstein's noise is diagonal or additive."""
    check_choice("method of a stochastic flow", method, STOCHASTIC)
    if method == MILSTEIN and flow.noise_kind == "general":
        raise UnsupportedError(
            f"method='milstein' is for diagonal noise; that of {flow.name} is general: use 'euler', "
            "or 'heun2' with the Itô correction"
        )
    if flow.noise_kind == "diagonal" and flow.noise_size != state.shape[-1]:
        raise ValueError(
            f"diagonal noise has one Brownian motion a component, {state.shape[-1]}; {flow.name} has {flow.noise_size}"
        )


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
