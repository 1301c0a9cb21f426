"""Observed orders: known slopes, rungs at rounding left out, arguments."""

import math
from itertools import pairwise

import pytest
import torch

from flows import GradientDescent, GradientFlow, HeavyBall, ModifiedFlow, PrincipalFlow
from flows.orders import OrderStudy, one_step_order
from landscapes import DoubleWell, Quadratic

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
