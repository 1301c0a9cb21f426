"""DAL against fixed rates: the loop against torch's own, rates against dense algebra, resumed grids, honest tables."""

import json
import re

import matplotlib
import pytest
import torch
from matplotlib.figure import Figure
from torch.testing import assert_close

from flows.engines.storage import load_tensors
from nets import NetworkLandscape, build_network, cross_entropy, load_data
from nets.architectures.convolutional import VGG
from scripts.principal_flow import rate_report
from scripts.principal_flow.__main__ import main
from scripts.principal_flow.learning_rates import PLANS, LearningRates
from scripts.principal_flow.rate_report import RateCell, figure, format_mean, mean_and_error
from scripts.principal_flow.rate_runs import RateRule, Training, train_run

TINY = "--architecture mlp --examples 40 --test-examples 20 --epochs 2 --sharpness-every 1 --dtype float64"
GRID = f"{TINY} --rates 0.2 0.5 --powers 0.5 1 --batch-sizes 15 all --seeds 2"
PARTS = 16


def network(seed):
    return build_network("mlp", (1, 8, 8), 10, width=0.125, seed=seed).double()


def training(epochs=2, cap=5.0, drift="exact", chunk_size=1000):
    train, test = load_data("digits", limit=40), load_data("digits", train=False, limit=20)
    return Training(network, train, test, epochs, cap, drift, 1, chunk_size)


def plain_loop(h, batch_size, seed, epochs=2):
    """Losses and accuracies of torch's SGD as anyone writes it."""
    train, test = load_data("digits", limit=40), load_data("digits", train=False, limit=20)
    model = network(seed)
    optimizer = torch.optim.SGD(model.parameters(), lr=h)
    generator = torch.Generator().manual_seed(seed)
    losses, accuracies = [], []
    for epoch in range(epochs + 1):
        for batch in torch.randperm(40, generator=generator).split(batch_size) if epoch else ():
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(train.inputs[batch]), train.targets[batch]).backward()
            optimizer.step()
        with torch.no_grad():
            losses.append(torch.nn.functional.cross_entropy(model(train.inputs), train.targets))
            accuracies.append((model(test.inputs).argmax(1) == test.targets).double().mean())
    return torch.stack(losses), torch.stack(accuracies)


def test_a_fixed_rate_is_torchs_own_loop():
    result = train_run(training(), RateRule(0.3), 15, seed=4)
    losses, accuracies = plain_loop(0.3, 15, seed=4)
    assert_close(result["training loss"], losses, rtol=1e-12, atol=0)
    assert_close(result["test accuracy"], accuracies)
    assert result["rates"].tolist() == [0.3] * 6
    assert bool(result["finished"])


def test_dal_at_its_cap_is_the_fixed_rate_so_weights_and_batches_are_the_rules_own_affair():
    capped, fixed = (train_run(training(cap=1e-3), rule, 15, seed=1) for rule in (RateRule(1.0, 1.0), RateRule(1e-3)))
    assert_close(capped["rates"], fixed["rates"])
    assert_close(capped["training loss"], fixed["training loss"], rtol=1e-12, atol=0)
    other = train_run(training(cap=1e-3), RateRule(1e-3), 15, seed=2)
    assert not torch.equal(other["training loss"], fixed["training loss"])


@pytest.mark.parametrize("power", [0.5, 1.0])
def test_rates_and_sharpness_are_those_of_the_dense_hessian(power):
    setting = training(epochs=1)
    result = train_run(setting, RateRule(1.0, power), 40, seed=0)
    landscape = setting.landscape(network(0), setting.train)
    hessian, grad = landscape.hessian(landscape.theta0), landscape.grad(landscape.theta0)
    v = torch.linalg.vector_norm(hessian @ grad) / torch.linalg.vector_norm(grad)
    assert_close(result["rates"], (2 / v**power).clamp(max=5.0)[None])
    stepped = landscape.theta0 - result["rates"][0] * grad
    values = torch.stack([torch.linalg.eigvalsh(landscape.hessian(x))[-1] for x in (landscape.theta0, stepped)])
    assert_close(result["sharpness"], values, rtol=1e-3, atol=0)  # the tolerance that the eigenpairs are found to
    assert result["sharpness epochs"].tolist() == [0, 1]
    assert_close(result["training loss"], torch.stack([landscape.loss(x) for x in (landscape.theta0, stepped)]))


