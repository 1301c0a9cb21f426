"""Arguments of stochastic models, descents and paths that are out of place are named before anything is drawn."""

import pytest
import torch

from flows import (
    SVAG,
    SVRG,
    BrownianPath,
    ControlledGradientDescent,
    GradientDescent,
    LangevinFlow,
    MinibatchPath,
    MomentumModifiedEquation,
    NoisyGradientDescent,
    NoisyModifiedEquation,
    ScaledStochasticHeavyBall,
    StochasticGradientDescent,
    StochasticHeavyBall,
    StochasticModifiedEquation,
    integrate,
    minibatch_path,
)
from landscapes import LinearRegression
from landscapes.noise import IsotropicNoise

GENERATOR = torch.Generator().manual_seed(1)
LINE = LinearRegression(*(torch.randn(6, *s, generator=GENERATOR, dtype=torch.float64) for s in ((2,), ())))
NOISE = IsotropicNoise(1.0, 2)
START = torch.zeros(2, dtype=torch.float64)
SGD = StochasticGradientDescent(LINE, 0.1, 2)

RATED = {
    "GradientDescent": lambda h: GradientDescent(LINE, h),
    "SGD": lambda h: StochasticGradientDescent(LINE, h, 2),
    "SVAG": lambda h: SVAG(LINE, h, 2, 2),
    "SVRG": lambda h: SVRG(LINE, h, 2, 3),
    "heavy ball": lambda h: StochasticHeavyBall(LINE, h, 0.9, 2),
    "scaled heavy ball": lambda h: ScaledStochasticHeavyBall(LINE, h, 0.9, 2),
    "controlled": lambda h: ControlledGradientDescent(LINE, h, 2),
    "noisy": lambda h: NoisyGradientDescent(LINE, h, NOISE),
    "equation": lambda h: StochasticModifiedEquation(LINE, h, 2),
    "noisy equation": lambda h: NoisyModifiedEquation(LINE, h, NOISE),
    "momentum equation": lambda h: MomentumModifiedEquation(LINE, h, 0.9, 2),
}


@pytest.mark.parametrize("name", RATED)
def test_a_learning_rate_that_is_none_is_refused_at_once(name):
    for h, kind in ((None, TypeError), (True, TypeError), ("0.1", TypeError), (0, ValueError), (-1.0, ValueError)):
        with pytest.raises(kind, match="h must be"):
            RATED[name](h)


def test_a_model_without_a_learning_rate_needs_none():
    assert LangevinFlow(LINE, 1.0).temperature == 1


@pytest.mark.parametrize(
    ("argument", "value", "kind"),
    [
        ("dtype", torch.int64, TypeError),
        ("dtype", torch.complex128, TypeError),
        ("dtype", "float64", TypeError),
        ("device", "abacus", ValueError),
        ("device", None, TypeError),
        ("seed", True, TypeError),
        ("seed", -1, ValueError),
    ],
)
def test_paths_that_cannot_be_drawn_are_refused(argument, value, kind):
    brownian = {"seed": 0, "t0": 0.0, "t1": 1.0, "finest_dt": 0.25, "size": 2}
    batches = {"sampling": SGD.sampler, "h": 0.1, "steps": 3, "seed": 0}
    for path, options in ((BrownianPath, brownian), (MinibatchPath, batches)):
        with pytest.raises(kind, match=f"{argument} must be"):
            path(**{**options, argument: value})


@pytest.mark.parametrize(("argument", "value"), [("sampling", "subset"), ("batch", 3), ("batch", (True,))])
def test_mini_batches_that_cannot_be_drawn_are_refused(argument, value):
    options = {"sampling": SGD.sampler, "h": 0.1, "steps": 3, "seed": 0}
    with pytest.raises(TypeError, match=f"{argument} must be"):
        MinibatchPath(**{**options, argument: value})


def test_a_path_of_mini_batches_is_for_a_real_start():
    with pytest.raises(TypeError, match="theta0 must be a torch"):
        minibatch_path(SGD, [0.0, 0.0], 3)
    with pytest.raises(TypeError, match="dtype must be a real"):
        minibatch_path(SGD, START.to(torch.complex128), 3)


@pytest.mark.parametrize("method", ["heun2", "midpoint"])
def test_one_start_expanded_to_a_batch_runs_as_its_copies_do(method):
    equation = StochasticModifiedEquation(LINE, 0.1, 2)
    runs = [
        integrate(equation, start, [0.0, 0.3], dt=0.1, seed=0, method=method).theta
        for start in (START.expand(3, 2), START.repeat(3, 1))
    ]
    assert torch.equal(*runs)
