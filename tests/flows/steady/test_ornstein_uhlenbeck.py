"""Ornstein–Uhlenbeck processes against quadrature, Kronecker solves, closed forms and draws; F and C do not commute."""

import math
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.integrate import quad_vec
from torch.testing import assert_close

from flows import BrownianPath, integrate
from flows.steady.linear_laws import LinearChain, NoStationaryLawError
from flows.steady.ornstein_uhlenbeck import MomentumOrnsteinUhlenbeck, OrnsteinUhlenbeck
from tests.examples import few
from tests.tensors import f64

STABLE = f64([1.5, 0.8, 0.0], [-0.6, 0.9, 0.3], [0.2, -0.4, 0.7])
NOISE = f64([1.0, 0.4, 0.0], [0.4, 0.5, -0.2], [0.0, -0.2, 0.3])
CENTRE = f64(0.3, -1.0, 2.0)
RANK_ONE = torch.outer(f64(1.0, 2.0, 0.0), f64(1.0, 2.0, 0.0))
DRIFTS = {
    "stable": STABLE,
    "unstable": STABLE - 1.6 * torch.eye(3, dtype=torch.float64),
    "nilpotent": f64([0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]),
    "none": torch.zeros(3, 3, dtype=torch.float64),
    "stiff": torch.diag(f64(1e3, 1.0, 1e-3)) @ STABLE,
}
NOISES = {"regular": NOISE, "rank one": RANK_ONE, "tiny": 1e-12 * NOISE, "large": 1e12 * NOISE}
drifts = pytest.mark.parametrize("drift", DRIFTS)
noises = pytest.mark.parametrize("noise", NOISES)


def quadrature(drift, noise, t):
    """∫₀ᵗ e^{−Fs} C e^{−Fᵀs} ds by adaptive Gauss–Kronrod over scipy's exponential."""

    def integrand(s):
        propagator = scipy.linalg.expm(-s * drift.numpy())
        return propagator @ noise.numpy() @ propagator.T

    return torch.from_numpy(quad_vec(integrand, 0.0, t, epsabs=0.0, epsrel=1e-11, limit=20000)[0])


def stable_drift(normal, seed, size):
    """A drift with symmetric part positive definite: stable, and not normal."""
    a, b = normal(seed, size, size), normal(seed + 1, size, size)
    return a @ a.mT / size + 0.2 * torch.eye(size, dtype=torch.float64) + (b - b.mT)


@drifts
@noises
def test_covariance_is_the_integral(drift, noise):
    law = OrnsteinUhlenbeck(DRIFTS[drift], NOISES[noise], CENTRE)
    for t in (1e-4, 0.7, 4.0) if drift != "stiff" else (1e-6, 1e-3):
        expected = quadrature(DRIFTS[drift], NOISES[noise], t)
        assert_close(law.covariance(t), expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max()))


@drifts
def test_mean_is_the_exponential(drift, normal):
    law, x0, times = OrnsteinUhlenbeck(DRIFTS[drift], NOISE, CENTRE), normal(0, 2, 4, 3), f64(0.0, 0.3, 2.0)
    means = law.mean(times, x0)
    assert means.shape == (3, 2, 4, 3)
    for t, mean in zip(times.tolist(), means, strict=True):
        propagator = torch.from_numpy(scipy.linalg.expm(-t * DRIFTS[drift].numpy()))
        assert_close(mean, CENTRE + (x0 - CENTRE) @ propagator.mT, rtol=1e-10, atol=1e-10)
        assert_close(law.mean(t, x0[1, 2]), mean[1, 2])
    assert torch.equal(means[0], CENTRE + (x0 - CENTRE))


