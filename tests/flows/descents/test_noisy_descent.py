"""Noisy gradient descent: its draw, Gaussian SGD in one backward pass, moments, weak agreement with SGD, refusals."""

from dataclasses import dataclass

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, StochasticGradientDescent, descend
from flows.descents.noisy import NoisyGradientDescent
from landscapes import Counted, FiniteSum, NoisyQuadratic, Regularised, Rosenbrock
from landscapes.noise import GradientNoise, MinibatchNoise
from landscapes.noise.label import LabelNoise
from landscapes.noise.surrogates import IsotropicNoise
from landscapes.toys.finite_sums import FINITE_SUMS
from tests.flows.networks import tanh_network
from tests.tensors import draw

RATE = 0.05


@dataclass(frozen=True)
class Tilted(GradientNoise):
    """σ(θ)ξ = (ξ₁ + ξ₂ θ₁, 2ξ₂): two normals, a covariance with correlations that varies with θ."""

    dimension = 2
    size = 2

    def factor(self, theta, xi):
        return torch.stack(
            [xi[..., 0] + xi[..., 1] * theta[..., 0], 2 * xi[..., 1] * torch.ones_like(theta[..., 0])], -1
        )


@dataclass(frozen=True)
class Charged(GradientNoise):
    """A noise that costs a gradient of the landscape it holds."""

    landscape: FiniteSum
    size = 1

    @property
    def dimension(self):
        return self.landscape.dimension

    def factor(self, theta, xi):
        return xi * self.landscape.grad(theta)


def test_a_step_by_hand(dtype, device, normal):
    landscape, theta0 = Rosenbrock(), (normal(0, 3, 2, 2) / 3).to(device, dtype)
    descent = NoisyGradientDescent(landscape, 1e-3, Tilted())
    generator = torch.Generator(device).manual_seed(3)
    xi = torch.randn((3, 2, 2), generator=torch.Generator(device).manual_seed(3), device=device, dtype=dtype)
    expected = theta0 - 1e-3 * (landscape.grad(theta0) + Tilted().factor(theta0, xi))
    after = descent.step(theta0, 0, generator)
    assert (after.dtype, after.shape) == (dtype, theta0.shape)
    assert_close(after, expected)
    run = descend(descent, theta0, 4, seed=3)
    assert_close(run.theta[1], after)
    assert run.times.tolist() == [k * 1e-3 for k in range(5)]
    assert run.cost["grad"] == 4 * 6


@pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])
@pytest.mark.parametrize("name", [*FINITE_SUMS, "network", "regularised"])
def test_minibatch_noise_shares_the_backward_pass(name, sampling, normal):
    landscape = {"network": tanh_network, "regularised": lambda: Regularised(FINITE_SUMS["linear-regression"](), 0.3)}
    landscape = landscape.get(name, FINITE_SUMS.get(name))()
    batch = min(2, landscape.size)
    noise, theta0 = MinibatchNoise(landscape, batch, sampling), normal(1, 2, landscape.dimension)
    fused = descend(NoisyGradientDescent(landscape, RATE, noise), theta0, 3, seed=2)
    xi = draw(2, (2, landscape.size))
    expected = theta0 - RATE * (landscape.grad(theta0) + noise.factor(theta0, xi))
    assert_close(fused.theta[1], expected, rtol=1e-9, atol=1e-11)
    assert fused.cost["grad"] == 2 * 3  # one gradient a step and member, noise included
    assert fused.cost["loss"] == fused.cost["higher"] == 0


def test_noise_of_another_landscape_is_not_fused(normal):
    """The gradient is that of the descent's landscape, the noise that of its own."""
    landscape, theta = FINITE_SUMS["linear-regression"](), normal(2, 4, 3)
    other = Regularised(landscape, 5.0)
    counted = Counted(other)
    descent = NoisyGradientDescent(counted, RATE, MinibatchNoise(landscape, 2))
    xi = draw(4, (4, 12))
    expected = other.grad(theta) + descent.noise.factor(theta, xi)
    assert_close(descent.noisy_gradient(theta, xi), expected)
    assert counted.counts["grad"] == 4  # the noise has a landscape of its own, which nobody counts


def test_a_noise_that_holds_the_landscape_is_counted_in_a_run(normal):
    landscape = FINITE_SUMS["linear-regression"]()
    run = descend(NoisyGradientDescent(landscape, RATE, Charged(landscape)), normal(3, 5, 3), 4)
    assert run.cost["grad"] == 4 * 5 * 2


def test_large_samples_have_the_mean_and_the_covariance_of_the_noise():
    members, theta = 40_000, torch.tensor([0.4, -0.3], dtype=torch.float64)
    landscape = Rosenbrock()
    descent = NoisyGradientDescent(landscape, 0.5, Tilted())
    after = descend(descent, theta.expand(members, 2), 1, seed=6).theta[1]
    covariance = 0.25 * torch.tensor([[1 + 0.16, 0.8], [0.8, 4.0]], dtype=torch.float64)
    full = descent.full_batch()
    assert full == GradientDescent(landscape, 0.5)
    spread = covariance.diagonal().sqrt()
    gap = (after.mean(dim=0) - full.step(theta, 0, torch.Generator())).abs()
    assert (gap < 4 * spread / members**0.5).all()
    # The entry C_ij of a sample covariance strays by √((C_ii C_jj + C_ij²)/n).
    stray = ((torch.outer(spread, spread) ** 2 + covariance**2) / members).sqrt()
    assert ((after.T.cov() - covariance).abs() < 4 * stray).all()
    assert_close(descent.step_noise(theta), covariance.trace().sqrt())


