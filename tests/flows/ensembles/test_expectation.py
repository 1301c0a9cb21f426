"""Expectations extrapolated in dt: exact laws of Euler's chains, what is averaged path by path, order 2 in dt."""

import math

import numpy as np
import pytest
import torch

from flows import GradientFlow, integrate
from flows.ensembles import expectation
from flows.ensembles.blocks import block_seed
from landscapes import NoisyQuadratic
from tests.flows.laws import OU, START, Exploding, Geometric, square

ONE = torch.tensor([1.0], dtype=torch.float64)
GEOMETRIC = Geometric()


OBSERVABLES = {"x": lambda theta: theta, "x²": square}


def along(**options):
    options = {"paths": 40, "seed": 3, "observables": OBSERVABLES, "dt": 0.25, **options}
    return expectation(OU, START, options.pop("times", (0.0, 0.5, 1.0)), **options)


def euler(dt, time=1.0):
    """E X² of Euler's chain on geometric Brownian motion from 1."""
    return GEOMETRIC.euler_growth(2, dt) ** round(time / dt)


def richardson(dt):
    return 2 * euler(dt / 2) - euler(dt)


def test_the_bias_left_is_of_second_order_in_dt_and_known():
    """By the exact moments of Euler's chain, multiplicative noise: no path is drawn."""
    exact = math.exp(GEOMETRIC.growth(2))
    plain = [euler(dt) - exact for dt in (2.0**-5, 2.0**-6, 2.0**-7)]
    left = [richardson(dt) - exact for dt in (2.0**-5, 2.0**-6, 2.0**-7)]
    # c dt (1 + a dt): off by a dt/2 over log 2, of dt = 1/64 and 1/128
    assert np.diff(np.log2(np.abs(plain))) == pytest.approx([-1, -1], abs=0.05)
    assert np.diff(np.log2(np.abs(left))) == pytest.approx([-2, -2], abs=0.05)
    for dt in (0.25, 0.125):
        assert (richardson(dt) - richardson(dt / 2)) / 3 == pytest.approx(richardson(dt / 2) - exact, rel=dt)


@pytest.mark.parametrize("extrapolate", [True, False])
def test_the_expectation_is_that_of_eulers_chains(extrapolate):
    found = expectation(
        GEOMETRIC, ONE, [0.0, 1.0], paths=40_000, seed=1, observables={"x²": square}, dt=0.5, extrapolate=extrapolate
    )
    mean = richardson(0.25) if extrapolate else euler(0.125)
    left = (richardson(0.5) - mean) / 3 if extrapolate else euler(0.25) - mean
    assert float(found.mean["x²"][0]) == 1
    assert abs(float(found.mean["x²"][1]) - mean) < 4 * float(found.standard_error["x²"][1])
    assert abs(float(found.integration["x²"][1]) - left) < 4 * float(found.integration_error["x²"][1])
    # The levels share their noise: what they differ by is known far better than the mean is.
    assert float(found.integration_error["x²"][1]) < 0.3 * float(found.standard_error["x²"][1])


@pytest.mark.parametrize(("extrapolate", "factor"), [(True, 4), (False, 2)])
def test_order_2_in_dt_is_seen_along_equal_paths(extrapolate, factor):
    """What neighbours in dt differ by falls fourfold with extrapolation, twofold without; little noise, equal seeds."""
    quiet = Geometric(mu=-1.0, sigma=0.02)
    options = {"paths": 4000, "seed": 2, "observables": {"x²": square}, "extrapolate": extrapolate}
    means = [
        float(expectation(quiet, ONE, [0.0, 1.0], dt=dt, **options).mean["x²"][-1]) for dt in (0.25, 0.125, 0.0625)
    ]
    ratio = (means[0] - means[1]) / (means[1] - means[2])
    assert ratio == pytest.approx(factor, rel=0.15)  # of which 0.1 is the next order in dt


