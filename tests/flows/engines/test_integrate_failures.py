"""``integrate`` when a run cannot go on: what ends it, what is kept, what the status says, and who else goes on."""

import math
import re
import subprocess
import sys
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from flows import Flow, GradientFlow, PrincipalFlow, SingularModeError, integrate
from landscapes import Quadratic
from landscapes.toys.separable import DoubleWell
from tests.flows.toys import Cubic

LOOSE = {"rtol": 1e-3, "atol": 1e-6}
TIMES = torch.linspace(0, 1, 11, dtype=torch.float64)
END = 0.77  # where the bad things happen: between the outputs 0.7 and 0.8
ADAPTIVE = [{"method": m, **LOOSE} for m in ("dopri5", "dopri8", "bosh3")]
FINE = {"method": "dopri5", "rtol": 1e-9, "atol": 1e-11}  # steps below the output interval
RK4 = {"method": "rk4", "dt": 0.02}
SCIPY = {"method": "scipy_solver", **LOOSE}


def named(settings):
    return pytest.mark.parametrize("setting", settings, ids=lambda s: s["method"])


class Labelled(Flow):
    """x' = −x in the first coordinate; the second is a label that stays: above zero, the member goes wrong at END."""

    def __init__(self, kind):
        self.kind = kind
        self.most = []  # members an evaluation, in order

    def velocity(self, t, state):
        x, label = state.unbind(-1)
        self.most.append(label.numel())
        bad = (label > 0) & (torch.as_tensor(t) > END)
        if self.kind == "singular mode" and bool(bad.any()):
            raise SingularModeError("hλ = 1, said on purpose", bad)
        if self.kind == "step underflow":
            speed = torch.where(label > 0, x * x / (END * 1.0), -x)  # from 1: x = 1/(1 − t/END)
        else:
            speed = torch.where(bad, {"nan": math.nan, "inf": math.inf}.get(self.kind, 0.0), -x)
        return torch.stack((speed, torch.zeros_like(label)), dim=-1)


KINDS = {"nan": "diverged", "inf": "diverged", "singular mode": "singular mode", "step underflow": "step underflow"}


def start(*labels):
    return torch.stack((torch.ones(len(labels)), torch.tensor(labels)), dim=-1).double()


def check_ended(run, kind, last):
    """The run ended as ``kind`` with every output up to ``last`` and nothing after it."""
    assert run.status == kind
    assert_close(run.times, TIMES[TIMES <= last + 1e-12])
    assert run.theta.shape[0] == run.times.shape[0]
    assert bool(run.theta.isfinite().all())
    assert not bool(run.alive.any())


@named([*ADAPTIVE, RK4])
@pytest.mark.parametrize("kind", ["nan", "inf", "singular mode"])
def test_the_states_before_a_failure_are_kept(kind, setting):
    run = integrate(Labelled(kind), start(1.0)[0], TIMES, **setting)
    # A singular mode ends a run at the first trial step that meets it: the last step's own outputs are not there.
    check_ended(run, KINDS[kind], 0.7 if kind != "singular mode" or setting is RK4 else float(run.times[-1]))
    assert float(run.times[-1]) > 0
    assert_close(run.theta[:, 0], torch.exp(-run.times), rtol=5e-3, atol=0)
    assert f"t = {float(run.times[-1]):.6g}" in run.status.sentence or setting is RK4
    if kind == "singular mode":
        assert "hλ = 1" in run.status.sentence
    else:
        assert "step" in run.status.sentence
        assert "finite" in run.status.sentence


@named([*ADAPTIVE[:1], RK4, SCIPY])
def test_a_field_that_is_never_finite_leaves_the_start(setting):
    flow = Labelled("nan")
    flow.velocity = lambda t, state: torch.full_like(state, torch.nan)
    run = integrate(flow, start(1.0)[0], TIMES, **setting)
    assert run.status in ("diverged", "step underflow")
    assert (run.times.tolist(), run.theta.tolist(), run.alive.tolist()) == ([0.0], [[1.0, 1.0]], False)


@named(ADAPTIVE)
def test_a_blow_up_names_time_step_and_eigenvalue(setting):
    theta0 = torch.tensor([1 / END], dtype=torch.float64)
    run = integrate(GradientFlow(Cubic()), theta0, TIMES, **setting)
    check_ended(run, run.status, 0.7)
    assert run.status in ("diverged", "step underflow")
    assert_close(run.theta[:, 0], 1 / (END - run.times), rtol=2e-2, atol=0)
    eigenvalue = -2 * float(run.theta[-1, 0])
    assert f"λ = {eigenvalue:.4g}" in run.status.sentence
    assert re.search(r"after t = 0\.7(70|69)", run.status.sentence)
    assert "(step " in run.status.sentence
    assert "try " in run.status.sentence  # what to do about it


