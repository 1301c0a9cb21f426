"""compare with stochastic flows: what it is given, checked early, and what it then asks of the landscape."""

from collections import namedtuple

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from flows import (
    SVAG,
    CosineSchedule,
    GradientDescent,
    GradientFlow,
    ScheduledStochasticGradientDescent,
    StepSchedule,
    StochasticDescent,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    compare,
)
from flows.engines.storage import load_tensors
from landscapes import LinearRegression

RATE, STEPS = 0.125, 4
START = torch.tensor([1.0, -0.7], dtype=torch.float64)


@pytest.fixture
def sgd(regression):
    return StochasticGradientDescent(regression, RATE, 2)


@pytest.fixture
def sde(regression):
    return StochasticModifiedEquation(regression, RATE, 2)


@pytest.mark.parametrize("phi", [lambda x: x[..., 0] > 0.5, lambda x: (x[..., 0] > 0.5).int()])
def test_probabilities_are_means_of_truth_values(phi, sgd, sde):
    result = compare(sgd, {"SDE": sde}, START, STEPS, runs=5, observables={"x > ½": phi})
    inside = (result.descent.theta[..., 0] > 0.5).double()
    assert 0 < float(inside.mean()) < 1
    assert_close(result.observed["x > ½"][0], inside.mean(dim=1))
    ours = (result.rows["SDE"].trajectory.theta[..., 0] > 0.5).double()
    assert_close(result.weak_errors["SDE"]["x > ½"], ours.mean(dim=1) - inside.mean(dim=1))


class Untouched(LinearRegression):
    """Must not be asked for a mini-batch."""

    def batch_grad(self, theta, index):
        raise AssertionError("the descent has begun")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"observables": {"θ": lambda x: x}}, "observable 'θ' must give a real tensor of shape"),
        ({"method": "miltsein"}, "method must be one of .*'milstein', got 'miltsein'"),
        ({"method": "magic"}, "method must be one of"),
        ({"dt": RATE / 2.5}, "dt must divide every step of the descent"),
        ({"dt": 2 * RATE}, "dt must divide every step of the descent"),
        ({"steps": 0}, "steps must be at least 1"),
    ],
)
def test_what_is_out_of_place_is_told_before_the_descent_runs(arguments, words, normal):
    landscape = Untouched(normal(0, 6, 2), normal(1, 6))
    sgd, sde = StochasticGradientDescent(landscape, RATE, 2), StochasticModifiedEquation(landscape, RATE, 2)
    with pytest.raises(ValueError, match=words):
        compare(sgd, [sde], START, **{"steps": STEPS, "runs": 2, **arguments})


@pytest.mark.parametrize("level", [1, 3, 16])
def test_svag_has_a_dt_of_its_own(level, regression, sde):
    descent = SVAG(regression, RATE, 2, level)
    result = compare(descent, {"SDE": sde}, START, STEPS, runs=2)
    assert result.settings["dt"] == RATE / level / 8
    chosen = compare(descent, {"SDE": sde}, START, STEPS, runs=2, dt=RATE / level / 8)
    assert torch.equal(result.rows["SDE"].trajectory.theta, chosen.rows["SDE"].trajectory.theta)


def test_rates_that_change(regression):
    for schedule, words in ((StepSchedule((RATE,), 0.5), None), (CosineSchedule(1.0), "StepSchedule")):
        descent = ScheduledStochasticGradientDescent(regression, RATE, 2, schedule)
        sde = StochasticModifiedEquation(regression, RATE, 2, schedule=schedule)
        if words is None:
            assert compare(descent, [sde], START, STEPS, runs=2).settings["dt"] == RATE / 16
        else:
            with pytest.raises(ValueError, match=words):
                compare(descent, [sde], START, STEPS, runs=2)


def test_numpy_numbers_can_be_saved(sgd, sde, tmp_path):
    result = compare(
        sgd,
        {"SDE": sde, "GF": GradientFlow(sgd.landscape)},
        START,
        STEPS,
        runs=np.int64(2),
        seed=np.int64(3),
        dt=np.float32(RATE / 4),
        rtol=np.float32(1e-5),
    )
    text = load_tensors(result.save(tmp_path), "comparison")[1]
    assert (text["runs"], text["settings"]["seed"], text["settings"]["dt"]) == (2, 3, RATE / 4)


def test_complex_starts_are_not_for_stochastic_flows(regression, sde):
    flows = {"SDE": sde, "GF": GradientFlow(regression)}
    start = START.to(torch.complex128)
    result = compare(GradientDescent(regression, RATE), flows, start, STEPS)
    assert result.rows["SDE"].trajectory is None
    assert "real states only" in str(result)
    assert float(result.errors["GF"][-1]) > 1e-3
    with pytest.raises(ValueError, match="observables are for real theta0"):
        compare(GradientDescent(regression, RATE), flows, start, STEPS, observables={"x": lambda x: x[..., 0]})


Named = namedtuple("Named", "theta order")
STATES = {
    "named": (lambda state: Named(*state), tuple),
    "list": (list, tuple),
    "dict": (lambda state: {"theta": state[0], "order": state[1]}, lambda state: (state["theta"], state["order"])),
}


class Repacked(StochasticDescent):
    """SGD with a state of another kind."""

    def __init__(self, sgd, kind):
        self.sgd, self.landscape, self.h = sgd, sgd.landscape, sgd.h
        self.pack, self.unpack = STATES[kind]
        self.kind = kind

    def start(self, theta0):
        return self.pack(self.sgd.start(theta0))

    def step(self, state, k, generator):
        return self.pack(self.sgd.step(self.unpack(state), k, generator))

    def position(self, state):
        return state.theta if self.kind == "named" else self.unpack(state)[0]

    def full_batch(self):
        return self.sgd.full_batch()

    def step_noise(self, theta):
        return self.sgd.step_noise(theta)


@pytest.mark.parametrize("kind", STATES)
def test_the_first_run_of_any_state(kind, sgd):
    flows = {"GF": GradientFlow(sgd.landscape)}
    plain, packed = (compare(d, flows, START, STEPS, runs=3) for d in (sgd, Repacked(sgd, kind)))
    assert torch.equal(packed.one_step["GF"], plain.one_step["GF"])
    assert torch.equal(packed.noise_floor, plain.noise_floor)


class Tallied(LinearRegression):
    """Counts gradients over all examples."""

    def grad(self, theta):
        self.gradients += 1
        return super().grad(theta)


def test_full_batch_steps_are_taken_where_a_flow_is_held_against_them(normal):
    found = []
    for flow in (GradientFlow, lambda landscape: StochasticModifiedEquation(landscape, RATE, 2)):
        landscape = Tallied(normal(0, 6, 2), normal(1, 6))
        landscape.gradients = 0
        seen = []
        sgd = StochasticGradientDescent(landscape, RATE, 2)
        phi = {"": lambda x, landscape=landscape, seen=seen: seen.append(landscape.gradients) or x[..., 0]}
        compare(sgd, {"flow": flow(landscape)}, START, STEPS, observables=phi, dt=None)
        found.append(seen[1] - seen[0])  # in the descent, and ‖∇f‖² along it
    assert found == [3 * STEPS + 1, 2 * STEPS + 1]
