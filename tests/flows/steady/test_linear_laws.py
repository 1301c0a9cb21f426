"""Linear chains, and laws about minima: published formulas of E f, weak orders by exact algebra, refusals."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from flows import GradientDescent, MinibatchNoise, ScaledHeavyBall, StochasticGradientDescent, descend
from flows.steady.linear_laws import LinearChain, NoStationaryLawError
from flows.steady.ornstein_uhlenbeck import (
    NotAMinimumError,
    linear_momentum_at,
    linear_sgd_at,
    momentum_ornstein_uhlenbeck_at,
    ornstein_uhlenbeck_at,
)
from landscapes import Cosine, DoubleWell, NoisyQuadratic, Quadratic, QuadraticSum, UnsupportedError
from landscapes.noise import GradientNoise
from landscapes.toys.finite_sums import FINITE_SUMS
from tests.examples import few
from tests.flows.stepping import slopes
from tests.tensors import f64

GENERATOR = torch.Generator()
HESSIAN = torch.tensor([[2.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
BOWL = NoisyQuadratic(HESSIAN, 8, seed=0)
ORIGIN, W0 = torch.zeros(2, dtype=torch.float64), torch.tensor([1.0, -0.7], dtype=torch.float64)


def expected_loss(law, t, x0):
    """E ½ xᵀHx over the positions of a law."""
    mean, covariance = law.mean(t, x0)[..., :2], law.covariance(t)[..., :2, :2]
    return ((mean @ HESSIAN) * mean).sum(-1) / 2 + (HESSIAN * covariance).sum((-2, -1)) / 2


class Isotropic(GradientNoise):
    """σ = s·I on d parameters, additive."""

    kind = "additive"

    def __init__(self, dimension, scale=1.0):
        self._dimension, self.scale = dimension, scale

    dimension = property(lambda self: self._dimension)
    size = property(lambda self: self._dimension)

    def factor(self, theta, xi):
        return self.scale * xi


def test_chain_against_the_recursion(normal):
    matrix, root = normal(0, 3, 3) / 2, normal(1, 3, 2)
    chain = LinearChain(matrix, root @ root.mT, normal(2, 3))
    steps, x0, initial = torch.arange(20), normal(3, 4, 3), torch.eye(3, dtype=torch.float64)
    mean, covariance = x0.clone(), initial.clone()
    means, covariances = chain.mean(steps, x0), chain.covariance(steps, initial)
    for k in range(20):
        assert_close(means[k], mean, rtol=1e-11, atol=1e-11)
        assert_close(covariances[k], covariance, rtol=1e-11, atol=1e-11)
        assert_close(chain.covariance(k, initial), covariances[k], rtol=1e-12, atol=1e-12)
        mean = chain.centre + (mean - chain.centre) @ matrix.mT
        covariance = matrix @ covariance @ matrix.mT + root @ root.mT


@few(25)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 4), j=st.integers(0, 50), k=st.integers(0, 10**6))
def test_steps_of_a_chain_add_up(normal, seed, size, j, k):
    matrix = normal(seed, size, size)
    matrix = 0.9 * matrix / torch.linalg.matrix_norm(matrix, ord=2)
    root = normal(seed + 1, size, size)
    chain = LinearChain(matrix, root @ root.mT, torch.zeros(size))
    scale = float(chain.stationary().abs().max())
    assert_close(chain.covariance(k, chain.covariance(j)), chain.covariance(j + k), rtol=1e-9, atol=1e-11 * scale)
    moved = matrix @ chain.stationary() @ matrix.mT + root @ root.mT
    assert_close(chain.stationary(), moved, rtol=1e-9, atol=1e-11 * scale)
    assert_close(chain.covariance(10**6), chain.stationary(), rtol=1e-9, atol=1e-11 * scale)


def test_circulation_of_a_chain(normal):
    """½ E (y x'ᵀ − x' yᵀ) from the autocovariance; none for steps with symmetric A and N that commute."""
    chain = LinearChain(f64([0.5, 0.4], [-0.3, 0.6]), f64([1.0, 0.3], [0.3, 0.5]), ORIGIN)
    joint = chain.autocovariance(1)
    assert_close(chain.autocovariance(torch.tensor([-1]))[0], joint.mT)
    assert_close(chain.circulation(), (joint.mT - joint) / 2)
    assert float(chain.circulation().abs().max()) > 0.1
    still = linear_sgd_at(BOWL, ORIGIN, 0.1, MinibatchNoise(BOWL, 1))
    assert_close(still.circulation(), torch.zeros(2, 2, dtype=torch.float64), rtol=0, atol=1e-15)


def test_a_chain_is_sampled():
    chain, n = LinearChain(f64([0.5, 0.4], [-0.3, 0.6]), f64([1.0, 0.3], [0.3, 0.5]), f64(1.0, 2.0)), 20_000
    paths = chain.sample(f64(3.0, 0.0).expand(n, 2), torch.tensor([0, 1, 4]), torch.Generator().manual_seed(0))
    for k, states in zip((1, 4), paths[1:], strict=True):
        mean, covariance = chain.mean(k, f64(3.0, 0.0)), chain.covariance(k)
        assert bool(((states.mean(0) - mean).abs() < 4.5 * covariance.diagonal().sqrt() / math.sqrt(n)).all())
        squares = (states - mean)[:, :, None] * (states - mean)[:, None, :]
        assert bool(((squares.mean(0) - covariance).abs() < 4.5 * squares.std(0) / math.sqrt(n)).all())


def test_refusals_of_a_chain():
    chain = LinearChain(1.1 * torch.eye(2), torch.eye(2), ORIGIN)
    with pytest.raises(NoStationaryLawError, match="within the unit circle") as caught:
        chain.stationary()
    assert abs(caught.value.eigenvalue) == pytest.approx(1.1, rel=1e-6)
    with pytest.raises(TypeError, match="counts steps"):
        chain.covariance(1.5)
    with pytest.raises(ValueError, match="must not be negative"):
        chain.covariance(-1)
    with pytest.raises(ValueError, match="beyond the range of float64"):
        chain.covariance(10**5)
    with pytest.raises(ValueError, match="noise_covariance must be positive semidefinite"):
        LinearChain(torch.eye(2), -torch.eye(2), ORIGIN)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_published_expected_losses(batch_size):
    """E f of SGD and both equations on f = ½ wᵀHw with D = H²: closed forms in the modes, with D/b."""
    h, noise = 0.1, MinibatchNoise(BOWL, batch_size)
    eigenvalues, vectors = torch.linalg.eigh(HESSIAN)
    squares, k = (vectors.mT @ W0) ** 2, torch.arange(0, 60)[:, None]
    t, b = k * h, batch_size

    def modes(decay, level):
        return (eigenvalues * decay * squares / 2 + h / b * level * (1 - decay)).sum(-1)

    sgd = modes((1 - h * eigenvalues) ** (2 * k), eigenvalues**2 / (2 - h * eigenvalues) / 2)
    one = modes(torch.exp(-2 * eigenvalues * t), eigenvalues**2 / 4)
    two = modes(torch.exp(-eigenvalues * (2 + h * eigenvalues) * t), eigenvalues**2 / (2 + h * eigenvalues) / 2)
    chain = linear_sgd_at(BOWL, ORIGIN, h, noise)
    assert_close(expected_loss(chain, k[:, 0], W0), sgd, rtol=1e-11, atol=1e-12)
    for order, expected in ((1, one), (2, two)):
        law = ornstein_uhlenbeck_at(BOWL, ORIGIN, h, noise, order)
        assert_close(expected_loss(law, t[:, 0], W0), expected, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("friction", [None, 0.8])
def test_weak_orders_without_a_draw(order, friction):
    """sup_k |E f(θ_k) − E f(X_kh)| up to t = 2, of SGD and of momentum: slopes 1 and 2."""
    ladder, errors, noise = [2 / n for n in (80, 160, 320, 640)], [], MinibatchNoise(BOWL, 2)
    for h in ladder:
        k = torch.arange(round(2 / h) + 1)
        if friction is None:
            x0, chain = W0, linear_sgd_at(BOWL, ORIGIN, h, noise)
            law = ornstein_uhlenbeck_at(BOWL, ORIGIN, h, noise, order)
        else:
            x0, chain = torch.cat([W0, ORIGIN]), linear_momentum_at(BOWL, ORIGIN, h, friction, noise)
            law = momentum_ornstein_uhlenbeck_at(BOWL, ORIGIN, h, friction, noise, order)
        errors.append(float((expected_loss(chain, k, x0) - expected_loss(law, k * h, x0)).abs().max()))
    assert slopes(errors, ladder)[-1] == pytest.approx(order, abs=0.05)


def test_order_2_is_not_the_better_one_at_stationarity():
    """λ²/(2 + hλ) and λ²/2 against λ²/(2 − hλ)."""
    noise, h = MinibatchNoise(BOWL, 1), 0.2
    truth = linear_sgd_at(BOWL, ORIGIN, h, noise).stationary()
    gaps = [
        float((ornstein_uhlenbeck_at(BOWL, ORIGIN, h, noise, order).stationary() - truth).norm()) for order in (1, 2)
    ]
    assert gaps[0] < gaps[1]


def test_chains_are_the_descents(normal):
    """A is one step of the descent on the quadratic; N its noise's second moment, by enumeration of the batches."""
    landscape = FINITE_SUMS["linear-regression"]()
    hessian = landscape.hessian(torch.zeros(3, dtype=torch.float64))
    minimum = -torch.linalg.solve(hessian, landscape.grad(torch.zeros(3, dtype=torch.float64)))
    noise, h, friction = MinibatchNoise(landscape, 1), 0.1, 0.7
    chain, x = linear_sgd_at(landscape, minimum, h, noise), normal(0, 5, 3)
    assert_close(chain.mean(1, x), GradientDescent(landscape, h).step(x, 0, GENERATOR))
    kicks = -h * landscape.example_grads(minimum)
    assert_close(chain.noise_covariance, kicks.mT @ kicks / landscape.size)
    moving, state = linear_momentum_at(landscape, minimum, h, friction, noise), normal(1, 5, 6)
    assert_close(moving.mean(1, state), ScaledHeavyBall(landscape, h, friction).step(state, 0, GENERATOR))
    kicks = torch.cat([h * kicks, kicks], dim=-1)
    assert_close(moving.noise_covariance, kicks.mT @ kicks / landscape.size)