SCIPY_PROGRAM = """
import torch
from flows import Flow, integrate
class Blow(Flow):
    def velocity(self, t, state): return state * state
class Infinite(Flow):
    def velocity(self, t, state): return torch.where(torch.as_tensor(t) > 0.77, torch.inf, -state)
theta0, times = torch.ones(1, dtype=torch.float64) / 0.77, torch.linspace(0, 1, 11, dtype=torch.float64)
for flow in (Blow(), Infinite()):
    run = integrate(flow, theta0, times, method="scipy_solver", rtol=1e-3, atol=1e-6)
    print(run.status, len(run.times), bool(run.theta.isfinite().all()), sep="; ")
"""


def test_scipy_comes_back_from_a_pole_and_from_an_infinite_field():
    # In a process of its own: LSODA turns in compiled code and no signal stops it.
    done = subprocess.run([sys.executable, "-c", SCIPY_PROGRAM], capture_output=True, timeout=30, text=True, check=True)
    assert [line.split("; ")[1:] for line in done.stdout.splitlines()] == [["8", "True"]] * 2
    assert "finished" not in done.stdout


def test_a_field_too_stiff_for_the_clock():
    quadratic = Quadratic(torch.diag(torch.tensor([1e30, 1.0], dtype=torch.float64)))
    run = integrate(GradientFlow(quadratic), torch.ones(2, dtype=torch.float64), TIMES + 1)
    assert run.status == "step underflow"
    assert run.times.tolist() == [1.0]
    assert "λ = 1e+30" in run.status.sentence
    assert "rk4" in run.status.sentence


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun2", "heun3", "rk4", "explicit_adams", "implicit_adams"])
def test_growth_that_overflows_at_fixed_steps(method, dtype):
    quadratic = Quadratic(torch.diag(torch.tensor([-1e6, 1.0], dtype=torch.float64)))
    theta0 = torch.ones(2, dtype=dtype)
    run = integrate(GradientFlow(quadratic), theta0, torch.arange(60.0), method=method, dt=1)
    assert run.status == "diverged"
    assert 2 <= len(run.times) < 60
    assert bool(run.theta.isfinite().all())
    assert run.times.tolist() == list(range(len(run.times)))
    assert f"after step {len(run.times)}" in run.status.sentence
    assert "λ = -1e+06" in run.status.sentence
    if method == "euler":
        assert_close(run.theta[:, 0], ((1 + 1e6) ** run.times).to(dtype), rtol=1e-4, atol=0)


def test_huge_complex_states_are_finite():
    theta0 = torch.tensor([1.3e308 + 1.3e308j], dtype=torch.complex128)  # its modulus is not
    flow = Labelled("nan")
    flow.velocity = lambda t, state: torch.zeros_like(state)
    assert integrate(flow, theta0, [0.0, 1.0], method="euler", dt=1.0).status == "finished"


@pytest.mark.parametrize("krylov", [None, 2])
@named([{"method": None}, {"method": "rk4", "dt": 0.1}])
def test_a_singular_mode_is_named(setting, krylov):
    quadratic = Quadratic(torch.diag(torch.tensor([2.0, 0.02], dtype=torch.float64)))
    flow, theta0 = PrincipalFlow(quadratic, 0.5, krylov=krylov), torch.ones(2, dtype=torch.float64)
    run = integrate(flow, theta0, TIMES, **setting)
    assert run.status == "singular mode"
    assert run.times.tolist() == [0.0]
    assert torch.equal(run.theta.real, theta0[None])
    assert "hλ = 1" in run.status.sentence
    assert "λ = 2" in run.status.sentence
    assert "change h" in run.status.sentence


def test_scipy_meets_a_singular_mode():
    quadratic = Quadratic(torch.diag(torch.tensor([2.0, 0.02], dtype=torch.float64)))
    flow = PrincipalFlow(quadratic, 0.5, branch="real")
    assert integrate(flow, torch.ones(2, dtype=torch.float64), TIMES, **SCIPY).status == "singular mode"