def test_a_batch_of_several_chunks_steps_as_a_whole_one_does():
    whole, chunked = (train_run(training(drift="difference", chunk_size=c), RateRule(1.0, 1.0), 40, 0) for c in (40, 7))
    assert_close(chunked["rates"], whole["rates"], rtol=1e-6, atol=0)  # a difference: rounding over √eps
    assert_close(chunked["training loss"], whole["training loss"], rtol=1e-6, atol=0)
    exact = train_run(training(chunk_size=7), RateRule(1.0, 1.0), 40, 0)
    assert_close(exact["rates"], whole["rates"], rtol=1e-5, atol=0)
    assert not torch.equal(exact["rates"], whole["rates"])


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A finished grid's folder."""
    folder = tmp_path_factory.mktemp("grid")
    assert main(["learning-rates", *f"{GRID} --out {folder}".split()]) == 0
    return folder


def test_the_grid_leaves_parts_table_figure_and_configuration(grid):
    assert len(list(grid.glob("*-seed-*.safetensors"))) == PARTS
    assert (grid / "fixed-0.2-batch-15-seed-0.safetensors").exists()
    assert (grid / "dal-0.5-batch-all-seed-1.safetensors").exists()
    height, width, _ = matplotlib.image.imread(grid / "figure.png").shape
    assert width > height > 800
    configuration = json.loads((grid / "configuration.json").read_text())
    assert configuration["plan"] | {"batch_sizes": None} == {
        "architecture": "mlp",
        "data": "digits",
        "width": 0.25,
        "examples": 40,
        "test_examples": 20,
        "batch_sizes": None,
        "epochs": 2,
        "sharpness_every": 1,
        "drift": "exact",
        "chunk_size": 1000,
    }
    assert configuration["powers"] == [0.5, 1.0]


def test_the_table_gives_means_and_standard_errors_of_the_parts(grid):
    text = (grid / "table.txt").read_text()
    assert "mlp (610 weights) on 40 images of digits, 20 to test on; epochs: 2, seeds: 2" in text
    for size in ("15", "all"):
        block = text.split(f"batch size {size}\n")[1].split("\n\n")[0]
        ends = {}
        for h in ("0.2", "0.5"):
            runs = [load_tensors(grid, f"fixed-{h}-batch-{size}-seed-{seed}")[0] for seed in (0, 1)]
            values = torch.stack([run["training loss"][-1] for run in runs])
            row = next(line for line in block.splitlines() if line.startswith(f"h = {h}"))
            mean, error, star = re.search(r"h = \S+ +(\S+) ± ([\d.]+)(\*?)", row).groups()
            rounding = 0.51 * 10.0 ** -len(mean.split(".")[1])
            assert float(mean) == pytest.approx(float(values.mean()), abs=rounding)
            assert float(error) == pytest.approx(float(values.std()) / 2**0.5, abs=rounding)
            ends[float(values.mean())] = star
        assert [star for _, star in sorted(ends.items())] == ["*", ""]
    assert "no run diverged" in text
    assert "p trades stability of training against test performance" in text


def test_a_stopped_grid_goes_on_and_touches_nothing_else(grid, run):
    before = {path.name: path.stat().st_mtime_ns for path in grid.glob("*-seed-*")}
    table = (grid / "table.txt").read_text()
    name = "dal-1-batch-15-seed-1"
    lost = load_tensors(grid, name)[0]
    (grid / f"{name}.safetensors").unlink()
    assert run(main, f"learning-rates {GRID} --out {grid}")[0] == 0
    after = {path.name: path.stat().st_mtime_ns for path in grid.glob("*-seed-*")}
    assert {file for file in before if before[file] != after[file]} == {f"{name}.safetensors"}
    again = load_tensors(grid, name)[0]
    assert all(torch.equal(again[key], lost[key]) for key in lost)
    assert (grid / "table.txt").read_text() == table


def test_another_configuration_is_refused(grid, run):
    for other, key in (("--cap 2", "cap"), ("--epochs 3", "plan")):
        status, _, err = run(main, f"learning-rates {GRID} --out {grid} {other}")
        assert (status, err.count("\n")) == (2, 1)
        assert f"results made with other {key}" in err


