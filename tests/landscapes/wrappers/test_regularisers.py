"""Penalised landscapes against torch.func on the loss written out, as finite sums, in complex numbers, and counted."""

import functools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import LANDSCAPES, Counted, FiniteSum, NotHolomorphicError, Quadratic, QuadraticSum, Regularised
from landscapes.expansion import AutogradExpansion
from landscapes.noise import covariance_trace
from landscapes.wrappers.gradient_penalties import GradientPenalty, VariancePenalty
from landscapes.wrappers.modified_losses import LandscapeSum, random_partition_loss, replacement_loss, reshuffling_loss
from nets import MLP, NetworkLandscape
from tests.examples import few
from tests.tensors import draw

EVEN = torch.tensor([[0, 4], [1, 5], [2, 3]])
RAGGED = (torch.tensor([5, 0, 2, 1]), torch.tensor([4, 3]))
SINGLES = torch.arange(6)[:, None]


def quadratics():
    a = draw(1, 6, 3, 3)
    return QuadraticSum(a + a.mT, draw(2, 6, 3))


@functools.cache  # derivatives are held against differences once a network
def network(chunk_size=None):
    """Six examples through a tanh network of 13 weights: smooth, not quadratic, traceable by torch.func."""
    inputs, targets = draw(3, 6, 2), draw(4, 6, 1)
    squares = lambda out, y: (out - y).square().sum(-1)  # noqa: E731
    return NetworkLandscape(MLP((2, 3, 1)).double(), squares, inputs, targets, chunk_size=chunk_size)


def square(v):
    return (v * v).sum(-1)


def full(f):
    return lambda x: f.losses(x).mean(-1) if isinstance(f, FiniteSum) else f.loss(x)


def penalty(f, batches, c, a):
    """(c/m) Σ ‖g_k − ḡ‖² + a‖ḡ‖² at one θ (d,), from torch.func gradients of batch means."""

    def value(x):
        rows = torch.stack([torch.func.grad(lambda z, b=b: f.losses(z)[b].mean())(x) for b in batches])
        return c * square(rows - rows.mean(0)).mean() + a * square(rows.mean(0))

    return value


def gradient_case(f, c):
    return GradientPenalty(f, c), lambda x: full(f)(x) + c * square(torch.func.grad(full(f))(x))


def variance_case(f, batches, c, a):
    return VariancePenalty(f, batches, c, a), lambda x: full(f)(x) + penalty(f, batches, c, a)(x)


def reshuffling_case(f, h, batches):
    """The modified loss in its first form: f̄ + (h/4)‖ḡ‖² + (h/4m) Σ ‖g_k − ḡ‖²."""
    pull = penalty(f, batches, h / 4, h / 4)
    return reshuffling_loss(
        f, h, batches
    ), lambda x: torch.stack([f.losses(x)[b].mean() for b in batches]).mean() + pull(x)


def partition_case(f, h):
    """Batches of 2 out of 6: κ = 4/(2·5)."""
    return random_partition_loss(f, h, 2), variance_case(f, SINGLES, h / 4 * 0.4, h / 4)[1]


CASES = {
    "rosenbrock": lambda: gradient_case(LANDSCAPES["rosenbrock"](), 0.03),
    "himmelblau-negative": lambda: gradient_case(LANDSCAPES["himmelblau"](), -0.02),
    "mueller-brown": lambda: gradient_case(LANDSCAPES["mueller-brown"](), 1e-3),
    "quadratics": lambda: gradient_case(quadratics(), -0.2),
    "network": lambda: gradient_case(network(), 0.3),
    "chunked-network": lambda: gradient_case(network(chunk_size=4), 0.3),
    "variance-quadratics-ragged": lambda: variance_case(quadratics(), RAGGED, 0.4, 0.0),
    "variance-network": lambda: variance_case(network(), EVEN, 0.4, -0.1),
    "variance-chunked": lambda: variance_case(network(chunk_size=1), EVEN[:2], 0.4, 0.4),
    "reshuffling-network-ragged": lambda: reshuffling_case(network(), 0.8, RAGGED),
    "reshuffling-quadratics": lambda: reshuffling_case(quadratics(), 0.8, EVEN),
    "partition-network": lambda: partition_case(network(), 0.8),
    "replacement": lambda: (replacement_loss(quadratics(), 0.8), gradient_case(quadratics(), 0.2)[1]),
}
cases = pytest.mark.parametrize("name", CASES)
sums = pytest.mark.parametrize("name", [name for name, case in CASES.items() if isinstance(case()[0], FiniteSum)])


