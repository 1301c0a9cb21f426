"""cSGD and cMSGD: the paper's raw averages by a plain loop, curvatures, controls, how far they anneal, refusals."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from torch.testing import assert_close

from flows import GradientDescent, HeavyBall, StochasticGradientDescent, descend
from flows.descents.controlled import (
    Averages,
    ControlledGradientDescent,
    ControlledMomentumDescent,
    MeanSquare,
    SquaredMean,
    best_momentum,
    best_rate,
)
from landscapes import LinearRegression, NoisyQuadratic, QuadraticSum, Rosenbrock, UnsupportedError
from landscapes.toys.finite_sums import FINITE_SUMS
from tests.flows.stepping import states_of

KINDS = [ControlledGradientDescent, ControlledMomentumDescent]
kinds = pytest.mark.parametrize("kind", KINDS)
excesses = pytest.mark.parametrize("excess", [SquaredMean(), MeanSquare()])
samplings = pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])


def controls_by_hand(raw, value, beta, h, momentum, square):
    """The control of one coordinate from raw moving averages ⟨g⟩ ⟨x⟩ ⟨g²⟩ ⟨x²⟩ ⟨gx⟩, as the paper prints them."""
    g, x, gg, xx, gx = raw
    if xx - x * x <= 1e-13 * xx:
        return value
    a, sigma = (gx - g * x) / (xx - x * x), gg - g * g
    if a <= 0:
        target = 1.0
    else:
        m = (gg if square else g * g) / (2 * a)
        if momentum:
            target = min(max(1 - 2 * math.sqrt(h * a), 0), max(1 - h * sigma / (4 * m), 0))
        else:
            target = min(1.0, 2 * m / (h * sigma))
    return beta * value + (1 - beta) * target


def by_hand(landscape, theta, batches, h, excess, decay, momentum):
    """cSGD (momentum None) or cMSGD in numpy, coordinate by coordinate: positions and controls."""
    theta, velocity = theta.numpy().copy(), np.zeros(len(theta))
    control = np.ones(len(theta)) if momentum is None else np.full(len(theta), momentum)
    raw, beta, positions, controls = None, np.full(len(theta), decay[0]), [theta], [control]
    for index in batches:
        grad = landscape.batch_grad(torch.from_numpy(theta), index).numpy()
        velocity = -h * control * grad if momentum is None else control * velocity - h * grad
        seen = np.stack([grad, theta, grad**2, theta**2, grad * theta])
        raw = seen if raw is None else beta * raw + (1 - beta) * seen
        square = isinstance(excess, MeanSquare)
        control = np.array(
            [
                controls_by_hand(raw[:, i], control[i], beta[i], h, momentum is not None, square)
                for i in range(len(theta))
            ]
        )
        beta = decay[0] + (decay[1] - decay[0]) * (raw[2] - raw[0] ** 2) / raw[2]
        theta = theta + velocity
        positions.append(theta)
        controls.append(control)
    return np.array(positions), np.array(controls)


@pytest.mark.parametrize("decay", [(0.9, 0.99), (0.8, 0.8)])
@excesses
@kinds
def test_runs_by_the_raw_averages_of_the_paper(kind, excess, decay, normal):
    a = normal(0, 5, 3, 3)
    landscape = QuadraticSum(0.3 * a @ a.mT, normal(1, 5, 3))
    theta0, steps = 1 + normal(2, 3), 60
    # The authors' rate is 1 wherever ah < 1: it takes an h near the edge of stability for it to act at all.
    h = 0.9 if kind is ControlledGradientDescent and excess == MeanSquare() else 0.15
    descent = kind(landscape, h, 2, excess=excess, decay=decay)
    states = states_of(descent, theta0, steps, seed=4)
    sampler = StochasticGradientDescent(landscape, h, 2).sampler
    assert descent.sampler == sampler
    generator, order, batches = torch.Generator().manual_seed(4), torch.arange(5), []
    for k in range(steps):
        index, order = sampler.draw(order, k, generator)
        batches.append(index)
    momentum = 0.9 if kind is ControlledMomentumDescent else None
    positions, controls = by_hand(landscape, theta0, batches, h, excess, decay, momentum)
    # The raw averages cancel: their rounding, not ours, sets the tolerance.
    assert_close(torch.stack([state.theta for state in states]).numpy(), positions, rtol=1e-7, atol=1e-8)
    assert_close(torch.stack([state.control for state in states]).numpy(), controls, rtol=1e-6, atol=1e-7)
    assert controls[1:].min() < 0.9  # the control acted
    assert_close(descend(descent, theta0, steps, seed=4).theta[-1], states[-1].theta)


@pytest.mark.parametrize("kind", KINDS)
def test_without_noise_the_curvature_of_a_diagonal_quadratic_is_exact(kind):
    lam = torch.tensor([2.0, 0.5, -0.3, 0.0], dtype=torch.float64)
    centre = torch.tensor([1.0, -40.0, 3.0, 2.0], dtype=torch.float64)
    landscape = QuadraticSum(torch.diag(lam).expand(3, 4, 4).contiguous(), centre.expand(3, 4).contiguous())
    states = states_of(kind(landscape, 0.1, 3, sampling="subset"), torch.zeros(4, dtype=torch.float64), 12)
    for state in states[2:]:
        curvature = state.averages.curvature()
        assert_close(curvature[:3], lam[:3], rtol=1e-9, atol=1e-9)
        assert curvature[3].isnan()  # it never moved
        assert float(state.control[3]) == float(states[0].control[3])
    averages = states[-1].averages
    if kind is ControlledGradientDescent:
        assert float(states[-1].control[2]) == 1.0  # downhill all the way
        assert_close(best_rate(averages, SquaredMean(), 0.1)[2], torch.tensor(1.0, dtype=torch.float64))
    else:
        assert float(states[-1].control[2]) > 0.9  # towards 1
        # Critical damping while the excess loss is large.
        early = best_momentum(states[3].averages, MeanSquare(), 0.001)[:2]
        assert_close(early, 1 - 2 * (0.001 * lam[:2]).sqrt(), rtol=1e-8, atol=0)


def averages_of(mean, variance, curvature, moved=1.0):
    one = [torch.tensor([x], dtype=torch.float64) for x in (mean, 0.0, variance, moved, curvature * moved, 0.9)]
    return Averages(*one)


@given(mean=st.floats(0.01, 3), variance=st.floats(0.01, 9), curvature=st.floats(0.05, 5), h=st.floats(0.01, 1))
def test_the_rate_is_the_one_that_lowers_the_excess_loss_fastest(mean, variance, curvature, h):
    """Against a search: ṁ = −2aum + ½ahΣu² over 0 ≤ u ≤ 1."""
    averages = averages_of(mean, variance, curvature)
    for excess, square in ((SquaredMean(), mean**2), (MeanSquare(), mean**2 + variance)):
        m = square / (2 * curvature)
        rate = best_rate(averages, excess, h).item()
        slope = lambda u: -2 * curvature * u * m + curvature * h * variance * u**2 / 2  # noqa: E731, B023
        found = minimize_scalar(slope, bounds=(0, 1), method="bounded", options={"xatol": 1e-10})
        assert slope(rate) <= found.fun + 1e-9 * abs(found.fun)
        assert rate == pytest.approx(min(1, 2 * m / (h * variance)), rel=1e-12)
        momentum = best_momentum(averages, excess, h).item()
        expected = min(max(1 - 2 * math.sqrt(h * curvature), 0), max(1 - h * variance / (4 * m), 0))
        assert momentum == pytest.approx(expected, rel=1e-12, abs=1e-12)


@pytest.mark.parametrize("control", [best_rate, best_momentum])
def test_controls_at_the_edges(control):
    downhill = averages_of(1.0, 1.0, -2.0)
    assert control(downhill, SquaredMean(), 0.1).item() == 1.0
    assert control(averages_of(1.0, 1.0, 0.0), SquaredMean(), 0.1).item() == 1.0
    assert control(averages_of(1.0, 1.0, 2.0, moved=0.0), SquaredMean(), 0.1).isnan()  # a = 0/0
    assert control(averages_of(0.0, 1.0, 2.0), SquaredMean(), 0.1).item() == 0.0  # at the minimum
    noiseless = control(averages_of(0.0, 0.0, 2.0), SquaredMean(), 0.1).item()  # there, and no noise
    assert noiseless == pytest.approx(1.0 if control is best_rate else 1 - 2 * math.sqrt(0.2))
    kept = averages_of(1.0, 1.0, 2.0).relax(torch.tensor([0.3]), torch.tensor([math.nan]))
    assert kept.item() == pytest.approx(0.3)


@pytest.fixture(scope="module")
def at_a_minimum():
    """400 runs from away to the minimum of f = ½θᵀHθ, D = H², at an h where SGD has a floor."""
    landscape = NoisyQuadratic(torch.diag(torch.tensor([1.0, 0.4], dtype=torch.float64)), 16, seed=0)
    theta0 = torch.full((400, 2), 3.0, dtype=torch.float64)

    def last(kind, excess, steps=1500, **arguments):
        descent, generator = kind(landscape, 0.3, 2, excess=excess, **arguments), torch.Generator().manual_seed(0)
        state = descent.start(theta0)
        for k in range(steps):
            state = descent.step(state, k, generator)
        return landscape, state

    return last


def floor(landscape, h=0.3, batch=2):
    """E f of SGD at stationarity, Σ (h/2b) λ²/(2 − hλ)."""
    lam = torch.linalg.eigvalsh(landscape.hessian(torch.zeros(2, dtype=torch.float64)))
    return float((h / (2 * batch) * lam**2 / (2 - h * lam)).sum())


def test_the_rate_anneals_at_a_minimum(at_a_minimum):
    """Over three seeds and 1,500 to 12,000 steps: medians 0.010 to 0.012, 99 % below 0.19 to 0.24, E f 2.4 to 2.8 %."""
    landscape, state = at_a_minimum(ControlledGradientDescent, SquaredMean())
    assert float(state.control.median()) < 0.02
    assert float(state.control.quantile(0.99)) < 0.35
    assert float(landscape.loss(state.theta).mean()) < 0.05 * floor(landscape)


def test_how_far_it_anneals_is_up_to_the_memory(at_a_minimum):
    """u does not tend to zero but to a law, lower the longer the memory (measured medians: 0.010, 0.004 to 0.005)."""
    medians = [
        float(at_a_minimum(ControlledGradientDescent, SquaredMean(), steps, decay=decay)[1].control.median())
        for steps, decay in ((1500, (0.9, 0.99)), (3000, (0.9, 0.99)), (3000, (0.9, 0.997)))
    ]
    assert medians[1] == pytest.approx(medians[0], rel=0.5)
    assert medians[2] < 0.7 * medians[1]
    assert min(medians) > 1e-3


def test_the_authors_rate_does_not(at_a_minimum):
    landscape, state = at_a_minimum(ControlledGradientDescent, MeanSquare())
    assert float(state.control.min()) > 0.99
    losses = landscape.loss(state.theta)
    assert abs(float(losses.mean()) - floor(landscape)) < 4 * float(losses.std()) / 20  # SGD's own floor


def test_the_momentum_goes_to_zero_at_a_minimum(at_a_minimum):
    landscape, state = at_a_minimum(ControlledMomentumDescent, SquaredMean())
    assert float(state.control.quantile(0.99)) < 0.01
    losses = landscape.loss(state.theta)
    assert abs(float(losses.mean()) - floor(landscape)) < 4 * float(losses.std()) / 20


def test_the_authors_momentum_does_not(at_a_minimum):
    _, state = at_a_minimum(ControlledMomentumDescent, MeanSquare())
    # At h = 0.3, λ = 0.4: 1 − 2√(hλ) = 0.31, and less where noise makes the curvature look larger.
    assert 0.15 < float(state.control[:, 1].median()) < 0.4


@samplings
@kinds
def test_a_translation_changes_nothing(kind, sampling, normal):
    """Averages that began at zero would take the distance from the origin for a variance."""
    features, targets, shift = normal(3, 12, 3), normal(4, 12), torch.tensor([50.0, -20.0, 5.0], dtype=torch.float64)
    near = LinearRegression(features, targets)
    far = LinearRegression(features, targets + features @ shift)
    runs = [
        states_of(kind(landscape, 0.1, 3, sampling=sampling), theta0, 30)
        for landscape, theta0 in ((near, normal(5, 2, 3)), (far, normal(5, 2, 3) + shift))
    ]
    for ours, theirs in zip(*runs, strict=True):
        assert_close(theirs.theta - shift, ours.theta, rtol=1e-8, atol=1e-9)
        assert_close(theirs.control, ours.control, rtol=1e-6, atol=1e-7)


@samplings
@kinds
def test_the_first_step_seeds_members_and_costs(kind, sampling, dtype, device, normal):
    landscape = FINITE_SUMS["linear-regression"]()
    theta0, descent = normal(6, 6, 3, dtype=dtype).to(device), kind(landscape, 0.1, 4, sampling=sampling)
    run = descend(descent, theta0, 20, seed=1)
    plain = descend(StochasticGradientDescent(landscape, 0.1, 4, sampling), theta0, 1, seed=1)
    assert_close(run.theta[1], plain.theta[1])  # u = 1, and v = 0
    assert (run.theta.dtype, run.status) == (dtype, "finished")
    assert run.times.tolist() == [k * 0.1 for k in range(21)]
    assert run.cost["grad"] == pytest.approx(20 * 6 * 4 / 12)
    assert run.cost["loss"] == run.cost["hvp"] == 0
    nested = descend(descent, theta0.reshape(2, 3, 3), 20, seed=1).theta
    assert torch.equal(nested.reshape(21, 6, 3), run.theta)
    assert not torch.equal(run.theta, descend(descent, theta0, 20, seed=2).theta)
    together = descend(descent, theta0[:1].expand(6, 3), 20).theta
    assert len(together[2:].unique(dim=1)[0]) == 6
    for state in states_of(descent, theta0, 20):
        assert state.control.dtype == dtype
        assert float(state.control.min()) >= 0
        assert float(state.control.max()) <= 1


def test_full_batches_noise_and_velocity(normal):
    landscape, theta0 = FINITE_SUMS["linear-regression"](), normal(7, 3)
    sgd = StochasticGradientDescent(landscape, 0.1, 2)
    rate, momentum = ControlledGradientDescent(landscape, 0.1, 2), ControlledMomentumDescent(landscape, 0.1, 2, 0.7)
    assert rate.full_batch() == GradientDescent(landscape, 0.1)
    assert momentum.full_batch() == HeavyBall(landscape, 0.1, 0.7)
    assert_close(momentum.step_noise(theta0), sgd.step_noise(theta0))
    assert_close(rate.noise_at(rate.start(theta0)), sgd.step_noise(theta0))
    state = states_of(rate, theta0.expand(5, 3), 40)[-1]
    grads = landscape.example_grads(state.theta)  # (5, 12, 3)
    spread = (0.1 * state.control[:, None] * (grads - grads.mean(dim=1, keepdim=True))).square().sum(dim=-1).mean(dim=1)
    assert_close(rate.noise_at(state), (spread / 2).sqrt())
    assert float(state.control.min()) < 0.95
    states = states_of(momentum, theta0, 3)
    for before, after in itertools.pairwise(states):
        assert_close(momentum.velocity(after), after.theta - before.theta)
    assert rate.velocity(state) is None
    with pytest.raises(UnsupportedError, match=r"rates of the run.*noise_at"):
        rate.step_noise(theta0)


REFUSED = [
    ({"h": 0.0}, ValueError, "h must be positive"),
    ({"batch_size": 13}, ValueError, "batch_size must be at most the number of examples, 12, got 13"),
    ({"sampling": "all"}, ValueError, "sampling must be one of"),
    ({"landscape": Rosenbrock()}, TypeError, "landscape"),
    ({"excess": "annealing"}, TypeError, r"excess must be an ExcessLoss, SquaredMean\(\) or MeanSquare\(\)"),
    ({"decay": 0.9}, TypeError, "decay must be a pair"),
    ({"decay": (0.9, 1.0)}, ValueError, "decay must hold rates with 0 <= smallest <= largest < 1"),
    ({"decay": (0.9, 0.8)}, ValueError, "decay must hold rates"),
    ({"decay": (0.9, "slow")}, TypeError, r"decay\[1\] must be a real number"),
]


@kinds
@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_refusals(change, error, message, kind):
    arguments = {"landscape": FINITE_SUMS["linear-regression"](), "h": 0.1, "batch_size": 2}
    with pytest.raises(error, match=message):
        kind(**(arguments | change))


@kinds
def test_complex_theta_and_wrong_momentum_are_refused(kind):
    landscape = FINITE_SUMS["linear-regression"]()
    with pytest.raises(UnsupportedError, match=r"controlled descents need real theta, got torch\.complex128"):
        kind(landscape, 0.1, 2).start(torch.zeros(3, dtype=torch.complex128))
    with pytest.raises(ValueError, match=r"momentum must lie in \[0, 1\), got 1.5"):
        ControlledMomentumDescent(landscape, 0.1, 2, 1.5)
