r"""Weak errors of a comparison: E φ(X) − E φ(θ) along the clock, from runs on both sides, with standard errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from flows.comparison.reference import Reference, at_each_time, pad
from landscapes import Landscape
from landscapes.errors import check_computable, short_form

LOSS, SQUARED_NORM = "loss", "‖∇f‖²"
Observables = Mapping[str, Callable[[Tensor], Tensor]]


@dataclass(frozen=True)
class WeakError:
    r"""E φ(X(t)) − E φ(θ) of one observable φ along the clock, everything (T, ...).

    ``mean`` is E φ(X) over runs independent of the descent's, ``difference`` that less the descent's,
    ``standard_error`` the difference's, NaN for one run, ``integration`` the flow's mean less its mean at tighter
    integration along the same noise.
    """

    mean: Tensor
    difference: Tensor
    standard_error: Tensor
    integration: Tensor

    def on_clock(self, nothing: Tensor) -> WeakError:
        """On the full clock of ``nothing`` (T, ...), NaN past the end of the run."""
        parts = (self.mean, self.difference, self.standard_error, self.integration)
        return WeakError(*(pad(values, nothing) for values in parts))


def all_observables(observables: Observables | None, landscape: Landscape) -> Observables:
    """Loss, ‖∇f‖² and the user's φ by name."""
    own: Observables = {LOSS: landscape.loss, SQUARED_NORM: lambda theta: landscape.grad(theta).square().sum(dim=-1)}
    return {**own, **(observables or {})}


def check_observables(observables: Observables | None, landscape: Landscape, theta0: Tensor) -> None:
    """Raise unless each observable is a real function of θ with a name of its own, and θ0 is real."""
    if observables is None:
        return
    if not isinstance(observables, Mapping):
        raise TypeError(f"observables must be a mapping name -> function of theta, got {type(observables).__name__}")
    if theta0.is_complex():
        raise ValueError(f"observables are for real theta0, got {theta0.dtype}; leave them out, or give theta0.real")
    for name, function in observables.items():
        if not isinstance(name, str) or not callable(function):
            given = f"{short_form(name)}: {short_form(function)}"
            raise TypeError(f"observables must map strings to functions of theta, got {given}")
        if name in (LOSS, SQUARED_NORM):
            raise ValueError(
                f"observables must not be called {LOSS} or {SQUARED_NORM}, which are always compared, got {name!r}"
            )
        number(name, function, theta0.expand(2, *theta0.shape))


def observe(observables: Observables, theta: Tensor) -> dict[str, Tensor]:
    """φ of states (T, runs, ..., d), each (T, runs, ...), evaluated time by time."""
    return {name: at_each_time(partial(number, name, phi), theta) for name, phi in observables.items()}


def number(name: str, phi: Callable[[Tensor], Tensor], theta: Tensor) -> Tensor:
    """φ(θ) (...,) of θ (..., d), booleans and integers as floats; raise unless it is one real number for each θ."""
    with torch.no_grad():
        value = phi(theta)
    if isinstance(value, Tensor):
        check_computable(f"observable {name!r}", value)
    if not isinstance(value, Tensor) or value.is_complex() or value.shape != theta.shape[:-1]:
        given = f"{tuple(value.shape)}, {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
        raise ValueError(
            f"observable {name!r} must give a real tensor of shape {tuple(theta.shape[:-1])} for theta "
            f"{tuple(theta.shape)}, got {given}"
        )
    return value.detach() if value.is_floating_point() else value.to(theta.dtype)


def mean_with_error(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over the runs of (T, runs, ...) and its standard error, NaN for one run; both (T, ...)."""
    runs = values.shape[1]
    error = values.var(dim=1).div(runs).sqrt() if runs > 1 else torch.full_like(values[:, 0], torch.nan)
    return values.mean(dim=1), error


def weak_error(flow: Tensor, tighter: Tensor, descent: Tensor) -> WeakError:
    """The weak error from φ of the flow, its tighter runs and the descent, each (T', runs, ...), T' common to all.

    A flow without noise has one run.
    """
    mean, error = mean_with_error(flow)
    descent_mean, descent_error = mean_with_error(descent[: len(flow)])
    error = (descent_error.square() + (error.square() if flow.shape[1] > 1 else 0)).sqrt()
    both = min(len(flow), len(tighter))
    integration = torch.full_like(mean, torch.nan)
    integration[:both] = mean[:both] - tighter[:both].mean(dim=1)
    return WeakError(mean, mean - descent_mean, error, integration)


@dataclass(frozen=True)
class Laws:
    """Observables with their values (T, runs, ...) along a descent; ``lost`` (T, ...) marks times with a failed run."""

    observables: Observables
    values: Mapping[str, Tensor]
    lost: Tensor

    @classmethod
    def of(cls, observables: Observables | None, reference: Reference) -> Laws:
        """Loss, ‖∇f‖² and the user's φ along the descent's runs."""
        functions = all_observables(observables, reference.landscape)
        others = {name: phi for name, phi in functions.items() if name != LOSS}
        return cls(functions, {LOSS: reference.member_losses, **observe(others, reference.members)}, reference.lost)

    def weak_errors(self, members: Tensor, tighter: Tensor, own: Tensor) -> dict[str, WeakError]:
        """φ → the weak error of states (T', runs, ..., d), and of their tighter runs.

        NaN at times with a failed run: of the flow, marked by ``own`` (T', ...), or of the descent.
        """
        ours, finer = observe(self.observables, members), observe(self.observables, tighter)
        gone = own | self.lost[: len(own)]
        found = {}
        for name, descents in self.values.items():
            error = weak_error(ours[name], finer[name], descents)
            mean, integration = (x.masked_fill(own, torch.nan) for x in (error.mean, error.integration))
            difference, bar = (x.masked_fill(gone, torch.nan) for x in (error.difference, error.standard_error))
            found[name] = WeakError(mean, difference, bar, integration)
        return found

    @property
    def means(self) -> dict[str, tuple[Tensor, Tensor]]:
        """φ → its mean over the descent's runs and the standard error, both (T, ...); NaN where a run failed."""
        pairs = {name: mean_with_error(values) for name, values in self.values.items()}
        return {name: tuple(x.masked_fill(self.lost, torch.nan) for x in pair) for name, pair in pairs.items()}  # type: ignore[misc]
