"""Rates and weight decay of a pair: which of them a flow states, and the note where it does not."""

import functools
from dataclasses import dataclass

import pytest
import torch

from flows import (
    Clock,
    Flow,
    GradientDescent,
    GradientFlow,
    ModifiedFlow,
    OptimizerDescent,
    compare,
)
from flows.comparison.pairs import notes_on_pair
from landscapes import Landscape, Quadratic, Regularised
from landscapes.wrappers.modified_losses import modified_loss

BOWL = Quadratic(torch.tensor([[3.0, 0.5], [0.5, 1.0]], dtype=torch.float64))
START = torch.tensor([-0.5, 0.7], dtype=torch.float64)
LR = 0.01


@dataclass(frozen=True)
class Rated(Flow):
    """Gradient flow with a rate."""

    f: Landscape
    learning_rate: object

    def velocity(self, t, state):
        return -self.f.grad(state)


@dataclass(frozen=True)
class Constant(Flow):
    """Its rate is a constant in the code."""

    ground: Landscape

    def velocity(self, t, state):
        return -self.ground.grad(state + 0.005 * self.ground.grad(state))


class Method(Constant):
    """One of the names of a rate is a method."""

    def rate(self):
        return LR


class Unstated(Constant):
    """A clock, but no rate and not free."""

    @property
    def declared_clock(self):
        return Clock()


@pytest.mark.parametrize("kind", [Constant, Method, Unstated])
def test_every_flow_without_a_rate_has_the_note(kind):
    row = compare(GradientDescent(BOWL, LR), {"A": kind(BOWL)}, START, 2).rows["A"]
    assert [note.partition(":")[0] for note in row.notes] == ["rate not declared"]


def test_a_tensor_of_one_element_is_a_number():
    for rate in (torch.tensor([0.2]), torch.tensor(0.2), torch.tensor([[0.2]], dtype=torch.float64)):
        with pytest.raises(ValueError, match=r"learning_rate of Rated is 0\.2.*, of the descent 0\.01"):
            compare(GradientDescent(BOWL, LR), [Rated(BOWL, rate)], START, 2)
    flow = Rated(BOWL, torch.tensor([0.25]))
    assert compare(GradientDescent(BOWL, 0.25), [flow], START, 2).rows["Rated"].notes == ()
    for rate in (torch.tensor([0.2, 0.3]), torch.tensor(True), torch.tensor([0.2j])):
        assert Rated(BOWL, rate).declared_rate is None


def decayed(decay, landscape=BOWL, kind=torch.optim.SGD):
    return OptimizerDescent(landscape, functools.partial(kind, lr=LR, weight_decay=decay))


WITH_DECAY = Regularised(BOWL, 0.3)


def test_weight_decay_that_the_flow_does_not_have_is_noted():
    remedy = "give the flow Regularised(landscape, 0.3)"
    for flow in (GradientFlow(BOWL), ModifiedFlow(BOWL, LR, 2), ModifiedFlow(Regularised(BOWL, 0.2), LR, 2)):
        result = compare(decayed(0.3), {"flow": flow}, START, 2)
        (note,) = result.rows["flow"].notes
        assert note.startswith("weight_decay=0.3 of the optimiser")
        assert remedy in note
        assert note in str(result)


def test_weight_decay_that_the_flow_has_is_not_noted():
    for flow in (
        GradientFlow(WITH_DECAY),
        ModifiedFlow(WITH_DECAY, LR, 2),
        GradientFlow(modified_loss(WITH_DECAY, LR)),
    ):
        assert notes_on_pair(flow, decayed(0.3)) == ()
    assert notes_on_pair(GradientFlow(BOWL), decayed(0.0)) == ()
    assert notes_on_pair(GradientFlow(WITH_DECAY), decayed(0.0, WITH_DECAY)) == ()


def test_weight_decay_adds_to_that_of_the_descents_landscape():
    descent = decayed(0.2, Regularised(BOWL, 0.1))
    for landscape in (WITH_DECAY, Regularised(Regularised(BOWL, 0.1), 0.2)):
        assert notes_on_pair(GradientFlow(landscape), descent) == ()
    (note,) = notes_on_pair(GradientFlow(Regularised(BOWL, 0.1)), descent)
    assert note.startswith("weight_decay=0.2")


def test_other_optimisers_have_weight_decay_too():
    notes = notes_on_pair(GradientFlow(BOWL), decayed(0.3, kind=torch.optim.AdamW))
    assert [note.partition(" ")[0] for note in notes] == ["no", "weight_decay=0.3"]
    lbfgs = OptimizerDescent(BOWL, functools.partial(torch.optim.LBFGS, lr=LR))
    assert not any("weight_decay" in note for note in notes_on_pair(GradientFlow(BOWL), lbfgs))


@pytest.mark.parametrize("shape", [(3,), (4, 1)])
def test_a_start_of_another_size_is_named(shape):
    words = (
        rf"theta0 must have shape \(\.\.\., 2\), the dimension of the descent's landscape, Quadratic, got \({shape[0]},"
    )
    with pytest.raises(ValueError, match=words):
        compare(GradientDescent(BOWL, LR), [GradientFlow(BOWL)], torch.zeros(shape, dtype=torch.float64), 2)
