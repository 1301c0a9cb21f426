"""compare against independent recomputation: closed forms on a quadratic, enumerated noise, counted cost."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from flows import (
    GradientDescent,
    GradientFlow,
    HeavyBall,
    HeavyBallPrincipalFlow,
    ModifiedFlow,
    ModifiedHeavyBallFlow,
    Nesterov,
    NesterovPrincipalFlow,
    OptimizerDescent,
    PrincipalFlow,
    ScaledHeavyBall,
    Trajectory,
    compare,
    integrate,
)
from flows.engines.storage import FolderError, load_tensors
from landscapes import Counted, Quadratic
from tests.flows.comparison.three import three
from tests.tensors import f64

H = torch.tensor([[2.0, 0.6], [0.6, 0.5]], dtype=torch.float64)
BOWL = Quadratic(H)
START = torch.tensor([1.0, -0.7], dtype=torch.float64)
RATE, STEPS = 0.2, 4
CLOCK = torch.arange(STEPS + 1, dtype=torch.float64) * RATE
TIGHT = {"rtol": 1e-9, "atol": 1e-11}


def powers(matrix, start, steps=STEPS):
    """θ, Mθ, M²θ, …, for θ (..., 2)."""
    states = [start]
    for _ in range(steps):
        states.append(states[-1] @ matrix)
    return torch.stack(states)


DESCENT = torch.eye(2, dtype=torch.float64) - RATE * H
ONE_STEP = {
    "GF": torch.linalg.matrix_exp(-RATE * H),
    "MF2": torch.linalg.matrix_exp(-RATE * H - RATE**2 / 2 * H @ H),
    "PF": DESCENT,
}


@pytest.mark.parametrize("batch", [(), (2, 2)])
def test_figures_against_closed_forms_on_a_quadratic(batch, normal):
    theta0 = START + 0.3 * normal(0, *batch, 2)
    result = compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), theta0, STEPS, **TIGHT)
    iterates = powers(DESCENT, theta0)
    assert_close(result.times, CLOCK)
    assert_close(result.mean, iterates, rtol=1e-12, atol=1e-14)
    assert_close(result.losses["GradientDescent"], BOWL.loss(iterates))
    assert list(result.errors) == ["GF", "MF2", "PF"]
    for name, matrix in ONE_STEP.items():
        path = powers(matrix, theta0)
        assert result.errors[name].shape == (STEPS + 1, *batch)
        assert_close(result.errors[name], (path - iterates).norm(dim=-1), rtol=1e-6, atol=1e-9)
        gaps = (iterates[:-1] @ matrix - iterates[1:]).norm(dim=-1)
        assert result.one_step[name].shape == (STEPS, *batch)
        assert_close(result.one_step[name], gaps, rtol=1e-6, atol=1e-9)
        assert_close(result.losses[name], BOWL.loss(path), rtol=1e-7, atol=1e-9)
        assert result.integration_errors[name].shape == (STEPS + 1, *batch)
        assert float(result.integration_errors[name].max()) < 1e-8
    assert float(result.errors["GF"][-1].max()) > 100 * float(result.errors["PF"].max())


def test_model_and_integration_error_are_told_apart():
    figures = {}
    for rtol in (1e-3, 1e-6, 1e-9):
        result = compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), START, STEPS, rtol=rtol, atol=rtol / 100)
        assert result.settings["rtol"] == rtol
        figures[rtol] = result
    for name, matrix in ONE_STEP.items():
        shares = [float(r.integration_errors[name].max()) for r in figures.values()]
        assert shares[0] > 10 * shares[1] > 100 * shares[2] > 0
        if name != "PF":
            iterates = powers(DESCENT, START)
            gaps = (iterates[:-1] @ matrix - iterates[1:]).norm(dim=-1)
            for result in figures.values():  # the model's own error, whatever the tolerance asked
                assert_close(result.one_step[name], gaps, rtol=5e-2, atol=2e-5)
    # the integration error is what the run really lacks: the distance to the exact flow
    exact = powers(ONE_STEP["GF"], START)
    run = figures[1e-3].rows["GF"].trajectory.theta
    assert_close(figures[1e-3].integration_errors["GF"], (run - exact).norm(dim=-1), rtol=0.3, atol=1e-5)


def test_fixed_step_methods():
    result = compare(GradientDescent(BOWL, RATE), {"GF": GradientFlow(BOWL)}, START, STEPS, method="euler", dt=RATE)
    assert float(result.errors["GF"].max()) < 1e-14  # Euler at dt = h is gradient descent itself
    half = torch.eye(2, dtype=torch.float64) - RATE / 2 * H
    share = (powers(DESCENT, START) - powers(half @ half, START)).norm(dim=-1)
    assert_close(result.integration_errors["GF"], share, rtol=1e-10, atol=1e-14)
    starts, ends = result.mean[:-1], result.mean[1:]  # single steps are taken at half the dt asked
    assert_close(result.one_step["GF"], (starts @ half @ half - ends).norm(dim=-1), rtol=1e-10, atol=1e-14)
    with pytest.raises(ValueError, match=r"times must lie on times\[0\] \+ k·dt"):
        compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), START, 2, method="rk4", dt=0.15)
    with pytest.raises(ValueError, match="dt must be given for the fixed-step method 'rk4'"):
        compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), START, 2, method="rk4")


def test_names():
    flows = [GradientFlow(BOWL), ModifiedFlow(BOWL, RATE, 2), ModifiedFlow(BOWL, RATE, 3), PrincipalFlow(BOWL, RATE)]
    names = ["GradientFlow", "ModifiedFlow order 2", "ModifiedFlow order 3", "PrincipalFlow"]
    for given in (flows, tuple(flows)):
        assert list(compare(GradientDescent(BOWL, RATE), given, START, 1).errors) == names
    taken = {"GradientDescent": flows[0]}
    result = compare(GradientDescent(BOWL, RATE), taken, START, 2)
    assert set(result.losses) == {"GradientDescent", result.name}
    assert len(result.losses) == 2
    assert_close(result.losses[result.name], BOWL.loss(powers(DESCENT, START, 2)))
    taken = {"gradientdescent": flows[0], "GradientDescent (descent)": flows[1]}
    assert len(compare(GradientDescent(BOWL, RATE), taken, START, 2).losses) == 3


class Halving(torch.optim.SGD):
    """Gradient descent whose rate halves after every step."""

    def step(self, closure=None):
        super().step(closure)
        self.param_groups[0]["lr"] /= 2


def test_the_clock_is_the_sum_of_the_rates():
    descent = OptimizerDescent(BOWL, lambda parameters: Halving(parameters, lr=0.4))
    result = compare(descent, {"GF": GradientFlow(BOWL)}, START, 3, **TIGHT)
    assert_close(result.times, f64(0.0, 0.4, 0.6, 0.7))
    iterates, exact = [START], [START]
    for rate in (0.4, 0.2, 0.1):
        iterates.append(iterates[-1] - rate * H @ iterates[-1])
        exact.append(torch.linalg.matrix_exp(-rate * H) @ exact[-1])
    assert_close(result.errors["GF"], (torch.stack(exact) - torch.stack(iterates)).norm(dim=-1), rtol=1e-7, atol=1e-9)
    steps = [
        (torch.linalg.matrix_exp(-rate * H) @ x - y).norm()
        for rate, x, y in zip((0.4, 0.2, 0.1), iterates, iterates[1:], strict=False)
    ]
    assert_close(result.one_step["GF"], torch.stack(steps), rtol=1e-7, atol=1e-9)
    with pytest.raises(ValueError, match=r"h of ModifiedFlow order 2 is 0\.2, of the descent 0\.4"):
        compare(descent, [ModifiedFlow(BOWL, 0.2, 2)], START, 2)


def test_complex_flows_report_their_imaginary_part():
    landscape = Quadratic(torch.diag(f64(3.0, 0.2)))
    result = compare(GradientDescent(landscape, 0.5), three(landscape, 0.5), START, 5)
    theta = result.rows["PF"].trajectory.theta
    assert theta.is_complex()
    assert_close(result.rows["PF"].imaginary, theta.imag.abs().amax(dim=-1))
    assert result.rows["GF"].imaginary is None
    assert_close(result.errors["PF"], (theta - result.mean).abs().square().sum(dim=-1).sqrt())
    assert float(result.errors["PF"].max()) < 1e-5
    assert not any(values.is_complex() for values in result.losses.values())
    assert "max |Im θ|" in str(result)
    assert "max |Im θ|" not in str(compare(GradientDescent(BOWL, RATE), [GradientFlow(BOWL)], START, 2))


def test_cost_is_what_counted_says():
    result = compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), START, STEPS)
    assert result.cost["GradientDescent"] == {
        "steps": STEPS,
        "loss": 0,
        "grad": STEPS,
        "hvp": 0,
        "third": 0,
        "higher": 0,
    }
    for name in three(BOWL, RATE):
        flow = three(Counted(BOWL), RATE)[name]
        run = integrate(flow, START, CLOCK)
        for kind in ("grad", "hvp", "third"):
            assert result.cost[name][kind] == flow.landscape.counts[kind] == run.cost[kind]
        assert f"{flow.landscape.counts['grad']:.5g}" in str(result)
    assert result.cost["MF2"]["grad"] == result.cost["MF2"]["hvp"] == result.cost["MF2"]["evaluations"]
    assert result.cost["PF"]["hvp"] == 2 * result.cost["PF"]["grad"]


def test_the_table_is_aligned_and_complete():
    result = compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), START, STEPS)
    caption, heading, *rows = str(result).splitlines()
    assert f"{STEPS} steps, t = 0 … 0.8" in caption
    assert [row.split()[0] for row in rows] == ["GradientDescent", "GF", "MF2", "PF"]
    assert {row.index("finished") for row in rows} == {heading.index("status")}
    for column in ("error at end", "largest error", "one-step error", "integration", "loss at end", "gradients"):
        end = heading.index(column) + len(column)
        for row in rows:
            assert row[end : end + 2].strip() == ""
    for name, row in zip(("GF", "MF2", "PF"), rows[1:], strict=True):
        assert f"{float(result.errors[name][-1]):.3e}" in row
        assert f"{float(result.one_step[name].median()):.3e}" in row
        assert f"{float(result.losses[name][-1]):.6g}" in row


def test_folder_and_save(tmp_path):
    result = compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), START, STEPS, folder=tmp_path / "live")
    runs = {"gradientdescent": result.descent, **{n.lower(): r.trajectory for n, r in result.rows.items()}}
    for folder in (tmp_path / "live", result.save(tmp_path / "saved")):
        for name, run in runs.items():
            loaded = Trajectory.load(folder / name)
            assert torch.equal(loaded.theta, run.theta)
            assert (loaded.status, loaded.cost) == (run.status, run.cost)
    tensors, text = load_tensors(tmp_path / "saved", "comparison")
    assert text["flows"] == ["GF", "MF2", "PF"]
    for i, name in enumerate(text["flows"]):
        assert torch.equal(tensors[f"flow.{i}.errors"], result.errors[name])
        assert torch.equal(tensors[f"flow.{i}.one_step"], result.one_step[name])
    assert text["settings"]["h"] == RATE
    assert (tmp_path / "saved" / "table.txt").read_text().strip() == str(result)
    narrow = compare(GradientDescent(BOWL, np.float32(0.25)), [GradientFlow(BOWL)], START, 1)
    assert load_tensors(narrow.save(tmp_path / "narrow"), "comparison")[1]["settings"]["h"] == 0.25
    (tmp_path / "file").touch()
    for call in (lambda: result.save(tmp_path / "file"), lambda: compare_into(tmp_path / "file")):
        with pytest.raises(FolderError, match=r"folder '.*file' cannot be written"):
            call()


def compare_into(folder):
    return compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), START, 1, folder=folder)


GD, GF = GradientDescent(BOWL, RATE), GradientFlow(BOWL)
BAD_ARGUMENTS = {
    "descent": (lambda: compare(GF, [GF], START, 2), TypeError, "descent must be a Descent, got GradientFlow"),
    "no flows": (lambda: compare(GD, [], START, 2), TypeError, "flows must be a non-empty mapping"),
    "one flow": (lambda: compare(GD, GF, START, 2), TypeError, "flows must be a non-empty mapping"),
    "a set": (lambda: compare(GD, {GF}, START, 2), TypeError, "flows must be a non-empty mapping"),
    "not a flow": (lambda: compare(GD, [GF, GD], START, 2), TypeError, "must hold Flows, got GradientDescent"),
    "numbers for names": (lambda: compare(GD, {1: GF}, START, 2), TypeError, "flows must .*names.*1"),
    "same name": (lambda: compare(GD, [GF, GF], START, 2), ValueError, "flows must have unique names"),
    "same folder": (lambda: compare(GD, {"a b": GF, "A-B": GF}, START, 2), ValueError, "unique names"),
    "h": (lambda: compare(GD, three(BOWL, 0.3), START, 2), ValueError, r"h of .* is 0\.3, of the descent 0\.2"),
    "momentum h": (
        lambda: compare(HeavyBall(BOWL, 0.1, 0.5), three(BOWL, RATE), START, 2),
        ValueError,
        r"h of .* is 0\.2, of the descent 0\.1",
    ),
    "theta0": (lambda: compare(GD, [GF], [1.0, 2.0], 2), TypeError, "theta0 must be a torch.Tensor"),
    "theta0 nan": (lambda: compare(GD, [GF], START * math.nan, 2), ValueError, "theta0 must be finite"),
    "theta0 shape": (lambda: compare(GD, [GF], torch.ones(3), 2), ValueError, r"theta0 must have shape \(..., 2\)"),
    "steps 0": (lambda: compare(GD, [GF], START, 0), ValueError, "steps must be at least 1, got 0"),
    "steps 1.5": (lambda: compare(GD, [GF], START, 1.5), TypeError, "steps must be a whole number"),
    "runs 0": (lambda: compare(GD, [GF], START, 2, runs=0), ValueError, "runs must be at least 1"),
    "runs": (lambda: compare(GD, [GF], START, 2, runs=3), ValueError, "runs is for stochastic descents, got 3"),
    "seed": (lambda: compare(GD, [GF], START, 2, seed=-1), ValueError, "seed must be at least 0"),
    "method": (lambda: compare(GD, [GF], START, 2, method="magic"), ValueError, "method must be one of"),
    "rtol": (lambda: compare(GD, [GF], START, 2, rtol=0.0), ValueError, "rtol must be positive"),
}


@pytest.mark.parametrize("case", BAD_ARGUMENTS)
def test_arguments_are_checked(case):
    call, error, text = BAD_ARGUMENTS[case]
    with pytest.raises(error, match=text):
        call()


MOMENTA = {
    "heavy-ball": (lambda h: HeavyBall(BOWL, h, 0.5), lambda h: HeavyBallPrincipalFlow(BOWL, h, 0.5)),
    "nesterov": (lambda h: Nesterov(BOWL, h, 0.5), lambda h: NesterovPrincipalFlow(BOWL, h, 0.5)),
}


@pytest.mark.parametrize("name", MOMENTA)
def test_one_step_errors_of_momentum_start_with_the_descents_velocity(name):
    descent, flow = MOMENTA[name]
    result = compare(descent(RATE), {"PF": flow(RATE), "GF": GradientFlow(BOWL)}, START, STEPS, **TIGHT)
    assert float(result.errors["PF"].max()) < 1e-7
    assert float(result.one_step["PF"].max()) < 1e-7  # from rest at every iterate it would be of the size of a step
    assert bool(result.one_step["GF"].isnan().all())  # it has no part for the descent's velocity
    assert not result.rows["PF"].notes


def test_scaled_momentum_too_and_a_descent_without_velocity_has_no_one_step_errors():
    scaled = {
        "order 3": ModifiedHeavyBallFlow(BOWL, RATE, 0.3, 3),
        "order 1": ModifiedHeavyBallFlow(BOWL, RATE, 0.3, 1),
    }
    result = compare(ScaledHeavyBall(BOWL, RATE, 0.3), scaled, START, STEPS, **TIGHT)
    assert bool((result.one_step["order 3"] < 0.5 * result.one_step["order 1"]).all())
    plain = compare(GradientDescent(BOWL, RATE), scaled, START, STEPS, **TIGHT)
    assert bool(plain.one_step["order 3"].isnan().all())
    assert "no velocity to start from" in str(plain)


def test_derivatives_above_the_third_have_a_column_where_they_are_taken():
    plain = compare(GradientDescent(BOWL, RATE), three(BOWL, RATE), START, 1)
    assert " higher " not in str(plain)
    result = compare(GradientDescent(BOWL, RATE), [ModifiedFlow(BOWL, RATE, 5)], START, 1)
    cost = result.rows["ModifiedFlow order 5"].trajectory.cost
    assert cost["higher"] == 3 * cost["evaluations"] > 0
    assert [f"{cost['higher']:.5g}" in line for line in str(result).splitlines()[1:4]] == [False, False, True]
    assert " higher " in str(result)