def test_sgd_itself_has_the_law_of_the_chain():
    """20,000 runs of SGD on mini-batches: mean and covariance within 4.5 standard errors of the chain's."""
    n, h, steps = 20_000, 0.2, 8
    states = descend(StochasticGradientDescent(BOWL, h, 2), W0.expand(n, 2), steps, keep="last").theta[-1]
    chain = linear_sgd_at(BOWL, ORIGIN, h, MinibatchNoise(BOWL, 2))
    mean, covariance = chain.mean(steps, W0), chain.covariance(steps)
    assert bool(((states.mean(0) - mean).abs() < 4.5 * covariance.diagonal().sqrt() / math.sqrt(n)).all())
    squares = (states - mean)[:, :, None] * (states - mean)[:, None, :]
    assert bool(((squares.mean(0) - covariance).abs() < 4.5 * squares.std(0) / math.sqrt(n)).all())


@pytest.mark.parametrize("order", [1, 2])
def test_laws_about_a_minimum_that_is_not_the_origin(order, normal):
    """Drifts as printed, on a landscape that is not quadratic; momentum's noise in v alone."""
    landscape = Cosine(dimension=3, frequency=1.5)
    minimum = next(point for point in _minima(landscape, normal))
    h, friction, noise = 0.1, 0.6, Isotropic(3, 0.5)
    hessian, identity = landscape.hessian(minimum), torch.eye(3, dtype=torch.float64)
    law = ornstein_uhlenbeck_at(landscape, minimum, h, noise, order)
    assert_close(law.drift, hessian + (order - 1) * h / 2 * hessian @ hessian)
    assert_close(law.diffusion_matrix, 0.25 * h * identity)
    assert torch.equal(law.centre, minimum)
    moving = momentum_ornstein_uhlenbeck_at(landscape, minimum, h, friction, noise, order)
    first = torch.cat([torch.cat([0 * identity, -identity], -1), torch.cat([hessian, friction * identity], -1)])
    second = torch.cat(
        [
            torch.cat([hessian, friction * identity], -1),
            torch.cat([friction * hessian, friction**2 * identity - hessian], -1),
        ]
    )
    assert_close(moving.drift, first + (order - 1) * h / 2 * second)
    assert_close(moving.diffusion_matrix, torch.block_diag(0 * identity, 0.25 * h * identity))
    assert (moving.noise_size, law.noise_size) == (3, 3)
    assert torch.equal(moving.position(moving.centre), minimum)


