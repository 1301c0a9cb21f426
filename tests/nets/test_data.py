import pytest
import torch
from sklearn.datasets import load_breast_cancer, load_digits

from nets import Data, load_data
from nets.data import WHEEL_SETS, is_test, standardise_values

SHAPES = {"digits": ((1438, 1, 8, 8), (359, 1, 8, 8), 10), "breast-cancer": ((456, 30), (113, 30), 2)}


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_dtypes_and_classes(name):
    for train in (True, False):
        data = load_data(name, train=train)
        assert isinstance(data, Data)
        assert tuple(data.inputs.shape) == SHAPES[name][0 if train else 1]
        assert data.inputs.dtype == torch.float64
        assert data.targets.dtype == torch.int64
        assert len(data) == data.targets.shape[0] == data.inputs.shape[0]
        assert data.classes == SHAPES[name][2] == len(data.targets.unique())


@pytest.mark.parametrize("name", SHAPES)
def test_split_is_stratified_disjoint_and_whole(name):
    train, test = (load_data(name, train=part, standardise=False) for part in (True, False))
    source = {"digits": load_digits, "breast-cancer": load_breast_cancer}[name]()
    rows = torch.cat([train.inputs.flatten(1), test.inputs.flatten(1)])
    assert sorted(rows.tolist()) == sorted(source.data.tolist())  # whole: nothing lost or doubled
    assert len(rows) == len(source.data)
    for label in range(train.classes):
        whole = int((source.target == label).sum())
        assert abs(int((test.targets == label).sum()) - whole / 5) <= 0.5
    mine = is_test(torch.from_numpy(source.target))
    assert torch.equal(test.inputs.flatten(1), torch.from_numpy(source.data)[mine])  # values exact, in source order


@pytest.mark.parametrize("name", SHAPES)
def test_standardised_by_training_statistics(name):
    raw = [load_data(name, train=part, standardise=False).inputs for part in (True, False)]
    over = 0 if raw[0].ndim == 2 else (0, 1, 2, 3)
    mean, std = raw[0].mean(over), raw[0].std(over, correction=0)
    for part, values in zip((True, False), raw, strict=True):
        torch.testing.assert_close(load_data(name, train=part).inputs, (values - mean) / std)
    # the limit does not enter the statistics
    limited = load_data(name, limit=50, seed=3)
    plain = load_data(name, limit=50, seed=3, standardise=False)
    torch.testing.assert_close(limited.inputs, (plain.inputs - mean) / std)


def test_constant_feature_becomes_zero():
    features = torch.tensor([[1.0, 5.0], [3.0, 5.0]])
    assert torch.equal(standardise_values(features, features), torch.tensor([[-1.0, 0.0], [1.0, 0.0]]))


@pytest.mark.parametrize("limit", [10, 57, 300, 1438])
def test_limit_is_balanced_and_nested(limit):
    data = load_data("digits", limit=limit, seed=1)
    counts = torch.bincount(data.targets, minlength=10)
    assert len(data) == limit
    if limit < 1400:
        assert counts.max() - counts.min() <= 1
    more = {tuple(row) for row in load_data("digits", limit=min(limit + 40, 1438), seed=1).inputs.flatten(1).tolist()}
    assert {tuple(row) for row in data.inputs.flatten(1).tolist()} <= more


def test_limit_beyond_the_smallest_class_takes_from_the_others():
    assert torch.bincount(load_data("breast-cancer", limit=400).targets).tolist() == [170, 230]


def test_limit_is_fixed_by_seed_and_leaves_the_global_generator():
    state = torch.get_rng_state()
    first, again, other = (load_data("digits", limit=30, seed=s).inputs for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(state, torch.get_rng_state())
    assert torch.equal(load_data("digits", seed=0).inputs, load_data("digits", seed=7).inputs)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"name": "digit"}, ValueError, "'digits', 'breast-cancer'"),
        ({"root": "/tmp"}, ValueError, "root"),
        ({"limit": 1439}, ValueError, "limit.*1438"),
        ({"limit": 9}, ValueError, "limit.*10 classes"),
        ({"limit": 0}, ValueError, "limit"),
        ({"limit": 20.0}, TypeError, "limit"),
        ({"limit": True}, TypeError, "limit"),
        ({"seed": -1}, ValueError, "seed"),
        ({"seed": 2**64, "limit": 50}, ValueError, "seed"),
        ({"train": "test"}, TypeError, "train"),
        ({"standardise": None}, TypeError, "standardise"),
    ],
)
def test_bad_arguments(change, error, words):
    arguments = {"name": "digits"} | change
    with pytest.raises(error, match=words):
        load_data(arguments.pop("name"), **arguments)


def test_data_is_frozen():
    with pytest.raises(AttributeError):
        load_data("breast-cancer").classes = 3
    assert set(WHEEL_SETS) == set(SHAPES)
