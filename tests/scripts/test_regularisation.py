"""Implicit against explicit regularisation: figures recomputed by hand, runs that go on, bad input in one line."""

import itertools
import math

import numpy as np
import pytest
import sympy
import torch
from torch.testing import assert_close

from flows import GradientDescent, integrate
from flows.engines.storage import load_tensors
from landscapes import TwoQuadratics, from_sympy
from landscapes.wrappers.gradient_penalties import GradientPenalty
from scripts.lab.network import NetGround
from scripts.lab.store import Store
from scripts.regularisation.__main__ import main
from scripts.regularisation.common import counted_descent, ladder_table, study
from scripts.regularisation.exact_means import mean_over_draws, mean_over_orders
from scripts.regularisation.mini_batch import in_batches
from scripts.regularisation.scatter import ScatteredFlow, scatter_drift
from tests.scripts.running import parts, says_in_one_line

NET = "--architecture mlp --examples 20 --width 0.1 --threads 1"
FULL = f"full-batch {NET} --rate 0.2 --steps 4 --slowdown 2 --ladder 1 0.5"
MINI = f"mini-batch {NET} --rate 0.2 --batches 2 --epochs 2 --runs 6 --slowdown 2 --ladder 1 0.5"


def network():
    landscape, theta = NetGround("mlp", examples=20, width=0.1).build(0, torch.float64, "cpu")
    return landscape, theta


def row(out, label, width):
    """The last ``width`` cells of the first row of the tables that begins with a label."""
    (line, *_) = [line for line in out.splitlines() if line.startswith(label + "  ")]
    return line[len(label) :].split()[-width:]


def penalised_descent(means, theta, h, steps, own, spread):
    """θ_k by autograd of the written-out loss: f̄ + own‖ḡ‖² + spread·mean‖g_k − ḡ‖², f_k = means[k]; (steps + 1, d)."""
    path = [theta]
    for _ in range(steps):
        x = path[-1].detach().requires_grad_()
        losses = [mean(x) for mean in means]
        grads = torch.stack([torch.autograd.grad(loss, x, create_graph=True)[0] for loss in losses])
        middle = grads.mean(0)
        total = sum(losses) / len(losses) + own * (middle @ middle)
        total = total + spread * (grads - middle).square().sum() / len(losses)
        path.append((x - h * torch.autograd.grad(total, x)[0]).detach())
    return torch.stack(path)


def test_full_batch_distances_are_those_of_runs_by_hand(tmp_path, run):
    status, out, err = run(main, f"{FULL} --out {tmp_path}")
    assert (status, err) == (0, "")
    assert (tmp_path / "table.txt").read_text().strip() in out
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    landscape, theta = network()
    coefficients = {
        "descent at h": 0.0,
        "at h, with H/4 · ‖∇f‖²": lambda H: H / 4,
        "at h, with (H − h)/4 · ‖∇f‖²": lambda H: H / 8,
    }
    f = [lambda x: landscape.losses(x).mean()]
    for i, (H, steps) in enumerate(((0.2, 4), (0.1, 8))):
        large = penalised_descent(f, theta, H, steps, 0.0, 0.0)[-1]
        for label, c in coefficients.items():
            small = penalised_descent(f, theta, H / 2, 2 * steps, c(H) if c else 0.0, 0.0)[-1]
            expected = float(torch.linalg.vector_norm(small - large))
            assert float(row(out, f"{label} to descent at H", 5)[i]) == pytest.approx(expected, rel=1e-3)
            if i == 0:
                shown = row(out, label, 2)
                assert float(shown[0]) == pytest.approx(expected, rel=1e-3)
        assert float(row(out, "at H, with −H/4 · ‖∇f‖² to gradient flow", 5)[i]) > 0
    cancelled = penalised_descent(f, theta, 0.2, 4, -0.05, 0.0)[-1]
    coarse, fine = (penalised_descent(f, theta, 0.8 / n, n, 0.0, 0.0)[-1] for n in (128, 256))
    fine = 2 * fine - coarse  # gradient flow, by extrapolation to h = 0
    expected = float(torch.linalg.vector_norm(cancelled - fine))
    assert float(row(out, "at H, with −H/4 · ‖∇f‖² to gradient flow", 5)[0]) == pytest.approx(expected, rel=1e-3)
    costs = row(out, "at h, with (H − h)/4 · ‖∇f‖²", 11)
    assert costs[:4] == ["0.1", "8", "8", "8"]
    assert float(costs[4]) == pytest.approx(float(landscape.loss(small_end(f, theta))), rel=1e-4)


