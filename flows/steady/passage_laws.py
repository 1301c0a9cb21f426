r"""Mean passage times in one dimension: the integral, Kramers' law, and that of the chain of discrete steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.integrate import cumulative_simpson, simpson
from scipy.optimize import brentq

from landscapes.errors import check_positive

Values = NDArray[np.float64]
Profile = Callable[[Values], Values]

NODES = 8001  # of Simpson's rule on each side
ORDER = 16  # of Gauss's rule on each interval of the chain's
NEGLIGIBLE = 60.0  # e⁻⁶⁰ of the density at the bottom: what lies higher is left out
SIEGMUND = 0.5825971579390107  # −ζ(½)/√(2π)
SAFE = 1e-4  # relative rounding beyond which a chain's time is not given


def ceiling(potential: Profile, temperature: float, start: float) -> float:
    """x above ``start`` where the potential is so many temperatures above what it is there that nobody comes."""

    def above(x: float) -> float:
        return float(potential(np.array(x)) - potential(np.array(start))) - NEGLIGIBLE * temperature

    far = start + 1.0
    while above(far) < 0:
        far = start + 2 * (far - start)
    return float(brentq(above, start, far))


def passage_integral(potential: Profile, temperature: float, start: float, target: float) -> float:
    r"""Mean time at which dX = −V'(X) dt + √(2T) dW from ``start`` first is at ``target`` below it.

        (1/T) ∫_target^start e^{V(y)/T} ∫_y^∞ e^{−V(z)/T} dz dy

    V must grow above ``start``. Gardiner, Handbook of stochastic methods, § 5.5.
    """
    T = check_positive("temperature", temperature)
    below, above = np.linspace(target, start, NODES), np.linspace(start, ceiling(potential, T, start), NODES)
    v = potential(below)
    floor, top = float(v.min()), float(v.max())
    beyond = simpson(np.exp(-(potential(above) - floor) / T), x=above)
    density = np.exp(-(v - floor) / T)
    inner = beyond + cumulative_simpson(density[::-1], dx=(start - target) / (NODES - 1), initial=0)[::-1]
    return math.exp((top - floor) / T) / T * float(simpson(np.exp((v - top) / T) * inner, x=below))


def seen_target(target: float, temperature: float, step: float) -> float:
    r"""Where a target approached from above seems to lie if paths are seen at the ends of steps h = ``step`` only.

    target − 0.5826 √(2Th): mean passage times are those of the diffusion to there, up to O(h). Siegmund 1979, Adv.
    Appl. Probab. 11, 701.
    """
    return target - SIEGMUND * math.sqrt(2 * check_positive("temperature", temperature) * check_positive("step", step))


def kramers_time(barrier: float, temperature: float, minimum: Values, saddle: Values) -> float:
    r"""Eyring and Kramers' mean time from one minimum to the other side, isotropic noise of temperature T in R^d.

        (2π/|λ₋|) √(|det H(saddle)|/det H(minimum)) e^{ΔV/T},    λ₋ the negative eigenvalue of H(saddle)

    to first order in T. Hessians (d, d). Bovier, Eckhoff, Gayrard & Klein 2004, J. Eur. Math. Soc. 6, 399.
    """
    T = check_positive("temperature", temperature)
    eigenvalues = np.linalg.eigvalsh(saddle)
    volume = math.sqrt(abs(float(np.prod(eigenvalues))) / float(np.linalg.det(minimum)))
    return 2 * math.pi / abs(float(eigenvalues[0])) * volume * math.exp(barrier / T)


def chain_time(
    potential: Profile, slope: Profile, temperature: float, step: float, start: float, target: float
) -> float:
    r"""Mean time at which x' = x − hV'(x) + √(2Th) ξ from ``start`` is first seen at ``target`` or below, h = ``step``.

    The time u(x) still to go solves u = h + ∫_target^∞ p(x, z) u(z) dz, p the normal density of a step: by Nyström's
    method with Gauss's rule. NaN where u/h exceeds what float64 can tell from never.
    """
    width = math.sqrt(2 * check_positive("temperature", temperature) * check_positive("step", step))
    top = max(ceiling(potential, temperature, start), start + 10 * width)
    edges = np.linspace(target, top, 2 + math.ceil((top - target) / (4 * width)))
    nodes, weights = np.polynomial.legendre.leggauss(ORDER)
    half = np.diff(edges) / 2
    x = (edges[:-1] + half)[:, None] + half[:, None] * nodes
    z, w = x.ravel(), (half[:, None] * weights).ravel()

    def kernel(x: Values) -> Values:
        away = (z - (x - step * slope(x))[:, None]) / width
        return w * np.exp(-away * away / 2) / (width * math.sqrt(2 * math.pi))

    still = np.linalg.solve(np.eye(len(z)) - kernel(z), np.full(len(z), step))
    time = step + float((kernel(np.array([start])) @ still)[0])
    return time if 0 < time * np.finfo(float).eps / step < SAFE else math.nan
