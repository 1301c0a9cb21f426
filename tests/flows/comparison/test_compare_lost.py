"""compare where runs or batch members leave the finite numbers: no mean, loss or bar is made of what is frozen."""

import subprocess
import sys
from dataclasses import dataclass

import torch
from torch.testing import assert_close

from flows import (
    GradientDescent,
    GradientFlow,
    NoisyGradientDescent,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    compare,
)
from flows.flow import Flow, SameNoise
from landscapes import Landscape, LinearRegression, QuarticWell
from landscapes.noise import ConstantNoise

RATE, STEPS, RUNS = 0.125, 4, 5
START = torch.tensor([1.0, -0.7], dtype=torch.float64)


class Ends:
    """NaN for the first member after the time given."""

    def __init__(self, after):
        self.after = after

    def __call__(self, t, velocity):
        if float(t) <= self.after or len(velocity) < 2:
            return velocity
        return torch.cat([torch.full_like(velocity[:1], torch.nan), velocity[1:]])


@dataclass(frozen=True)
class EndingEquation(SameNoise):
    """A stochastic flow whose first run ends."""

    flow: StochasticModifiedEquation
    ends: Ends

    def velocity(self, t, state):
        velocity = self.flow.velocity(t, state)
        return self.ends(t, velocity) if len(velocity) == RUNS else velocity


@dataclass(frozen=True)
class EndingFlow(Flow):
    """Gradient flow whose first member ends."""

    inner: Landscape
    ends: Ends

    def velocity(self, t, state):
        velocity = -self.inner.grad(state)
        return self.ends(t, velocity) if len(velocity) == RUNS else velocity


def test_a_run_that_ends_between_the_times_counts_no_more(regression):
    """It is frozen at a state from before the next output time, which is not that time's."""
    sgd = StochasticGradientDescent(regression, RATE, 2)
    flow = EndingEquation(StochasticModifiedEquation(regression, RATE, 2), Ends(2.4 * RATE))
    result = compare(sgd, {"SDE": flow}, START, STEPS, runs=RUNS)
    row, weak = result.rows["SDE"], result.rows["SDE"].weak["loss"]
    assert row.trajectory.alive.tolist() == [False, *[True] * (RUNS - 1)]
    for values in (row.errors, row.losses, weak.mean, weak.difference, weak.standard_error, weak.integration):
        assert values.isfinite().tolist() == [True] * 3 + [False] * 2
    assert row.integration.isfinite().tolist() == [True] * 3 + [False] * 2


def test_a_member_that_ends_between_the_times_counts_no_more(regression, normal):
    theta0 = START + 0.1 * normal(2, RUNS, 2)
    flow = EndingFlow(regression, Ends(2.4 * RATE))
    result = compare(GradientDescent(regression, RATE), {"GF": flow}, theta0, STEPS, method="euler", dt=RATE / 8)
    for values in (result.errors["GF"], result.losses["GF"]):
        assert values[:, 0].isfinite().tolist() == [True] * 3 + [False] * 2
        assert bool(values[:, 1:].isfinite().all())


def test_means_over_runs_of_the_descent_end_with_the_first_that_is_lost():
    landscape = QuarticWell(S=1.0, Q=1.0)
    descent = NoisyGradientDescent(landscape, 0.5, ConstantNoise(torch.full((1, 1), 1.5, dtype=torch.float64)))
    start = torch.tensor([0.1], dtype=torch.float64)
    phi = {"x": lambda theta: theta[..., 0].clamp(-9, 9)}
    result = compare(descent, {"GF": GradientFlow(landscape)}, start, 12, runs=RUNS, observables=phi, rtol=1e-4)
    alive = result.descent.alive
    assert 0 < int(alive.sum()) < RUNS
    runs = result.descent.theta
    first = int((runs[1:] == runs[:-1]).all(dim=-1).any(dim=1).nonzero()[0]) + 1
    for values in (result.losses[result.name], *result.observed["x"], result.weak_errors["GF"]["x"]):
        assert bool(values[first:].isnan().all())
        assert not bool(values[:first].isnan().any())
    assert_close(result.observed["x"][0][:first], phi["x"](runs[:first]).mean(dim=1))


class Watched(LinearRegression):
    """Notes how many states its loss is asked for at once, and in all."""

    def loss(self, theta):
        self.asked.append(theta[..., 0].numel())
        return super().loss(theta)


def test_losses_are_taken_once_and_one_time_after_the_other(normal):
    """A loss holds N numbers a state: over all times and runs at once that is no longer small."""
    landscape = Watched(normal(0, 6, 2), normal(1, 6))
    landscape.asked = []
    sgd = StochasticGradientDescent(landscape, RATE, 2)
    flows = {"SDE": StochasticModifiedEquation(landscape, RATE, 2), "GF": GradientFlow(landscape)}
    compare(sgd, flows, START, STEPS, runs=RUNS, dt=RATE)
    assert max(landscape.asked) == RUNS
    assert sum(landscape.asked) == (STEPS + 1) * (RUNS + 2 * RUNS + 2)  # descent, equation and flow, each also tighter


def test_a_large_observable_does_not_leave_its_memory_behind():
    """Small results held between large freed pieces would pin them, N numbers for every run and time."""
    script = """
import resource, torch
from flows.comparison.reference import real_loss
from landscapes import LinearRegression

draw = torch.Generator().manual_seed(0)
landscape = LinearRegression(*(torch.randn(4000, *s, generator=draw, dtype=torch.float64) for s in ((2,), ())))
theta = torch.ones(100, 100, 2, dtype=torch.float64)
real_loss(landscape, theta[:2])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
real_loss(landscape, theta)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""
    grown = subprocess.run([sys.executable, "-W", "ignore", "-c", script], capture_output=True, text=True, check=True)
    assert float(grown.stdout) < 100  # MiB; all times at once are 305
