"""compare with a stochastic descent: the mean, its standard error, the full-batch step and the noise floor."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from flows import (
    SVRG,
    Clock,
    ControlledGradientDescent,
    Flow,
    GradientFlow,
    HeavyBall,
    ModifiedFlow,
    PrincipalFlow,
    ScaledStochasticHeavyBall,
    ScheduledStochasticGradientDescent,
    StepSchedule,
    StochasticGradientDescent,
    StochasticHeavyBall,
    compare,
    descend,
    integrate,
)
from landscapes import Landscape, LinearRegression, NoisyQuadratic, Regularised

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


def test_no_rounding_of_the_mean_over_runs_at_the_start(regression, normal):
    """On the figure's logarithmic axis it would be sixteen decades below the rest."""
    sgd = StochasticGradientDescent(regression, RATE, 2)
    theta0 = normal(2, 8, 2)
    result = compare(sgd, {"GF": GradientFlow(regression)}, theta0, 1, runs=7)
    assert bool((result.errors["GF"][0] == 0).all())
    assert torch.equal(result.mean[0], theta0)


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
    from flows.engines.storage import load_tensors

    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, {"GF": GradientFlow(regression)}, START, STEPS, runs=2)
    tensors, text = load_tensors(result.save(tmp_path), "comparison")
    assert text["runs"] == 2
    assert torch.equal(tensors["standard_error"], result.standard_error)
    assert torch.equal(tensors["noise_floor"], result.noise_floor)


@dataclass(frozen=True)
class Slaved(Flow):
    """Gradient flow that says that it models heavy ball without a velocity, so that its single steps are compared."""

    landscape: Landscape

    @property
    def declared_clock(self):
        return Clock(rule="heavy ball", momentum=0.9, free=True)

    def velocity(self, t, state):
        return -self.landscape.grad(state)


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("kind", [StochasticHeavyBall, ScaledStochasticHeavyBall])
def test_momentum_on_minibatches_takes_full_batch_steps_with_its_velocity(kind, runs, regression):
    descent = kind(regression, 0.3, 0.9, 2)
    result = compare(descent, {"GF": Slaved(regression)}, START, STEPS, runs=runs, seed=1, **TIGHT)
    first = result.descent.theta[:, 0] if runs > 1 else result.descent.theta
    step = torch.linalg.matrix_exp(-0.3 * regression.hessian(START))
    back = torch.cat([first[:1], first[:-1]])[:-1]  # where it was a step ago
    starts, grads = first[:-1], regression.grad(first[:-1])
    if kind is StochasticHeavyBall:
        ends = starts + 0.9 * (starts - back) - 0.3 * grads
    else:
        ends = starts + (1 - 0.3 * 0.9) * (starts - back) - 0.3**2 * grads
    pull = torch.linalg.solve(regression.hessian(START), grads.mT).mT
    exact = starts - pull + pull @ step
    assert_close(result.one_step["GF"], (exact - ends).norm(dim=-1), rtol=1e-6, atol=1e-9)


def test_descents_whose_step_depends_on_more_than_theta(regression):
    flow = {"GF": GradientFlow(regression)}
    svrg = compare(SVRG(regression, RATE, 2, period=2), flow, START, STEPS)
    assert torch.equal(svrg.noise_floor == 0, torch.tensor([True, False] * 2))
    rate = StepSchedule((1.5 * RATE,), 0.5)
    scheduled = compare(ScheduledStochasticGradientDescent(regression, RATE, 2, rate), flow, START, STEPS, runs=2)
    plain = compare(StochasticGradientDescent(regression, RATE, 2), flow, START, STEPS, runs=2)
    assert_close(scheduled.noise_floor[:3], plain.noise_floor[:3] * torch.tensor([1, 1, 0.5], dtype=torch.float64))
    starts = scheduled.descent.theta[:-1, 0]
    rates = scheduled.times.diff()[:, None]
    assert_close(rates[:, 0], RATE * torch.tensor([1, 1, 0.5, 0.5], dtype=torch.float64))
    hessian = regression.hessian(START)
    pull = torch.linalg.solve(hessian, regression.grad(starts).mT).mT
    exact = torch.stack([p @ torch.linalg.matrix_exp(-r * hessian) - p for p, r in zip(pull, rates, strict=True)])
    gap = (exact + rates * regression.grad(starts)).norm(dim=-1)
    assert_close(scheduled.one_step["GF"], gap, rtol=1e-5, atol=1e-9)


def test_controlled_descents_take_mean_steps_with_their_controls(regression):
    descent = ControlledGradientDescent(regression, RATE, 1, decay=(0.5, 0.5))
    result = compare(descent, {"GF": GradientFlow(regression)}, START, 40, seed=4, **TIGHT)
    state, generator = descent.start(START), torch.Generator().manual_seed(4)
    for k in range(40):
        mean = state.theta - RATE * state.control * regression.grad(state.theta)
        end = integrate(GradientFlow(regression), state.theta, [0.0, RATE], **TIGHT).theta[-1]
        assert_close(result.one_step["GF"][k], (end - mean).norm(), rtol=1e-5, atol=1e-9)
        state = descent.step(state, k, generator)
    assert float(state.control.min()) < 1  # the controls had something to say


def test_a_complex_start_has_a_real_noise_floor(regression):
    start = torch.complex(START, 0.1 * START)
    result = compare(StochasticGradientDescent(regression, RATE, 2), all_flows(regression), start, 2)
    assert result.noise_floor.dtype == torch.float64
    assert "noise floor" in str(result)