def test_an_initial_covariance_is_carried_along():
    law, initial = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE), RANK_ONE + NOISE
    propagator = torch.linalg.matrix_exp(-0.8 * STABLE)
    expected = propagator @ initial @ propagator.mT + quadrature(STABLE, NOISE, 0.8)
    assert_close(law.covariance(0.8, initial), expected, rtol=1e-10, atol=1e-12)
    assert_close(law.covariance(3.0, law.stationary()), law.stationary(), rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("noise", ["regular", "rank one"])
def test_stationary_covariance_is_the_kronecker_solution(noise):
    law, identity = OrnsteinUhlenbeck(STABLE, NOISES[noise], CENTRE), torch.eye(3, dtype=torch.float64)
    operator = torch.kron(STABLE, identity) + torch.kron(identity, STABLE)
    expected = torch.linalg.solve(operator, NOISES[noise].flatten()).reshape(3, 3)
    assert_close(law.stationary(), expected, rtol=1e-11, atol=1e-13)
    assert float((STABLE @ NOISE - NOISE @ STABLE).abs().max()) > 0.1  # or the test would not ask much
    # Where e^{Ft} is far beyond float64; a time of 1e12 is 40 doublings.
    assert_close(law.covariance(f64(1e3, 1e6, 1e12))[-1], expected, rtol=1e-11, atol=1e-12)


@few(25)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 5), s=st.floats(0, 30), t=st.floats(0, 30))
def test_time_adds_up(normal, seed, size, s, t):
    """Chapman–Kolmogorov, symmetry, positive semidefiniteness, and S = A S Aᵀ + Q where there is an S."""
    root = normal(seed + 2, size, max(size - 1, 1))
    law = OrnsteinUhlenbeck(stable_drift(normal, seed, size), root @ root.mT, torch.zeros(size))
    both = law.covariance(s + t)
    scale = float(law.stationary().abs().max())
    assert_close(law.covariance(t, law.covariance(s)), both, rtol=1e-9, atol=1e-11 * scale)
    assert torch.equal(both, both.mT)
    assert float(torch.linalg.eigvalsh(both)[0]) > -1e-12 * scale
    kept = law.transition(t).propagator
    assert_close(law.stationary(), kept @ law.stationary() @ kept.mT + law.covariance(t), rtol=1e-9, atol=1e-11 * scale)


@pytest.mark.parametrize("rate", [2.5, -2.5, 0.0])
def test_one_dimension_in_closed_form(rate):
    law = OrnsteinUhlenbeck(f64([rate]), f64([3.0]), f64(1.0))
    times = f64(0.0, 1e-9, 0.01, 1.0, 100.0)
    expected = 3 * times if rate == 0 else -3 * torch.expm1(-2 * rate * times) / (2 * rate)
    assert_close(law.covariance(times)[:, 0, 0], expected, rtol=1e-12, atol=0)
    assert_close(law.mean(times, f64(5.0))[:, 0], 1 + 4 * torch.exp(-rate * times), rtol=1e-12, atol=0)


def test_vectors_of_times_are_times_one_by_one():
    law, times = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE), f64([0.0, 1e-6, 0.5], [3.0, 40.0, 1e5])
    covariances = law.covariance(times)
    assert covariances.shape == (2, 3, 3, 3)
    for i in range(2):
        for j in range(3):
            assert_close(covariances[i, j], law.covariance(float(times[i, j])), rtol=1e-13, atol=1e-15)


def test_autocovariance():
    law, lags = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE), f64(-0.4, 0.0, 0.4)
    behind, at, ahead = law.autocovariance(lags)
    assert_close(at, law.stationary())
    assert_close(ahead, torch.linalg.matrix_exp(-0.4 * STABLE) @ law.stationary())
    assert_close(behind, ahead.mT)
    assert_close(law.autocovariance(0.4), ahead, rtol=1e-14, atol=1e-15)  # a Python float keeps its digits
    # From a path: the joint law of X(0), X(t) in the stationary state.
    n = 40_000
    start = law.sample(CENTRE.expand(n, 3), f64(0.0, 60.0), torch.Generator().manual_seed(1))[-1]
    moved = law.sample(start, f64(0.0, 0.4), torch.Generator().manual_seed(2))[-1]
    products = (moved - CENTRE)[:, :, None] * (start - CENTRE)[:, None, :]
    assert bool(((products.mean(dim=0) - ahead).abs() < 4.5 * products.std(dim=0) / math.sqrt(n)).all())