def at(landscape, seed, *batch):
    return 0.6 * draw(seed, *batch, landscape.dimension)


def slope(function, v):
    """x ↦ the derivative of ``function`` along v."""
    return lambda x: torch.func.jvp(function, (x,), (v,))[1]


@cases
def test_derivatives_equal_those_of_the_loss_written_out(name):
    landscape, written = CASES[name]()
    theta, u, v = (at(landscape, seed, 2) for seed in (5, 6, 7))
    point, gradient = landscape.expand(theta), torch.func.grad(written)
    loss, grad, product, cubic = point.loss, point.grad, point.hvp(v), point.third(u, v)
    for k, x in enumerate(theta):
        assert_close(loss[k], written(x), rtol=1e-10, atol=1e-10)
        assert_close(grad[k], gradient(x), rtol=1e-9, atol=1e-9)
        assert_close(product[k], slope(gradient, v[k])(x), rtol=1e-9, atol=1e-8)
        assert_close(cubic[k], slope(slope(gradient, u[k]), v[k])(x), rtol=1e-8, atol=1e-7)
    assert_close(point.hessian()[0], torch.func.jacfwd(gradient)(theta[0]), rtol=1e-9, atol=1e-8)
    assert_close(landscape.loss(theta), loss)
    assert_close(landscape.grad(theta), grad)
    for tensor in (loss, grad, product, cubic, landscape.loss(theta)):
        assert not tensor.requires_grad


@cases
def test_slopes_along_directions_give_higher_derivatives(name):
    landscape, written = CASES[name]()
    theta, u, v, w = (at(landscape, seed) for seed in (5, 6, 7, 8))
    first = landscape.expand(theta).along(u)
    second = first.along(v)
    gradient = slope(torch.func.grad(written), u)
    assert_close(first.loss, torch.func.grad(written)(theta) @ u, rtol=1e-9, atol=1e-9)
    assert_close(first.grad, gradient(theta), rtol=1e-9, atol=1e-9)
    assert_close(first.hvp(v), slope(gradient, v)(theta), rtol=1e-8, atol=1e-7)
    assert_close(first.third(v, w), slope(slope(gradient, v), w)(theta), rtol=1e-8, atol=1e-6)
    assert_close(second.loss, first.grad @ v, rtol=1e-8, atol=1e-7)
    assert_close(second.grad, first.hvp(v), rtol=1e-8, atol=1e-7)
    assert_close(second.hvp(w), first.third(v, w), rtol=1e-8, atol=1e-6)


