"""Toys in the plane against sympy's derivatives, literature's values, and what descent from their start does."""

import math

import pytest
import sympy
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import (
    BarrierValley,
    Beale,
    BumpyBasin,
    Himmelblau,
    MonkeySaddle,
    MuellerBrown,
    Product,
    Rosenbrock,
    SharpFlatWells,
    StyblinskiTang,
    from_sympy,
)

X, Y = sympy.symbols("x y")
CENTRES = [(1, 0), (0, sympy.Rational(1, 2)), (-sympy.Rational(1, 2), sympy.Rational(3, 2)), (-1, 1)]
SHAPES = [(-200, -1, 0, -10), (-100, -1, 0, -10), (-170, -6.5, 11, -6.5), (15, 0.7, 0.6, 0.7)]
DISTANCES = [(X + 1) ** 2 + Y**2, (X - 1) ** 2 + Y**2]
EXPRESSIONS = {
    "rosenbrock": (Rosenbrock(a=0.7, b=5.0), (0.7 - X) ** 2 + 5 * (Y - X**2) ** 2),
    "product": (Product(y=2.0, x=-0.5), (2 + X * Y / 2) ** 2 / 2),
    "monkey-saddle": (MonkeySaddle(scale=0.5), (X**3 - 3 * X * Y**2) / 2),
    "himmelblau": (Himmelblau(), (X**2 + Y - 11) ** 2 + (X + Y**2 - 7) ** 2),
    "beale": (
        Beale(),
        (1.5 - X + X * Y) ** 2 + (2.25 - X + X * Y**2) ** 2 + (2.625 - X + X * Y**3) ** 2,
    ),
    "styblinski-tang": (StyblinskiTang(), (X**4 - 16 * X**2 + 5 * X + Y**4 - 16 * Y**2 + 5 * Y) / 2),
    "mueller-brown": (
        MuellerBrown(),
        sum(
            height * sympy.exp(a * (X - p) ** 2 + b * (X - p) * (Y - q) + c * (Y - q) ** 2)
            for (height, a, b, c), (p, q) in zip(SHAPES, CENTRES, strict=True)
        ),
    ),
    "barrier-valley": (
        BarrierValley(across=3.0, along=0.5, amplitude=0.25, frequency=2.0, width=0.5),
        X**2 / 4 + 3 * Y**2 / 2 + (1 - sympy.cos(2 * X)) * sympy.exp(-2 * Y**2) / 4,
    ),
    "bumpy-basin": (
        BumpyBasin(radius=2.0, amplitude=0.25, frequency=3.0),
        (X**4 + Y**4) / 16 + (2 - sympy.cos(3 * X) - sympy.cos(3 * Y)) / 4,
    ),
    "sharp-flat-wells": (
        SharpFlatWells(sharp=6.0, flat=2.0, separation=2.0),
        3 * DISTANCES[0] * DISTANCES[1] / (3 * DISTANCES[0] + DISTANCES[1]),
    ),
}


def descend(landscape, h, steps):
    """Gradient descent from the toy's own start: iterates (steps + 1, d)."""
    path = [torch.tensor(landscape.start, dtype=torch.float64)]
    for _ in range(steps):
        path.append(path[-1] - h * landscape.grad(path[-1]))
    return torch.stack(path)


def nearest(landscape, theta):
    """The kind and position of the critical point that θ has come to."""
    point = min(landscape.critical_points(), key=lambda p: float((p.position - theta).norm()))
    assert float((point.position - theta).norm()) < 1e-3
    return point.kind, [round(x, 3) for x in point.position.tolist()]


@pytest.mark.parametrize("name", EXPRESSIONS)
@given(seed=st.integers(0, 2**31))
def test_derivatives_equal_sympys(name, normal, seed):
    landscape, expression = EXPRESSIONS[name]
    derived = SYMBOLIC.setdefault(name, from_sympy(expression, (X, Y)))
    theta, u, v = normal(seed, 3, 6, 2)
    one, other = landscape.expand(theta), derived.expand(theta)
    close = {"rtol": 1e-9, "atol": 1e-9 * float(1 + other.hessian().abs().max())}
    assert_close(one.loss, other.loss, **close)
    assert_close(one.grad, other.grad, **close)
    assert_close(one.hvp(v), other.hvp(v), **close)
    assert_close(one.third(u, v), other.third(u, v), **close)


