"""Counted counts as the contract says; Regularised adds weight decay to every derivative; both keep what they wrap."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from landscapes import LANDSCAPES, Counted, FiniteSum, Regularised
from landscapes.expansion import AutogradExpansion
from landscapes.toys.finite_sums import FINITE_SUMS

EVERY = LANDSCAPES | FINITE_SUMS
every = pytest.mark.parametrize("name", EVERY)
seeds = st.integers(0, 2**31)
SIZE = 12  # examples of the default regression


def tally(**counts):
    return {"loss": 0, "grad": 0, "hvp": 0, "third": 0, "higher": 0} | counts


@pytest.fixture
def toy():
    return Counted(LANDSCAPES["rosenbrock"]())


@pytest.fixture
def regression():
    return Counted(FINITE_SUMS["linear-regression"]())


def test_every_call_counts_one_a_state(toy, normal):
    theta = normal(1, 2, 3, 2)
    toy.loss(theta[0, 0])
    assert toy.counts == tally(loss=1)
    toy.loss(theta)
    assert toy.counts == tally(loss=7)
    toy.grad(theta)
    assert toy.counts == tally(loss=7, grad=6)
    toy.hvp(theta, theta)
    assert toy.counts == tally(loss=7, grad=6, hvp=6)
    toy.third(theta, theta, theta)
    assert toy.counts == tally(loss=7, grad=6, hvp=6, third=6)
    toy.hessian(theta)
    assert toy.counts == tally(loss=7, grad=6, hvp=6 + 2 * 6, third=6)


def test_an_expansion_counts_its_loss_and_grad_once(toy, normal):
    theta = normal(2, 3, 2)
    point = toy.expand(theta)
    assert toy.counts == tally()
    for _ in range(3):
        point.grad  # noqa: B018
        point.loss  # noqa: B018
    assert toy.counts == tally(loss=3, grad=3)
    point.hvp(theta)
    point.hvp(theta)
    point.third(theta, theta)
    point.hessian()
    assert toy.counts == tally(loss=3, grad=3, hvp=2 * 3 + 2 * 3, third=3)
    toy.expand(theta).grad  # noqa: B018
    assert toy.counts == tally(loss=3, grad=6, hvp=12, third=3)


def test_calls_inside_transforms_count_as_higher(toy, normal):
    theta = normal(3, 2)
    torch.func.jvp(toy.grad, (theta,), (theta,))
    assert toy.counts == tally(higher=1)
    torch.func.grad(toy.loss)(theta)
    assert toy.counts == tally(higher=2)
    torch.func.jvp(toy.grad, (theta.expand(4, 2),), (theta.expand(4, 2),))
    assert toy.counts == tally(higher=6)
    toy.grad(theta)
    assert toy.counts == tally(higher=6, grad=1)


def test_b_of_n_examples_count_a_share(regression, normal):
    theta = normal(4, 5, 3)
    shared, each = torch.arange(3), torch.arange(15).reshape(5, 3) % SIZE
    for index in (shared, each):
        regression.counts.update(tally())
        regression.batch_grad(theta, index)
        assert regression.counts == pytest.approx(tally(grad=5 * 3 / SIZE))
        regression.example_grads(theta, index)
        assert regression.counts == pytest.approx(tally(grad=2 * 5 * 3 / SIZE))
        regression.losses(theta, index)
        assert regression.counts == pytest.approx(tally(grad=2 * 5 * 3 / SIZE, loss=5 * 3 / SIZE))


def test_a_full_sum_counts_one(regression, normal):
    theta, weights = normal(5, 3), normal(6, SIZE)
    regression.example_grads(theta)
    regression.weighted_grad(theta, weights)
    regression.losses(theta)
    regression.loss(theta)
    assert regression.counts == tally(grad=2, loss=2)


def test_selections_and_weights_may_widen_the_batch(regression, normal):
    theta = normal(7, 3)
    regression.batch_grad(theta, torch.arange(8).reshape(4, 2))
    assert regression.counts == pytest.approx(tally(grad=4 * 2 / SIZE))
    regression.weighted_grad(theta, normal(8, 4, SIZE))
    assert regression.counts == pytest.approx(tally(grad=4 * 2 / SIZE + 4))


def test_a_restriction_adds_its_share_to_the_same_counts(regression, normal):
    theta = normal(9, 3)
    part = regression.restrict(torch.tensor([0, 3, 4]))
    part.grad(theta)
    assert regression.counts == pytest.approx(tally(grad=3 / SIZE))
    part.hvp(theta, theta)
    assert regression.counts == pytest.approx(tally(grad=3 / SIZE, hvp=3 / SIZE))
    part.batch_grad(theta, torch.tensor([1]))
    assert regression.counts == pytest.approx(tally(grad=4 / SIZE, hvp=3 / SIZE))
    part.restrict(torch.tensor([0, 1])).grad(theta)
    assert regression.counts == pytest.approx(tally(grad=6 / SIZE, hvp=3 / SIZE))


def test_a_call_that_raises_counts_nothing(toy, regression):
    with pytest.raises(ValueError, match="theta must have shape"):
        toy.grad(torch.zeros(3))
    with pytest.raises(ValueError, match="weights must have shape"):
        regression.weighted_grad(torch.zeros(3), torch.zeros(2))
    assert toy.counts == tally()
    assert regression.counts == tally()


@every
@given(seed=seeds)
def test_counting_changes_no_value(name, normal, seed):
    landscape = EVERY[name]()
    counted = Counted(landscape)
    theta, u, v = normal(seed, 3, 2, landscape.dimension)
    assert torch.equal(counted.loss(theta), landscape.loss(theta))
    assert torch.equal(counted.grad(theta), landscape.grad(theta))
    assert torch.equal(counted.expand(theta).grad, landscape.grad(theta))
    assert torch.equal(counted.expand(theta).loss, landscape.loss(theta))
    assert torch.equal(counted.hvp(theta, v), landscape.hvp(theta, v))
    assert torch.equal(counted.third(theta, u, v), landscape.third(theta, u, v))
    assert torch.equal(counted.hessian(theta), landscape.hessian(theta))


WRAPPED = {
    "counted": Counted,
    "regularised": lambda inner: Regularised(inner, 0.1),
    "counted-regularised": lambda inner: Counted(Regularised(inner, 0.1)),
    "regularised-counted": lambda inner: Regularised(Counted(inner), 0.1),
    "twice-regularised": lambda inner: Regularised(Regularised(inner, 0.04), 0.06),
}


@every
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapping_keeps_what_is_wrapped(name, wrapper):
    inner = EVERY[name]()
    outer = WRAPPED[wrapper](inner)
    assert isinstance(outer, FiniteSum) == isinstance(inner, FiniteSum)
    assert (outer.dimension, outer.holomorphic) == (inner.dimension, inner.holomorphic)
    if isinstance(inner, FiniteSum):
        assert isinstance(outer.restrict(torch.tensor([0])), FiniteSum)
        assert outer.size == inner.size


@every
@given(seed=seeds, l2=st.floats(-2, 2))
def test_regularised_derivatives_equal_autograd(name, normal, seed, l2):
    inner = EVERY[name]()
    landscape = Regularised(inner, l2)
    theta, u, v = normal(seed, 3, 4, inner.dimension)
    penalised = AutogradExpansion(lambda x: inner.loss(x) + l2 * (x**2).sum(-1) / 2, theta)
    point = landscape.expand(theta)
    for one, other in (
        (landscape.loss(theta), penalised.loss),
        (landscape.grad(theta), penalised.grad),
        (point.loss, penalised.loss),
        (point.grad, penalised.grad),
        (point.hvp(v), penalised.hvp(v)),
        (point.third(u, v), penalised.third(u, v)),
        (point.hessian(), penalised.hessian()),
    ):
        assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", FINITE_SUMS)
@pytest.mark.parametrize("wrapper", WRAPPED)
def test_wrapped_sums_agree_with_their_losses(name, wrapper, normal):
    landscape = WRAPPED[wrapper](FINITE_SUMS[name]())
    theta, weights = normal(10, 4, landscape.dimension), normal(11, 4, landscape.size)
    index = torch.arange(8).reshape(4, 2) % landscape.size
    assert_close(landscape.loss(theta), landscape.losses(theta).mean(-1))
    assert_close(landscape.weighted_grad(theta, weights), FiniteSum.weighted_grad(landscape, theta, weights))
    assert_close(landscape.example_grads(theta), FiniteSum.example_grads(landscape, theta))
    for chosen in (index, index[0]):
        assert_close(landscape.batch_grad(theta, chosen), FiniteSum.batch_grad(landscape, theta, chosen))
        assert_close(landscape.example_grads(theta, chosen), FiniteSum.example_grads(landscape, theta, chosen))
    part = landscape.restrict(index[0])
    assert_close(part.grad(theta), landscape.batch_grad(theta, index[0]))
    assert_close(part.hessian(theta), FiniteSum.hessian(part, theta))


@every
def test_nested_wrappers_agree(name, normal):
    inner = EVERY[name]()
    theta, v = normal(12, 2, 3, inner.dimension)
    plain = Regularised(inner, 0.1)
    for wrapper in ("counted-regularised", "regularised-counted", "twice-regularised"):
        outer = WRAPPED[wrapper](inner)
        assert_close(outer.grad(theta), plain.grad(theta))
        assert_close(outer.hvp(theta, v), plain.hvp(theta, v))
        assert_close(outer.hessian(theta), plain.hessian(theta))


def test_counts_pass_through_regularisation(normal):
    counted = Counted(FINITE_SUMS["linear-regression"]())
    landscape, theta = Regularised(counted, 0.1), normal(13, 2, 3)
    landscape.batch_grad(theta, torch.arange(6))
    landscape.hessian(theta)
    assert counted.counts == pytest.approx(tally(grad=2 * 6 / SIZE, hvp=2 * 3))


def test_complex_theta_passes_through(normal):
    inner = LANDSCAPES["rosenbrock"]()
    theta = torch.complex(*normal(14, 2, 3, 2))
    landscape = Counted(Regularised(inner, 0.5))
    assert_close(landscape.grad(theta), inner.grad(theta) + 0.5 * theta)
    assert_close(landscape.loss(theta), inner.loss(theta) + 0.25 * (theta**2).sum(-1))


@every
def test_batch_shapes_dtype_and_device(name, normal, dtype, device):
    landscape = Counted(Regularised(EVERY[name](), 0.1))
    for batch in ((), (3,), (2, 3)):
        theta = normal(15, *batch, landscape.dimension, dtype=dtype).to(device)
        for result in (landscape.grad(theta), landscape.hvp(theta, theta), landscape.third(theta, theta, theta)):
            assert (result.shape, result.dtype, result.device) == (theta.shape, dtype, theta.device)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: Counted("loss"), TypeError, "landscape must be a Landscape, got str"),
        (lambda: Regularised(None, 0.1), TypeError, "landscape must be a Landscape, got NoneType"),
        (lambda: Regularised(LANDSCAPES["saddle"](), float("nan")), ValueError, "l2 must be finite"),
        (lambda: Regularised(LANDSCAPES["saddle"](), "0.1"), TypeError, "l2 must be a real number"),
    ],
)
def test_arguments_are_checked(build, error, text):
    with pytest.raises(error, match=text):
        build()
