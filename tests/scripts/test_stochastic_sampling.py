"""The three samplings: exact laws against enumeration of orders, refinement and linear algebra; rows; the script."""

import itertools
import math
import zlib

import pytest
import torch

from flows import GradientFlow, StochasticGradientDescent, descend, integrate
from flows.ensembles.blocks import block_seed
from flows.steady.additive_laws import AdditiveLaw
from landscapes import NoisyQuadratic
from scripts.lab.network import NetGround
from scripts.stochastic.__main__ import main
from scripts.stochastic.runs import scaled_rate
from scripts.stochastic.sampling import HESSIAN
from scripts.stochastic.sampling_results import middle_step
from tests.scripts.running import rows, says_in_one_line

MATRIX = torch.tensor(HESSIAN, dtype=torch.float64)
TINY = "--architecture mlp --examples 20 --width 0.1 --threads 1"
SMALL = f"sampling {TINY} --paths 200 --runs 3 --substeps 1 --network-substeps 1 --steps 4 --toy-batch-sizes 4 16"
SAMPLED = f"{SMALL} --batch-sizes 5 20 --equation-batch-size 5"


def orders(landscape, b, k):
    """θ after k steps from 0 in every order of the examples of each epoch, all as likely; b = N/2, two batches."""
    n = landscape.size
    halves = [list(half) for half in itertools.combinations(range(n), b)]
    other = [[i for i in range(n) if i not in half] for half in halves]
    return [[(half, rest)[j % 2] for j in range(k)] for half, rest in zip(halves, other, strict=True)]


@pytest.mark.parametrize("k", [1, 2])
def test_epoch_law_is_the_mean_over_all_orders(k):
    landscape, h = NoisyQuadratic(MATRIX, 6, seed=3), 0.3
    losses = []
    for batches in orders(landscape, 3, k):
        theta = torch.zeros(2, dtype=torch.float64)
        for batch in batches:
            theta = theta - h * landscape.batch_grad(theta, torch.tensor(batch))
        losses.append(float(landscape.loss(theta)))
    assert AdditiveLaw(landscape, h, 3, "epoch").descent(k) == pytest.approx(sum(losses) / len(losses), rel=1e-12)


def test_epoch_law_over_two_epochs_is_the_mean_over_all_pairs_of_orders():
    landscape, h = NoisyQuadratic(MATRIX, 4, seed=3), 0.3
    sequences = [a + b for a, b in itertools.product(orders(landscape, 2, 2), repeat=2)]
    for k in (3, 4):
        theta = torch.zeros(len(sequences), 2, dtype=torch.float64)
        for j in range(k):
            theta = theta - h * landscape.batch_grad(theta, torch.tensor([batches[j] for batches in sequences]))
        expected = float(landscape.loss(theta).mean())
        assert AdditiveLaw(landscape, h, 2, "epoch").descent(k) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("sampling", "share"), [("replacement", 1.0), ("subset", 12 / 15)])
def test_stationary_losses_are_those_of_the_lyapunov_equations(sampling, share):
    landscape, h, b = NoisyQuadratic(MATRIX, 16, seed=0), 0.3, 4
    law, values = AdditiveLaw(landscape, h, b, sampling), torch.linalg.eigvalsh(MATRIX)
    for found, covariance in (
        (law.descent(400), h / b * share * values / (2 - h * values)),
        (law.equation(400 * h), h / b * share * values / 2),
    ):
        assert found == pytest.approx(float((values * covariance).sum()) / 2, rel=1e-9)


@pytest.mark.parametrize("sampling", ["replacement", "subset", "epoch"])
def test_equation_is_the_limit_of_euler_and_euler_at_h_is_sgd(sampling):
    law = AdditiveLaw(NoisyQuadratic(MATRIX, 16, seed=0), 0.3, 4, sampling)
    for k in (0, 3, 4, 10):
        assert law.euler(k, 1) == pytest.approx(law.descent(k), rel=1e-12)
        extrapolated = 2 * law.euler(k, 2048) - law.euler(k, 1024)
        assert law.equation(k * law.h) == pytest.approx(extrapolated, rel=1e-5)  # O(dt²) with dt = h/1024
        assert law.equation(k * law.h) < law.descent(k) or k == 0


