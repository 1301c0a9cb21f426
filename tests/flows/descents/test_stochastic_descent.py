"""SGD: torch.optim on the same batches, the three samplings by enumeration and by large samples, seeds, arguments."""

import itertools
import math

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, StochasticGradientDescent, descend
from landscapes import Quadratic, QuadraticSum
from landscapes.landscape import FiniteSum
from landscapes.toys.finite_sums import FINITE_SUMS

SAMPLINGS = ("replacement", "subset", "epoch")
samplings = pytest.mark.parametrize("sampling", SAMPLINGS)


class Tally(FiniteSum):
    """f_i(θ) = θ_i: a mini-batch gradient is the share of each example in the batch."""

    holomorphic = False

    def __init__(self, size):
        self._size = size

    @property
    def dimension(self):
        return self._size

    @property
    def size(self):
        return self._size

    def losses(self, theta, index=None):
        if index is None:
            return theta
        return theta.gather(-1, index.expand(*theta.shape[:-1], index.shape[-1]))


def shares(size, batch_size, sampling, steps, members=(), seed=0):
    """The share of every example in the batch of every step, shape (steps, *members, N)."""
    descent = StochasticGradientDescent(Tally(size), 1.0, batch_size, sampling)
    run = descend(descent, torch.zeros(*members, size, dtype=torch.float64), steps, seed=seed)
    return -run.theta.diff(dim=0)


class Replayed(FiniteSum):
    """A sum that notes which examples were asked for."""

    def __init__(self, inner):
        self.inner, self.asked = inner, []

    dimension = property(lambda self: self.inner.dimension)
    size = property(lambda self: self.inner.size)

    def with_parts(self, change):
        return self  # counted as one

    def losses(self, theta, index=None):
        return self.inner.losses(theta, index)

    def batch_grad(self, theta, index):
        self.asked.append(index.clone())
        return self.inner.batch_grad(theta, index)


@samplings
@pytest.mark.parametrize("name", FINITE_SUMS)
def test_sgd_is_torch_optim_on_the_same_batches_to_the_last_bit(name, sampling, dtype, device, normal):
    landscape = Replayed(FINITE_SUMS[name]())
    theta0, h = normal(0, 3, 2, landscape.dimension, dtype=dtype).to(device), 0.03
    run = descend(StochasticGradientDescent(landscape, h, 2, sampling), theta0, 9, seed=7)
    assert (run.theta.dtype, run.theta.device, run.status) == (dtype, theta0.device, "finished")
    assert run.times.tolist() == [k * h for k in range(10)]
    parameter = torch.nn.Parameter(theta0.clone())
    optimizer = torch.optim.SGD([parameter], lr=h)
    for index, theta in zip(landscape.asked, run.theta[1:], strict=True):
        assert index.shape == (3, 2, 2)
        parameter.grad = landscape.inner.batch_grad(parameter.detach(), index)
        optimizer.step()
        assert torch.equal(theta, parameter.detach())
    assert run.cost["grad"] == pytest.approx(9 * 6 * 2 / landscape.size)
    assert run.cost["steps"] == 9


@samplings
def test_the_network_route_a_sum_by_autograd_equals_its_closed_form(sampling, normal):
    closed = FINITE_SUMS["linear-regression"]()
    traced = Replayed(closed)
    traced.batch_grad = lambda theta, index: FiniteSum.batch_grad(traced, theta, index)
    theta0 = normal(1, 4, 3)
    runs = [descend(StochasticGradientDescent(f, 0.1, 5, sampling), theta0, 6, seed=1) for f in (closed, traced)]
    assert_close(runs[0].theta, runs[1].theta)


