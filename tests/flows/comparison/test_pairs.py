"""Flow and descent as a pair: rates of any name, clocks of momentum, notes on rules and landscapes, costs not known."""

import re
from dataclasses import dataclass

import pytest
import sympy
import torch

from flows import (
    SVAG,
    SVRG,
    Clock,
    Descent,
    Flow,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    HeavyBallPrincipalFlow,
    LangevinFlow,
    ModifiedFlow,
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    Nesterov,
    NesterovPrincipalFlow,
    OptimizerDescent,
    ReducedHeavyBallFlow,
    RungeKuttaDescent,
    ScaledHeavyBall,
    ScaledNesterov,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    Stratonovich,
    TruncatedPrincipalFlow,
    UnderdampedLangevinFlow,
    compare,
    integrate,
)
from flows.comparison.pairs import notes_on_pair
from flows.series import EULER
from landscapes import Landscape, LinearRegression, Quadratic, Regularised, Rosenbrock, from_sympy
from landscapes.wrappers.gradient_penalties import VariancePenalty
from landscapes.wrappers.modified_losses import modified_loss, reshuffling_loss
from tests.flows.recount import Recount, RecountSum, billed, recounted
from tests.tensors import draw

HESSIAN = torch.tensor([[3.0, 0.5], [0.5, 1.0]], dtype=torch.float64)
BOWL = Quadratic(HESSIAN)
START = torch.tensor([-0.5, 0.7], dtype=torch.float64)
LR, BETA = 0.01, 0.9
ROOT = 0.1  # √LR, with friction 1


def sum_of_examples():
    return LinearRegression(draw(0, 6, 2), draw(1, 6))


@dataclass(frozen=True)
class Own(Flow):
    """The modified flow of order 2 by a difference, under names of its own."""

    f: Landscape
    eta: float

    def velocity(self, t, state):
        return -self.f.grad(state + self.eta / 2 * self.f.grad(state))


def named(name):
    """A flow whose learning rate has another name."""

    class Rated(Flow):
        def velocity(self, t, state):
            return -self.f.grad(state)

    return dataclass(frozen=True)(type("Rated", (Rated,), {"__annotations__": {"f": Landscape, name: float}}))


@dataclass(frozen=True)
class Stated(Own):
    """Its rate is a member."""

    @property
    def rate(self):
        return self.eta


@dataclass(frozen=True)
class Around(Flow):
    """A wrapper without a rate of its own."""

    inner: Flow

    def velocity(self, t, state):
        return self.inner.velocity(t, state)


@dataclass(frozen=True)
class Plain(Flow):
    """It says that it has no learning rate."""

    ground: Landscape

    @property
    def declared_clock(self):
        return Clock(free=True)

    def velocity(self, t, state):
        return -self.ground.grad(state)


def test_the_cost_of_fields_of_any_name_is_counted_and_an_undeclared_rate_is_noted():
    f = Recount(BOWL)
    result = compare(GradientDescent(BOWL, LR), {"own": Own(f, LR)}, START, 4)
    cost = result.cost["own"]
    assert cost["grad"] == 2 * cost["evaluations"] > 0
    (note, other) = result.rows["own"].notes
    assert note.startswith("rate not declared")
    assert "Recount" in other
    assert note in str(result)


@pytest.mark.parametrize("name", ["h", "lr", "learning_rate"])
def test_a_rate_of_any_of_these_names_must_agree(name):
    flow = named(name)
    with pytest.raises(ValueError, match=rf"{name} of Rated is 0\.5, of the descent 0\.01: they must agree"):
        compare(GradientDescent(BOWL, LR), [flow(BOWL, 0.5)], START, 2)
    assert compare(GradientDescent(BOWL, LR), [flow(BOWL, LR)], START, 2).rows["Rated"].notes == ()


def test_the_member_rate_and_the_rate_of_an_inner_flow_must_agree():
    for wrong in (Stated(BOWL, 0.5), Around(Stated(BOWL, 0.5)), Around(ModifiedFlow(BOWL, 0.5, 2))):
        with pytest.raises(ValueError, match=r"is 0\.5, of the descent 0\.01"):
            compare(GradientDescent(BOWL, LR), {"A": wrong}, START, 2)
    for flow in (Stated(BOWL, LR), Around(Stated(BOWL, LR)), Plain(BOWL), Around(Plain(BOWL))):
        assert compare(GradientDescent(BOWL, LR), {"A": flow}, START, 2).rows["A"].notes == ()
    assert any("rate not declared" in n for n in notes_on_pair(Around(Own(BOWL, LR)), GradientDescent(BOWL, LR)))


