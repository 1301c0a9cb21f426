"""Escape times: laws against quadrature and plain simulation, censored means against the truth, the script as run."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, NoisyGradientDescent, NoisyModifiedEquation
from flows.engines.storage import load_tensors
from flows.steady.passage_laws import chain_time, kramers_time, passage_integral, seen_target
from landscapes import DoubleWell, Quadratic
from landscapes.noise import IsotropicNoise
from scripts.stochastic.__main__ import main
from scripts.stochastic.escape import NOISES, Well
from scripts.stochastic.passage import MeanTime, mean_time, passage_times
from tests.scripts.running import says_in_one_line

WELL = Well(2.0, 0.5, 3, 30.0)
TINY = "escape --paths 200 --temperatures 0.2 --horizon 20 --h 0.25 --threads 1"


@pytest.mark.parametrize("T", [0.3, 0.05])
def test_integral_is_the_nested_quadrature(T):
    def inner(y):
        return quad(lambda z: math.exp(-WELL.potential(z) / T), y, 4)[0]

    expected = quad(lambda y: math.exp(WELL.potential(y) / T) * inner(y), -1, 1, epsrel=1e-10)[0] / T
    assert passage_integral(WELL.potential, T, 1.0, -1.0) == pytest.approx(expected, rel=1e-8)


def test_integral_down_a_slope_is_distance_over_speed():
    # dX = −g dt + √(2T) dW: the mean time over a distance is that without noise
    assert passage_integral(lambda x: 3.0 * x, 0.2, 1.5, -1.5) == pytest.approx(1.0, rel=1e-9)


def test_kramers_is_the_integral_as_the_temperature_falls():
    ends = [WELL.landscape.hessian(x).numpy() for x in (WELL.start, torch.zeros(3, dtype=torch.float64))]
    off = [
        kramers_time(WELL.barrier, T, *ends) / passage_integral(WELL.potential, T, 1.0, -1.0) - 1
        for T in (0.02, 0.01, 0.005)
    ]
    assert abs(off[-1]) < 0.01
    for coarse, fine in itertools.pairwise(off):
        assert coarse / fine == pytest.approx(2, abs=0.2)  # first order in T


def test_chain_is_the_mean_of_plain_simulated_chains():
    T, h, rng = 0.3, 0.25, np.random.default_rng(0)
    x, steps, going = np.ones(20_000), np.zeros(20_000), np.ones(20_000, dtype=bool)
    while going.any():
        x[going] += -h * 2.0 / 2 * x[going] * (x[going] ** 2 - 1) + math.sqrt(2 * T * h) * rng.normal(size=going.sum())
        steps[going] += 1
        going &= x > -1
    expected = chain_time(WELL.potential, WELL.slope, T, h, 1.0, -1.0)
    assert abs(h * steps.mean() - expected) < 4 * h * steps.std() / math.sqrt(20_000)
    # Siegmund 1979: seen at the ends of steps only, a target lies 0.5826 deviations of a step further off, up to O(h)
    for h in (1.6e-2, 4e-3):
        shifted = seen_target(-1.0, T, h)
        assert shifted == pytest.approx(-1 - 0.5826 * math.sqrt(2 * T * h), rel=1e-5)
        seen = chain_time(WELL.potential, WELL.slope, T, h, 1.0, -1.0)
        assert seen == pytest.approx(passage_integral(WELL.potential, T, 1.0, shifted), rel=h)


def test_chain_says_when_it_cannot_tell():
    assert math.isnan(chain_time(WELL.potential, WELL.slope, 0.006, 0.1, 1.0, -1.0))


def test_passages_of_plain_descent_are_dated_by_hand():
    theta0 = torch.tensor([[1.0], [0.6], [8.0]], dtype=torch.float64)
    descent = GradientDescent(Quadratic(torch.eye(1, dtype=torch.float64)), 0.5)  # halved at every step
    for segment in (1, 2, 200):
        times = passage_times(descent, theta0, lambda x: x[:, 0] < 0.5, 2.0, seed=0, segment=segment)
        assert times.tolist() == [1.0, 0.5, math.inf]  # steps 2, 1 and 5, of which four are taken
    assert passage_times(descent, theta0, lambda x: x[:, 0] < 0.5, 2.5, seed=0)[-1] == 2.5
    flow = GradientFlow(Quadratic(torch.eye(1, dtype=torch.float64)))
    still = NoisyModifiedEquation(flow.landscape, 0.5, IsotropicNoise(0.0, 1))
    assert passage_times(still, theta0, lambda x: x[:, 0] < 0.5, 2.0, seed=0, dt=0.25).tolist() == [
        0.75,
        0.25,
        math.inf,
    ]


@pytest.mark.parametrize("noise", NOISES)
def test_engines_agree_with_the_laws(noise):
    T, h, n = 0.2, 0.25, 1500
    gradient_noise = WELL.gradient_noise(noise, 2 * T / h)
    start = WELL.start.expand(n, -1)
    descent = NoisyGradientDescent(WELL.landscape, h, gradient_noise)
    along = T * WELL.share(noise)
    expected = chain_time(WELL.potential, WELL.slope, along, h, 1.0, -1.0)
    found = mean_time(passage_times(descent, start, WELL.has_escaped, 60.0, seed=1), 60.0, 10.0)
    assert abs(found.value - expected) < 4 * found.error
    if noise == "aligned":
        flow = NoisyModifiedEquation(WELL.landscape, h, gradient_noise)
        times = passage_times(flow, start, WELL.has_escaped, 60.0, seed=2, dt=h / 4, method="heun2")
        found = mean_time(times, 60.0, 10.0)
        exact = passage_integral(WELL.potential, along, 1.0, -1.0)
        assert abs(found.value - exact) < 4 * found.error + h / 4  # a passage is dated to the end of its step


def test_a_turned_well_is_the_well():
    straight = Well(2.0, 1.0, 3, 0.0).landscape
    theta = torch.randn(5, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert_close(straight.loss(theta), DoubleWell(dimension=3).loss(theta))
    hessian = WELL.landscape.hessian(WELL.start)
    assert_close(hessian @ WELL.axes[0], 2.0 * WELL.axes[0])
    assert_close(torch.linalg.eigvalsh(hessian), torch.tensor([0.5, 0.5, 2.0], dtype=torch.float64))
    assert float(WELL.landscape.grad(WELL.start).abs().max()) < 1e-15
    saddle = torch.zeros(3, dtype=torch.float64)
    assert float(WELL.landscape.loss(saddle)) == pytest.approx(WELL.barrier)
    assert WELL.has_escaped(-1.01 * WELL.start)
    assert not WELL.has_escaped(-0.99 * WELL.start)


def test_noises_have_equal_traces_and_their_shares_across_the_barrier():
    hessian, x = WELL.landscape.hessian(WELL.start), WELL.axes[0]
    turned = 0.75 * 2 + 0.25 * 0.5  # the first two diagonal entries of H, turned by 30°, are this and 2.5 less it
    shares = {
        "isotropic": 1.0,
        "aligned": 3 * 2 / 3,
        "diagonal": 3 * (0.75 * turned + 0.25 * (2.5 - turned)) / 3,
        "anti-aligned": 3 * 0.5 / 4.5,
    }
    for noise in NOISES:
        covariance = WELL.gradient_noise(noise, 0.7).covariance(WELL.start)
        assert float(covariance.trace()) == pytest.approx(3 * 0.7)
        assert float(x @ covariance @ x) == pytest.approx(0.7 * shares[noise])
        assert WELL.share(noise) == pytest.approx(shares[noise])
    assert_close(WELL.gradient_noise("aligned", 1.0).covariance(WELL.start), hessian)  # tr H = d here


def test_censored_means_cover_the_truth():
    truth, n, horizon = 2.0 + 30.0, 300, 25.0  # a delay of 2, then a constant rate
    draws = torch.empty(400, n, dtype=torch.float64).exponential_(1 / 30.0, generator=torch.Generator().manual_seed(0))
    times = torch.where(draws + 2 > horizon, math.inf, draws + 2)
    found = [mean_time(row, horizon, 5.0) for row in times]
    values, errors = np.array([m.value for m in found]), np.array([m.error for m in found])
    assert abs(values.mean() - truth) < 4 * values.std() / 20 + 0.01 * truth  # a ratio is biased by O(1/n)
    assert values.std() == pytest.approx(errors.mean(), rel=0.15)  # 400 runs know a deviation to 4 %
    covered = np.mean([low < truth < high for low, high in (m.interval for m in found)])
    assert 0.92 < covered < 0.98


def test_all_arrived_is_the_plain_mean_and_few_are_a_bound():
    times = torch.tensor([1.0, 2.0, 6.0], dtype=torch.float64)
    assert mean_time(times, 10.0, 5.0) == MeanTime(3.0, float(times.std()) / math.sqrt(3), 0.0, 3, 3)
    none = mean_time(torch.full((10,), math.inf, dtype=torch.float64), 10.0, 5.0)
    assert none.bound == pytest.approx(-50 / math.log(0.05))  # 10 paths watched for 5: e^{−50/τ} = 5 %
    assert math.isnan(none.value)
    assert none.interval == (none.bound, math.inf)


def test_table_figure_and_data(tmp_path, run):
    status, out, err = run(main, f"{TINY} --out {tmp_path}")
    assert (status, err) == (0, "")
    assert (tmp_path / "table.txt").read_text().strip() in out
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    times = load_tensors(tmp_path, "aligned-0.2-descent")[0]["times"]
    cells = next(line for line in out.splitlines() if line.startswith("aligned")).split()
    flat = Well(2.0, 0.5, 2, 30.0)
    assert float(cells[2]) == pytest.approx(0.2 * 1.6)
    assert float(cells[4]) == pytest.approx(passage_integral(flat.potential, 0.32, 1.0, -1.0), rel=1e-3)
    found = mean_time(times, 20.0, 10.0)
    assert float(cells[-5]) == pytest.approx(found.value, rel=0.02)
    assert float(cells[-3]) == pytest.approx(found.error, rel=0.1)
    assert float(cells[-2]) == pytest.approx(100 * found.arrived / 200, rel=1e-3)
    for noise in NOISES:  # what was measured is what is exact, in every row
        row = next(line for line in out.splitlines() if line.startswith(f"{noise}  ")).replace("%", "").split()
        at = row.index("±", row.index("±", row.index("±") + 1) + 1)
        assert abs(float(row[at - 1]) - float(row[at - 2])) < 4.5 * float(row[at + 1])
        assert abs(float(row[5]) - float(row[4])) < 4.5 * float(row[7])
    before = {path.stem: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    (tmp_path / "aligned-0.2-descent.safetensors").unlink()
    assert run(main, f"{TINY} --out {tmp_path}")[1] == out
    after = {path.stem: path.stat().st_mtime_ns for path in tmp_path.glob("*.safetensors")}
    assert [name for name in before if after[name] != before[name]] == ["aligned-0.2-descent"]
    assert len(before) == len(NOISES) * 3


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--h 0", "h must be positive"),
        ("--dimension 1", "dimension must be at least 2"),
        ("--temperatures -1", "temperatures must be positive"),
        ("--horizon 5", "horizon must be beyond 10"),
        ("--horizon 20.03", "horizon must be a whole number of steps"),
        ("--paths 1", "paths must be at least 2"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, word, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says_in_one_line(run(main, f"escape {arguments}"), word)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_rate_beyond_the_edge_is_one_line(tmp_path, run):
    said = run(main, f"escape --h 6 --horizon 60 --paths 4 --temperatures 0.2 --out {tmp_path}")
    says_in_one_line(said, "not finite")
