"""Schedules and the descents that follow them: values, the clock, SGD at a constant rate, what decays how, refusals."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import GradientDescent, StochasticGradientDescent, descend
from flows.descents.scheduled import ScheduledGradientDescent, ScheduledStochasticGradientDescent
from flows.models.stochastic import StochasticModifiedEquation
from flows.schedules import (
    ConstantSchedule,
    CosineSchedule,
    CyclicalSchedule,
    ExponentialSchedule,
    StepSchedule,
    WarmUp,
    multiple_at,
)
from landscapes import NoisyQuadratic, Quadratic, Rosenbrock, UnsupportedError
from landscapes.toys.finite_sums import FINITE_SUMS

GENERATOR = torch.Generator()
samplings = pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])
SCHEDULES = {
    "constant": ConstantSchedule(0.7),
    "steps": StepSchedule([1.0, 2.5], 0.2),
    "cosine": CosineSchedule(4.0, 0.1),
    "exponential": ExponentialSchedule(2.0),
    "warm-up": WarmUp(1.5, CosineSchedule(4.0, 0.1), 0.05),
    "cyclical": CyclicalSchedule(0.8, 0.1),
}
schedules = pytest.mark.parametrize("name", SCHEDULES)


def oracle(name, t):
    """The same schedules from numpy's interpolation and plain formulas."""
    cosine = lambda s: 0.1 + 0.9 * (1 + np.cos(np.pi * np.minimum(s, 4.0) / 4)) / 2  # noqa: E731
    return {
        "constant": lambda: np.full_like(t, 0.7),
        "steps": lambda: np.select([t < 1, t < 2.5], [1.0, 0.2], 0.04),
        "cosine": lambda: cosine(t),
        "exponential": lambda: np.exp(-t / 2),
        "warm-up": lambda: np.where(t < 1.5, np.interp(t, [0, 1.5], [0.05, 1.0]), cosine(t - 1.5)),
        "cyclical": lambda: np.interp(t, 0.8 * np.arange(20), np.tile([0.1, 1.0], 10)),
    }[name]()


@schedules
def test_values(name):
    times = np.concatenate([np.linspace(0, 6, 121), [1.0, 1.5, 2.5, 4.0, 5.5]])
    values = np.array([SCHEDULES[name](float(t)) for t in times])
    np.testing.assert_allclose(values, oracle(name, times), rtol=1e-12, atol=1e-12)
    assert all(isinstance(SCHEDULES[name](float(t)), float) for t in times)


@schedules
@given(t=st.floats(0, 1e3))
def test_every_schedule_is_positive_and_at_most_one(name, t):
    assert 0 < multiple_at(SCHEDULES[name], t) <= 1
    assert multiple_at(SCHEDULES[name], torch.tensor(t, dtype=torch.float64)) == SCHEDULES[name](t)


@schedules
def test_schedules_are_values(name):
    schedule = SCHEDULES[name]
    assert schedule == dataclasses.replace(schedule)
    assert hash(schedule) == hash(dataclasses.replace(schedule))
    with pytest.raises(dataclasses.FrozenInstanceError):
        schedule.value = 1.0
    milestones = [1.0, 2.0]
    steps = StepSchedule(milestones)
    milestones.append(0.5)
    assert steps.milestones == (1.0, 2.0)


@samplings
def test_a_constant_schedule_is_sgd_to_the_last_bit(sampling, dtype, device, normal):
    landscape, theta0 = FINITE_SUMS["linear-regression"](), normal(0, 3, 2, 3, dtype=dtype).to(device)
    scheduled = ScheduledStochasticGradientDescent(landscape, 0.07, 5, ConstantSchedule(), sampling)
    plain = StochasticGradientDescent(landscape, 0.07, 5, sampling)
    runs = [descend(descent, theta0, 9, seed=2) for descent in (scheduled, plain)]
    assert torch.equal(runs[0].theta, runs[1].theta)
    assert_close(runs[0].times, runs[1].times, rtol=1e-12, atol=0)  # a sum of rates against a product
    assert runs[0].cost == runs[1].cost
    assert scheduled.sampler == plain.sampler
    full = ScheduledGradientDescent(landscape, 0.07, ConstantSchedule())
    assert torch.equal(descend(full, theta0, 5).theta, descend(GradientDescent(landscape, 0.07), theta0, 5).theta)
    assert scheduled.full_batch() == full