SYMBOLIC: dict = {}


@pytest.mark.parametrize(
    ("landscape", "position", "kind", "value"),
    [
        (Himmelblau(), (3.0, 2.0), "minimum", 0.0),
        (Himmelblau(), (-2.805118, 3.131312), "minimum", 0.0),
        (Himmelblau(), (-3.779310, -3.283186), "minimum", 0.0),
        (Himmelblau(), (3.584428, -1.848126), "minimum", 0.0),
        (Himmelblau(), (-0.270845, -0.923039), "maximum", 181.617),
        (Beale(), (3.0, 0.5), "minimum", 0.0),
        (Beale(), (0.0, 1.0), "saddle", 1.5**2 + 2.25**2 + 2.625**2),
        (StyblinskiTang(dimension=2), (-2.903534, -2.903534), "minimum", -78.33234),
        (MuellerBrown(), (-0.558, 1.442), "minimum", -146.700),
        (MuellerBrown(), (0.623, 0.028), "minimum", -108.167),
        (MuellerBrown(), (-0.050, 0.467), "minimum", -80.768),
        (MuellerBrown(), (-0.822, 0.624), "saddle", -40.665),
        (MuellerBrown(), (0.212, 0.293), "saddle", -72.249),
    ],
    ids=lambda value: type(value).__name__,
)
def test_critical_points_of_the_literature(landscape, position, kind, value):
    """Himmelblau 1972; Beale 1958; Styblinski & Tang 1990; Müller & Brown 1979, tables."""
    target = torch.tensor(position, dtype=torch.float64)
    point = min(landscape.critical_points(), key=lambda p: float((p.position - target).norm()))
    assert_close(point.position, target, rtol=0, atol=1e-3)
    assert point.kind == kind
    assert float(landscape.loss(point.position)) == pytest.approx(value, abs=2e-3)


@given(seed=st.integers(0, 2**31))
def test_the_monkey_saddle_is_harmonic_and_threefold(seed, normal):
    landscape, theta = MonkeySaddle(scale=0.7), normal(seed, 5, 2)
    x, y = theta.unbind(-1)
    c, s = math.cos(2 * math.pi / 3), math.sin(2 * math.pi / 3)
    turned = torch.stack((c * x - s * y, s * x + c * y), dim=-1)
    assert_close(landscape.loss(turned), landscape.loss(theta))
    assert_close(landscape.hessian(theta).diagonal(dim1=-2, dim2=-1).sum(-1), torch.zeros(5, dtype=torch.float64))
    conjugate = torch.stack((6 * x * y, 3 * (x * x - y * y)), dim=-1)  # ∇ Im (x + iy)³, which gradient flow keeps
    assert_close((conjugate * landscape.grad(theta)).sum(-1), torch.zeros(5, dtype=torch.float64))


def test_descent_lingers_at_the_monkey_saddle_and_leaves_by_a_valley():
    landscape = MonkeySaddle()
    path = descend(landscape, 0.05, 42)
    assert float(path.norm(dim=-1).min()) < 0.45
    x, y = path[-1].tolist()
    assert y / x == pytest.approx(math.tan(math.pi / 3), rel=0.1)


def test_descent_on_mueller_brown_finds_the_middle_minimum():
    assert nearest(MuellerBrown(), descend(MuellerBrown(), 2e-4, 400)[-1]) == ("minimum", [-0.05, 0.467])


def test_descent_on_styblinski_tang_ends_in_one_deep_and_one_shallow_well():
    assert nearest(StyblinskiTang(), descend(StyblinskiTang(), 0.03, 60)[-1]) == ("minimum", [-2.904, 2.747])


