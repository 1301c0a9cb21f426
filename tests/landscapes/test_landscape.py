"""The base classes: everything that follows from a loss alone, held against the closed forms."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import LANDSCAPES, FiniteSum, Landscape, NotHolomorphicError, UnsupportedError
from landscapes.toys.finite_sums import FINITE_SUMS

toys = pytest.mark.parametrize("name", LANDSCAPES)
sums = pytest.mark.parametrize("name", FINITE_SUMS)
seeds = st.integers(0, 2**31)


class Traced(Landscape):
    """A landscape that states its loss only; the rest is the base class's."""

    holomorphic = True

    def __init__(self, closed):
        self.closed = closed

    @property
    def dimension(self):
        return self.closed.dimension

    def loss(self, theta):
        return self.closed.loss(theta)


class TracedSum(FiniteSum):
    """A finite sum that states its losses only."""

    def __init__(self, closed):
        self.closed = closed

    @property
    def dimension(self):
        return self.closed.dimension

    @property
    def size(self):
        return self.closed.size

    def losses(self, theta, index=None):
        return self.closed.losses(theta, index)


class Rectified(Landscape):
    """Σ max(θ, 0)³, which no complex number can enter."""

    dimension = 2

    def loss(self, theta):
        return torch.relu(theta).pow(3).sum(-1)


class Flat(Landscape):
    """A constant loss: nothing connects it to θ."""

    dimension = 3

    def loss(self, theta):
        return torch.ones(theta.shape[:-1], dtype=theta.dtype)


@toys
@given(seed=seeds)
def test_derivatives_equal_the_closed_form(name, normal, seed):
    closed = LANDSCAPES[name]()
    traced = Traced(closed)
    theta, u, v = normal(seed, 3, 4, closed.dimension)
    point = traced.expand(theta)
    for one, other in (
        (point.loss, closed.loss(theta)),
        (point.grad, closed.grad(theta)),
        (traced.grad(theta), closed.grad(theta)),
        (traced.hvp(theta, v), closed.hvp(theta, v)),
        (traced.third(theta, u, v), closed.third(theta, u, v)),
        (traced.hessian(theta), closed.hessian(theta)),
    ):
        assert_close(one, other, rtol=1e-10, atol=1e-10)


@toys
@given(seed=seeds)
def test_products_are_directional_differences(name, normal, seed):
    traced = Traced(LANDSCAPES[name]())
    theta, u, v = normal(seed, 3, traced.dimension)
    step = 1e-5

    def slope(field):
        return (field(theta + step * v) - field(theta - step * v)) / (2 * step)

    scale = 1 + float(traced.hessian(theta).abs().max())
    assert_close(slope(traced.loss), traced.grad(theta) @ v, rtol=1e-6, atol=1e-7 * scale)
    assert_close(slope(traced.grad), traced.hvp(theta, v), rtol=1e-6, atol=1e-7 * scale)
    assert_close(slope(lambda x: traced.hvp(x, u)), traced.third(theta, u, v), rtol=1e-6, atol=1e-7 * scale)


@toys
def test_complex_products_are_bilinear(name, normal):
    traced = Traced(LANDSCAPES[name]())
    re, im, u, v = normal(1, 4, 3, traced.dimension)
    theta, v = torch.complex(re, im), torch.complex(u, v)
    point = traced.expand(theta)
    assert_close(point.hvp(1j * v), 1j * point.hvp(v))
    assert_close(point.third(1j * v, v), 1j * point.third(v, v))
    assert_close(point.third(v, 1j * v), 1j * point.third(v, v))
    step = 1e-6 * v
    assert_close((traced.loss(theta + step) - traced.loss(theta - step)) / 2e-6, (point.grad * v).sum(-1))
    assert_close((traced.grad(theta + step) - traced.grad(theta - step)) / 2e-6, point.hvp(v), rtol=1e-5, atol=1e-6)


@toys
def test_batch_shapes_dtype_and_device(name, normal, dtype, device):
    traced = Traced(LANDSCAPES[name]())
    d = traced.dimension
    for batch in ((), (3,), (2, 3)):
        theta = normal(2, *batch, d, dtype=dtype).to(device)
        point = traced.expand(theta)
        results = {
            point.loss: batch,
            traced.grad(theta): (*batch, d),
            point.grad: (*batch, d),
            point.hvp(theta): (*batch, d),
            point.third(theta, theta): (*batch, d),
            point.hessian(): (*batch, d, d),
        }
        for result, shape in results.items():
            assert (result.shape, result.dtype, result.device) == (shape, dtype, theta.device)


def readings(landscape, theta, v):
    point = landscape.expand(theta)
    return [point.loss, point.grad, landscape.grad(theta), point.hvp(v), point.third(v, v), point.hessian()]


def test_graph_only_where_theta_requires_grad(normal):
    traced = Traced(LANDSCAPES["rosenbrock"]())
    theta, v = normal(3, 2, 2)
    assert not any(result.requires_grad for result in readings(traced, theta, v.requires_grad_()))
    theta.requires_grad_()
    assert all(result.requires_grad for result in readings(traced, theta, v))
    with torch.no_grad():
        assert not any(result.requires_grad for result in readings(traced, theta, v))
    assert theta.grad is None
    (slope,) = torch.autograd.grad(traced.hvp(theta, v) @ v, theta)
    assert_close(slope, traced.closed.third(theta, v, v).detach(), rtol=1e-10, atol=1e-10)


@sums
def test_example_grads_keep_no_graph_without_grad_mode(name, normal):
    theta = normal(4, 2, 5)[..., : FINITE_SUMS[name]().dimension].requires_grad_()
    traced = TracedSum(FINITE_SUMS[name]())
    assert traced.example_grads(theta).requires_grad
    with torch.no_grad():
        assert not traced.example_grads(theta).requires_grad


