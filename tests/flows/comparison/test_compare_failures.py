"""compare where something cannot go on: rows that say why, notes, runs that end early, descents that diverge."""

import importlib
from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from flows import Flow, GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, compare, integrate
from landscapes import DoubleWell, Landscape, NotHolomorphicError, Quadratic, QuarticWell, Rosenbrock
from tests.flows.comparison.three import three
from tests.flows.toys import Undeclared
from tests.tensors import f64

START = torch.tensor([1.0, -0.7], dtype=torch.float64)
RATE, STEPS = 0.2, 6
CLOCK = torch.arange(STEPS + 1, dtype=torch.float64) * RATE


def test_a_flow_that_cannot_run_is_a_row_that_says_why(tmp_path):
    landscape = Undeclared()
    flows = {"PF": PrincipalFlow(landscape, RATE), "GF": GradientFlow(landscape)}
    flows["real"] = PrincipalFlow(landscape, RATE, branch="real")
    with pytest.raises(NotHolomorphicError):
        integrate(flows["PF"], START, CLOCK)
    result = compare(GradientDescent(landscape, RATE), flows, START, STEPS)
    row = result.rows["PF"]
    assert row.trajectory is None
    assert "cannot run here" in row.notes[0]
    assert "branch='real'" in row.notes[0]
    for tensor, length in ((row.errors, STEPS + 1), (row.one_step, STEPS), (row.integration, STEPS + 1)):
        assert tensor.shape == (length,)
        assert bool(tensor.isnan().all())
    assert "PF" not in result.cost
    assert "PF: cannot run here" in str(result)
    assert float(result.errors["real"].max()) < 1e-6
    assert float(result.errors["GF"][-1]) > 1e-3
    result.save(tmp_path)
    assert not (tmp_path / "pf").exists()


def test_series_outside_their_radius_are_told():
    bowl = Quadratic(torch.diag(f64(1.0, -0.2)))
    for h, outside in ((0.95, None), (1.2, pytest.approx(1.2))):
        flows = {"MF3": ModifiedFlow(bowl, h, 3), "PF": PrincipalFlow(bowl, h), "GF": GradientFlow(bowl)}
        result = compare(GradientDescent(bowl, h), flows, START, 2, rtol=1e-4)
        assert [row.outside for row in result.rows.values()] == [outside, None, None]
        assert ("outside its series: |hλ| = 1.2" in str(result)) == (outside is not None)
    hill = Quadratic(torch.diag(f64(-6.0, 0.1)))  # negative curvature counts
    row = compare(GradientDescent(hill, RATE), {"MF2": ModifiedFlow(hill, RATE, 2)}, START / 100, 2).rows["MF2"]
    assert row.outside == pytest.approx(1.2)


@pytest.mark.parametrize("direction", [(2.0, -1.0), (1.0, 1.0), (1.0, -1.0), (1.0, 0.0), (0.0, 1.0)])
def test_no_sharp_direction_hides(direction):
    u = f64(*direction)
    landscape = Quadratic(5 / float(u @ u) * torch.outer(u, u) + torch.eye(2, dtype=torch.float64) / 2)
    result = compare(GradientDescent(landscape, RATE), {"MF2": ModifiedFlow(landscape, RATE, 2)}, START, 2, rtol=1e-4)
    assert result.rows["MF2"].outside == pytest.approx(1.1)


def test_curvature_met_on_the_way_is_told():
    landscape = DoubleWell()  # λ = 3x² − 1 grows on the way down from the barrier
    flows = {"MF2": ModifiedFlow(landscape, 0.6, 2)}
    assert compare(GradientDescent(landscape, 0.6), flows, f64(0.3), 1).rows["MF2"].outside is None
    assert compare(GradientDescent(landscape, 0.6), flows, f64(0.3), 12).rows["MF2"].outside > 1


