"""Stochastic modified equations of momentum: weak orders by exact moments, drift and noise as printed, one backward."""

import math

import numpy as np
import pytest
import scipy.linalg
import torch
from torch.testing import assert_close

from flows import MinibatchNoise, ModifiedHeavyBallFlow, StochasticFlow, integrate, minibatch_path
from flows.descents.stochastic_momentum import ScaledStochasticHeavyBall
from flows.models.momentum_modified import ScaledMomentumFlow
from flows.models.stochastic_momentum import MomentumModifiedEquation, NoisyMomentumEquation
from landscapes import Counted, NoisyQuadratic, Quadratic, QuadraticSum, Rosenbrock, TwoQuadratics
from landscapes.noise import GradientNoise
from landscapes.toys.finite_sums import FINITE_SUMS
from tests.flows.networks import tanh_network
from tests.flows.stepping import slopes

HESSIAN = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
BOWL = NoisyQuadratic(HESSIAN, 8, seed=0)
START = np.array([1.0, -0.7, 0.3, 0.2])  # not at rest, not at the minimum
FRICTION, T = 0.8, 2.0


def linear_parts(flow):
    """F with velocity = −Fz and C = BBᵀ of a flow that is linear with additive noise: read off, not rederived."""
    size, m = 2 * flow.landscape.dimension, flow.noise_size
    drift = -flow.velocity(0.0, torch.eye(size, dtype=torch.float64)).mT.numpy()
    columns = flow.diffusion(0.0, torch.zeros(m, size, dtype=torch.float64), torch.eye(m, dtype=torch.float64)).numpy()
    return drift, columns.T @ columns


def moments_of_the_equation(flow, times):
    """E z and E zzᵀ at multiples of times[1], by the moment equation's exponential: d vec M = −(F⊕F) vec M + vec C."""
    drift, noise = linear_parts(flow)
    size = len(drift)
    identity = np.eye(size)
    lifted = np.zeros((size**2 + 1,) * 2)
    lifted[:-1, :-1] = -(np.kron(drift, identity) + np.kron(identity, drift))
    lifted[:-1, -1] = noise.ravel()
    step, mover = scipy.linalg.expm(lifted * times[1]), scipy.linalg.expm(-drift * times[1])
    second, first = np.append(np.outer(START, START).ravel(), 1.0), START.copy()
    out = [(first, second[:-1])]
    for _ in times[1:]:
        second, first = step @ second, mover @ first
        out.append((first, second[:-1]))
    return np.array([m for m, _ in out]), np.array([s for _, s in out]).reshape(-1, size, size)


def moments_of_the_descent(h, batch_size, steps):
    """E z and E zzᵀ of v' = v − h(μv + Hx + Hγ̄), x' = x + hv', with Cov γ̄ = I/b, by recursion."""
    matrix, identity = HESSIAN.numpy(), np.eye(2)
    kept = (1 - h * FRICTION) * identity
    move = np.block([[identity - h**2 * matrix, h * kept], [-h * matrix, kept]])
    kick = np.vstack([-(h**2) * matrix, -h * matrix]) / math.sqrt(batch_size)
    first, second = START.copy(), np.outer(START, START)
    out = [(first, second)]
    for _ in range(steps):
        first, second = move @ first, move @ second @ move.T + kick @ kick.T
        out.append((first, second))
    return np.array([m for m, _ in out]), np.array([s for _, s in out])


KINDS = {
    "minibatch": lambda h, order: MomentumModifiedEquation(BOWL, h, FRICTION, 2, order),
    "noisy": lambda h, order: NoisyMomentumEquation(BOWL, h, FRICTION, MinibatchNoise(BOWL, 2), order),
}
kinds = pytest.mark.parametrize("kind", KINDS)
orders = pytest.mark.parametrize("order", [1, 2])


@kinds
@orders
def test_weak_order_by_exact_moments(kind, order):
    """φ = f, x₀, x₀v₁ and v₁², sup over the steps to T = 2. No draw, no step of an integrator."""
    ladder, errors = [T / n for n in (80, 160, 320, 640)], []
    for h in ladder:
        steps = round(T / h)
        mean, second = moments_of_the_equation(KINDS[kind](h, order), h * np.arange(steps + 1))
        gap_mean, gap = mean, second
        mean, second = moments_of_the_descent(h, 2, steps)
        gap_mean, gap = gap_mean - mean, gap - second
        loss = np.einsum("ij,tij->t", HESSIAN.numpy(), gap[:, :2, :2]) / 2
        tests = (loss, gap_mean[:, 0], gap[:, 0, 3], gap[:, 3, 3])
        errors.append([np.abs(values).max() for values in tests])
    found = slopes(np.array(errors), ladder)[:, -1]
    assert found == pytest.approx(order, abs=0.05)


