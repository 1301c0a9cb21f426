"""Observed orders: known slopes, rungs at rounding left out, integration errors as they are, arguments."""

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch

from flows import (
    Descent,
    Flow,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    ModifiedFlow,
    PrincipalFlow,
    StochasticGradientDescent,
)
from flows.orders.ladder import (
    Integration,
    OrderStudy,
    global_order,
    measured_rung,
    one_step_order,
    sharpness_at,
)
from landscapes import DoubleWell, Landscape, LinearRegression, Quadratic, Rosenbrock, UnsupportedError
from nets import NetworkLandscape

WELL = DoubleWell(tilt=0.3)
START = torch.tensor([1.6], dtype=torch.float64)
LADDER = [0.08, 0.04, 0.02, 0.01]


def study(order, theta=START, ladder=LADDER):
    return one_step_order(lambda h: ModifiedFlow(WELL, h, order), lambda h: GradientDescent(WELL, h), theta, ladder)


def test_errors_against_the_closed_form_of_a_quadratic():
    landscape = Quadratic(torch.tensor([[2.0]], dtype=torch.float64))
    found = one_step_order(lambda h: GradientFlow(landscape), lambda h: GradientDescent(landscape, h), START, LADDER)
    expected = [1.6 * abs(math.exp(-2 * h) - 1 + 2 * h) for h in LADDER]
    assert found.ladder == tuple(LADDER)
    assert found.errors == pytest.approx(expected, rel=1e-8)
    slopes = [math.log2(e / f) for e, f in pairwise(expected)]
    assert found.slopes == pytest.approx(slopes, rel=1e-6)
    assert found.order == pytest.approx(slopes[-1], rel=1e-6)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_slopes_tend_to_one_more_than_the_order(order):
    found = study(order)
    distances = [abs(slope - order - 1) for slope in found.slopes]
    assert distances[-1] < 0.1
    assert distances == sorted(distances, reverse=True)


def test_rungs_are_sorted_and_the_batch_gives_its_worst():
    assert study(2, ladder=[0.02, 0.08, 0.04]).ladder == (0.08, 0.04, 0.02)
    members = torch.tensor([[1.6], [1.1], [1.3]], dtype=torch.float64)
    alone = [study(2, theta) for theta in members]
    worst = [max(errors) for errors in zip(*(s.errors for s in alone), strict=True)]
    assert study(2, members).errors == pytest.approx(worst, rel=1e-6)


def test_rungs_at_rounding_are_not_used():
    found = study(3, ladder=[0.04, 0.02, 0.01, 1e-4, 1e-5])
    assert found.errors[-1] <= found.floor < found.errors[2]
    assert found.order == found.slopes[1]
    assert "(rounding)" in str(found)
    assert str(found).endswith(f"observed order {found.order:.3f}")


def test_an_exact_model_has_no_order():
    landscape = Quadratic(torch.tensor([[0.7]], dtype=torch.float64))
    found = one_step_order(
        lambda h: PrincipalFlow(landscape, h), lambda h: GradientDescent(landscape, h), START, LADDER
    )
    assert max(found.errors) <= found.floor
    assert math.isnan(found.order)
    assert found.least_order == math.inf
    assert str(found).endswith("observed order at least any: exact")


def test_a_run_that_fails_is_not_a_rung():
    # hλ = 1 at h = 0.5: the principal flow does not exist there
    landscape = Quadratic(torch.tensor([[2.0]], dtype=torch.float64))
    found = one_step_order(
        lambda h: PrincipalFlow(landscape, h), lambda h: GradientDescent(landscape, h), START, [0.5, 0.25]
    )
    assert math.isnan(found.errors[0])
    assert math.isnan(found.order)


def test_slopes_of_a_made_up_study():
    made_up = OrderStudy((0.4, 0.2, 0.1, 0.05), (8.0, 1.0, 0.0, math.nan), floor=1e-3)
    assert made_up.slopes[0] == pytest.approx(3)
    assert all(math.isnan(slope) for slope in made_up.slopes[1:])
    assert made_up.order == pytest.approx(3)


