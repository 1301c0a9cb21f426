"""Starts, states, increments and times that no model can use, and huge rates and orders: refused by name."""

import math

import numpy as np
import pytest
import torch

from flows import (
    SVAG,
    ConstantSchedule,
    CosineSchedule,
    CyclicalSchedule,
    DriftAdjustedDescent,
    DriftAdjustedRate,
    ExponentialSchedule,
    GradientFlow,
    HeavyBallPrincipalFlow,
    ModifiedFlow,
    ModifiedHeavyBallFlow,
    NesterovPrincipalFlow,
    PrincipalFlow,
    ReducedNesterovFlow,
    ScheduledGradientDescent,
    StepSchedule,
    StochasticDriftAdjustedDescent,
    StochasticFlow,
    TorchMomentumFlow,
    TruncatedPrincipalFlow,
    WarmUp,
    momentum_from_torch,
)
from flows.observers import Drift
from landscapes import LinearRegression, Rosenbrock
from tests.flows.every import MINI, NOISY, PLAIN, SMOOTH, START
from tests.tensors import draw

POINT = START[0]
BAD = {
    "sparse": lambda x: x.to_sparse(),
    "meta": lambda x: x.to("meta"),
    "nested": lambda x: torch.nested.nested_tensor([x, x[:1]]),
    "jagged": lambda x: torch.nested.nested_tensor([x, x[:1]], layout=torch.jagged),
    "quantised": lambda x: torch.quantize_per_tensor(x.float(), 0.1, 0, torch.qint8),
    "uint4": lambda x: torch.empty(x.shape, dtype=torch.uint4),
    "float8": lambda x: x.to(torch.float8_e4m3fn),
    "whole numbers": lambda x: x.long(),
    "an array": lambda x: x.numpy(),
    "a list": lambda x: x.tolist(),
    "a number": lambda x: 1.5,
    "none": lambda x: None,
    "a scalar": lambda x: x.sum(),
}
VALLEY, REGRESSION = Rosenbrock(b=5.0), LinearRegression(draw(0, 6, 2), draw(1, 6))
FLOWS = {name: make(VALLEY) for name, make in SMOOTH.items()} | {n: make(REGRESSION) for n, make in NOISY.items()}
DESCENTS = {n: make(VALLEY) for n, make in PLAIN.items()} | {f"mini {n}": make(REGRESSION) for n, make in MINI.items()}
NOISES = [name for name, flow in FLOWS.items() if isinstance(flow, StochasticFlow)]
IDENTITY = ("gradient", "Runge-Kutta", "scheduled", "mini noisy", "mini incremental")  # checked by the gradient


def refused(call, *names):
    """Assert that the call raises an error of this project that has one of the names."""
    with pytest.raises((TypeError, ValueError), match=rf"\b({'|'.join(names)})\b.* (must|takes) ") as caught:
        call()
    assert any(f"/{package}/" in str(caught.traceback[-1].path) for package in ("flows", "landscapes"))


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", [name for name in DESCENTS if name not in IDENTITY])
def test_starts_of_descents_are_refused(name, kind):
    refused(lambda: DESCENTS[name].start(BAD[kind](POINT)), "theta0", "theta")


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", FLOWS)
def test_states_of_flows_are_refused(name, kind):
    flow = FLOWS[name]
    state = flow.start(POINT)
    refused(lambda: flow.velocity(0.0, BAD[kind](state)), "state", "theta")


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize(
    "name", ["heavy ball", "principal heavy ball", "principal", "underdamped", "momentum", "torch"]
)
def test_starts_of_flows_are_refused(name, kind):
    refused(lambda: FLOWS[name].start(BAD[kind](POINT)), "theta0", "theta")


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.parametrize("name", NOISES)
def test_increments_are_refused(name, kind):
    flow = FLOWS[name]
    dw = torch.ones(flow.noise_size).double()
    state = flow.start(POINT)
    assert flow.diffusion(0.0, state, dw).shape == state.shape
    refused(lambda: flow.diffusion(0.0, state, BAD[kind](dw)), "dw")


@pytest.mark.parametrize("name", ["heavy ball", "principal heavy ball", "underdamped", "momentum"])
def test_states_of_another_size_are_refused(name):
    refused(lambda: FLOWS[name].velocity(0.0, torch.ones(3).double()), "state")


@pytest.mark.parametrize("make", [PrincipalFlow, lambda f, h: TruncatedPrincipalFlow(f, h, 1)])
@pytest.mark.parametrize("state", [POINT.half(), POINT[None][:0]])
def test_principal_flows_of_half_precision_or_no_member_are_refused(make, state):
    refused(lambda: make(Rosenbrock(), 0.01).velocity(0.0, state), "state")


