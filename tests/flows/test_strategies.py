"""What the strategies draw: rotations, points, quadratics; smooth landscapes, and degenerate ones by name."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from flows.strategies import degenerate_landscapes, points, quadratics, rotations, seeds, smooth_landscapes
from tests.examples import few


@few(15)
@given(data=st.data())
def test_strategies_give_what_they_say(data):
    d = data.draw(st.integers(1, 5))
    rotation = data.draw(rotations(d))
    assert rotation.shape == (d, d)
    assert float((rotation @ rotation.mT - torch.eye(d)).abs().max()) < 1e-13
    theta = data.draw(points(d, 2, 3, scale=1e-3))
    assert (theta.shape, theta.dtype) == ((2, 3, d), torch.float64)
    assert 0 < float(theta.abs().max()) < 1e-2
    quadratic = data.draw(quadratics(-3.0, 2.0, avoid=1.0, gap=0.25))
    assert 2 <= quadratic.dimension <= 8
    eigenvalues = torch.linalg.eigvalsh(quadratic.hessian(quadratic.minimum))
    assert -3 - 1e-12 <= float(eigenvalues.min()) <= float(eigenvalues.max()) <= 2 + 1e-12
    assert float((eigenvalues - 1).abs().min()) > 0.25 - 1e-12
    assert isinstance(data.draw(seeds()), torch.Generator)


@few(6)
@given(data=st.data())
def test_smooth_landscapes_are_smooth_and_holomorphic(data):
    landscape = data.draw(smooth_landscapes(3))
    theta = data.draw(points(3, 2))
    assert landscape.dimension == 3
    assert landscape.grad(theta + 0.1j).is_complex()
    step = 1e-5 * data.draw(points(3, 2))
    slope = landscape.loss(theta + step) - landscape.loss(theta - step)
    scale = 1e-4 * (1 + float(landscape.hessian(theta).abs().max()))
    assert float((slope / 2 - (landscape.grad(theta) * step).sum(-1)).abs().max()) < 1e-5 * scale


@few(8)
@given(data=st.data(), d=st.integers(1, 3))
def test_smooth_landscapes_are_not_degenerate(data, d):
    """Derivatives of order 1 to 4 at a drawn point are not 0, and the Hessian has full rank."""
    landscape = data.draw(smooth_landscapes(d))
    theta, u, v, w = (data.draw(points(d)) for _ in range(4))
    assert float(landscape.grad(theta).abs().max()) > 1e-6
    assert float(torch.linalg.det(landscape.hessian(theta)).abs()) > 1e-12
    assert float(landscape.third(theta, u, v).abs().max()) > 0
    assert float(landscape.derivative(theta, u, v, w).abs().max()) > 0
    origin = torch.zeros(d, dtype=torch.float64)
    assert float(landscape.grad(origin).abs().max()) >= 1 / 8
    assert float(torch.linalg.det(landscape.hessian(origin)).abs()) >= (1 / 8) ** d - 1e-12
    assert f"x{d - 1}" in repr(landscape)


def test_degenerate_landscapes_are_there_by_name():
    seen = set()

    @few(60)
    @given(landscape=degenerate_landscapes(2), theta=points(2))
    def draw(landscape, theta):
        seen.add("flat" if not landscape.grad(theta).any() else "sloped")
        seen.add(f"rank {int(torch.linalg.matrix_rank(landscape.hessian(theta)))}")

    draw()
    assert seen >= {"flat", "sloped", "rank 0", "rank 1", "rank 2"}


def test_strategies_vary():
    seen = set()

    @few(10)
    @given(landscape=smooth_landscapes(2), theta=points(2))
    def draw(landscape, theta):
        seen.add(round(float(landscape.loss(theta)), 9))

    draw()
    assert len(seen) > 5


@pytest.mark.parametrize("strategy", [smooth_landscapes, degenerate_landscapes])
@pytest.mark.parametrize("dimension", [0, -1, 10**9, None, "2", True, 2.0])
def test_dimensions_of_landscapes_are_checked_before_they_are_drawn(strategy, dimension):
    @few(1)
    @given(strategy(dimension))
    def draw(landscape):
        pass

    with pytest.raises((TypeError, ValueError), match="dimension must be"):
        draw()
