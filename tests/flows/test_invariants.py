"""The checks pass for what is right and fail for what is wrong, on this project's flows and on a user's own."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows import Descent, Flow, GradientDescent, GradientFlow, HeavyBall, ModifiedFlow, OptimizerDescent, PrincipalFlow
from flows.invariants import InvariantError, check_batch, check_descent, check_equivariance, check_order
from flows.strategies import points, rotations, smooth_landscapes
from landscapes import Cosine, DoubleWell, Landscape, Quadratic, Rosenbrock
from tests.examples import few
from tests.flows.toys import Coupled

VALLEY = Rosenbrock(b=5.0)
START = torch.tensor([-0.4, 0.6], dtype=torch.float64)
WELL = DoubleWell(tilt=0.3, dimension=2)
LADDER = [0.04, 0.02, 0.01]
BEYOND = torch.tensor([1.6, 0.7], dtype=torch.float64)
TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)


@dataclass(frozen=True)
class Scaled(Flow):
    """A user's own flow, as short as one can be: −c∇f."""

    landscape: Landscape
    c: float = 1.0

    def velocity(self, t, state):
        return -self.c * self.landscape.grad(state)


@dataclass(frozen=True)
class WrongCoefficient(Flow):
    """Order 2 but for its coefficient."""

    landscape: Landscape
    h: float
    c: float

    def velocity(self, t, state):
        point = self.landscape.expand(state)
        return -point.grad - self.c * self.h * point.hvp(point.grad)


@dataclass(frozen=True)
class SignFlow(Flow):
    """Depends on the coordinates; it descends."""

    landscape: Landscape

    def velocity(self, t, state):
        return -torch.sign(self.landscape.grad(state))


@dataclass(frozen=True)
class Failing(Flow):
    """NaN from a time on."""

    landscape: Landscape
    until: float

    def velocity(self, t, state):
        return -self.landscape.grad(state) * (1.0 if float(t) < self.until else math.nan)


@dataclass(frozen=True)
class Mean(Descent):
    """Gradient descent on the mean gradient of the batch."""

    landscape: Landscape
    h: float

    def step(self, state, k, generator):
        grad = self.landscape.grad(state)
        return state - self.h * (grad + grad.reshape(-1, grad.shape[-1]).mean(dim=0)) / 2


