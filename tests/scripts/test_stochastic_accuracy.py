"""Test accuracy under noises of equal trace: runs against plain loops, differences by hand, the script as run."""

import math

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from flows.engines.storage import load_tensors
from nets import load_data
from scripts.lab.network import NetGround
from scripts.stochastic.__main__ import main
from scripts.stochastic.accuracy import MODELS, Accuracy, gather_runs, mean_at_end, p_value
from tests.scripts.running import parts, says_in_one_line

GROUND = NetGround("lenet", examples=20, width=0.25)
TINY = (
    "accuracy --architecture lenet --examples 20 --width 0.25 --steps 8 --looks 4 --seeds 2 --dtype float64 --threads 1"
)
OPTIONS = Accuracy(ground=GROUND, steps=8, looks=4, seeds=2, dtype="float64")


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    """The folder of a tiny run."""
    folder = tmp_path_factory.mktemp("accuracy")
    assert main(f"{TINY} --out {folder}".split()) == 0
    return folder


def test_descent_is_the_plain_loop_and_the_test_part_is_tested(done):
    seen = load_tensors(done, "descent-1")[0]
    landscape = GROUND.build(0, torch.float64, "cpu")[0]
    theta = GROUND.build(1, torch.float64, "cpu")[1]  # the second run's weights on the first's images
    for _ in range(8):
        theta = theta - 0.5 * landscape.grad(theta)
    assert_close(seen["loss"][-1], landscape.loss(theta))
    assert_close(seen["times"], torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64))
    assert_close(seen["sharpness"][-1], torch.linalg.eigvalsh(landscape.hessian(theta))[-1], rtol=1e-3, atol=0)
    grads = landscape.example_grads(theta)
    spread = (grads - grads.mean(0)).square().sum() / 20 / 8  # tr D/b
    assert_close(seen["noise trace"][-1], spread)
    data = load_data("digits", train=False)
    module = GROUND.parts(0, torch.float64, "cpu")[0]
    torch.nn.utils.vector_to_parameters(theta, module.parameters())
    right = (module(data.inputs.double()).argmax(1) == data.targets).double().mean()
    assert_close(seen["test accuracy"][-1], right)


@pytest.mark.parametrize("name", ["SDE, its noise", "SDE, diagonal", "SDE, isotropic"])
def test_noises_have_the_covariance_they_are_called_by(name):
    landscape, theta = OPTIONS.landscape, OPTIONS.weights(0)
    noise = MODELS["SDE, its noise"](landscape, 0.5, OPTIONS.noise).noise
    flow = MODELS[name](landscape, 0.5, OPTIONS.noise)
    grads = landscape.example_grads(theta)
    apart = (grads - grads.mean(0)) / math.sqrt(20 * 8)
    true = apart.mT @ apart
    d = len(true)
    expected = {
        "SDE, its noise": true,
        "SDE, diagonal": torch.diag(true.diagonal()),
        "SDE, isotropic": true.trace() / d * torch.eye(d, dtype=torch.float64),
    }[name]
    assert_close(flow.noise.covariance(theta), expected, rtol=1e-9, atol=1e-14)
    assert_close(flow.noise.trace(theta), noise.trace(theta))


def test_table_is_made_of_the_runs(done):
    out = (done / "table.txt").read_text()
    assert (done / "figure.png").stat().st_size > 20_000
    runs = {name: [load_tensors(done, f"{name}-{seed}")[0]["loss"] for seed in (0, 1)] for name in ("SGD", "descent")}
    ends = {name: torch.stack([run[-1] for run in each]) for name, each in runs.items()}  # a quarter of five looks: one
    rows = [line for line in out.splitlines() if line.startswith("descent")]
    for row, values in zip(rows, (ends["descent"], ends["descent"] - ends["SGD"]), strict=True):
        cells = row.replace("±", "").split()[1:]
        assert float(cells[4]) == pytest.approx(float(values.mean()), abs=6e-4)
        assert float(cells[5]) == pytest.approx(float(values.std()) / math.sqrt(2), rel=0.1)


def test_seeds_differ_and_models_share_their_weights(done):
    for seed in (0, 1):
        starts = [float(load_tensors(done, f"{name}-{seed}")[0]["loss"][0]) for name in ("SGD", "SDE-isotropic")]
        assert starts[0] == starts[1]
    ends = {stem: float(load_tensors(done, stem)[0]["loss"][-1]) for stem in parts(done)}
    assert len(set(ends.values())) == len(ends) == 2 * len(MODELS)


def test_it_goes_on_where_it_was_and_takes_more_seeds(done, run):
    before = parts(done)
    (done / "SGD-1.safetensors").unlink()
    text = (done / "table.txt").read_text()
    assert run(main, f"{TINY} --out {done}")[0] == 0
    assert (done / "table.txt").read_text() == text
    after = parts(done)
    assert [name for name in before if after[name] != before[name]] == ["SGD-1"]
    assert run(main, f"{TINY} --seeds 3 --out {done}")[0] == 0
    more = parts(done)
    assert {name: more[name] for name in after} == after
    assert len(more) == 3 * len(MODELS)


def test_late_means_and_chance():
    runs = [{"times": torch.arange(8.0), "loss": torch.arange(8.0) + i} for i in range(3)]
    seen = gather_runs(runs)
    assert seen["loss"].shape == (3, 8)
    assert mean_at_end(seen["loss"]).tolist() == [6.5, 7.5, 8.5]  # the last two of eight
    values = torch.tensor([0.1, 0.3, -0.1, 0.4, 0.2], dtype=torch.float64)
    assert float(p_value(values)) == pytest.approx(stats.ttest_1samp(values.numpy(), 0).pvalue, rel=0.05)
    assert p_value(torch.zeros(4, dtype=torch.float64)) == "–"


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--h 0", "h must be positive"),
        ("--looks 7", "looks must divide the 600 steps"),
        ("--seeds 1", "seeds must be at least 2"),
        ("--sampling epoch", "sampling must be one of"),
        ("--architecture foo", "architecture must be one of"),
        ("--batch-size 0", "batch_size must be at least 1"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, word, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says_in_one_line(run(main, f"accuracy {arguments}"), word)
    assert not list(tmp_path.rglob("*.safetensors"))


def test_a_run_that_diverges_is_one_line(tmp_path, run):
    said = run(main, f"{TINY} --h 1e30 --loss square --activation gelu --out {tmp_path}")
    says_in_one_line(said, "not finite")
