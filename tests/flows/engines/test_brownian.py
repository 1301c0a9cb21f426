"""Paths refine, replay and have Brownian moments; the mini-batches' path is the descent's own noise."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import BrownianPath, MinibatchPath, PathError, StochasticGradientDescent, minibatch_path
from flows.engines.noise_paths import MANY, normal
from landscapes import TwoQuadratics
from landscapes.sampling import Epoch, Replacement, Subset

DT = 0.125


def steps_of(path, dt, steps, **kwargs):
    return torch.stack(list(path.increments(path.t0, dt, steps, **kwargs)))


@given(seed=st.integers(0, 2**63 - 1), halvings=st.integers(0, 5), start=st.sampled_from([0.0, -1.5, 7.25]))
def test_equal_seeds_refine_each_other(seed, halvings, start):
    coarse = BrownianPath(seed, start, start + 1, DT, (2, 3))
    fine = BrownianPath(seed, start, start + 1, DT / 2**halvings, (2, 3))
    parts = steps_of(fine, DT / 2**halvings, 8 << halvings).reshape(8, -1, 2, 3).sum(dim=1)
    assert_close(parts, steps_of(coarse, DT, 8), rtol=0, atol=1e-14)
    assert torch.equal(steps_of(coarse, DT, 8), steps_of(coarse, DT, 8))
    assert_close(steps_of(fine, DT, 8), steps_of(coarse, DT, 8), rtol=0, atol=0)


@pytest.mark.parametrize("multiple", [1, 2, 3, 4, 6, 12])
def test_coarse_steps_sum_fine_ones_from_anywhere(multiple):
    path = BrownianPath(3, 0.0, 3.0, DT / 4, 2)
    fine = steps_of(path, DT / 4, 96)
    for first in (0, 1, 2, 4, 12):
        steps = (96 - first) // multiple
        coarse = torch.stack(list(path.increments(first * DT / 4, multiple * DT / 4, steps)))
        expected = fine[first : first + steps * multiple].reshape(steps, multiple, 2).sum(dim=1)
        assert_close(coarse, expected, rtol=0, atol=1e-14)
    assert_close(path(0.5, 2.25), fine[16:72].sum(dim=0), rtol=0, atol=1e-14)


@pytest.mark.parametrize("n", [3, MANY + 1])
def test_increments_have_brownian_moments(n):
    """Covariance dt·I over time and members: 2e5 values or more, four standard errors of a variance."""
    steps = 2 ** math.ceil(math.log2(2e5 / n))
    w = steps_of(BrownianPath(0, 0.0, steps / 64, 1 / 64, n), 1 / 64, steps).flatten() * 8
    error = 1 / math.sqrt(w.numel())
    assert abs(float(w.mean())) < 4 * error
    assert abs(float(w.var()) - 1) < 4 * math.sqrt(2) * error
    assert abs(float((w[1:] * w[:-1]).mean())) < 4 * error
    assert abs(float(w.pow(4).mean()) - 3) < 4 * math.sqrt(96) * error


def test_normals_from_vectors_are_normal():
    x = normal((400_001,), torch.Generator().manual_seed(1), torch.float64)
    probabilities = torch.tensor([0.001, 0.1, 0.5, 0.9, 0.999], dtype=torch.float64)
    below = (x[:, None] <= torch.special.ndtri(probabilities)).double().mean(dim=0)
    assert bool(((below - probabilities).abs() < 4 * (probabilities * (1 - probabilities) / len(x)).sqrt()).all())
    pairs = x[:200_000] * x[200_001:]
    assert abs(float(pairs.mean())) < 4 / math.sqrt(200_000)


def test_a_period_makes_the_noise_sum_to_zero():
    path = BrownianPath(5, 0.0, 4.0, DT, 20_000)
    bridged = steps_of(path, DT, 32, period=1.0).reshape(4, 8, -1)
    assert_close(bridged.sum(dim=1), torch.zeros(4, 20_000, dtype=torch.float64), rtol=0, atol=1e-14)
    variance = bridged.var(dim=-1).mean()
    assert abs(float(variance) / (DT * 7 / 8) - 1) < 4 * math.sqrt(2 / 20_000 / 32)
    assert_close(steps_of(path, DT, 5, period=1.0), bridged[0, :5], rtol=0, atol=0)


@pytest.mark.parametrize("sampling", [Replacement(6, 2), Subset(6, 4), Epoch(6, 2)])
def test_minibatch_increments_have_the_covariance_of_their_sampling(sampling):
    """Cov ΔW = h(I − 11ᵀ/N)·(variance of a step)/(that of the driving noise), within four standard errors."""
    n, h = 40_000, 0.3
    w = steps_of(MinibatchPath(sampling, h, 3, seed=2, batch=(n,)), h, 3)
    centring = torch.eye(6, dtype=torch.float64) - 1 / 6
    expected = h * centring * sampling.variance_factor() / sampling.diffusion_factor()
    for increments in w:
        assert_close(increments.sum(dim=-1), torch.zeros(n, dtype=torch.float64), rtol=0, atol=1e-13)
        # A variance of n bounded draws errs by less than 3h/√n here: kurtoses are at most those of b = 2, N = 6.
        assert_close(increments.mT @ increments / n, expected, rtol=0, atol=4 * 3 * h / math.sqrt(n))
    if isinstance(sampling, Epoch):
        assert_close(w.sum(dim=0), torch.zeros(n, 6, dtype=torch.float64), rtol=0, atol=1e-13)


def test_a_minibatch_path_is_refined_by_bridges():
    path = MinibatchPath(Replacement(5, 2), 0.2, 4, seed=1, batch=(30_000,), halvings=2)
    fine = steps_of(path, 0.05, 16)
    assert_close(fine.reshape(4, 4, -1, 5).sum(dim=1), steps_of(path, 0.2, 4), rtol=0, atol=1e-13)
    variance = fine.square().sum(dim=-1).mean() / 5
    # the mean over the examples is bridged as well: 1 − (1/5)(1/4) of the variance of a Brownian motion
    assert float(variance) == pytest.approx(0.05 * (1 - 1 / 20), rel=0.02)
    assert path(0.2, 0.4).shape == (30_000, 5)


def test_a_full_batch_moves_no_path():
    assert not bool(steps_of(MinibatchPath(Subset(4, 4), 0.1, 2, seed=0), 0.1, 2).any())


def test_a_path_on_a_device_is_in_its_dtype(device, dtype):
    path = BrownianPath(0, 0.0, 1.0, 0.5, 3, dtype=dtype, device=device)
    (w, *_) = path.increments(0.0, 0.5, 2)
    assert w.dtype == dtype
    assert w.device.type == torch.device(device).type


def test_paths_that_do_not_serve_say_why():
    path = BrownianPath(0, 0.0, 1.0, 0.25, 1)
    with pytest.raises(PathError, match=r"too coarse: dt = 0\.1"):
        path.increments(0.0, 0.1, 2)
    with pytest.raises(PathError, match=r"too short: it covers 0\.0 to 1\.0"):
        path.increments(0.5, 0.25, 3)
    with pytest.raises(PathError, match="whole epochs"):
        path.increments(0.0, 0.25, 4, period=0.75)
    with pytest.raises(PathError, match="divide an epoch"):
        path.increments(0.0, 0.5, 2, period=0.75)
    with pytest.raises(PathError, match="grid"):
        path(0.1, 1.0)
    with pytest.raises(PathError, match="start must not be after end"):
        path(0.5, 0.25)
    with pytest.raises(ValueError, match="finest_dt must divide"):
        BrownianPath(0, 0.0, 1.0, 0.3, 1)
    with pytest.raises(ValueError, match="t1 must be after t0"):
        BrownianPath(0, 1.0, 1.0, 0.5, 1)
    with pytest.raises(ValueError, match="size"):
        BrownianPath(0, 0.0, 1.0, 0.5, (3, 0))
    with pytest.raises(PathError, match="more halvings"):
        MinibatchPath(Subset(4, 2), 0.1, 2, seed=0).increments(0.0, 0.05, 2)


def test_a_descent_without_plain_batches_has_no_path():
    from flows import GradientDescent

    theta = torch.zeros(2, dtype=torch.float64)
    assert minibatch_path(StochasticGradientDescent(TwoQuadratics(), 0.1, 1), theta, 3).shape == (2,)
    with pytest.raises(TypeError, match="one mini-batch a step"):
        minibatch_path(GradientDescent(TwoQuadratics(), 0.1), theta, 3)
