"""compare with flows on the descent's mini-batches: which can be, where their single steps start, and when."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from flows import (
    GradientDescent,
    LangevinFlow,
    MinibatchDescent,
    MomentumModifiedEquation,
    NoisyModifiedEquation,
    ScaledStochasticHeavyBall,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    Stratonovich,
    compare,
    integrate,
    minibatch_path,
)
from landscapes import LinearRegression
from landscapes.noise import MinibatchNoise

RATE, STEPS = 0.125, 6
START = torch.tensor([1.0, -0.7], dtype=torch.float64)


@dataclass(frozen=True)
class OwnDescent(MinibatchDescent):
    """SGD as a user writes it."""

    landscape: LinearRegression
    h: float
    batch_size: int
    sampling: str = "subset"

    def start(self, theta0):
        return theta0, self.first_order(theta0)

    def step(self, state, k, generator):
        theta, order = state
        index, order = self.sampler.draw(order, k, generator)
        return theta - self.h * self.landscape.batch_grad(theta, index), order

    def position(self, state):
        return state[0]

    def full_batch(self):
        return GradientDescent(self.landscape, self.h)


class AnotherClock(OwnDescent):
    def elapsed(self, k, state):
        return 2 * k * self.h


class AnotherGradient(OwnDescent):
    couples = False


@pytest.mark.parametrize("batch_size", [2, 4, 6])
def test_noise_of_single_steps_is_not_coupled_to_epochs(batch_size, regression):
    """√(hc) of a single step on increments scaled for an epoch's c would be off by √((N − b)/N)."""
    sgd = StochasticGradientDescent(regression, RATE, batch_size, "epoch")
    flow = NoisyModifiedEquation(regression, RATE, MinibatchNoise(regression, batch_size, "epoch"))
    row = compare(sgd, {"noise": flow}, START, STEPS, coupled=True, dt=RATE).rows["noise"]
    if batch_size == 6:  # no noise at all
        assert float(row.errors.max()) < 1e-12
    else:
        assert row.trajectory is None
        assert "reshuffled epochs" in row.notes[0]


def test_motions_that_are_as_many_as_the_examples_are_not_taken_for_them(normal):
    landscape = LinearRegression(normal(0, 6, 6), normal(1, 6))  # d = N
    sgd = StochasticGradientDescent(landscape, RATE, 2)
    row = compare(sgd, {"Langevin": LangevinFlow(landscape, 0.1)}, normal(2, 6), 2, coupled=True).rows["Langevin"]
    assert row.trajectory is None
    assert "coupled=False" in row.notes[0]


def test_the_learning_rate_of_a_wrapped_flow_must_agree(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    wrapped = Stratonovich(StochasticModifiedEquation(regression, 4 * RATE, 2))
    with pytest.raises(ValueError, match=r"h of Stratonovich is 0\.5, of the descent 0\.125"):
        compare(sgd, [wrapped], START, STEPS)


def test_a_wrapped_momentum_flow_goes_on_from_the_descents_velocity(regression):
    descent = ScaledStochasticHeavyBall(regression, RATE, 1.0, 2)
    flow = MomentumModifiedEquation(regression, RATE, 1.0, 2, order=2)
    result = compare(descent, {"plain": flow, "wrapped": Stratonovich(flow)}, START, STEPS, coupled=True)
    assert_close(result.one_step["wrapped"], result.one_step["plain"])  # no column of its noise moves another
    assert_close(result.errors["wrapped"], result.errors["plain"])


@pytest.mark.parametrize("wrap", [lambda flow: flow, Stratonovich])
def test_momentum_beside_a_descent_without_has_no_single_steps(wrap, regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    flow = wrap(MomentumModifiedEquation(regression, RATE, 1.0, 2))
    result = compare(sgd, {"momentum": flow}, START, STEPS, coupled=True)
    assert bool(result.one_step["momentum"].isnan().all())
    assert "no velocity to start from" in str(result)


def test_single_steps_are_taken_when_the_descent_takes_them(regression):
    sgd = StochasticGradientDescent(regression, RATE, 2)
    flow = StochasticModifiedEquation(regression, RATE, 2, schedule=lambda t: 1 / (1 + 3 * t))
    result = compare(sgd, {"slowing": flow}, START, STEPS, coupled=True, dt=RATE / 2, seed=3)
    path = minibatch_path(sgd, START, STEPS, seed=3, halvings=2)
    theirs = result.descent.theta
    ours = [integrate(flow, theirs[k], result.times[k : k + 2], dt=RATE / 4, path=path).theta[-1] for k in range(STEPS)]
    assert_close(result.one_step["slowing"], (torch.stack(ours) - theirs[1:]).norm(dim=-1))


def test_a_descent_of_ones_own_couples(regression):
    """Euler's method with dt = h along its mini-batches is the descent itself."""
    flow = StochasticModifiedEquation(regression, RATE, 2, sampling="subset")
    row = compare(OwnDescent(regression, RATE, 2), {"sde": flow}, START, STEPS, coupled=True, dt=RATE).rows["sde"]
    assert float(row.errors.max()) < 1e-12
    assert float(row.mean[-1].sub(START).norm()) > 0.1  # neither stands still
    with pytest.raises(ValueError, match="batch_size"):
        OwnDescent(regression, RATE, 7)


@pytest.mark.parametrize("descent", [AnotherClock, AnotherGradient])
def test_a_descent_on_another_clock_or_gradient_does_not_couple(descent, regression):
    with pytest.raises(TypeError, match=descent.__name__):
        minibatch_path(descent(regression, RATE, 2), START, STEPS)