@pytest.mark.parametrize(("size", "batch"), [(7, 3), (6, 2), (5, 5), (4, 1), (9, 8)])
def test_an_epoch_visits_every_example_once_and_reshuffles(size, batch):
    length = math.ceil(size / batch)
    taken = shares(size, batch, "epoch", 6 * length, members=(50,))
    sizes = [min(batch, size - batch * i) for i in range(length)] * 6
    counts = taken * torch.tensor(sizes, dtype=torch.float64)[:, None, None]
    assert_close(counts, counts.round(), rtol=0, atol=1e-12)  # the short last batch at its true size
    assert_close(taken.sum(dim=-1), torch.ones(6 * length, 50, dtype=torch.float64))
    epochs = counts.round().reshape(6, length, 50, size)
    assert torch.equal(epochs.sum(dim=1), torch.ones(6, 50, size, dtype=torch.float64))
    if length > 1:
        assert len({tuple(e.flatten().tolist()) for e in epochs}) == 6  # no two epochs in the same order
        assert len({tuple(m.flatten().tolist()) for m in epochs.transpose(0, 2).transpose(1, 2)}) > 1


@pytest.mark.parametrize(("size", "batch"), [(7, 3), (5, 5), (4, 1), (6, 5)])
def test_a_subset_has_no_repeats(size, batch):
    counts = shares(size, batch, "subset", 20, members=(30,)) * batch
    assert_close(counts.sum(dim=-1), torch.full((20, 30), float(batch), dtype=torch.float64))
    assert float((counts - counts.round()).abs().max()) < 1e-9
    assert set(counts.round().unique().tolist()) <= {0.0, 1.0}


