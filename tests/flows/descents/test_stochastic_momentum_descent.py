"""Stochastic heavy balls: torch.optim to the last bit, the change of variables, exact second moments, refusals."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from flows import HeavyBall, ScaledHeavyBall, StochasticGradientDescent, descend
from flows.descents.stochastic_momentum import ScaledStochasticHeavyBall, StochasticHeavyBall
from landscapes import NoisyQuadratic, Quadratic, QuadraticSum
from landscapes.sampling import Replacement
from landscapes.toys.finite_sums import FINITE_SUMS
from tests.flows.stepping import states_of

GENERATOR = torch.Generator()
samplings = pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])


@samplings
@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.99])
@pytest.mark.parametrize("name", FINITE_SUMS)
def test_heavy_ball_is_torch_optim_on_the_same_batches_to_the_last_bit(name, momentum, sampling, dtype, device, normal):
    landscape, h = FINITE_SUMS[name](), 0.03
    theta0 = normal(0, 3, 2, landscape.dimension, dtype=dtype).to(device)
    descent = StochasticHeavyBall(landscape, h, momentum, 2, sampling)
    run, states = descend(descent, theta0, 9, seed=7), states_of(descent, theta0, 9, seed=7)
    sampler, generator = StochasticGradientDescent(landscape, h, 2, sampling).sampler, torch.Generator(device)
    generator.manual_seed(7)
    order = sampler.first_order(theta0.shape[:-1], device)
    parameter = torch.nn.Parameter(theta0.clone())
    optimizer = torch.optim.SGD([parameter], lr=h, momentum=momentum)
    for k in range(9):
        index, order = sampler.draw(order, k, generator)
        parameter.grad = landscape.batch_grad(parameter.detach(), index)
        optimizer.step()
        assert torch.equal(run.theta[k + 1], parameter.detach())
        if momentum:
            assert torch.equal(states[k + 1].momentum, optimizer.state[parameter]["momentum_buffer"])
        assert torch.equal(descent.velocity(states[k + 1]), -h * states[k + 1].momentum)
    assert run.times.tolist() == [k * h for k in range(10)]
    assert run.cost["grad"] == pytest.approx(9 * 6 * 2 / landscape.size)
    assert descent.sampler == sampler


@samplings
def test_the_scaled_one_is_heavy_ball_in_other_variables(sampling, normal):
    landscape, h, friction, theta0 = FINITE_SUMS["linear-regression"](), 0.2, 1.5, normal(1, 4, 3)
    scaled = states_of(ScaledStochasticHeavyBall(landscape, h, friction, 5, sampling), theta0, 10, seed=2)
    plain = StochasticHeavyBall(landscape, h**2, 1 - h * friction, 5, sampling)
    for ours, theirs in zip(scaled, states_of(plain, theta0, 10, seed=2), strict=True):
        assert_close(ours.theta, theirs.theta)
        assert_close(h * ours.momentum, plain.velocity(theirs))


@pytest.mark.parametrize("name", FINITE_SUMS)
def test_whole_batches_are_the_full_batch_descents(name, dtype, normal):
    landscape = FINITE_SUMS[name]()
    theta0, size = normal(2, 2, landscape.dimension, dtype=dtype), landscape.size
    pairs = [
        (StochasticHeavyBall(landscape, 0.05, 0.8, size, "subset"), HeavyBall(landscape, 0.05, 0.8)),
        (ScaledStochasticHeavyBall(landscape, 0.1, 2.0, size, "subset"), ScaledHeavyBall(landscape, 0.1, 2.0)),
    ]
    for noisy, full in pairs:
        assert noisy.full_batch() == full
        runs = [descend(descent, theta0, 8) for descent in (noisy, full)]
        assert runs[0].theta.dtype == dtype
        assert_close(runs[0].theta, runs[1].theta)
        assert runs[0].times.tolist() == runs[1].times.tolist()
        velocity = full.start(theta0), noisy.start(theta0)
        assert float(full.velocity(velocity[0]).abs().max()) == float(noisy.velocity(velocity[1]).abs().max()) == 0
        assert_close(noisy.step_noise(theta0), torch.zeros(2, dtype=dtype))


@pytest.mark.parametrize("batch", [1, 2])
def test_mean_and_noise_of_a_step_by_enumeration(batch, monkeypatch, normal):
    a = normal(3, 4, 2, 2)
    landscape, theta, v = QuadraticSum(a + a.mT, normal(4, 4, 2)), normal(5, 2), normal(6, 2)
    batches = torch.tensor(list(itertools.product(range(4), repeat=batch)))
    monkeypatch.setattr(Replacement, "draw", lambda self, order, k, generator: (batches, order))
    for descent in (
        StochasticHeavyBall(landscape, 0.3, 0.6, batch),
        ScaledStochasticHeavyBall(landscape, 0.3, 2.0, batch),
    ):
        start = descent.start(theta.expand(len(batches), 2))
        moving = type(start)(start.theta, v.expand_as(start.theta), start.order)
        after, full = descent.step(moving, 0, GENERATOR), descent.full_batch()
        resumed = (theta, v) if isinstance(full, HeavyBall) else torch.cat([theta, v])
        mean = full.step(resumed, 0, GENERATOR)
        assert_close(after.theta.mean(dim=0), full.position(mean))
        assert_close(descent.velocity(after).mean(dim=0), full.velocity(mean))
        spread = (after.theta - full.position(mean)).square().sum(dim=-1).mean().sqrt()
        assert_close(descent.step_noise(theta), spread)
        assert_close(descent.step_noise(start.theta), spread.expand(len(batches)))


def test_second_moments_on_a_noisy_quadratic():
    """E (x, v)(x, v)ᵀ follows S ← MSMᵀ + C per mode, M the map of the scaled heavy ball: linear, its noise additive."""
    lam, h, friction, members, steps = torch.tensor([2.0, 0.5], dtype=torch.float64), 0.4, 1.0, 40_000, 6
    landscape = NoisyQuadratic(torch.diag(lam), 6, seed=1)
    start = torch.tensor([1.0, -1.5], dtype=torch.float64)
    expected = torch.zeros(2, dtype=torch.float64)
    for i in range(2):
        transfer = torch.tensor(
            [[1 - h * h * lam[i], h * (1 - h * friction)], [-h * lam[i], 1 - h * friction]]
        ).double()
        kick = torch.tensor([h * h, h], dtype=torch.float64) * lam[i] / 3**0.5
        second = torch.zeros(2, 2, dtype=torch.float64)
        second[0, 0] = start[i] ** 2
        for _ in range(steps):
            second = transfer @ second @ transfer.T + torch.outer(kick, kick)
        expected[i] = second[0, 0]
    descent = ScaledStochasticHeavyBall(landscape, h, friction, 3)
    squares = descend(descent, start.expand(members, 2), steps, keep="last", seed=3).theta[-1].square()
    assert ((squares.mean(dim=0) - expected).abs() < 4 * squares.std(dim=0) / members**0.5).all()
    assert (squares.std(dim=0) / members**0.5 < 0.02 * expected).all()


@samplings
@pytest.mark.parametrize("kind", [StochasticHeavyBall, ScaledStochasticHeavyBall])
def test_seeds_and_members(kind, sampling, normal):
    descent = kind(FINITE_SUMS["linear-regression"](), 0.1, 0.5, 4, sampling)
    theta0 = normal(7, 6, 3)
    run = descend(descent, theta0, 8, seed=1)
    assert torch.equal(run.theta, descend(descent, theta0, 8, seed=1).theta)
    assert not torch.equal(run.theta, descend(descent, theta0, 8, seed=2).theta)
    nested = descend(descent, theta0.reshape(2, 3, 3), 8, seed=1).theta
    assert torch.equal(nested.reshape(9, 6, 3), run.theta)
    together = descend(descent, theta0[:1].expand(6, 3), 8).theta
    assert len(together[1:].unique(dim=1)[0]) == 6
    assert run.cost["grad"] == pytest.approx(8 * 6 * 4 / 12)


REFUSED = [
    ({"h": 0.0}, ValueError, "h must be positive"),
    ({"batch_size": 0}, ValueError, "batch_size must be at least 1"),
    ({"batch_size": 99}, ValueError, "batch_size must be at most the number of examples, 12, got 99"),
    ({"sampling": "shuffle"}, ValueError, "sampling must be one of"),
    ({"landscape": Quadratic(torch.eye(2))}, TypeError, "landscape"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_refusals_of_both(change, error, message):
    arguments = {"landscape": FINITE_SUMS["linear-regression"](), "h": 0.1, "batch_size": 2} | change
    with pytest.raises(error, match=message):
        StochasticHeavyBall(momentum=0.5, **arguments)
    with pytest.raises(error, match=message):
        ScaledStochasticHeavyBall(friction=0.5, **arguments)


def test_refusals_of_each():
    landscape = FINITE_SUMS["linear-regression"]()
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1"):
        StochasticHeavyBall(landscape, 0.1, 1.0, 2)
    with pytest.raises(ValueError, match="friction must be at most 1/h"):
        ScaledStochasticHeavyBall(landscape, 0.1, 11.0, 2)
    with pytest.raises(ValueError, match="friction must not be negative"):
        ScaledStochasticHeavyBall(landscape, 0.1, -1.0, 2)
