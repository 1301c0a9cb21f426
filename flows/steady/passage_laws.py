r"""Mean passage times in one dimension: by the exact integral, by Kramers' law, and for the chain of discrete steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import cumulative_simpson, simpson
from scipy.optimize import brentq

from landscapes.errors import check_positive, check_real

Values = NDArray[np.float64]
Profile = Callable[[Values], Values]

NODES = 8001  # of Simpson's rule on each side
ORDER = 16  # of Gauss's rule on each interval of the chain
FARTHEST = 1e12  # distance up to which a potential is searched for the end of its domain
EXPONENT = 700  # the largest logarithm of a time, in units of 1
NEGLIGIBLE = 60.0  # the domain is cut where the density is e⁻⁶⁰ times that at the start
WIDEST = 2000  # widths √(2Th) of a chain's domain: a dense system of 8,000 unknowns
SIEGMUND = 0.5825971579390107  # −ζ(½)/√(2π)
SAFE = 1e-4  # largest relative rounding error at which a chain's time is returned


def profile_at(name: str, profile: Profile, x: Values) -> Values:
    """V or V' at the points x; raise unless it gives finite real numbers of the shape of x."""
    if not callable(profile):
        raise TypeError(f"{name} must be callable, points x to values, got {type(profile).__name__}")
    values = profile(x)
    if not isinstance(values, (float, np.ndarray, np.floating)) or np.asarray(values).dtype.kind != "f":
        raise TypeError(f"{name} must map numpy arrays of points to real numbers, got {type(values).__name__}")
    if np.shape(values) != x.shape:
        raise ValueError(f"{name} must give one value a point, {x.shape}, got {np.shape(values)}")
    return np.asarray(values)


def exponential(barrier: float, temperature: float) -> float:
    """e^{ΔV/T}; raise where it is beyond float64."""
    if barrier > EXPONENT * temperature:
        raise ValueError(
            f"temperature must be at least 1/{EXPONENT} of the barrier {barrier:.6g}, got {temperature!r}: the mean "
            "time is beyond float64"
        )
    return math.exp(barrier / temperature)


def ceiling(potential: Profile, temperature: float, start: float) -> float:
    """The upper end of the domain: x > ``start`` with V(x) = V(start) + 60 T, where the density is negligible."""

    check_positive("temperature", temperature)
    floor = float(profile_at("potential", potential, np.array(check_real("start", start))))

    def excess(x: float) -> float:
        return float(profile_at("potential", potential, np.array(x))) - floor - NEGLIGIBLE * temperature

    far = start + 1.0
    while not excess(far) >= 0:
        if not start < far <= FARTHEST + start:  # equal to a start whose rounding exceeds 1
            raise ValueError(
                f"potential must rise by {NEGLIGIBLE:g} times temperature above start, got less at {far:.3g}"
            )
        far = start + 2 * (far - start)
    return float(brentq(excess, start, far))


def passage_integral(potential: Profile, temperature: float, start: float, target: float) -> float:
    r"""Mean time at which dX = −V'(X) dt + √(2T) dW from ``start`` first reaches ``target`` below it.

        (1/T) ∫_target^start e^{V(y)/T} ∫_y^∞ e^{−V(z)/T} dz dy

    V must grow above ``start``. Gardiner, Handbook of stochastic methods, § 5.5.
    """
    T = check_positive("temperature", temperature)
    if check_real("target", target) >= check_real("start", start):
        raise ValueError(f"target must lie below start, got {target!r} and {start!r}")
    below, above = np.linspace(target, start, NODES), np.linspace(start, ceiling(potential, T, start), NODES)
    v = profile_at("potential", potential, below)
    # Exponents are relative to the extrema of V, so that exp does not overflow at small T before the last factor.
    floor, top = float(v.min()), float(v.max())
    beyond = simpson(np.exp(-(profile_at("potential", potential, above) - floor) / T), x=above)
    density = np.exp(-(v - floor) / T)
    inner = beyond + cumulative_simpson(density[::-1], dx=(start - target) / (NODES - 1), initial=0)[::-1]
    return exponential(top - floor, T) / T * float(simpson(np.exp((v - top) / T) * inner, x=below))


