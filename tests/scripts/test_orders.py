"""The order study's command: tables, data and figure, runs that go on where they were, bad input in one line."""

import json
import math
import re

import pytest
import torch

from flows.engines.storage import load_tensors
from scripts.lab.models import DESCENTS, FLOWS, NUMBERED, Options, build_entry, descent_by_name, flow_by_name
from scripts.orders import main
from tests.scripts.running import parts, says_in_one_line

SHORT = "--rungs 4 --largest 0.2 --threads 1"
NET = "net --architecture mlp --examples 20 --width 0.1 --threads 1"


def test_a_quadratic_leaves_table_data_and_figure(tmp_path, run):
    flows = "--flows gradient modified-2 modified-3 principal"
    status, out, err = run(main, f"quadratic --time 0.8 --largest 0.4 --threads 1 {flows} --out {tmp_path}")
    assert (status, err) == (0, "")
    assert "Quadratic, 2 parameters: λ = 2 at 1 start, compared with gd" in out
    assert (tmp_path / "orders.png").stat().st_size > 10_000
    assert (tmp_path / "table.txt").read_text().strip() in out
    said = json.loads((tmp_path / "orders.json").read_text())
    assert said["configuration"]["ground"] == {"eigenvalues": [2.0, 0.02]}
    assert said["configuration"]["descent"] == "gd"
    one, fixed = said["studies"]["one-step"], said["studies"]["time-0.8"]
    assert set(one) == set(fixed) == {"gradient", "modified-2", "modified-3", "principal"}
    for order, name in enumerate(("gradient", "modified-2", "modified-3"), start=1):
        for found, expected in ((one, order + 1), (fixed, order)):
            fit = found[name]["fit"]
            assert fit["low"] < expected < fit["high"]
            assert f"{fit['order']:.4f}  [{fit['low']:.4f}, {fit['high']:.4f}]" in out
    h = one["gradient"]["ladder"][0]
    assert h == 0.2  # hλ = 0.4
    gaps = [x * (math.exp(-rate * h) - 1 + rate * h) for rate, x in ((2.0, 0.35), (0.02, 0.2))]
    assert one["gradient"]["errors"][0] == pytest.approx(math.hypot(*gaps), rel=1e-9)
    assert fixed["gradient"]["ladder"] == pytest.approx([0.2 * 0.5**k for k in range(8)])
    assert one["principal"]["fit"] is None  # exact: every error is rounding
    assert "the model is exact to this precision" in out


def test_a_run_goes_on_where_it_was_and_takes_more(tmp_path, run):
    first = f"rosenbrock {SHORT} --flows gradient modified-2 --out {tmp_path}"
    status, out, _ = run(main, first)
    assert status == 0
    before = parts(tmp_path)
    assert len(before) == 8
    gone = sorted(name for name in before if name.startswith("one-step-modified-2"))[0]
    (tmp_path / f"{gone}.safetensors").unlink()
    assert run(main, first)[1] == out
    after = parts(tmp_path)
    assert [name for name in before if after[name] != before[name]] == [gone]
    status, more, _ = run(main, f"rosenbrock --rungs 5 --largest 0.2 --flows principal gradient --out {tmp_path}")
    assert status == 0
    assert "principal" in more
    assert len(parts(tmp_path)) == 8 + 1 + 5
    assert {name: time for name, time in parts(tmp_path).items() if name in after} == after


def test_results_of_another_configuration_are_not_taken(tmp_path, run):
    assert run(main, f"quadratic {SHORT} --flows gradient --out {tmp_path}")[0] == 0
    status, _, err = run(main, f"quadratic {SHORT} --flows gradient --starts 2 --out {tmp_path}")
    assert status == 2
    assert "holds results made with other starts" in err


def test_failed_rungs_are_kept_as_such(tmp_path, run):
    arguments = f"quadratic --ladder 0.5 0.25 0.125 --flows principal --threads 1 --out {tmp_path}"
    for _ in range(2):  # measured, then read
        status, out, _ = run(main, arguments)
        assert status == 0
        assert "(singular mode)" in out
    assert json.loads((tmp_path / "orders.json").read_text())["studies"]["one-step"]["principal"]["errors"][0] is None
    assert load_tensors(tmp_path, "one-step-principal-0.5")[0]["figures"].isnan().all()


def test_a_small_network_in_single_precision_from_two_starts(tmp_path, run):
    status, out, _ = run(
        main, f"{NET} --dtype float32 --starts 2 --largest 0.8 --rungs 5 --flows gradient --out {tmp_path}"
    )
    assert status == 0
    assert "at 2 starts" in out
    found = json.loads((tmp_path / "orders.json").read_text())["studies"]["one-step"]["gradient"]
    assert found["fit"]["low"] < 2 < found["fit"]["high"]