@samplings
def test_large_samples_have_the_moments_of_the_sampling(sampling):
    size, batch, members, steps = 5, 2, 4000, 2
    taken = shares(size, batch, sampling, steps, members=(members,), seed=3)
    factor = {"replacement": 1 / batch}.get(sampling, (size - batch) / (size - 1) / batch)
    covariance = factor * (torch.eye(size) / size - torch.ones(size, size) / size**2).double()
    # Shares lie in [0, 1]: their means over 4,000 members stray by 1/√4000 ≈ 0.016 times a deviation below 0.35.
    for k in range(steps):
        assert_close(taken[k].mean(dim=0), torch.full((size,), 1 / size, dtype=torch.float64), rtol=0, atol=0.025)
        assert_close(taken[k].T.cov(correction=0), covariance, rtol=0, atol=0.01)
    between = torch.cat((taken[0].T, taken[1].T)).cov(correction=0)[:size, size:]
    # Steps are independent; within an epoch the second batch avoids the first: −cov/(length − 1) with b | N.
    expected = torch.zeros(size, size) if sampling != "epoch" else -(torch.eye(size) / size - 1 / size**2) / (size - 1)
    assert_close(between, expected.double(), rtol=0, atol=0.01)
    first, second = taken[:, : members // 2], taken[:, members // 2 :]  # members draw independently
    products = ((first - 1 / size) * (second - 1 / size)).mean(dim=1)
    assert float(products.abs().max()) < 0.01
    assert float((first - second).abs().amax(dim=(0, 2)).gt(0).double().mean()) > 0.8


def batches(size, batch, sampling):
    """Every mini-batch, all equally likely."""
    return itertools.product(range(size), repeat=batch) if sampling == "replacement" else itertools.combinations(
        range(size), batch
    )  # fmt: skip


@samplings
@pytest.mark.parametrize("size", [1, 2, 4, 5])
def test_the_step_noise_is_that_of_all_batches(size, sampling, normal):
    a = normal(2, size, 2, 2)
    landscape = QuadraticSum(a + a.mT, normal(3, size, 2))
    theta, h = normal(4, 3, 2), 0.3
    for batch in range(1, size + 1):
        descent = StochasticGradientDescent(landscape, h, batch, sampling)
        drawn = torch.stack([landscape.batch_grad(theta, torch.tensor(b)) for b in batches(size, batch, sampling)])
        assert_close(drawn.mean(dim=0), landscape.grad(theta))
        expected = h**2 * (drawn - landscape.grad(theta)).square().sum(dim=-1).mean(dim=0)
        assert_close(descent.step_noise(theta) ** 2, expected, rtol=1e-10, atol=1e-14)
        assert descent.step_noise(theta[0]).shape == ()
        assert descent.full_batch() == GradientDescent(landscape, h)


@samplings
def test_seeds_reproduce_and_members_differ(sampling, device, normal):
    landscape = FINITE_SUMS["linear-regression"]()
    descent = StochasticGradientDescent(landscape, 0.05, 4, sampling)
    theta0 = normal(5, 3).expand(6, 3).to(device)
    runs = [descend(descent, theta0, 8, seed=seed).theta for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len(runs[0][1:].unique(dim=1)[0]) == 6  # no two members drew alike
    torch.manual_seed(0)
    again = descend(descent, theta0, 8, seed=1).theta
    assert torch.equal(again, runs[0])  # no global generator is read …
    state = torch.random.get_rng_state()
    descend(descent, theta0, 8, seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)  # … or moved
    assert torch.equal(descend(descent, theta0, 8).theta, descend(descent, theta0, 8, seed=0).theta)


@pytest.mark.parametrize("sampling", ["subset", "epoch"])
@pytest.mark.parametrize("name", FINITE_SUMS)
def test_the_full_batch_is_gradient_descent(name, sampling, normal):
    landscape = FINITE_SUMS[name]()
    theta0 = normal(6, 4, landscape.dimension)
    descent = StochasticGradientDescent(landscape, 0.1, landscape.size, sampling)
    run = descend(descent, theta0, 10)
    assert_close(run.theta, descend(descent.full_batch(), theta0, 10).theta, rtol=1e-12, atol=1e-12)
    assert torch.equal(descent.step_noise(theta0), torch.zeros(4, dtype=torch.float64))


@samplings
def test_divergence_freezes_members_and_leaves_the_draws_of_the_others(sampling):
    landscape = FINITE_SUMS["noisy-quadratic"]()
    descent = StochasticGradientDescent(landscape, 1e4, 3, sampling)
    theta0 = torch.tensor([[1.0, 0.0], [1e290, 0.0]], dtype=torch.float64)
    run = descend(descent, theta0, 12, seed=4)
    assert run.alive.tolist() == [True, False]
    assert "1 of 2 members" in run.status.sentence
    assert bool(run.theta.isfinite().all())
    tame = descend(descent, torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64), 12, seed=4)
    assert torch.equal(run.theta[:, 0], tame.theta[:, 0])
    ended = descend(descent, theta0[1], 12)
    assert (ended.status, bool(ended.alive)) == ("diverged", False)
    assert f"after step {len(ended.times)}" in ended.status.sentence


SUM = FINITE_SUMS["two-quadratics"]()
BAD = {
    "no landscape": ((torch.eye(2), 0.1, 1), TypeError, "landscape must be a Landscape"),
    "no finite sum": ((Quadratic(torch.eye(2)), 0.1, 1), TypeError, "landscape must be a FiniteSum"),
    "batch zero": ((SUM, 0.1, 0), ValueError, "batch_size must be at least 1"),
    "batch negative": ((SUM, 0.1, -2), ValueError, "batch_size must be at least 1"),
    "batch over N": ((SUM, 0.1, 3), ValueError, "batch_size must be at most .* 2, got 3"),
    "batch fraction": ((SUM, 0.1, 1.0), TypeError, "batch_size must be a whole number"),
    "batch bool": ((SUM, 0.1, True), TypeError, "batch_size"),
    "batch string": ((SUM, 0.1, "1"), TypeError, "batch_size"),
    "h zero": ((SUM, 0.0, 1), ValueError, "h must be positive"),
    "h NaN": ((SUM, math.nan, 1), ValueError, "h must be positive"),
    "h infinite": ((SUM, math.inf, 1), ValueError, "h must be positive"),
    "h string": ((SUM, "0.1", 1), TypeError, "h must be"),
    "h bool": ((SUM, True, 1), TypeError, "h must be"),
    "sampling": ((SUM, 0.1, 1, "shuffle"), ValueError, "sampling must be one of 'replacement', 'subset', 'epoch'"),
    "sampling None": ((SUM, 0.1, 1, None), ValueError, "sampling must be one of"),
}


@pytest.mark.parametrize(("arguments", "error", "match"), BAD.values(), ids=BAD)
def test_arguments(arguments, error, match):
    with pytest.raises(error, match=match):
        StochasticGradientDescent(*arguments)
