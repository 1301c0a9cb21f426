"""Output times in float32: those of the step grid that they round; float64 in every result, whatever θ's dtype."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from flows import BrownianPath, Event, GradientFlow, StochasticModifiedEquation, Trajectory, integrate
from flows.engines.output_times import check_times
from flows.ensembles import ensemble
from landscapes import LinearRegression, Quadratic

BOWL = Quadratic(torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64)))
ONES = torch.ones(2, dtype=torch.float64)
TENTHS = [k * 0.1 for k in range(11)]
ROUNDED = [torch.linspace(0, 1, 11), torch.arange(0, 1.05, 0.1), np.linspace(0, 1, 11, dtype=np.float32)]


@pytest.mark.parametrize("times", ROUNDED, ids=["linspace", "arange", "numpy"])
def test_float32_times_are_the_grid_that_they_round(times):
    exact = integrate(GradientFlow(BOWL), ONES, TENTHS, method="rk4", dt=0.1)
    found = integrate(GradientFlow(BOWL), ONES, times, method="rk4", dt=0.1)
    assert found.times.dtype == torch.float64
    assert found.times.tolist() == exact.times.tolist()
    assert torch.equal(found.theta, exact.theta)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_times_round_more(dtype):
    times = torch.tensor([0, 0.1, 0.2, 0.3], dtype=dtype)
    assert check_times(times, 0.1) == [k * 0.1 for k in range(4)]
    with pytest.raises(ValueError, match="dt"):
        integrate(GradientFlow(BOWL), ONES, times.double(), method="rk4", dt=0.1)  # exact numbers, no multiples of dt


def test_without_steps_they_are_taken_as_they_are():
    times = torch.linspace(0, 1, 11)
    assert check_times(times) == times.double().tolist()
    assert integrate(GradientFlow(BOWL), ONES, times).times.tolist() == times.double().tolist()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_times_are_float64_whatever_theta_is(dtype, tmp_path):
    run = integrate(
        GradientFlow(Quadratic(torch.eye(2, dtype=dtype))),
        torch.ones(2, dtype=dtype),
        TENTHS,
        method="rk4",
        dt=0.1,
        events=Event("half", lambda t, state: state[..., 0] - 0.55),
    )
    assert run.times.tolist() == TENTHS
    assert run.events["half"].times.dtype == torch.float64
    run.save(tmp_path)
    assert Trajectory.load(tmp_path).times.tolist() == TENTHS


def test_times_off_the_grid_are_refused():
    with pytest.raises(ValueError, match=r"times must lie on times\[0\] \+ k·dt"):
        integrate(GradientFlow(BOWL), ONES, torch.tensor([0.0, 0.1, 0.20001]), method="rk4", dt=0.1)
    with pytest.raises(ValueError, match=r"times must lie on times\[0\] \+ k·dt"):  # float64 means what it says
        integrate(GradientFlow(BOWL), ONES, torch.linspace(0, 1, 11).double(), method="rk4", dt=0.1)


def test_a_state_and_restarts_are_recognised_too():
    flow = GradientFlow(BOWL)
    first = integrate(flow, ONES, TENTHS[:4], method="rk4", dt=0.1)
    rest = integrate(flow, first.end, torch.linspace(0, 1, 11)[3:], method="rk4", dt=0.1)
    whole = integrate(flow, ONES, TENTHS, method="rk4", dt=0.1)
    assert_close(rest.theta, whole.theta[3:], rtol=1e-14, atol=0)
    with pytest.raises(ValueError, match="times must begin at the state's time"):
        integrate(flow, first.end, torch.tensor([0.31, 0.4]), method="rk4", dt=0.1)
    adaptive = integrate(flow, ONES, TENTHS[:4])
    after = integrate(flow, adaptive.end, torch.tensor([0.3, 0.7]), restarts=torch.tensor([0.7]))
    assert after.times.tolist() == [TENTHS[3], float(torch.tensor(0.7))]
    integrate(flow, ONES, torch.linspace(0, 1, 11), method="rk4", dt=0.1, restarts=torch.tensor([0.3, 0.7]))


def test_noise_and_ensembles_take_the_same_steps():
    generator = torch.Generator().manual_seed(0)
    sums = LinearRegression(*(torch.randn(6, *n, generator=generator, dtype=torch.float64) for n in ((2,), ())))
    flow = StochasticModifiedEquation(sums, 0.1, 2)
    path = BrownianPath(3, 0.0, 1.0, 0.1, flow.noise_size)
    one, other = (integrate(flow, ONES, times, dt=0.1, path=path) for times in (TENTHS, torch.linspace(0, 1, 11)))
    assert torch.equal(one.theta, other.theta)
    settings = {"paths": 8, "seed": 1, "dt": 0.1, "observables": {"square": lambda theta: theta.square().sum(-1)}}
    one, other = (ensemble(flow, ONES, times, **settings) for times in (TENTHS, torch.linspace(0, 1, 11)))
    assert one.times.tolist() == other.times.tolist() == TENTHS
    assert str(one).splitlines()[1:] == str(other).splitlines()[1:]


@pytest.mark.parametrize("t0", [0.0, -3.0, 0.3, 1000.0])
def test_linspace_far_from_zero(t0):
    """Within float32's rounding of the largest time, as long as that is small beside dt."""
    found = check_times(torch.linspace(t0, t0 + 5, 51), 0.1)
    assert found == pytest.approx([found[0] + 0.1 * k for k in range(51)], abs=1e-12)
    assert abs(found[0] - t0) < 1e-4
    blurred = torch.linspace(1e6, 1e6 + 5, 11)  # eps is 0.06 here
    assert check_times(blurred, 0.1) == blurred.double().tolist()