def _minima(landscape, normal):
    """Points that Newton's method on the gradient reaches from draws, where the Hessian is positive."""
    for start in normal(7, 50, 3):
        x = start
        for _ in range(60):
            step = torch.linalg.solve(landscape.hessian(x), landscape.grad(x))
            x = x - step.clamp(-0.3, 0.3)
        if float(landscape.grad(x).norm()) < 1e-12 and float(torch.linalg.eigvalsh(landscape.hessian(x))[0]) > 0:
            yield x


class Large(Quadratic):
    """A landscape that only says that it is large."""

    dimension = 2001

    def __init__(self):
        pass


def test_points_that_are_no_minimum():
    well, h = DoubleWell(dimension=2), 0.1
    saddle, slope = ORIGIN, f64(1.2, 0.0)
    with pytest.raises(NotAMinimumError, match="eigenvalue -1") as caught:
        ornstein_uhlenbeck_at(well, saddle, h, Isotropic(2))
    assert caught.value.measured == pytest.approx(-1)
    with pytest.raises(NotAMinimumError, match=r"gradient of norm 0\.528") as caught:
        linear_sgd_at(well, slope, h, Isotropic(2))
    assert caught.value.measured == pytest.approx(0.528)
    assert float(ornstein_uhlenbeck_at(well, slope, h, Isotropic(2), tolerance=0.5).drift[0, 0]) > 0
    # Beside rounding: at a minimum whose noise vanishes, as where a model interpolates, the gradient is no more.
    tall = Quadratic(1e6 * HESSIAN, f64(0.1, 0.3))
    assert ornstein_uhlenbeck_at(tall, f64(0.1, 0.3), 1e-8, Isotropic(2, 0.0)).drift.shape == (2, 2)