@pytest.mark.parametrize("extrapolate", [True, False])
def test_what_is_averaged_path_by_path(extrapolate):
    """Against integrate on the same seeds and numpy's moments of the combination, in two blocks of unequal size."""
    found = along(paths=50, block=30, extrapolate=extrapolate, every=2)
    assert found.times.tolist() == [0.0, 1.0]
    samples, rest = [], []
    for number, n in enumerate((30, 20)):
        start, seed = START.expand(n, 2), block_seed(3, number)
        runs = [integrate(OU, start, [0.0, 0.5, 1.0], dt=dt, seed=seed).theta[-1] for dt in (0.25, 0.125, 0.0625)]
        coarse, middle, fine = (np.concatenate([x.numpy(), x.numpy()[:, :1] ** 2], axis=1) for x in runs)
        one = 2 * fine - middle if extrapolate else fine
        samples.append(one)
        rest.append((2 * middle - coarse - one) / 3 if extrapolate else middle - fine)
    for columns, name in ((slice(0, 2), "x"), (slice(2, 3), "x²")):
        one, left = (np.concatenate(parts)[:, columns] for parts in (samples, rest))
        for values, error, expected in (
            (found.mean, found.standard_error, one),
            (found.integration, found.integration_error, left),
        ):
            np.testing.assert_allclose(values[name][1], expected.mean(axis=0), rtol=1e-10, atol=1e-12)
            np.testing.assert_allclose(error[name][1], expected.std(axis=0, ddof=1) / math.sqrt(50), rtol=1e-9)


def test_error_bars_cover_the_law():
    # 300 members are as many estimates of 100 paths each: their scores against the chains' mean have mean square 1 to
    # 4·√(2/300), and 3 % for the variance being estimated
    starts = START.expand(300, 2)
    found = expectation(OU, starts, [0.0, 0.5], paths=100, seed=0, observables={"x²": square}, dt=0.25)
    laws = [OU.euler_law(START, dt, round(0.5 / dt)) for dt in (0.125, 0.0625)]
    middle, fine = (float(mean[0] ** 2 + covariance[0, 0]) for mean, covariance in laws)
    scores = (found.mean["x²"][-1] - (2 * fine - middle)) / found.standard_error["x²"][-1]
    assert float(scores.square().mean()) == pytest.approx(1, abs=4 * math.sqrt(2 / 300) + 0.03)


def test_a_batch_of_starts_and_their_table():
    found = expectation(
        OU, torch.stack([START, -START, 0 * START]), [0.0, 1.0], paths=20, seed=0, observables=OBSERVABLES, dt=0.5
    )
    assert found.mean["x"].shape == found.integration_error["x"].shape == (2, 3, 2)
    assert found.standard_error["x²"].shape == (2, 3, 1)
    said = str(found)
    assert "E φ from 20 paths at t = 1 (2 times)" in said
    assert "x[5]" in said
    assert f"{float(found.mean['x²'][1, 2]):.6g}" in said


def test_runs_that_diverge_are_counted():
    found = expectation(Exploding(), 3 * ONE, [0.0, 1.0, 8.0], paths=5, seed=1, observables={"x": lambda x: x}, dt=0.5)
    assert found.diverged == 15
    assert bool(found.mean["x"].isfinite().all())
    assert "15 runs diverged" in str(found)


def test_an_interrupted_one_is_none():
    def interrupting(theta):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        along(observables={"x": interrupting})


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"paths": 1}, ValueError, "paths must be at least 2"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"observables": {}}, TypeError, "at least one"),
        ({"dt": 0.3}, ValueError, "choose a dt that divides"),
        ({"dt": -1.0}, ValueError, "dt must be positive"),
        ({"method": "rk4"}, ValueError, "method"),
        ({"every": 0}, ValueError, "every must be at least 1"),
        ({"times": 3}, TypeError, "times"),
    ],
)
def test_arguments(change, error, match):
    with pytest.raises(error, match=match):
        along(**change)


def test_a_flow_without_noise_is_refused():
    landscape = NoisyQuadratic(torch.eye(2, dtype=torch.float64), 4, seed=0)
    with pytest.raises(TypeError, match="flow must be a StochasticFlow, got GradientFlow"):
        expectation(GradientFlow(landscape), START, [0.0, 1.0], paths=2, seed=0, observables=OBSERVABLES, dt=0.5)
