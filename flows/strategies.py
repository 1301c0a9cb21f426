"""Hypothesis strategies for landscapes, points and rotations. Needs hypothesis: pip install 'thalweg[test]'."""

from __future__ import annotations

import math

import sympy
import torch
from hypothesis import strategies as st
from torch import Tensor

from landscapes import Landscape, Quadratic, from_sympy
from landscapes.errors import MOST, check_count, check_nonnegative, check_number, check_real

DENSEST = 1000  # dimensions of a matrix, or symbols


def check_range(low: float, high: float, avoid: float, gap: float) -> float:
    """Return ``avoid`` as a float; raise unless [low, high] has numbers farther than ``gap`` from ``avoid``."""
    if check_real("low", low) > check_real("high", high):
        raise ValueError(f"low must be at most high, got {low!r} and {high!r}")
    check_nonnegative("gap", gap)
    avoid = check_number("avoid", avoid)
    if math.isnan(avoid):
        raise ValueError("avoid must not be NaN")
    if max(abs(low - avoid), abs(high - avoid)) <= gap:
        raise ValueError(f"gap must leave numbers in [{low!r}, {high!r}] away from avoid={avoid!r}, got {gap!r}")
    return avoid


def seeds() -> st.SearchStrategy[torch.Generator]:
    """Explicit torch generators."""
    return st.integers(0, 2**31 - 1).map(lambda seed: torch.Generator().manual_seed(seed))


@st.composite
def rotations(draw: st.DrawFn, dimension: int) -> Tensor:
    """Orthogonal matrices (d, d), float64."""
    check_count("dimension", dimension, maximum=DENSEST)
    generator = draw(seeds())
    return torch.linalg.qr(torch.randn(dimension, dimension, generator=generator, dtype=torch.float64))[0]


@st.composite
def points(draw: st.DrawFn, dimension: int, *batch: int, scale: float = 1.0) -> Tensor:
    """Points θ (*batch, d), normal with standard deviation ``scale``, float64."""
    sides = [
        check_count(name, side, maximum=MOST)
        for name, side in (("dimension", dimension), *((f"batch[{i}]", n) for i, n in enumerate(batch)))
    ]
    if math.prod(sides) > MOST:
        raise ValueError(f"dimension and batch must give at most {MOST} numbers, got {math.prod(sides)}")
    check_nonnegative("scale", scale)
    return scale * torch.randn(*batch, dimension, generator=draw(seeds()), dtype=torch.float64)


@st.composite
def spectra(draw: st.DrawFn, dimension: int, low: float, high: float, avoid: float, gap: float) -> Tensor:
    """Eigenvalues (d,) in [low, high] that stay ``gap`` away from ``avoid``, which may be infinite."""
    check_count("dimension", dimension, maximum=DENSEST)
    avoid = check_range(low, high, avoid, gap)
    values = st.floats(low, high, allow_nan=False).filter(lambda x: abs(x - avoid) > gap)
    return torch.tensor(draw(st.lists(values, min_size=int(dimension), max_size=int(dimension))), dtype=torch.float64)


@st.composite
def quadratics(
    draw: st.DrawFn,
    low: float = -2.0,
    high: float = 2.0,
    dimensions: st.SearchStrategy[int] | None = None,
    avoid: float = float("inf"),
    gap: float = 0.0,
) -> Quadratic:
    """Quadratics ½(θ − m)ᵀH(θ − m) in random coordinates, eigenvalues in [low, high] away from ``avoid``."""
    check_range(low, high, avoid, gap)
    if dimensions is not None and not isinstance(dimensions, st.SearchStrategy):
        raise TypeError(f"dimensions must be a strategy, such as st.integers(2, 8), got {type(dimensions).__name__}")
    d = draw(st.integers(2, 8) if dimensions is None else dimensions)
    rotation = draw(rotations(d))
    eigenvalues = draw(spectra(d, low, high, avoid, gap))
    hessian = (rotation * eigenvalues) @ rotation.mT
    return Quadratic((hessian + hessian.mT) / 2, draw(points(d)))


def eighths(zero: bool) -> st.SearchStrategy[sympy.Rational]:
    """Multiples of 1/8 in [−1, 1], 0 only if allowed."""
    whole = st.integers(-8, 8) if zero else st.integers(-8, 8).filter(bool)
    return whole.map(lambda n: sympy.Rational(n, 8))


@st.composite
def smooth_landscapes(draw: st.DrawFn, dimension: int = 2) -> Landscape:
    r"""½ Σ_i a_i x_i² + ℓ_0 + ℓ_1⁴/4 + ℓ_2³/3 + sin ℓ_3 with linear forms ℓ and no coefficient 0: holomorphic.

    Not degenerate: at the origin the gradient ℓ_0 + ℓ_3 is not 0, the Hessian diag(a) has full rank, and the third and
    fourth derivatives are not 0; all are analytic, so that this holds almost everywhere. Without symmetry.
    """
    check_count("dimension", dimension, maximum=DENSEST)
    numbers = eighths(zero=False)
    symbols = sympy.symbols(f"x:{dimension}")
    curved = sum(draw(numbers) * x**2 for x in symbols) / 2
    straight, quartic, cubic, wave = [[draw(numbers) for _ in symbols] for _ in range(4)]
    if all(a == -b for a, b in zip(straight, wave, strict=True)):
        straight = [2 * a for a in straight]
    first, second, third, angle = (
        sum(a * x for a, x in zip(form, symbols, strict=True)) for form in (straight, quartic, cubic, wave)
    )
    return from_sympy(curved + first + second**4 / 4 + third**3 / 3 + sympy.sin(angle), symbols)


@st.composite
def degenerate_landscapes(draw: st.DrawFn, dimension: int = 2) -> Landscape:
    """Functions with vanishing derivatives: constant, linear, of one direction only, with any coefficient 0.

    For cases that ``smooth_landscapes`` leaves out: Hessians of low rank or 0, third derivatives 0, flat directions.
    """
    check_count("dimension", dimension, maximum=DENSEST)
    symbols = sympy.symbols(f"x:{dimension}")
    forms = [sum(draw(eighths(zero=True)) * x for x in symbols) for _ in range(4)]
    kinds = [
        sympy.Integer(draw(st.integers(-2, 2))),
        forms[0],
        forms[1] ** 2 / 2,
        forms[2] ** 3 / 3,
        forms[1] ** 4 / 4,
        sympy.sin(forms[3]),
        forms[0] + forms[1] ** 2 + forms[2] ** 3 / 3 + forms[1] ** 4 / 4 + sympy.sin(forms[3]),
    ]
    return from_sympy(draw(st.sampled_from(kinds)), symbols)