def test_what_a_preset_says_may_be_said_again(grid, run):
    assert run(main, f"learning-rates {GRID} --out {grid} --width 0.25 --data digits --threads 1")[0] == 0


def test_divergence_is_shown(tmp_path, run):
    rules = "--rates 0.2 1e38 --powers 1 --batch-sizes 15 --seeds 1 --dtype float32"
    status, out, _ = run(main, f"learning-rates {TINY} {rules} --out {tmp_path}")
    assert status == 0
    result = load_tensors(tmp_path, "fixed-1e+38-batch-15-seed-0")[0]
    assert not bool(result["finished"])
    assert len(result["training loss"]) == len(result["sharpness"]) == 1
    assert len(result["rates"]) < 3  # stopped at once, within the first epoch
    row = next(line for line in out.splitlines() if line.startswith("h = 1e+38"))
    assert re.fullmatch(r"h = 1e\+38 +– +– +– +– +– +– +1 of 1", row)
    assert re.search(r"batch size 15, h = 1e\+38: 1 of 1 diverged, after step \d\n", out)
    assert "relative to h = 0.2" in out


def cell(rule, losses, *, finished=True, rates=(0.1, 0.1)):
    """A cell of one run of steps as long as epochs on two examples."""
    series = torch.tensor(losses, dtype=torch.float64)
    result = {
        "training loss": series,
        "test accuracy": 1 - series / 10,
        "sharpness": series,
        "sharpness epochs": torch.arange(len(losses)),
        "sharpness converged": torch.ones(len(losses), dtype=torch.bool),
        "rates": torch.tensor(rates, dtype=torch.float64),
        "finished": torch.tensor(finished),
    }
    return RateCell(rule, 2, 2, "all", [result])


def test_the_best_fixed_rate_is_one_that_ended_and_dal_is_held_against_it():
    cells = [
        cell(RateRule(0.1), [2.0, 1.5, 1.0]),
        cell(RateRule(0.2), [2.0, 2.5, 2.6, 1.5]),
        cell(RateRule(0.3), [2.0, 0.5], finished=False),
        cell(RateRule(1.0, 1.0), [2.0, 2.2, 1.25], rates=(1.5, 5.0)),
    ]
    assert rate_report.best_fixed(cells, "training loss", largest=False) is cells[0]
    assert rate_report.best_fixed(cells, "test accuracy", largest=True) is cells[0]
    assert rate_report.best_fixed(cells[2:], "training loss", largest=False) is None
    text = "\n".join(rate_report.findings(cells, ["all"], training()))
    assert "training loss +0.25 relative to h = 0.1; test accuracy -2.5 points relative to h = 0.1" in text
    assert (
        "hλ₀ = 3 in 1 observations, and the loss rose in 50 % of the steps" in text
    )  # the second look has the capped rate
    shown = rate_report.rows(cells, training())
    assert shown[4][shown[0].index("steps at the cap")] == "50 %"
    assert shown[4][shown[0].index("hλ₀ at the end")] == "6.25"
    assert shown[3][shown[0].index("diverged")] == "1 of 1"
    assert shown[2][shown[0].index("epochs that rose")] == "67 %"


def test_a_run_that_learnt_nothing_is_counted():
    setting = training()
    shares = torch.bincount(setting.train.targets) / 40
    assert setting.uninformed == pytest.approx(-float((shares * shares.log()).sum()))
    guess = cell(RateRule(0.1), [2.5, setting.uninformed])
    assert (guess.count_untaught(setting.uninformed), guess.diverged) == (1, 0)
    assert cell(RateRule(0.1), [2.5, 2.2]).count_untaught(setting.uninformed) == 0
    assert "1 of 1 ended at or above 2.303" in rate_report.failures_of(guess, setting.uninformed)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ([1.0, 3.0, torch.nan], "2.0 ± 1.0"),
        ([0.1, 0.1], "0.1"),
        ([0.104, 0.11], "0.107 ± 0.003"),
        ([120.0, 180.0], "150 ± 30"),
        ([7.0], "7"),
        ([torch.nan], "–"),
    ],
)
def test_numbers_have_the_places_that_their_errors_allow(values, text):
    numbers = torch.tensor(values, dtype=torch.float64)
    assert format_mean(numbers) == text
    finite = numbers[numbers.isfinite()]
    if len(finite) > 1:
        assert mean_and_error(numbers)[1] == pytest.approx(float(finite.std()) / len(finite) ** 0.5)


