"""States that are given to another run: another rate, another model, edited fields, members that events stopped."""

from dataclasses import replace

import pytest
import torch

from flows import (
    Event,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    ModifiedFlow,
    ModifiedHeavyBallFlow,
    State,
    descend,
    integrate,
)
from landscapes import Quadratic, Rosenbrock
from tests.tensors import draw, f64

BOWL = Quadratic(torch.diag(f64(1.0, 0.5)))
LEVEL = Event("level", lambda t, x: x[..., 0] - 0.5, stop=True)
STARTS = f64([1.0, 1.0], [2.0, 1.0], [0.4, 1.0])


@pytest.mark.parametrize(
    "options", [{"method": "rk4", "dt": 0.05}, {"restarts": [1.0]}, {"method": "euler", "dt": 0.1}]
)
def test_members_that_an_event_stopped_stay_so(options, tmp_path):
    options = {"events": LEVEL, **options}
    whole = integrate(GradientFlow(BOWL), STARTS, [0.0, 1.0, 2.0], **options)
    options.pop("restarts", None)
    first = integrate(GradientFlow(BOWL), STARTS, [0.0, 1.0], **options)
    assert first.end.stopped.tolist() == [True, False, False]
    second = integrate(GradientFlow(BOWL), State.load(first.end.save(tmp_path)), [1.0, 2.0], **options)
    assert torch.equal(whole.theta[1:], second.theta)
    assert second.theta[-1, 0, 0] == first.theta[-1, 0, 0]


def test_the_status_of_a_stop_at_the_last_time_is_that_of_any_stop():
    at_one = Event("one", lambda t, x: torch.tensor(t - 1.0, dtype=torch.float64), stop=True)
    for options in ({}, {"method": "rk4", "dt": 0.25}):
        run = integrate(GradientFlow(BOWL), f64(1.0, 1.0), [0.0, 1.0], events=at_one, **options)
        assert run.status == "stopped"
        assert run.times.tolist() == [0.0, 1.0]


