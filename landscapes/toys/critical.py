r"""Critical points: roots of cubics and of rippled bowls, and Newton's method from a nearby point.

For toys whose critical points have no simple formula; results are exact to the rounding of float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch

from landscapes.landscape import Landscape

Function = Callable[[float], float]
NEWTON_STEPS = 20
MOST = 10_000
"""Largest number of critical points that a toy lists."""


def check_listable(name: str, value: float, base: int, power: int = 1) -> None:
    """Raise ValueError, naming the parameter, if there are too many critical points to list, base^power."""
    # the power itself may have 10⁸ digits
    if base > 1 and power * math.log(base) > math.log(MOST) * (1 + 1e-9):
        raise ValueError(f"{name} must leave at most {MOST:,} critical points to list, got {value!r}; lower it")


def depressed_cubic_roots(p: float, q: float) -> list[float]:
    """The distinct real roots of x³ − p x + q, p > 0, in any order (Viète)."""
    scale = math.sqrt(p)
    s = 1.5 * math.sqrt(3) * q / scale**3
    outermost = -math.copysign(2 * scale / math.sqrt(3), s)
    if math.isclose(abs(s), 1, rel_tol=1e-12):
        return [outermost, -outermost / 2]  # a simple root and a double one
    if abs(s) > 1:
        return [outermost * math.cosh(math.acosh(abs(s)) / 3)]
    return [2 * scale / math.sqrt(3) * math.cos((math.acos(-s) - 2 * math.pi * k) / 3) for k in range(3)]


def rippled_bowl_roots(slope: Function, curvature: Function, amplitude: float, frequency: float) -> list[float]:
    r"""Every zero of φ'(x) = b'(x) + Ak sin kx, ascending: critical points of a bowl b with ripples A (1 − cos kx).

    ``slope`` b' must be odd, increasing and convex on x > 0, ``curvature`` its derivative. For x > 0 a zero needs sin
    kx < 0; on each such half period both terms are convex, so φ' has at most two zeros there, on either side of its
    minimum, the only zero of φ''. There are none for b' > Ak.
    """
    force = amplitude * frequency

    def total_slope(x: float) -> float:
        return slope(x) + force * math.sin(frequency * x)

    def total_curvature(x: float) -> float:
        return curvature(x) + force * frequency * math.cos(frequency * x)

    outer: list[float] = []
    left = math.pi / frequency
    while slope(left) < force:
        right = left + math.pi / frequency
        if total_curvature(left) < 0:
            lowest = zero_between(total_curvature, left, right)
            if total_slope(lowest) < 0:
                outer += [zero_between(total_slope, left, lowest), zero_between(total_slope, lowest, right)]
        left = right + math.pi / frequency
        check_listable("frequency", frequency, 2 * len(outer) + 1)
    return [*(-x for x in reversed(outer)), 0.0, *outer]


def zero_between(function: Function, low: float, high: float) -> float:
    """The zero between two points of opposite sign, to rounding; the end of smaller |value| if the signs are equal."""
    ends = function(low), function(high)
    if ends[0] * ends[1] > 0:  # the zero lies at an end, whose value has the wrong sign by rounding
        return low if abs(ends[0]) < abs(ends[1]) else high
    from scipy.optimize import brentq  # imported here as scipy.optimize loads slowly

    return float(brentq(function, low, high, xtol=1e-300, rtol=4 * torch.finfo(torch.float64).eps))


def refine(landscape: Landscape, seeds: Sequence[Sequence[float]], reach: float = 1e-3) -> list[list[float]]:
    """Newton's method on ∇f from points within ``reach`` of critical points; ArithmeticError if it does not converge.

    Stops when the step is a few units in the last place of θ, so that ∇f is zero up to the rounding of θ.
    """
    return [refine_one(landscape, seed, reach) for seed in seeds]


def refine_one(landscape: Landscape, seed: Sequence[float], reach: float) -> list[float]:
    """The critical point found by Newton's method from one seed."""
    theta = start = torch.tensor(seed, dtype=torch.float64)
    for _ in range(NEWTON_STEPS):
        step = torch.linalg.solve(landscape.hessian(theta), landscape.grad(theta))
        theta = theta - step
        if float(step.abs().max()) <= 8 * torch.finfo(theta.dtype).eps * max(1.0, float(theta.abs().max())):
            if float((theta - start).abs().max()) > reach:
                break
            return theta.tolist()
    raise ArithmeticError(f"Newton's method found no critical point of {landscape} within {reach:g} of {list(seed)}")
