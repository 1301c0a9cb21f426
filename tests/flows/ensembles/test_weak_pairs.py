"""Which flows and descents have weak errors against each other: one learning rate, one clock, one noise."""

from dataclasses import dataclass, replace

import pytest
import torch

from flows import (
    SVAG,
    GradientDescent,
    NoisyGradientDescent,
    NoisyModifiedEquation,
    ScheduledStochasticGradientDescent,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    Stratonovich,
    descend,
)
from flows.ensembles import expectation, weak_errors
from flows.ensembles.blocks import block_seed
from landscapes import NoisyQuadratic, UnsupportedError
from landscapes.noise import IsotropicNoise, MinibatchNoise

EIGENVALUES = torch.tensor([2.0, 0.5], dtype=torch.float64)
BOWL, B, H = NoisyQuadratic(torch.diag(EIGENVALUES), 8, seed=0), 4, 0.25
START = torch.tensor([1.0, -0.7], dtype=torch.float64)
SGD, SDE = StochasticGradientDescent(BOWL, H, B), StochasticModifiedEquation(BOWL, H, B)
GOOD = {"paths": 4, "seed": 0, "observables": {"θ": lambda theta: theta}}


def test_learning_rates_must_agree():
    with pytest.raises(ValueError, match=r"h of StochasticModifiedEquation order 1 is 0\.1, of the descent 0\.25"):
        weak_errors(replace(SDE, h=0.1), SGD, START, 2, **GOOD)
    with pytest.raises(ValueError, match=r"is 0\.1, of the descent 0\.25"):
        weak_errors(Stratonovich(replace(SDE, h=0.1)), SGD, START, 2, **GOOD)


def test_svag_is_met_at_its_own_times():
    """Steps of h/l; the mean of either side is known: (1 − hλ/l)^k and e^{−λt} of the start."""
    descent, steps = SVAG(BOWL, H, B, 2), 6
    found = weak_errors(SDE, descent, START, steps, **{**GOOD, "paths": 4000})
    t = torch.arange(steps + 1, dtype=torch.float64)[:, None] * H / 2
    assert torch.equal(found.times, t[:, 0])
    exact = (torch.exp(-EIGENVALUES * t) - (1 - EIGENVALUES * H / 2) ** (t / (H / 2))) * START
    gap = (found.difference["θ"] - exact)[1:].abs()
    assert bool((gap < 4.5 * found.standard_error["θ"][1:] + found.integration["θ"][1:].abs()).all())
    assert float(exact[1:].abs().max()) > 10 * float(found.integration["θ"].abs().max())


def test_rates_that_change_have_no_clock_in_common():
    def falling(t):
        return 1 / (1 + t)

    descent = ScheduledStochasticGradientDescent(BOWL, H, B, falling)
    with pytest.raises(UnsupportedError, match="constant rate"):
        weak_errors(replace(SDE, schedule=falling), descent, START, 2, **GOOD)


@dataclass(frozen=True)
class Late(GradientDescent):
    """Gradient descent whose rate doubles after two steps."""

    def elapsed(self, k, state):
        return self.h * (k + max(0, k - 2))


def test_rates_that_change_later_are_seen_in_the_run():
    with pytest.raises(UnsupportedError, match="not constant"):
        weak_errors(SDE, Late(BOWL, H), START, 4, **GOOD)


def test_coupled_noise_must_be_one():
    descent = NoisyGradientDescent(BOWL, H, MinibatchNoise(BOWL, B))
    other = NoisyModifiedEquation(BOWL, H, IsotropicNoise(1.0, 2))
    with pytest.raises(ValueError, match="its noise has the size 2, the descent's 8"):
        weak_errors(other, descent, START, 2, coupled=True, **GOOD)
    with pytest.raises(ValueError, match="substeps must be a power of two for coupled flows, got 3"):
        weak_errors(NoisyModifiedEquation(BOWL, H, descent.noise), descent, START, 2, coupled=True, substeps=3, **GOOD)


@pytest.mark.parametrize("substeps", [1, 2, 4])
def test_coupled_with_gaussian_noise_is_one_brownian_path(substeps):
    """Euler's step at h is the descent: paths apart fall with h, far below what the law itself scatters."""
    noise = MinibatchNoise(BOWL, B)
    flow, descent = NoisyModifiedEquation(BOWL, H, noise), NoisyGradientDescent(BOWL, H, noise)
    options = {**GOOD, "paths": 400, "substeps": substeps}
    together = weak_errors(flow, descent, START, 8, coupled=True, **options)
    apart = weak_errors(flow, descent, START, 8, **options)
    # A path of the equation is off its Euler path by about hλ/2 of its noise, here a quarter at λ = 2.
    assert bool((together.standard_error["θ"][1:] < 0.45 * apart.standard_error["θ"][1:]).all())


def test_runs_of_the_descents_own_are_those_of_another_seed():
    """Not the flow's, block by block: two sides that share draws would not be as far apart as their bars say."""
    found = weak_errors(SDE, SGD, START, 3, block=3, **{**GOOD, "paths": 5})
    runs = [
        descend(SGD, START.expand(n, 2), 3, seed=block_seed(GOOD["seed"], number, 1)).theta
        for number, n in enumerate((3, 2))
    ]
    theirs = torch.cat(runs, dim=1)
    torch.testing.assert_close(found.mean["θ"] - found.difference["θ"], theirs.mean(dim=1))
    own = expectation(SDE, START, found.times, paths=5, seed=0, observables=GOOD["observables"], dt=H, block=3)
    bar = (own.standard_error["θ"].square() + theirs.var(dim=1) / 5).sqrt()
    torch.testing.assert_close(found.standard_error["θ"], bar)
