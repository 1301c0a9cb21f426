"""Langevin equations: their Gibbs densities solve the stationary Fokker–Planck equation, and runs settle to them."""

import math

import pytest
import torch
from torch.func import hessian, jacrev, vmap
from torch.testing import assert_close

from flows import StochasticFlow, integrate
from flows.models.langevin import LangevinFlow, UnderdampedLangevinFlow
from flows.steady.ornstein_uhlenbeck import MomentumOrnsteinUhlenbeck, OrnsteinUhlenbeck
from landscapes import Cosine, DoubleWell, Quadratic, Rosenbrock
from tests.tensors import f64

LANDSCAPES = {"rosenbrock": Rosenbrock(b=3.0), "cosine": Cosine(dimension=2, frequency=1.5), "well": DoubleWell()}
KINDS = {
    "overdamped": lambda f: LangevinFlow(f, 0.7),
    "underdamped": lambda f: UnderdampedLangevinFlow(f, 0.7, 1.3),
}
kinds = pytest.mark.parametrize("kind", KINDS)


def noise_matrix(flow, state):
    """a = σσᵀ at one state (s,), from the columns of σ."""
    unit = torch.eye(flow.noise_size, dtype=state.dtype)
    columns = flow.diffusion(0.0, state.expand(flow.noise_size, -1), unit)
    return columns.mT @ columns


def change_of_density(flow, state):
    """∂ρ/∂t over ρ of ρ = exp(log_density): −∇·b − b·∇ℓ + ½ a : (∇²ℓ + ∇ℓ∇ℓᵀ), for additive noise."""

    def drift(x):
        return flow.velocity(0.0, x)

    slope, curvature = jacrev(flow.log_density)(state), hessian(flow.log_density)(state)
    spread = (noise_matrix(flow, state) * (curvature + torch.outer(slope, slope))).sum() / 2
    return spread - jacrev(drift)(state).trace() - drift(state) @ slope


@kinds
@pytest.mark.parametrize("name", LANDSCAPES)
def test_the_gibbs_density_is_stationary(kind, name, normal):
    flow = KINDS[kind](LANDSCAPES[name])
    size = flow.start(torch.zeros(flow.landscape.dimension, dtype=torch.float64)).shape[-1]
    for state in normal(0, 6, size):
        terms = flow.velocity(0.0, state).square().sum() + 1  # the size of what must cancel
        assert abs(float(change_of_density(flow, state))) < 1e-11 * float(terms)


@kinds
def test_a_density_of_another_temperature_is_not_stationary(kind):
    """The check above sees a wrong temperature: it is not satisfied by every exp(−f/T)."""

    class Warmer(StochasticFlow):
        def __init__(self, flow):
            self.flow = flow

        noise_size = property(lambda self: self.flow.noise_size)

        def velocity(self, t, state):
            return self.flow.velocity(t, state)

        def diffusion(self, t, state, dw):
            return 1.1 * self.flow.diffusion(t, state, dw)

        def log_density(self, state):
            return self.flow.log_density(state)

    flow = KINDS[kind](LANDSCAPES["well"])
    state = flow.start(f64(*[0.4] * flow.landscape.dimension)) + 0.3
    assert abs(float(change_of_density(Warmer(flow), state))) > 1e-2


