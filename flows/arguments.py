"""Argument checks that every model shares."""

from __future__ import annotations

from landscapes import Landscape
from landscapes.errors import check_positive, check_real
from landscapes.noise import GradientNoise


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
    if not isinstance(nesterov, bool):
        raise TypeError(f"nesterov must be True or False, got {nesterov!r} of type {type(nesterov).__name__}")
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