def test_log_density_and_its_absence(normal):
    law, x = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE), normal(3, 5, 3)
    gaussian = torch.distributions.MultivariateNormal(CENTRE, law.stationary())
    assert_close(law.log_density(x), gaussian.log_prob(x))
    flat = OrnsteinUhlenbeck(torch.diag(f64(1.0, 2.0, 3.0)), torch.diag(f64(1.0, 1.0, 0.0)), CENTRE)
    with pytest.raises(ValueError, match="no density"):
        flat.log_density(x)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_a_density_does_not_depend_on_units(scale, normal):
    """Positions and velocities may differ by any factor: the test of singularity is of correlations."""
    units = torch.diag(f64(1.0, scale, 1.0))
    law = OrnsteinUhlenbeck(units @ STABLE @ units.inverse(), units @ NOISE @ units, units @ CENTRE)
    x = normal(3, 3)
    expected = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE).log_density(x) - math.log(scale)
    assert_close(law.log_density(units @ x), expected, rtol=1e-8, atol=1e-8)


def test_circulation_is_the_area_swept():
    """Q + ½C = FS; the area rate E ½(x_i dx_j − x_j dx_i)/dt from the autocovariance's slope at lag 0."""
    law = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE)
    assert_close(law.circulation() + NOISE / 2, STABLE @ law.stationary(), rtol=1e-11, atol=1e-12)
    lag = 1e-6
    joint = law.autocovariance(lag)  # E x_i(t + lag) x_j(t)
    assert_close(law.circulation(), (joint.mT - joint) / (2 * lag), rtol=1e-4, atol=1e-6)


def test_the_published_planar_circulation():
    """F = diag(a, c): Q₁₂ = ½C₁₂(a − c)/(a + c); detailed balance where a = c. Chaudhari & Soatto 2018."""
    noise = f64([1.0, 0.6], [0.6, 2.0])
    for a, c in ((1.0, 3.0), (2.0, 2.0)):
        law = OrnsteinUhlenbeck(torch.diag(f64(a, c)), noise, torch.zeros(2))
        assert float(law.circulation()[0, 1]) == pytest.approx(0.3 * (a - c) / (a + c), abs=1e-14)


def test_the_current_keeps_the_density(normal):
    """j/ρ = −F(x − x*) − ½ C ∇log ρ, and ∇·j = 0: its product with ∇log ρ vanishes, as a rotation's does."""
    law, x = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE), normal(4, 6, 3)
    score = torch.func.vmap(torch.func.grad(torch.distributions.MultivariateNormal(CENTRE, law.stationary()).log_prob))
    assert_close(law.current(x), law.velocity(0.0, x) - score(x) @ NOISE / 2, rtol=1e-9, atol=1e-10)
    assert_close((law.current(x) * score(x)).sum(-1), torch.zeros(6, dtype=torch.float64), rtol=0, atol=1e-10)


def test_samples_have_the_law_on_any_grid(normal):
    law, n = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE), 20_000
    x0, times = f64(2.0, 0.0, -1.0), f64(0.5, 0.6, 1.7, 1.8, 4.0)
    paths = law.sample(x0.expand(n, 3), times, torch.Generator().manual_seed(0))
    assert paths.shape == (5, n, 3)
    assert torch.equal(paths[0], (x0.expand(n, 3) - CENTRE) + CENTRE)
    for t, states in zip((times - times[0]).tolist()[1:], paths[1:], strict=True):
        mean, covariance = law.mean(t, x0), law.covariance(t)
        assert bool(((states.mean(0) - mean).abs() < 4.5 * covariance.diagonal().sqrt() / math.sqrt(n)).all())
        squares = (states - mean)[:, :, None] * (states - mean)[:, None, :]
        assert bool(((squares.mean(0) - covariance).abs() < 4.5 * squares.std(0) / math.sqrt(n)).all())


