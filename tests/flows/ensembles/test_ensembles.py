"""Ensembles: laws known in closed form within their error bars, blocks that merge, members that are lost."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from flows import (
    GradientDescent,
    GradientFlow,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    descend,
    integrate,
)
from flows.engines.storage import load_tensors
from flows.ensembles import Histogram, Moments, Observable, Quantiles, ensemble
from flows.ensembles.blocks import block_seed, block_size, evaluate, merge_clocks
from landscapes import NoisyQuadratic, UnsupportedError
from tests.flows.laws import OU, START, Exploding, Geometric

NOISY = NoisyQuadratic(torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), 8, seed=0)
SGD = StochasticGradientDescent(NOISY, 0.1, 2)
ONE = torch.tensor([1.0], dtype=torch.float64)


def position(theta):
    return theta


def along(times=(0.0, 0.5, 1.0), paths=600, **options):
    options = {"seed": 3, "observables": {"x": position}, "dt": 0.125, **options}
    return ensemble(OU, START, list(times), paths=paths, **options)


def test_the_ornstein_uhlenbeck_law_and_its_error_bars():
    # 40,000 paths by Euler against the law that its steps have exactly; four standard errors, jointly on eight numbers
    found = ensemble(
        OU, START, [0.0, 0.5, 1.0], paths=40_000, seed=1, observables={"x": position}, dt=0.125, block=9_000
    )
    assert found.counts.tolist() == [40_000] * 3
    assert found.times.tolist() == [0.0, 0.5, 1.0]
    for j, steps in ((1, 4), (2, 8)):
        mean, covariance = OU.euler_law(START, 0.125, steps)
        assert bool((((found.mean["x"][j] - mean) / found.standard_error["x"][j]).abs() < 4).all())
        assert bool((((found.covariance["x"][j] - covariance) / found.covariance_error["x"][j]).abs() < 4).all())
        expected = (covariance.diagonal() / 40_000).sqrt()
        np.testing.assert_allclose(found.standard_error["x"][j], expected, rtol=0.02)
    np.testing.assert_allclose(found.mean["x"][0], START)
    np.testing.assert_allclose(found.covariance["x"][0], 0)


def test_the_ornstein_uhlenbeck_law_itself():
    # At dt = 1/256 Euler's own error, ‖F‖² dt ≈ 0.5 % of the mean, is allowed for on top of the statistical one.
    found = ensemble(OU, START, [0.0, 1.0], paths=10_000, seed=2, observables={"x": position}, dt=1 / 256)
    mean, covariance = OU.law(START, 1.0)
    exact, spread = OU.euler_law(START, 1 / 256, 256)
    bias, further = (exact - mean).abs(), (spread - covariance).abs()
    assert float(bias.max()) < 0.005
    assert bool(((found.mean["x"][1] - mean).abs() < 4 * found.standard_error["x"][1] + bias).all())
    assert bool(((found.covariance["x"][1] - covariance).abs() < 4 * found.covariance_error["x"][1] + further).all())


def test_error_bars_cover_over_many_seeds():
    # 120 ensembles of 400 paths: sum of squared scores of the mean of one component against chi-square, two-sided 1e-4
    mean, covariance = OU.euler_law(START, 0.125, 8)
    means, variances = [], []
    for seed in range(120):
        found = along((0.0, 1.0), paths=400, seed=seed, block=150)
        means.append(float((found.mean["x"][1, 0] - mean[0]) / found.standard_error["x"][1, 0]))
        score = (found.covariance["x"][1, 0, 0] - covariance[0, 0]) / found.covariance_error["x"][1, 0, 0]
        variances.append(float(score))
    low, high = stats.chi2.ppf([5e-5, 1 - 5e-5], 120)
    assert low < sum(x * x for x in means) < high
    assert low < sum(x * x for x in variances) < high
    # different seeds are independent, so that scores of neighbours do not go together
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 4 / math.sqrt(120)


def test_geometric_brownian_motion_has_its_moments():
    flow, dt, steps = Geometric(), 0.125, 8
    found = ensemble(
        flow,
        ONE,
        [0.0, 1.0],
        paths=40_000,
        seed=4,
        observables={"powers": lambda x: torch.cat([x, x**2], dim=-1), "positive": lambda x: x[..., 0] > 0},
        dt=dt,
    )
    expected = torch.tensor([flow.euler_growth(p, dt) ** steps for p in (1, 2)], dtype=torch.float64)
    scores = (found.mean["powers"][1] - expected) / found.standard_error["powers"][1]
    assert bool((scores.abs() < 4).all())
    assert found.mean["positive"].shape == (2, 1)
    assert float(found.mean["positive"][0]) == 1


def test_quantiles_and_histograms_follow_the_gaussian_law():
    p, edges = [0.05, 0.5, 0.95], torch.linspace(-1, 1.5, 11, dtype=torch.float64)
    observable = Observable(position, [Quantiles(p, size=512), Histogram(edges)])
    found = ensemble(OU, START, [0.0, 1.0], paths=20_000, seed=5, observables={"x": observable}, dt=0.125, block=5_000)
    mean, covariance = OU.euler_law(START, 0.125, 8)
    deviation = covariance.diagonal().sqrt()
    truth = mean[:, None] + deviation[:, None] * torch.from_numpy(stats.norm.ppf(p))
    low, high = found.quantile_intervals(1 - 1e-4)["x"]
    assert bool(((low[1] <= truth) & (truth <= high[1])).all())
    assert found.quantiles["x"].shape == (2, 2, 3)
    share = torch.from_numpy(np.diff(stats.norm.cdf(edges[:, None], mean, deviation), axis=0)).T
    end = found.histograms["x"][1]
    low, high = end.interval(1 - 1e-4)
    assert bool(((low <= share / edges.diff()) & (share / edges.diff() <= high)).all())


def test_blocks_are_runs_of_their_own_seeds():
    found = along(paths=500, block=200)
    expected = Moments()
    for number, n in enumerate((200, 200, 100)):
        start = START.expand(n, 2)
        run = integrate(OU, start, [0.0, 0.5, 1.0], dt=0.125, seed=block_seed(3, number), keep="last")
        expected = expected.add(run.theta[-1])
    np.testing.assert_allclose(found.mean["x"][-1], expected.mean, rtol=1e-12)
    np.testing.assert_allclose(found.covariance["x"][-1], expected.covariance, rtol=1e-10)
    assert len({block_seed(seed, i) for seed in range(30) for i in range(30)}) == 900
    again = along(paths=500, block=200)
    assert torch.equal(found.mean["x"], again.mean["x"])
    assert not torch.equal(found.mean["x"], along(paths=500, block=200, seed=4).mean["x"])


def test_equal_seeds_refine_the_same_paths():
    coarse, fine = along(dt=0.125), along(dt=0.0625)
    # the same Brownian paths: the means differ by Euler's error, a few per cent, not by their noise
    apart = (coarse.mean["x"][-1] - fine.mean["x"][-1]).abs()
    bias = (OU.euler_law(START, 0.125, 8)[0] - OU.euler_law(START, 0.0625, 16)[0]).abs()
    assert bool((apart < bias + 0.1 * coarse.standard_error["x"][-1]).all())


def test_descents_have_their_exact_moments():
    # θ' = (I − hH)θ + hH γ̄: D = H² everywhere, so that mean and covariance follow in closed form.
    steps, h, hessian = 15, 0.1, NOISY.hessian(START)
    found = ensemble(SGD, START, steps, paths=30_000, seed=6, observables={"x": position}, every=4, block=10_000)
    np.testing.assert_allclose(found.times, [0.0, 0.4, 0.8, 1.2, 1.5], rtol=1e-12)  # and the last, though 4 ∤ 15
    step = torch.eye(2, dtype=torch.float64) - h * hessian
    mean, covariance = START, torch.zeros(2, 2, dtype=torch.float64)
    for _ in range(steps):
        mean, covariance = step @ mean, step @ covariance @ step + h * h / 2 * hessian @ hessian
    assert bool((((found.mean["x"][-1] - mean) / found.standard_error["x"][-1]).abs() < 4).all())
    assert bool((((found.covariance["x"][-1] - covariance) / found.covariance_error["x"][-1]).abs() < 4).all())
    assert found.cost["steps"] == 3 * steps
    assert found.cost["grad"] == pytest.approx(30_000 * steps * 2 / 8)


def test_a_batch_of_starts_is_an_ensemble_for_each():
    starts = torch.stack([START, 2 * START, -START])
    found = ensemble(OU, starts, [0.0, 1.0], paths=5_000, seed=7, observables={"x": position, "r": norm}, dt=0.125)
    assert found.mean["x"].shape == (2, 3, 2)
    assert found.covariance["x"].shape == (2, 3, 2, 2)
    assert found.mean["r"].shape == (2, 3, 1)
    assert found.diverged.tolist() == [0, 0, 0]
    for i, start in enumerate(starts):
        mean, _ = OU.euler_law(start, 0.125, 8)
        assert bool((((found.mean["x"][1, i] - mean) / found.standard_error["x"][1, i]).abs() < 4).all())


def norm(theta):
    return torch.linalg.vector_norm(theta, dim=-1)


def test_lost_members_are_counted_and_stay_where_they_were():
    times = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    options = {"paths": 300, "seed": 8, "observables": {"x": position}, "dt": 0.25}
    found = ensemble(Exploding(), 0.8 * ONE, times, **options)
    start = (0.8 * ONE).expand(300, 1)
    run = integrate(Exploding(), start, times, dt=0.25, seed=block_seed(8, 0))
    gone = int((~run.alive).sum())
    assert 10 < gone < 300
    assert int(found.diverged) == gone
    assert found.counts.tolist() == [300] * len(times)
    np.testing.assert_allclose(found.mean["x"], run.theta.mean(dim=1), rtol=1e-12)
    assert f"{gone} of them diverged and are in every statistic with their last finite position" in str(found)


def test_a_block_that_is_lost_stays_in_the_statistics():
    # blocks of one path: those lost early end their own run, and are there at all later times with their last position
    times = [0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0]
    found = ensemble(Exploding(), 0.8 * ONE, times, paths=12, seed=9, observables={"x": position}, dt=0.25, block=1)
    ends, gone = [], 0
    for number in range(12):
        start = (0.8 * ONE).expand(1, 1)
        run = integrate(Exploding(), start, times, dt=0.25, seed=block_seed(9, number))
        ends.append(run.theta[-1])
        gone += int((~run.alive).sum())
    assert 0 < gone < 12
    assert int(found.diverged) == gone
    assert found.counts.tolist() == [12] * len(times)
    np.testing.assert_allclose(found.mean["x"][-1], torch.stack(ends).mean(dim=0)[0], rtol=1e-12)


def test_an_ensemble_of_which_none_is_left_ends_there():
    found = ensemble(Exploding(), 5 * ONE, [0.0, 1.0, 2.0, 9.0], paths=5, seed=1, observables={"x": position}, dt=0.5)
    assert found.status == "diverged"
    assert int(found.diverged) == 5
    assert float(found.times[-1]) < 9
    assert "no path was left" in str(found)


def test_an_interrupted_ensemble_says_how_many_it_saw():
    calls = 0

    def interrupting(theta):
        nonlocal calls
        calls += 1
        if calls == 5:  # in the second block of three times
            raise KeyboardInterrupt
        return theta

    found = along(paths=300, block=100, observables={"x": interrupting})
    assert found.status == "interrupted"
    assert found.counts.tolist() == [200, 100, 100]
    assert "of 300 paths" in found.status.sentence


def test_an_ensemble_interrupted_before_it_saw_anything_raises():
    def interrupting(theta):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        along(observables={"x": interrupting})


def test_float32_and_device(device):
    found = ensemble(
        OU, START.float().to(device), [0.0, 1.0], paths=2_000, seed=1, observables={"x": position}, dt=0.125
    )
    assert found.mean["x"].dtype == torch.float64
    assert found.mean["x"].device.type == device.type
    assert evaluate("x", position, START.float()[None]).dtype == torch.float64
    mean, _ = OU.euler_law(START, 0.125, 8)
    assert bool((((found.mean["x"][1].cpu() - mean) / found.standard_error["x"][1].cpu()).abs() < 4).all())


def test_default_blocks_bound_memory():
    assert block_size(None, 100_000, START, [OU]) == 100_000
    assert block_size(7, 100_000, START, [OU]) == 7
    assert block_size(70, 50, START, [OU]) == 50
    wide = NoisyQuadratic(torch.eye(100, dtype=torch.float64), 1000, seed=0)
    size = block_size(None, 100_000, torch.zeros(100), [StochasticGradientDescent(wide, 0.1, 2)])
    assert size == 2**22 // (100 * 1000)
    # d·N of examples and N of noise; each of three members of a batch of starts; and what is held of every path
    flow = StochasticModifiedEquation(wide, 0.1, 2)
    assert block_size(None, 100_000, torch.zeros(100), [flow]) == 2**22 // (100 * 1000 + 1000)
    few = StochasticModifiedEquation(NOISY, 0.1, 2)
    assert block_size(None, 300_000, START, [few]) == 2**22 // (2 * 8 + 8)
    assert block_size(None, 100_000, torch.zeros(3, 100), [flow]) == 2**22 // (3 * (100 * 1000 + 1000))
    assert block_size(None, 100_000, START, [OU], extra=2**20) == 3


def test_save(tmp_path):
    asked = Observable(position, [Quantiles([0.5]), Histogram([-1.0, 0.0, 1.0])])
    found = along(observables={"x": asked, "r": norm})
    folder = found.save(tmp_path / "run")
    tensors, text = load_tensors(folder, "ensemble")
    assert text["observables"] == ["x", "r"]
    assert text["probabilities"] == {"x": [0.5]}
    assert torch.equal(tensors["0.mean"], found.mean["x"])
    assert torch.equal(tensors["1.covariance_error"], found.covariance_error["r"])
    assert torch.equal(tensors["0.quantiles"], found.quantiles["x"])
    assert tensors["0.tallies"].shape == (3, 2, 5)
    assert (folder / "table.txt").read_text() == str(found) + "\n"


def test_the_clock_of_a_descent_is_its_own():
    run = descend(SGD, START, 6, seed=0)
    found = ensemble(SGD, START, 6, paths=4, seed=0, observables={"x": position}, block=3)
    assert torch.equal(found.times, run.times)


def test_blocks_whose_clocks_differ_have_no_times():
    assert merge_clocks([0.0, 1.0], [0.0, 1.0, 3.0]) == [0.0, 1.0, 3.0]
    assert merge_clocks([0.0, 1.0, 3.0], [0.0]) == [0.0, 1.0, 3.0]
    with pytest.raises(UnsupportedError, match="depends on its path"):
        merge_clocks([0.0, 1.0], [0.0, 1.1, 3.0])


@pytest.mark.parametrize(
    ("change", "error", "match"),
    [
        ({"paths": 0}, ValueError, "paths must be at least 1"),
        ({"seed": -1}, ValueError, "seed must be at least 0"),
        ({"observables": {}}, TypeError, "at least one"),
        ({"observables": [position]}, TypeError, "mapping"),
        ({"observables": {"x": 3}}, TypeError, "functions of theta"),
        ({"observables": {"x": lambda x: x.sum()}}, ValueError, r"\(n, \.\.\., q\)"),
        ({"observables": {"x": lambda x: 1.0}}, TypeError, "must return a tensor"),
        ({"observables": {"x": lambda x: x + 0j}}, TypeError, "must be real"),
        ({"dt": None}, ValueError, "dt must be given"),
        ({"dt": 0.3}, ValueError, "choose a dt that divides"),
        ({"block": 0}, ValueError, "block must be at least 1"),
        ({"every": 0}, ValueError, "every must be at least 1"),
    ],
)
def test_arguments(change, error, match):
    with pytest.raises(error, match=match):
        along(**change)


def test_arguments_of_models_and_observables():
    options = {"paths": 2, "seed": 0, "observables": {"x": position}}
    with pytest.raises(UnsupportedError, match="use integrate"):
        ensemble(GradientFlow(NOISY), START, [0.0, 1.0], dt=0.5, **options)
    with pytest.raises(TypeError, match="StochasticFlow or a Descent"):
        ensemble(NOISY, START, 3, **options)
    with pytest.raises(TypeError, match="number of steps is for descents"):
        ensemble(OU, START, 3, dt=0.5, **options)
    with pytest.raises(ValueError, match="dt and method are for flows"):
        ensemble(GradientDescent(NOISY, 0.1), START, 3, dt=0.5, **options)
    with pytest.raises(TypeError, match="steps"):
        ensemble(SGD, START, [0.0, 1.0], **options)
    with pytest.raises(TypeError, match="real"):
        ensemble(OU, START.to(torch.complex128), [0.0, 1.0], dt=0.5, **options)
    with pytest.raises(TypeError, match="Statistics such as"):
        Observable(position, [0.5])
    with pytest.raises(ValueError, match="must be empty"):
        Observable(position, [Moments().add(torch.ones(2, 1))])
    with pytest.raises(TypeError, match="function of theta"):
        Observable(3)
