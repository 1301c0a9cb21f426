"""Laws of comparisons against exact moments: independent of the mini-batches, coupled or not, within their bars."""

import math

import pytest
import torch
from torch.testing import assert_close

from flows import (
    GradientFlow,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    compare,
    integrate,
    minibatch_path,
)
from flows.steady.second_moments import SecondMoments
from landscapes import QuadraticSum
from landscapes.sampling import sampling_of
from tests.tensors import draw

SQUARES = draw(0, 6, 2, 2)
SUM = QuadraticSum(0.3 * torch.eye(2, dtype=torch.float64) + 0.4 * SQUARES @ SQUARES.mT, draw(1, 6, 2))
START = torch.tensor([1.0, -0.7], dtype=torch.float64)
CURVATURES = torch.tensor([0.3, 0.3, 0.3, 4.0], dtype=torch.float64)
LINE = QuadraticSum(CURVATURES[:, None, None], torch.zeros(4, 1, dtype=torch.float64))  # f_i = ½ a_i θ²
OWN = {"θ₁": lambda x: x[..., 0], "θ₁²": lambda x: x[..., 0].square()}


def moments_of(landscape, moment):
    """E φ of Z = E zzᵀ, z = (θ, 1), (T, d + 1, d + 1)."""
    return {
        "loss": SecondMoments(landscape).expectations(moment)["loss"],
        "θ₁": moment[:, 0, -1],
        "θ₁²": moment[:, 0, 0],
    }


def exact_weak_errors(landscape, start, h, factor, steps, dt=None):
    """E φ(X) − E φ(θ_k) of the equation of order 1, or of Euler's chain at dt, which has hc·D/dt for its noise."""
    moments, times = SecondMoments(landscape), h * torch.arange(steps + 1, dtype=torch.float64)
    each = 1 if dt is None else round(h / dt)
    if dt is None:
        ours = moments.equation(start, h, factor, times)
    else:
        ours = moments.descent(start, dt, h * factor / dt, steps * each)[::each]
    theirs = moments_of(landscape, moments.descent(start, h, factor, steps))
    return {name: values - theirs[name] for name, values in moments_of(landscape, ours).items()}


def mini_batch_law(h, steps, power):
    """E X^p along mini-batches of one as dt → 0: the noise commutes, X' = X exp(−āh − ½h²v + h(ā − a_i))."""
    spread = CURVATURES.mean() - CURVATURES
    cumulants = torch.exp(power * h * spread).mean().log()
    drift = power * (CURVATURES.mean() * h + h**2 * CURVATURES.var(correction=0) / 2)
    return math.exp(steps * float(cumulants - drift))


@pytest.mark.parametrize("h", [0.2, 0.1])
def test_along_mini_batches_the_law_is_another_one(h):
    """The statement of MinibatchPath, and the size of the error of a weak error taken there."""
    steps, runs = round(1 / h), 20_000
    sgd, sde = StochasticGradientDescent(LINE, h, 1), StochasticModifiedEquation(LINE, h, 1)
    start = torch.ones(runs, 1, dtype=torch.float64)
    path = minibatch_path(sgd, start, steps, seed=1, halvings=5)
    coarse, fine = (integrate(sde, start, [0.0, steps * h], dt=h / n, path=path, keep="last").theta for n in (16, 32))
    exact = exact_weak_errors(LINE, start[0], h, 1.0, steps)
    brownian = SecondMoments(LINE).equation(start[0], h, 1.0, torch.tensor([steps * h]))[0]
    for power, name, place in ((1, "θ₁", (0, 1)), (2, "θ₁²", (0, 0))):
        samples = 2 * fine[-1, :, 0] ** power - coarse[-1, :, 0] ** power  # without the error O(dt)
        bar = float(samples.std()) / runs**0.5
        law = mini_batch_law(h, steps, power)
        assert abs(float(samples.mean()) - law) < 4 * bar
        off = law - float(brownian[place])
        assert abs(off) > (6 if h == 0.2 else 2) * bar
        assert abs(off / float(exact[name][-1])) > (0.15 if h == 0.2 else 0.07)


@pytest.mark.parametrize("coupled", [False, True])
@pytest.mark.parametrize(
    ("landscape", "sampling", "batch_size"),
    [(LINE, "replacement", 1), (SUM, "replacement", 1), (SUM, "replacement", 3), (SUM, "subset", 2)],
    ids=["line", "one", "three", "subset"],
)
def test_laws_agree_with_exact_moments(landscape, sampling, batch_size, coupled):
    """Four standard errors at the last time; Euler's error of first order is twice the distance from dt to dt/2."""
    h, steps = 0.2, 5
    start = START if landscape is SUM else START[:1]
    sgd = StochasticGradientDescent(landscape, h, batch_size, sampling)
    sde = StochasticModifiedEquation(landscape, h, batch_size, sampling=sampling)
    result = compare(sgd, {"SDE": sde}, start, steps, runs=20_000, coupled=coupled, dt=h / 8, observables=OWN, seed=5)
    factor = sampling_of(landscape.size, batch_size, sampling).variance_factor()
    for name, exact in exact_weak_errors(landscape, start, h, factor, steps).items():
        found = result.weak_errors["SDE"][name] - 2 * result.weak_integration_errors["SDE"][name]
        bar = result.weak_standard_errors["SDE"][name]
        assert float((found[-1] - exact[-1]).abs() / bar[-1]) < 4, name


