"""Studies of orders and invariants in other units of f and θ: the same rungs, errors and verdicts."""

import math
from dataclasses import dataclass
from functools import partial

import pytest
import sympy
import torch

from flows import GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow
from flows.invariants import InvariantError, check_batch, check_order
from flows.orders.ladder import one_step_order, relative_ladder
from landscapes import DoubleWell, Landscape, Quadratic, Rosenbrock, from_sympy
from tests.flows.toys import Coupled

VALLEY, WELL = Rosenbrock(b=5.0), DoubleWell(tilt=0.3, dimension=2)
CORNER, BEYOND, START = torch.tensor([[1.0, -0.7], [1.6, 0.7], [-0.4, 0.6]], dtype=torch.float64).unbind()


@dataclass(frozen=True)
class Rescaled(Landscape):
    """a f(θ/s): the same landscape in other units."""

    inner: Landscape
    a: float
    s: float

    @property
    def dimension(self):
        return self.inner.dimension

    def loss(self, theta):
        return self.a * self.inner.loss(theta / self.s)


UNITS = pytest.mark.parametrize(("a", "s"), [(1e6, 1.0), (1e-6, 1.0), (1.0, 1e6), (1.0, 1e-6)])


@UNITS
def test_order_has_the_same_verdict_in_any_units(a, s):
    well, bowl = (
        Rescaled(f, a, s) for f in (WELL, Quadratic(torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))))
    )
    for order in (1, 2, 3):
        flow, steps = partial(ModifiedFlow, well, order=order), partial(GradientDescent, well)
        study = check_order(flow, steps, s * BEYOND, order + 1)
        assert all(study.trusted)
        with pytest.raises(InvariantError, match=f"must be {order + 2}"):
            check_order(flow, steps, s * BEYOND, order + 2)
    exact = check_order(partial(PrincipalFlow, bowl, branch="real"), partial(GradientDescent, bowl), s * BEYOND, 3)
    assert exact.least_order == math.inf


@UNITS
def test_batch_has_the_same_verdict_in_any_units(a, s, normal):
    thetas = s * (START + 0.1 * normal(0, 3, 2))
    check_batch(GradientFlow(Rescaled(VALLEY, a, s)), thetas)
    with pytest.raises(InvariantError, match="rk4: member 0 alone"):
        check_batch(Coupled(Rescaled(VALLEY, a, s), a / s**2), thetas)


@pytest.mark.parametrize(("a", "s"), [(2.0**20, 1.0), (2.0**-20, 1.0), (1.0, 2.0**20), (1.0, 2.0**-20)])
def test_studies_are_the_same_in_any_units(a, s):
    """Powers of two keep every digit of f and θ, so that studies differ by the integrator's tolerances at most."""

    def measured(landscape, start):
        ladder = relative_ladder(landscape, start, [0.2 * 0.5**k for k in range(5)])
        return one_step_order(
            lambda h: ModifiedFlow(landscape, h, 2), lambda h: GradientDescent(landscape, h), start, ladder
        )

    plain = measured(DoubleWell(tilt=0.3, dimension=2), CORNER)
    other = measured(Rescaled(DoubleWell(tilt=0.3, dimension=2), a, s), s * CORNER)
    assert other.trusted == plain.trusted == (True,) * 5
    assert other.sharpness == pytest.approx(a / s**2 * plain.sharpness, rel=1e-9)
    assert other.ladder == pytest.approx([h * s**2 / a for h in plain.ladder], rel=1e-9)
    assert other.errors == pytest.approx([s * error for error in plain.errors], rel=1e-5)
    assert other.fit.order == pytest.approx(plain.fit.order, abs=1e-4)


def test_a_ladder_needs_curvature_to_scale_by():
    flat = from_sympy(sympy.Symbol("x") * 3, [sympy.Symbol("x")])
    with pytest.raises(ValueError, match="ladder must be given where the Hessian has no eigenvalue"):
        relative_ladder(flat, CORNER[:1], [0.1, 0.05])
