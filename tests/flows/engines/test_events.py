"""Events against closed forms: a linear flow crosses a level at a known time, in every direction and batch shape."""

import math
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows import Event, Flow, GradientFlow, StochasticModifiedEquation, integrate
from flows.engines.methods import ADAPTIVE, FIXED
from landscapes import Landscape, Quadratic, UnsupportedError
from landscapes.toys.finite_sums import LinearRegression
from tests.examples import few
from tests.tensors import draw, f64

DECAY = GradientFlow(Quadratic(torch.diag(f64(1.0, 3.0))))  # θ_i = θ_i(0) e^{−λ_i t}


@dataclass(frozen=True)
class Circle(Flow):
    """ẋ = −y, ẏ = x: (cos t, sin t) from (1, 0)."""

    landscape: Landscape

    def velocity(self, t, state):
        return torch.stack([-state[..., 1], state[..., 0]], dim=-1)


CIRCLE = Circle(Quadratic(torch.eye(2, dtype=torch.float64)))
TIGHT = {"rtol": 1e-12, "atol": 1e-13}


def height(t, state):
    return state[..., 1]


@pytest.mark.parametrize("method", ADAPTIVE)
def test_roots_on_dense_output(method):
    """sin t = 0 at π and 2π; the start, where it is zero, is no event."""
    loose = {"adaptive_heun": 1e-6, "fehlberg2": 1e-7, "bosh3": 1e-9}.get(method)
    tolerance = TIGHT if loose is None else {"rtol": loose, "atol": 0.01 * loose}
    run = integrate(CIRCLE, f64(1.0, 0.0), [0.0, 2.5, 7.0], method=method, events=Event("level", height), **tolerance)
    found = run.events["level"]
    assert found.members.shape == (2, 0)
    # the step's end lies within the tolerance of sin; its dense output within that of the method
    accuracy = 1e-9 if method == "dopri5" else 1e-4
    torch.testing.assert_close(found.times, f64(math.pi, 2 * math.pi), rtol=0, atol=accuracy)
    torch.testing.assert_close(found.states[:, 1], torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-9)
    assert float(found.states[0, 1]) <= 0 <= float(found.states[1, 1])  # each on the far side of its root


def test_the_root_is_that_of_the_dense_output_to_1e_10():
    """g = t − c has its root at c whatever the state: the time found is c to 1e-10·(1 + c)."""
    for level in (0.3, 17.123456789, 41.0):
        event = Event("time", lambda t, state, level=level: (t - level) + 0 * state[..., 0])
        run = integrate(DECAY, f64(1.0, 1.0), [0.0, 1.0, 50.0], events=event)
        assert abs(float(run.events["time"].times) - level) <= 1e-10 * (1 + level)


@pytest.mark.parametrize(
    ("direction", "times"), [("rising", [2 * math.pi]), ("falling", [math.pi]), ("both", [math.pi, 2 * math.pi])]
)
def test_directions(direction, times):
    run = integrate(CIRCLE, f64(1.0, 0.0), [0.0, 7.0], events=Event("level", height, direction), **TIGHT)
    torch.testing.assert_close(run.events["level"].times, f64(*times), rtol=0, atol=1e-8)


def test_noting_events_changes_no_bit_of_the_run():
    times = [0.5 * k for k in range(40)]
    plain, noted = (integrate(CIRCLE, draw(1, 3, 2), times, events=e) for e in ((), Event("level", height)))
    assert torch.equal(plain.theta, noted.theta)
    assert len(noted.events["level"].times) >= 9


def test_a_run_stops_at_its_event():
    run = integrate(CIRCLE, f64(1.0, 0.0), [0.0, 2.0, 4.0, 6.0], events=Event("level", height, stop=True), **TIGHT)
    assert run.status == "stopped"
    assert "'level'" in run.status.sentence
    assert bool(run.alive)
    torch.testing.assert_close(run.times, f64(0.0, 2.0, math.pi), rtol=0, atol=1e-8)
    assert torch.equal(run.theta[-1], run.events["level"].states[0])
    onward = integrate(CIRCLE, run.end, [run.end.t, 6.0], events=Event("level", height, stop=True), **TIGHT)
    assert onward.status == "finished"  # it does not stop at the same event again
    torch.testing.assert_close(onward.theta[-1], f64(math.cos(6.0), math.sin(6.0)), rtol=0, atol=1e-8)