@cases
@few(5)
@given(seed=st.integers(0, 2**20))
def test_products_are_symmetric_and_linear(name, seed):
    landscape, _ = CASES[name]()
    theta, u, v = (at(landscape, seed + k, 2) for k in range(3))
    point = landscape.expand(theta)
    assert_close((point.hvp(u) * v).sum(-1), (point.hvp(v) * u).sum(-1), rtol=1e-8, atol=1e-8)
    assert_close(point.hvp(2 * u - v), 2 * point.hvp(u) - point.hvp(v), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", ["rosenbrock", "quadratics", "variance-quadratics-ragged", "reshuffling-quadratics"])
def test_complex_theta_is_holomorphic(name):
    landscape, _ = CASES[name]()
    theta, u, v = (torch.complex(at(landscape, s, 2), at(landscape, s + 10, 2)) for s in (5, 6, 7))
    point, traced = landscape.expand(theta), AutogradExpansion(landscape.loss, theta)
    assert_close(point.grad, traced.grad)
    assert_close(point.hvp(v), traced.hvp(v))
    assert_close(point.third(u, v), traced.third(u, v))
    for step in (1e-6, 1e-6j):  # Cauchy–Riemann: the same quotient in every direction; central, so off by step²·f‴
        quotient = (landscape.loss(theta + step * v) - landscape.loss(theta - step * v)) / (2 * step)
        assert_close(quotient, (point.grad * v).sum(-1), rtol=1e-6, atol=1e-6)


def test_the_penalty_is_bilinear_on_a_quadratic():
    a = torch.tensor([[2.0, 0.5], [0.5, -1.0]], dtype=torch.float64)
    theta = torch.complex(draw(1, 4, 2), draw(2, 4, 2))
    landscape, matrix = GradientPenalty(Quadratic(a), 0.3), (a / 2 + 0.3 * a @ a).to(theta)
    assert_close(landscape.loss(theta), torch.einsum("...i,ij,...j->...", theta, matrix, theta))
    assert_close(landscape.hessian(theta), (2 * matrix).expand(4, 2, 2))


@sums
def test_mini_batches_of_a_penalised_sum(name):
    landscape, _ = CASES[name]()
    theta, v, N = at(landscape, 9, 2), at(landscape, 10, 2), landscape.size
    everything, weights, index = torch.arange(N), draw(3, 2, N), torch.tensor([[1, 0], [1, 1]])
    each = landscape.example_grads(theta)
    assert_close(each.mean(-2), landscape.grad(theta))
    assert_close(landscape.losses(theta).mean(-1), landscape.loss(theta))
    assert_close(landscape.batch_grad(theta, everything), landscape.grad(theta))
    assert_close(landscape.weighted_grad(theta, weights), (weights[..., None] * each).sum(-2))
    for chosen in (everything[:2], index):
        assert_close(landscape.example_grads(theta, chosen), FiniteSum.example_grads(landscape, theta, chosen))
        assert_close(landscape.batch_grad(theta, chosen), FiniteSum.batch_grad(landscape, theta, chosen))
        assert landscape.losses(theta, chosen).shape == (2, 2)
    assert_close(landscape.batch_grad(theta[0], index)[0], landscape.batch_grad(theta[0], index[0]))
    part, traced = (
        landscape.restrict(everything[:2]),
        AutogradExpansion(lambda x: landscape.losses(x, everything[:2]).mean(-1), theta),
    )
    assert part.size == 2
    assert_close(part.loss(theta), traced.loss)
    assert_close(part.grad(theta), traced.grad)
    assert_close(part.hvp(theta, v), traced.hvp(v))
    assert_close(part.batch_grad(theta, torch.tensor([1])), landscape.batch_grad(theta, everything[1:2]))


@pytest.mark.parametrize("wrap", [lambda f: GradientPenalty(f, 0.7), lambda f: VariancePenalty(f, EVEN, 0.7)])
def test_the_noise_stays_that_of_the_landscape(wrap):
    for f in (quadratics(), network()):
        assert_close(covariance_trace(wrap(f), at(f, 11)), covariance_trace(f, at(f, 11)))


def test_kinds_are_kept():
    assert isinstance(Counted(Regularised(GradientPenalty(network(), 0.1), 0.1)), FiniteSum)
    assert not isinstance(GradientPenalty(LANDSCAPES["rosenbrock"](), 0.1), FiniteSum)


class Kinked(Quadratic):
    smoothness = 0


def test_a_penalty_is_one_derivative_less_smooth():
    kinked = Kinked(torch.eye(2))
    assert GradientPenalty(quadratics(), 0.1).smoothness == math.inf
    assert GradientPenalty(kinked, 0.1).smoothness == -1
    assert GradientPenalty(GradientPenalty(kinked, 0.1), 0.1).smoothness == -1
    assert LandscapeSum([Quadratic(torch.eye(2)), kinked]).smoothness == 0
    assert VariancePenalty(LandscapeSum([kinked, kinked]), SINGLES[:2], 0.1).smoothness == -1


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: LandscapeSum([]), ValueError, "landscapes must hold at least one landscape"),
        (lambda: LandscapeSum([quadratics(), "loss"]), TypeError, "landscape must be a Landscape, got str"),
        (
            lambda: LandscapeSum([quadratics(), network()]),
            ValueError,
            r"landscapes must have one dimension, got \[3, 13\]",
        ),
        (lambda: LandscapeSum([quadratics()]).restrict(EVEN), ValueError, "index must lie in"),
        (lambda: LandscapeSum([quadratics()]).restrict(EVEN[:1, :1]), ValueError, r"index must have shape \(m,\)"),
        (lambda: LandscapeSum([network()]).loss(torch.ones(13)), TypeError, "theta must have the module's dtype"),
        (lambda: LandscapeSum([network()]).loss(draw(1, 13).cfloat()), NotHolomorphicError, "complex theta"),
    ],
)
def test_arguments_of_a_sum_of_landscapes_are_checked(build, error, text):
    with pytest.raises(error, match=text):
        build()


