"""Chain, factorisation, catapult and the loss on directions: what they conserve, and what their start shows."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import CatapultModel, DeepLinearChain, MatrixFactorisation, Product, SphericalQuotient
from landscapes.toys.linear_nets import leave_one_out

seeds = st.integers(0, 2**31)
ZERO = torch.zeros((), dtype=torch.float64)


def symmetric(normal, seed, d):
    matrix = normal(seed, d, d)
    return matrix + matrix.mT


@given(seed=seeds, y=st.floats(-2, 2), x=st.floats(0.1, 3))
def test_a_chain_of_two_is_the_product_model(seed, y, x, normal):
    chain, product = DeepLinearChain(depth=2, y=y, x=x), Product(y=y, x=x)
    theta, u, v = normal(seed, 3, 4, 2)
    assert_close(chain.loss(theta), product.loss(theta))
    assert_close(chain.grad(theta), product.grad(theta))
    assert_close(chain.hessian(theta), product.hessian(theta))
    assert_close(chain.third(theta, u, v), product.third(theta, u, v))


@given(seed=seeds, depth=st.integers(2, 7))
def test_gradient_flow_keeps_the_balance_of_a_chain(seed, depth, normal):
    theta = normal(seed, 5, depth)
    change = theta * DeepLinearChain(depth, y=0.8, x=-1.1).grad(theta)  # ½ d(w_i²)/dt, up to sign: the same for all i
    assert_close(change, change[:, :1].expand_as(change), rtol=1e-10, atol=1e-12)


@given(seed=seeds, depth=st.integers(3, 6), zeros=st.integers(0, 3))
def test_products_that_leave_one_out_need_no_division(seed, depth, zeros, normal):
    w, u, v = normal(seed, 3, depth)
    w[:zeros] = 0
    expected = torch.zeros(4, depth, dtype=torch.float64)
    for i in range(depth):
        others = [j for j in range(depth) if j != i]
        expected[0, i] = w[others].prod()
        for j in others:
            rest = [k for k in others if k != j]
            expected[1, i] += u[j] * w[rest].prod()
            expected[2, i] += v[j] * w[rest].prod()
            expected[3, i] += sum(u[j] * v[k] * w[[m for m in rest if m != k]].prod() for k in rest)
    assert_close(torch.stack(leave_one_out(w, u, v)), expected)


def test_a_deep_chain_waits_on_a_plateau_then_falls():
    chain = DeepLinearChain(depth=4)
    path = [torch.tensor(chain.start, dtype=torch.float64)]
    for _ in range(200):
        path.append(path[-1] - 0.1 * chain.grad(path[-1]))
    losses = chain.loss(torch.stack(path))
    assert float(losses[60]) > 0.8 * float(losses[0])
    assert float(losses[-1]) < 1e-6


@given(seed=seeds, m=st.integers(1, 4), n=st.integers(1, 4), rank=st.integers(1, 4))
def test_gradient_flow_keeps_the_balance_of_a_factorisation(seed, m, n, rank, normal):
    landscape = MatrixFactorisation(normal(seed, m, n), min(rank, m, n))
    theta = normal(seed + 1, landscape.dimension)
    (u, v), (du, dv) = landscape.factors(theta), landscape.factors(landscape.grad(theta))
    assert_close(du.mT @ u + u.mT @ du, dv.mT @ v + v.mT @ dv)


@given(seed=seeds, rank=st.integers(1, 3))
def test_each_set_of_singular_values_is_a_critical_point_and_only_the_first_is_a_minimum(seed, rank, normal):
    target = normal(seed, 3, 4)
    landscape, values = MatrixFactorisation(target, rank), torch.linalg.svdvals(target)
    points = landscape.critical_points()
    kept = [c for count in range(rank + 1) for c in itertools.combinations(range(3), count)]
    assert len(points) == len(kept)
    for point, chosen in zip(points, kept, strict=True):
        left_out = [i for i in range(3) if i not in chosen]
        assert_close(landscape.loss(point.position), torch.square(values[left_out]).sum() / 2)
        assert float(landscape.grad(point.position).abs().max()) < 1e-12
        assert (point.kind == "degenerate") == (chosen == tuple(range(rank)))  # the minimum, flat along its orbit
        if point.kind != "degenerate":
            assert point.kind == "saddle"


def test_singular_values_are_learnt_one_after_another():
    target = torch.tensor([[2.0, 0.3], [-0.4, 0.6]], dtype=torch.float64)
    landscape = MatrixFactorisation(target, rank=2)
    theta, rises = torch.tensor(landscape.start, dtype=torch.float64), []
    values = torch.linalg.svdvals(target)
    for _ in range(400):
        u, v = landscape.factors(theta)
        rises.append(torch.linalg.svdvals(u @ v.mT) / values)
        theta = theta - 0.05 * landscape.grad(theta)
    half = [int((torch.stack(rises)[:, i] > 0.5).nonzero()[0]) for i in (0, 1)]
    assert half[1] > 2 * half[0]
    assert_close(rises[-1], torch.ones(2, dtype=torch.float64), rtol=1e-4, atol=1e-4)


def test_a_factorisation_keeps_its_own_copy_and_drops_values_that_are_zero():
    target = torch.diag(torch.tensor([1.0, 0.0], dtype=torch.float64))
    landscape = MatrixFactorisation(target, rank=2)
    target.zero_()
    assert float(landscape.loss(torch.zeros(8, dtype=torch.float64))) == 0.5
    assert len(landscape.critical_points()) == 2


@given(seed=seeds, width=st.integers(1, 9), h=st.floats(0.1, 1.5))
def test_the_catapult_recursion_is_exact(seed, width, h, normal):
    """Lewkowycz et al. 2020, arXiv 2003.02218: f and λ after each of two steps of gradient descent."""
    model, theta = CatapultModel(width), normal(seed, 3, 2 * width)
    for _ in range(2):
        f, kernel = model.output(theta), model.tangent_kernel(theta)
        theta = theta - h * model.grad(theta)
        scale = 1 + float(model.tangent_kernel(theta).max())
        assert_close(model.output(theta), f * (1 - h * kernel + h**2 * f**2 / width), atol=1e-12 * scale, rtol=1e-9)
        assert_close(model.tangent_kernel(theta), kernel + h * f**2 / width * (h * kernel - 4), rtol=1e-9, atol=1e-12)


def test_the_loss_grows_and_lands_where_it_is_flat():
    model = CatapultModel()
    theta = torch.tensor(model.start, dtype=torch.float64)
    h = 3 / float(model.tangent_kernel(theta))
    losses = []
    for _ in range(100):
        losses.append(float(model.loss(theta)))
        theta = theta - h * model.grad(theta)
    assert max(losses) > 10 * losses[0]
    assert losses[-1] < 1e-10
    assert float(model.tangent_kernel(theta)) < 2 / h


def test_the_tangent_kernel_is_the_sharpness_of_minima():
    model = CatapultModel(width=3, y=1.5, x=-0.7)
    for point in model.critical_points()[1:]:
        assert float(model.loss(point.position)) < 1e-30
        sharpness = torch.linalg.eigvalsh(model.hessian(point.position))[-1]
        assert_close(sharpness, model.tangent_kernel(point.position))


@given(seed=seeds, d=st.integers(2, 5), c=st.floats(0.01, 100))
def test_a_spherical_loss_sees_directions_only(seed, d, c, normal):
    landscape, theta = SphericalQuotient(symmetric(normal, seed, d)), normal(seed + 1, 4, d)
    assert_close(landscape.loss(c * theta), landscape.loss(theta))
    assert_close(landscape.grad(c * theta), landscape.grad(theta) / c)
    assert_close((landscape.grad(theta) * theta).sum(-1), ZERO.expand(4), atol=1e-9, rtol=0)
    assert_close(landscape.hvp(theta, theta), -landscape.grad(theta), rtol=1e-7, atol=1e-9)
    h, g = 0.3, landscape.grad(theta)
    grown = torch.square(theta - h * g).sum(-1)
    assert_close(grown, torch.square(theta).sum(-1) + h**2 * torch.square(g).sum(-1), rtol=1e-7, atol=1e-9)


@given(seed=seeds, d=st.integers(2, 5))
def test_critical_rays_are_eigenvectors(seed, d, normal):
    matrix = symmetric(normal, seed, d)
    landscape, values = SphericalQuotient(matrix), torch.linalg.eigvalsh(matrix)
    for i, point in enumerate(landscape.critical_points()):
        assert_close(landscape.loss(point.position), values[i // 2] / 2)
        # curvature on the sphere is the gap to the other eigenvalues, and zero along the ray
        gaps = torch.cat((values[: i // 2], values[i // 2 : i // 2 + 1] * 0 + values[i // 2], values[i // 2 + 1 :]))
        expected = torch.sort(gaps - values[i // 2]).values
        assert_close(torch.linalg.eigvalsh(landscape.hessian(point.position)), expected, rtol=1e-7, atol=1e-8)
        assert point.kind == ("degenerate" if i // 2 in (0, d - 1) else "saddle")


def test_descent_on_directions_grows_the_norm_until_the_step_is_stable():
    landscape = SphericalQuotient(torch.diag(torch.tensor([0.5, 2.0], dtype=torch.float64)))
    theta, h = torch.tensor(landscape.start, dtype=torch.float64), 4.0
    assert h * 1.5 > 2  # on the unit sphere the sharpest step would not be stable
    for _ in range(200):
        theta = theta - h * landscape.grad(theta)
    assert h * 1.5 / float(theta.square().sum()) < 2
    assert_close(landscape.loss(theta), torch.tensor(0.25, dtype=torch.float64))


def test_the_origin_is_no_place_for_a_direction():
    landscape = SphericalQuotient(torch.eye(2, dtype=torch.float64))
    assert math.isnan(float(landscape.loss(torch.zeros(2, dtype=torch.float64))))


@pytest.mark.parametrize(("depth", "y"), [(3, 1.0), (4, -2.0), (2, 1.0)])
def test_minima_of_a_chain_have_the_sign_patterns_of_their_product(depth, y):
    chain = DeepLinearChain(depth=depth, y=y)
    minima = [p.position for p in chain.critical_points() if float(chain.loss(p.position)) < 1e-25]
    assert len({tuple(m.sign().tolist()) for m in minima}) == len(minima) == 2 ** (depth - 1)
    for minimum in minima:
        assert_close(minimum.abs(), minimum.abs()[:1].expand(depth))