def small_end(f, theta):
    return penalised_descent(f, theta, 0.1, 8, 0.025, 0.0)[-1]


def test_slopes_and_where_it_breaks(tmp_path, run):
    ladder = "--ladder 8 1 0.5 0.25"
    status, out, _ = run(main, f"full-batch {NET} --rate 0.1 --steps 8 --slowdown 2 {ladder} --out {tmp_path}")
    assert status == 0
    orders = {
        "descent at h to descent at H": 1,
        "at h, with H/4 · ‖∇f‖² to descent at H": 1,
        "at h, with (H − h)/4 · ‖∇f‖² to descent at H": 2,
        "descent at H to gradient flow": 1,
        "at H, with −H/4 · ‖∇f‖² to gradient flow": 2,
    }
    for label, order in orders.items():
        assert float(row(out, label, 4)[0]) == pytest.approx(order, abs=0.1), label
    assert out.count("leaves more than half of it at Hλ") == 2


def test_full_batch_goes_on_where_it_was_and_takes_more_rungs(tmp_path, run):
    out = run(main, f"{FULL} --out {tmp_path}")[1]
    before = parts(tmp_path)
    (tmp_path / "end-explicit-0.1.safetensors").unlink()
    assert run(main, f"{FULL} --out {tmp_path}")[1] == out
    after = parts(tmp_path)
    assert [name for name in before if after[name] != before[name]] == ["end-explicit-0.1"]
    assert run(main, f"{FULL} 0.25 --out {tmp_path}")[0] == 0
    more = parts(tmp_path)
    assert {name: more[name] for name in after} == after
    assert len(more) == len(after) + 6
    status, _, err = run(main, f"{FULL} --seed 1 --out {tmp_path}")
    assert status == 2
    assert "holds results made with other seed" in err


def test_a_reference_that_diverges_is_an_error(tmp_path, run):
    net = "--architecture polynomial-mlp --examples 20 --width 0.1 --threads 1 --slowdown 2"
    status, _, err = run(main, f"full-batch {net} --rate 0.5 --steps 16 --ladder 2 1 --out {tmp_path / 'full'}")
    assert status == 2
    assert "descent at H = 0.5 became non-finite" in err
    status, _, err = run(main, f"mini-batch {net} --rate 2 --out {tmp_path / 'mini'}")
    assert status == 2
    assert "not finite after step" in err


def test_what_diverges_ends_on_the_grid_and_is_a_dash(tmp_path):
    theta = torch.tensor([1.0, 2.0], dtype=torch.float64)
    store = Store(tmp_path, {})

    def build(f):
        return GradientDescent(GradientPenalty(f, 1.0), 1e3)

    for _ in range(2):  # run, then read
        way = counted_descent(store, "way", build, TwoQuadratics(), theta, 400, every=7)
        assert not bool(way["finished"])
        assert bool(way["theta"].isfinite().all())
        assert way["times"].tolist() == [7e3 * k for k in range(len(way["theta"]))]
    found = study([0.4, 0.2, 0.1], [math.nan, 4e-2, 1e-2], [0.0] * 3, theta, 2.0, "name")
    lines = ladder_table({"name": found}).splitlines()
    assert lines[2].split() == ["name", "–", "4.000e-02", "1.000e-02", "(2.00)", "–", "–"]


