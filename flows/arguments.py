"""Argument checks that every model shares."""

from __future__ import annotations

import math
import sys

import torch
from torch import Tensor

from landscapes import Landscape
from landscapes.errors import (
    check_computable,
    check_flag,
    check_float_tensor,
    check_number,
    check_positive,
    check_real,
    short_form,
)
from landscapes.noise import GradientNoise

LARGEST_RATE = math.sqrt(sys.float_info.max)


def check_model(landscape: Landscape, *learning_rate: float) -> None:
    """Raise unless ``landscape`` is a Landscape and h, for a model with a learning rate, is positive and finite."""
    if not isinstance(landscape, Landscape):
        raise TypeError(f"landscape must be a Landscape, got {type(landscape).__name__}")
    for h in learning_rate:
        check_positive("h", h)


def check_momentum(momentum: float) -> None:
    """Raise unless 0 ≤ β < 1."""
    if not 0 <= check_real("momentum", momentum) < 1:
        raise ValueError(f"momentum must lie in [0, 1), got {momentum!r}")


def check_dampening(dampening: float, momentum: float) -> None:
    """Raise unless dampening τ is a number below 1, and 0 without momentum."""
    if check_real("dampening", dampening) >= 1:
        raise ValueError(f"dampening must be below 1, got {dampening!r}: at 1 the buffer keeps the first gradient only")
    if dampening != 0 and momentum == 0:
        raise ValueError(
            f"dampening needs a momentum above 0, got {dampening!r} at momentum 0: leave it out, as torch does"
        )


def check_nesterov(nesterov: bool, momentum: float, dampening: float) -> None:
    """Raise unless ``nesterov`` is True or False, dampening a number, and Nesterov has momentum and no dampening."""
    check_flag("nesterov", nesterov)
    damped = check_real("dampening", dampening) != 0
    if nesterov and (damped or momentum <= 0):
        raise ValueError(
            f"nesterov needs a momentum above 0 and no dampening, as in torch, got momentum={momentum!r}, "
            f"dampening={dampening!r}: give a momentum and dampening 0, or leave nesterov out"
        )


def check_friction(friction: float, h: float) -> None:
    """Raise unless friction μ is a number with 0 ≤ μ and hμ ≤ 1, so that the momentum 1 − hμ lies in [0, 1]."""
    if check_real("friction", friction) < 0:
        raise ValueError(f"friction must not be negative, got {friction!r}")
    if friction * h > 1:
        raise ValueError(
            f"friction must be at most 1/h, so that the momentum 1 − h·friction is not negative; "
            f"got friction={friction!r} at h={h!r}: use a smaller friction or a smaller h"
        )


def check_noise(noise: GradientNoise, landscape: Landscape) -> None:
    """Raise unless ``noise`` is a GradientNoise of the landscape's dimension."""
    if not isinstance(noise, GradientNoise):
        raise TypeError(f"noise must be a GradientNoise, got {type(noise).__name__}")
    if noise.dimension != landscape.dimension:
        raise ValueError(f"noise must have the landscape's dimension {landscape.dimension}, got {noise.dimension}")


def check_point(name: str, value: Tensor) -> Tensor:
    """Return θ (..., d); raise unless it is a dense floating tensor of that shape that is not empty."""
    if check_float_tensor(name, value).ndim == 0 or value.numel() == 0:
        raise ValueError(f"{name} must have shape (..., d) with d >= 1, got {tuple(value.shape)}")
    return value


def at_rest(theta0: Tensor) -> Tensor:
    """The velocity 0, like θ0 (..., d); raise unless θ0 is a dense floating tensor."""
    return torch.zeros_like(check_point("theta0", theta0))


def halves(state: Tensor, dimension: int) -> tuple[Tensor, Tensor]:
    """x and v (..., d) of a state (x, v) (..., 2d); raise unless it is a dense floating tensor of that shape."""
    if check_float_tensor("state", state).ndim == 0 or state.shape[-1] != 2 * dimension:
        raise ValueError(
            f"state must have shape (..., {2 * dimension}), position and velocity, got {tuple(state.shape)}"
        )
    x, v = state.split(dimension, dim=-1)
    return x, v


def check_time(t: float | Tensor) -> float | Tensor:
    """Return t; raise TypeError unless it is a real number or a dense tensor of real numbers."""
    if not isinstance(t, Tensor):
        return check_number("t", t)
    if check_computable("t", t).is_complex():
        raise TypeError(f"t must be real, got {t.dtype}")
    return t


def time_of(t: float | Tensor) -> float:
    """t as a float; raise TypeError unless it is one real number, or a dense tensor of one."""
    time = check_time(t)
    if isinstance(time, Tensor) and time.numel() != 1:
        raise TypeError(f"t must be one time, got a tensor of shape {tuple(time.shape)}")
    return float(time)


def check_device(device: str | torch.device) -> torch.device:
    """The device of a name; raise unless torch knows it."""
    if not isinstance(device, (str, torch.device)):
        raise TypeError(f"device must be a name or a torch.device, got {short_form(device)}")
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(
            f"device must be one that torch knows, such as 'cpu' or 'cuda', got {short_form(device)}"
        ) from error


def check_rate(name: str, rate: float) -> float:
    """Return a learning rate as a float; raise unless it is a real number whose square float64 holds."""
    number = check_real(name, rate)
    if abs(number) > LARGEST_RATE:
        raise ValueError(f"{name} must be at most {LARGEST_RATE:.4g}, so that its square is finite, got {rate!r}")
    return number