@pytest.mark.parametrize("krylov", [None, 1])
@named([{"method": None}, {"method": "rk4", "dt": 0.1}])
def test_a_singular_member_of_a_batch_of_principal_flows(setting, krylov):
    well = DoubleWell()  # f'' = 3θ² − 1 up to scale, so one member can sit on hλ = 1
    theta0 = torch.tensor([[1.0], [0.2], [1.1]], dtype=torch.float64)
    h = 1 / float(well.hessian(theta0)[1, 0, 0].abs())
    theta0[1] = math.sqrt(2 / 3 - 0.04)  # the curvature there is minus that at 0.2
    assert h * float(well.hessian(theta0)[1, 0, 0]) == pytest.approx(1, abs=1e-9)
    flow = PrincipalFlow(well, h, krylov=krylov)
    run = integrate(flow, theta0, [0.0, 0.1, 0.2], **setting)
    assert run.status == "finished"
    assert run.alive.tolist() == [True, False, True]
    assert "1 of 3 members" in run.status.sentence
    assert "singular mode" in run.status.sentence
    assert torch.equal(run.theta[:, 1].real, theta0[1].expand(3, 1))
    for i in (0, 2):
        assert_close(run.theta[:, i], integrate(flow, theta0[i], [0.0, 0.1, 0.2], **setting).theta)


@named([*ADAPTIVE[:2], RK4, SCIPY])
@pytest.mark.parametrize("kind", KINDS)
def test_one_bad_member_does_not_end_the_others(kind, setting):
    if kind == "step underflow" and setting is RK4:
        pytest.skip("fixed steps jump over a pole")
    if kind in ("step underflow", "inf") and setting is SCIPY:
        pytest.skip("would hang where it fails: has a test of its own")
    flow, theta0 = Labelled(kind), start(0.0, 1.0, 0.0, 1.0).reshape(2, 2, 2)
    theta0[1, 0, 0] = 0.5
    run = integrate(flow, theta0, TIMES, **setting)
    assert run.status == "finished"
    assert torch.equal(run.times, TIMES)
    assert run.alive.tolist() == [[True, False], [True, False]]
    assert KINDS[kind] in run.status.sentence
    assert "of 4 members" in run.status.sentence
    assert bool(run.theta.isfinite().all())
    for i in (0, 1):
        alone = integrate(Labelled(kind), theta0[i, 0], TIMES, **setting).theta
        assert_close(run.theta[:, i, 0], alone, rtol=0, atol=1e-15 if setting is RK4 else 3e-3)
        frozen = run.theta[:, i, 1]
        steps = (frozen[1:] != frozen[:-1]).any(dim=-1)
        assert bool(steps[0])
        assert not bool((steps[1:] & ~steps[:-1]).any())  # once it stops it stays, to the last bit
        assert int(steps.sum()) in ((1, 2, 3, 4, 5, 6, 7, 8) if kind == "singular mode" else (7, 8))
    assert flow.most[-1] in (1, 2)  # the frozen are not evaluated any more


def test_a_batch_whose_members_all_die_ends():
    flow = Labelled("nan")
    for setting in (ADAPTIVE[0], RK4):
        run = integrate(flow, start(1.0, 2.0), TIMES, **setting)
        check_ended(run, "diverged", 0.7)
        assert "2 of 2 members" in run.status.sentence


def test_members_that_die_one_after_the_other():
    class Late(Labelled):
        def velocity(self, t, state):
            return torch.where((torch.as_tensor(t) > state[..., 1:]), torch.nan, -state * torch.tensor([1.0, 0.0]))

    for setting in (ADAPTIVE[0], RK4):
        run = integrate(Late("nan"), start(0.35, 0.77, 0.55), TIMES, **setting)
        check_ended(run, "diverged", 0.7)
        ends = [float(run.theta[-1, i, 0]) for i in range(3)]
        # Adaptive members stop at an output time, fixed ones at their last step; the run at the last output.
        expected = [0.3, 0.7, 0.5] if setting is not RK4 else [0.34, 0.7, 0.54]
        for end, t in zip(ends, expected, strict=True):
            assert end == pytest.approx(math.exp(-t), rel=2e-2)
        assert run.status.sentence.count("1 of 3 members") == 3


@named([ADAPTIVE[0], RK4])
def test_singular_members_are_told_apart_after_others_are_gone(setting):
    class Late(Labelled):
        def velocity(self, t, state):
            bad = torch.as_tensor(t) > state[..., 1]
            if bool(bad.any()):
                raise SingularModeError("hλ = 1, said on purpose", bad)
            return -state * torch.tensor([1.0, 0.0])

    run = integrate(Late("singular mode"), start(0.35, 9.0, 0.77, 8.0), TIMES, **setting)
    assert run.status == "finished"
    assert run.alive.tolist() == [False, True, False, True]
    assert run.status.sentence.count("1 of 4 members") == 2
    assert_close(run.theta[-1, 1::2, 0], torch.exp(-torch.ones(2).double()), rtol=5e-3, atol=0)


