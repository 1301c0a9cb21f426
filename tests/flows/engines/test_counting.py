"""The bill of a run is a recount by the landscape itself: every flow, descent, noise and wrapper, every field name."""

import functools
import keyword
from dataclasses import dataclass, field, make_dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

import flows
from flows import (
    SVAG,
    SVRG,
    ControlledGradientDescent,
    ControlledMomentumDescent,
    Descent,
    DriftAdjustedDescent,
    EpochFlow,
    Flow,
    GradientDescent,
    GradientFlow,
    HeavyBall,
    HeavyBallPrincipalFlow,
    IncrementalGradientDescent,
    LangevinFlow,
    MinibatchNoise,
    ModifiedFlow,
    ModifiedHeavyBallFlow,
    ModifiedNesterovFlow,
    ModifiedRungeKuttaFlow,
    MomentumModifiedEquation,
    MomentumOrnsteinUhlenbeck,
    Nesterov,
    NesterovPrincipalFlow,
    NoisyGradientDescent,
    NoisyModifiedEquation,
    NoisyMomentumEquation,
    OptimizerDescent,
    OrnsteinUhlenbeck,
    PrincipalFlow,
    ReducedHeavyBallFlow,
    ReducedNesterovFlow,
    RungeKuttaDescent,
    ScaledHeavyBall,
    ScaledNesterov,
    ScaledStochasticHeavyBall,
    ScheduledGradientDescent,
    ScheduledStochasticGradientDescent,
    StochasticDescent,
    StochasticDriftAdjustedDescent,
    StochasticFlow,
    StochasticGradientDescent,
    StochasticHeavyBall,
    StochasticModifiedEquation,
    Stratonovich,
    TorchMomentumEquation,
    TorchMomentumFlow,
    TruncatedPrincipalFlow,
    UnderdampedLangevinFlow,
    descend,
    integrate,
)
from flows.descent import MinibatchDescent
from flows.engines.counting import count_calls
from flows.series import runge_kutta
from landscapes import Counted, FiniteSum, Landscape, LinearRegression, Quadratic, Regularised, Rosenbrock
from landscapes.noise import GradientNoise, LabelNoise
from landscapes.noise.surrogates import DiagonalSurrogate, FrozenNoise, IsotropicSurrogate
from landscapes.noise.variance_reduced import VarianceReducedNoise
from landscapes.wrappers import Rotated
from landscapes.wrappers.gradient_penalties import GradientPenalty, VariancePenalty
from landscapes.wrappers.modified_losses import (
    LandscapeSum,
    modified_loss,
    random_partition_loss,
    replacement_loss,
    reshuffling_loss,
)
from tests.flows.recount import Recount, RecountSum, billed, recounted
from tests.tensors import draw

H, MU = 0.01, 0.5
START = torch.tensor([[0.4, -0.3], [0.1, 0.2]], dtype=torch.float64)
BATCHES = torch.arange(6).reshape(3, 2)
MIDPOINT = runge_kutta([[0, 0], [Fraction(1, 2), 0]], [0, 1])
TURN = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)


def valley():
    return Recount(Rosenbrock(b=5.0))


def regression():
    return RecountSum(LinearRegression(draw(0, 6, 2), draw(1, 6)))


def noise_of(f):
    return MinibatchNoise(f, 2)


