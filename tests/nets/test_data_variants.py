import pytest
import torch

from nets import Data, load_data
from nets.datasets.variants import noisy_labels, only_classes, pool_images, random_labels


@pytest.fixture(scope="module")
def digits():
    return load_data("digits")


def test_random_labels_are_uniform_and_fixed_by_seed(digits):
    state = torch.get_rng_state()
    first, again, other = (random_labels(digits, seed) for seed in (0, 0, 1))
    assert torch.equal(first.targets, again.targets)
    assert not torch.equal(first.targets, other.targets)
    assert torch.equal(first.inputs, digits.inputs)
    assert first.targets.dtype == torch.int64
    counts = torch.bincount(first.targets, minlength=10).double()
    assert ((counts - 143.8).square() / 143.8).sum() < 27.9  # χ² with 9 degrees, one draw in a thousand
    agreeing = (first.targets == digits.targets).double().mean()
    assert abs(agreeing - 0.1) < 0.03  # drawn anew, right labels not left out
    assert torch.equal(state, torch.get_rng_state())


def test_noisy_labels_are_other_classes_in_the_number_asked_for_and_nested(digits):
    before = digits.targets.clone()
    fractions = (0.0, 0.1, 0.25, 0.9, 1.0)
    runs = [noisy_labels(digits, fraction, seed=4) for fraction in fractions]
    changed = [run.targets != digits.targets for run in runs]
    assert [int(each.sum()) for each in changed] == [round(fraction * 1438) for fraction in fractions]
    for small, large, run, next_run in zip(changed, changed[1:], runs, runs[1:], strict=False):
        assert torch.equal(run.targets[small], next_run.targets[small])
        assert bool((small <= large).all())
    assert torch.equal(digits.targets, before)
    steps = torch.bincount((runs[-1].targets - digits.targets) % 10, minlength=10)
    assert steps[0] == 0
    assert ((steps[1:].double() - 1438 / 9).square() / (1438 / 9)).sum() < 26.1  # χ² with 8 degrees
    assert not torch.equal(noisy_labels(digits, 0.5, seed=5).targets, noisy_labels(digits, 0.5, seed=4).targets)


def test_only_classes_keeps_order_and_relabels_as_given(digits):
    some = only_classes(digits, [7, 0, 3])
    kept = (digits.targets == 7) | (digits.targets == 0) | (digits.targets == 3)
    assert torch.equal(some.inputs, digits.inputs[kept])
    assert torch.equal(torch.tensor([7, 0, 3])[some.targets], digits.targets[kept])
    assert some.classes == 3
    assert only_classes(digits, range(5)).classes == 5


def test_pooled_is_the_mean_of_blocks(digits):
    small = pool_images(digits, 4)
    assert small.inputs.shape == (1438, 1, 4, 4)
    torch.testing.assert_close(small.inputs, torch.nn.functional.avg_pool2d(digits.inputs, 2))
    assert torch.equal(pool_images(digits, 8).inputs, digits.inputs)
    wide = Data(torch.arange(24.0, dtype=torch.float64).reshape(1, 1, 2, 12), torch.zeros(1, dtype=torch.int64), 1)
    torch.testing.assert_close(pool_images(wide, 2).inputs, torch.nn.functional.avg_pool2d(wide.inputs, (1, 6)))


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda data: random_labels(data.inputs), TypeError, "data must be Data"),
        (lambda data: random_labels(data, seed=-1), ValueError, "seed"),
        (lambda data: noisy_labels(data, 1.1), ValueError, "fraction"),
        (lambda data: noisy_labels(data, -0.1), ValueError, "fraction"),
        (lambda data: noisy_labels(data, "half"), TypeError, "fraction"),
        (lambda data: noisy_labels(data, float("nan")), ValueError, "fraction"),
        (lambda data: noisy_labels(only_classes(data, [1]), 0.5), ValueError, "2 classes"),
        (lambda data: only_classes(data, []), ValueError, "classes"),
        (lambda data: only_classes(data, [1, 1]), ValueError, "classes"),
        (lambda data: only_classes(data, [10]), ValueError, r"classes.*\[0, 10\)"),
        (lambda data: only_classes(data, [-1]), ValueError, "classes"),
        (lambda data: only_classes(data, [1.0]), TypeError, "classes"),
        (lambda data: only_classes(data, "01"), TypeError, "classes"),
        (lambda data: only_classes(data, 3), TypeError, "classes"),
        (lambda data: only_classes(Data(data.inputs, data.targets, 11), [10]), ValueError, "class 10 has none"),
        (lambda data: pool_images(data, 3), ValueError, "size must divide.*8, 8"),
        (lambda data: pool_images(data, 16), ValueError, "size must divide"),
        (lambda data: pool_images(data, 0), ValueError, "size"),
        (lambda data: pool_images(load_data("breast-cancer"), 5), ValueError, "size"),
    ],
)
def test_bad_arguments_are_named(digits, call, error, words):
    with pytest.raises(error, match=words):
        call(digits)
