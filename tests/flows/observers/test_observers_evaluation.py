"""Test loss and accuracy against plain torch, for networks and for any callable."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import nets
from flows import GradientDescent, GradientFlow, descend, integrate
from flows.observers import Evaluation, Loss
from landscapes import Quadratic, UnsupportedError
from nets import GhostBatchLandscape, NetworkLandscape, cross_entropy
from tests.tensors import draw

N = 13


def problem(dtype=torch.float64, chunk_size=None):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3)).to(dtype)
    train = NetworkLandscape(module, cross_entropy, draw(1, 15, 3), torch.arange(15) % 3)
    targets = torch.arange(N) % 3
    return train, NetworkLandscape(module, cross_entropy, draw(2, N, 3), targets, chunk_size), targets, module


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_on_a_network_against_plain_torch(dtype, chunk_size):
    train, test, targets, module = problem(dtype, chunk_size)
    theta0 = train.theta0 + draw(3, 2, train.dimension).to(dtype)
    evaluation = Evaluation(test, test.outputs, targets, every=2)
    for run in (
        descend(GradientDescent(train, 0.5), theta0, 6, observers=[evaluation]),
        integrate(GradientFlow(train), theta0, torch.arange(7) * 0.5, observers=[evaluation]),
    ):
        losses, right = (run.observations[f"test {quantity}"][1] for quantity in ("loss", "accuracy"))
        assert (losses.shape, right.shape, losses.dtype, right.dtype) == ((4, 2), (4, 2), dtype, dtype)
        for i in range(4):
            for j in range(2):
                nn.utils.vector_to_parameters(run.theta[2 * i, j], module.parameters())
                outputs = module(draw(2, N, 3).to(dtype)).detach()
                assert_close(losses[i, j], nn.functional.cross_entropy(outputs, targets))
                assert_close(right[i, j], (outputs.argmax(1) == targets).to(dtype).mean())
        assert run.observer_costs["test"]["loss"] == 16
    assert len(right.unique()) > 1


def linear(theta):
    return torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [-1.0, 0.5]]).to(theta) @ theta


QUADRATIC = Quadratic(torch.eye(2, dtype=torch.float64))


@pytest.mark.parametrize("outputs", [linear, lambda theta: linear(theta)[:, None]], ids=["(N,)", "(N, 1)"])
def test_log_odds_name_one_of_two_classes(outputs):
    evaluation = Evaluation(QUADRATIC, outputs, torch.tensor([1, 0, 0, 0]), name="held-out")
    seen = evaluation(0, 0.0, torch.tensor([[1.0, -2.0], [0.0, 0.0], [-1.0, 1.0]], dtype=torch.float64))
    # log-odds (1, −2, −1, −2), all 0, (−1, 1, 0, 1.5)
    assert seen["held-out accuracy"].tolist() == [1.0, 0.75, 0.25]
    assert seen["held-out loss"].tolist() == [2.5, 0.0, 1.0]


def test_bool_targets_and_other_layouts():
    outputs = linear(torch.tensor([1.0, -2.0])).reshape(2, 2)
    seen = Evaluation(QUADRATIC, lambda theta: outputs, torch.tensor([[True, False], [True, False]]))(
        0, 0.0, torch.ones(2)
    )
    assert seen["test accuracy"].item() == 0.75


def test_on_ghost_batches():
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(3, 6), nets.BatchNorm(6), nn.Tanh(), nn.Linear(6, 3)).double()
    inputs, targets = draw(4, 12, 3), torch.arange(12) % 3
    ghost = GhostBatchLandscape(module, cross_entropy, inputs, targets, 4, seed=3)
    seen = Evaluation(ghost, ghost.outputs, targets[ghost.ghost_batches])(0, 0.0, ghost.theta0)
    outputs = torch.cat([module(inputs[b]) for b in ghost.ghost_batches]).detach()
    labels = targets[ghost.ghost_batches].flatten()
    assert_close(seen["test accuracy"], (outputs.argmax(1) == labels).double().mean())
    assert_close(seen["test loss"], nn.functional.cross_entropy(outputs, labels))


def test_an_example_with_a_nan_is_not_right():
    outputs = torch.tensor([[math.nan, 0.0], [1.0, 0.0], [0.0, math.nan], [0.0, math.inf]])
    seen = Evaluation(QUADRATIC, lambda theta: outputs, torch.tensor([0, 0, 1, 1]))(0, 0.0, torch.ones(2))
    assert seen["test accuracy"].item() == 0.5
    _, test, targets, _ = problem()
    seen = Evaluation(test, test.outputs, targets)(0, 0.0, torch.full_like(test.theta0, math.nan))
    assert (seen["test accuracy"].item(), math.isnan(seen["test loss"])) == (0, True)


def test_the_loss_alone_at_complex_theta():
    theta = torch.ones(2) + 1j
    assert Loss(QUADRATIC, name="test loss")(0, 0.0, theta)["test loss"].item() == 0
    with pytest.raises(UnsupportedError, match=r"complex outputs define no class.*Loss\(landscape"):
        Evaluation(QUADRATIC, linear, torch.tensor([1, 0, 0, 0]))(0, 0.0, theta)


@pytest.mark.parametrize(
    ("outputs", "targets", "kind", "words"),
    [
        (3, torch.tensor([1]), TypeError, "outputs must be callable"),
        (linear, torch.ones(4), TypeError, r"whole numbers, got torch\.float32; convert with \.long"),
        (linear, [1, 0, 0, 0], TypeError, "targets must be a tensor of classes"),
        (linear, torch.tensor(1), ValueError, r"targets must have shape \(N,\)"),
        (linear, torch.zeros(0).long(), ValueError, r"targets must have shape \(N,\)"),
        (linear, torch.zeros(3).long(), ValueError, r"outputs must be real numbers of shape \(3, 'C'\) or \(3,\)"),
        (lambda theta: linear(theta)[:, None, None], torch.zeros(4).long(), ValueError, r"got \(4, 1, 1\)"),
        (lambda theta: linear(theta) > 0, torch.zeros(4).long(), ValueError, r"got \(4,\) torch\.bool"),
    ],
)
def test_arguments_out_of_place(outputs, targets, kind, words):
    with pytest.raises(kind, match=words):
        Evaluation(QUADRATIC, outputs, targets)(0, 0.0, torch.ones(2))
