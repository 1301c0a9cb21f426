"""compare and KeyboardInterrupt: no number of what was cut short, the rows before it, and what is on disk."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, StochasticGradientDescent, StochasticModifiedEquation, compare
from flows.engines.trajectory import Trajectory
from flows.flow import Flow, SameNoise

RATE, STEPS = 0.125, 4
START = torch.tensor([1.0, -0.7], dtype=torch.float64)


class Alarm:
    """Raises KeyboardInterrupt at a call, once."""

    def __init__(self, call, then=None):
        self.calls, self.call, self.then = 0, call, then

    def __call__(self):
        self.calls += 1
        if self.calls == self.call:
            if self.then is not None:
                self.then()
            raise KeyboardInterrupt


@dataclass(frozen=True)
class Rung(Flow):
    """Gradient flow with an alarm."""

    inner: Flow
    alarm: Alarm

    def velocity(self, t, state):
        self.alarm()
        return self.inner.velocity(t, state)


@dataclass(frozen=True)
class RungEquation(SameNoise):
    """A stochastic flow with an alarm."""

    flow: StochasticModifiedEquation
    alarm: Alarm

    def velocity(self, t, state):
        self.alarm()
        return self.flow.velocity(t, state)


EACH = 2 * STEPS  # Euler steps of dt = h/2 in a run; 2·EACH in the run at dt/2


@pytest.mark.parametrize("call", [EACH // 2, EACH + 4, 3 * EACH + 2])
def test_an_interrupt_in_the_second_flow_ends_the_comparison(call, regression):
    flows = {"GF": GradientFlow(regression), "rung": Rung(GradientFlow(regression), Alarm(call))}
    flows["never"] = GradientFlow(regression)
    result = compare(GradientDescent(regression, RATE), flows, START, STEPS, method="euler", dt=RATE / 2)
    assert list(result.rows) == ["GF", "rung"]
    assert bool(result.one_step["GF"].isfinite().all())
    assert bool(result.one_step["rung"].isnan().all())  # and not the distance of a start that was never left
    assert result.rows["rung"].interrupted
    assert "interrupted" in str(result)
    assert bool(result.errors["rung"].isfinite().all()) == (call > EACH)


@pytest.mark.parametrize("call", [EACH // 2, EACH + 4, 3 * EACH + 6])
def test_an_interrupt_in_the_second_equation_ends_the_comparison(call, regression):
    sde = StochasticModifiedEquation(regression, RATE, 2)
    flows = {"SDE": sde, "rung": RungEquation(sde, Alarm(call)), "never": sde}
    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, flows, START, STEPS, coupled=True, dt=RATE / 2)
    assert list(result.rows) == ["SDE", "rung"]
    assert bool(result.one_step["SDE"].isfinite().all())
    done = result.one_step["rung"].isfinite()
    assert done.tolist() == [call > 3 * EACH, False, False, False]
    assert_close(result.one_step["rung"][done], result.one_step["SDE"][done])
    assert result.rows["rung"].interrupted
    assert "interrupted" in str(result)


@pytest.mark.parametrize("call", [5 * EACH + 3, 6 * EACH + 5])
def test_an_interrupt_in_the_runs_of_the_laws_leaves_the_paths(call, regression, tmp_path):
    sde = StochasticModifiedEquation(regression, RATE, 2)
    flows = {"SDE": sde, "rung": RungEquation(sde, Alarm(call)), "never": sde}
    sgd = StochasticGradientDescent(regression, RATE, 2)
    result = compare(sgd, flows, START, STEPS, runs=2, coupled=True, dt=RATE / 2, observables={}, folder=tmp_path)
    assert list(result.rows) == ["SDE", "rung"]
    assert_close(result.one_step["rung"], result.one_step["SDE"])
    assert result.rows["rung"].interrupted
    assert "interrupted while its errors were measured" in str(result)
    whole = call > 6 * EACH  # the run at dt is, that at dt/2 is not
    assert (result.rows["rung"].ensemble.status == "finished") == whole
    assert ("rung" in result.weak_errors) == whole
    if whole:
        assert_close(result.weak_errors["rung"]["loss"], result.weak_errors["SDE"]["loss"])
        assert bool(result.weak_integration_errors["rung"]["loss"][-1].isnan())
    kept = tmp_path / "rung" / "laws"
    assert kept.exists() == whole  # an interrupted run is not saved
    if whole:
        assert torch.equal(Trajectory.load(kept).theta, result.rows["rung"].ensemble.theta)


@pytest.mark.parametrize("noisy", [False, True])
def test_a_run_is_on_disk_before_its_errors_are_studied(noisy, regression, tmp_path):
    seen = []
    alarm = Alarm(EACH + 1, lambda: seen.append(Trajectory.load(tmp_path / "rung").theta))
    sde = StochasticModifiedEquation(regression, RATE, 2)
    rung = RungEquation(sde, alarm) if noisy else Rung(GradientFlow(regression), alarm)
    sgd = StochasticGradientDescent(regression, RATE, 2)
    method = None if noisy else "euler"
    result = compare(sgd, {"rung": rung}, START, STEPS, method=method, dt=RATE / 2, folder=tmp_path)
    assert torch.equal(seen[0], result.rows["rung"].trajectory.theta)