def test_momentum_is_another_model():
    # heavy ball's first step is gradient descent's, so gradient flow has order 2 against it
    found = one_step_order(lambda h: GradientFlow(WELL), lambda h: HeavyBall(WELL, h, 0.5), START, LADDER)
    assert found.order == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("ladder", "error", "text"),
    [
        ([0.1], ValueError, "at least two different learning rates"),
        ([], ValueError, "at least two different learning rates"),
        ([0.1, 0.1], ValueError, "at least two different learning rates"),
        ([0.1, -0.1], ValueError, "ladder must be positive"),
        ([0.1, math.nan], ValueError, "ladder must be positive"),
        (["0.1", 0.2], TypeError, "ladder must be a positive real number"),
    ],
)
def test_ladders_are_checked(ladder, error, text):
    with pytest.raises(error, match=text):
        study(2, ladder=ladder)


@pytest.mark.parametrize("theta", [torch.ones(1, dtype=torch.int64), [1.0], torch.tensor([math.nan])])
def test_theta0_is_checked(theta):
    with pytest.raises((TypeError, ValueError), match="theta0 must"):
        study(2, theta)


BOWL = Quadratic(torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64)))
CORNER = torch.tensor([1.0, -0.7], dtype=torch.float64)


def bowl_flow(h):
    return GradientFlow(BOWL)


def bowl_descent(h):
    return GradientDescent(BOWL, h)


def closed_form(h, steps, start=CORNER):
    """‖(exp(−λ h steps) − (1 − hλ)^steps) θ0‖."""
    rates = ((2.0, float(start[0])), (0.5, float(start[1])))
    return math.hypot(*((math.exp(-rate * h * steps) - (1 - h * rate) ** steps) * x for rate, x in rates))


def test_a_quadratic_in_closed_form_order_and_end_of_asymptotics():
    ladder = [0.4 * 0.5**k for k in range(9)]
    found = one_step_order(bowl_flow, bowl_descent, CORNER, ladder)
    expected = [closed_form(h, 1) for h in ladder]
    assert found.errors == pytest.approx(expected, rel=1e-9)
    assert all(found.trusted)
    assert found.fit.low < 2 < found.fit.high < found.fit.low + 0.05
    slopes = [math.log2(e / f) for e, f in pairwise(expected)]
    far = [i for i, slope in enumerate(slopes) if abs(slope - 2) > 0.1]
    assert far  # the ladder starts outside
    assert found.asymptotic_end == ladder[far[-1] + 1]
    assert found.sharpness == pytest.approx(2, rel=1e-9)
    assert f"(hλ = {2 * found.asymptotic_end:.3g})" in found.sentence


def test_errors_at_a_fixed_time_in_closed_form():
    ladder = [0.4 * 0.5**k for k in range(7)]
    found = global_order(bowl_flow, bowl_descent, CORNER, ladder, 1.2)
    assert found.errors == pytest.approx([closed_form(1.2 / n, n) for n in (3, 6, 12, 24, 48, 96, 192)], rel=1e-9)
    assert found.fit.low < 1 < found.fit.high
    assert found.fit.high < found.fit.low + 0.15
    assert found.quantity == "error at t = 1.2"
    assert "error at t = 1.2" in str(found)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize(("study_of", "more", "above"), [(one_step_order, (), 1), (global_order, (0.8,), 0)])
def test_modified_flows_on_a_valley(order, study_of, more, above):
    valley = Rosenbrock(b=2.0)
    start = torch.tensor([-0.4, 0.6], dtype=torch.float64)
    ladder = [0.8 / n for n in (16, 32, 64, 128, 256)]
    found = study_of(
        lambda h: ModifiedFlow(valley, h, order), lambda h: GradientDescent(valley, h), start, ladder, *more
    )
    assert all(found.trusted)
    assert found.fit.low < order + above < found.fit.high < found.fit.low + 0.3