def test_small_steps_stop_at_a_barrier_and_large_ones_bounce_above_it():
    valley = BarrierValley()
    assert nearest(valley, descend(valley, 0.002, 4000)[-1]) == ("minimum", [1.874, 0.0])
    path = descend(valley, 0.0985, 300)
    assert bool((path[:40, 1].sign().diff() != 0).all())
    assert nearest(valley, path[-1]) == ("minimum", [0.0, 0.0])


def test_the_barriers_vanish_up_the_walls():
    valley, x = BarrierValley(), torch.linspace(-3, 3, 50, dtype=torch.float64)
    up = torch.stack((x, torch.full_like(x, 10 * valley.width)), dim=-1)
    assert_close(valley.grad(up)[:, 0], valley.along * x, rtol=1e-12, atol=1e-12)


def test_small_steps_stop_in_the_first_hollow_and_large_ones_wander_in_the_middle():
    basin = BumpyBasin()
    outermost = max(x for x, _ in (p.position.tolist() for p in basin.critical_points() if p.kind == "minimum"))
    assert_close(descend(basin, 0.05, 400)[-1], torch.full((2,), outermost, dtype=torch.float64))
    late = descend(basin, 1.2, 400)[200:]
    assert float(late.abs().mean()) < outermost / 2
    assert float(late.std(dim=0).min()) > 0.1


@pytest.mark.parametrize(
    ("push", "outside", "jumps"), [(2.5, True, False), (3.6, False, False), (4.4, False, False), (4.8, None, True)]
)
def test_hollows_let_go_at_the_steps_the_docstring_says(push, outside, jumps):
    """hAk² = 3.4 for the outer hollows; 4.603 for the middle one, where √(c² − 1) − arccos(1/c) = π."""
    assert math.sqrt(4.603**2 - 1) - math.acos(1 / 4.603) == pytest.approx(math.pi, abs=2e-3)
    basin = BumpyBasin(dimension=1)
    theta = torch.linspace(-1.9, 1.9, 301, dtype=torch.float64)[:, None]
    positions = []
    for _ in range(3000):
        theta = theta - push / (basin.amplitude * basin.frequency**2) * basin.grad(theta)
        positions.append(theta[:, 0])
    late = torch.stack(positions[-1000:])
    width = 2 * math.pi / basin.frequency
    hollows = torch.round(late / width)
    if outside is not None:
        assert bool((hollows[-1] != 0).any()) is outside
    assert bool((hollows != hollows[0]).any()) is jumps


@pytest.mark.parametrize(("h", "end"), [(0.05, -2.0), (0.3, 2.0), (1.0, 2.0)])
def test_large_steps_leave_the_sharp_well_for_the_flat_one(h, end):
    assert_close(descend(SharpFlatWells(), h, 300)[-1], torch.tensor([end, 0.0], dtype=torch.float64))


def test_steps_a_little_beyond_the_edge_bounce_in_the_sharp_well():
    path = descend(SharpFlatWells(), 0.12, 300)
    assert float((path[-50:] - torch.tensor([-2.0, 0.0])).norm(dim=-1).min()) > 0.1
    assert bool((path[:, 0] < -1).all())


@given(sharp=st.floats(1, 100), ratio=st.floats(1.5, 50), gap=st.floats(0.1, 10), dimension=st.integers(1, 4))
def test_wells_are_as_deep_and_as_curved_as_they_say(sharp, ratio, gap, dimension):
    wells = SharpFlatWells(sharp, sharp / ratio, gap, dimension)
    left, right, barrier = wells.critical_points()
    for point, curvature in ((left, sharp), (right, sharp / ratio)):
        assert float(wells.loss(point.position)) == 0.0
        assert_close(wells.hessian(point.position), curvature * torch.eye(dimension, dtype=torch.float64))
        ones = torch.ones(dimension, dtype=torch.float64)
        assert_close(wells.third(point.position, ones, ones), 0 * ones)
    to_left, to_right = (float((barrier.position - end.position).norm()) for end in (left, right))
    assert to_right / to_left == pytest.approx(ratio ** (1 / 3))
