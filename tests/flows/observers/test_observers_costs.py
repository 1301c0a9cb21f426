"""What observers cost: counted exactly, shown by the trajectory for its own run alone, shared where eigenpairs are."""

from itertools import pairwise

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, Trajectory, descend, integrate
from flows.engines.storage import FolderError, load_tensors, save_tensors
from flows.observers import (
    Checkpoint,
    Drift,
    Evaluation,
    GradientCurvature,
    GradientNorm,
    GradientPredictions,
    LandscapeObserver,
    Loss,
    Sharpness,
    StabilityCoefficients,
    TopEigenpairs,
)
from landscapes import Cosine, Counted, Landscape, Rosenbrock
from landscapes.wrappers.base import no_counts
from landscapes.wrappers.rotated import Rotated
from tests.tensors import draw

D, H, STEPS = 30, 0.3, 6


LANDSCAPE = Rotated(Cosine(dimension=D), torch.linalg.qr(draw(0, D, D))[0])
THETA0 = draw(1, D)


def cost(**calls):
    return no_counts() | calls


def shared(landscape=LANDSCAPE, every=1):
    top = TopEigenpairs(landscape, 3, every=every)
    return top, StabilityCoefficients(top, H), GradientPredictions(top, H)


def run(observers, theta0=THETA0, steps=STEPS):
    return descend(GradientDescent(LANDSCAPE, H), theta0, steps, observers=observers)


@pytest.mark.parametrize("members", [1, 4])
def test_costs_are_exact(members):
    n = members * (STEPS + 1)
    theta0 = draw(2, members, D)
    top, stability, predictions = shared()
    others = [
        Loss(LANDSCAPE),
        GradientNorm(LANDSCAPE, every=2),
        GradientCurvature(LANDSCAPE),
        Evaluation(LANDSCAPE, lambda theta: theta, torch.ones(D).long()),
    ]
    ran = run([top, stability, predictions, *others], theta0)
    products = int(ran.observations["top products"][1].sum())
    assert ran.observer_costs == {
        "top": cost(grad=n, hvp=products),
        "stability": cost(),
        "change": cost(loss=n, hvp=n),
        "loss": cost(loss=n),
        "gradient norm": cost(grad=members * 4),
        "gradient curvature": cost(grad=n, hvp=n),
        "test": cost(loss=2 * n),
    }
    assert {kind: ran.cost[kind] for kind in no_counts()} == cost(grad=members * STEPS)


class Tally(Landscape):
    """Counts what is really computed, and knows nothing of Counted."""

    dimension = D

    def __init__(self):
        self.grads = self.products = 0

    def loss(self, theta):
        return LANDSCAPE.loss(theta)

    def grad(self, theta):
        self.grads += 1
        return LANDSCAPE.grad(theta)

    def expand(self, theta):
        return TallyPoint(self, theta)


class TallyPoint:
    def __init__(self, tally, theta):
        self.tally, self.theta, self.inner = tally, theta, LANDSCAPE.expand(theta)

    @property
    def loss(self):
        return self.inner.loss

    @property
    def grad(self):
        self.tally.grads += 1
        return self.inner.grad

    def hvp(self, v):
        self.tally.products += 1
        return self.inner.hvp(v)


@pytest.mark.parametrize(
    "build",
    [Sharpness, TopEigenpairs, lambda f: Drift(f, H), GradientCurvature, lambda f: shared(f)[2]],
    ids=["sharpness", "top", "drift", "curvature", "predictions"],
)
def test_what_is_counted_is_what_is_computed(build):
    tally = Tally()
    observer = build(tally)
    costs = run([observer]).observer_costs[observer.name]
    assert (costs["grad"], costs["hvp"]) == (tally.grads, tally.products)
    assert costs["hvp"] >= STEPS + 1


def test_whoever_asks_first_pays_for_shared_pairs():
    top, stability, predictions = shared(every=3)
    ran = run([top, stability, predictions])
    alone = [run([shared()[i]]) for i in range(3)]
    each = alone[0].observations["top products"][1]  # at every state, the same whoever asks
    costs = ran.observer_costs
    assert costs["top"] == cost(grad=3, hvp=int(each[::3].sum()))
    assert costs["stability"] == cost(grad=STEPS - 2, hvp=int(each.sum() - each[::3].sum()))
    assert costs["change"] == cost(loss=STEPS + 1, hvp=STEPS + 1)
    assert alone[2].observer_costs["change"] == cost(grad=STEPS + 1, loss=STEPS + 1, hvp=int(each.sum()) + STEPS + 1)
    for other in alone[1:]:
        for name, (_, values) in other.observations.items():
            assert_close(ran.observations[name][1], values, rtol=0, atol=0, equal_nan=True)


def test_warm_starts_save_products():
    ran = run([TopEigenpairs(LANDSCAPE, 3, tolerance=1e-6)], steps=30)
    products = ran.observations["top products"][1]
    cold = [TopEigenpairs(LANDSCAPE, 3, tolerance=1e-6)(0, 0.0, theta)["top products"] for theta in ran.theta]
    assert int(products[0]) == int(cold[0])
    assert int(products[10:].sum()) < 0.7 * sum(map(int, cold[10:]))


def observations(ran):
    return {name: values for name, (_, values) in ran.observations.items()}


def same(one, other):
    assert one.keys() == other.keys()
    for name in one:
        assert_close(one[name], other[name], rtol=0, atol=0, equal_nan=True)


