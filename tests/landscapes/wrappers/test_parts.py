"""Parts of landscapes: what is innermost, and copies on other parts."""

import pytest
import torch

from landscapes import Counted, LinearRegression, Quadratic, Regularised, Rosenbrock
from landscapes.landscape import innermost_landscapes
from landscapes.wrappers import Rotated
from landscapes.wrappers.gradient_penalties import GradientPenalty, VariancePenalty
from landscapes.wrappers.modified_losses import LandscapeSum
from tests.tensors import draw

TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
THETA = torch.tensor([0.3, -0.2], dtype=torch.float64)
SUM = LinearRegression(draw(0, 6, 2), draw(1, 6))
WRAPPED = {
    "counted": Counted,
    "regularised": lambda f: Regularised(f, 0.3),
    "rotated": lambda f: Rotated(f, TURN),
    "penalty": lambda f: GradientPenalty(f, 0.2),
    "twice": lambda f: Regularised(GradientPenalty(Regularised(f, 0.1), 0.2), 0.3),
    "mean": lambda f: LandscapeSum([f, f]),
}


@pytest.mark.parametrize("f", [Rosenbrock(), SUM])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_copy_on_another_part_is_the_wrapper_of_that_part(name, f):
    wrapped, other = WRAPPED[name](f), Regularised(f, 0.7)
    assert innermost_landscapes(wrapped) == (f,)
    copy = wrapped.with_parts(lambda part, share: other if part is f else part.with_parts(lambda p, s: p))
    assert type(copy) is type(wrapped)
    if name != "twice":
        assert torch.equal(copy.grad(THETA), WRAPPED[name](other).grad(THETA))
    assert torch.equal(wrapped.grad(THETA), WRAPPED[name](f).grad(THETA))


def test_a_landscape_without_parts_is_its_own_innermost():
    for f in (Rosenbrock(), SUM, SUM.restrict(torch.arange(2))):
        assert f.with_parts(lambda part, share: None) is f
        assert innermost_landscapes(f) == (f,)


def test_batches_of_a_variance_are_parts_by_their_share():
    shares = []
    VariancePenalty(SUM, torch.arange(6).reshape(3, 2), 0.1).with_parts(lambda p, share: shares.append(share) or p)
    assert shares == [1, 1 / 3, 1 / 3, 1 / 3]


def test_methods_assigned_to_a_landscape_stay_with_the_copy():
    wrapped, other = Regularised(Rosenbrock(), 0.3), Quadratic(torch.eye(2, dtype=torch.float64))
    wrapped.grad = wrapped.grad
    assert torch.equal(wrapped.with_parts(lambda p, s: other).grad(THETA), Regularised(other, 0.3).grad(THETA))


def test_a_counted_landscape_has_the_attributes_of_its_own():
    assert Counted(Rosenbrock(b=5.0)).b == 5.0
    for counted, name in ((Counted(Rosenbrock()), "nothing"), (Counted.__new__(Counted, Rosenbrock()), "counts")):
        with pytest.raises(AttributeError, match=f"no attribute '{name}'"):
            getattr(counted, name)
