"""Every descent of scripts.lab.models: what holds of all of them; a new one is in here by its line there."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from flows import Descent, StochasticDescent, descend
from flows.invariants import check_batch
from landscapes import Landscape, LinearRegression, Quadratic, Rosenbrock, TwoQuadratics
from landscapes.wrappers.rotated import Rotated
from scripts.lab.models import DESCENTS, Options, descent_by_name

VALLEY, H = Rosenbrock(b=5.0), 0.02


def descent_of(name, landscape, h=H):
    return descent_by_name(name, landscape, h, Options(batch_size=2, sampling="replacement"))


NOISY = [name for name in DESCENTS if isinstance(descent_of(name, TwoQuadratics()), StochasticDescent)]
QUIET = [name for name in DESCENTS if name not in NOISY]
every = pytest.mark.parametrize("name", DESCENTS)
quiet = pytest.mark.parametrize("name", QUIET)
noisy = pytest.mark.parametrize("name", NOISY)


def starts(normal, *batch):
    return torch.tensor([-0.4, 0.6], dtype=torch.float64) + 0.1 * normal(1, *batch, 2)


def regression(normal):
    return LinearRegression(normal(2, 6, 2), normal(3, 6))


@every
def test_a_descent_starts_at_its_start_and_keeps_dtype_device_and_shape(name, dtype, device, normal):
    descent = descent_of(name, TwoQuadratics())
    for batch in ((), (2,), (2, 1)):
        theta0 = normal(4, *batch, 2, dtype=dtype).to(device)
        assert torch.equal(descent.position(descent.start(theta0)), theta0)
        run = descend(descent, theta0, 3)
        assert run.status == "finished"
        assert (run.theta.shape, run.theta.dtype, run.theta.device.type) == ((4, *batch, 2), dtype, device.type)
        assert not run.theta.requires_grad


@every
def test_the_clock_starts_at_zero_and_runs_on(name, normal):
    descent = descent_of(name, TwoQuadratics())
    state, times = descent.start(starts(normal)), []
    for k in range(4):
        times.append(descent.elapsed(k, state))
        state = descent.step(state, k, torch.Generator().manual_seed(k))
    assert times[0] == 0
    assert all(before < after for before, after in pairwise(times))
    assert descent.elapsed(1, state) == pytest.approx(descent.h)


@every
def test_a_descent_is_parameters_only(name):
    landscape = TwoQuadratics()
    descent = descent_of(name, landscape)
    assert isinstance(descent, Descent)
    assert isinstance(descent.landscape, Landscape)
    assert descent == descent_of(name, landscape)
    with pytest.raises(AttributeError):
        descent.h = 0.1
    with pytest.raises(ValueError, match="h must be positive and finite"):
        descent_of(name, landscape, -0.1)


@quiet
def test_a_batch_is_its_members(name, normal):
    check_batch(descent_of(name, VALLEY), starts(normal, 3), steps=4)


@quiet
def test_iterates_turn_with_the_coordinates(name, normal):
    rotation = torch.linalg.qr(normal(5, 2, 2))[0]
    theta0 = starts(normal, 3)
    plain = descend(descent_of(name, VALLEY), theta0, 5).theta
    turned = descend(descent_of(name, Rotated(VALLEY, rotation)), theta0 @ rotation.mT, 5).theta
    assert_close(turned, plain @ rotation.mT, rtol=1e-10, atol=1e-12)


@quiet
def test_a_minimum_is_where_a_descent_stays_and_goes(name, normal):
    bowl = Quadratic(torch.diag(torch.tensor([1.0, 0.5], dtype=torch.float64)))
    descent = descent_of(name, bowl, 0.2)
    minimum = torch.zeros(2, dtype=torch.float64)
    assert torch.equal(descend(descent, minimum, 3).theta[-1], minimum)
    assert float(descend(descent, starts(normal), 500).theta[-1].norm()) < 1e-6


@noisy
def test_equal_seeds_draw_equal_mini_batches(name, normal):
    descent, theta0 = descent_of(name, regression(normal)), starts(normal)
    one, same, other = (descend(descent, theta0, 5, seed=seed).theta for seed in (0, 0, 1))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@noisy
def test_a_batch_of_all_examples_is_the_full_batch_descent(name, normal):
    landscape, theta0 = regression(normal), starts(normal)
    descent = descent_by_name(name, landscape, H, Options(batch_size=landscape.size, sampling="subset"))
    assert_close(descend(descent, theta0, 5).theta, descend(descent.full_batch(), theta0, 5).theta)
    assert float(descent.noise_of_step(descent.start(theta0), 0)) == pytest.approx(0, abs=1e-12)
