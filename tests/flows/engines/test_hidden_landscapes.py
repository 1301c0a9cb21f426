"""Landscapes that a model reaches past its fields: the cost is then not known, and never a smaller number."""

from dataclasses import dataclass
from types import ModuleType

import pytest
import torch

from flows import Flow, GradientDescent, GradientFlow, compare, descend, integrate
from flows.engines.counting import count_calls
from landscapes import Landscape, Quadratic, Rosenbrock
from landscapes.toys.registry import LANDSCAPES
from landscapes.wrappers.base import replace_attributes
from nets import NetworkLandscape
from tests.tensors import draw

START = torch.tensor([-0.5, 0.7], dtype=torch.float64)
HIDDEN = Rosenbrock(b=5.0)
TABLE = {"one": [HIDDEN]}
f = Rosenbrock(b=5.0)  # also the name of a field below
room = ModuleType("room")
room.valley = HIDDEN


@dataclass(frozen=True)
class Field(Flow):
    """−∇f(θ) − gradient(θ)."""

    f: Landscape
    gradient: object

    def velocity(self, t, state):
        return -self.f.grad(state) - self.gradient(state)


@dataclass(frozen=True)
class Global(Flow):
    """Its own method refers to a landscape of the module."""

    f: Landscape

    def velocity(self, t, state):
        return -self.f.grad(state) - HIDDEN.grad(state)


class Caller:
    """A plain object."""

    def __init__(self, landscape):
        self.landscape = landscape

    def __call__(self, theta):
        return self.landscape.grad(theta)


def by_name(theta):
    return HIDDEN.grad(theta)


def by_another(theta):
    return by_name(theta)


def inside(theta):
    def gradient(x):
        return TABLE["one"][0].grad(x)

    return gradient(theta)


def local():
    valley = Rosenbrock(b=5.0)
    return lambda theta: 2 * valley.grad(theta)


UNKNOWN = {
    "closure": lambda: Field(f, local()),
    "name": lambda: Field(f, by_name),
    "lambda": lambda: Field(f, lambda theta: 2 * HIDDEN.grad(theta)),
    "function by name": lambda: Field(f, by_another),
    "inner function": lambda: Field(f, inside),
    "module": lambda: Field(f, lambda theta: 2 * room.valley.grad(theta)),
    "object": lambda: Field(f, Caller(HIDDEN)),
    "own method": lambda: Global(f),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_landscape_outside_the_fields_makes_the_cost_unknown(case):
    run = integrate(UNKNOWN[case](), START, [0.0, 0.1], method="euler", dt=0.1)
    assert run.status == "finished"
    assert run.cost.keys() == {"evaluations"}


def test_functions_without_a_landscape_are_billed():
    """An attribute with the name of a module's landscape is none, nor is a function of torch."""
    for gradient in (lambda theta: torch.sin(theta) + 0, torch.nn.functional.softplus, lambda theta: 0 * theta):
        flow = Field(f, gradient)
        run = integrate(flow, START, [0.0, 0.1], method="euler", dt=0.1)
        assert run.cost["grad"] == 1


class Silent(Landscape):
    """f + c‖∇f‖² of the landscape in an attribute, by products; it does not say how it is counted."""

    def __init__(self, landscape, c=0.1):
        self.landscape, self.c = landscape, c

    @property
    def dimension(self):
        return 2

    def loss(self, theta):
        return self.landscape.loss(theta) + self.c * self.landscape.grad(theta).square().sum(dim=-1)

    def grad(self, theta):
        point = self.landscape.expand(theta)
        return point.grad + 2 * self.c * point.hvp(point.grad)


class Listed(Silent):
    """The same in a list."""

    def __init__(self, landscape):
        self.landscapes, self.c = [landscape], 0.1

    @property
    def landscape(self):
        return self.landscapes[0]


class Speaking(Silent):
    """Counted inside."""

    def with_parts(self, change):
        return replace_attributes(self, landscape=change(self.landscape, 1))


class One(Silent):
    """Counted as one."""

    def with_parts(self, change):
        return self


@pytest.mark.parametrize("landscape", [Silent(HIDDEN), Listed(HIDDEN), Silent(Speaking(HIDDEN))])
def test_a_landscape_that_holds_another_must_say_how_it_is_counted(landscape):
    assert integrate(GradientFlow(landscape), START, [0.0, 0.1]).cost.keys() == {"evaluations"}
    result = compare(GradientDescent(landscape, 0.01), [GradientFlow(landscape)], START, 2)
    assert "GradientFlow: cost not known (–)" in str(result)
    assert "with_parts" in str(result)


def test_it_says_so_by_with_parts():
    cost = descend(GradientDescent(Speaking(HIDDEN), 0.01), START, 8).cost
    assert (cost["grad"], cost["hvp"]) == (8, 8)
    cost = descend(GradientDescent(One(HIDDEN), 0.01), START, 8).cost
    assert (cost["grad"], cost["hvp"]) == (8, 0)
    assert descend(GradientDescent(Quadratic(torch.eye(2, dtype=torch.float64)), 0.01), START, 8).cost["grad"] == 8


class Bound(Rosenbrock):
    """One of its attributes is its own method."""

    def __init__(self):
        super().__init__(b=5.0)
        self.mine = self.loss


def test_networks_and_methods_of_the_landscape_itself_are_no_other_landscape():
    network = torch.nn.Sequential(torch.nn.Linear(2, 1), torch.nn.Tanh()).double()
    inputs, targets = draw(0, 4, 2), draw(1, 4, 1)
    trained = NetworkLandscape(network, lambda out, y: (out - y).square().sum(dim=-1), inputs, targets)
    for landscape in (Bound(), trained):
        run = descend(GradientDescent(landscape, 0.01), torch.zeros(landscape.dimension, dtype=torch.float64), 8)
        assert run.cost["grad"] == 8


@pytest.mark.parametrize("name", LANDSCAPES)
def test_every_toy_is_billed(name):
    assert "grad" in count_calls(GradientFlow(LANDSCAPES[name]()))[1]
