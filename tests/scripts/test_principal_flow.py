"""The paper's experiments at sizes of seconds: what they print, what they leave, how they go on where they were."""

import json
import re

import pytest
import torch

from flows import GradientDescent, descend
from flows.observers import Loss
from landscapes import Quadratic
from scripts.lab.store import Store, descend_in_segments
from scripts.principal_flow import one_step, toys
from scripts.principal_flow.__main__ import EXPERIMENTS, main

EDGE = "--network mlp --data digits --examples 60 --width 0.02 --h 0.5 --steps 20 --every 2 --threads 1"


def test_every_experiment_is_a_subcommand_with_help(run):
    status, said, _ = run(main, "--help")
    assert status == 0
    for name in EXPERIMENTS:
        assert name in said


def test_quadratics_print_the_papers_numbers(tmp_path, run):
    status, said, _ = run(main, f"quadratics --threads 1 --out {tmp_path} --figure {tmp_path / 'more' / 'paper.png'}")
    assert status == 0
    assert "gradient descent after 5 steps: (0.5636785, -0.1798637)" in said  # Rosca et al. 2023, at h = 1.05
    assert "principal flow: singular mode" in said
    assert "hλ = 1," in said
    rows = re.findall(r"principal flow +\S+ \S+ ± \S+ +(\S+)", said)
    assert [float(e) < 1e-4 for e in rows[1:]] == [True] * 3  # exact beyond the singular mode, to integration
    assert (tmp_path / "figure.png").stat().st_size > 10_000
    assert (tmp_path / "more" / "paper.png").stat().st_size > 10_000
    assert (tmp_path / "table.txt").read_text().strip() in said


def test_saddles_attract_the_igr_flow_below_minus_two(tmp_path, run, monkeypatch):
    monkeypatch.setitem(toys.CASES, "saddles", toys.CASES["saddles"][1:2])
    status, said, _ = run(main, f"saddles --threads 1 --out {tmp_path}")
    assert status == 0
    block = said.split("saddle, hλ = (0.8, −2.4)")[1].split("\n\n")[0]
    ends = {
        m: float(y)
        for m, y in re.findall(r"^(gradient descent|IGR flow|principal flow).*?, ([\d.e+-]+)\)", block, re.M)
    }
    assert ends["gradient descent"] > 10
    assert ends["principal flow"] == pytest.approx(ends["gradient descent"], rel=1e-5)
    assert ends["IGR flow"] < 0.2  # where it started


def test_one_step_and_spectrum_at_small_size(tmp_path, run, monkeypatch):
    monkeypatch.setattr(one_step, "LADDER", (0.5, 1.3))
    small = "--data digits --examples 30 --width 0.1 --points 3 --rtol 1e-4 --threads 1"
    status, said, _ = run(main, f"one-step {small} --out {tmp_path / 'one'}")
    assert status == 0
    assert "the principal flow's error over the smaller of the other two's" in said
    status, said, _ = run(
        main, f"spectrum --width 0.05 --examples 40 --steps 4 --start 2 --window 2 --out {tmp_path / 's'}"
    )
    assert status == 0
    assert "modes by regime" in said
    assert "Flows against GradientDescent: 2 steps" in said


def test_an_edge_run_goes_on_where_it_was(tmp_path, run):
    status, said, _ = run(main, f"edge {EDGE} --out {tmp_path}")
    assert status == 0, said
    assert "change in a step of the window" in said
    parts = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert {"training-0000.safetensors", "training-0001.safetensors", "window-0000.safetensors"} <= set(parts)
    (tmp_path / "training-0001.safetensors").unlink()
    status, again, _ = run(main, f"edge {EDGE} --out {tmp_path}")
    assert status == 0
    assert again == said
    after = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert [name for name in parts if after[name] != parts[name]] == ["training-0001.safetensors"]


def test_results_of_another_configuration_are_not_taken(tmp_path, run):
    assert run(main, f"drift {EDGE} --out {tmp_path}")[0] == 0
    status, _, said = run(main, f"drift {EDGE} --seed 1 --out {tmp_path}")
    assert status == 2
    assert (
        said.strip().splitlines()[-1].startswith(f"error: --out {str(tmp_path)!r} holds results made with other seed")
    )
    assert json.loads((tmp_path / "configuration.json").read_text())["seed"] == 0


@pytest.mark.parametrize("wrong", ["edge --network lenet", "nothing", "drift --h -1", "one-step --device tpu"])
def test_bad_options_are_one_line(wrong, tmp_path, run):
    status, _, said = run(main, f"{wrong} --out {tmp_path}" if " " in wrong else wrong)
    assert status == 2
    assert said.strip().splitlines()[-1].startswith("error: ")


def test_a_run_in_segments_is_the_run_in_one(tmp_path):
    landscape = Quadratic(torch.diag(torch.tensor([1.0, 0.3], dtype=torch.float64)))
    descent, theta0 = GradientDescent(landscape, 0.4), torch.ones(2, dtype=torch.float64)
    whole = descend(descent, theta0, 10, observers=[Loss(landscape)])
    split = descend_in_segments(Store(tmp_path, {"a": 1}), "x", descent, theta0, 10, 4, [Loss(landscape)], every=1)
    torch.testing.assert_close(split["theta"], whole.theta, rtol=0, atol=0)
    torch.testing.assert_close(split["times"], whole.times)
    torch.testing.assert_close(split["loss"], whole.observations["loss"][1], rtol=0, atol=0)
    assert len(list(tmp_path.glob("x-*.safetensors"))) == 3


def test_a_run_that_diverges_ends_with_what_it_had(tmp_path):
    landscape = Quadratic(torch.diag(torch.tensor([1e200, 1.0], dtype=torch.float64)))
    descent, theta0 = GradientDescent(landscape, 1.0), torch.ones(2, dtype=torch.float64)
    parts = descend_in_segments(Store(tmp_path, {}), "x", descent, theta0, 12, 4, every=1)
    assert bool(parts["theta"].isfinite().all())
    assert len(parts["theta"]) < 5
    assert len(list(tmp_path.glob("x-*.safetensors"))) == 1