REGRESSION = sum_of_examples()
X, Y = sympy.symbols("x y")
BATCHES = torch.arange(6).reshape(3, 2)
SOUND = {
    "gradient": (GradientFlow(BOWL), GradientDescent(BOWL, LR)),
    "equal landscapes": (GradientFlow(Quadratic(HESSIAN.clone())), GradientDescent(BOWL, LR)),
    "equal symbolic ones": tuple(
        make(from_sympy(X**2 + X * Y + Y**2, (X, Y)), *rate)
        for make, rate in ((GradientFlow, ()), (GradientDescent, (LR,)))
    ),
    "modified": (ModifiedFlow(BOWL, LR, 3), GradientDescent(BOWL, LR)),
    "penalised": (GradientFlow(modified_loss(BOWL, LR)), GradientDescent(BOWL, LR)),
    "truncated": (TruncatedPrincipalFlow(BOWL, LR, 1), GradientDescent(BOWL, LR)),
    "Runge-Kutta": (GradientFlow(BOWL), RungeKuttaDescent(BOWL, LR, EULER)),
    "SME": (StochasticModifiedEquation(REGRESSION, LR, 2), StochasticGradientDescent(REGRESSION, LR, 2)),
    "Stratonovich": (Stratonovich(StochasticModifiedEquation(REGRESSION, LR, 2)), SVAG(REGRESSION, LR, 2, 3)),
    "Langevin": (LangevinFlow(REGRESSION, 0.1), SVRG(REGRESSION, LR, 2, 2)),
    "inertia": (UnderdampedLangevinFlow(BOWL, 0.1, 1.0), ScaledHeavyBall(BOWL, ROOT, 1.0)),
    "reshuffling": (
        GradientFlow(reshuffling_loss(REGRESSION, LR, BATCHES)),
        StochasticGradientDescent(REGRESSION, LR, 2),
    ),
    "variance": (GradientFlow(VariancePenalty(REGRESSION, BATCHES, 0.1)), StochasticGradientDescent(REGRESSION, LR, 2)),
    "heavy ball": (HeavyBallPrincipalFlow(BOWL, LR, BETA), HeavyBall(BOWL, LR, BETA)),
    "reduced": (ReducedHeavyBallFlow(BOWL, LR, BETA), HeavyBall(BOWL, LR, BETA)),
    "Nesterov": (NesterovPrincipalFlow(BOWL, LR, BETA), Nesterov(BOWL, LR, BETA)),
    "scaled": (ModifiedHeavyBallFlow(BOWL, ROOT, 1.0, 2), ScaledHeavyBall(BOWL, ROOT, 1.0)),
    "scaled Nesterov": (ModifiedNesterovFlow(BOWL, ROOT, 1.0, 2), ScaledNesterov(BOWL, ROOT, 1.0)),
    "no momentum": (GradientFlow(BOWL), HeavyBall(BOWL, LR, 0.0)),
    "torch's SGD": (GradientFlow(BOWL), OptimizerDescent(BOWL, lambda p: torch.optim.SGD(p, lr=LR))),
    "torch's momentum": (
        ReducedHeavyBallFlow(BOWL, LR, BETA),
        OptimizerDescent(BOWL, lambda p: torch.optim.SGD(p, lr=LR, momentum=BETA)),
    ),
}


@pytest.mark.parametrize("name", SOUND)
def test_a_sound_pair_has_no_notes(name):
    assert notes_on_pair(*SOUND[name]) == ()


def adam(parameters):
    return torch.optim.Adam(parameters, lr=LR)


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=LR, momentum=BETA)


def nesterov(parameters):
    return torch.optim.SGD(parameters, lr=LR, momentum=BETA, nesterov=True)


