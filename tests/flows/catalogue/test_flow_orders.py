"""Orders, exactness and radii that the rows of the flows state, measured against the descents that they name."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch

from flows import GradientFlow, OrnsteinUhlenbeck, StochasticDescent, StochasticFlow, integrate
from flows.catalogue.descents import DESCENTS, DRIFT_ADJUSTED, FRICTION, MOMENTUM, SIZE
from flows.catalogue.flows import FLOWS
from flows.catalogue.rows import evaluate, substitute
from flows.steady.ornstein_uhlenbeck import linear_momentum_at, linear_sgd_at
from landscapes import NoisyQuadratic, Quadratic
from landscapes.noise import IsotropicNoise, MinibatchNoise
from tests.flows.catalogue.cases import FLOW_ROWS, FOLLOWING, RIPPLES, THETA0
from tests.flows.drift import Drift

ONE_STEP, HIGH = (0.1, 0.05, 0.025), (0.2, 0.1, 0.05)  # the coarser ladder where errors are small
ROUNDING = 1e-12
SETTLE = 0.4  # the time at which a descent's transient of size β^k is over
DENSE = [name for name in FOLLOWING if "krylov" not in name]  # a Krylov space gives the same field: see below
following = pytest.mark.parametrize("name", DENSE)


def mean_of(descent):
    return descent.full_batch() if isinstance(descent, StochasticDescent) else descent


def deterministic(flow):
    return Drift(flow) if isinstance(flow, StochasticFlow) else flow


def gap(flow, descent, settled, steps, theta0=THETA0):
    """‖X − θ‖ after ``steps`` steps of the descent, both starting from its state after ``settled`` steps."""
    state, generator = descent.start(theta0), torch.Generator()
    for k in range(settled):
        state = descent.step(state, k, generator)
    start, begin = descent.position(state), descent.elapsed(settled, state)
    for k in range(settled, settled + steps):
        state = descent.step(state, k, generator)
    time = descent.elapsed(settled + steps, state) - begin
    tight = {"method": "dopri8", "rtol": 1e-12, "atol": 1e-14, "first_step": time / steps}
    end = integrate(flow, start, [0.0, time], keep="last", **tight)
    assert end.status == "finished"
    return float(torch.linalg.vector_norm(end.theta[-1] - descent.position(state)))


def slope(ladder, errors):
    """The order between the two finest rungs that are above rounding."""
    above = [(h, error) for h, error in zip(ladder, errors, strict=True) if error > ROUNDING]
    (coarse, large), (fine, small) = above[-2:]
    return math.log(large / small) / math.log(coarse / fine)


@following
def test_the_one_step_error_falls_as_the_row_says(name):
    row, example = FLOW_ROWS[name]
    (other, *_) = row.descent.examples.values()
    flow = example.build(RIPPLES, 0.1)
    steps, expected = round(evaluate(row.span, flow)), order_of(row.local, flow)
    ladder = (0.02, 0.01, 0.005) if row.settles else HIGH if expected > 5 else ONE_STEP
    errors = [
        gap(
            deterministic(example.build(RIPPLES, h)),
            mean_of(other.build(RIPPLES, h)),
            round(SETTLE / h) if row.settles else 0,
            steps,
        )
        for h in ladder
    ]
    assert slope(ladder, errors) == pytest.approx(expected, abs=0.2)


def order_of(quantity, flow):
    fields = {f.name: getattr(flow, f.name) for f in dataclasses.fields(flow) if f.name in ("order", "third_order")}
    return substitute(quantity, fields)


@pytest.mark.parametrize("name", [name for name in DENSE if "real" not in name])  # the same field below the edge
def test_the_error_at_a_fixed_time_falls_as_the_row_says(name):
    row, example = FLOW_ROWS[name]
    (other, *_) = row.descent.examples.values()
    time = 0.4
    ladder = [time / n for n in ((20, 40) if row.settles else (4, 8, 16))]
    errors = [
        gap(
            deterministic(example.build(RIPPLES, h)),
            mean_of(other.build(RIPPLES, h)),
            round(SETTLE / h) if row.settles else 0,
            round(time / h),
        )
        for h in ladder
    ]
    assert slope(ladder, errors) == pytest.approx(order_of(row.whole, example.build(RIPPLES, 0.1)), abs=0.2)


ALSO = [(row, other) for row in FLOWS.values() for other in row.also]


@pytest.mark.parametrize(("row", "other"), ALSO, ids=[f"{row.name} {other.name}" for row, other in ALSO])
def test_further_descents_are_modelled_on_their_clocks(row, other):
    (example, *_), (descent, *_) = row.examples.values(), other.examples.values()

    def build(h):
        made = mean_of(descent.build(RIPPLES, h))
        return dataclasses.replace(made, cap=h) if other is DRIFT_ADJUSTED else made  # its rate is its cap

    errors = [gap(deterministic(example.build(RIPPLES, h)), build(h), 0, 1) for h in ONE_STEP]
    assert slope(ONE_STEP, errors) == pytest.approx(2, abs=0.2)


@pytest.mark.parametrize("x", [-1.5, 0.4, 0.8, 1.3, 1.9])
@pytest.mark.parametrize("name", [name for name in DENSE if FLOW_ROWS[name][0].exact])
def test_an_exact_flow_is_the_descent_on_quadratics(name, x):
    row, example = FLOW_ROWS[name]
    bowl = Quadratic(torch.diag(torch.tensor([x, 0.3], dtype=torch.float64)))
    (other, *_) = row.descent.examples.values()
    flow, descent = example.build(bowl, 1.0), other.build(bowl, 1.0)
    real = "real" in name
    edge = {"PrincipalFlow": 1.0, "NesterovPrincipalFlow": 1.0}.get(row.name, (1 + MOMENTUM**0.5) ** 2)
    if real and x > edge:
        assert gap(flow, descent, 0, 1) > 0.1  # magnitudes only, as the row says
    else:
        assert gap(flow, descent, 0, 3) < 1e-8


@pytest.mark.parametrize("name", [name for name in FOLLOWING if "krylov" in name])
def test_a_krylov_space_gives_the_field_of_the_dense_hessian(name, normal):
    example = FLOW_ROWS[name][1]
    grown = example.build(RIPPLES, 0.3)
    dense = dataclasses.replace(grown, krylov=None)
    state = grown.resume(normal(1, 3, 2), normal(2, 3, 2))
    torch.testing.assert_close(grown.velocity(0.0, state), dense.velocity(0.0, state), rtol=1e-9, atol=1e-11)


def law_of(flow, d):
    """The linear equation that a flow is on a quadratic with the minimum 0, as a law: F and C from unit states."""
    unit = torch.eye(d, dtype=torch.float64)
    drift = -flow.velocity(0.0, unit).mT
    columns = flow.diffusion(
        0.0, torch.zeros(flow.noise_size, d, dtype=torch.float64), torch.eye(flow.noise_size, dtype=torch.float64)
    )
    return OrnsteinUhlenbeck(drift, columns.mT @ columns, torch.zeros(d, dtype=torch.float64))


WEAK = [name for name in FOLLOWING if FLOW_ROWS[name][1].noise is not None and "epoch" not in name]


@pytest.mark.parametrize("name", [name for name in WEAK if "diagonal" not in name])  # its noise is not constant
def test_the_weak_error_falls_as_the_row_says(name):
    row, example = FLOW_ROWS[name]
    hessian = torch.tensor([[1.0, 0.3], [0.3, 0.6]], dtype=torch.float64)
    bowl, time = NoisyQuadratic(hessian, 12, 0), 1.0
    origin, start = torch.zeros(2, dtype=torch.float64), torch.tensor([1.2, -0.7], dtype=torch.float64)
    noise = IsotropicNoise(1.0, 2)
    if "Stochastic" in row.name or row.name == "MomentumModifiedEquation" or "mini-batch" in name:
        noise = MinibatchNoise(bowl, SIZE)
    errors, ladder = [], (0.05, 0.025, 0.0125)
    for h in ladder:
        flow = example.build(bowl, h)
        momentum = "Momentum" in row.name
        chain = (
            linear_momentum_at(bowl, origin, h, FRICTION, noise) if momentum else linear_sgd_at(bowl, origin, h, noise)
        )
        law, steps, x0 = law_of(flow, len(chain.centre)), round(time / h), flow.start(start)
        errors.append(float((second_moment(law, time, x0) - second_moment(chain, steps, x0)).abs().max()))
    assert slope(ladder, errors) == pytest.approx(order_of(row.whole, flow), abs=0.15)


def second_moment(law, t, x0):
    mean = law.mean(t, x0)
    return torch.outer(mean, mean) + law.covariance(t)


LONGEST = 9
FAMILIES = [
    name for name, (row, e) in FLOW_ROWS.items() if name.endswith("order 2") and e.noise is None and row.descent
]


def first_double_root(rate_of):
    """The least h in (0, 1) where ``rate_of`` (h) is negative, by bisection; 1 if there is none."""
    low, high = 0.0, 1.0
    if rate_of(high) > 0:
        return 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if rate_of(middle) > 0 else (low, middle)
    return low


def radius_of(row, flow, curvature):
    """The h up to which the series converges, from the row's ``valid`` for a scaled flow, the flow's radius else."""
    if row.name == "ModifiedHeavyBallFlow":
        edge = first_double_root(lambda h: (1 + math.sqrt(1 - h * FRICTION)) ** 2 - h * h * curvature)
        return min(1 / FRICTION, edge)
    if row.name == "ModifiedNesterovFlow":
        return min(1 / FRICTION, 1 / math.sqrt(curvature))
    return flow.radius / curvature


@pytest.mark.parametrize("curvature", [1.0, 9.0])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_series_converges_as_far_as_the_row_says(name, curvature):
    row, example = FLOW_ROWS[name]
    bowl = Quadratic(torch.tensor([[curvature]], dtype=torch.float64))
    flow = example.build(bowl, 1.0)
    state = flow.start(torch.ones(1, dtype=torch.float64))
    state = flow.resume(state[:1], torch.full((1,), 0.4, dtype=torch.float64))
    fields = [dataclasses.replace(flow, order=p).velocity(0.0, state) for p in range(1, LONGEST + 1)]
    terms = [float((b - a).norm()) for a, b in pairwise(fields)]  # of h, h², … at h = 1
    powers = torch.arange(1, LONGEST, dtype=torch.float64)
    # log|term_n| = n log(1/R) + a log n + b for a singularity of any kind on the circle of radius R
    design = torch.stack([powers, powers.log(), torch.ones_like(powers)], dim=1)[2:]
    fit = torch.linalg.lstsq(design, torch.tensor(terms, dtype=torch.float64).log()[2:, None]).solution
    assert math.exp(-float(fit[0])) == pytest.approx(radius_of(row, flow, curvature), rel=0.3)


def test_gradient_flow_has_no_series():
    assert GradientFlow(RIPPLES).radius == math.inf
    assert {row.name for row in FLOWS.values()} >= {"GradientFlow"}
    assert all(row.descent in (None, *DESCENTS.values()) for row in FLOWS.values())