@pytest.mark.parametrize("coupled", [False, True])
def test_bars_cover_at_their_rate(coupled):
    """1,000 comparisons, the members of a batch, with 300 runs each: one and two standard errors of a normal law."""
    replicas, runs, h, steps = 1000, 300, 0.2, 3
    sgd, sde = StochasticGradientDescent(SUM, h, 2), StochasticModifiedEquation(SUM, h, 2)
    theta0 = START.expand(replicas, 2)
    result = compare(sgd, {"SDE": sde}, theta0, steps, runs=runs, coupled=coupled, dt=h / 2, observables=OWN, seed=2)
    for name, exact in exact_weak_errors(SUM, START, h, 1 / 2, steps, dt=h / 2).items():
        gap = result.weak_errors["SDE"][name][-1] - exact[-1]
        ratios = gap / result.weak_standard_errors["SDE"][name][-1]
        for width in (1.0, 2.0):
            rate = math.erf(width / math.sqrt(2))
            found = float((ratios.abs() < width).double().mean())
            assert abs(found - rate) < 4 * math.sqrt(rate * (1 - rate) / replicas), (name, width)
        # The estimates scatter about the exact value, and not about another one.
        assert abs(float(ratios.mean())) < 4 / math.sqrt(replicas), name


def test_both_are_the_coupled_paths_and_the_uncoupled_laws_and_cost_both(tmp_path):
    h, steps, runs = 0.25, 4, 6
    sgd = StochasticGradientDescent(SUM, h, 2)
    flows = {"SDE": StochasticModifiedEquation(SUM, h, 2, 2), "GF": GradientFlow(SUM)}
    options = {"runs": runs, "dt": h / 4, "seed": 3}
    paths = compare(sgd, flows, START, steps, coupled=True, **options)
    laws = compare(sgd, flows, START, steps, observables=OWN, **options)
    both = compare(sgd, flows, START, steps, coupled=True, observables=OWN, folder=tmp_path, **options)
    for part in ("errors", "one_step", "integration_errors", "losses"):
        assert_close(getattr(both, part)["SDE"], getattr(paths, part)["SDE"], rtol=0, atol=0)
    for part in ("weak_errors", "weak_standard_errors", "weak_integration_errors"):
        assert_close(getattr(both, part), getattr(laws, part), rtol=0, atol=0)
    assert both.observed.keys() == laws.observed.keys() == {"loss", "‖∇f‖²", *OWN}
    assert paths.observed == paths.weak_errors == {}
    row = both.rows["SDE"]
    assert torch.equal(row.trajectory.theta, paths.rows["SDE"].trajectory.theta)
    assert torch.equal(row.ensemble.theta, laws.rows["SDE"].trajectory.theta)
    for kind, one in paths.cost["SDE"].items():
        assert both.cost["SDE"][kind] == one + laws.cost["SDE"][kind]
    assert both.cost["SDE"]["hvp"] == 2 * runs * steps * 4
    assert f"{both.cost['SDE']['hvp']:.5g}" in str(both)
    assert "the cost includes the independent runs" in str(both)
    assert "no laws" in str(paths)
    assert paths.rows["SDE"].ensemble is laws.rows["SDE"].ensemble is None
    assert both.cost["GF"] == laws.cost["GF"]


@pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])
def test_no_observables_of_ones_own_are_still_the_two_laws(sampling):
    sgd = StochasticGradientDescent(SUM, 0.25, 2, sampling)
    sde = StochasticModifiedEquation(SUM, 0.25, 2, sampling=sampling)
    result = compare(sgd, {"SDE": sde}, START, 3, runs=4, coupled=True, observables={})
    assert list(result.weak_errors["SDE"]) == ["loss", "‖∇f‖²"]
    a, b = result.rows["SDE"].ensemble.theta[-1], result.descent.theta[-1]
    gap = SUM.loss(a).mean() - SUM.loss(b).mean()
    assert_close(result.weak_errors["SDE"]["loss"][-1], gap)
    bar = (SUM.loss(a).var() / 4 + SUM.loss(b).var() / 4).sqrt()
    assert_close(result.weak_standard_errors["SDE"]["loss"][-1], bar)
