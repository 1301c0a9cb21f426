"""Roots and refinement, and whether any toy's list of critical points misses one."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import LANDSCAPES, BarrierValley, BumpyBasin, DoubleWell, MuellerBrown, SharpFlatWells
from landscapes.expansion import AutogradExpansion
from landscapes.toys.critical import MOST, depressed_cubic_roots, refine, rippled_bowl_roots

ISOLATED = {
    name: LANDSCAPES[name]
    for name in (
        "quadratic saddle tilted-double-well quartic-well cosine styblinski-tang rosenbrock himmelblau beale "
        "mueller-brown barrier-valley bumpy-basin sharp-flat-wells"
    ).split()
} | {
    "long-valley": lambda: BarrierValley(along=0.1),
    "wells-3d": lambda: SharpFlatWells(sharp=5.0, flat=2.0, separation=2.0, dimension=3),
    "one-well": lambda: DoubleWell(tilt=-0.7),
    "bumpy-line": lambda: BumpyBasin(amplitude=0.05, frequency=17.0, dimension=1),
}


def newton_from_everywhere(landscape, starts):
    """Where 60 Newton steps on the traced gradient end, as far as they converge in the window."""
    low, high = torch.tensor(landscape.window, dtype=torch.float64).unbind(-1)
    generator = torch.Generator().manual_seed(0)
    theta = low + (high - low) * torch.rand(starts, landscape.dimension, generator=generator, dtype=torch.float64)
    for _ in range(60):
        point = AutogradExpansion(landscape.loss, theta)
        step, _ = torch.linalg.solve_ex(point.hessian(), point.grad)
        theta = (theta - step).nan_to_num(1e3, 1e3, -1e3)
    inside = ((theta > low) & (theta < high)).all(dim=-1)
    return theta[inside & (step.abs().amax(dim=-1) < 1e-10)]


@pytest.mark.parametrize("name", ISOLATED)
def test_no_critical_point_in_the_window_is_missed_or_named_twice(name):
    landscape = ISOLATED[name]()
    listed = torch.stack([point.position for point in landscape.critical_points()])
    found = newton_from_everywhere(landscape, 4000)
    distances = torch.cdist(found, listed)
    assert float(distances.amin(dim=1).max()) < 1e-7
    assert float(distances.amin(dim=0).max()) < 1e-7
    apart = torch.cdist(listed, listed) + torch.eye(len(listed))
    assert float(apart.min()) > 1e-3


@given(p=st.floats(0.01, 50), q=st.floats(-50, 50))
def test_roots_of_cubics_equal_numpys(p, q):
    discriminant = 4 * p**3 - 27 * q**2
    assume(abs(discriminant) > 1e-3 * (4 * p**3 + 27 * q**2))
    expected = [root.real for root in np.roots([1, 0, -p, q]) if abs(root.imag) < 1e-6 * (1 + abs(root))]
    assert_close(sorted(depressed_cubic_roots(p, q)), sorted(expected), rtol=1e-7, atol=1e-7)


def test_a_double_root_is_named_once():
    assert sorted(depressed_cubic_roots(3.0, 2.0)) == pytest.approx([-2.0, 1.0])


@given(
    power=st.sampled_from([2, 3, 4]),
    rise=st.sampled_from([0.003, 0.05, 1.0]),
    amplitude=st.floats(0.01, 1),
    frequency=st.floats(0.5, 15),
)
def test_roots_of_rippled_bowls_equal_those_of_a_fine_grid(power, rise, amplitude, frequency):
    def slope(x):
        return rise * np.sign(x) * np.abs(x) ** (power - 1)

    def curvature(x):
        return rise * (power - 1) * abs(x) ** (power - 2)

    edge = (amplitude * frequency / rise) ** (1 / (power - 1)) * 1.01
    assume(2 * edge * frequency / math.pi < MOST)  # two roots a ripple at the most; what leaves more is refused
    roots = rippled_bowl_roots(slope, curvature, amplitude, frequency)
    grid = np.linspace(0, edge, 200_001)[1:]
    values = slope(grid) + amplitude * frequency * np.sin(frequency * grid)
    lowest = np.abs(values[1:-1][(values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])])
    assume(not len(lowest) or lowest.min() > 1e-3 * amplitude * frequency)  # the grid cannot count roots that merge
    assert len(roots) == 1 + 2 * int((np.diff(np.sign(values)) != 0).sum())
    assert roots == sorted(roots)
    for x in roots:
        assert abs(slope(x) + amplitude * frequency * math.sin(frequency * x)) < 1e-10


def test_newton_that_goes_astray_is_an_error():
    with pytest.raises(ArithmeticError, match="no critical point of MuellerBrown"):
        refine(MuellerBrown(), [[-0.6, 1.4]])  # converges, but not to where it was told to look
    with pytest.raises(ArithmeticError, match="within 1e-05"):
        refine(MuellerBrown(), [[-0.5582, 1.4417]], reach=1e-5)
    with pytest.raises(ArithmeticError, match="no critical point"):
        refine(MuellerBrown(), [[1.2, 2.0]])
