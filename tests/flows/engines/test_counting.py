"""The bill of a run is a recount by the landscape itself: every flow, descent, noise and wrapper, every field name."""

import functools
import keyword
from dataclasses import dataclass, field, make_dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import flows
from flows import (
    Descent,
    Flow,
    GradientDescent,
    GradientFlow,
    MinibatchNoise,
    ModifiedFlow,
    MomentumOrnsteinUhlenbeck,
    NoisyGradientDescent,
    NoisyModifiedEquation,
    OrnsteinUhlenbeck,
    PrincipalFlow,
    StochasticDescent,
    StochasticFlow,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    Stratonovich,
    WorkspaceFlow,
    descend,
    integrate,
)
from flows.descent import MinibatchDescent
from flows.engines.counting import count_calls
from landscapes import Counted, FiniteSum, Landscape, LinearRegression, Quadratic, Regularised, Rosenbrock
from landscapes.noise import GradientNoise, LabelNoise
from landscapes.wrappers import Rotated
from landscapes.wrappers.gradient_penalties import GradientPenalty, VariancePenalty
from landscapes.wrappers.modified_losses import (
    LandscapeSum,
    modified_loss,
    random_partition_loss,
    replacement_loss,
    reshuffling_loss,
)
from tests.flows.every import (
    BATCHES,
    DESCENTS,
    FLOWS,
    MODELS,
    START,
    TURN,
    H,
    regression,
    run_descent,
    run_flow,
    valley,
)
from tests.flows.recount import billed, recounted
from tests.tensors import draw


def test_every_exported_class_is_here():
    here = {type(make(f())) for make, f in FLOWS + DESCENTS}
    bases = {Flow, StochasticFlow, WorkspaceFlow, Descent, StochasticDescent, MinibatchDescent}
    without_landscape = {OrnsteinUhlenbeck, MomentumOrnsteinUhlenbeck}
    exported = {x for x in map(functools.partial(getattr, flows), flows.__all__) if isinstance(x, type)}
    assert {x for x in exported if issubclass(x, (Flow, Descent))} - bases - without_landscape <= here


@pytest.mark.parametrize("case", range(len(MODELS)))
def test_the_bill_is_the_recount(case):
    make, landscape, run = MODELS[case]
    f = landscape()
    model = make(f)
    f.tally.clear()  # construction may evaluate
    found = run(model)
    assert found.status == "finished"
    assert billed(found.cost) == pytest.approx(recounted(f))
    assert recounted(f)
    assert torch.equal(found.theta, run(make(f.inner)).theta)


WRAPPERS = {
    "regularised": (valley, lambda f: Regularised(f, 0.1)),
    "rotated": (valley, lambda f: Rotated(f, TURN)),
    "penalty": (valley, lambda f: GradientPenalty(f, 0.1)),
    "modified loss": (valley, lambda f: modified_loss(f, H)),
    "penalty of a penalty": (valley, lambda f: GradientPenalty(Regularised(GradientPenalty(f, 0.1), 0.1), 0.1)),
    "penalty of a sum": (regression, lambda f: replacement_loss(f, H)),
    "variance": (regression, lambda f: VariancePenalty(f, BATCHES, 0.1, 0.2)),
    "variance, regularised": (regression, lambda f: VariancePenalty(Regularised(f, 0.1), BATCHES, 0.1)),
    "random partition": (regression, lambda f: random_partition_loss(f, H, 4)),
    "reshuffling": (regression, lambda f: reshuffling_loss(f, H, BATCHES)),
    "part of a penalised sum": (regression, lambda f: GradientPenalty(f, 0.1).restrict(torch.arange(6))),
    "restricted": (regression, lambda f: Regularised(f, 0.2).restrict(torch.arange(6))),
}
EACH = {
    "gradient": GradientFlow,
    "modified 2": lambda f: ModifiedFlow(f, H, 2),
    "modified 3": lambda f: ModifiedFlow(f, H, 3),
    "dense": lambda f: PrincipalFlow(f, H),
}


def two_steps(flow):
    return integrate(flow, START, [0.0, 0.02], method="euler", dt=0.01)


@pytest.mark.parametrize("flow", EACH)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_products_inside_wrappers_are_billed(wrapper, flow):
    landscape, wrap = WRAPPERS[wrapper]
    f = landscape()
    wrapped = wrap(f)
    f.tally.clear()
    found = two_steps(EACH[flow](wrapped))
    assert billed(found.cost) == pytest.approx(recounted(f))
    assert torch.equal(found.theta, two_steps(EACH[flow](wrap(f.inner))).theta)