def test_a_sum_is_holomorphic_where_all_its_landscapes_are():
    quadratic = Quadratic(torch.eye(13, dtype=torch.float64))
    assert LandscapeSum([quadratic, quadratic]).holomorphic
    assert not LandscapeSum([quadratic, network()]).holomorphic


def test_any_landscapes_make_a_finite_sum():
    landscapes = [LANDSCAPES["rosenbrock"](), LANDSCAPES["himmelblau"](), Quadratic(torch.eye(2, dtype=torch.float64))]
    f, theta, v = LandscapeSum(landscapes), draw(1, 3, 2), draw(2, 3, 2)
    assert_close(f.losses(theta), torch.stack([g.loss(theta) for g in landscapes], dim=-1))
    assert_close(f.third(theta, v, v), sum(g.third(theta, v, v) for g in landscapes) / 3)
    assert_close(f.hessian(theta), sum(g.hessian(theta) for g in landscapes) / 3)
    repeated = torch.tensor([2, 0, 2])
    assert_close(f.losses(theta, repeated), f.losses(theta)[:, repeated])
    assert_close(f.example_grads(theta, repeated), f.example_grads(theta)[:, repeated])
    assert_close(f.losses(theta, torch.tensor([[2, 0], [1, 1], [0, 0]]))[0], f.losses(theta)[0, [2, 0]])
    assert_close(f.losses(theta[0], torch.tensor([[2, 0], [1, 1]])), f.losses(theta)[0][torch.tensor([[2, 0], [1, 1]])])
    assert_close(f.restrict(torch.tensor([2, 0])).grad(theta), f.batch_grad(theta, torch.tensor([2, 0])))


def test_variance_of_single_examples_is_the_trace_of_the_noise():
    f = network()
    theta = at(f, 12, 2)
    assert_close(VariancePenalty(f, SINGLES, 0.5).loss(theta), f.loss(theta) + 0.5 * covariance_trace(f, theta))


def test_a_small_variance_keeps_its_digits_beside_a_large_gradient():
    f = QuadraticSum(
        torch.eye(2, dtype=torch.float64).repeat(2, 1, 1), torch.tensor([[1.0, 0.0], [-1.0, 0.0]]).double()
    )
    far = torch.tensor([1e8, 0.0], dtype=torch.float64)  # g_k = θ ∓ e₁: the variance is 1, ‖g‖² is 1e16
    assert float(VariancePenalty(f, SINGLES[:2], 1.0).penalty.loss(far)) == pytest.approx(1.0, rel=1e-7)


