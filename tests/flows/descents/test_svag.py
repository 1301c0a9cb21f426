"""SVAG: SGD at level 1, mean and covariance by enumeration, the weak error 1/l by exact moments, refusals."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, StochasticGradientDescent, descend
from flows.descents.svag import SVAG
from landscapes import NoisyQuadratic, Quadratic, QuadraticSum
from landscapes.noise import covariance_matrix
from landscapes.sampling import Replacement, Subset
from landscapes.toys.finite_sums import FINITE_SUMS

GENERATOR = torch.Generator()
REFUSED = [
    ({"level": 0}, ValueError, "level must be at least 1, got 0"),
    ({"level": 1.5}, TypeError, "level must be a whole number, got 1.5"),
    ({"h": 0.0}, ValueError, "h must be positive and finite"),
    ({"batch_size": 13}, ValueError, "batch_size must be at most the number of examples, 12, got 13"),
    ({"sampling": "bootstrap"}, ValueError, "sampling must be one of 'replacement', 'subset', 'epoch'"),
    ({"sampling": "epoch"}, ValueError, "sampling must be 'replacement' or 'subset' at level > 1"),
    ({"landscape": Quadratic(torch.eye(2))}, TypeError, "landscape"),
]


def sum_of(size, normal):
    """N quadratics with different curvatures: the covariance varies with θ."""
    a = normal(size, size, 2, 2)
    return QuadraticSum(a + a.mT, normal(size + 1, size, 2))


@pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])
@pytest.mark.parametrize("name", FINITE_SUMS)
def test_level_one_is_sgd_to_the_last_bit_draws_included(name, sampling, dtype, device, normal):
    landscape = FINITE_SUMS[name]()
    theta0 = normal(0, 3, 2, landscape.dimension, dtype=dtype).to(device)
    runs = [
        descend(descent, theta0, 9, seed=4)
        for descent in (
            SVAG(landscape, 0.03, 2, 1, sampling),
            StochasticGradientDescent(landscape, 0.03, 2, sampling),
        )
    ]
    assert torch.equal(runs[0].theta, runs[1].theta)
    assert torch.equal(runs[0].times, runs[1].times)
    assert runs[0].cost == runs[1].cost


def every_pair(monkeypatch, kind, batches):
    """Make a batch of P² members draw every pair of P mini-batches."""
    pairs = torch.tensor(list(itertools.product(batches, repeat=2)))  # (P², 2, b)
    turn = itertools.count()
    monkeypatch.setattr(kind, "draw", lambda self, order, k, generator: (pairs[:, next(turn) % 2], order))
    return len(pairs)


@pytest.mark.parametrize("level", [2, 5, 16])
@pytest.mark.parametrize(
    ("size", "batch", "sampling"), [(3, 2, "replacement"), (4, 1, "replacement"), (4, 2, "subset")]
)
def test_mean_and_covariance_of_a_step_by_enumeration(size, batch, sampling, level, monkeypatch, normal):
    landscape, theta, h = sum_of(size, normal), normal(9, 2), 0.3
    descent = SVAG(landscape, h, batch, level, sampling)
    draws = itertools.product(range(size), repeat=batch)
    batches = list(draws if sampling == "replacement" else itertools.combinations(range(size), batch))
    count = every_pair(monkeypatch, Replacement if sampling == "replacement" else Subset, batches)
    state = descent.step(descent.start(theta.expand(count, 2)), 0, GENERATOR)
    grads = (theta - descent.position(state)) / (h / level)
    assert_close(grads.mean(dim=0), landscape.grad(theta))
    single = torch.stack([landscape.batch_grad(theta, torch.tensor(index)) for index in batches])
    expected = level * single.T.cov(correction=0)
    assert_close(grads.T.cov(correction=0), expected)
    factor = 1 / batch if sampling == "replacement" else (size - batch) / (size - 1) / batch
    assert_close(expected, level * factor * covariance_matrix(landscape, theta))
    assert_close(descent.step_noise(theta), (h / level) * expected.trace().sqrt())
    full = descent.full_batch()
    assert full == GradientDescent(landscape, h / level)
    assert_close(full.step(theta, 0, GENERATOR), descent.position(state).mean(dim=0))


def moments(hessian, descent, noise, start, steps):
    """E f of a chain θ' = θ − (h/l)(Hθ + noise) after every l-th step, by the recursions of mean and covariance."""
    rate, level = descent.rate, descent.level
    transfer = torch.eye(len(hessian), dtype=torch.float64) - rate * hessian
    mean, covariance, losses = start, torch.zeros_like(hessian), []
    for k in range(steps * level):
        mean, covariance = transfer @ mean, transfer @ covariance @ transfer.T + noise
        if (k + 1) % level == 0:
            second = covariance + torch.outer(mean, mean)
            losses.append(((hessian @ second).trace() / 2).item())
    return np.array(losses)