def test_arguments_of_laws_about_a_minimum():
    noise = MinibatchNoise(BOWL, 2)
    builders = {
        "sgd": lambda f, x, n: linear_sgd_at(f, x, 0.1, n),
        "ou": lambda f, x, n: ornstein_uhlenbeck_at(f, x, 0.1, n),
        "momentum": lambda f, x, n: linear_momentum_at(f, x, 0.1, 1.0, n),
        "momentum ou": lambda f, x, n: momentum_ornstein_uhlenbeck_at(f, x, 0.1, 1.0, n),
    }
    for build in builders.values():
        with pytest.raises(TypeError, match="noise must be a GradientNoise"):
            build(BOWL, ORIGIN, "white")
        with pytest.raises(ValueError, match="independent steps"):
            build(BOWL, ORIGIN, MinibatchNoise(BOWL, 2, "epoch"))
        with pytest.raises(ValueError, match=r"theta_star must have shape \(2,\)"):
            build(BOWL, torch.zeros(3, 2), noise)
        with pytest.raises(UnsupportedError, match="up to 2000 parameters"):
            build(Large(), torch.zeros(2001), Isotropic(2001))
    with pytest.raises(ValueError, match="order must be at most 2"):
        ornstein_uhlenbeck_at(BOWL, ORIGIN, 0.1, noise, 3)
    with pytest.raises(ValueError, match="friction must be at most 1/h"):
        linear_momentum_at(BOWL, ORIGIN, 0.1, 11.0, noise)
    with pytest.raises(ValueError, match="tolerance must be positive"):
        ornstein_uhlenbeck_at(BOWL, ORIGIN, 0.1, noise, tolerance=0.0)


@pytest.mark.parametrize("sampling", ["replacement", "subset"])
def test_singular_noise_of_few_examples(sampling):
    """Two examples in the plane: D has rank one, and the law lives where the noise and its images under H reach."""
    pair = QuadraticSum(torch.stack([HESSIAN, HESSIAN]), f64([1.0, 0.0], [-1.0, 0.0]))
    law = ornstein_uhlenbeck_at(pair, ORIGIN, 0.1, MinibatchNoise(pair, 1, sampling))
    assert int(torch.linalg.matrix_rank(law.diffusion_matrix)) == 1
    assert int(torch.linalg.matrix_rank(law.stationary())) == 2
    single = LinearChain(torch.eye(2) / 2, torch.diag(f64(1.0, 0.0)), ORIGIN)
    with pytest.raises(ValueError, match="no density"):
        single.log_density(ORIGIN)


def test_a_gradient_of_rounding_size_is_no_gradient():
    """Noise-free, at a minimum off by an ulp: the gradient is rounding, not zero."""
    point = f64(0.1, 0.3)
    tall = Quadratic(1e6 * HESSIAN, torch.nextafter(point, point + 1))
    assert float(tall.grad(point).norm()) > 0
    assert ornstein_uhlenbeck_at(tall, point, 1e-8, Isotropic(2, 0.0)).drift.shape == (2, 2)