def test_a_singular_mode_is_a_row_of_its_own():
    landscape = Quadratic(torch.diag(f64(4.0, 0.5)))
    result = compare(GradientDescent(landscape, 0.25), three(landscape, 0.25), f64(1.0, 1.0), 3)
    row = result.rows["PF"]
    assert row.trajectory.status == "singular mode"
    assert float(row.errors[0]) == 0
    assert bool(row.errors[1:].isnan().all())
    assert bool(row.one_step.isnan().all())
    assert "singular mode" in str(result)
    assert "hλ = 1" in str(result)
    assert bool(result.errors["GF"].isfinite().all())


def test_a_flow_that_ends_early_is_padded_with_nan():
    landscape = QuarticWell(S=1.0, Q=1.0)
    # outside the well the flow reaches infinity in finite time, gradient descent does not
    result = compare(GradientDescent(landscape, 0.2), {"GF": GradientFlow(landscape)}, f64(1.5), 2)
    row = result.rows["GF"]
    kept = len(row.trajectory.theta)
    assert kept == 2
    for values in (row.errors, row.losses, row.integration):
        assert values.shape == (3,)
        assert bool(values[:kept].isfinite().all())
        assert bool(values[kept:].isnan().all())
    assert row.trajectory.status in str(result)
    assert "nan" in str(result)


@dataclass(frozen=True)
class Still(Flow):
    """Stays where it is: cheap beside a descent that does not."""

    landscape: Landscape

    def velocity(self, t, state):
        return torch.zeros_like(state)


def test_a_descent_that_diverges_is_compared_up_to_its_end():
    landscape = QuarticWell(S=1.0, Q=1.0)
    result = compare(GradientDescent(landscape, 0.5), [Still(landscape)], f64(2.0), 30)
    kept = len(result.times)
    assert result.descent.status == "diverged"
    assert 2 < kept < 12
    assert result.errors["Still"].shape == (kept,)
    assert_close(result.errors["Still"], (result.mean - 2).abs()[:, 0])
    assert result.one_step["Still"].shape == (kept - 1,)
    assert "not finite after step" in str(result)
    with pytest.raises(ValueError, match="nothing to compare: not finite after step 1"):
        compare(GradientDescent(landscape, 0.5), [Still(landscape)], f64(1e120), 3)


def test_a_member_that_diverges_leaves_nan_not_the_distance_to_a_frozen_state():
    landscape = QuarticWell(S=1.0, Q=1.0)
    theta0 = f64(0.3, 5.0)[:, None]
    result = compare(GradientDescent(landscape, 0.5), [Still(landscape)], theta0, 8)
    assert result.descent.alive.tolist() == [True, False]
    assert bool(result.errors["Still"][:, 0].isfinite().all())
    assert bool(result.errors["Still"][-1, 1].isnan())


class Budgeted(Landscape):
    """Rosenbrock's valley that ends the test after so many gradients."""

    dimension = 2

    def __init__(self, gradients):
        self.left = gradients

    def loss(self, theta):
        return Rosenbrock().loss(theta)

    def grad(self, theta):
        self.left -= 1
        if self.left < 0:
            raise AssertionError("out of gradients: the comparison does not end")
        return Rosenbrock().grad(theta)


def test_a_descent_that_diverges_on_a_steep_wall_does_not_hang(monkeypatch):
    # at θ ~ 1e5 gradient flow is so stiff that an explicit method would need 1e12 steps to cross one h
    monkeypatch.setattr(importlib.import_module("flows.comparison.rows"), "MAX_STEPS", 200)
    landscape = Budgeted(12_000)
    result = compare(GradientDescent(landscape, 0.1), {"GF": GradientFlow(landscape)}, f64(-1.2, 1.0), 3)
    assert float(result.mean.abs().max()) > 1e5
    assert bool(result.one_step["GF"][:1].isfinite().all())


def test_order_one_is_gradient_flow_and_has_no_radius():
    bowl = Quadratic(torch.eye(2, dtype=torch.float64))
    result = compare(
        GradientDescent(bowl, 1.5), {"1": ModifiedFlow(bowl, 1.5, 1), "2": ModifiedFlow(bowl, 1.5, 2)}, START, 2
    )
    assert result.rows["1"].outside is None
    assert result.rows["2"].outside == pytest.approx(1.5)