@dataclass(frozen=True)
class Momentum(Flow):
    """A flow with more state than θ: (θ, velocity)."""

    landscape: Landscape

    def start(self, theta0):
        return torch.cat([theta0, torch.zeros_like(theta0)], dim=-1)

    def position(self, state):
        return state[..., : state.shape[-1] // 2]

    def velocity(self, t, state):
        theta, v = state.chunk(2, dim=-1)
        return torch.cat([v, -v - self.landscape.grad(theta)], dim=-1)


def descents(h):
    return GradientDescent(WELL, h)


def test_order_passes_and_tells_what_it_saw():
    study = check_order(lambda h: WrongCoefficient(WELL, h, 0.5), descents, BEYOND, 3, LADDER)
    assert study.order == pytest.approx(3, abs=0.1)
    check_order(lambda h: Scaled(WELL), descents, BEYOND, 2, LADDER)
    check_order(lambda h: Scaled(WELL, 2.0), descents, BEYOND, 1, LADDER, tolerance=0.3)


@pytest.mark.parametrize(
    ("flow", "claimed", "observed"),
    [
        (lambda h: WrongCoefficient(WELL, h, 1.0), 3, "[12]."),
        (lambda h: WrongCoefficient(WELL, h, -0.5), 3, "[12]."),
        (lambda h: ModifiedFlow(WELL, h, 2), 4, "[23]."),
        (lambda h: ModifiedFlow(WELL, h, 3), 3, "[34]."),
        (lambda h: Scaled(WELL, 2.0), 2, "[01]."),
    ],
)
def test_order_fails_for_a_wrong_model(flow, claimed, observed):
    with pytest.raises(InvariantError, match=rf"must be {claimed} ± 0\.1, observed {observed}"):
        check_order(flow, descents, BEYOND, claimed, LADDER)


def test_an_exact_model_has_at_least_any_order():
    landscape = Quadratic(torch.diag(torch.tensor([1.0, 0.4], dtype=torch.float64)))
    exact, steps = (lambda h: PrincipalFlow(landscape, h)), (lambda h: GradientDescent(landscape, h))
    for order in (2, 3, 5):
        study = check_order(exact, steps, BEYOND, order)
        assert study.least_order == math.inf
    with pytest.raises(InvariantError, match="one-step order must be 3"):  # and a wrong one has the order it has
        check_order(lambda h: Scaled(landscape), steps, BEYOND, 3)


@pytest.mark.parametrize(
    ("theta", "ladder", "order"),
    [(BEYOND, [1e-9, 5e-10], 3), (torch.zeros(2, dtype=torch.float64), [0.1, 0.05], 2), (BEYOND, None, 20)],
    ids=["too fine", "at rest", "too high"],
)
def test_an_order_that_no_rung_could_show_is_not_counted_as_seen(theta, ladder, order):
    landscape = Quadratic(torch.eye(2, dtype=torch.float64))
    with pytest.raises(InvariantError, match=f"errors of order {order} must be above rounding to be seen"):
        check_order(
            lambda h: PrincipalFlow(landscape, h), lambda h: GradientDescent(landscape, h), theta, order, ladder
        )


def test_order_fails_where_none_is_seen():
    landscape = Quadratic(torch.eye(2, dtype=torch.float64))
    with pytest.raises(InvariantError, match="observed none"):  # singular at hλ = 1, and a single rung beside it
        check_order(
            lambda h: PrincipalFlow(landscape, h), lambda h: GradientDescent(landscape, h), BEYOND, 3, [1.0, 0.5]
        )


def test_orders_hidden_by_rounding_are_bounded_by_the_floor():
    """Order 6: one rung above rounding and the next at it, so that the slope is at least that down to the floor."""
    valley = DoubleWell(tilt=0.3)
    theta, ladder = torch.tensor([1.3], dtype=torch.float64), [0.0116, 0.003]
    steps = partial(GradientDescent, valley)
    study = check_order(lambda h: ModifiedFlow(valley, h, 5), steps, theta, 4, ladder)
    assert math.isnan(study.order)
    assert 4 < study.least_order < 6
    with pytest.raises(InvariantError, match=r"must be 7 ± 0\.1, observed at least [45]\."):
        check_order(lambda h: ModifiedFlow(valley, h, 5), steps, theta, 7, ladder)


def test_order_tolerance_is_the_callers():
    with pytest.raises(InvariantError):
        check_order(lambda h: Scaled(WELL), descents, BEYOND, 2, LADDER, tolerance=1e-6)
    check_order(lambda h: Scaled(WELL), descents, BEYOND, 2.4, LADDER, tolerance=0.5)


@few(8)
@given(data=st.data())
def test_equivariance_passes(data):
    landscape = data.draw(smooth_landscapes(2))
    for flow in (Scaled, GradientFlow, Momentum, lambda f: ModifiedFlow(f, 0.1, 3)):
        check_equivariance(flow, landscape, data.draw(points(2, 2)), data.draw(rotations(2)))


@pytest.mark.parametrize("theta", [START, torch.stack([START, 2 * START])])
def test_equivariance_fails_for_what_depends_on_coordinates(theta):
    with pytest.raises(InvariantError, match="velocity must turn with the coordinates"):
        check_equivariance(SignFlow, VALLEY, theta, TURN)
    with pytest.raises(InvariantError, match="velocity must turn with the coordinates"):
        check_equivariance(lambda f: Failing(f, -1.0), VALLEY, theta, TURN)
    nearly = Quadratic(torch.eye(2, dtype=torch.float64))

    class Leaning(Scaled):
        def velocity(self, t, state):
            return super().velocity(t, state) + 1e-6 * state * torch.tensor([1.0, 0.0], dtype=state.dtype)

    with pytest.raises(InvariantError):
        check_equivariance(Leaning, nearly, theta, TURN)
    check_equivariance(Leaning, nearly, theta, TURN, tolerance=1e-4)


@few(8)
@given(data=st.data())
def test_descent_passes_for_a_users_flow(data):
    landscape = data.draw(smooth_landscapes(2))
    check_descent(Scaled(landscape, 2.0), data.draw(points(2, 2)), [0.0, 0.05, 0.1])


def test_descent_passes_at_rest_and_in_one_member():
    check_descent(SignFlow(Quadratic(torch.eye(2, dtype=torch.float64))), START, [0.0, 0.1, 0.2])
    check_descent(GradientFlow(Cosine()), torch.zeros(2, dtype=torch.float64), [0.0, 1.0])


@pytest.mark.parametrize(
    "flow",
    [
        Scaled(VALLEY, -1.0),
        Coupled(VALLEY, 50.0),
        Failing(VALLEY, -1.0),
        WrongCoefficient(Cosine(), 1.0, -2.0),
    ],
    ids=["ascent", "coupled", "nan", "ascent by curvature"],
)
def test_descent_fails_for_what_rises_or_breaks(flow):
    theta = torch.stack([START, -START, START + 1])
    with pytest.raises(InvariantError):
        check_descent(flow, theta, [0.0, 0.1, 0.2, 0.3])


def test_descent_sees_a_rise_in_one_member_of_many():
    @dataclass(frozen=True)
    class OneClimbs(Flow):
        landscape: Landscape

        def velocity(self, t, state):
            return -self.landscape.grad(state) * torch.where(state[..., :1] > 1.5, -1.0, 1.0)

    landscape = DoubleWell(dimension=2)
    calm = torch.tensor([[0.2, 1.0], [-0.7, 0.3], [1.2, 0.1]], dtype=torch.float64)
    check_descent(OneClimbs(landscape), calm, [0.0, 0.01, 0.02])
    with pytest.raises(InvariantError):
        check_descent(OneClimbs(landscape), torch.cat([calm, calm[-1:] + 0.8]), [0.0, 0.01, 0.02])


MODELS = {
    "scaled": Scaled(VALLEY),
    "momentum": Momentum(VALLEY),
    "sign": SignFlow(Quadratic(torch.eye(2, dtype=torch.float64))),
    "descent": GradientDescent(VALLEY, 0.01),
    "heavy ball": HeavyBall(VALLEY, 0.01, 0.9),
    "adam": OptimizerDescent(VALLEY, lambda parameters: torch.optim.Adam(parameters, lr=0.01)),
}


@pytest.mark.parametrize("name", MODELS)
def test_batch_passes(name, normal):
    check_batch(MODELS[name], START + 0.1 * normal(0, 3, 2), steps=2)


@pytest.mark.parametrize(
    ("model", "engine"), [(Coupled(VALLEY, 0.01), "rk4"), (Mean(VALLEY, 0.01), "descend")], ids=["flow", "descent"]
)
def test_batch_fails_for_members_that_feel_each_other(model, engine, normal):
    with pytest.raises(InvariantError, match=f"{engine}: member 0 alone and in the batch differ by"):
        check_batch(model, START + 0.1 * normal(0, 2, 2), steps=2)
    check_batch(model, START + 0.1 * normal(0, 2, 2), steps=2, tolerance=0.5)


def test_batch_fails_where_a_member_is_lost(normal):
    @dataclass(frozen=True)
    class AllOrNothing(Flow):
        landscape: Landscape

        def velocity(self, t, state):
            lost = bool((state > 5).any())  # one member far out spoils all
            return -self.landscape.grad(state) * (math.nan if lost else 1.0)

    theta = torch.stack([START, START + 6])
    with pytest.raises(InvariantError, match="rk4: member 0 alone"):
        check_batch(AllOrNothing(VALLEY), theta, steps=2)


def test_a_start_that_is_none_of_the_landscape_is_named():
    with pytest.raises(ValueError, match="theta must have shape"):
        check_order(
            lambda h: ModifiedFlow(WELL, h, 2),
            lambda h: GradientDescent(WELL, h),
            torch.ones(3, dtype=torch.float64),
            2,
        )