UNSOUND = {
    "momentum": (GradientFlow(BOWL), HeavyBall(BOWL, LR, BETA), "1/(1 − β) = 10 times too slow"),
    "Nesterov": (ModifiedFlow(BOWL, LR, 2), Nesterov(BOWL, LR, BETA), "1/(1 − β) = 10 times too slow"),
    "dampening": (GradientFlow(BOWL), HeavyBall(BOWL, LR, BETA, 0.5), "(1 − τ)/(1 − β) = 5 times too slow"),
    "torch": (GradientFlow(BOWL), OptimizerDescent(BOWL, momentum), "1/(1 − β) = 10 times too slow"),
    "Adam": (GradientFlow(BOWL), OptimizerDescent(BOWL, adam), "no model of OptimizerDescent.*Adam"),
    "scaled": (GradientFlow(BOWL), ScaledHeavyBall(BOWL, ROOT, 1.0), "no model of ScaledHeavyBall"),
    "heavy ball for Nesterov": (
        HeavyBallPrincipalFlow(BOWL, LR, BETA),
        Nesterov(BOWL, LR, BETA),
        "no model of Nesterov",
    ),
    "heavy ball for nothing": (
        ReducedHeavyBallFlow(BOWL, LR, BETA),
        GradientDescent(BOWL, LR),
        "no model of GradientDescent",
    ),
    "scaled for nothing": (
        ModifiedHeavyBallFlow(BOWL, LR, 1.0, 1),
        GradientDescent(BOWL, LR),
        "no model of GradientDescent",
    ),
    "another momentum": (
        HeavyBallPrincipalFlow(BOWL, LR, 0.5),
        HeavyBall(BOWL, LR, BETA),
        "momentum is 0.5.*descent's 0.9",
    ),
    "another class": (GradientFlow(Rosenbrock()), GradientDescent(BOWL, LR), "Rosenbrock, the descent's Quadratic"),
    "another object": (
        GradientFlow(Quadratic(2 * HESSIAN)),
        GradientDescent(BOWL, LR),
        "Quadratic, the descent's another Quadratic",
    ),
    "inside": (
        GradientFlow(Regularised(Rosenbrock(), 1)),
        GradientDescent(Regularised(BOWL, 1), LR),
        "another landscape",
    ),
}


@pytest.mark.parametrize("name", UNSOUND)
def test_other_pairs_have_a_note(name):
    flow, descent, text = UNSOUND[name]
    result = compare(descent, {"flow": flow}, START, 2)
    pattern = text if ".*" in text else re.escape(text)
    assert any(re.search(pattern, note) for note in result.rows["flow"].notes)
    assert "flow: " in str(result)


def test_another_dimension_is_refused():
    with pytest.raises(
        ValueError, match=r"GradientFlow, Quadratic, has dimension 3, that of the descent, Quadratic, 2"
    ):
        compare(GradientDescent(BOWL, LR), [GradientFlow(Quadratic(torch.eye(3, dtype=torch.float64)))], START, 2)


REMEMBERING = {
    "heavy ball": HeavyBall(BOWL, LR, BETA),
    "momentum": OptimizerDescent(BOWL, momentum),
    "Nesterov": OptimizerDescent(BOWL, nesterov),
    "Adam": OptimizerDescent(BOWL, adam),
    "LBFGS": OptimizerDescent(BOWL, lambda p: torch.optim.LBFGS(p, lr=LR)),
}


@pytest.mark.parametrize("name", REMEMBERING)
def test_one_step_errors_are_blank_where_the_flow_lacks_the_descents_memory(name):
    result = compare(REMEMBERING[name], {"GF": GradientFlow(BOWL), "own": Own(BOWL, LR)}, START, 3)
    for row in result.rows.values():
        assert bool(row.one_step.isnan().all())
        assert any("memory" in note for note in row.notes)
    cells = str(result).splitlines()[3].split()
    assert cells[0] == "GF"
    assert "nan" not in cells