@pytest.mark.parametrize("order", [1, 2, 3])
def test_modified_flows_on_a_tanh_network_from_several_starts(order):
    generator = torch.Generator().manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1)).double()
    inputs, targets = torch.randn(12, 3, generator=generator, dtype=torch.float64).split([2, 1], dim=1)
    net = NetworkLandscape(module, lambda out, y: (out - y).square().sum(-1), inputs, targets)
    starts = torch.randn(2, net.dimension, generator=generator, dtype=torch.float64) / 2
    largest = 0.2 / sharpness_at(net, starts)
    found = one_step_order(
        lambda h: ModifiedFlow(net, h, order),
        lambda h: GradientDescent(net, h),
        starts,
        [largest * 0.5**k for k in range(6)],
    )
    assert sum(found.trusted) >= 5
    assert found.fit.order == pytest.approx(order + 1, abs=0.03)
    assert found.fit.low < order + 1 < found.fit.high


def test_integration_errors_are_what_two_runs_of_heun_differ_by():
    """Heun's step multiplies a mode by R(z) = 1 − z + z²/2, z = λ dt: the tight run in steps of h/4, the other h/2."""
    found = one_step_order(bowl_flow, bowl_descent, CORNER, [0.2, 0.1, 0.05], Integration("heun2", substeps=2))
    for h, error, apart in zip(found.ladder, found.errors, found.integration_errors, strict=True):
        tight, loose = (
            [(1 - z + z * z / 2) ** n * float(x) for z, x in zip((2.0 * h / n, 0.5 * h / n), CORNER, strict=True)]
            for n in (4, 2)
        )
        assert apart == pytest.approx(math.dist(tight, loose), rel=1e-8)
        moved = [float(x) * (1 - h * rate) for rate, x in zip((2.0, 0.5), CORNER, strict=True)]
        assert error == pytest.approx(math.dist(tight, moved), rel=1e-8)


def test_rungs_that_show_the_integrator_are_not_trusted():
    # Euler's half steps are off gradient flow by O(h²), as gradient descent itself is
    found = one_step_order(bowl_flow, bowl_descent, CORNER, LADDER, Integration("euler", substeps=1))
    assert not any(found.trusted)
    assert found.fit is None
    assert math.isnan(found.order)
    assert str(found).count("(integration)") == len(LADDER)


def test_adaptive_runs_that_could_take_the_same_steps_do_not():
    loose, tight = (Integration().arguments(0.1, torch.float64, looser) for looser in (True, False))
    assert (loose["first_step"], tight["first_step"]) == (0.1, 0.05)
    assert loose["rtol"] == 10 * tight["rtol"]
    # so large a tolerance that every trial step is accepted
    found = one_step_order(bowl_flow, bowl_descent, CORNER, [0.4, 0.2], Integration("bosh3", 1.0, 1.0))
    assert min(found.integration_errors) > 1e-5


class Hill(Landscape):
    """f = −θ⁴/4: gradient flow blows up at t = 1/(2θ0²)."""

    dimension = 1

    def loss(self, theta):
        return -(theta**4).sum(dim=-1) / 4


@pytest.mark.parametrize(
    ("starts", "ladder", "statuses"),
    [
        ([[0.1], [3.0]], [0.1, 0.01], ("members lost", "finished")),  # blows up at t = 0.056
        ([[0.1], [1e120]], [1e-3, 1e-4], ("descent diverged", "descent diverged")),  # cubes overflow
    ],
)
def test_members_that_are_lost_leave_no_rung(starts, ladder, statuses):
    theta = torch.tensor(starts, dtype=torch.float64)
    found = one_step_order(lambda h: GradientFlow(Hill()), lambda h: GradientDescent(Hill(), h), theta, ladder)
    assert found.statuses == statuses
    assert [math.isnan(error) for error in found.errors] == [status != "finished" for status in statuses]
    assert f"({statuses[0]})" in str(found)


def test_a_singular_rung_says_so():
    landscape = Quadratic(torch.tensor([[2.0]], dtype=torch.float64))
    found = one_step_order(
        lambda h: PrincipalFlow(landscape, h), lambda h: GradientDescent(landscape, h), START, [0.5, 0.25]
    )
    assert found.statuses == ("singular mode", "finished")
    assert "(singular mode)" in str(found)