def test_gaussian_sgd_has_the_second_moments_of_sgd():
    """On a quadratic both have the same mean and covariance after any number of steps, so the same E f."""
    hessian = torch.diag(torch.tensor([2.0, 0.5], dtype=torch.float64))
    landscape, h, members, steps = NoisyQuadratic(hessian, 6, seed=2), 0.4, 40_000, 5
    start = torch.tensor([1.0, -2.0], dtype=torch.float64).expand(members, 2)
    lam, contraction = hessian.diagonal(), (1 - h * hessian.diagonal()) ** (2 * steps)
    exact = (lam * contraction * start[0] ** 2 / 2 + h / 4 * lam**2 / (2 - h * lam) * (1 - contraction)).sum()
    gaussian = NoisyGradientDescent(landscape, h, MinibatchNoise(landscape, 2))
    for descent in (gaussian, StochasticGradientDescent(landscape, h, 2)):
        losses = landscape.loss(descend(descent, start, steps, keep="last", seed=1).theta[-1])
        assert abs(float(losses.mean() - exact)) < 4 * float(losses.std()) / members**0.5
        assert float(losses.std()) / members**0.5 < 0.01 * float(exact)
    assert_close(gaussian.step_noise(start[0]), StochasticGradientDescent(landscape, h, 2).step_noise(start[0]))


def test_seeds_repeat_and_members_differ(normal):
    descent = NoisyGradientDescent(Rosenbrock(), 1e-3, Tilted())
    theta0 = normal(5, 2).expand(6, 2)
    runs = [descend(descent, theta0, 3, seed=seed).theta for seed in (1, 1, 2)]
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2])
    assert len(runs[0][1:].unique(dim=1)[0]) == 6
    nested = descend(descent, theta0.reshape(2, 3, 2), 3, seed=1).theta
    assert torch.equal(nested.reshape(4, 6, 2), runs[0])


def test_complex_theta_sees_the_same_real_noise(normal):
    landscape, theta0 = FINITE_SUMS["linear-regression"](), normal(6, 3)
    descent = NoisyGradientDescent(landscape, RATE, MinibatchNoise(landscape, 2))
    runs = [descend(descent, start, 4, seed=1).theta for start in (theta0, theta0.to(torch.complex128))]
    assert_close(runs[1].real, runs[0])
    assert float(runs[1].imag.abs().max()) == 0


def test_isotropic_noise_is_added_as_it_is_and_costs_nothing(normal):
    theta0 = normal(7, 4, 2) / 3
    descent = NoisyGradientDescent(Rosenbrock(), 1e-3, IsotropicNoise(2.25, 2))
    run = descend(descent, theta0, 1, seed=5)
    assert_close(run.theta[1], theta0 - 1e-3 * (Rosenbrock().grad(theta0) + 1.5 * draw(5, (4, 2))))
    assert run.cost["grad"] == 4
    assert_close(descent.step_noise(theta0), torch.full((4,), 1e-3 * 4.5**0.5, dtype=torch.float64))


def test_label_noise_is_descent_on_fresh_labels(normal):
    """On a regression the gradient with targets y + s·ε is linear in ε: its moments are those of the noise, exactly."""
    landscape, members, s, h = FINITE_SUMS["linear-regression"](), 40_000, 0.7, 0.3
    theta = normal(8, 3)
    x, y = landscape.features, landscape.targets
    descent = NoisyGradientDescent(landscape, h, LabelNoise(landscape, s))
    after = descend(descent, theta.expand(members, 3), 1, seed=2).theta[1]
    mean, covariance = theta - h * x.T @ (x @ theta - y) / 12, (h * s / 12) ** 2 * x.T @ x
    spread = covariance.diagonal().sqrt()
    assert ((after.mean(dim=0) - mean).abs() < 4 * spread / members**0.5).all()
    stray = ((torch.outer(spread, spread) ** 2 + covariance**2) / members).sqrt()
    assert ((after.T.cov() - covariance).abs() < 4 * stray).all()
    assert_close(descent.step_noise(theta), covariance.trace().sqrt())


REFUSED = [
    ({"noise": 0.1}, TypeError, "noise must be a GradientNoise, got float"),
    ({"noise": MinibatchNoise(FINITE_SUMS["linear-regression"](), 1)}, ValueError, "dimension 2, got 3"),
    ({"h": 0}, ValueError, "h must be positive and finite, got 0"),
    ({"landscape": None}, TypeError, "landscape must be a Landscape, got NoneType"),
]


@pytest.mark.parametrize(("change", "error", "message"), REFUSED)
def test_refusals(change, error, message):
    arguments = {"landscape": Rosenbrock(), "h": 0.1, "noise": Tilted()}
    with pytest.raises(error, match=message):
        NoisyGradientDescent(**(arguments | change))