@kinds
def test_the_noise_has_its_own_weak_order(kind):
    """Covariances, which the drift's error hides in: O(h²) at order 2, O(h) for noise 2 % too large."""
    ladder, errors, wrong = [T / n for n in (80, 160, 320, 640)], [], []
    for h in ladder:
        steps = round(T / h)
        mean, second = moments_of_the_equation(KINDS[kind](h, 2), h * np.arange(steps + 1))
        covariance = second - np.einsum("ti,tj->tij", mean, mean)
        mean, second = moments_of_the_descent(h, 2, steps)
        truth = second - np.einsum("ti,tj->tij", mean, mean)
        errors.append(np.abs(covariance - truth).max())
        wrong.append(np.abs(1.02 * covariance - truth).max())
    assert slopes(errors, ladder)[-1] == pytest.approx(2, abs=0.05)
    assert slopes(wrong, ladder)[-1] < 1.6


@orders
def test_the_drift_is_the_modified_heavy_ball_flow(order, normal):
    state, net = normal(0, 3, 4), tanh_network()
    for landscape, states in ((Rosenbrock(), state), (net, torch.cat([net.theta0, net.theta0.flip(0)]))):
        d = landscape.dimension
        flow = NoisyMomentumEquation(landscape, 0.1, 0.6, _Unit(d), order)
        expected = ModifiedHeavyBallFlow(landscape, 0.1, 0.6, order).velocity(0.0, states)
        assert_close(flow.velocity(0.0, states), expected)
        x, v = states.split(d, dim=-1)
        point = landscape.expand(x)
        extra = (order - 1) * 0.05
        along = v - extra * (0.6 * v + point.grad)
        force = -0.6 * v - point.grad - extra * (0.36 * v + 0.6 * point.grad - point.hvp(v))
        assert_close(expected, torch.cat([along, force], dim=-1), rtol=1e-8, atol=1e-10)


class _Unit(GradientNoise):
    """σ = I."""

    kind = "additive"

    def __init__(self, dimension):
        self._dimension = dimension

    dimension = property(lambda self: self._dimension)
    size = property(lambda self: self._dimension)

    def factor(self, theta, xi):
        return xi


@pytest.mark.parametrize("name", FINITE_SUMS)
@pytest.mark.parametrize("sampling", ["replacement", "subset"])
def test_noise_is_that_of_the_minibatch_gradient_in_v_alone(name, sampling, normal):
    """√h σ(x): its columns' covariance is h c D(x), against the enumerated covariance of the batch gradient."""
    landscape, h = FINITE_SUMS[name](), 0.04
    d, state = landscape.dimension, normal(1, 2 * landscape.dimension)
    flow = MomentumModifiedEquation(landscape, h, 0.5, 2, 1, sampling)
    unit = torch.eye(landscape.size, dtype=torch.float64)
    columns = flow.diffusion(0.0, state.expand(landscape.size, -1), unit)
    assert not bool(columns[:, :d].any())
    pairs = torch.cartesian_prod(torch.arange(landscape.size), torch.arange(landscape.size))
    pairs = pairs if sampling == "replacement" else pairs[pairs[:, 0] != pairs[:, 1]]
    batches = landscape.example_grads(state[:d])[pairs].mean(dim=1)
    covariance = (batches - batches.mean(0)).mT @ (batches - batches.mean(0)) / len(batches)
    assert_close(columns[:, d:].mT @ columns[:, d:], h * covariance, rtol=1e-9, atol=1e-12)
    general = NoisyMomentumEquation(landscape, h, 0.5, MinibatchNoise(landscape, 2, sampling))
    dw = normal(2, landscape.size)
    assert_close(flow.diffusion(0.0, state, dw), general.diffusion(0.0, state, dw))


@orders
@pytest.mark.parametrize("name", [*FINITE_SUMS, "network"])
def test_rate_is_drift_plus_noise(name, order, normal):
    landscape = tanh_network() if name == "network" else FINITE_SUMS[name]()
    flow = MomentumModifiedEquation(landscape, 0.1, 0.5, 2, order)
    state, dw = normal(3, 2, 2 * landscape.dimension), normal(4, 2, landscape.size)
    expected = flow.velocity(0.0, state) + flow.diffusion(0.0, state, dw)
    assert_close(flow.rate(0.0, state, dw), expected, rtol=1e-9, atol=1e-11)


