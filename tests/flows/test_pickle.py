"""Pickle, deepcopy and pools of processes: results, landscapes, flows and descents come back equal."""

import copy
import functools
import multiprocessing
import pickle

import pytest
import sympy
import torch

from flows import (
    GradientDescent,
    GradientFlow,
    Status,
    StochasticFlow,
    StochasticGradientDescent,
    Trajectory,
    compare,
    descend,
)
from flows.comparison import Comparison
from flows.ensembles import Ensemble, Observable, WeakOrderStudy, ensemble, weak_order
from flows.ensembles.quantiles import Quantiles
from flows.ensembles.statistics import Histogram
from flows.models.stochastic import StochasticModifiedEquation
from landscapes import (
    Counted,
    GradientPenalty,
    LandscapeSum,
    LinearRegression,
    NoisyQuadratic,
    Regularised,
    Rosenbrock,
    TwoQuadratics,
    VariancePenalty,
    from_sympy,
)
from landscapes.toys.registry import LANDSCAPES
from landscapes.wrappers.rotated import Rotated
from nets import GhostBatchLandscape, HolomorphicNetworkLandscape, NetworkLandscape, cross_entropy
from scripts.lab.models import DESCENTS, FLOWS, NUMBERED, Options, descent_by_name, flow_by_name

AGAIN = {"pickle": lambda value: pickle.loads(pickle.dumps(value)), "deepcopy": copy.deepcopy}
SUM = TwoQuadratics()
EYE = torch.eye(2, dtype=torch.float64)


def symbolic():
    x, y = sympy.symbols("x y")
    return from_sympy(sympy.exp(x * y) + sympy.Abs(x) ** 3, (x, y))


def layers(*more):
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 5), *more, torch.nn.Tanh(), torch.nn.Linear(5, 4))


DATA = (torch.arange(60.0).reshape(20, 3) / 60, torch.arange(20) % 4)
MADE = {
    **LANDSCAPES,
    "symbolic": symbolic,
    "sum": lambda: SUM,
    "restricted": lambda: SUM.restrict(torch.tensor([1])),
    "regression": lambda: LinearRegression(DATA[0].double(), DATA[1].double()),
    "noisy quadratic": lambda: NoisyQuadratic(EYE, 5, 0),
    "counted": lambda: Counted(Rosenbrock()),
    "counted sum": lambda: Counted(SUM),
    "regularised": lambda: Regularised(Rosenbrock(), 0.1),
    "regularised sum": lambda: Regularised(SUM, 0.1),
    "regularised symbolic": lambda: Regularised(symbolic(), 0.1),
    "gradient penalty": lambda: GradientPenalty(Rosenbrock(), 0.1),
    "gradient penalty sum": lambda: GradientPenalty(SUM, 0.1),
    "penalised part": lambda: GradientPenalty(SUM, 0.1).restrict(torch.tensor([0])),
    "variance penalty": lambda: VariancePenalty(SUM, torch.arange(2)[:, None], 0.1),
    "landscape sum": lambda: LandscapeSum([Rosenbrock(), SUM]),
    "rotated": lambda: Rotated(Rosenbrock(), EYE),
    "network": lambda: NetworkLandscape(layers(torch.nn.BatchNorm1d(5)).eval(), cross_entropy, *DATA),
    "ghost batches": lambda: GhostBatchLandscape(layers(torch.nn.BatchNorm1d(5)), cross_entropy, *DATA, 5),
    "holomorphic network": lambda: HolomorphicNetworkLandscape(layers(), cross_entropy, *DATA),
}


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("name", MADE)
def test_a_landscape_comes_back(name, again):
    landscape = MADE[name]()
    dtype = landscape.theta0.dtype if isinstance(landscape, NetworkLandscape) else torch.float64
    theta = torch.linspace(0.1, 0.4, landscape.dimension, dtype=dtype)
    expected = landscape.loss(theta), landscape.grad(theta), landscape.hvp(theta, theta)  # programs are compiled now
    found = again(landscape)
    assert type(found) is type(landscape)
    assert all(map(torch.equal, (found.loss(theta), found.grad(theta), found.hvp(theta, theta)), expected))
    assert found.description() == landscape.description()