SMOOTH = {
    "gradient": GradientFlow,
    "modified 2": lambda f: ModifiedFlow(f, H, 2),
    "modified 5": lambda f: ModifiedFlow(f, H, 5),
    "modified Runge-Kutta": lambda f: ModifiedRungeKuttaFlow(f, H, 3, MIDPOINT),
    "principal": lambda f: PrincipalFlow(f, H, third_order=True),
    "principal Krylov": lambda f: PrincipalFlow(f, H, krylov=2, branch="real"),
    "truncated": lambda f: TruncatedPrincipalFlow(f, H, 1),
    "heavy ball": lambda f: ModifiedHeavyBallFlow(f, H, MU, 3),
    "Nesterov": lambda f: ModifiedNesterovFlow(f, H, MU, 3),
    "reduced heavy ball": lambda f: ReducedHeavyBallFlow(f, H, 0.5, 3),
    "reduced Nesterov": lambda f: ReducedNesterovFlow(f, H, 0.5, 3),
    "principal heavy ball": lambda f: HeavyBallPrincipalFlow(f, H, 0.5),
    "principal Nesterov": lambda f: NesterovPrincipalFlow(f, H, 0.5),
    "torch": lambda f: TorchMomentumFlow(ModifiedHeavyBallFlow(f, 0.1, 5.0, 2), 0.02, 0.5, dampening=0.5),
}
EXAMPLES = {"epoch": lambda f: EpochFlow(f, H, BATCHES)}
NOISY = {
    "Langevin": lambda f: LangevinFlow(f, 0.1),
    "underdamped": lambda f: UnderdampedLangevinFlow(f, 0.1, 1.0),
    "SME 1": lambda f: StochasticModifiedEquation(f, H, 2),
    "SME 2": lambda f: StochasticModifiedEquation(f, H, 2, 2),
    "Stratonovich": lambda f: Stratonovich(StochasticModifiedEquation(f, H, 2)),
    "noisy": lambda f: NoisyModifiedEquation(f, H, noise_of(f), 2),
    "noisy isotropic": lambda f: NoisyModifiedEquation(f, H, IsotropicSurrogate(noise_of(f))),
    "noisy diagonal": lambda f: NoisyModifiedEquation(f, H, DiagonalSurrogate(noise_of(f))),
    "noisy frozen": lambda f: NoisyModifiedEquation(f, H, FrozenNoise(noise_of(f), START[0])),
    "noisy reduced": lambda f: NoisyModifiedEquation(f, H, VarianceReducedNoise(f, 2, START[0])),
    "noisy momentum": lambda f: NoisyMomentumEquation(f, H, MU, noise_of(f), 2),
    "momentum": lambda f: MomentumModifiedEquation(f, H, MU, 2, 2),
    "torch momentum": lambda f: TorchMomentumEquation(MomentumModifiedEquation(f, 0.1, 5.0, 2), 0.01, 0.5),
}
PLAIN = {
    "gradient": lambda f: GradientDescent(f, H),
    "heavy ball": lambda f: HeavyBall(f, H, 0.5),
    "heavy ball, dampening": lambda f: HeavyBall(f, H, 0.5, 0.2),
    "Nesterov": lambda f: Nesterov(f, H, 0.5),
    "scaled heavy ball": lambda f: ScaledHeavyBall(f, H, MU),
    "scaled Nesterov": lambda f: ScaledNesterov(f, H, MU),
    "Runge-Kutta": lambda f: RungeKuttaDescent(f, H, MIDPOINT),
    "scheduled": lambda f: ScheduledGradientDescent(f, H, lambda t: 1.0),
    "Adam": lambda f: OptimizerDescent(f, lambda p: torch.optim.Adam(p, lr=H)),
    "LBFGS": lambda f: OptimizerDescent(f, lambda p: torch.optim.LBFGS(p, lr=H)),
    "drift": lambda f: DriftAdjustedDescent(f, H, power=0.0),
}
MINI = {
    "SGD": lambda f: StochasticGradientDescent(f, H, 2),
    "noisy": lambda f: NoisyGradientDescent(f, H, noise_of(f)),
    "incremental": lambda f: IncrementalGradientDescent(f, H, BATCHES),
    "heavy ball": lambda f: StochasticHeavyBall(f, H, 0.5, 2),
    "scaled": lambda f: ScaledStochasticHeavyBall(f, H, MU, 2),
    "scheduled": lambda f: ScheduledStochasticGradientDescent(f, H, 2, lambda t: 1.0),
    "SVAG": lambda f: SVAG(f, H, 2, 3),
    "SVRG": lambda f: SVRG(f, H, 2, 2),
    "cSGD": lambda f: ControlledGradientDescent(f, H, 2),
    "cMSGD": lambda f: ControlledMomentumDescent(f, H, 2),
    "drift": lambda f: StochasticDriftAdjustedDescent(f, H, 2, power=0.0),
}


def run_flow(flow, theta0=START):
    if isinstance(flow, StochasticFlow):
        return integrate(flow, theta0, [0.0, 0.04], dt=H, seed=1, method="euler")
    return integrate(flow, theta0, [0.0, 0.04], rtol=1e-4)


def run_descent(descent, theta0=START):
    return descend(descent, theta0, 5, seed=1)


FLOWS = [
    (make, f) for table, f in ((SMOOTH, valley), (EXAMPLES, regression), (NOISY, regression)) for make in table.values()
]
DESCENTS = [(make, f) for table, f in ((PLAIN, valley), (MINI, regression)) for make in table.values()]
MODELS = [(make, f, run_flow) for make, f in FLOWS] + [(make, f, run_descent) for make, f in DESCENTS]


def test_every_exported_class_is_here():
    here = {type(make(f())) for make, f in FLOWS + DESCENTS}
    bases = {Flow, StochasticFlow, Descent, StochasticDescent, MinibatchDescent}
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


@pytest.mark.parametrize("flow", EACH)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_products_inside_wrappers_are_billed(wrapper, flow):
    landscape, wrap = WRAPPERS[wrapper]
    f = landscape()
    wrapped = wrap(f)
    f.tally.clear()
    found = run_flow(EACH[flow](wrapped))
    assert billed(found.cost) == pytest.approx(recounted(f))
    assert torch.equal(found.theta, run_flow(EACH[flow](wrap(f.inner))).theta)


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
