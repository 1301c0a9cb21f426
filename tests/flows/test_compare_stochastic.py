"""compare with a stochastic descent: the mean, its standard error, the full-batch step and the noise floor."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from flows import (
    GradientFlow,
    HeavyBall,
    ModifiedFlow,
    PrincipalFlow,
    ScaledStochasticHeavyBall,
    StochasticGradientDescent,
    StochasticHeavyBall,
    compare,
    descend,
)
from landscapes import LinearRegression, NoisyQuadratic, Regularised, TwoQuadratics, UnsupportedError

RATE, STEPS, RUNS = 0.1, 4, 6
START = torch.tensor([1.0, -0.7], dtype=torch.float64)
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


@pytest.fixture
def regression(normal):
    return LinearRegression(normal(0, 5, 2), normal(1, 5))


def all_flows(landscape, h=RATE):
    return {"GF": GradientFlow(landscape), "MF3": ModifiedFlow(landscape, h, 3), "PF": PrincipalFlow(landscape, h)}


@pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])
@pytest.mark.parametrize("batch", [(), (2,)])
def test_the_mean_over_runs_and_its_standard_error(sampling, batch, regression, normal):
    theta0 = START + normal(2, *batch, 2)
    sgd = StochasticGradientDescent(regression, RATE, 2, sampling)
    result = compare(sgd, all_flows(regression), theta0, STEPS, runs=RUNS, seed=3, **TIGHT)
    runs = descend(sgd, theta0.expand(RUNS, *theta0.shape), STEPS, seed=3).theta  # (T, R, ..., 2)
    mean = sum(runs[:, r] for r in range(RUNS)) / RUNS
    assert_close(result.mean, mean)
    variance = sum((runs[:, r] - mean) ** 2 for r in range(RUNS)) / (RUNS - 1)
    assert result.standard_error.shape == (STEPS + 1, *batch)
    assert_close(result.standard_error, (variance.sum(dim=-1) / RUNS).sqrt())
    assert float(result.standard_error[0].abs().max()) == 0
    assert_close(result.losses[result.name], sum(regression.loss(runs[:, r]) for r in range(RUNS)) / RUNS)
    hessian = regression.hessian(START)
    minimum = torch.linalg.solve(hessian, -regression.grad(torch.zeros(2, dtype=torch.float64)))
    exact = minimum + (theta0 - minimum) @ torch.linalg.matrix_exp(-hessian * result.times[-1])
    assert_close(result.errors["GF"][-1], (exact - mean[-1]).norm(dim=-1), rtol=1e-6, atol=1e-9)
    assert "standard error of the mean at the end" in str(result)
    assert f"the mean of {RUNS} runs of StochasticGradientDescent" in str(result)


@pytest.mark.parametrize("runs", [1, RUNS])
def test_single_steps_are_held_against_the_full_batch(runs, regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, all_flows(regression), START, STEPS, runs=runs, seed=1, **TIGHT)
    first = result.descent.theta[:, 0] if runs > 1 else result.descent.theta
    step = torch.linalg.matrix_exp(-RATE * regression.hessian(START))
    grads = regression.grad(first[:-1])
    pull = torch.linalg.solve(regression.hessian(START), grads.mT).mT  # θ − minimum
    gaps = (pull @ step - (pull - RATE * grads)).norm(dim=-1)
    assert_close(result.one_step["GF"], gaps, rtol=1e-6, atol=1e-9)
    assert float(result.one_step["PF"].max()) < 1e-9  # the principal flow takes full-batch steps, not noisy ones
    assert (result.standard_error is None) == (runs == 1)


@pytest.mark.parametrize(("sampling", "batch_size"), [("replacement", 2), ("subset", 2), ("epoch", 3), ("subset", 5)])
def test_the_noise_floor_is_that_of_every_mini_batch(sampling, batch_size, regression):
    sgd = StochasticGradientDescent(regression, RATE, batch_size, sampling)
    result = compare(sgd, {"GF": GradientFlow(regression)}, START, STEPS, seed=2)
    draws = itertools.product if sampling == "replacement" else itertools.combinations
    arguments = {"repeat": batch_size} if sampling == "replacement" else {"r": batch_size}
    batches = torch.tensor(list(draws(range(5), **arguments)))
    floors = []
    for theta in result.mean[:-1]:
        steps = torch.stack([RATE * regression.batch_grad(theta, index) for index in batches])
        floors.append((steps - RATE * regression.grad(theta)).square().sum(dim=-1).mean().sqrt())
    assert result.noise_floor.shape == (STEPS,)
    assert_close(result.noise_floor, torch.stack(floors), rtol=1e-10, atol=1e-12)
    assert "noise floor" in str(result)
    assert f"{float(result.noise_floor.median()):.3e}" in str(result)


def test_the_noise_floor_of_a_known_covariance():
    hessian = torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    landscape = NoisyQuadratic(hessian, 8, seed=0)  # D = H²
    sgd = StochasticGradientDescent(landscape, RATE, 4)
    result = compare(sgd, all_flows(landscape), START, STEPS, runs=3)
    assert_close(result.noise_floor, torch.full((STEPS,), RATE * (4.25 / 4) ** 0.5, dtype=torch.float64))


def test_seeds_repeat_and_differ(regression):
    sgd = StochasticGradientDescent(Regularised(regression, 0.1), RATE, 1)
    flows = {"GF": GradientFlow(sgd.landscape)}
    one, same, other = (compare(sgd, flows, START, STEPS, runs=2, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(one.mean, same.mean)
    assert torch.equal(one.errors["GF"], same.errors["GF"])
    assert not torch.equal(one.mean, other.mean)
    assert one.settings["seed"] == 0


def test_cost_of_a_stochastic_descent(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, {"GF": GradientFlow(regression)}, START, STEPS, runs=RUNS)
    assert result.cost[result.name]["grad"] == pytest.approx(RUNS * STEPS * 2 / 5)


def test_deterministic_descents_refuse_runs(regression):
    with pytest.raises(ValueError, match="runs is for stochastic descents, got 2 with HeavyBall"):
        compare(HeavyBall(regression, RATE, 0.9), all_flows(regression), START, STEPS, runs=2)


def test_saved_figures_of_the_noise(regression, tmp_path):
    from flows.trajectory import load_tensors

    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, {"GF": GradientFlow(regression)}, START, STEPS, runs=2)
    tensors, text = load_tensors(result.save(tmp_path), "comparison")
    assert text["runs"] == 2
    assert torch.equal(tensors["standard_error"], result.standard_error)
    assert torch.equal(tensors["noise_floor"], result.noise_floor)


def test_momentum_on_minibatches_is_refused_and_not_taken_from_rest():
    f, theta = TwoQuadratics(), torch.ones(2, dtype=torch.float64)
    for descent in (StochasticHeavyBall(f, 0.1, 0.9, 1), ScaledStochasticHeavyBall(f, 0.1, 0.5, 1)):
        with pytest.raises(UnsupportedError, match="carries a velocity"):
            compare(descent, [GradientFlow(f)], theta, 3)