def test_a_small_network_with_its_presets_flows(tmp_path, run):
    status, out, _ = run(main, f"{NET} --rungs 5 --largest 0.1 --out {tmp_path}")
    assert status == 0, out
    found = json.loads((tmp_path / "orders.json").read_text())["studies"]["one-step"]
    orders = {name: study["fit"]["order"] for name, study in found.items()}
    expected = {"gradient": 2, "modified-2": 3, "modified-3": 4, "principal": 3}
    assert orders == pytest.approx(expected, abs=0.03)


def test_momentum_and_fixed_steps(tmp_path, run):
    # a momentum's first step from rest is gradient descent's
    arguments = f"double-well --descent heavy-ball {SHORT} --flows gradient --method rk4 --substeps 8 --out {tmp_path}"
    assert run(main, arguments)[0] == 0
    found = json.loads((tmp_path / "orders.json").read_text())["studies"]["one-step"]["gradient"]
    assert found["order"] == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("", "subcommand"),
        ("quadratic --flows foo", "--flows must name gradient, principal, principal-third-order, heavy-ball-principal"),
        ("quadratic --flows modified-0", "order must be at least 1"),
        ("quadratic --descent foo", "--descent must name gd"),
        ("rosenbrock --descent sgd", "needs examples"),
        ("noisy-quadratic --descent sgd", "weak_order"),
        ("quadratic --ladder 0.1", "at least two different"),
        ("quadratic --ladder 0.1 -0.2", "ladder must be positive"),
        ("quadratic --rungs 1", "rungs must be at least 2"),
        ("quadratic --ratio 1.5", "--ratio must lie between 0 and 1"),
        ("quadratic --largest 0", "largest must be positive"),
        ("quadratic --starts 0", "starts must be at least 1"),
        ("quadratic --starts 2 --spread -1", "spread must be positive"),
        ("quadratic --time -1", "time must be positive"),
        ("quadratic --time 1e-9", "--time must be long enough"),
        ("quadratic --method rk4", "substeps must be given"),
        ("quadratic --krylov-tolerance 0", "tolerance must be positive"),
        ("quadratic --theta0 1 2 3", "--theta0 must have 2 coordinates"),
        ("quadratic --eigenvalues 0 0", "--ladder must be given"),
        ("quadratic --device nosuch", "--device"),
        ("quadratic --threads 0", "threads"),
        ("quadratic --out /dev/null/x", "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, word, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says_in_one_line(run(main, arguments), word)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_names_the_options(run):
    status, out, _ = run(main, "net --help")
    assert status == 0
    for option in ("--ladder", "--flows", "--descent", "--starts", "--time", "--dtype", "--threads", "--out", "--data"):
        assert option in out


def test_models_go_by_their_names():
    from landscapes import LinearRegression

    landscape = LinearRegression(torch.eye(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    names = [*FLOWS, *(f"{family}-2" for family in NUMBERED)]
    for name in names:
        assert getattr(flow_by_name(name, landscape, 0.1, Options()), "h", 0.1) == 0.1
    for name in (*DESCENTS, "Adam"):
        assert descent_by_name(name, landscape, 0.1, Options()).h == 0.1
    assert flow_by_name("modified-2", landscape, 0.1, Options()).order == 2


def test_a_class_by_reference_takes_the_options_that_it_names():
    from landscapes import LinearRegression, Rosenbrock

    landscape = LinearRegression(torch.eye(3, 2, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    options = Options(momentum=0.4, batch_size=99, sampling="subset")
    descent = build_entry("flows:StochasticHeavyBall", landscape, 0.1, options)
    assert (descent.h, descent.momentum, descent.batch_size, descent.sampling) == (0.1, 0.4, 3, "subset")
    assert build_entry("flows:GradientFlow", landscape, 0.1, options).landscape is landscape
    with pytest.raises(ValueError, match="StochasticHeavyBall needs examples, Rosenbrock has none"):
        build_entry("flows:StochasticHeavyBall", Rosenbrock(), 0.1, options)


def test_settled_rungs_start_after_the_transient(tmp_path, run):
    arguments = "rosenbrock --b 5 --momentum 0.2 --descent heavy-ball --flows reduced-heavy-ball-2 --largest 0.03 "
    arguments += f"--rungs 3 --settle 0.3 --out {tmp_path}"
    status, out, _ = run(main, arguments)
    assert status == 0
    assert "one-step error from t = 0.3" in out
    assert float(re.search(r"observed order (\S+)", out)[1]) == pytest.approx(3, abs=0.15)
    assert run(main, f"{arguments} --settle -1")[0] == 2