ADAMS = {"method": "explicit_adams", "dt": 0.05}
OTHERS = {
    "flow": (GradientFlow(Quadratic(torch.diag(f64(-2.0, 3.0)))), lambda state: state, ADAMS),
    "class of flow": (ModifiedFlow(BOWL, 0.1, 2), lambda state: state, ADAMS),
    "larger step": (GradientFlow(BOWL), lambda state: state, {**ADAMS, "dt": 0.1}),
    "smaller step": (GradientFlow(BOWL), lambda state: state, {**ADAMS, "dt": 0.025}),
    "values": (GradientFlow(BOWL), lambda state: replace(state, values=-3 * state.values), ADAMS),
    "restart": (GradientFlow(BOWL), lambda state: state, {**ADAMS, "restarts": [0.5]}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_the_velocities_of_an_adams_method_are_not_those_of_another(name):
    flow, edit, options = OTHERS[name]
    end = edit(integrate(GradientFlow(BOWL), f64(-1.0, 1.0), [0.0, 0.5], **ADAMS).end)
    fresh = integrate(flow, end.values, [0.5, 1.0], **{k: v for k, v in options.items() if k != "restarts"})
    continued = integrate(flow, end, [0.5, 1.0], **options)
    torch.testing.assert_close(continued.theta, fresh.theta, rtol=1e-12, atol=1e-14)
    assert end.history is not None


def test_a_run_that_an_event_ended_goes_on_with_its_velocities():
    event = Event("low", lambda t, x: x[0] - 0.5, stop=True)
    stopped = integrate(GradientFlow(BOWL), f64(1.0, 1.0), [0.0, 2.0], events=event, **ADAMS)
    t = stopped.end.t
    times = [t, t + 0.5]
    whole = integrate(GradientFlow(BOWL), f64(1.0, 1.0), [0.0, *times], **ADAMS)
    assert torch.equal(integrate(GradientFlow(BOWL), stopped.end, times, **ADAMS).theta, whole.theta[1:])


def test_the_clock_goes_on_at_another_rate():
    end = descend(GradientDescent(BOWL, 0.1), f64(1.0, 1.0), 10).end
    torch.testing.assert_close(descend(GradientDescent(BOWL, 0.01), end, 2).times, f64(1.0, 1.01, 1.02))
    assert descend(GradientDescent(BOWL, 0.1), State(f64(1.0, 1.0), t=5.0), 1).times.tolist() == [5.0, 5.1]
    flowed = integrate(GradientFlow(BOWL), f64(1.0, 1.0), [0.0, 0.5]).end
    assert descend(GradientDescent(BOWL, 0.25), flowed, 2).times.tolist() == [0.5, 0.75, 1.0]


def test_positions_follow_edited_values():
    end = descend(GradientDescent(BOWL, 0.1), f64(1.0, 1.0), 3).end
    run = descend(GradientDescent(BOWL, 0.1), replace(end, values=end.values + 1), 1)
    assert torch.equal(run.theta[0], end.values + 1)


def bowl_end():
    return integrate(GradientFlow(BOWL), f64(1.0, 1.0), [0.0, 0.5]).end


REFUSED = {
    "gd into heavy ball": (
        lambda: descend(HeavyBall(BOWL, 0.1, 0.9), descend(GradientDescent(BOWL, 0.1), f64(1.0, 1.0), 1).end, 1),
        "the state is that of GradientDescent, HeavyBall has states of its own",
    ),
    "theta into momentum": (
        lambda: integrate(ModifiedHeavyBallFlow(BOWL, 0.1, 1.0, 1), bowl_end(), [0.5, 1.0]),
        "the state is that of GradientFlow, of size 2, and .* has states of size 4",
    ),
    "generator": (
        lambda: descend(GradientDescent(BOWL, 0.1), State(f64(1.0, 1.0), generator=torch.zeros(3).byte()), 1),
        "generator of the state must be",
    ),
    "history": (
        lambda: integrate(GradientFlow(BOWL), State(f64(1.0, 1.0), history=torch.zeros(3, 3)), [0.0, 1.0]),
        r"history of the state must have shape \(n, \*\(2,\)\)",
    ),
    "step": (
        lambda: integrate(GradientFlow(BOWL), State(f64(1.0, 1.0), step=f64(1.0, 2.0)), [0.0, 1.0]),
        "step of the state must be one number",
    ),
    "stopped": (
        lambda: integrate(GradientFlow(BOWL), State(f64(1.0, 1.0), stopped=torch.tensor([True])), [0.0, 1.0]),
        "stopped of a State must have the batch's shape",
    ),
    "negative dt": (lambda: State(f64(1.0), dt=-1.0), "dt of a State must be positive"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    call, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    "field",
    [{"values": None}, {"origin": "a"}, {"step": "a"}, {"history": 3}, {"generator": "a"}, {"alive": 1}, {"model": 2}],
    ids=str,
)
def test_fields_of_other_types(field):
    with pytest.raises(TypeError, match=f"{next(iter(field))} of a State must be"):
        State(**{"values": draw(1, 2), **field})


def test_a_state_of_another_version_is_warned_of_and_not_continued(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.engines.state.versions", lambda: {"thalweg": "9.9"})
    end = replace(bowl_end(), version="0.0.1")
    with pytest.warns(UserWarning, match=r"saved by thalweg 0\.0\.1"):
        loaded = State.load(end.save(tmp_path))
    with pytest.raises(ValueError, match=r"of thalweg 0\.0\.1, this is 9\.9"):
        integrate(GradientFlow(BOWL), loaded, [0.5, 1.0])
    assert integrate(GradientFlow(BOWL), replace(loaded, version=None), [0.5, 1.0]).status == "finished"


def test_a_state_of_one_flow_starts_another():
    end = integrate(GradientFlow(Rosenbrock()), f64(0.0, 0.5), [0.0, 0.1]).end
    run = integrate(ModifiedFlow(Rosenbrock(), 0.001, 2), end, [0.1, 0.2])
    assert run.status == "finished"


def test_a_state_moves_with_every_tensor_in_it():
    end = descend(HeavyBall(BOWL, 0.1, 0.9), f64(1.0, 1.0), 2).end
    there = end.to("meta")
    assert {x.device.type for x in (*there.values, there.theta, there.alive)} == {"meta"}
    assert there.generator.device.type == "cpu"
    assert torch.equal(end.to("cpu").values[1], end.values[1])
