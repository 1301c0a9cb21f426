"""The linear scaling rule: variances and rows of the table against runs by hand, where the rule is said to hold."""

import math
import zlib

import pytest
import torch

from flows import GradientFlow, StochasticGradientDescent, descend, integrate
from flows.ensembles.blocks import block_seed
from scripts.lab.network import NetGround
from scripts.stochastic.__main__ import main
from scripts.stochastic.linear_scaling_results import SCATTER, LinearScalingStudy, Setting
from scripts.stochastic.runs import SHOWN, Curves, extrapolate, scaled_rate
from tests.scripts.running import rows, says_in_one_line

TINY = "--architecture mlp --examples 20 --width 0.1 --threads 1"
SIZES = "--paths 300 --runs 3 --equation-runs 3 --looks 2 --steps 8 --coarse 2"
SMALL = f"linear-scaling {TINY} {SIZES} --toy-factors 1 8 32 --scaled 0.1"
SCALED = f"{SMALL} --factors 1 4"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("linear-scaling")
    assert main([*SCALED.split(), "--out", str(folder)]) == 0
    return folder


def test_variances_of_the_toy_are_the_closed_forms(results):
    out = (results / "table.txt").read_text()
    assert (results / "figure.png").stat().st_size > 20_000
    for s in (1, 8, 32):
        h = 0.06 * s
        for line, share in zip(rows(out, str(s))[:2], (1.0, (32 - s) / 31), strict=True):
            exact = h * share / s / (2 - h)
            if exact == 0:
                assert line[4] == "0"  # a full batch has no noise
                continue
            variance, bar, said, equation = (float(line[i]) for i in (4, 6, 7, 8))
            assert said == pytest.approx(exact, abs=1e-5)
            assert equation == pytest.approx(h * share / s / 2, abs=1e-5)
            assert abs(variance - exact) < 5 * bar < exact  # 300 paths; five standard errors


def test_network_rows_are_those_of_runs_by_hand(results):
    out = (results / "table.txt").read_text()
    landscape, theta = NetGround("mlp", examples=20, width=0.1).build(0, torch.float64, "cpu")
    h = scaled_rate(0.1, float(torch.linalg.eigvalsh(landscape.hessian(theta)).abs().max()))
    seed = block_seed(0, zlib.crc32(b"subset-004"), 0)
    descent = StochasticGradientDescent(landscape, 4 * h, 16, "subset")
    end = descend(descent, theta.expand(3, -1), 2, seed=seed).theta[-1]
    (line,) = rows(out, "4", "subset", f"{4 * h:.4g}")
    losses, squares = landscape.loss(end), landscape.grad(end).square().sum(-1)
    assert line[3] == "16"
    assert float(line[5]) == pytest.approx(4 / 19, abs=1e-3)  # (N − b)/(N − 1)
    for values, place in ((losses, 6), (squares, 9)):
        bar = float(values.std()) / math.sqrt(3)
        assert float(line[place]) == pytest.approx(float(values.mean()), abs=bar / 10)
        assert float(line[place + 2]) == pytest.approx(bar, rel=0.06)  # two digits
    assert float(line[18]) == pytest.approx(float(end.var(dim=0).sum()), rel=0.02)
    (drift,) = rows(out, "gradient", "flow")
    flow = integrate(GradientFlow(landscape), theta, [0.0, 8 * h]).theta[-1]
    assert float(drift[3]) == pytest.approx(float(landscape.loss(flow)), abs=1e-4)


def test_run_goes_on_where_it_was_and_takes_more_factors(results, run):
    before = {path.stem: path.stat().st_mtime_ns for path in results.glob("*.safetensors")}
    (results / "sde-1-00000-3.safetensors").unlink()
    said = (results / "table.txt").read_text()
    status, out, _ = run(main, f"{SCALED} --out {results}")
    assert status == 0
    assert said.strip() in out
    after = {path.stem: path.stat().st_mtime_ns for path in results.glob("*.safetensors")}
    assert [name for name in before if after[name] != before[name]] == ["sde-1-00000-3"]
    assert run(main, f"{SMALL} --factors 1 2 4 --out {results}")[0] == 0
    assert len(list(results.glob("*.safetensors"))) == len(after) + 2


def curves(mean, spread):
    """Four runs at two times with these means of everything at the end."""
    values = {name: torch.stack([torch.zeros(4), mean + spread * torch.tensor([-1.0, 1, -1, 1])], 1) for name in SHOWN}
    return Curves(torch.tensor([0.0, 1.0]), values, torch.full((4, 1), 2.0) + spread * torch.tensor([[-1.0], [1]] * 2))


def test_rule_is_said_to_hold_up_to_the_first_factor_that_is_told_apart():
    means = {1: 1.0, 2: 1.05, 4: 2.0, 8: 1.0}
    found = {(s, sampling): curves(mean, 0.1) for s, mean in means.items() for sampling in ("replacement", "subset")}
    study = LinearScalingStudy("", Setting(0.1, 4, 32, 1.0), found, curves(1.0, 0.1), {}, {})
    assert study.largest_valid("replacement", "loss", study.equation) == 2
    assert study.largest_valid("subset", SCATTER, study.equation) == 8
    assert study.largest_valid("replacement", "loss", curves(3.0, 0.1)) is None
    assert study.end(curves(1.0, 0.1), SCATTER)[0] == pytest.approx(2 * 4 / 3)  # unbiased
    assert study.setting.noise(2, "replacement") == 1.0
    assert study.setting.noise(8, "subset") == 0.0


def test_extrapolation_takes_the_first_order_of_dt_out():
    limit, left = extrapolate(curves(1.4, 0.1), curves(1.2, 0.1))
    assert float(limit.mean("loss")[0][-1]) == pytest.approx(1.0)
    assert float(left["loss"][0][-1]) == pytest.approx(0.2)  # what the finer one was off by


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--factors 3", "factors must divide steps / looks = 4 into whole numbers, 3 does not"),
        ("--factors 1 1", "factors must hold at least one number, each once"),
        ("--batch-size 10 --factors 4", "factors must be at most 2"),
        ("--toy-factors 64", "toy_factors must be at most 32"),
        ("--toy-scaled 0.1", "toy_scaled must be below 0.0625"),
    ],
)
def test_bad_options_are_told_in_one_line(option, word, tmp_path, run):
    says_in_one_line(run(main, f"{SCALED} {option} --out {tmp_path}"), word)
