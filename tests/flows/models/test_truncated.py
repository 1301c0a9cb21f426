"""The truncated principal flow against the dense sum, and where it meets its neighbours."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import BranchError, GradientFlow, PrincipalFlow, SingularModeError, TruncatedPrincipalFlow, integrate
from flows.models.principal import real_coefficient
from flows.strategies import points, quadratics
from landscapes import Cosine, Quadratic, Rosenbrock


def dense(landscape, h, theta, modes):
    eigenvalues, vectors = torch.linalg.eigh(landscape.hessian(theta))
    coefficients = torch.full_like(eigenvalues, -1.0)
    coefficients[-modes:] = real_coefficient(h * eigenvalues[-modes:])
    return vectors @ (coefficients * (vectors.mT @ landscape.grad(theta)))


@given(st.data())
def test_against_the_dense_sum(data):
    landscape = data.draw(quadratics(-2.5, 2.5, avoid=1.0, gap=0.05))
    theta = data.draw(points(landscape.dimension))
    eigenvalues = torch.linalg.eigvalsh(landscape.hessian(theta))
    modes = data.draw(st.integers(1, landscape.dimension))
    if modes < landscape.dimension and float(eigenvalues[-modes] - eigenvalues[-modes - 1]) < 1e-3:
        return  # which of two equal modes is cut off is anybody's choice
    flow = TruncatedPrincipalFlow(landscape, 1.0, modes, tolerance=1e-12)
    assert_close(flow.velocity(0.0, theta), dense(landscape, 1.0, theta, modes), rtol=1e-6, atol=1e-6)


def test_all_modes_are_the_principal_flow(normal):
    landscape, theta = Cosine(dimension=5, frequency=1.3), normal(0, 5)
    whole = PrincipalFlow(landscape, 0.4, branch="real").velocity(0.0, theta)
    assert_close(TruncatedPrincipalFlow(landscape, 0.4, 5).velocity(0.0, theta), whole)
    one = TruncatedPrincipalFlow(landscape, 1e-9, 1).velocity(0.0, theta)
    assert_close(one, GradientFlow(landscape).velocity(0.0, theta))  # α → −1 as h → 0


def test_batches_singles_and_refusals(normal):
    landscape, thetas = Rosenbrock(), normal(1, 2, 3, 2)
    flow = TruncatedPrincipalFlow(landscape, 1e-3, 1)
    batch = flow.velocity(0.0, thetas)
    for i in range(2):
        for j in range(3):
            assert_close(batch[i, j], flow.velocity(0.0, thetas[i, j]))
    with pytest.raises(BranchError, match="real theta only"):
        flow.velocity(0.0, thetas + 0j)
    with pytest.raises(ValueError, match="modes must be at most the dimension, 2, got 3"):
        TruncatedPrincipalFlow(landscape, 1e-3, 3)
    assert bool(flow.velocity(0.0, torch.full((2,), torch.nan, dtype=torch.float64)).isnan().all())
    quadratic = Quadratic(torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64)))
    run = integrate(TruncatedPrincipalFlow(quadratic, 0.5, 1), torch.ones(2, dtype=torch.float64), [0.0, 0.5])
    assert run.status == "singular mode"
    with pytest.raises(SingularModeError, match="hλ = 1"):
        TruncatedPrincipalFlow(quadratic, 0.5, 1).velocity(0.0, torch.ones(2, dtype=torch.float64))
