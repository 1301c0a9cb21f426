"""Losses from exp and log: torch's values and gradients, extremes, complex outputs, arguments."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from nets import LOSSES, MLP, NetworkLandscape, binary_cross_entropy, cross_entropy, square_loss

LABELS = torch.tensor([0, 2, 1, 2])
BITS = torch.tensor([0.0, 1.0, 1.0, 0.0], dtype=torch.float64)


def probabilities(normal):
    return torch.softmax(normal(5, 4, 3), -1)


CASES = {
    "classes": (cross_entropy, lambda z, n: F.cross_entropy(z, LABELS, reduction="none"), lambda n: LABELS, 3),
    "probabilities": (
        cross_entropy,
        lambda z, n: F.cross_entropy(z, probabilities(n), reduction="none"),
        probabilities,
        3,
    ),
    "bits": (
        binary_cross_entropy,
        lambda z, n: F.binary_cross_entropy_with_logits(z[:, 0], BITS, reduction="none"),
        lambda n: BITS,
        1,
    ),
    "one-hot": (
        square_loss,
        lambda z, n: F.mse_loss(z, F.one_hot(LABELS).double(), reduction="none").sum(-1) / 2,
        lambda n: LABELS,
        3,
    ),
    "values": (square_loss, lambda z, n: (z - n(7, 4, 3)).square().sum(-1) / 2, lambda n: n(7, 4, 3), 3),
}
cases = pytest.mark.parametrize("name", CASES)


@cases
@given(seed=st.integers(0, 2**31), scale=st.sampled_from([0.1, 1.0, 30.0]))
def test_values_and_gradients_are_torchs(name, normal, seed, scale):
    loss, oracle, targets, columns = CASES[name]
    z = (scale * normal(seed, 4, columns)).requires_grad_()
    ours, theirs = loss(z, targets(normal)), oracle(z, normal)
    assert_close(ours, theirs, rtol=1e-12, atol=1e-12 * (1 + scale**2))
    gradients = [torch.autograd.grad(values.sum(), z)[0] for values in (ours, theirs)]
    assert_close(*gradients, rtol=1e-10, atol=1e-12)


@cases
def test_all_derivatives_of_extreme_outputs_are_finite(name, normal):
    loss, _, targets, columns = CASES[name]
    z = torch.tensor([[1e4], [-1e4], [800.0], [0.0]], dtype=torch.float64).expand(4, columns).clone()
    z[:, 0] *= -1
    z.requires_grad_()
    derivative = loss(z, targets(normal)).sum()
    for _ in range(3):
        assert derivative.isfinite().all()
        flat = derivative.sum() + 0 * z.sum()  # squares have no third derivative, and then no graph
        (derivative,) = torch.autograd.grad(flat, z, create_graph=True)
    assert derivative.isfinite().all()


@cases
def test_complex_outputs_give_the_holomorphic_extension(name, normal):
    loss, _, targets, columns = CASES[name]
    x, y, a, b = normal(2, 4, 4, columns)
    z, w, target = torch.complex(x, y), torch.complex(a, b), targets(normal)
    assert_close(loss(x.to(z.dtype), target), loss(x, target).to(z.dtype))
    step = 1e-5
    along = (loss(z + step * w, target) - loss(z - step * w, target)) / (2 * step)
    turned = (loss(z + 1j * step * w, target) - loss(z - 1j * step * w, target)) / (2j * step)
    assert_close(along, turned, rtol=1e-7, atol=1e-8)
    leaf = z.requires_grad_()
    (conjugate,) = torch.autograd.grad(loss(leaf, target).sum(), leaf, torch.ones((), dtype=z.dtype))
    assert_close((conjugate.conj() * w).sum(-1).detach().resolve_conj(), along.detach(), rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("loss", [cross_entropy, square_loss])
def test_class_targets_under_vmap(loss, normal):
    z = normal(1, 4, 3)
    each = torch.func.vmap(lambda row, label: loss(row[None], label[None])[0])(z, LABELS)
    assert_close(each, loss(z, LABELS))


def test_an_unwanted_class_may_have_no_probability():
    z = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=torch.float64, requires_grad=True)
    for targets in (torch.tensor([0]), torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)):
        loss = cross_entropy(z, targets)
        assert_close(loss, F.cross_entropy(z, torch.tensor([0]), reduction="none"))
        assert torch.autograd.grad(loss.sum(), z)[0].isfinite().all()


def test_weights_that_are_no_probabilities_give_torchs_value(normal):
    z, p = normal(3, 4, 3), normal(4, 4, 3).abs()
    assert_close(cross_entropy(z, p), F.cross_entropy(z, p, reduction="none"))


@pytest.mark.parametrize("loss", [cross_entropy, square_loss])
def test_example_gradients_go_through_vmap(loss, normal):
    network = NetworkLandscape(MLP((4, 5, 3)).double(), loss, normal(1, 4, 4), LABELS)
    assert network._vectorises


def test_names():
    assert LOSSES == {
        "cross-entropy": cross_entropy,
        "square": square_loss,
        "binary-cross-entropy": binary_cross_entropy,
    }


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: cross_entropy(torch.ones(3), LABELS), ValueError, r"outputs must have shape \(m, C\), got \(3,\)"),
        (lambda: cross_entropy(torch.ones(4, 3), torch.ones(4)), ValueError, "targets must have the outputs' shape"),
        (
            lambda: cross_entropy(torch.ones(4, 3), LABELS[:2]),
            ValueError,
            r"targets must have shape \(4,\), got \(2,\)",
        ),
        (lambda: cross_entropy(torch.ones(4, 3), LABELS > 1), TypeError, "whole numbers"),
        (lambda: square_loss(torch.ones(4, 3), LABELS + 1j), TypeError, "whole numbers or real"),
        (lambda: cross_entropy(torch.ones(4, 3), LABELS + 1), ValueError, r"classes in \[0, 3\), got 1 to 3"),
        (lambda: square_loss(torch.ones(4, 3), LABELS - 1), ValueError, r"classes in \[0, 3\), got -1 to 1"),
        (lambda: binary_cross_entropy(torch.ones(4, 2), BITS), ValueError, "cross_entropy"),
        (lambda: binary_cross_entropy(torch.ones(4), BITS[:2]), ValueError, r"got \(4,\) and \(2,\)"),
    ],
)
def test_arguments_are_checked(call, error, words):
    with pytest.raises(error, match=words):
        call()