def step_covariance(descent, monkeypatch):
    """The covariance of one step at the origin, over every pair of single examples."""
    with monkeypatch.context() as patch:
        count = every_pair(patch, Replacement, [(i,) for i in range(descent.landscape.size)])
        origin = torch.zeros(count, descent.landscape.dimension, dtype=torch.float64)
        steps = descent.position(descent.step(descent.start(origin), 0, GENERATOR))
    assert_close(steps.mean(dim=0), torch.zeros_like(origin[0]), rtol=0, atol=1e-12)
    return steps.T.cov(correction=0)


def test_the_weak_error_against_the_equation_is_one_over_the_level(monkeypatch):
    """At fixed h, f = ½θᵀHθ and D = H²: E f of the order-1 equation is known in closed form (science notes §3)."""
    hessian = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
    landscape, h, steps = NoisyQuadratic(hessian, 4, seed=0), 0.3, 6
    start = torch.tensor([1.0, -0.7], dtype=torch.float64)
    lam, modes = np.linalg.eigh(hessian.numpy())
    weights = (modes.T @ start.numpy()) ** 2
    times = h * np.arange(1, steps + 1)[:, None]
    decay = np.exp(-2 * lam * times)
    exact = (lam * decay * weights / 2 + h / 4 * lam**2 * (1 - decay)).sum(axis=1)
    levels, errors = [8, 16, 32, 64], []
    for level in levels:
        descent = SVAG(landscape, h, 1, level)
        losses = moments(hessian, descent, step_covariance(descent, monkeypatch), start, steps)
        errors.append(np.abs(losses - exact).max())
    slopes = np.diff(np.log(errors)) / math.log(2)
    # E f is a series in 1/l: slopes stray from −1 by O(1/l), and by half as much at twice the level.
    assert np.abs(slopes + 1).max() < 0.05
    assert abs(slopes[-1] + 1) < 0.01
    sgd = moments(hessian, SVAG(landscape, h, 1, 1), h**2 * hessian @ hessian, start, steps)
    assert np.abs(sgd - exact).max() > 10 * errors[1]


def test_runs_have_the_moments_of_the_recursion(monkeypatch):
    hessian = torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    landscape, start, members = NoisyQuadratic(hessian, 5, seed=1), torch.ones(2, dtype=torch.float64), 20_000
    descent = SVAG(landscape, 0.3, 1, 4)
    expected = moments(hessian, descent, step_covariance(descent, monkeypatch), start, 3)
    run = descend(descent, start.expand(members, 2), 12, every=4, seed=5)
    losses = landscape.loss(run.theta[1:])
    error = losses.std(dim=1) / math.sqrt(members)
    assert ((losses.mean(dim=1) - torch.from_numpy(expected)).abs() < 4 * error).all()
    assert float((error / losses.mean(dim=1)).max()) < 0.03  # a factor l of the noise would show


def test_clock_cost_and_members(normal):
    landscape, theta0 = FINITE_SUMS["linear-regression"](), normal(2, 5, 3)
    descent = SVAG(landscape, 0.2, 3, 8)
    run = descend(descent, theta0, 16, seed=1)
    assert run.times.tolist() == [k * (0.2 / 8) for k in range(17)]
    assert run.times[-1] == pytest.approx(2 * descent.h)  # l steps are one SGD step
    assert run.cost["grad"] == pytest.approx(16 * 5 * 2 * 3 / 12)
    assert len(run.theta[1:].unique(dim=1)[0]) == 5
    same = descend(descent, theta0, 16, seed=1).theta
    assert torch.equal(run.theta, same)
    assert not torch.equal(run.theta, descend(descent, theta0, 16, seed=2).theta)
    nested = descend(descent, normal(2, 6, 3).reshape(2, 3, 3), 16, seed=1).theta
    assert torch.equal(nested.reshape(17, 6, 3), descend(descent, normal(2, 6, 3), 16, seed=1).theta)


@pytest.mark.parametrize("level", [2, 9])
def test_precisions(level, dtype, device, normal):
    landscape = FINITE_SUMS["two-quadratics"]()
    theta0 = normal(3, 4, 2).to(device)
    runs = [descend(SVAG(landscape, 0.1, 2, level), theta0.to(p), 8).theta for p in (dtype, torch.float64)]
    assert runs[0].dtype == dtype
    assert_close(runs[0].double(), runs[1], rtol=1e-4, atol=1e-4)
    assert SVAG(landscape, 0.1, 2, level).step_noise(runs[0][0]).dtype == dtype


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_refusals(change, error, message):
    arguments = {"landscape": FINITE_SUMS["linear-regression"](), "h": 0.1, "batch_size": 2, "level": 4}
    with pytest.raises(error, match=message):
        SVAG(**(arguments | change))
