"""Orders that change along a ladder: sharpness-aware steps at a fixed radius, and the figure of what drifts."""

from dataclasses import dataclass

import pytest
import torch

from flows import Descent, GradientDescent, GradientFlow
from flows.orders.figure import legend, plot_orders
from flows.orders.ladder import one_step_order, sharpness_at
from landscapes import DoubleWell, Landscape, Quadratic

BOWL = Quadratic(torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64)))
CORNER = torch.tensor([1.0, -0.7], dtype=torch.float64)


@dataclass(frozen=True)
class Ascending(Descent):
    """Sharpness-aware steps θ − h∇f(θ + ρ∇f/‖∇f‖): h(ρ H∇f/‖∇f‖ + …) from gradient flow, order 1 at a fixed ρ."""

    landscape: Landscape
    h: float
    rho: float

    def step(self, state, k, generator):
        gradient = self.landscape.grad(state)
        length = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
        return state - self.h * self.landscape.grad(state + self.rho * gradient / length)


@pytest.mark.parametrize(("rho", "rungs"), [(1e-2, 5), (1e-3, 8), (1e-2, 8), (1e-1, 5), (1e-1, 8)])
@pytest.mark.parametrize("landscape", [BOWL, DoubleWell(tilt=0.3, dimension=2)], ids=["bowl", "well"])
def test_sharpness_aware_steps_drift_from_order_two_to_one(landscape, rho, rungs):
    largest = 0.5 / sharpness_at(landscape, CORNER)
    ladder = [largest * 0.5**k for k in range(rungs)]
    found = one_step_order(lambda h: GradientFlow(landscape), lambda h: Ascending(landscape, h, rho), CORNER, ladder)
    assert all(found.trusted)
    assert found.drifts or found.fit.low <= 1 <= found.fit.high
    assert found.drifts == ((rho, rungs) in {(1e-2, 5), (1e-3, 8)})


def test_the_figure_marks_slopes_that_drift(tmp_path):
    ladder = [0.25 * 0.5**k for k in range(5)]
    drifting, settled = (
        one_step_order(lambda h: GradientFlow(BOWL), steps, CORNER, ladder)
        for steps in (lambda h: Ascending(BOWL, h, 1e-2), lambda h: GradientDescent(BOWL, h))
    )
    assert (drifting.drifts, settled.drifts) == (True, False)
    for studies, marked in (({"a": drifting, "b": settled}, True), ({"b": settled}, False)):
        labels = [line.get_label() for line in legend({}, [studies])]
        assert ("slopes drift: no order" in labels) == marked
        assert plot_orders([studies], tmp_path / "orders.png").stat().st_size > 0