@pytest.mark.parametrize("make", [HeavyBallPrincipalFlow, NesterovPrincipalFlow])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_principal_flows_of_momentum_in_half_precision_are_refused(make, dtype):
    flow = make(Rosenbrock(), 0.01, 0.5, branch="real")
    refused(lambda: flow.velocity(0.0, flow.start(POINT.to(dtype))), "state")


SCHEDULES = (
    CosineSchedule(1.0),
    CyclicalSchedule(1.0, 0.1),
    ExponentialSchedule(1.0),
    StepSchedule((0.1,)),
    WarmUp(1.0),
)
TIMES = (None, "x", [1.0], 1j, torch.ones(2), torch.ones(1).to_sparse(), torch.empty(1, dtype=torch.uint4))


@pytest.mark.parametrize("t", TIMES, ids=lambda t: type(t).__name__)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_times_of_schedules_are_refused(schedule, t):
    assert schedule(torch.tensor(0.3)) == schedule(float(torch.tensor(0.3)))
    refused(lambda: schedule(t), "t")


@pytest.mark.parametrize("t", [None, "x", [1.0], 1j, torch.ones(1, dtype=torch.complex128)], ids=str)
def test_times_of_flows_on_torchs_clock_are_refused(t):
    state = FLOWS["torch"].start(POINT)
    refused(lambda: FLOWS["torch"].velocity(t, state), "t")
    equation = FLOWS["torch momentum"]
    refused(lambda: equation.diffusion(t, equation.start(POINT), torch.ones(6).double()), "t")


def test_values_of_schedules_are_refused():
    for schedule in (lambda t: None, lambda t: [1.0], lambda t: torch.ones(1).to_sparse()):
        refused(lambda schedule=schedule: WarmUp(1.0, schedule)(0.5), "schedule at t = 0")
        refused(
            lambda schedule=schedule: ScheduledGradientDescent(Rosenbrock(), 0.1, schedule).step(
                ScheduledGradientDescent(Rosenbrock(), 0.1, ConstantSchedule()).start(POINT), 0, torch.Generator()
            ),
            "schedule at t = 0",
        )
    refused(lambda: StepSchedule((0.1, 0.2), factor=1e300), "factor")
    refused(lambda: ExponentialSchedule(1.0)(-1e9), "t")


FOUR_BITS = torch.empty(2, dtype=torch.uint4)


@pytest.mark.parametrize("flag", [FOUR_BITS, torch.ones(2), 1, "yes", None, np.ones(2)], ids=lambda x: type(x).__name__)
def test_flags_are_refused(flag):
    refused(lambda: PrincipalFlow(Rosenbrock(), 0.1, third_order=flag), "third_order")
    refused(lambda: momentum_from_torch(Rosenbrock(), 0.1, 0.5, nesterov=flag), "nesterov")
    flow = ModifiedHeavyBallFlow(Rosenbrock(), 0.1, 5.0, 2)
    refused(lambda: TorchMomentumFlow(flow, 0.01, 0.5, nesterov=flag), "nesterov")


def test_orders_are_checked_before_they_are_shown():
    for make in (
        lambda order: ModifiedFlow(Rosenbrock(), 0.1, order),
        lambda order: ModifiedHeavyBallFlow(Rosenbrock(), 0.1, 0.5, order),
        lambda order: ReducedNesterovFlow(Rosenbrock(), 0.1, 0.5, order),
    ):
        for order in (FOUR_BITS, 10**9, 10**400):
            refused(lambda make=make, order=order: make(order), "order")


@pytest.mark.parametrize("number", [10**9, 2**63, 10**400])
def test_huge_numbers_of_descents_are_refused_with_the_bound(number):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    for name, make in {
        "level": lambda n: SVAG(REGRESSION, 0.1, 2, n),
        "window": lambda n: DriftAdjustedDescent(VALLEY, 0.1, window=n),
    }.items():
        with pytest.raises(ValueError, match=f"{name} must be at most 100000000"):
            make(number)
    for make in (
        lambda n: StochasticDriftAdjustedDescent(REGRESSION, 0.1, 2, window=n),
        lambda n: DriftAdjustedRate(optimizer, window=n),
    ):
        with pytest.raises(ValueError, match="window must be at most 100000000"):
            make(number)


def test_rates_whose_powers_overflow_are_refused():
    refused(lambda: ModifiedFlow(Rosenbrock(), 1e300, 3).velocity(0.0, POINT), "h")
    refused(lambda: Drift(Rosenbrock(), 1e300), "h")


def test_numpys_numbers_of_the_optimiser_are_taken():
    parameter = torch.nn.Parameter(torch.ones(2, dtype=torch.float64))
    rate = DriftAdjustedRate(torch.optim.SGD([parameter], lr=0.1), power=np.float64(1.0), window=np.int64(2))
    assert math.isclose(float(rate.step(lambda: torch.sum(parameter**2))), 2.0)


def test_gradient_flow_still_takes_a_state():
    assert GradientFlow(VALLEY).velocity(0.0, START).shape == START.shape
