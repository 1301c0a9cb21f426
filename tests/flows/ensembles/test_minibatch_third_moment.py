"""Along mini-batches the law of an SDE keeps their third moments, which a Brownian motion does not have: O(h²)."""

import math

import pytest
import torch

from flows import StochasticGradientDescent, StochasticModifiedEquation, integrate, minibatch_path
from landscapes import QuadraticSum

MINIMA = torch.tensor([-0.5, -0.4, -0.6, 2.5], dtype=torch.float64)
SKEWNESS = float((MINIMA - MINIMA.mean()).pow(3).mean())
T, PATHS, START = 2.0, 20_000, 1.0


def third_cumulant(h, batch_size, halvings):
    """Of Euler's steps of h/2^halvings for dX = −(1 + h/2)(X − c̄)dt + noise, each of whose kicks h(c_B − c̄) is spread.

    Kicks are independent, so that their third cumulants h³κ₃/b² add up, each shrunk as the drift shrinks what it
    spreads over its step and after; the bridges inside a step are Gaussian and have none.
    """
    steps, parts = round(T / h), 2**halvings
    q = 1 - (1 + h / 2) * h / parts
    spread = sum(q**j for j in range(parts)) / parts
    return SKEWNESS * h**3 / batch_size**2 * spread**3 * sum(q ** (3 * parts * k) for k in range(steps))


def ends(h, batch_size, halvings, *, along):
    landscape = QuadraticSum(torch.ones(4, 1, 1, dtype=torch.float64), MINIMA[:, None])
    flow = StochasticModifiedEquation(landscape, h, batch_size, 2)
    theta = torch.full((PATHS, 1), START, dtype=torch.float64)
    noise = {"seed": 8}
    if along == "mini-batches":
        sgd = StochasticGradientDescent(landscape, h, batch_size)
        noise = {"path": minibatch_path(sgd, theta, round(T / h), 8, halvings)}
    run = integrate(flow, theta, [0.0, T], dt=h / 2**halvings, keep="last", **noise)
    shrunk = (1 - (1 + h / 2) * h / 2**halvings) ** round(T / h * 2**halvings)
    return run.theta[-1, :, 0] - float(MINIMA.mean()) - (START - float(MINIMA.mean())) * shrunk


@pytest.mark.parametrize(("h", "batch_size", "halvings"), [(0.5, 1, 1), (0.25, 1, 2), (0.5, 2, 1)])
def test_third_moments_are_the_mini_batches_own(h, batch_size, halvings):
    cubes = ends(h, batch_size, halvings, along="mini-batches").pow(3)
    error = float(cubes.std()) / math.sqrt(PATHS)
    expected = third_cumulant(h, batch_size, halvings)
    assert abs(float(cubes.mean()) - expected) < 4 * error
    assert expected > 8 * error


def test_a_brownian_motion_has_none():
    cubes = ends(0.5, 1, 1, along="Brownian").pow(3)
    error = float(cubes.std()) / math.sqrt(PATHS)
    assert abs(float(cubes.mean())) < 4 * error
    assert error < 0.1 * third_cumulant(0.5, 1, 1)


def test_the_difference_is_of_order_two():
    """The closed form goes to h²κ₃(1 − e^{−3T})/3 for one example a step, as the docstring of the path has it."""
    found = [third_cumulant(h, 1, 6) for h in (1 / 64, 1 / 128)]
    assert math.log2(found[0] / found[1]) == pytest.approx(2, abs=0.02)
    assert found[1] * 128**2 == pytest.approx(SKEWNESS * (1 - math.exp(-3 * T)) / 3, rel=0.02)