@dataclass(frozen=True)
class Damped(Flow):
    """θ' = v, v' = −v − ∇f(θ), from rest: a flow with more state than θ."""

    landscape: Landscape

    def start(self, theta0):
        return torch.cat([theta0, torch.zeros_like(theta0)], dim=-1)

    def position(self, state):
        return state.chunk(2, dim=-1)[0]

    def velocity(self, t, state):
        theta, v = state.chunk(2, dim=-1)
        return torch.cat([v, -v - self.landscape.grad(theta)], dim=-1)


@dataclass(frozen=True)
class DampedSteps(Descent):
    """Symplectic Euler of the same: v' = v − h(v + ∇f), θ' = θ + h v'."""

    landscape: Landscape
    h: float

    def start(self, theta0):
        return theta0, torch.zeros_like(theta0)

    def position(self, state):
        return state[0]

    def step(self, state, k, generator):
        theta, v = state
        v = v - self.h * (v + self.landscape.grad(theta))
        return theta + self.h * v, v


def test_states_beyond_theta_start_as_flow_and_descent_say():
    ladder = [1.0 / n for n in (20, 40, 80, 160, 320)]
    found = global_order(lambda h: Damped(WELL), lambda h: DampedSteps(WELL, h), START, ladder, 1.0)
    assert found.fit.order == pytest.approx(1, abs=0.01)
    assert found.fit.low < 1 < found.fit.high


def test_a_loss_without_second_derivatives_has_no_sharpness():
    class Rough(Landscape):
        dimension = 1

        def loss(self, theta):
            return theta.square().sum(dim=-1)

        def expand(self, theta):
            raise NotImplementedError

    assert math.isnan(sharpness_at(Rough(), START))
    assert sharpness_at(WELL, torch.stack([START, START / 4])) == pytest.approx(3 * 1.6**2 - 1)


def test_single_precision_has_its_own_floor():
    found = one_step_order(bowl_flow, bowl_descent, CORNER.float(), [0.4, 0.2, 0.1, 0.05, 1e-4])
    assert found.fit.low < 2 < found.fit.high
    assert not found.trusted[-1]


def test_a_stochastic_descent_is_refused():
    generator = torch.Generator().manual_seed(0)
    sums = LinearRegression(*torch.randn(2, 5, 1, generator=generator, dtype=torch.float64).unbind()[:1], torch.ones(5))
    with pytest.raises(UnsupportedError, match=r"weak_order.*full_batch\(\)"):
        one_step_order(lambda h: GradientFlow(sums), lambda h: StochasticGradientDescent(sums, h, 2), START, LADDER)


@pytest.mark.parametrize(
    ("flow", "descent", "text"),
    [
        (
            lambda h: GradientFlow(WELL),
            lambda h: GradientDescent(WELL, 2 * h),
            "descent.h. must have the learning rate",
        ),
        (
            lambda h: ModifiedFlow(WELL, 0.1, 2),
            lambda h: GradientDescent(WELL, h),
            "flow.h. must have the learning rate",
        ),
        (lambda h: GradientFlow(WELL), lambda h: WELL, "descent must map h to a Descent"),
        (lambda h: WELL, lambda h: GradientDescent(WELL, h), "flow must be a Flow"),
    ],
)
def test_models_are_checked(flow, descent, text):
    with pytest.raises((TypeError, ValueError), match=text):
        measured_rung(flow, descent, START, 0.05, 1)


@pytest.mark.parametrize("time", [0.7, 0.01, -1.0, math.inf])
def test_times_are_whole_numbers_of_steps(time):
    with pytest.raises(ValueError, match="time must be"):
        global_order(bowl_flow, bowl_descent, CORNER, [0.4, 0.2], time)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"method": "rk5"}, "method must be one of"),
        ({"method": "rk4"}, "substeps must be given"),
        ({"method": "rk4", "substeps": 0}, "substeps must be at least 1"),
        ({"method": "rk4", "substeps": 2, "rtol": 1e-3}, "rtol and atol are for adaptive methods"),
        ({"substeps": 2}, "substeps are for fixed-step methods"),
        ({"rtol": 0.0}, "rtol must be positive"),
    ],
)
def test_integrations_are_checked(arguments, text):
    with pytest.raises(ValueError, match=text):
        Integration(**arguments)
