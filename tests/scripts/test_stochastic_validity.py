"""Validity of SGD's equation on a network: figures recomputed by hand, runs that go on, bad input in one line."""

import math

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, descend
from flows.engines.storage import load_tensors
from flows.ensembles.blocks import block_seed
from landscapes import Quadratic
from landscapes.sampling import sampling_of
from scripts.lab.network import NetGround
from scripts.stochastic.__main__ import main
from scripts.stochastic.validity import correlation
from scripts.stochastic.validity_runs import PATHS, GridCell, all_states
from tests.scripts.running import parts, says_in_one_line

NET = "validity --architecture mlp --examples 20 --width 0.1 --threads 1"
SMALL = f"{NET} --scaled 0.5 0.25 --batches 2 10 --seeds 2 --second-seeds 1 --second-above 0.4 --runs 3 --sgd-runs 3"


def network():
    return NetGround("mlp", examples=20, width=0.1).build(0, torch.float64, "cpu")


def by_hand(landscape, theta, h, batch_size, steps, seed):
    """SGD with replacement, each gradient by autograd of the mean loss of the examples drawn."""
    sampler = sampling_of(landscape.size, batch_size, "replacement")
    generator = torch.Generator().manual_seed(seed)
    for k in range(steps):
        index, _ = sampler.draw(torch.arange(landscape.size), k, generator)
        x = theta.detach().requires_grad_()
        loss = landscape.losses(x)[index].mean()
        theta = theta - h * torch.autograd.grad(loss, x)[0]
    return theta.detach()


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder and output of a small run."""
    folder = tmp_path_factory.mktemp("validity")
    printed = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *said, **_: printed.append(" ".join(map(str, said))))
        assert main(f"{SMALL} --steps 2 --out {folder}".split()) == 0
    return folder, "\n".join(printed)


def test_paths_are_those_of_sgd_and_the_figures_theirs(made):
    folder, out = made
    assert (folder / "table.txt").read_text().strip() in out
    assert (folder / "figure.png").stat().st_size > 20_000
    landscape, theta0 = network()
    paths = sorted(name for name in parts(folder) if name.startswith("paths-1-"))
    assert len(paths) == 2 * 2 * 2
    largest = max(float(name.split("-")[2]) for name in paths)
    for name in paths:
        _, _, h, batch_size, _, number = name.split("-")
        run, _ = load_tensors(folder, name)
        steps = 2 * round(largest / float(h))
        expected = by_hand(landscape, theta0, float(h), int(batch_size), steps, block_seed(0, PATHS, int(number)))
        assert_close(run["sgd"][-1], expected, rtol=1e-10, atol=1e-12)
        assert_close(run["step"], run["sgd"], rtol=1e-10, atol=1e-12)  # Euler's method at dt = h
        assert float((run["fine"][-1] - expected).norm()) > 1e-4
        assert float((run["fine"] - run["coarse"])[-1].norm()) < 0.6 * float((run["fine"][-1] - expected).norm())


def test_tables_hold_the_differences_of_what_is_on_disk(made):
    folder, out = made
    landscape, theta0 = network()
    shown = {}
    for name in sorted(parts(folder)):
        if name.startswith("paths-1-"):
            run, _ = load_tensors(folder, name)
            error = (run["fine"][-1] - run["sgd"][-1]).norm() / (run["sgd"][-1] - theta0).norm()
            shown.setdefault(tuple(name.split("-")[2:4]), []).append(float(error))
    rows = [line.split() for line in out.splitlines() if line.count("±") >= 2 and line[0].isdigit()][: len(shown)]
    for row in rows:
        h, batch_size, mean = float(row[1]), row[2], float(row[5])
        (errors,) = [x for (rate, b), x in shown.items() if b == batch_size and abs(float(rate) - h) < 1e-3 * h]
        assert mean == pytest.approx(sum(errors) / len(errors), rel=0.2)
    for name in parts(folder):
        if name.startswith("law-"):
            losses = load_tensors(folder, name)[0]["loss"]
            assert losses.shape[-2:] == (3, 3)
            assert_close(losses[..., 0, :], landscape.loss(theta0).expand(losses[..., 0, :].shape))


def test_laws_are_extrapolated_and_their_errors_those_of_independent_runs(made):
    folder, out = made
    block = out.split("law of loss at T")[1].split("law of")[0].splitlines()[2:]
    rows = [line.split() for line in block if line.strip()]
    largest = max(float(name.split("-")[3]) for name in parts(folder) if name.startswith("law-sde-"))
    assert len(rows) == 4
    for name in parts(folder):
        if not name.startswith("law-sde-"):
            continue
        _, _, _, h, batch_size, *_ = name.split("-")
        fine, coarse = load_tensors(folder, name)[0]["loss"][:, -1]
        sgd = load_tensors(folder, f"law-sgd-{h}-{batch_size}-0000-3")[0]["loss"][-1]
        extrapolated = 2 * fine - coarse
        expected = float(extrapolated.mean() - sgd.mean())
        error = float((extrapolated.var() / 3 + sgd.var() / 3).sqrt())
        place = (2 if float(h) < 0.75 * largest else 0) + (batch_size == "10")
        assert float(rows[place][5]) == pytest.approx(expected, abs=0.06 * error + 1e-9)
        assert float(rows[place][7]) == pytest.approx(error, rel=0.06)


def test_a_run_goes_on_and_takes_more_seeds(made, run):
    folder, _ = made
    before = parts(folder)
    removed = next(name for name in before if name.startswith("law-sde"))
    (folder / f"{removed}.safetensors").unlink()
    more = SMALL.replace("--seeds 2", "--seeds 3")
    status, _, err = run(main, f"{more} --steps 2 --out {folder}")
    assert (status, err) == (0, "")
    after = parts(folder)
    new = {name for name in after if after[name] != before.get(name)}
    assert removed in new
    assert {name for name in new if not name.startswith("paths-1-")} == {removed}
    assert len(new) == 1 + 4


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("--scaled 0.5 0.3", "divide"),
        ("--scaled 0.25 0.5", "fall strictly"),
        ("--batches 21", "batch_size"),
        ("--runs 2", "runs"),
        ("--sampling epoch", "sampling"),
        ("--tolerance 0", "tolerance"),
        ("--steps 0", "steps"),
    ],
)
def test_bad_options_are_one_line(options, word, tmp_path, run):
    says_in_one_line(run(main, f"{NET} --batches 2 --runs 3 {options} --out {tmp_path}"), word)


def test_lost_runs_are_nan_after_their_start():
    theta = torch.tensor([[1.0], [1e200]], dtype=torch.float64)
    descent = GradientDescent(Quadratic(torch.full((1, 1), 1e60, dtype=torch.float64)), 1.0)
    states = all_states(descend(descent, theta, 4), 5)
    assert states.shape == (5, 2, 1)
    assert bool(states[0].isfinite().all())
    assert bool(states[1:, 1].isnan().all())
    assert bool(states[1:, 0].isfinite().all())


def test_cells_share_their_times_and_ranks_their_order():
    coarse, fine = GridCell(0.6, 2, 4, 1), GridCell(0.2, 2, 12, 3)
    assert_close(torch.tensor(coarse.times), torch.tensor(fine.times))
    assert correlation([1, 2, 3], [10, 100, 1000]) == pytest.approx(1)
    assert correlation([1, 2, 3, 4], [4, math.nan, 2, 1]) == pytest.approx(-1)
    assert math.isnan(correlation([1, 1, 1], [1, 2, 3]))