def test_noise_of_an_epoch_sums_to_zero_where_there_is_no_drift():
    law = AdditiveLaw(NoisyQuadratic(MATRIX * 1e-4, 16, seed=0), 0.3, 4, "epoch")
    assert law.descent(4) < 1e-5 * law.descent(2)
    assert law.equation(4 * law.h) < 1e-5 * law.equation(2 * law.h)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sampling")
    assert main([*SAMPLED.split(), "--out", str(folder)]) == 0
    return folder


def test_script_prints_exact_losses_and_writes_a_figure(results):
    out = (results / "table.txt").read_text()
    assert (results / "figure.png").stat().st_size > 20_000
    landscape = NoisyQuadratic(MATRIX, 16, seed=0)
    h = scaled_rate(0.5, float(torch.linalg.eigvalsh(MATRIX)[-1]))
    for sampling in ("replacement", "subset", "epoch"):
        law = AdditiveLaw(landscape, h, 4, sampling)
        for j, line in enumerate(rows(out, "4", sampling)):
            k = (middle_step(int(line[2]), 4), int(line[2]))[j]
            mean, bar, exact, equation = (float(line[i]) for i in (3, 5, 6, 10))
            assert exact == pytest.approx(law.descent(k), rel=1e-3)
            assert equation == pytest.approx(law.equation(k * h), rel=1e-3)
            assert abs(mean - exact) < 5 * bar < exact  # 200 paths; five standard errors
    assert all(line[3] == "0" for line in rows(out, "16", "subset") + rows(out, "16", "epoch"))


def test_network_rows_are_those_of_runs_by_hand(results):
    out = (results / "table.txt").read_text()
    landscape, theta = NetGround("mlp", examples=20, width=0.1).build(0, torch.float64, "cpu")
    h = scaled_rate(0.2, float(torch.linalg.eigvalsh(landscape.hessian(theta)).abs().max()))
    seed = block_seed(0, zlib.crc32(b"epoch-0005"), 0)
    states = descend(StochasticGradientDescent(landscape, h, 5, "epoch"), theta.expand(3, -1), 4, seed=seed).theta
    (line,) = rows(out, "5", "epoch")
    for state, place in ((states[2], 3), (states[4], 6)):
        scatter = float(state.var(dim=0).sum())
        assert float(line[place]) == pytest.approx(scatter, rel=0.02)  # the digits that are printed
    losses = landscape.loss(states[4])
    assert float(line[12]) == pytest.approx(float(losses.mean()), abs=float(losses.std()) / math.sqrt(3) / 10)
    assert [line[3] for line in (*rows(out, "20", "subset"), *rows(out, "20", "epoch"))] == ["0", "0"]
    flow = landscape.loss(integrate(GradientFlow(landscape), theta, [0.0, 4 * h]).theta[-1])
    assert f"whose loss is {float(flow):.4f}" in out
    assert float(rows(out, "5", "subset")[0][2]) == pytest.approx(15 / 19, abs=1e-3)


def test_run_goes_on_where_it_was(results, run):
    before = {path.stem: path.stat().st_mtime_ns for path in results.glob("*.safetensors")}
    (results / "epoch-0005-00000-3.safetensors").unlink()
    said = (results / "table.txt").read_text()
    status, out, _ = run(main, f"{SAMPLED} --out {results}")
    assert status == 0
    assert said.strip() in out
    after = {path.stem: path.stat().st_mtime_ns for path in results.glob("*.safetensors")}
    assert [name for name in before if after[name] != before[name]] == ["epoch-0005-00000-3"]


@pytest.mark.parametrize(
    ("option", "word"),
    [
        ("--toy-batch-sizes 3", "toy_batch_sizes must divide the 16 examples"),
        ("--batch-sizes 7", "batch_sizes must divide the 20 examples"),
        ("--batch-sizes 4 --equation-batch-size 5", "steps must be whole epochs"),
        ("--toy-scaled 3", "toy_scaled must be below 2"),
        ("--runs 1", "runs"),
    ],
)
def test_bad_options_are_told_in_one_line(option, word, tmp_path, run):
    options = f"{SMALL} {option}"
    says_in_one_line(run(main, f"{options} --out {tmp_path}"), word)