def test_samples_without_noise_are_the_mean(normal):
    law, x0, times = OrnsteinUhlenbeck(STABLE, 0 * NOISE, CENTRE), normal(5, 4, 3), f64(0.0, 1.0, 1.5)
    assert_close(law.sample(x0, times, torch.Generator().manual_seed(0)), law.mean(times, x0), rtol=1e-12, atol=1e-12)


def test_short_samples_of_a_position_keep_their_digits():
    """Over t = 1e-6 the position's variance is t³/3 = 3e-19 beside the velocity's 1e-6: eigh alone would round it."""
    law = MomentumOrnsteinUhlenbeck(f64([0.0, -1.0], [0.0, 0.0]), torch.diag(f64(0.0, 1.0)), torch.zeros(2))
    n, t = 20_000, 1e-6
    states = law.sample(torch.zeros(n, 2, dtype=torch.float64), f64(0.0, t), torch.Generator().manual_seed(4))[-1]
    assert float(states[:, 0].var()) == pytest.approx(t**3 / 3, rel=5 * math.sqrt(2 / n))
    assert float(np.corrcoef(states.T)[0, 1]) == pytest.approx(math.sqrt(3) / 2, abs=0.02)


def test_euler_steps_of_the_flow_are_the_linear_chain():
    """integrate's Euler–Maruyama has the law A = I − F dt, N = C dt: an exact oracle, with dt far from zero."""
    law, dt, steps, n = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE), 0.2, 10, 20_000
    x0 = f64(2.0, 0.0, -1.0)
    states = integrate(law, x0.expand(n, 3), [0.0, steps * dt], dt=dt, seed=1).theta[-1]
    chain = LinearChain(torch.eye(3, dtype=torch.float64) - dt * STABLE, dt * NOISE, CENTRE)
    mean, covariance = chain.mean(steps, x0), chain.covariance(steps)
    assert bool(((states.mean(0) - mean).abs() < 4.5 * covariance.diagonal().sqrt() / math.sqrt(n)).all())
    squares = (states - mean)[:, :, None] * (states - mean)[:, None, :]
    assert bool(((squares.mean(0) - covariance).abs() < 4.5 * squares.std(0) / math.sqrt(n)).all())
    assert float((covariance - law.covariance(steps * dt)).abs().max()) > 0.05  # Euler's own error is no small thing


def test_strong_order_is_one():
    """Additive noise: on one Brownian path Euler's distance to itself at half the step halves."""
    law = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE)
    path = BrownianPath(0, 0.0, 2.0, 1 / 64, (500, 3))
    runs = [
        integrate(law, CENTRE.expand(500, 3) + 1, [0.0, 2.0], dt=dt, path=path).theta[-1]
        for dt in (1 / 16, 1 / 32, 1 / 64)
    ]  # fmt: skip
    coarse, fine = (float((a - b).square().mean().sqrt()) for a, b in pairwise(runs))
    assert math.log2(coarse / fine) == pytest.approx(1.0, abs=0.15)


@pytest.mark.parametrize("noise", ["regular", "rank one"])
def test_flow_and_root(noise, normal, dtype, device):
    state = normal(6, 2, 5, 3, dtype=dtype).to(device)
    law = OrnsteinUhlenbeck(STABLE, NOISES[noise], CENTRE)
    assert_close(law.velocity(0.0, state), ((CENTRE.to(state) - state) @ STABLE.mT.to(state)))
    columns = law.diffusion(0.0, state[0, :3], torch.eye(3, dtype=dtype, device=device))
    assert_close(columns.mT @ columns, NOISES[noise].to(state))
    given = OrnsteinUhlenbeck(STABLE, RANK_ONE, CENTRE, root=f64([1.0], [2.0], [0.0]))
    assert (given.noise_size, law.noise_size, law.noise_kind) == (1, 3, "additive")
    moved = given.diffusion(0.0, state, torch.ones(2, 5, 1, dtype=dtype, device=device))
    assert_close(moved, torch.tensor([1.0, 2.0, 0.0], dtype=dtype, device=device).expand(2, 5, 3))
    mean = law.mean(1.0, state.cpu())
    assert mean.dtype == dtype  # the law is float64 inside


