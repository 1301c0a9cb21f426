"""Parts of runs are no results: interrupted ones raise KeyboardInterrupt again, those that ended early say so."""

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch

from flows import (
    Flow,
    GradientDescent,
    GradientFlow,
    InterruptedRun,
    SingularModeError,
    StochasticGradientDescent,
    UnfinishedRunError,
    compare,
    descend,
    integrate,
)
from flows.ensembles import ensemble
from flows.invariants import check_batch, check_descent, check_order
from flows.observers import Drift, Loss
from flows.orders import global_order, one_step_order, settled_order
from landscapes import Landscape, LinearRegression, Quadratic, Rosenbrock

THETA0 = torch.tensor([1.0, -0.5], dtype=torch.float64)
BOWL = Quadratic(torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=torch.float64))
TIMES = [0.0, 0.1, 0.2, 0.3]


@dataclass(frozen=True)
class Stopping(Landscape):
    """A landscape whose n-th gradient is the user's Ctrl-C."""

    inner: Landscape
    calls: list
    n: int

    @property
    def dimension(self):
        return self.inner.dimension

    def loss(self, theta):
        return self.inner.loss(theta)

    def grad(self, theta):
        self.calls.append(None)
        if len(self.calls) == self.n:
            raise KeyboardInterrupt
        return self.inner.grad(theta)


def stopping(n):
    return Stopping(BOWL, [], n)


def gradients(program):
    """The number of gradients that a program takes."""
    landscape = stopping(0)
    program(landscape)
    return len(landscape.calls)


RATES = (0.1, 0.05)
LADDERS = {
    "one step": lambda f: one_step_order(lambda h: GradientFlow(f), lambda h: GradientDescent(f, h), THETA0, RATES),
    "global": lambda f: global_order(lambda h: GradientFlow(f), lambda h: GradientDescent(f, h), THETA0, RATES, 0.2),
    "settled": lambda f: settled_order(lambda h: GradientFlow(f), lambda h: GradientDescent(f, h), THETA0, RATES, 0.2),
    "check_order": lambda f: check_order(
        lambda h: GradientFlow(f), lambda h: GradientDescent(f, h), THETA0, 2, tolerance=1
    ),
    "check_descent": lambda f: check_descent(GradientFlow(f), THETA0, TIMES),
    "check_batch, flow": lambda f: check_batch(GradientFlow(f), torch.stack([THETA0, 2 * THETA0])),
    "check_batch, descent": lambda f: check_batch(GradientDescent(f, 0.1), torch.stack([THETA0, 2 * THETA0])),
}


