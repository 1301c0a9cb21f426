"""The SVAG ladder's exact moments against enumeration and limits, its table against runs by hand, and the script."""

import itertools
import math
import zlib

import pytest
import torch
from torch.testing import assert_close

from flows import SVAG, StochasticModifiedEquation, descend, integrate
from flows.ensembles.blocks import block_seed
from flows.steady.second_moments import OFFSET, SecondMoments
from landscapes.toys.finite_sums import FINITE_SUMS
from scripts.lab.network import NetGround
from scripts.stochastic.__main__ import main
from scripts.stochastic.runs import cell, scaled_rate
from tests.scripts.running import says_in_one_line

TINY = "--architecture mlp --examples 20 --width 0.1 --threads 1"
SMALL = f"svag {TINY} --levels 1 2 --network-levels 1 2 --paths 400 --runs 3 --equation-runs 3 --steps 3"
SVAG_RUN = f"{SMALL} --network-steps 3 --substeps 1"


def row(out, label):
    (line, *_) = [line for line in out.splitlines() if line.startswith(label + "  ")]
    return line[len(label) :].split()


@pytest.mark.parametrize("name", ["two-quadratics", "noisy-quadratic", "linear-regression"])
@pytest.mark.parametrize("level", [1, 3])
def test_exact_moments_are_the_mean_over_every_pair_of_mini_batches(name, level):
    landscape = FINITE_SUMS[name]()
    moments, h, steps = SecondMoments(landscape), 0.1, 1 if landscape.size > 2 else 2
    theta = (moments.minimum + torch.tensor([0.5, -1.0, 2.0])[: landscape.dimension])[None]
    plus, minus = SVAG(landscape, h, 1, level).coefficients
    pairs = itertools.product(range(landscape.size), repeat=2 if level > 1 else 1)
    choices = torch.tensor(list(pairs))
    for _ in range(steps):
        grads = landscape.example_grads(theta)  # (n, N, d)
        step = plus * grads[:, choices[:, 0]] + (minus * grads[:, choices[:, 1]] if level > 1 else 0)
        theta = (theta[:, None] - h / level * step).reshape(-1, landscape.dimension)
    found = moments.expectations(moments.descent(theta_start(moments), h / level, level, steps)[-1])
    for key, function in moments.functions().items():
        assert_close(found[key], function(theta).mean(), rtol=1e-12, atol=1e-12)


def theta_start(moments):
    return moments.minimum + torch.tensor([0.5, -1.0, 2.0])[: moments.landscape.dimension]


@pytest.mark.parametrize("name", ["two-quadratics", "linear-regression"])
def test_equation_is_the_limit_of_svag_and_of_euler_steps(name):
    moments = SecondMoments(FINITE_SUMS[name]())
    h, time = 0.2, torch.tensor([0.0, 0.6], dtype=torch.float64)
    exact = moments.expectations(moments.equation(theta_start(moments), h, 0.5, time))
    descents = {n: moments.descent(theta_start(moments), h / n, 0.5 * n, 3 * n) for n in (512, 1024)}
    fine = {n: moments.expectations(states[-1]) for n, states in descents.items()}
    for key, values in exact.items():
        assert_close(values[0], moments.functions()[key](theta_start(moments)))
        extrapolated = 2 * fine[1024][key] - fine[512][key]  # what is left is O(1/n²) ~ 1e-6
        assert_close(extrapolated, values[1], rtol=3e-6, atol=1e-9)


def test_moments_refuse_what_they_cannot_do():
    with pytest.raises(TypeError, match="sum of quadratics"):
        SecondMoments(NetGround("mlp", examples=20, width=0.1).build(0, torch.float64, "cpu")[0])


def test_cells_leave_rounding_out():
    assert cell(1.0, 1e-16) == "1"
    assert cell(1e-33, 1e-34) == "0"
    assert cell(1.2345, 0.012) == "1.234 ± 0.012"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """The folder of a whole run, and what it prints when asked again."""
    folder = tmp_path_factory.mktemp("svag")
    assert main([*SVAG_RUN.split(), "--out", str(folder)]) == 0
    return folder