def test_momentum_states():
    law = MomentumOrnsteinUhlenbeck(torch.eye(4), torch.eye(4), torch.zeros(4))
    theta = torch.ones(3, 2, dtype=torch.float64)
    assert torch.equal(law.start(theta), torch.cat([theta, 0 * theta], dim=-1))
    assert torch.equal(law.position(law.resume(theta, 5 * theta)), theta)
    run = integrate(law, theta, [0.0, 0.2], dt=0.1, seed=0)
    assert run.theta.shape == (2, 3, 2)
    with pytest.raises(ValueError, match="as many velocities as positions"):
        MomentumOrnsteinUhlenbeck(torch.eye(3), torch.eye(3), torch.zeros(3))


@pytest.mark.parametrize("name", ["unstable", "nilpotent", "none"])
def test_no_stationary_law(name):
    law = OrnsteinUhlenbeck(DRIFTS[name], NOISE, CENTRE)
    with pytest.raises(NoStationaryLawError, match="positive real part") as caught:
        law.stationary()
    lowest = min(np.linalg.eigvals(DRIFTS[name].numpy()), key=lambda x: x.real)
    assert caught.value.eigenvalue.real == pytest.approx(lowest.real, abs=1e-12)
    with pytest.raises(NoStationaryLawError):
        law.log_density(CENTRE)


def test_a_law_beyond_float64_says_so():
    with pytest.raises(ValueError, match="beyond the range of float64"):
        OrnsteinUhlenbeck(DRIFTS["unstable"], NOISE, CENTRE).covariance(1e5)


BAD = {
    "drift must have shape": (torch.eye(2), NOISE, CENTRE, None),
    "drift must be finite": (STABLE * math.nan, NOISE, CENTRE, None),
    "diffusion_matrix must be symmetric": (STABLE, STABLE, CENTRE, None),
    "diffusion_matrix must be positive semidefinite, got the eigenvalue -": (STABLE, -NOISE, CENTRE, None),
    "diffusion_matrix must have shape": (STABLE, torch.eye(2), CENTRE, None),
    r"centre must have shape \(s,\)": (STABLE, NOISE, NOISE, None),
    "root must have shape": (STABLE, NOISE, CENTRE, torch.eye(2)),
    "root @ root.mT = diffusion_matrix": (STABLE, NOISE, CENTRE, NOISE),
}


@pytest.mark.parametrize("message", BAD)
def test_arguments(message):
    with pytest.raises(ValueError, match=message):
        OrnsteinUhlenbeck(*BAD[message])


def test_calls_out_of_place():
    law, generator = OrnsteinUhlenbeck(STABLE, NOISE, CENTRE), torch.Generator()
    for t in (-1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="finite and not negative"):
            law.covariance(t)
    with pytest.raises(ValueError, match=r"x0 must have shape \(\.\.\., 3\)"):
        law.mean(1.0, torch.zeros(2))
    with pytest.raises(TypeError, match=r"drift must be a torch\.Tensor"):
        OrnsteinUhlenbeck([[1.0]], NOISE, CENTRE)
    for times in (f64(0.0), f64(1.0, 0.5), f64(1.0, 1.0)):
        with pytest.raises(ValueError, match="increase strictly"):
            law.sample(CENTRE, times, generator)
    with pytest.raises(ValueError, match="initial must be positive semidefinite"):
        law.covariance(1.0, -NOISE)