class SignDescent(torch.optim.Optimizer):
    """θ − lr·sign g: an optimiser without memory."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": LR})

    def step(self, closure=None):
        with torch.no_grad():
            for p in self.param_groups[0]["params"]:
                p.sub_(LR * p.grad.sign())


def test_an_optimiser_without_memory_has_one_step_errors():
    result = compare(OptimizerDescent(BOWL, SignDescent), {"GF": GradientFlow(BOWL)}, START, 3)
    assert bool(result.one_step["GF"].isfinite().all())
    assert "takes steps of SignDescent" in result.rows["GF"].notes[0]


@dataclass(frozen=True)
class Slaved(Plain):
    """It says that it models heavy ball, and needs no velocity."""

    @property
    def declared_clock(self):
        return Clock(rule="heavy ball", momentum=BETA, free=True)


def test_a_flow_that_states_the_rule_of_the_descent_has_one_step_errors():
    result = compare(HeavyBall(BOWL, LR, BETA), {"own": Slaved(BOWL)}, START, 3)
    assert result.rows["own"].notes == ()
    assert bool(result.one_step["own"].isfinite().all())


class Written(Flow):
    """No dataclass, so that its calls cannot be counted."""

    def __init__(self, f):
        self.f = f

    def velocity(self, t, state):
        return -self.f.grad(state)


@dataclass(frozen=True)
class Bare(Flow):
    """No landscape at all."""

    def velocity(self, t, state):
        return -state


def test_a_cost_that_is_not_known_is_a_dash_with_a_note():
    flows = {"written": Written(BOWL), "bare": Bare(), "known": GradientFlow(BOWL)}
    result = compare(GradientDescent(BOWL, LR), flows, START, 2)
    lines = {line.split()[0]: line for line in str(result).splitlines()[2:6]}
    for name in ("written", "bare"):
        assert lines[name].split()[-4:] == ["–", "–", "–", "finished"]
        assert result.cost[name].keys() == {"evaluations"}
        assert f"{name}: cost not known (–)" in str(result)
    assert "–" not in lines["known"]
    assert "known: cost" not in str(result)


def test_every_cost_of_a_comparison_is_a_recount():
    flows = {
        "GF": GradientFlow,
        "MF": lambda f: ModifiedFlow(f, LR, 3),
        "ML": lambda f: GradientFlow(modified_loss(f, LR)),
    }
    for name, make in flows.items():
        f = Recount(Rosenbrock(b=5.0))
        known = compare(GradientDescent(f.inner, LR), {name: make(f.inner)}, START, 3)
        assert set(known.cost) == {name, "GradientDescent"}
        f.tally.clear()
        flow = make(f)
        run = compare(GradientDescent(f.inner, LR), {name: flow}, START, 3)
        assert run.cost == known.cost
        f.tally.clear()
        again = integrate(flow, START, run.times, max_steps=2000)
        assert billed(again.cost) == recounted(f)
        assert again.cost == run.cost[name]
    g = RecountSum(sum_of_examples())
    sgd = compare(StochasticGradientDescent(g, LR, 2), {"GF": GradientFlow(g.inner)}, START, 3, runs=2)
    assert sgd.cost["StochasticGradientDescent"]["grad"] == pytest.approx(3 * 2 * 2 / 6)


@dataclass(frozen=True)
class RenamedDescent(Descent):
    """θ' = θ − lr ∇f, with fields of other names than the library's."""

    loss_surface: Landscape
    lr: float

    def step(self, state, k, generator):
        return torch.add(state, self.loss_surface.grad(state), alpha=-self.lr)


def test_a_descent_whose_fields_have_other_names():
    """The clock, the cost and the comparison are those of gradient descent."""
    valley, theta0 = Rosenbrock(), torch.tensor([0.0, 0.5], dtype=torch.float64)
    mine, known = (
        compare(descent, [ModifiedFlow(valley, 0.002, 2)], theta0, 5)
        for descent in (RenamedDescent(valley, 0.002), GradientDescent(valley, 0.002))
    )
    assert torch.equal(mine.times, known.times)
    assert torch.equal(mine.errors["ModifiedFlow order 2"], known.errors["ModifiedFlow order 2"])
    assert mine.cost["RenamedDescent"] == known.cost["GradientDescent"]
    with pytest.raises(ValueError, match=r"h of ModifiedFlow order 2 is 0\.003, of the descent 0\.002"):
        compare(RenamedDescent(valley, 0.002), [ModifiedFlow(valley, 0.003, 2)], theta0, 5)
    with pytest.raises(TypeError, match="RenamedDescent must declare its learning rate"):
        compare(RenamedDescent(valley, None), [GradientFlow(valley)], theta0, 5)