def test_on_a_quadratic_both_are_ornstein_uhlenbeck_processes(normal):
    """Drift, noise and the law that solves the Lyapunov equation: covariance T H⁻¹, and TI of velocities."""
    matrix, temperature, friction = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64), 0.3, 0.8
    zero, identity = torch.zeros(2, 2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    plain = OrnsteinUhlenbeck(matrix, 2 * temperature * identity, torch.zeros(2))
    drift = torch.cat([torch.cat([zero, -identity], -1), torch.cat([matrix, friction * identity], -1)])
    noise = torch.block_diag(zero, 2 * friction * temperature * identity)
    moving = MomentumOrnsteinUhlenbeck(drift, noise, torch.zeros(4))
    pairs = [
        (plain, LangevinFlow(Quadratic(matrix), temperature)),
        (moving, UnderdampedLangevinFlow(Quadratic(matrix), temperature, friction)),
    ]
    for law, flow in pairs:
        states = normal(1, 3, len(law.centre))
        assert_close(flow.velocity(0.0, states), law.velocity(0.0, states))
        assert_close(noise_matrix(flow, states[0]), law.diffusion_matrix)
    spread = temperature * torch.linalg.inv(matrix)
    assert_close(plain.stationary(), spread)
    assert_close(moving.stationary(), torch.block_diag(spread, temperature * identity))
    assert_close(plain.circulation(), zero, rtol=0, atol=1e-14)
    x = normal(2, 5, 4)
    flow = pairs[1][1]
    assert_close(
        moving.log_density(x) - moving.log_density(x[0]), flow.log_density(x) - flow.log_density(x[0]), rtol=1e-10,
        atol=1e-12,
    )  # fmt: skip


def test_runs_of_the_double_well_settle_to_the_gibbs_density():
    """E x² by quadrature, x along the wells; Euler's bias at dt = 0.01 is 0.3 ± 0.1 %, a standard error 1.4 %."""
    landscape, temperature, n = DoubleWell(), 0.5, 4000
    flow = LangevinFlow(landscape, temperature)
    run = integrate(flow, torch.zeros(n, landscape.dimension, dtype=torch.float64), [0.0, 6.0], dt=0.01, seed=3)
    grid = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    line = torch.zeros(len(grid), landscape.dimension, dtype=torch.float64)
    line[:, 0] = grid
    weights = flow.log_density(line).exp()
    expected = float((weights * grid**2).sum() / weights.sum())
    squares = run.theta[-1][:, 0].square()
    assert abs(float(squares.mean()) - expected) < 4.5 * float(squares.std()) / math.sqrt(n)


def test_states_of_the_underdamped_flow(dtype, device):
    flow, theta = KINDS["underdamped"](Rosenbrock()), torch.ones(3, 2, dtype=dtype, device=device)
    state = flow.start(theta)
    assert torch.equal(state, torch.cat([theta, torch.zeros_like(theta)], dim=-1))
    assert torch.equal(flow.position(flow.resume(theta, 2 * theta)), theta)
    rate = flow.rate(0.0, state, torch.ones(3, 2, dtype=dtype, device=device))
    assert (rate.dtype, rate.shape) == (dtype, state.shape)
    assert not bool(rate[:, :2].any())  # at rest, and no noise in the position
    assert_close(rate[:, 2:], torch.full_like(theta, math.sqrt(2 * 1.3 * 0.7)))  # ∇f = 0 at (1, 1)


@kinds
def test_noise_is_additive(kind, normal):
    flow = KINDS[kind](Rosenbrock())
    state = flow.start(normal(3, 2, 2))
    dw = normal(4, 2, flow.noise_size)
    assert (flow.noise_kind, flow.noise_size, flow.noise_period) == ("additive", 2, None)
    assert torch.equal(flow.diffusion(0.0, state, dw), flow.diffusion(1.0, 3 * state, dw))
    assert not bool(flow.ito_correction(0.0, state).any())
    alone = torch.stack([flow.rate(0.0, x, w) for x, w in zip(state, dw, strict=True)])
    assert_close(flow.rate(0.0, state, dw), alone)
    assert_close(vmap(flow.log_density)(state), flow.log_density(state))


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_arguments(bad):
    with pytest.raises(ValueError, match="temperature must be positive"):
        LangevinFlow(Rosenbrock(), bad)
    with pytest.raises(ValueError, match="temperature must be positive"):
        UnderdampedLangevinFlow(Rosenbrock(), bad, 1.0)
    with pytest.raises(ValueError, match="friction must be positive"):
        UnderdampedLangevinFlow(Rosenbrock(), 1.0, bad)
    with pytest.raises(TypeError, match="landscape must be a Landscape"):
        LangevinFlow(lambda x: x, 1.0)