@pytest.mark.parametrize("shape", [(), (4,), (2, 2)])
@few(5)
@given(seed=st.integers(0, 1000))
def test_members_stop_each_at_its_own_time(shape, seed):
    """θ_1 = a e^{−t} passes ¼ at ln 4a; the others go on, and end where they would have ended without events."""
    theta0 = torch.ones(*shape, 2, dtype=torch.float64)
    theta0[..., 0] = torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.3
    event = Event("quarter", lambda t, state: state[..., 0] - 0.25, stop=True)
    end = 1.0
    run = integrate(DECAY, theta0, [0.0, 0.4, end], events=event, rtol=1e-11, atol=1e-12)
    due = (4 * theta0[..., 0]).log()
    found = run.events["quarter"]
    torch.testing.assert_close(found.times, due[due < end].sort().values, rtol=0, atol=1e-8)
    for t, member in zip(found.times, found.members, strict=True):
        assert abs(float(due[tuple(member)]) - float(t)) < 1e-8
    left = theta0[..., 0] * math.exp(-end)
    expected = torch.where(due < end, 0.25, left)
    if run.status == "finished":
        torch.testing.assert_close(run.theta[-1, ..., 0], expected, rtol=0, atol=1e-8)
    else:
        assert run.status == "stopped"
        assert bool((due < end).all())


@pytest.mark.parametrize("method", FIXED)
def test_fixed_steps_find_events_at_a_steps_end(method):
    run = integrate(
        CIRCLE, f64(1.0, 0.0), [0.0, 1.0, 4.0], method=method, dt=0.125, events=Event("level", height, stop=True)
    )
    t = float(run.events["level"].times)
    assert run.status == "stopped"
    assert t == run.times[-1] == run.end.t
    assert math.isclose(t / 0.125, round(t / 0.125))
    assert 3.0 <= t <= 3.5
    assert run.theta[-1][1] <= 0 < run.theta[-2][1]
    again = integrate(CIRCLE, run.end, [t, t + 1.0], method=method, dt=0.125)
    whole = integrate(CIRCLE, f64(1.0, 0.0), [0.0, t, t + 1.0], method=method, dt=0.125)
    if "adams" not in method:  # a stop ends the memory of a multistep method
        assert torch.equal(again.theta[-1], whole.theta[-1])


def test_noise_events_of_a_batch():
    flow = StochasticModifiedEquation(LinearRegression(draw(1, 12, 3), draw(2, 12)), 0.1, 3)
    event = Event("norm", lambda t, state: state.norm(dim=-1) - 2.0, stop=True)
    theta0 = 2 * draw(3, 5, 3)
    run = integrate(flow, theta0, [0.0, 1.0, 2.0], dt=0.05, seed=1, events=event)
    plain = integrate(flow, theta0, [0.05 * k for k in range(41)], dt=0.05, seed=1)
    values = plain.theta.norm(dim=-1) - 2.0
    crossed = (values[1:].sign() * values[:-1].sign() < 0).int()
    found = run.events["norm"]
    for t, member, state in zip(found.times, found.members, found.states, strict=True):
        k = int(crossed[:, int(member)].argmax()) + 1
        assert abs(float(t) - 0.05 * k) < 1e-12
        assert torch.equal(state, plain.theta[k, int(member)])
        assert torch.equal(run.theta[-1, int(member)], state)
    assert len(run.events["norm"].times) == int(crossed.any(dim=0).sum()) > 0


def test_events_survive_save_and_load(tmp_path):
    run = integrate(CIRCLE, draw(1, 3, 2), [0.0, 7.0], events=[Event("x", lambda t, s: s[..., 0]), Event("y", height)])
    again = type(run).load(run.save(tmp_path))
    for name in ("x", "y"):
        for part in ("times", "states", "members"):
            assert torch.equal(getattr(again.events[name], part), getattr(run.events[name], part))


REFUSED = {
    "names": ({"events": [Event("a", height), Event("a", height)]}, ValueError, "different names"),
    "no event": ({"events": [height]}, TypeError, "must be Events"),
    "shape": ({"events": Event("a", lambda t, s: s)}, TypeError, "one real number for each member"),
    "scipy": ({"events": Event("a", height), "method": "scipy_solver"}, UnsupportedError, "does not locate events"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name):
    arguments, error, message = REFUSED[name]
    with pytest.raises(error, match=message):
        integrate(DECAY, f64(1.0, 1.0), [0.0, 1.0], **arguments)


def test_refused_events():
    for arguments, error in ((("", height), TypeError), (("a", 3), TypeError), (("a", height, "up"), ValueError)):
        with pytest.raises(error):
            Event(*arguments)