def seen_target(target: float, temperature: float, step: float) -> float:
    r"""The effective target, approached from above, of paths observed only at the ends of steps h = ``step``.

    target − 0.5826 √(2Th): the mean passage time of the steps to ``target`` is that of the diffusion to this point, up
    to O(h). Siegmund 1979, Adv. Appl. Probab. 11, 701.
    """
    variance = 2 * check_positive("temperature", temperature) * check_positive("step", step)
    return check_real("target", target) - SIEGMUND * math.sqrt(variance)


def kramers_time(barrier: float, temperature: float, minimum: Values, saddle: Values) -> float:
    r"""Eyring–Kramers mean time from a minimum across a saddle, with isotropic noise of temperature T in R^d.

        (2π/|λ₋|) √(|det H(saddle)|/det H(minimum)) e^{ΔV/T},    λ₋ the negative eigenvalue of H(saddle)

    to leading order as T → 0. Hessians (d, d). Bovier, Eckhoff, Gayrard & Klein 2004, J. Eur. Math. Soc. 6, 399.
    """
    T = check_positive("temperature", temperature)
    check_real("barrier", barrier)
    eigenvalues = np.linalg.eigvalsh(check_hessian("saddle", saddle))
    volume = math.sqrt(abs(float(np.prod(eigenvalues))) / float(np.linalg.det(check_hessian("minimum", minimum))))
    return 2 * math.pi / abs(float(eigenvalues[0])) * volume * exponential(barrier, T)


def check_hessian(name: str, hessian: Values) -> Values:
    """Return a Hessian as an array; raise unless it is real, finite and (d, d), with the signs of its point."""
    if not isinstance(hessian, (list, tuple, np.ndarray)):
        raise TypeError(f"{name} must be an array (d, d) of numpy, got {type(hessian).__name__}")
    try:
        matrix = np.asarray(hessian, dtype=float)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold real numbers (d, d): {error}") from None
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size or not np.isfinite(matrix).all():
        raise ValueError(f"{name} must be finite, of shape (d, d), got {matrix.shape}")
    eigenvalues = np.linalg.eigvalsh(matrix)
    if name == "minimum" and eigenvalues[0] <= 0:
        raise ValueError(f"minimum must be positive definite, got the eigenvalue {eigenvalues[0]:.6g}")
    if name == "saddle" and eigenvalues[0] >= 0:
        raise ValueError(f"saddle must have a negative eigenvalue, got {eigenvalues[0]:.6g} as the lowest")
    return matrix


def chain_time(
    potential: Profile, slope: Profile, temperature: float, step: float, start: float, target: float
) -> float:
    r"""Mean time at which x' = x − hV'(x) + √(2Th) ξ from ``start`` is first at ``target`` or below, h = ``step``.

    The mean remaining time u(x) solves u = h + ∫_target^∞ p(x, z) u(z) dz, p the normal density of a step: by Nyström's
    method with Gauss's rule. NaN if u/h is so large that the system is singular in float64.
    """
    width = math.sqrt(2 * check_positive("temperature", temperature) * check_positive("step", step))
    start, target = check_real("start", start), check_real("target", target)
    top = max(ceiling(potential, temperature, start), start + 10 * width)
    if not 0 < (top - target) / width <= WIDEST:
        raise ValueError(
            f"target must lie below start and within {WIDEST} steps' noise √(2Th) of the domain's end {top:.4g}, got "
            f"{target!r} with √(2Th) = {width:.3g}; use a larger temperature or step"
        )
    edges = np.linspace(target, top, 2 + math.ceil((top - target) / (4 * width)))
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    half = np.diff(edges) / 2
    x = (edges[:-1] + half)[:, None] + half[:, None] * nodes
    z, w = x.ravel(), (half[:, None] * weights).ravel()

    def kernel(x: Values) -> Values:
        offset = (z - (x - step * profile_at("slope", slope, x))[:, None]) / width
        return w * np.exp(-offset * offset / 2) / (width * math.sqrt(2 * math.pi))

    still = np.linalg.solve(np.eye(len(z)) - kernel(z), np.full(len(z), step))
    # Nyström's interpolation: the integral equation itself gives u between the nodes, to the order of the rule.
    time = step + float((kernel(np.array([start])) @ still)[0])
    return time if 0 < time * np.finfo(float).eps / step < SAFE else math.nan