@schedules
@samplings
def test_every_step_is_torch_optim_at_the_rate_of_its_time(name, sampling, normal):
    landscape, theta0, h = FINITE_SUMS["linear-regression"](), normal(1, 3), 0.3
    descent = ScheduledStochasticGradientDescent(landscape, h, 4, SCHEDULES[name], sampling)
    run = descend(descent, theta0, 25, seed=3)
    generator, order, time = torch.Generator().manual_seed(3), torch.arange(12), 0.0
    parameter = torch.nn.Parameter(theta0.clone())
    optimizer = torch.optim.SGD([parameter], lr=h)
    for k in range(25):
        assert run.times[k].item() == time
        rate = h * SCHEDULES[name](time)
        index, order = descent.sampler.draw(order, k, generator)
        parameter.grad = landscape.batch_grad(parameter.detach(), index)
        optimizer.param_groups[0]["lr"] = rate
        optimizer.step()
        assert torch.equal(run.theta[k + 1], parameter.detach())
        time += rate
    assert run.cost["grad"] == pytest.approx(25 * 4 / 12)


def test_full_batch_runs_on_the_clock_of_the_rates():
    """On a quadratic a run is a product of (1 − h_k λ), and the rates sum to the times."""
    eigenvalues = torch.tensor([1.5, 0.2], dtype=torch.float64)
    descent = ScheduledGradientDescent(Quadratic(torch.diag(eigenvalues)), 0.4, SCHEDULES["cyclical"])
    run = descend(descent, torch.ones(3, 2, dtype=torch.float64), 12)
    rates = run.times.diff()
    assert_close(rates, torch.tensor([0.4 * SCHEDULES["cyclical"](float(t)) for t in run.times[:-1]]).to(rates))
    assert_close(run.theta[-1], torch.prod(1 - rates[:, None] * eigenvalues, dim=0).expand(3, 2))
    assert run.cost["grad"] == 3 * 12


def test_an_exponential_in_time_is_hyperbolic_in_steps():
    """dt/dk = h e^{−t/τ} gives e^{−t/τ} = 1/(1 + hk/τ): a rate of 1/k, whose relative error O(h/τ) halves with h."""
    errors = []
    for h in (0.1, 0.05, 0.025):
        steps = round(10 / h)
        descent = ScheduledGradientDescent(Quadratic(torch.eye(1)), h, ExponentialSchedule(2.0))
        run = descend(descent, torch.ones(1), steps)
        multiple = torch.exp(-run.times / 2)
        exact = 1 / (1 + h * torch.arange(steps + 1, dtype=run.times.dtype) / 2)
        errors.append(float(((multiple - exact) / exact).abs().max()))
    assert errors[0] < 0.05
    assert errors[0] / errors[1] == pytest.approx(2, abs=0.1)
    assert errors[1] / errors[2] == pytest.approx(2, abs=0.1)


def test_a_cosine_that_ends_at_zero_is_approached_and_not_reached():
    """T − t ≈ 4T²/(π² h k): twice the steps leave half the time."""
    descent = ScheduledGradientDescent(Quadratic(torch.eye(1)), 0.1, CosineSchedule(2.0))
    run = descend(descent, torch.ones(1), 4000)
    left = 2.0 - run.times
    assert float(left.min()) > 0
    assert float(left[2000] / left[4000]) == pytest.approx(2, abs=0.05)
    assert float(left[4000]) == pytest.approx(4 * 4 / (math.pi**2 * 0.1 * 4000), rel=0.05)


def test_the_noise_of_a_state_and_refusal_where_time_is_unknown():
    hessian = torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    landscape = NoisyQuadratic(hessian, 8, seed=0)  # tr D = tr H²
    descent = ScheduledStochasticGradientDescent(landscape, 0.2, 4, ExponentialSchedule(0.5))
    state = descent.start(torch.ones(3, 2, dtype=torch.float64))
    for k in range(4):
        expected = 0.2 * math.exp(-state.time / 0.5) * (4.25 / 4) ** 0.5
        assert_close(descent.noise_at(state), torch.full((3,), expected, dtype=torch.float64))
        assert descent.rate(state.time) == pytest.approx(0.2 * math.exp(-state.time / 0.5))
        state = descent.step(state, k, GENERATOR)
    with pytest.raises(UnsupportedError, match=r"depends on the time.*use noise_at"):
        descent.step_noise(torch.ones(2))


def test_the_equation_reads_the_same_schedule():
    landscape = FINITE_SUMS["linear-regression"]()
    for schedule in SCHEDULES.values():
        flow = StochasticModifiedEquation(landscape, 0.2, 4, schedule=schedule)
        descent = ScheduledStochasticGradientDescent(landscape, 0.2, 4, schedule)
        for t in (0.0, 0.7, 3.0):
            assert flow.learning_rate(torch.tensor(t, dtype=torch.float64)) == descent.rate(t)


