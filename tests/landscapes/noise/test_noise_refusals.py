"""What gradient noises say to θ and ξ that do not fit, and that what is not a number is not called quiet."""

import pytest
import torch
from torch.testing import assert_close

from landscapes import LinearRegression, UnsupportedError
from landscapes.noise import (
    AnalyticNoise,
    ConstantNoise,
    DiagonalNoise,
    DiagonalSurrogate,
    IsotropicNoise,
    IsotropicSurrogate,
    LabelNoise,
    MinibatchNoise,
    VarianceReducedNoise,
    freeze,
    noise_from_covariance,
)

GENERATOR = torch.Generator().manual_seed(3)
INPUTS, TARGETS = (torch.randn(6, *shape, generator=GENERATOR, dtype=torch.float64) for shape in ((2,), ()))
LINE = LinearRegression(INPUTS, TARGETS)
THETA = torch.tensor([0.3, -0.2], dtype=torch.float64)
MINIBATCH = MinibatchNoise(LINE, 2)


def twisted(theta):
    x, y = theta.unbind(-1)
    return torch.stack([torch.stack([x, y], -1), torch.stack([torch.sin(y), 1 + x], -1)], dim=-2)


NOISES = {
    "mini-batches": MINIBATCH,
    "variance reduced": VarianceReducedNoise(LINE, 2, 2 * THETA),
    "labels": LabelNoise(LINE, 0.5),
    "isotropic": IsotropicNoise(1.0, 2),
    "diagonal": DiagonalNoise(THETA.abs()),
    "constant": ConstantNoise(torch.ones(2, 3, dtype=torch.float64)),
    "isotropic surrogate": IsotropicSurrogate(MINIBATCH),
    "diagonal surrogate": DiagonalSurrogate(MINIBATCH),
    "frozen": freeze(MINIBATCH, THETA),
    "analytic": AnalyticNoise(2, 2, twisted),
    "of a covariance": noise_from_covariance(2, lambda x: torch.diag_embed(1 + x.square())),
}
QUESTIONS = ("covariance", "diagonal", "trace", "trace_gradient", "ito_correction", "columns")
WRONG = {
    "another size": (torch.zeros(3, dtype=torch.float64), ValueError),
    "no dimension": (torch.tensor(1.0, dtype=torch.float64), ValueError),
    "whole numbers": (torch.zeros(2, dtype=torch.int64), TypeError),
    "a list": ([0.3, -0.2], TypeError),
}


@pytest.mark.parametrize("wrong", WRONG)
@pytest.mark.parametrize("name", NOISES)
def test_a_theta_that_does_not_fit_is_named(name, wrong):
    theta, kind = WRONG[wrong]
    noise = NOISES[name]
    for question in QUESTIONS:
        with pytest.raises(kind, match="theta must"):
            getattr(noise, question)(theta)
    with pytest.raises(kind, match="theta must"):
        noise.factor(theta, torch.zeros(noise.size, dtype=torch.float64))


@pytest.mark.parametrize("name", NOISES)
def test_an_xi_that_does_not_fit_is_named(name):
    noise = NOISES[name]
    for xi, kind in (
        (torch.zeros(noise.size + 1, dtype=torch.float64), ValueError),
        (torch.zeros(noise.size), ValueError),
        (torch.zeros(noise.size, dtype=torch.int64), TypeError),
    ):
        with pytest.raises(kind, match="xi must"):
            noise.factor(THETA, xi)


@pytest.mark.parametrize("surrogate", [IsotropicSurrogate, DiagonalSurrogate])
def test_a_variance_that_is_not_a_number_is_not_a_quiet_noise(surrogate):
    noise = surrogate(MINIBATCH)
    members = torch.stack([THETA, torch.full_like(THETA, torch.nan)])
    moved = noise.factor(members, torch.ones(2, 2, dtype=torch.float64))
    assert bool(moved[0].isfinite().all())
    assert bool(moved[1].isnan().all())


@pytest.mark.parametrize("surrogate", [IsotropicSurrogate, DiagonalSurrogate])
def test_a_surrogate_at_complex_theta_is_refused(surrogate):
    theta = THETA.to(torch.complex128)
    with pytest.raises(UnsupportedError, match="theta must be real"):
        surrogate(MINIBATCH).factor(theta, torch.ones_like(theta))


@pytest.mark.parametrize("name", NOISES)
def test_one_theta_expanded_to_a_batch_gives_the_correction_of_each_member(name):
    one = NOISES[name].ito_correction(THETA)
    assert_close(NOISES[name].ito_correction(THETA.expand(3, 2)), one.expand(3, 2))