def test_what_products_cost():
    f = Counted(LANDSCAPES["rosenbrock"]())
    theta = draw(1, 3, 2)
    point = GradientPenalty(f, 0.1).expand(theta)
    point.loss, point.grad, point.grad  # noqa: B018
    assert f.counts == {"loss": 3, "grad": 3, "hvp": 3, "third": 0, "higher": 0}
    point.hvp(theta)
    assert f.counts == {"loss": 3, "grad": 3, "hvp": 3 + 2 * 3, "third": 3, "higher": 0}
    point.third(theta, theta)
    assert f.counts == {"loss": 3, "grad": 3, "hvp": 9 + 3 * 3, "third": 3 + 3 * 3, "higher": 3}
    counted = Counted(quadratics())
    GradientPenalty(counted, 0.1).batch_grad(theta[0].new_ones(3), torch.arange(2))
    assert counted.counts == pytest.approx({"loss": 0, "grad": 1 + 2 / 6, "hvp": 1, "third": 0, "higher": 0})
    counted = Counted(quadratics())
    reshuffling_loss(counted, 0.1, RAGGED).grad(theta[0].new_ones(3))
    assert counted.counts == pytest.approx({"loss": 0, "grad": 1, "hvp": 1, "third": 0, "higher": 0})


@pytest.mark.parametrize("name", ["rosenbrock", "network", "variance-network", "reshuffling-network-ragged"])
def test_results_are_attached_where_theta_requires_grad(name):
    landscape, _ = CASES[name]()
    theta, u, v = at(landscape, 5).requires_grad_(), at(landscape, 6), at(landscape, 7)
    point, plain = landscape.expand(theta), landscape.expand(theta.detach())
    for result, derivative in (
        (point.loss, plain.grad),
        (point.grad @ v, plain.hvp(v)),
        (point.hvp(u) @ v, plain.third(u, v)),
        (landscape.loss(theta), plain.grad),
        (landscape.grad(theta) @ v, plain.hvp(v)),
    ):
        assert_close(torch.autograd.grad(result, theta, retain_graph=True)[0], derivative, rtol=1e-8, atol=1e-8)


@cases
def test_loss_and_gradient_stand_inside_transforms(name):
    landscape, written = CASES[name]()
    theta, v = at(landscape, 5), at(landscape, 6)
    assert_close(torch.func.grad(landscape.loss)(theta), landscape.grad(theta))
    assert_close(torch.func.jvp(landscape.grad, (theta,), (v,))[1], landscape.hvp(theta, v))
    assert_close(torch.func.vmap(landscape.loss)(torch.stack([theta, v])), torch.stack([written(theta), written(v)]))


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda f: GradientPenalty("loss", 0.1), TypeError, "landscape must be a Landscape, got str"),
        (lambda f: GradientPenalty(f, float("inf")), ValueError, "coefficient must be finite"),
        (lambda f: GradientPenalty(f, "1"), TypeError, "coefficient must be a real number"),
        (lambda f: VariancePenalty(LANDSCAPES["saddle"](), EVEN, 0.1), TypeError, "landscape must be a FiniteSum"),
        (lambda f: VariancePenalty(f, EVEN[0], 0.1), ValueError, r"batches must have shape \(m, b\)"),
        (lambda f: VariancePenalty(f, 2, 0.1), TypeError, "batches must be an index tensor .* got int"),
        (lambda f: VariancePenalty(f, [], 0.1), ValueError, "at least one batch"),
        (lambda f: VariancePenalty(f, [[0, 1]], 0.1), TypeError, r"batches\[0\]: index must be an integer tensor"),
        (lambda f: VariancePenalty(f, [EVEN[0], EVEN], 0.1), ValueError, r"batches\[1\] must have shape \(b,\)"),
        (lambda f: VariancePenalty(f, EVEN + 1, 0.1), ValueError, r"batches\[1\]: index must lie in \[0, 6\)"),
        (lambda f: VariancePenalty(f, EVEN, 0.1, float("nan")), ValueError, "mean_coefficient must be finite"),
        (lambda f: GradientPenalty(f, 0.1).loss(torch.ones(2)), ValueError, r"theta must have shape \(..., 3\)"),
        (lambda f: GradientPenalty(f, 0.1).hvp(torch.ones(3), torch.ones(2)), ValueError, "v must have the shape"),
        (lambda f: VariancePenalty(f, EVEN, 1).weighted_grad(draw(1, 3), draw(1, 2)), ValueError, "weights must have"),
    ],
)
def test_arguments_are_checked(build, error, text):
    with pytest.raises(error, match=text):
        build(quadratics())