@samplings
def test_seeds_and_members(sampling, normal):
    descent = ScheduledStochasticGradientDescent(
        FINITE_SUMS["linear-regression"](), 0.1, 2, SCHEDULES["warm-up"], sampling
    )
    theta0 = normal(4, 6, 3)
    run = descend(descent, theta0, 8, seed=1)
    assert torch.equal(run.theta, descend(descent, theta0, 8, seed=1).theta)
    assert not torch.equal(run.theta, descend(descent, theta0, 8, seed=2).theta)
    nested = descend(descent, theta0.reshape(2, 3, 3), 8, seed=1)
    assert torch.equal(nested.theta.reshape(9, 6, 3), run.theta)
    assert torch.equal(nested.times, run.times)


@pytest.mark.parametrize("kind", [ScheduledGradientDescent, ScheduledStochasticGradientDescent])
@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (0.0, ValueError, r"schedule at t = 0\.2 must be positive and finite, got 0"),
        (-0.5, ValueError, r"schedule at t = 0\.2 must be positive and finite, got -0\.5"),
        (math.inf, ValueError, r"schedule at t = 0\.2 must be positive and finite, got inf"),
        (math.nan, ValueError, r"schedule at t = 0\.2 must be positive and finite, got nan"),
        ("fast", TypeError, r"schedule at t = 0\.2 must be a positive real number, got 'fast'"),
        (None, TypeError, r"schedule at t = 0\.2 must be a positive real number"),
    ],
)
def test_a_schedule_is_checked_where_it_is_used(kind, value, error, message):
    arguments = {"batch_size": 2} if kind is ScheduledStochasticGradientDescent else {}
    descent = kind(FINITE_SUMS["linear-regression"](), 0.1, schedule=lambda t: value if t > 0.15 else 1.0, **arguments)
    assert len(descend(descent, torch.zeros(3), 2).times) == 3
    with pytest.raises(error, match=message):
        descend(descent, torch.zeros(3), 3)


def test_a_schedule_may_answer_in_tensors():
    descent = ScheduledGradientDescent(Quadratic(torch.eye(1)), 0.1, lambda t: torch.tensor([0.5]))
    assert_close(descend(descent, torch.ones(1), 2).times, torch.tensor([0.0, 0.05, 0.1], dtype=torch.float64))


REFUSED = [
    (lambda: ConstantSchedule(0.0), ValueError, "value must be positive"),
    (lambda: StepSchedule([2.0, 1.0]), ValueError, "milestones must increase strictly"),
    (lambda: StepSchedule([1.0, 1.0]), ValueError, "milestones must increase strictly"),
    (lambda: StepSchedule([0.0]), ValueError, r"milestones\[0\] must be positive"),
    (lambda: StepSchedule(3.0), TypeError, "milestones must be a sequence of times, got 3.0"),
    (lambda: StepSchedule([1.0], 0.0), ValueError, "factor must be positive"),
    (lambda: CosineSchedule(-1.0), ValueError, "duration must be positive"),
    (lambda: CosineSchedule(1.0, -0.1), ValueError, "final must be at least zero, got -0.1"),
    (lambda: ExponentialSchedule(0.0), ValueError, "timescale must be positive"),
    (lambda: WarmUp(0.0), ValueError, "duration must be positive"),
    (lambda: WarmUp(1.0, 0.5), TypeError, "schedule must be a function of time"),
    (lambda: WarmUp(1.0, initial=0.0), ValueError, "initial must be positive"),
    (lambda: CyclicalSchedule(1.0, 0.5, 0.1), ValueError, r"low must be at most high, 0\.1, got 0\.5"),
    (lambda: CyclicalSchedule(1.0, 0.0), ValueError, "low must be positive"),
    (lambda: CyclicalSchedule(True, 0.1), TypeError, "half_period must be a positive real number"),
    (lambda: ScheduledGradientDescent(Rosenbrock(), 0.1, 0.5), TypeError, "schedule must be a function of time"),
    (lambda: ScheduledGradientDescent(Rosenbrock(), 0.0, max), ValueError, "h must be positive"),
    (lambda: ScheduledStochasticGradientDescent(Rosenbrock(), 0.1, 1, max), TypeError, "landscape"),
    (
        lambda: ScheduledStochasticGradientDescent(FINITE_SUMS["two-quadratics"](), 0.1, 3, max),
        ValueError,
        "batch_size must be at most the number of examples, 2, got 3",
    ),
    (
        lambda: ScheduledStochasticGradientDescent(FINITE_SUMS["two-quadratics"](), 0.1, 1, None),
        TypeError,
        "schedule must be a function of time",
    ),
]


@pytest.mark.parametrize(("build", "error", "message"), REFUSED)
def test_refusals(build, error, message):
    with pytest.raises(error, match=message):
        build()