@pytest.mark.parametrize("name", LADDERS)
def test_a_check_or_a_study_interrupted_at_any_gradient_is_interrupted(name):
    calls = gradients(LADDERS[name])
    for n in range(1, calls + 1, max(1, calls // 40)):
        with pytest.raises(KeyboardInterrupt):
            LADDERS[name](stopping(n))


def flow_run(landscape):
    return integrate(GradientFlow(landscape), THETA0, TIMES, method="euler", dt=0.1)


@pytest.mark.parametrize("run", [lambda f: descend(GradientDescent(f, 0.1), THETA0, 5), flow_run])
def test_an_interrupted_run_has_its_states_and_raises_again(run):
    found = run(stopping(3))
    assert found.status == "interrupted"
    assert not found.complete
    for check in (found.check_uninterrupted, found.check_finished):
        with pytest.raises(InterruptedRun, match="interrupted") as caught:
            check()
        assert caught.value.result is found
        assert isinstance(caught.value, KeyboardInterrupt)
    whole = run(stopping(0))
    assert whole.complete
    assert whole.check_uninterrupted() is whole.check_finished() is whole


def test_an_interrupt_at_the_last_output_is_one():
    class Last(Loss):
        def __call__(self, k, t, theta):
            if k == len(TIMES) - 1:
                raise KeyboardInterrupt
            return super().__call__(k, t, theta)

    run = integrate(GradientFlow(BOWL), THETA0, TIMES, observers=[Last(BOWL)])
    assert run.status == "interrupted"
    assert len(run.times) == len(TIMES)
    assert len(run.observations["loss"][0]) == len(TIMES) - 1


def test_a_diverged_run_is_an_outcome_for_those_who_ask():
    run = descend(GradientDescent(BOWL, 1e200), THETA0, 9)
    assert run.check_uninterrupted() is run
    with pytest.raises(
        UnfinishedRunError, match=r"SGD is incomplete \(diverged\): not finite .* use a smaller one"
    ) as caught:
        run.check_finished("SGD")
    assert caught.value.result is run
    both = descend(GradientDescent(Rosenbrock(), 0.01), torch.tensor([[1.0, 1.0], [1e3, 1.0]]).double(), 9)
    assert both.status == "finished"
    assert not both.complete
    with pytest.raises(UnfinishedRunError, match="1 of 2 members"):
        both.check_finished()


def test_the_errors_are_copied_with_what_they_hold():
    run = descend(GradientDescent(BOWL, 0.1), THETA0, 2)
    for error in (InterruptedRun("stopped", run), UnfinishedRunError("ended", run)):
        for again in (pickle.loads(pickle.dumps(error)), copy.copy(error)):
            assert (type(again), str(again)) == (type(error), error.sentence)
            assert torch.equal(again.result.theta, run.theta)


REGRESSION = LinearRegression(torch.eye(4, 2, dtype=torch.float64), torch.ones(4, dtype=torch.float64))


def test_an_ensemble_interrupted_or_lost_is_no_ensemble():
    sgd, calls = StochasticGradientDescent(REGRESSION, 0.1, 2), []

    def look(theta):
        calls.append(None)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return theta

    part = ensemble(sgd, THETA0, 4, paths=6, block=3, seed=0, observables={"x": look})
    for check in (part.check_uninterrupted, part.check_finished):
        with pytest.raises(InterruptedRun) as caught:
            check()
        assert caught.value.result is part
    whole = ensemble(sgd, THETA0, 4, paths=6, seed=0, observables={"x": lambda theta: theta})
    assert whole.check_uninterrupted() is whole.check_finished() is whole
    lost = ensemble(
        StochasticGradientDescent(REGRESSION, 1e200, 2), THETA0, 4, paths=6, seed=0, observables={"x": look}
    )
    assert lost.check_uninterrupted() is lost
    if lost.status != "finished":
        with pytest.raises(UnfinishedRunError, match="SGD is incomplete"):
            lost.check_finished("SGD")


def test_a_comparison_interrupted_anywhere_raises_when_it_is_asked():
    flows = ("one", "two")

    def comparison(landscape):
        both = {name: GradientFlow(landscape) for name in flows}
        return compare(GradientDescent(landscape, 0.1), both, THETA0, 3, method="euler", dt=0.1)

    whole = comparison(stopping(0))
    assert whole.check_uninterrupted() is whole
    calls = gradients(comparison)
    for n in range(1, calls + 1):
        try:
            part = comparison(stopping(n))
        except KeyboardInterrupt:
            continue
        assert part.descent.status != "interrupted" or not part.rows
        with pytest.raises(InterruptedRun) as caught:
            part.check_uninterrupted()
        assert caught.value.result is part


def test_a_comparison_stores_no_run_that_was_interrupted(tmp_path):
    landscape = stopping(5)
    flows = {"one": GradientFlow(landscape)}
    part = compare(GradientDescent(landscape, 0.1), flows, THETA0, 3, method="euler", dt=0.1, folder=tmp_path)
    assert part.rows["one"].trajectory.status == "interrupted"
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["gradientdescent"]


def test_a_batch_whose_members_diverge_together_and_alone_is_a_batch():
    # Rosenbrock from far away at a large rate: the second member ends early, alone and in the batch
    check_batch(GradientDescent(Rosenbrock(), 0.01), torch.tensor([[1.0, 1.0], [1e3, 1.0]], dtype=torch.float64), 9)


@dataclass(frozen=True)
class Walled(Flow):
    """Gradient flow that is not defined near the minimum."""

    landscape: Landscape

    def velocity(self, t, state):
        near = state.norm(dim=-1) < 0.8
        if bool(near.any()):
            raise SingularModeError("a wall", near)
        return -self.landscape.grad(state)


def test_a_flow_that_ends_before_its_time_has_not_been_checked():
    with pytest.raises(UnfinishedRunError, match=r"Walled is incomplete \(singular mode\): a wall"):
        check_descent(Walled(BOWL), THETA0, TIMES)


def test_the_drift_of_an_interrupted_run_is_interrupted():
    landscape = stopping(4)
    run = descend(GradientDescent(BOWL, 0.1), THETA0, 5, observers=[Drift(landscape, 0.1)])
    assert run.status == "interrupted"