def test_mini_batch_figures_are_those_of_runs_by_hand(tmp_path, run):
    status, out, err = run(main, f"{MINI} --out {tmp_path}")
    assert (status, err) == (0, "")
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    landscape, theta = network()
    halves = torch.randperm(20, generator=torch.Generator().manual_seed(0)).split(10)
    f = [lambda x, half=half: landscape.losses(x, half).mean() for half in halves]
    H, h = 0.2, 0.1
    penalties = ((0.0, 0.0), ((H - h) / 4, 0.0), ((H - h) / 4, H / 4))
    predictions = [penalised_descent(f, theta, h, 8, *penalty)[::4] for penalty in penalties]

    def stepped(x, order):
        for k in order:
            x = x - H * landscape.batch_grad(x, halves[k])
        return x

    for name, orders, label in (
        ("epoch", [(0, 1), (1, 0)], "reshuffled"),
        ("replacement", list(itertools.product((0, 1), repeat=2)), "with replacement"),
    ):
        ends = torch.stack([stepped(theta, order) for order in orders])
        runs = load_tensors(tmp_path, f"runs-{name}-00000-6")[0]["theta"]
        nearest = (runs[:, 1, None] - ends).abs().amax(-1).min(dim=1)
        assert float(nearest.values.max()) < 1e-12  # rounding: every run is one of the possible ones
        assert len(nearest.indices.unique()) > 1
        single = out.split(f"one epoch from the start, {label}")[1]
        for text, path in zip(("f", "f + ‖∇f‖² term", "f + ‖∇f‖² and variance terms"), predictions, strict=True):
            expected = float(torch.linalg.vector_norm(path[1] - ends.mean(0)))
            assert float(row(single, text, 5)[0]) == pytest.approx(expected, rel=1e-3)
        check_rows(out.split(f"{label}, mean of 6 runs")[1], runs, predictions)


def check_rows(block, runs, predictions):
    """Distances, noise and coordinates of the table against numpy's least squares."""
    lines = [line for line in block.splitlines() if line[:1] in {"1", "2"}]
    for e, line in enumerate(lines[:2], start=1):
        cells = line.replace("±", "").split()
        states, (plain, norm, variance) = runs[:, e].numpy(), (path[e].numpy() for path in predictions)
        mean = states.mean(0)
        expected = [e, 0.4 * e]
        for prediction in (plain, norm, variance):
            away = mean - prediction
            size = np.linalg.norm(away)
            expected += [size, (states @ away / size).std(ddof=1) / math.sqrt(6)]
        expected.append(math.sqrt(states.var(0, ddof=1).sum() / 6))
        basis = np.stack([norm - plain, variance - norm], axis=-1)
        places = np.linalg.lstsq(basis, (states - plain).T, rcond=None)[0]
        for values in places:
            expected += [values.mean(), values.std(ddof=1) / math.sqrt(6)]
        # one digit of standard errors, three decimals of coordinates
        for shown, value in zip(cells, expected, strict=False):
            digits = len(shown.split("e")[0].replace(".", ""))
            assert float(shown) == pytest.approx(value, rel=0.6 * 10 ** (1 - digits), abs=6e-4), line


def test_mini_batch_goes_on_where_it_was_and_takes_more_runs(tmp_path, run):
    out = run(main, f"{MINI} --out {tmp_path}")[1]
    before = parts(tmp_path)
    (tmp_path / "runs-epoch-00000-6.safetensors").unlink()
    assert run(main, f"{MINI} --out {tmp_path}")[1] == out
    after = parts(tmp_path)
    assert [name for name in before if after[name] != before[name]] == ["runs-epoch-00000-6"]
    status, more, _ = run(main, f"{MINI} --runs 30 --out {tmp_path}")
    assert status == 0
    assert "mean of 30 runs" in more
    groups = [load_tensors(tmp_path, f"runs-epoch-000{name}")[0]["theta"] for name in ("00-25", "25-5", "00-6")]
    assert [len(group) for group in groups] == [25, 5, 6]
    assert torch.equal(groups[0][:6], groups[2])
    assert not torch.equal(groups[0][:5], groups[1])