def test_script_prints_exact_moments_and_writes_a_figure(results):
    out = (results / "table.txt").read_text()
    assert (results / "figure.png").stat().st_size > 20_000
    moments = SecondMoments(FINITE_SUMS["linear-regression"]())
    h = scaled_rate(0.3, moments.sharpness)
    time = torch.tensor([3 * h], dtype=torch.float64)
    start = moments.minimum + 1
    block = out.split("linear-regression: ")[1]
    for name in ("loss", OFFSET):
        svag = float(moments.expectations(moments.descent(start, h / 2, 2.0, 6)[-1])[name])
        equation = float(moments.expectations(moments.equation(start, h, 1.0, time)[0])[name])
        exact = [float(x) for x in row(block, f"{name}, exact")]
        assert exact[1:] == pytest.approx([svag, equation], abs=1e-5)
        paths, bar = (float(x) for x in row(block, f"{name}, from paths")[3:6:2])
        assert abs(paths - svag) < 5 * bar < svag  # 400 paths; five standard errors


def test_network_rows_are_those_of_runs_by_hand(results):
    out = (results / "table.txt").read_text()
    landscape, theta = NetGround("mlp", examples=20, width=0.1).build(0, torch.float64, "cpu")
    h = scaled_rate(0.5, float(torch.linalg.eigvalsh(landscape.hessian(theta)).abs().max()))
    found = landscape.loss(by_hand(SVAG(landscape, h, 4, 2), theta, 6, "network-0002"))
    shown = [float(x) for x in row(out, "2")[:3:2]]
    assert shown[0] == pytest.approx(float(found.mean()), abs=shown[1] / 10)
    assert shown[1] == pytest.approx(float(found.std()) / math.sqrt(3), rel=0.06)  # two digits
    flow = StochasticModifiedEquation(landscape, h, 4)
    ends = [
        integrate(flow, theta.expand(3, -1), [0.0, 2 * h, 3 * h], dt=dt, seed=seed_of("network-sde")).theta[-1]
        for dt in (h, h / 2)
    ]
    limit = 2 * landscape.loss(ends[1]) - landscape.loss(ends[0])
    mean, bar = (float(x) for x in out.split("\nSDE ")[-1].split()[:3:2])
    assert mean == pytest.approx(float(limit.mean()), abs=bar / 10)


def seed_of(stream):
    return block_seed(0, zlib.crc32(stream.encode()), 0)


def by_hand(descent, theta, steps, stream):
    return descend(descent, theta.expand(3, -1), steps, seed=seed_of(stream)).theta[-1]


def test_run_goes_on_where_it_was_and_takes_more_levels(results, run):
    before = {path.stem: path.stat().st_mtime_ns for path in results.glob("*.safetensors")}
    (results / "network-0002-00000-3.safetensors").unlink()
    said = (results / "table.txt").read_text()
    status, out, _ = run(main, f"{SVAG_RUN} --out {results}")
    assert status == 0
    assert said.strip() in out
    after = {path.stem: path.stat().st_mtime_ns for path in results.glob("*.safetensors")}
    assert [name for name in before if after[name] != before[name]] == ["network-0002-00000-3"]
    more = SVAG_RUN.replace("--levels 1 2", "--levels 1 2 4")
    assert run(main, f"{more} --out {results}")[0] == 0
    assert len(list(results.glob("*.safetensors"))) == len(after) + 2


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--levels 1 1", "levels must hold every level once"),
        ("--network-levels 0", "network_levels"),
        ("--paths 3", "paths"),
        ("--network-batch-size 21", "batch_size must be at most"),
        ("--toy-scaled -1", "toy_scaled"),
    ],
)
def test_bad_options_are_told_in_one_line(option, word, tmp_path, run):
    says_in_one_line(run(main, f"{SMALL} {option} --out {tmp_path}"), word)