@orders
def test_cost_of_an_evaluation(order, normal):
    landscape = Counted(FINITE_SUMS["linear-regression"]())
    flow = MomentumModifiedEquation(landscape, 0.1, 0.5, 2, order)
    flow.rate(0.0, normal(3, 6), normal(4, landscape.size))
    assert landscape.counts["grad"] == order
    assert landscape.counts["hvp"] == order - 1


@orders
def test_ito_and_stratonovich_agree(order, normal):
    """Noise that depends on x and drives v: the m jvps of the general formula give the zero that is written down."""
    landscape = TwoQuadratics()
    for flow in (
        MomentumModifiedEquation(landscape, 0.1, 0.5, 1, order),
        NoisyMomentumEquation(landscape, 0.1, 0.5, MinibatchNoise(landscape, 1), order),
    ):
        state = normal(5, 3, 4)
        assert flow.noise_kind == "general"
        by_formula = StochasticFlow.ito_correction(flow, 0.0, state)
        assert torch.equal(flow.ito_correction(0.0, state), torch.zeros_like(state))
        assert_close(by_formula, torch.zeros_like(state), rtol=0, atol=1e-14)
        moved = flow.diffusion(0.0, state + 1, torch.ones(3, 2, dtype=torch.float64) * torch.tensor([1.0, -1.0]))
        here = flow.diffusion(0.0, state, torch.ones(3, 2, dtype=torch.float64) * torch.tensor([1.0, -1.0]))
        assert float((moved - here).abs().max()) > 1e-3  # the noise does depend on the state
    assert NoisyMomentumEquation(landscape, 0.1, 0.5, _Unit(2)).noise_kind == "additive"


def test_epochs_have_noise_that_sums_to_zero(normal):
    landscape = FINITE_SUMS["noisy-quadratic"]()
    flow = MomentumModifiedEquation(landscape, 0.1, 0.5, 2, 1, "epoch")
    assert flow.noise_period == pytest.approx(0.1 * 4)
    assert MomentumModifiedEquation(landscape, 0.1, 0.5, 2).noise_period is None
    # c = N/((N − 1)b) against 1/b with replacement.
    plain = MomentumModifiedEquation(landscape, 0.1, 0.5, 2)
    state, dw = normal(6, 4), normal(7, 8)
    ratio = math.sqrt(8 / 7)
    assert_close(flow.diffusion(0.0, state, dw), ratio * plain.diffusion(0.0, state, dw))
    ends = {}
    for sampling in ("epoch", "subset"):  # over one short epoch from the minimum, drift does not matter yet
        brief = MomentumModifiedEquation(landscape, 1e-3, 0.0, 2, 1, sampling)
        run = integrate(
            _Started(brief, torch.zeros(200, 4, dtype=torch.float64)), state[:2], [0.0, 4e-3], dt=1e-3, seed=0
        )
        ends[sampling] = float(run.theta[-1][:, 2:].square().mean().sqrt())
    assert ends["epoch"] < 0.02 * ends["subset"]
    with pytest.raises(ValueError, match="batch_size must divide"):
        MomentumModifiedEquation(landscape, 0.1, 0.5, 3, 1, "epoch")


def test_paths_are_driven_by_the_very_minibatches():
    """Along one run's mini-batches the equation's distance to scaled heavy ball falls with h, on one clock."""
    landscape, theta0, friction = FINITE_SUMS["linear-regression"](), torch.ones(400, 3, dtype=torch.float64), 1.0
    errors = []
    for h in (0.1, 0.05):
        descent, steps = ScaledStochasticHeavyBall(landscape, h, friction, 2), round(2 / h)
        generator, state = torch.Generator().manual_seed(5), descent.start(theta0)
        for k in range(steps):
            state = descent.step(state, k, generator)
        path = minibatch_path(descent, theta0, steps, seed=5, halvings=3)
        run = integrate(MomentumModifiedEquation(landscape, h, friction, 2), theta0, [0.0, 2.0], dt=h / 8, path=path)
        errors.append(float((run.theta[-1] - state.theta).square().sum(-1).mean().sqrt()))
    assert errors[1] < 0.62 * errors[0]
    assert errors[0] < 0.1


