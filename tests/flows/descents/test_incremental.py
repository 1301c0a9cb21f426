"""Batches in a fixed order: a plain loop, and EpochFlow beside it at the ends of epochs."""

import pytest
import torch

from flows import EpochFlow, GradientDescent, IncrementalGradientDescent, ModifiedFlow, compare, descend
from landscapes import Counted, Quadratic, TwoQuadratics
from landscapes.toys.finite_sums import QuadraticSum
from tests.tensors import f64


def wells(normal):
    """Six quadratics whose Hessians do not commute."""
    a = normal(0, 6, 2, 2)
    return QuadraticSum(a @ a.mT / 2 + 0.2 * torch.eye(2, dtype=torch.float64), normal(1, 6, 2))


BATCHES = torch.arange(6).split(2)


def test_a_plain_loop(normal):
    landscape, theta = wells(normal), f64(1.0, -0.5)
    run = descend(IncrementalGradientDescent(landscape, 0.1, BATCHES), theta, 7)
    for k in range(7):
        theta = theta - 0.1 * landscape.restrict(BATCHES[k % 3]).grad(theta)
    torch.testing.assert_close(run.theta[-1], theta, rtol=1e-13, atol=1e-13)
    assert run.times.tolist() == pytest.approx([0.1 * k for k in range(8)])


def test_counts_are_shares_of_an_epoch(normal):
    counted = Counted(wells(normal))
    IncrementalGradientDescent(counted, 0.1, BATCHES).step(f64(1.0, 1.0), 0, torch.Generator())
    assert counted.counts["grad"] == pytest.approx(1 / 3)


def test_the_epoch_flow_follows_at_the_ends_of_epochs(normal):
    """Over a fixed time the error falls like h², that of the flow which knows no order of batches like h."""
    landscape, theta, errors = wells(normal), f64(1.0, -0.5), []
    for epochs in (8, 16, 32):
        h = 0.6 / (3 * epochs)
        flows = {"epoch": EpochFlow(landscape, h, BATCHES), "order 2": ModifiedFlow(landscape, h, 2)}
        descent = IncrementalGradientDescent(landscape, h, BATCHES)
        result = compare(descent, flows, theta, 3 * epochs, rtol=1e-9, atol=1e-11)
        errors.append([float(result.errors[name][-1]) for name in flows])
    ratios = torch.tensor(errors)[:-1] / torch.tensor(errors)[1:]
    assert ratios[-1].tolist() == pytest.approx([4, 2], rel=0.1)


def test_one_batch_is_gradient_descent():
    landscape, theta = TwoQuadratics(), f64(1.0, -0.5)
    whole = IncrementalGradientDescent(landscape, 0.1, torch.arange(2)[None])
    run = descend(whole, theta, 3)
    torch.testing.assert_close(run.theta, descend(GradientDescent(landscape, 0.1), theta, 3).theta)


def test_arguments():
    with pytest.raises(TypeError, match="landscape"):
        IncrementalGradientDescent(Quadratic(torch.eye(2)), 0.1, BATCHES)
    with pytest.raises(ValueError, match=r"batches\[2\]"):
        IncrementalGradientDescent(TwoQuadratics(), 0.1, [torch.tensor([0]), torch.tensor([1]), torch.tensor([2])])
    with pytest.raises(ValueError, match="h must be positive"):
        IncrementalGradientDescent(TwoQuadratics(), 0.0, torch.arange(2)[None])