OPTIONS = Options(batch_size=1)
FLOW_NAMES = [*FLOWS, *(f"{family}-2" for family in NUMBERED)]


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("name", FLOW_NAMES)
def test_a_flow_comes_back(name, again):
    flow = flow_by_name(name, SUM, 0.05, OPTIONS)
    state = flow.start(torch.tensor([0.5, -0.3], dtype=torch.float64))
    found = again(flow)
    assert torch.equal(found.velocity(0.0, state), flow.velocity(0.0, state))
    if isinstance(flow, StochasticFlow):
        noise = torch.ones(flow.noise_size, dtype=torch.float64)
        assert torch.equal(found.diffusion(0.0, state, noise), flow.diffusion(0.0, state, noise))


@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("name", [*DESCENTS, "Adam", "SGD"])
def test_a_descent_comes_back(name, again):
    descent = descent_by_name(name, SUM, 0.05, OPTIONS)
    theta0 = torch.tensor([0.5, -0.3], dtype=torch.float64)
    assert torch.equal(descend(again(descent), theta0, 4, seed=1).theta, descend(descent, theta0, 4, seed=1).theta)


@pytest.mark.parametrize("again", [*AGAIN.values(), copy.copy], ids=[*AGAIN, "copy"])
def test_a_status_comes_back(again):
    status = Status("diverged", "why — and the remedy")
    found = again(status)
    assert type(found) is Status
    assert (found, found.sentence) == (status, status.sentence)


def square(theta):
    return theta.square().sum(dim=-1)


@functools.cache
def results():
    """One result of each class, and its words."""
    flow = StochasticModifiedEquation(SUM, 0.1, 1)
    descent = StochasticGradientDescent(SUM, 0.1, 1)
    theta0 = torch.ones(2, dtype=torch.float64)
    seen = Observable(square, [Quantiles([0.1, 0.5]), Histogram([0.0, 1.0, 2.0])])
    pair = (lambda h: StochasticModifiedEquation(SUM, h, 1), lambda h: StochasticGradientDescent(SUM, h, 1))
    return {
        Trajectory: descend(GradientDescent(SUM, 0.1), theta0, 3),
        Comparison: compare(descent, {"flow": GradientFlow(SUM), "sde": flow}, theta0, 3, runs=3, coupled=True),
        Ensemble: ensemble(flow, theta0, [0.0, 0.1, 0.2], paths=30, seed=1, dt=0.1, observables={"square": seen}),
        WeakOrderStudy: weak_order(*pair, theta0, 0.4, [0.2, 0.1], paths=20, seed=1, observables={"square": square}),
    }


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("again", AGAIN.values(), ids=AGAIN)
@pytest.mark.parametrize("kind", [Trajectory, Comparison, Ensemble, WeakOrderStudy])
def test_a_result_comes_back(kind, again):
    result = results()[kind]
    found = again(result)
    assert type(found) is kind
    if kind is Trajectory:
        assert torch.equal(found.theta, result.theta)
    else:
        assert str(found) == str(result)
    assert dict(found.configuration) == dict(result.configuration) if kind is not Comparison else True


@pytest.mark.parametrize("method", multiprocessing.get_all_start_methods())
def test_a_pool_of_descents_returns(method):
    if method == "forkserver":
        pytest.skip("forkserver starts a worker from pickles, as spawn does, which runs")
    run = functools.partial(descend, GradientDescent(Rosenbrock(), 0.001), steps=5)
    starts = [torch.tensor([0.1 * i, 0.2], dtype=torch.float64) for i in range(3)]
    with multiprocessing.get_context(method).Pool(1) as pool:
        found = pool.map_async(run, starts).get(timeout=120)
    for start, trajectory in zip(starts, found, strict=True):
        assert torch.equal(trajectory.theta, run(start).theta)
        assert trajectory.status.sentence == run(start).status.sentence