def test_an_ensemble_has_the_exact_moments():
    """integrate at order 2: within 4.5 standard errors of Euler's own law, and that within 0.01 of the equation's."""
    n, h = 20_000, 0.1
    flow = KINDS["minibatch"](h, 2)
    start = torch.from_numpy(START).expand(n, 4)
    resumed = _Started(flow, start)
    states = integrate(resumed, start[:, :2], [0.0, 1.0], dt=h / 32, seed=11).theta[-1]
    drift, noise = linear_parts(flow)
    chain_step = np.eye(4) - h / 32 * drift  # Euler's own law: what integrate must reproduce
    mean, covariance = START.copy(), np.zeros((4, 4))
    for _ in range(320):
        mean, covariance = chain_step @ mean, chain_step @ covariance @ chain_step.T + h / 32 * noise
    gap = (states.mean(0).numpy() - mean) / np.sqrt(np.diag(covariance) / n)
    assert np.abs(gap).max() < 4.5
    offsets = states.numpy() - mean
    squares = offsets[:, :, None] * offsets[:, None, :]
    assert (np.abs(squares.mean(0) - covariance) < 4.5 * squares.std(0) / math.sqrt(n)).all()
    exact = moments_of_the_equation(flow, np.array([0.0, 1.0]))
    assert np.abs(mean - exact[0][-1]).max() < 0.01


class _Started(StochasticFlow):
    """A flow that starts from states given and reports all of them."""

    def __init__(self, flow, states):
        self.flow, self.states, self.landscape = flow, states, flow.landscape

    noise_size = property(lambda self: self.flow.noise_size)
    noise_period = property(lambda self: self.flow.noise_period)

    def start(self, theta0):
        return self.states

    def velocity(self, t, state):
        return self.flow.velocity(t, state)

    def diffusion(self, t, state, dw):
        return self.flow.diffusion(t, state, dw)

    def rate(self, t, state, dw_over_dt):
        return self.flow.rate(t, state, dw_over_dt)


@kinds
def test_states_and_names(kind, dtype):
    flow, theta = KINDS[kind](0.1, 2), torch.ones(3, 2, dtype=dtype)
    state = flow.start(theta)
    assert torch.equal(state, torch.cat([theta, 0 * theta], -1))
    assert torch.equal(flow.position(flow.resume(theta, 2 * theta)), theta)
    assert flow.rate(0.0, state, torch.ones(3, 8, dtype=dtype)).dtype == dtype
    assert flow.name.endswith("Equation order 2")
    assert isinstance(flow, ScaledMomentumFlow)


@kinds
def test_batches_of_states(kind, normal):
    flow, states, dw = KINDS[kind](0.1, 2), normal(8, 2, 3, 4), normal(9, 2, 3, 8)
    together = flow.rate(0.0, states, dw)
    for i in range(2):
        for j in range(3):
            assert_close(together[i, j], flow.rate(0.0, states[i, j], dw[i, j]), rtol=1e-11, atol=1e-12)


def test_arguments():
    with pytest.raises(ValueError, match="order must be at most 2"):
        MomentumModifiedEquation(BOWL, 0.1, 0.5, 2, 3)
    with pytest.raises(ValueError, match="friction must be at most 1/h"):
        MomentumModifiedEquation(BOWL, 0.1, 11.0, 2)
    with pytest.raises(ValueError, match="batch_size must be at most"):
        MomentumModifiedEquation(BOWL, 0.1, 0.5, 9)
    with pytest.raises(TypeError, match="FiniteSum"):
        MomentumModifiedEquation(Quadratic(HESSIAN), 0.1, 0.5, 1)
    with pytest.raises(ValueError, match="sampling must be one of"):
        MomentumModifiedEquation(BOWL, 0.1, 0.5, 1, 1, "often")
    with pytest.raises(TypeError, match="noise must be a GradientNoise"):
        NoisyMomentumEquation(BOWL, 0.1, 0.5, 1.0)
    with pytest.raises(ValueError, match="noise must have the landscape's dimension 2, got 3"):
        NoisyMomentumEquation(BOWL, 0.1, 0.5, _Unit(3))
    wide = QuadraticSum(torch.eye(2, dtype=torch.float64).expand(4, 2, 2), torch.zeros(4, 2, dtype=torch.float64))
    flow = MomentumModifiedEquation(wide, 0.1, 0.5, 2)
    with pytest.raises(ValueError, match="dw must have shape"):
        flow.rate(0.0, torch.zeros(4, dtype=torch.float64), torch.zeros(3, dtype=torch.float64))