SECOND = {
    "same start": run,
    "other start": lambda seen: run(seen, THETA0 + 1),
    "batch": lambda seen: run(seen, draw(3, 2, D)),
    "single precision": lambda seen: run(seen, THETA0.float()),
    "flow": lambda seen: integrate(GradientFlow(LANDSCAPE), THETA0 - 1, [0.0, 0.1, 0.4], observers=seen),
}


@pytest.mark.parametrize("steps", [1, STEPS])
@pytest.mark.parametrize("second", SECOND.values(), ids=SECOND)
def test_a_second_run_is_as_with_fresh_observers(second, steps):
    used = [*shared(), Sharpness(LANDSCAPE), Drift(LANDSCAPE, H)]
    first = run(used, steps=steps)
    again = second(used)
    fresh = second([*shared(), Sharpness(LANDSCAPE), Drift(LANDSCAPE, H)])
    same(observations(again), observations(fresh))
    assert again.observer_costs == fresh.observer_costs
    for observer in used:
        both = (first.observer_costs[observer.name], again.observer_costs[observer.name])
        assert observer.counts == {kind: both[0][kind] + both[1][kind] for kind in no_counts()}


def test_a_run_seen_once_leaves_nothing_to_the_next():
    used = shared()
    for observer in used:
        observer(0, 0.0, THETA0)
    same(observations(run(used)), observations(run(shared())))


class Interrupting(Landscape):
    """Cosine, interrupted at one of its products."""

    dimension = D

    def __init__(self, at):
        self.left = at

    def loss(self, theta):
        return LANDSCAPE.loss(theta)

    def expand(self, theta):
        return InterruptingPoint(self, theta)


class InterruptingPoint(TallyPoint):
    @property
    def grad(self):
        return self.inner.grad

    def hvp(self, v):
        self.tally.left -= 1
        if self.tally.left == 0:
            raise KeyboardInterrupt
        return self.inner.hvp(v)


@pytest.mark.parametrize("at", [1, 15, 40, 60])
def test_an_interrupted_run_leaves_nothing_to_the_next(at):
    theta0 = draw(4, 2, D)
    landscape = Interrupting(at)
    used = shared(landscape)
    assert run(used, theta0).status == "interrupted"
    landscape.left = -1
    again, fresh = run(used, theta0), run(shared(), theta0)
    same(observations(again), observations(fresh))
    assert again.observer_costs == fresh.observer_costs


def test_costs_are_kept_on_disk(tmp_path):
    ran = run([*shared(), Checkpoint(tmp_path / "state")])
    assert set(ran.observer_costs) == {"top", "stability", "change"}
    back = Trajectory.load(ran.save(tmp_path))
    assert back.observer_costs == ran.observer_costs
    same(observations(back), observations(ran))


def test_runs_saved_before_observers_counted_still_load(tmp_path):
    tensors, text = load_tensors(run([Loss(LANDSCAPE)]).save(tmp_path), "trajectory")
    del text["observer_costs"]
    save_tensors(tmp_path, "trajectory", tensors, text)
    assert Trajectory.load(tmp_path).observer_costs == {}
    for broken in ([1], {"loss": 3}, "loss"):
        save_tensors(tmp_path, "trajectory", tensors, {**text, "observer_costs": broken})
        with pytest.raises(FolderError, match="no readable trajectory"):
            Trajectory.load(tmp_path)


@pytest.mark.parametrize(
    "twice", [lambda: [Loss(LANDSCAPE)] * 2, lambda: [Sharpness(LANDSCAPE), Sharpness(Rosenbrock())]]
)
def test_two_of_one_name_are_refused_before_the_run(twice):
    with pytest.raises(ValueError, match=r"observers must have different names.*give name="):
        run(twice())


class Shifts(LandscapeObserver):
    """A user's own."""

    def __init__(self, landscape, every=1, name="shift"):
        super().__init__(landscape, every, name)

    def __call__(self, k, t, theta):
        return {self.name: self.counted.loss(theta + 1) - self.counted.loss(theta)}


def test_a_users_own_observer_is_counted():
    mine = Counted(LANDSCAPE)
    ran = run([Shifts(mine, every=2), Shifts(mine, name="again")])
    assert ran.observer_costs == {"shift": cost(loss=8), "again": cost(loss=14)}
    assert mine.counts["loss"] == 22
    shift = ran.observations["again"][1]
    assert_close(shift, LANDSCAPE.loss(ran.theta + 1) - LANDSCAPE.loss(ran.theta))
    with pytest.raises(TypeError, match="abstract"):
        LandscapeObserver(LANDSCAPE, 1, "none")


def test_k_that_grows_goes_on_and_k_that_does_not_begins_anew():
    top = TopEigenpairs(LANDSCAPE, 3)
    ks = [0, 1, 5, 5, 6, 2, 3]
    first = [True, *(after <= before for before, after in pairwise(ks))]
    seen = [top(k, 0.0, THETA0 + 0.01 * i)["top overlaps"] for i, k in enumerate(ks)]
    assert [bool((overlaps == 0).all()) for overlaps in seen] == first


def test_another_k_is_another_state_even_where_theta_rests():
    top, stability, _ = shared()
    top(5, 0.0, THETA0)
    stability(2, 0.0, THETA0)  # a new run
    assert stability.counts["hvp"] > 0
    assert float(top(3, 0.0, THETA0)["top overlaps"].min()) > 0.5  # which goes on
