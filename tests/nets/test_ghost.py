"""Ghost batches: the sum over fixed batches of batch-norm losses, against one landscape a batch."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import nets
from flows import StochasticGradientDescent, descend
from nets import GhostBatchLandscape, NetworkLandscape, cross_entropy

N, G = 12, 4


def normed(norm=nets.BatchNorm):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 6), norm(6), nn.Tanh(), nn.Linear(6, 3)).double()


@pytest.fixture
def problem(normal):
    return normal(0, N, 5), torch.arange(N) % 3


@pytest.mark.parametrize("chunk_size", [None, 2])
def test_every_quantity_is_that_of_the_batches(problem, normal, chunk_size):
    inputs, labels = problem
    ghost = GhostBatchLandscape(normed(), cross_entropy, inputs, labels, G, chunk_size, seed=3)
    assert ghost.size == N // G
    assert sorted(ghost.ghost_batches.flatten().tolist()) == list(range(N))
    parts = [NetworkLandscape(normed(), cross_entropy, inputs[b], labels[b]) for b in ghost.ghost_batches]
    theta = ghost.theta0 + 0.1 * normal(1, ghost.dimension)
    u, v, w = (*normal(2, 2, ghost.dimension), normal(3, N // G))
    assert_close(ghost.losses(theta), torch.stack([p.loss(theta) for p in parts]))
    assert_close(ghost.loss(theta), torch.stack([p.loss(theta) for p in parts]).mean())
    grads = torch.stack([p.grad(theta) for p in parts])
    assert_close(ghost.grad(theta), grads.mean(0))
    assert_close(ghost.example_grads(theta), grads)
    assert_close(ghost.weighted_grad(theta, w), w @ grads)
    assert_close(ghost.batch_grad(theta, torch.tensor([2, 0])), grads[[2, 0]].mean(0))
    assert_close(ghost.hvp(theta, v), torch.stack([p.hvp(theta, v) for p in parts]).mean(0))
    assert_close(ghost.third(theta, u, v), torch.stack([p.third(theta, u, v) for p in parts]).mean(0))
    part = ghost.restrict(torch.tensor([1]))
    assert_close(part.grad(theta), grads[1])
    assert_close(ghost.outputs(theta), torch.stack([p.outputs(theta) for p in parts]))
    assert_close(part.outputs(theta[None]), ghost.outputs(theta)[None, 1:2])
    assert torch.equal(part.ghost_batches, ghost.ghost_batches[1:2])


def test_without_batch_statistics_it_is_the_plain_mean(problem):
    inputs, labels = problem
    module = normed().eval()
    ghost = GhostBatchLandscape(module, cross_entropy, inputs, labels, G)
    plain = NetworkLandscape(module, cross_entropy, inputs, labels)
    assert_close(ghost.grad(ghost.theta0), plain.grad(plain.theta0))


def test_ghost_batches_are_fixed_by_the_seed(problem):
    batches = [GhostBatchLandscape(normed(), cross_entropy, *problem, G, seed=s).ghost_batches for s in (1, 1, 2)]
    assert torch.equal(batches[0], batches[1])
    assert not torch.equal(batches[0], batches[2])


def test_sgd_on_it_is_training_with_batch_norm(problem):
    inputs, labels = problem
    module = normed(nn.BatchNorm1d)
    ghost = GhostBatchLandscape(module, cross_entropy, inputs, labels, G)
    path = descend(StochasticGradientDescent(ghost, 0.1, 1, "epoch"), ghost.theta0, 6, seed=5).theta
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    batches = [(ghost.ghost_batches[b], b) for b in range(3)]
    for k in range(6):
        steps = [ghost.batch_grad(path[k], torch.tensor([b])) for _, b in batches]
        drawn = min(range(3), key=lambda b: float((path[k] - 0.1 * steps[b] - path[k + 1]).norm()))
        optimizer.zero_grad()
        chosen = ghost.ghost_batches[drawn]
        cross_entropy(module(inputs[chosen]), labels[chosen]).mean().backward()
        optimizer.step()
        assert_close(torch.cat([p.detach().flatten() for p in module.parameters()]), path[k + 1])


def test_fused_batch_norm_is_caught_here_too(problem):
    ghost = GhostBatchLandscape(normed(nn.BatchNorm1d), cross_entropy, *problem, G)
    ghost.hvp(ghost.theta0, ghost.theta0)
    with pytest.raises(nets.WrongDerivativeError, match="BatchNorm1d"):
        ghost.third(ghost.theta0, ghost.theta0, ghost.theta0)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"ghost_size": 5}, ValueError, "ghost_size must divide the 12 examples, got 5; drop 2"),
        ({"ghost_size": 0}, ValueError, "ghost_size"),
        ({"ghost_size": 2.0}, TypeError, "ghost_size"),
        ({"seed": -1}, ValueError, "seed"),
        ({"targets": torch.arange(8) % 3}, ValueError, "same length"),
        ({"inputs": None}, TypeError, "inputs"),
        ({"targets": [0, 1]}, TypeError, "targets"),
        ({"targets": torch.tensor(1)}, ValueError, "targets must have shape"),
    ],
)
def test_arguments_are_checked(problem, change, error, words):
    given = {"module": normed(), "loss_fn": cross_entropy, "inputs": problem[0], "targets": problem[1], "ghost_size": G}
    with pytest.raises(error, match=words):
        GhostBatchLandscape(**(given | change))