@named([ADAPTIVE[0], RK4])
def test_every_and_last_keep_the_state_a_run_stopped_at(setting):
    whole = integrate(Labelled("nan"), start(1.0)[0], TIMES, **setting)
    for keep, places in (("all", [0, 4, 7]), ("last", [7])):
        run = integrate(Labelled("nan"), start(1.0)[0], TIMES, every=4, keep=keep, **setting)
        assert torch.equal(run.times, TIMES[places])
        assert torch.equal(run.theta, whole.theta[places])


def caught(*arguments, **settings):
    """``integrate``; pytest itself would end at an interrupt that gets out."""
    try:
        return integrate(*arguments, **settings)
    except KeyboardInterrupt:
        return pytest.fail("the interrupt came out of integrate")


def decay(t, state):
    return -state


def interrupted_velocity(t, state):
    if torch.as_tensor(t) > END:
        raise KeyboardInterrupt
    return -state


@named([FINE, RK4, SCIPY])
def test_an_interrupt_in_the_velocity(setting):
    flow = Labelled("nan")
    flow.velocity = interrupted_velocity
    run = caught(flow, start(1.0, 0.0), TIMES, **setting)
    assert run.status == "interrupted"
    assert 1 < len(run.times) <= 8
    assert torch.equal(run.times, TIMES[: len(run.times)])
    assert_close(run.theta[:, 0, 0], torch.exp(-run.times), rtol=2e-2, atol=0)
    assert bool(run.alive.all())
    assert f"t = {float(run.times[-1]):.6g}" in run.status.sentence
    assert setting is not RK4 or len(run.times) == 8


def test_an_impatient_interrupt_loses_only_the_current_segment():
    calls = 0

    def velocity(t, state):
        nonlocal calls
        calls += 1
        if calls > 400:
            raise KeyboardInterrupt  # again and again
        return 5 * torch.cos(5 * torch.as_tensor(t)) * torch.ones_like(state)

    flow = Labelled("nan")
    flow.velocity = velocity
    run = caught(flow, torch.zeros(1, dtype=torch.float64), torch.linspace(0, 50, 501))
    assert run.status == "interrupted"
    assert len(run.times) > 16
    assert_close(run.theta[:, 0], torch.sin(5 * run.times), rtol=0, atol=1e-4)


@dataclass
class InterruptAt:
    """The user presses Ctrl-C while the observer writes."""

    at: int
    every: int = 1
    name: str = "interrupt"

    def __call__(self, k, t, theta):
        if k == self.at:
            raise KeyboardInterrupt
        return {}


@named([ADAPTIVE[0], RK4, SCIPY])
@pytest.mark.parametrize("at", [0, 5])
def test_an_interrupt_in_an_observer(at, setting):
    flow = Labelled("nan")
    flow.velocity = decay
    run = caught(flow, start(1.0)[0], TIMES, observers=[InterruptAt(at)], **setting)
    assert run.status == "interrupted"
    assert_close(run.times, TIMES[: at + 1])
    assert_close(run.theta[:, 0], torch.exp(-run.times), rtol=2e-2, atol=0)


@named([*ADAPTIVE[:1], RK4, SCIPY])
@pytest.mark.parametrize("error", [AssertionError, ValueError, RuntimeError, ZeroDivisionError])
def test_the_users_own_exceptions_pass_through(error, setting):
    def velocity(t, state):
        if torch.as_tensor(t) > END:
            raise error("mine")
        return -state

    flow = Labelled("nan")
    flow.velocity = velocity
    with pytest.raises(error, match=r"^mine$"):
        integrate(flow, start(1.0)[0], TIMES, **setting)


class Once(Cubic):
    """A loss that can be differentiated once only."""

    def expand(self, theta):
        raise RuntimeError("no second derivatives")


@named([ADAPTIVE[0], {"method": "euler", "dt": 0.1}])
def test_a_landscape_without_curvature_still_ends_with_a_status(setting):
    theta0 = torch.tensor([1e3], dtype=torch.float64)
    run = integrate(GradientFlow(Once()), theta0, torch.linspace(0, 5, 51, dtype=torch.float64), **setting)
    assert run.status in ("diverged", "step underflow")
    assert torch.equal(run.theta[0], theta0)