def test_many_batches_leave_out_the_exact_means(tmp_path, run):
    arguments = f"mini-batch {NET} --rate 0.1 --batches 6 --epochs 1 --runs 3 --slowdown 2 --out {tmp_path}"
    status, out, _ = run(main, arguments)
    assert status == 0
    assert "omitted, as its exact mean takes up to 6^6 sequences" in out
    assert "mean of 3 runs" in out


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("", "subcommand"),
        ("full-batch --architecture foo", "architecture must be one of"),
        ("full-batch --rate 0", "rate must be positive"),
        ("full-batch --scaled -1", "scaled must be positive"),
        ("full-batch --slowdown 1", "slowdown must be at least 2"),
        ("full-batch --steps 0", "steps must be at least 1"),
        ("full-batch --steps 5 --ladder 2 1", "--ladder must divide --steps 5 into whole steps, 2 does not"),
        ("full-batch --ladder 1", "at least two different"),
        ("full-batch --ladder 1 -1", "ladder must be positive"),
        ("full-batch --device nosuch", "--device"),
        ("mini-batch --batches 1", "batches must be at least 2"),
        ("mini-batch --batches 400", "batches must be at most the number of examples, 300"),
        ("mini-batch --epochs 0", "epochs must be at least 1"),
        ("mini-batch --runs 2", "runs must be at least 3"),
        ("mini-batch --out /dev/null/x", "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, word, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says_in_one_line(run(main, arguments), word)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_help_names_the_options(run):
    status, out, _ = run(main, "mini-batch --help")
    assert status == 0
    for option in ("--rate", "--slowdown", "--batches", "--runs", "--epochs", "--ladder", "--architecture", "--data"):
        assert option in out


def test_exact_means_are_those_of_all_sequences():
    f, theta, h = network()[0], network()[1], 0.3
    epoch = in_batches(f, 3, 0)

    def end(order):
        x = theta
        for k in order:
            x = x - h * epoch.batch_grad(x, torch.tensor([k]))
        return x

    for mean, sequences in (
        (mean_over_orders, itertools.permutations(range(3))),
        (mean_over_draws, itertools.product(range(3), repeat=3)),
    ):
        assert_close(mean(epoch, h, theta), torch.stack([end(order) for order in sequences]).mean(0))


def test_batches_share_out_the_examples():
    f, theta = network()
    epoch = in_batches(f, 3, 1)  # 7, 7 and 6 examples
    assert [part.size for part in epoch.landscapes] == [7, 7, 6]
    total = sum(part.size * part.grad(theta) for part in epoch.landscapes) / 20
    assert_close(total, f.grad(theta))


def test_drift_of_scatter_is_half_the_third_derivative_of_the_covariance():
    x = sympy.Symbol("x")
    states = torch.randn(40, 3, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    cubic = from_sympy(x**3 / 6, [x])  # f' = x²/2: the mean of f' less f' at the mean is half the variance
    assert_close(scatter_drift(cubic, states), states.var(dim=0, correction=0) / 2)
    runs = torch.randn(40, 3, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drift = scatter_drift(TwoQuadratics(), runs)
    assert float(drift.abs().max()) < 1e-14  # rounding: no third derivative, no drift


def test_scattered_flow_is_pulled_along_straight_lines():
    f = TwoQuadratics(1.0)  # H = I and minimum at 0
    times = torch.tensor([0.0, 1.0, 3.0], dtype=torch.float64)
    drift = torch.tensor([[0.0, 0.0], [1.0, -2.0], [3.0, -6.0]], dtype=torch.float64)  # s = t (1, −2)
    flow = ScatteredFlow(f, times, drift)
    theta = torch.tensor([0.5, 0.25], dtype=torch.float64)
    for t in (0.0, 0.4, 1.0, 2.5, 3.0):
        assert_close(flow.velocity(t, theta), -theta - t * torch.tensor([1.0, -2.0], dtype=torch.float64))
    assert_close(flow.velocity(9.0, theta), -theta - drift[-1])
    # θ' = −θ − s₁t: θ(t) = (θ0 − s₁) e^{−t} + s₁ (1 − t)
    end = integrate(flow, theta, [0.0, 2.0]).theta[-1]
    s = drift[1]
    assert_close(end, (theta - s) * math.exp(-2) + s * (1 - 2.0), rtol=1e-6, atol=1e-7)