def test_the_figure_names_everything_and_marks_what_diverged(tmp_path):
    cells = [
        cell(RateRule(0.1), [2.0, 1.5, 1.0]),
        cell(RateRule(0.2), [2.0], finished=False, rates=()),
        cell(RateRule(1.0, 1.0), [2.0, 2.2, 1.2]),
    ]
    drawn = figure(cells, training())
    assert isinstance(drawn, Figure)
    assert all(axes.get_xlabel() and axes.get_ylabel() and axes.get_title() for axes in drawn.axes)
    (legend,) = drawn.legends
    assert [text.get_text() for text in legend.get_texts()] == ["h = 0.1", "h = 0.2", "DAL-1", "diverged runs"]
    crosses = [line for line in drawn.axes[0].lines if line.get_marker() == "x"]
    assert len(crosses) == 1
    drawn.savefig(tmp_path / "figure.png")


def test_the_papers_networks_have_group_norm_in_place_of_batch_norm():
    settings = LearningRates(architecture="vgg-11", width=0.05)
    module = settings.network(settings.plan, (3, 32, 32), 10, 0)
    assert isinstance(module, VGG)
    inputs = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    targets = torch.zeros(3, dtype=torch.long)
    alone = module(inputs[:1])
    assert_close(module(inputs)[:1], alone)  # an example's output is its own
    whole = NetworkLandscape(module, cross_entropy, inputs, targets)
    assert whole.size == 3
    with pytest.raises(ValueError, match="norm must be group or none"):
        LearningRates(architecture="vgg-11", width=0.05, norm="batch").network(settings.plan, (3, 32, 32), 10, 0)


def test_presets_are_quarter_width_and_the_papers_size():
    laptop, paper = LearningRates().plan, LearningRates(preset="paper").plan
    assert (laptop.width, laptop.examples) == (0.25, 1000)
    assert (paper.architecture, paper.data, paper.width, paper.examples) == ("resnet-18", "cifar-10", 1.0, None)
    assert LearningRates(architecture="resnet-20").plan.data == "cifar-10"
    assert LearningRates(examples="all").plan.examples is None
    assert all(plan.batch_sizes[-1] == "all" for plan in PLANS.values())


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--rates", "rates must name at least one"),
        ("--rates 0", "rates must be positive"),
        ("--rates 0.1 0.1", "rates must be distinct, got 0.1 twice"),
        ("--powers 0", "powers must be above 0"),
        ("--powers -1", "power must be at least 0"),
        ("--cap 0", "cap must be positive"),
        ("--batch-sizes 41", "batch_sizes must be at most the 40"),
        ("--batch-sizes 40 all", "batch_sizes must be distinct, got 40 twice"),
        ("--batch-sizes 0", "batch_sizes must be at least 1"),
        ("--batch-sizes many", "--batch-sizes"),
        ("--epochs 0", "epochs must be at least 1"),
        ("--seeds 0", "seeds must be at least 1"),
        ("--seed -1", "seed"),
        ("--sharpness-every 0", "sharpness_every"),
        ("--chunk-size 0", "chunk_size"),
        ("--drift rough", "--drift"),
        ("--architecture nosuch", "architecture must be one of"),
        ("--data nosuch", "data must be one of"),
        ("--pooling max", "pooling must be left out"),
        ("--norm batch", "norm must be group or none"),
        ("--examples 5", "limit"),
        ("--root /nosuch", "root must be None for 'digits'"),
        ("--data mnist --root /nosuch", "no such folder"),
        ("--preset huge", "--preset"),
        ("--device nosuch", "--device"),
    ],
)
def test_bad_input_is_one_line_and_leaves_no_folder(arguments, word, tmp_path, run):
    status, _, err = run(main, f"learning-rates {TINY} --out {tmp_path / 'out'} {arguments}")
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert word in err
    assert not (tmp_path / "out").exists()
