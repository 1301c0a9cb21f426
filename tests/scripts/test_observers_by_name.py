"""Every observer of scripts.lab.observers, on runs and in scripts.compare; a new one is in here by its line there."""

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, compare, descend, integrate
from flows.engines.storage import load_tensors
from landscapes import Rosenbrock
from scripts.compare import main
from scripts.lab.models import Options
from scripts.lab.observers import OBSERVERS, observe_states, observer_by_name
from tests.scripts.running import says_in_one_line

VALLEY, H, STEPS = Rosenbrock(b=5.0), 0.01, 3
every = pytest.mark.parametrize("name", OBSERVERS)


def observer_of(name):
    return observer_by_name(name, VALLEY, H, Options())


def starts(normal, *batch):
    return torch.tensor([-0.4, 0.6], dtype=torch.float64) + 0.1 * normal(1, *batch, 2)


@every
def test_what_is_seen_leaves_the_run_alone_and_has_a_time_for_each_value(name, normal):
    theta0, descent = starts(normal), GradientDescent(VALLEY, H)
    times = [k * H for k in range(STEPS + 1)]
    for engine in (
        lambda **watched: descend(descent, theta0, STEPS, **watched),
        lambda **watched: integrate(GradientFlow(VALLEY), theta0, times, **watched),
    ):
        alone, seen = engine(), engine(observers=[observer_of(name)])
        assert torch.equal(alone.theta, seen.theta)
        assert alone.cost == seen.cost
        assert seen.observations
        for at, values in seen.observations.values():
            assert len(at) == len(values) == STEPS + 1
            assert not values.requires_grad


@every
def test_a_batch_shows_its_members(name, normal):
    theta0, descent = starts(normal, 3), GradientDescent(VALLEY, H)
    together = descend(descent, theta0, STEPS, observers=[observer_of(name)]).observations
    for i in range(3):
        alone = descend(descent, theta0[i], STEPS, observers=[observer_of(name)]).observations
        assert alone.keys() == together.keys()
        for key, (_, values) in alone.items():
            if not key.endswith(("errors", "residuals", "residual")):  # rounding of zero
                assert_close(together[key][1][:, i], values, rtol=1e-6, atol=1e-9, equal_nan=True)


@every
def test_the_states_of_a_finished_run_show_what_the_run_would_have(name, normal):
    theta0, descent = starts(normal), GradientDescent(VALLEY, H)
    with_it = descend(descent, theta0, STEPS, observers=[observer_of(name)])
    after = observe_states(descend(descent, theta0, STEPS), observer_of(name))
    assert after.observations.keys() == with_it.observations.keys()
    for key, (times, values) in with_it.observations.items():
        assert torch.equal(after.observations[key][0], times)
        assert_close(after.observations[key][1], values, rtol=0, atol=0, equal_nan=True)
    assert after.observer_costs == with_it.observer_costs


def test_the_table_of_a_comparison_and_its_files(tmp_path, run):
    arguments = f"rosenbrock --b 5 --h {H} --steps {STEPS} --flows gradient principal --out {tmp_path}"
    status, out, _ = run(main, f"{arguments} --observers {' '.join(OBSERVERS)}")
    assert status == 0
    rows = {line.split("  ")[0]: line for line in out.split("observed  ")[1].splitlines()}
    theta0 = torch.tensor(VALLEY.start, dtype=torch.float64)
    result = compare(GradientDescent(VALLEY, H), {"gradient": GradientFlow(VALLEY)}, theta0, STEPS)
    ends = [theta0, result.descent.theta[-1], result.rows["gradient"].trajectory.theta[-1]]
    assert rows["loss"].split()[1:4] == [f"{float(VALLEY.loss(theta)):.4g}" for theta in ends]
    assert rows["sharpness"].split()[-1] == "–"  # the principal flow's θ is complex: the note says why
    assert "principal: observer 'sharpness' takes real theta only" in out
    tensors, text = load_tensors(tmp_path / "gradient", "observations")
    assert text["observers"] == list(OBSERVERS)
    assert_close(tensors["loss"], VALLEY.loss(result.rows["gradient"].trajectory.theta))


def test_means_are_taken_over_the_runs_of_sgd(tmp_path, run):
    arguments = "two-quadratics --descent sgd --batch-size 1 --runs 4 --h 0.05 --steps 2 --flows sde-1 --observers"
    status, out, err = run(main, f"{arguments} loss stability --out {tmp_path}")
    assert (status, err) == (0, "")
    tensors, _ = load_tensors(tmp_path / "stochasticgradientdescent", "observations")
    assert tensors["loss"].shape == (3, 4)
    assert f" {float(tensors['loss'][-1].mean()):.4g} " in out.split("observed  ")[1]


def test_a_name_that_there_is_not_is_one_line(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says_in_one_line(run(main, "quadratic --observers loss nosuch"), "--observers must be one of 'loss'")
    assert not list(tmp_path.iterdir())