@pytest.mark.parametrize("wrapper", [name for name, (make, _) in WRAPPERS.items() if make is regression])
def test_mini_batches_of_wrapped_sums_are_billed(wrapper):
    f = regression()
    wrapped = WRAPPERS[wrapper][1](f)
    f.tally.clear()
    found = run_descent(StochasticGradientDescent(wrapped, H, 1))
    assert billed(found.cost) == pytest.approx(recounted(f))
    f.tally.clear()
    noisy = run_flow(StochasticModifiedEquation(wrapped, H, 1))
    assert billed(noisy.cost) == pytest.approx(recounted(f))


def test_gradient_flow_of_the_modified_loss_costs_as_the_modified_flow():
    f = Rosenbrock(b=5.0)
    times = [0.0, 0.05]
    penalised, modified = (
        integrate(x, START[0], times).cost for x in (GradientFlow(modified_loss(f, H)), ModifiedFlow(f, H, 2))
    )
    assert penalised == {**modified, "loss": 0}
    assert penalised["hvp"] == penalised["grad"] == penalised["evaluations"]


def test_the_terms_of_a_mean_count_as_parts_of_it():
    f = LinearRegression(draw(0, 6, 2), draw(1, 6))
    terms = [f.restrict(torch.arange(3)), f.restrict(torch.arange(3, 6))]
    cost = integrate(GradientFlow(LandscapeSum(terms)), START[0], [0.0, 0.1]).cost
    assert cost["grad"] == cost["evaluations"]


@dataclass(frozen=True)
class Two(Flow):
    """Any names, any containers."""

    f: Landscape
    eta: float
    more: dict = field(default_factory=dict)

    def velocity(self, t, state):
        drift = -self.f.grad(state + self.eta / 2 * self.f.grad(state))
        for parts in self.more.values():
            for part in parts:
                drift = drift - part.grad(state)
        return drift


def test_fields_of_any_name_are_billed():
    f = valley()
    run = integrate(Two(f, 0.5), START[0], [0.0, 0.1], method="euler", dt=0.1 / 32)
    assert run.cost["evaluations"] == 32
    assert billed(run.cost) == recounted(f) == {"grad": 64.0}


def test_stratonovich_is_billed():
    f = regression()
    sde = Stratonovich(StochasticModifiedEquation(f, H, 2))
    run = integrate(sde, START[0], [0.0, 0.4], dt=H, seed=0, method="euler")
    plain = integrate(sde.flow, START[0], [0.0, 0.4], dt=H, seed=0, method="euler")
    assert billed(run.cost) == pytest.approx(billed(plain.cost) | {"grad": billed(run.cost)["grad"]})
    assert billed(run.cost)["grad"] > 40
    f.tally.clear()
    again = integrate(sde, START[0], [0.0, 0.4], dt=H, seed=0, method="euler")
    assert billed(again.cost) == pytest.approx(recounted(f))


def test_one_landscape_used_twice_is_one_and_two_are_two():
    f, g = valley(), valley()
    model, counts = count_calls(Two(f, 0.5, {"a": (f, g), "b": [f]}))
    (a, b), (c,) = model.more["a"], model.more["b"]
    assert model.f is a is c is not b
    run = integrate(Two(f, 0.5, {"a": (f, g), "b": [f]}), START[0], [0.0, 0.1], method="euler", dt=0.1)
    assert billed(run.cost) == recounted(f, g) == {"grad": 5.0}
    assert set(counts.values()) == {0}


def test_a_counted_landscape_of_the_user_counts_too():
    mine = Counted(GradientPenalty(Quadratic(torch.eye(2, dtype=torch.float64)), 0.1))
    run = integrate(GradientFlow(mine), START[0], [0.0, 0.1])
    assert mine.counts["grad"] == run.cost["grad"] == run.cost["hvp"] > 0
    assert mine.counts["hvp"] == 0
    descend(GradientDescent(mine, H), START[0], 3)
    assert mine.counts["grad"] == run.cost["grad"] + 3


def test_the_model_of_a_run_keeps_its_classes():
    f = LinearRegression(draw(0, 6, 2), draw(1, 6))
    noise = MinibatchNoise(f, 2)
    model, _ = count_calls(NoisyGradientDescent(f, H, noise))
    assert model.noise.landscape is model.landscape
    assert isinstance(model.landscape, FiniteSum)
    for wrapped in (Regularised(f, 0.1), VariancePenalty(f, BATCHES, 0.1), replacement_loss(f, 0.1)):
        inside = count_calls(GradientFlow(wrapped))[0].landscape
        assert type(inside) is type(wrapped)
        assert isinstance(inside.landscape, Counted)
        assert not isinstance(wrapped.landscape, Counted)
    LabelNoise(count_calls(GradientFlow(Regularised(f, 0.1)))[0].landscape, 0.1)