def test_inside_transforms(normal):
    traced, closed = Traced(LANDSCAPES["rosenbrock"]()), LANDSCAPES["rosenbrock"]()
    theta, v = normal(5, 2, 4, 2)
    assert_close(torch.func.vmap(traced.grad)(theta), closed.grad(theta))
    assert_close(torch.func.jvp(traced.grad, (theta,), (v,))[1], closed.hvp(theta, v))
    complex_theta, complex_v = torch.complex(theta, v), torch.complex(v, theta)
    tangent = torch.func.jvp(traced.grad, (complex_theta,), (complex_v,))[1]
    assert_close(tangent, closed.hvp(complex_theta, complex_v))
    with pytest.raises(UnsupportedError, match=r"torch\.func transform"):
        torch.func.vmap(lambda x: traced.hvp(x, x))(theta)


def test_a_constant_loss_has_zero_derivatives(normal):
    theta, v = normal(6, 2, 3)
    for result in readings(Flat(), theta, v)[1:]:
        assert not result.any()


def test_complex_theta_needs_a_holomorphic_loss():
    theta = torch.zeros(2, dtype=torch.complex128)
    for call in (Rectified().grad, Rectified().expand, Rectified().hessian):
        with pytest.raises(NotHolomorphicError, match="Rectified does not accept complex theta"):
            call(theta)
    assert issubclass(NotHolomorphicError, TypeError)


@pytest.mark.parametrize("landscape", [LANDSCAPES["rosenbrock"](), Rectified()], ids=["closed", "traced"])
@pytest.mark.parametrize(
    ("theta", "error", "text"),
    [
        (torch.zeros(3), ValueError, r"theta must have shape \(..., 2\), got \(3,\)"),
        (torch.tensor(1.0), ValueError, r"theta must have shape \(..., 2\), got \(\)"),
        (torch.zeros(2, dtype=torch.int64), TypeError, r"theta must have a floating dtype, got torch\.int64"),
        ([0.0, 0.0], TypeError, r"theta must be a torch\.Tensor, got list"),
    ],
    ids=["shape", "scalar", "integer", "list"],
)
def test_theta_is_checked(landscape, theta, error, text):
    for call in (landscape.grad, landscape.expand, landscape.hessian, lambda x: landscape.hvp(x, x)):
        with pytest.raises(error, match=text):
            call(theta)


@pytest.mark.parametrize("landscape", [LANDSCAPES["rosenbrock"](), Rectified()], ids=["closed", "traced"])
def test_vectors_are_checked(landscape):
    theta = torch.zeros(3, 2, dtype=torch.float64)
    for v in (torch.zeros(2, dtype=torch.float64), torch.zeros(3, 2, dtype=torch.float32)):
        with pytest.raises(ValueError, match="v must have the shape and dtype of theta"):
            landscape.hvp(theta, v)
        with pytest.raises(ValueError, match="u must have the shape and dtype of theta"):
            landscape.third(theta, v, theta)
    with pytest.raises(TypeError, match="v must be a torch"):
        landscape.third(theta, theta, 1.0)


@sums
def test_finite_sum_defaults_equal_the_closed_form(name, normal):
    closed = FINITE_SUMS[name]()
    traced = TracedSum(closed)
    theta, weights = normal(7, 4, closed.dimension), normal(8, 4, closed.size)
    index = torch.arange(4 * 3).reshape(4, 3) % closed.size
    assert_close(traced.loss(theta), closed.loss(theta))
    assert_close(traced.grad(theta), closed.grad(theta))
    assert_close(traced.hessian(theta), closed.hessian(theta))
    assert_close(traced.weighted_grad(theta, weights), closed.weighted_grad(theta, weights))
    assert_close(traced.example_grads(theta), closed.example_grads(theta))
    for chosen in (index, index[0]):
        assert_close(traced.batch_grad(theta, chosen), closed.batch_grad(theta, chosen))
        assert_close(traced.example_grads(theta, chosen), closed.example_grads(theta, chosen))


@pytest.mark.parametrize("build", [FINITE_SUMS["two-quadratics"], lambda: TracedSum(FINITE_SUMS["two-quadratics"]())])
def test_indices_and_weights_are_checked(build):
    landscape, theta = build(), torch.zeros(2)
    for index, error, text in (
        (torch.tensor([0, 2]), ValueError, r"index must lie in \[0, 2\)"),
        (torch.tensor([-1]), ValueError, r"index must lie in \[0, 2\)"),
        (torch.tensor([], dtype=torch.int64), ValueError, "m >= 1"),
        (torch.tensor([0.0]), TypeError, "integer tensor"),
        ([0], TypeError, "integer tensor"),
    ):
        for call in (landscape.batch_grad, landscape.example_grads, lambda x, i: landscape.restrict(i)):
            with pytest.raises(error, match=text):
                call(theta, index)
    with pytest.raises(ValueError, match=r"index must have shape \(m,\)"):
        landscape.restrict(torch.zeros(1, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"weights must have shape \(..., 2\)"):
        landscape.weighted_grad(theta, torch.ones(3))
    with pytest.raises(TypeError, match="weights must be a torch"):
        landscape.weighted_grad(theta, [0.5, 0.5])


def test_restrictions_nest(normal):
    landscape, theta = FINITE_SUMS["linear-regression"](), normal(9, 3)
    inner = landscape.restrict(torch.tensor([5, 2, 7])).restrict(torch.tensor([2, 0]))
    assert_close(inner.grad(theta), landscape.batch_grad(theta, torch.tensor([7, 5])))
