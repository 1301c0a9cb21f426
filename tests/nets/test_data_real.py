"""The real files, where they are at hand: facts that anyone can look up."""

import hashlib

import pytest
import torch

from nets import load_data
from nets.datasets.catalogue import IDX_SETS
from tests.nets.data_files import real_root


@pytest.mark.parametrize("name", IDX_SETS)
def test_the_hashes_and_sizes_are_the_files(name):
    kind = IDX_SETS[name]
    folder = real_root(kind.folders[0]) / kind.folders[0]
    for remote in kind.remotes:
        content = (folder / remote.name).read_bytes()
        assert len(content) == remote.size
        assert hashlib.sha256(content).hexdigest() == remote.sha256


def test_mnist():
    root = real_root("mnist")
    train = load_data("mnist", root=root, standardise=False)
    assert train.inputs.shape == (60_000, 1, 28, 28)
    assert train.targets[:5].tolist() == [5, 0, 4, 1, 9]
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert torch.bincount(train.targets).tolist() == counts
    # the mean and deviation that everyone uses
    assert float(train.inputs.mean()) / 255 == pytest.approx(0.1307, abs=5e-5)
    assert float(train.inputs.std()) / 255 == pytest.approx(0.3081, abs=5e-5)
    test = load_data("mnist", root=root, train=False, limit=100)
    assert test.inputs.shape == (100, 1, 28, 28)
    assert torch.bincount(test.targets).tolist() == [10] * 10


def test_fashion_mnist():
    root = real_root("fashion_mnist")
    train = load_data("fashion-mnist", root=root, limit=60_000, standardise=False)
    assert torch.bincount(train.targets).tolist() == [6000] * 10
    assert train.targets[:5].tolist() == [9, 0, 0, 3, 0]
    assert float(train.inputs.mean()) / 255 == pytest.approx(0.2860, abs=5e-5)
    test = load_data("fashion-mnist-7x7", root=root, train=False)
    assert test.inputs.shape == (10_000, 1, 7, 7)
    assert torch.bincount(test.targets).tolist() == [1000] * 10


def test_cifar_10():
    root = real_root("cifar-10-batches-bin")
    train, test = (load_data("cifar-10", root=root, train=part) for part in (True, False))
    assert train.inputs.shape[1:] == test.inputs.shape[1:] == (3, 32, 32)
    for data in (train, test):
        counts = torch.bincount(data.targets)
        assert len(counts) == 10
        assert counts.tolist() == [len(data) // 10] * 10
    raw = load_data("cifar-10", root=root, standardise=False).inputs.mean((0, 2, 3)) / 255
    torch.testing.assert_close(raw, torch.tensor([0.4914, 0.4822, 0.4465]).double(), atol=0.01, rtol=0)
    # neighbours down and across are alike: planes and rows are where they should be
    for axis in (2, 3):
        assert float((train.inputs.diff(dim=axis)).square().mean()) < 0.2