class Written(Flow):
    """No dataclass."""

    def __init__(self, f):
        self.f = f

    def velocity(self, t, state):
        return -self.f.grad(state)


class Stated(Written):
    """No dataclass, but it says how it is rebuilt."""

    @property
    def declared_landscapes(self):
        return (self.f,)

    def on_landscapes(self, change):
        return Stated(change(self.f))


@dataclass(frozen=True)
class Enclosed(Flow):
    gradient: object

    def velocity(self, t, state):
        return -self.gradient(state)


class Hidden(GradientNoise):
    """A noise that is no dataclass."""

    dimension = size = 2

    def __init__(self, f):
        self.f = f

    def factor(self, theta, xi):
        return self.f.grad(theta) * xi


@dataclass(frozen=True)
class Picky(Flow):
    f: Rosenbrock

    def __post_init__(self):
        if not isinstance(self.f, Rosenbrock):
            raise TypeError("only Rosenbrock's")

    def velocity(self, t, state):
        return -self.f.grad(state)


@dataclass(frozen=True)
class Derived(Flow):
    source: object
    f: Landscape = field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "f", self.source["f"])

    def velocity(self, t, state):
        return -self.f.grad(state)


def enclosing(f):
    def gradient(theta):
        return f.grad(theta)

    return gradient


ROSENBROCK = Rosenbrock(b=5.0)
UNKNOWN = {
    "no dataclass": lambda: Written(ROSENBROCK),
    "closure": lambda: Enclosed(enclosing(Rosenbrock(b=5.0))),
    "method": lambda: Enclosed(ROSENBROCK.grad),
    "partial": lambda: Enclosed(functools.partial(Landscape.grad, ROSENBROCK)),
    "no landscape": lambda: Enclosed(lambda theta: theta),
    "noise": lambda: NoisyModifiedEquation(ROSENBROCK, H, Hidden(ROSENBROCK)),
    "one class only": lambda: Picky(ROSENBROCK),
    "inside a flow": lambda: Wrapping(Written(ROSENBROCK)),
}


@dataclass(frozen=True)
class Wrapping(Flow):
    inner: Flow

    def velocity(self, t, state):
        return self.inner.velocity(t, state)


@pytest.mark.parametrize("case", UNKNOWN)
def test_a_cost_that_cannot_be_known_has_no_oracle_calls(case):
    run = run_flow(UNKNOWN[case]())
    assert run.status == "finished"
    assert run.cost.keys() == {"evaluations"}


def test_derived_fields_follow_the_constructor():
    run = run_flow(Derived({"f": ROSENBROCK}))
    assert run.cost["grad"] == 2 * run.cost["evaluations"] > 0  # two members


def test_a_model_that_is_no_dataclass_may_say_how_it_is_rebuilt():
    run = run_flow(Wrapping(Stated(ROSENBROCK)))
    assert run.cost["grad"] == 2 * run.cost["evaluations"] > 0


def test_the_diagnosis_of_a_failure_is_not_billed():
    f = Quadratic(torch.diag(torch.tensor([9.0, 1.0], dtype=torch.float64)))
    for landscape in (f, Regularised(f, 0.0)):
        run = descend(GradientDescent(landscape, 1e200), START[0], 9)
        assert run.status == "diverged"
        assert "λ = 9" in run.status.sentence
        assert (run.cost["grad"], run.cost["hvp"]) == (run.cost["steps"], 0)


NAMES = st.from_regex(r"[a-z][a-z_]{0,7}", fullmatch=True).filter(
    lambda name: not keyword.iskeyword(name) and not hasattr(StochasticFlow, name)
)


@given(st.lists(NAMES, min_size=3, max_size=3, unique=True))
def test_the_bill_does_not_depend_on_the_names_of_fields(names):
    f, number, inner = names

    def velocity(self, t, state):
        return -getattr(self, f).grad(state) + 0 * getattr(self, inner).velocity(t, state) * getattr(self, number)

    renamed = make_dataclass(
        "Renamed",
        [(f, Landscape), (number, float), (inner, Flow)],
        bases=(Flow,),
        frozen=True,
        namespace={"velocity": velocity},
    )
    run = integrate(
        renamed(ROSENBROCK, 0.5, ModifiedFlow(ROSENBROCK, H, 2)), START[0], [0.0, 0.1], method="euler", dt=0.1
    )
    assert billed(run.cost) == {"grad": 2.0, "hvp": 1.0}


def test_the_recount_recounts():
    f = valley()
    point = f.expand(START)
    point.hvp(point.grad)
    point.along(point.grad).hvp(point.grad)
    assert recounted(f) == {"grad": 2.0, "hvp": 2.0, "third": 2.0}
    assert_close(point.hessian(), f.inner.hessian(START))
    assert recounted(f)["hvp"] == 6.0
