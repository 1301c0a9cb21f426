"""SVRG: mean and covariance by enumeration, the noise that shrinks, linear convergence, gradient descent, refusals."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, StochasticGradientDescent, descend
from flows.descents.svrg import SVRG, SnapshotState
from landscapes import LinearRegression, Quadratic, QuadraticSum, Regularised, UnsupportedError
from landscapes.sampling import Epoch, Replacement, Subset
from landscapes.toys.finite_sums import FINITE_SUMS
from tests.flows.networks import tanh_network
from tests.flows.stepping import states_of

GENERATOR = torch.Generator()
KINDS = {"replacement": Replacement, "subset": Subset, "epoch": Epoch}
samplings = pytest.mark.parametrize("sampling", KINDS)
REFUSED = [
    ({"period": 0}, ValueError, "period must be at least 1, got 0"),
    ({"period": 2.0}, TypeError, "period must be a whole number"),
    ({"h": -1.0}, ValueError, "h must be positive and finite, got -1.0"),
    ({"batch_size": 13}, ValueError, "batch_size must be at most the number of examples, 12, got 13"),
    ({"sampling": "all"}, ValueError, "sampling must be one of"),
    ({"landscape": Quadratic(torch.eye(2))}, TypeError, "landscape"),
]


@pytest.fixture
def regression(normal):
    """Twelve examples in three dimensions that no θ fits: SGD at a constant rate never settles."""
    return LinearRegression(normal(0, 12, 3), normal(1, 12))


def minimum(regression):
    return torch.linalg.lstsq(regression.features, regression.targets[:, None]).solution[:, 0]


@samplings
@pytest.mark.parametrize("batch", [1, 2, 4])
def test_mean_and_noise_of_a_step_by_enumeration(batch, sampling, monkeypatch, normal):
    a = normal(2, 4, 2, 2)
    landscape, theta, snapshot, h = QuadraticSum(a + a.mT, normal(3, 4, 2)), normal(4, 2), normal(5, 2), 0.3
    draws = itertools.product(range(4), repeat=batch)
    batches = torch.tensor(list(draws if sampling == "replacement" else itertools.combinations(range(4), batch)))
    monkeypatch.setattr(KINDS[sampling], "draw", lambda self, order, k, generator: (batches, order))
    descent = SVRG(landscape, h, batch, 5, sampling)
    first = descent.start(theta.expand(len(batches), 2))
    kept = SnapshotState(
        first.theta, snapshot.expand_as(first.theta), landscape.grad(snapshot).expand_as(first.theta), first.order
    )
    after = descent.position(descent.step(kept, 1, GENERATOR))
    assert_close(after.mean(dim=0), theta - h * landscape.grad(theta))
    spread = (after - after.mean(dim=0)).square().sum(dim=-1).mean().sqrt()
    alone = SnapshotState(theta, snapshot, landscape.grad(snapshot), torch.arange(4))
    assert_close(descent.noise_at(alone), spread, rtol=1e-10, atol=1e-12)
    assert_close(descent.noise_at(kept), spread.expand(len(batches)), rtol=1e-10, atol=1e-12)
    assert_close(descent.covariance_trace(alone), (spread / h) ** 2, rtol=1e-10, atol=1e-12)
    if sampling != "replacement" and batch == 4:
        assert float(spread) == pytest.approx(0.0, abs=1e-12)


@samplings
def test_the_first_step_of_a_period_is_a_full_batch_step(sampling, regression, normal):
    theta0, descent = normal(6, 4, 3), SVRG(regression, 0.05, 2, 3, sampling)
    states = states_of(descent, theta0, 7)
    for k in (0, 3, 6):
        assert torch.equal(states[k + 1].snapshot, states[k].theta)
        step = torch.add(states[k].theta, regression.grad(states[k].theta), alpha=-0.05)
        assert torch.equal(states[k + 1].theta, step)
    for k in (1, 2, 4, 5):
        assert torch.equal(states[k + 1].snapshot, states[k].snapshot)
        assert not torch.allclose(states[k + 1].theta, states[k].theta - 0.05 * regression.grad(states[k].theta))
    assert states[0].snapshot.isnan().all()
    assert descent.noise_at(states[0]).isnan().all()


def test_period_one_is_gradient_descent(regression, dtype, device, normal):
    theta0 = normal(7, 2, 3, dtype=dtype).to(device)
    run = descend(SVRG(regression, 0.1, 3, 1), theta0, 8)
    full = descend(GradientDescent(regression, 0.1), theta0, 8)
    assert torch.equal(run.theta, full.theta)
    assert run.times.tolist() == full.times.tolist()
    assert SVRG(regression, 0.1, 3, 4).full_batch() == GradientDescent(regression, 0.1)


@samplings
def test_steps_by_the_formula_on_the_draws_of_sgd(sampling, regression, normal):
    theta0, h, period = normal(8, 3), 0.04, 4
    states = states_of(SVRG(regression, h, 5, period, sampling), theta0, 10, seed=3)
    generator, theta, snapshot = torch.Generator().manual_seed(3), theta0, None
    sampler = StochasticGradientDescent(regression, h, 5, sampling).sampler
    order, x, y = torch.arange(12), regression.features, regression.targets
    for k in range(10):
        snapshot = theta if k % period == 0 else snapshot
        index, order = sampler.draw(order, k, generator)
        rows = x[index]
        inner = rows.T @ (rows @ (theta - snapshot)) / len(index)  # the targets drop out of the difference
        theta = theta - h * (inner + x.T @ (x @ snapshot - y) / 12)
        assert_close(states[k + 1].theta, theta)


@samplings
def test_it_converges_linearly_where_sgd_stalls(sampling, regression):
    theta0, h = torch.zeros(20, 3, dtype=torch.float64), 0.05
    target = minimum(regression)
    runs = {
        descent: descend(descent, theta0, 1200, seed=1, every=300).theta
        for descent in (SVRG(regression, h, 1, 24, sampling), StochasticGradientDescent(regression, h, 1, sampling))
    }
    svrg, sgd = ((theta - target).square().sum(dim=-1).mean(dim=1).sqrt() for theta in runs.values())
    ratios = svrg[1:] / svrg[:-1]
    assert float(ratios[:2].max()) < 1e-2  # so much every 300 steps …
    assert float(svrg[-1]) < 1e-9  # … down to rounding
    assert float(sgd[2:].min()) > 1e-2
    assert float(sgd[-1] / sgd[1]) > 0.5  # a floor, not a slow approach


def test_the_covariance_shrinks_along_a_run_and_that_of_sgd_does_not(regression):
    theta0 = torch.zeros(3, dtype=torch.float64)
    descent, sgd = SVRG(regression, 0.05, 1, 24), StochasticGradientDescent(regression, 0.05, 1)
    states = states_of(descent, theta0, 480)
    noise = torch.stack([descent.noise_at(state) for state in states])
    largest = torch.stack([noise[1 + 24 * i : 25 + 24 * i].max() for i in range(20)])  # of each snapshot's steps
    assert float(largest[-1] / largest[0]) < 1e-3
    assert float(noise[1]) > 0
    assert float(noise[24 * 5 + 1] / noise[24 * 5]) < 1  # a fresh snapshot is nearer
    plain = sgd.step_noise(descend(sgd, theta0, 480, every=24).theta)
    assert float(plain[-1] / plain[0]) > 0.3
    target = minimum(regression)
    residual = regression.features @ target - regression.targets
    floor = 0.05 * ((residual[:, None] * regression.features).square().sum() / 12).sqrt()
    assert_close(sgd.step_noise(target), floor)  # tr D at the minimum, where the mean gradient is zero


def test_costs_seeds_and_members(regression, normal):
    theta0, descent = normal(9, 6, 3), SVRG(regression, 0.05, 3, 4)
    run = descend(descent, theta0, 10, seed=2)
    assert run.cost["grad"] == pytest.approx(6 * (3 + 10 * 2 * 3 / 12))  # snapshots at k = 0, 4, 8
    assert torch.equal(run.theta, descend(descent, theta0, 10, seed=2).theta)
    assert not torch.equal(run.theta, descend(descent, theta0, 10, seed=5).theta)
    nested = descend(descent, theta0.reshape(2, 3, 3), 10, seed=2).theta
    assert torch.equal(nested.reshape(11, 6, 3), run.theta)
    together = descend(descent, theta0[:1].expand(6, 3), 10).theta
    assert len(together[2:].unique(dim=1)[0]) == 6


def test_networks_and_penalties(dtype, normal):
    network = tanh_network()
    run = descend(SVRG(network, 0.1, 2, 3, "epoch"), network.theta0, 6)
    assert float(network.loss(run.theta[-1])) < float(network.loss(run.theta[0]))
    landscape = Regularised(FINITE_SUMS["linear-regression"](), 0.2)
    theta0 = normal(10, 3).to(dtype)
    run = descend(SVRG(landscape, 0.05, 2, 10), theta0, 400)
    assert run.theta.dtype == dtype
    assert float(landscape.grad(run.theta[-1]).norm()) < 100 * torch.finfo(dtype).eps ** 0.5


def test_theta_alone_does_not_tell_the_noise(regression):
    with pytest.raises(UnsupportedError, match=r"depends on its snapshot.*use noise_at"):
        SVRG(regression, 0.1, 1, 2).step_noise(torch.zeros(3))


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_refusals(change, error, message):
    arguments = {"landscape": FINITE_SUMS["linear-regression"](), "h": 0.1, "batch_size": 2, "period": 4}
    with pytest.raises(error, match=message):
        SVRG(**(arguments | change))
