"""Noise spectra of networks: numbers against dense algebra of plain torch, the rule's h, runs that go on, bad input."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.stats
import torch
from torch import nn
from torch.testing import assert_close

from flows.engines.storage import load_tensors
from landscapes.noise import NoiseSpectrum
from nets import BatchNorm, build_network, limit_examples, load_data, only_classes
from scripts.noise_spectrum.__main__ import main
from scripts.noise_spectrum.cells import Cell
from scripts.noise_spectrum.common import whole_epochs
from scripts.noise_spectrum.correlation import correlate, spearman
from scripts.noise_spectrum.measurements import pack_spectrum, unpack_spectrum
from scripts.noise_spectrum.networks_figure import bins, count_eigenvalues
from scripts.noise_spectrum.networks_report import SPECTRUM
from scripts.noise_spectrum.rule import Rule, geometric_mean, mean_difference, powers
from scripts.noise_spectrum.tasks import Tasks
from scripts.noise_spectrum.training import Network, Task, average_statistics, load_images
from tests.nets.data_files import write_cifar, write_idx
from tests.scripts.running import parts, says_in_one_line

SMALL = "--data digits --batch-size 10 --dtype float64 --threads 1"
NETWORKS = f"networks --architectures tiny-fc --classes 3 5 8 --examples 40 --images 24 --epochs 2 --at 0.5 1 {SMALL}"
PAIRS = f"--architectures tiny-fc small-fc --pairs 3-5 4-9 --examples 30 --images 20 --epochs 2 --seeds 2 {SMALL}"
CLASSES = (3, 5, 8)
EPS = torch.finfo(torch.float32).eps


def rows(out, heading):
    """The cells of the rows below a heading, split where columns are."""
    lines = out.split(heading)[1].splitlines()[1:]
    taken = itertools.takewhile(str.strip, lines)
    return [[cell.strip() for cell in line.split("  ") if cell.strip()] for line in taken]


def digits(train, limit, seed=0):
    data = only_classes(load_data("digits", train=train), CLASSES)
    return data if limit is None else limit_examples(data, limit, seed)


def plain_network(theta, momentum=None):
    """tiny-fc in torch's own layers at given weights; momentum None makes running statistics plain means."""
    module = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16, momentum=momentum), nn.ReLU(), nn.Linear(16, 3)
    ).double()
    nn.utils.vector_to_parameters(theta.clone(), module.parameters())
    return module


def ghost_batches(count, size, seed=0):
    return torch.randperm(count, generator=torch.Generator().manual_seed(seed)).reshape(-1, size)


def gradient_of(module, loss):
    return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, module.parameters())])


def frozen_gradients(theta, train, batches, images):
    """Gradients of single examples with the mean statistics of the batches held fixed, (N, d), and of all of them."""
    module = plain_network(theta)
    for batch in batches:
        module(train.inputs[batch])
    module.eval()
    loss = nn.functional.cross_entropy
    each = [
        gradient_of(module, loss(module(x[None]), y[None])) for x, y in zip(images.inputs, images.targets, strict=True)
    ]
    return torch.stack(each), gradient_of(module, loss(module(train.inputs), train.targets)), module


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a finished run of networks."""
    folder = tmp_path_factory.mktemp("networks")
    assert main([*NETWORKS.split(), "--seeds", "1", "--out", str(folder)]) == 0
    return folder


def test_spectra_are_those_of_dense_algebra_in_plain_torch(finished):
    theta = load_tensors(finished, "train-tiny-fc-seed-0-0001")[0]["theta"][-1]
    train, test = digits(True, 40), digits(False, None)
    batches = ghost_batches(40, 10)
    grads, mean, module = frozen_gradients(theta, train, batches, limit_examples(train, 24, 0))
    N, d = grads.shape
    D = np.cov(grads.numpy().T, bias=True)
    values = np.linalg.eigvalsh(D)[::-1]
    threshold = values[0] * d * EPS
    clipped = np.maximum(values, threshold)
    look = load_tensors(finished, "look-tiny-fc-seed-0-0002")[0]
    assert look["whole eigenvalues"].numpy() == pytest.approx(values[: N - 1], rel=1e-8, abs=1e-12 * values[0])
    text = (finished / "table.txt").read_text()
    ended = rows(text, "rank, half the images")[-1]
    expected = [values[0], D.trace() / d, values.std(), threshold, clipped.mean(), clipped.std()]
    assert ended[0] == "100 %"
    assert ended[1:7] == [f"{value:.4g}" for value in expected]
    rank = int((values > threshold).sum())
    assert ended[7:9] == [str(rank), f"{100 * rank / d:.4g}"]
    assert 0 < int(ended[9]) <= 11
    wrong = 100 * float((module(test.inputs).argmax(1) != test.targets).double().mean())
    fitted = nn.functional.cross_entropy(module(train.inputs), train.targets)
    square = float(mean @ mean)
    measured = rows(text, "tr D/‖∇f‖²")[-1]
    chosen = [measured[i] for i in (1, 3, 4, 6, 7)]
    expected = [float(fitted.detach()), wrong, D.trace(), square, D.trace() / square]
    assert [float(cell) for cell in chosen] == pytest.approx(expected, rel=1e-3)


def test_layers_are_diagonal_blocks(finished):
    theta = load_tensors(finished, "train-tiny-fc-seed-0-0001")[0]["theta"][-1]
    train = digits(True, 40)
    grads = frozen_gradients(theta, train, ghost_batches(40, 10), limit_examples(train, 24, 0))[0]
    D = torch.cov(grads.T, correction=0)
    found = rows((finished / "table.txt").read_text(), "layer, at the end")
    for (name, weights, share, mean, *_), (start, stop) in zip(
        found, ((0, 1040), (1040, 1072), (1072, 1123)), strict=True
    ):
        block = D[start:stop, start:stop]
        assert int(weights.replace(",", "")) == stop - start, name
        assert float(share) == pytest.approx(100 * float(block.trace() / D.trace()), rel=1e-3)
        assert float(mean) == pytest.approx(float(block.trace()) / (stop - start), rel=1e-3)


def test_scatter_of_batches_is_that_of_gradients_through_their_statistics(finished):
    theta = load_tensors(finished, "train-tiny-fc-seed-0-0001")[0]["theta"][-1]
    train, module = digits(True, 40), plain_network(theta)
    loss = nn.functional.cross_entropy
    each = [gradient_of(module, loss(module(train.inputs[b]), train.targets[b])) for b in ghost_batches(40, 10)]
    expected = 10 * 39 / 40 * float(torch.stack(each).var(dim=0).sum())
    assert float(rows((finished / "table.txt").read_text(), "tr D/‖∇f‖²")[-1][5]) == pytest.approx(expected, rel=1e-3)


def test_an_epoch_is_plain_sgd_over_the_batches_in_some_order(finished):
    train, batches = digits(True, 40), ghost_batches(40, 10)
    start = nn.utils.parameters_to_vector(build_network("tiny-fc", (1, 8, 8), 3, seed=0).double().parameters()).detach()
    ended = load_tensors(finished, "train-tiny-fc-seed-0-0000")[0]["theta"][-1]
    ends = []
    for order in itertools.permutations(range(4)):
        module = plain_network(start)
        optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
        for k in order:
            optimizer.zero_grad()
            nn.functional.cross_entropy(module(train.inputs[batches[k]]), train.targets[batches[k]]).backward()
            optimizer.step()
        ends.append(nn.utils.parameters_to_vector(module.parameters()).detach())
    assert min(float((end - ended).abs().max()) for end in ends) < 1e-12  # rounding


def test_without_batch_statistics_batches_scatter_as_single_examples_do():
    train = digits(True, 120)
    network = Network("tiny-fc", train, train, "none", 10, 0, torch.float64)
    theta = network.landscape.theta0
    assert math.isnan(network.batch_trace(theta))
    assert network.steps_per_epoch == 12
    landscape = network.examples(network.evaluation_module(theta), network.train)
    grads = landscape.example_grads(theta)
    trace = float(grads.var(dim=0, correction=0).sum())
    means = [grads[ghost_batches(120, 10, seed)].mean(dim=1).var(dim=0).sum() * 10 * 119 / 120 for seed in range(200)]
    found = torch.stack(means)
    error = float(found.std()) / math.sqrt(len(found))
    assert abs(float(found.mean()) - trace) < 4 * error < 0.1 * trace  # the factor b(N − 1)/N makes it unbiased


def test_frozen_statistics_are_means_over_batches_and_momentum_is_put_back():
    norm, x = BatchNorm(2).double(), torch.randn(12, 2, generator=torch.Generator().manual_seed(0)).double()
    average_statistics(norm, [norm], x.split(4))
    assert_close(norm.running_mean, x.mean(dim=0))
    assert_close(norm.running_var, torch.stack([part.var(dim=0) for part in x.split(4)]).mean(dim=0))
    assert norm.momentum == 0.1


def test_networks_go_on_where_they_were_and_take_more_seeds(tmp_path, run):
    out = run(main, f"{NETWORKS} --seeds 1 --out {tmp_path}")[1]
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    before = parts(tmp_path)
    for name in ("look-tiny-fc-seed-0-0002", "train-tiny-fc-seed-0-0001"):
        (tmp_path / f"{name}.safetensors").unlink()
    assert run(main, f"{NETWORKS} --seeds 1 --out {tmp_path}")[1] == out
    after = parts(tmp_path)
    changed = {name for name in before if after[name] != before[name]}
    assert changed == {"look-tiny-fc-seed-0-0002", "train-tiny-fc-seed-0-0001"}
    status, more, _ = run(main, f"{NETWORKS} --seeds 2 --out {tmp_path}")
    assert status == 0
    assert "2 seeds" in more
    assert {name: parts(tmp_path)[name] for name in after} == after
    assert " ± " in rows(more, "tr D/‖∇f‖²")[0][1]
    assert not torch.equal(
        *(load_tensors(tmp_path, f"look-tiny-fc-seed-{i}-0002")[0]["whole eigenvalues"] for i in (0, 1))
    )
    says_in_one_line(run(main, f"{NETWORKS} --h 0.2 --out {tmp_path}"), "holds results made with other h")


def test_the_score_is_rank_fraction_and_clipped_variance(tmp_path, run):
    status, out, err = run(main, f"tasks {PAIRS} --out {tmp_path}")
    assert (status, err) == (0, "")
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    assert len(parts(tmp_path)) == 2 * 2 * 2 * 2
    network, pair, *shown = rows(out, "tr D/‖∇f‖²")[0]
    assert (network, pair) == ("tiny-fc", "3-5")
    looks = [load_tensors(tmp_path, f"look-tiny-fc-3-5-h-0.1-seed-{i}-0002")[0] for i in (0, 1)]
    d = 64 * 16 + 16 + 32 + 34
    scores = []
    for look in looks:
        values = np.zeros(d)
        values[: len(look["whole eigenvalues"])] = look["whole eigenvalues"]
        threshold = values[0] * d * EPS
        scores.append((values > threshold).mean() + np.maximum(values, threshold).var())
    value, error = (float(number) for number in shown[4].split(" ± "))
    assert value == pytest.approx(np.mean(scores), rel=1e-2)
    assert error == pytest.approx(np.std(scores, ddof=1) / math.sqrt(2), rel=0.06)  # two digits of it
    assert [row[0] for row in rows(out, "rank correlation")[:7]] == [
        "score",
        "rank/d",
        "var λ",
        "λ mean",
        "λ_max",
        "tr D",
        "training error",
    ]


def test_the_rule_keeps_its_product_and_the_geometric_mean_of_h(tmp_path, run):
    arguments = f"rule {PAIRS} --architectures tiny-fc --at 0.5 --out {tmp_path}"
    status, out, err = run(main, arguments)
    assert (status, err) == (0, "")
    assert (tmp_path / "figure.png").stat().st_size > 20_000
    means = []
    for pair in ("3-5", "4-9"):
        looks = [load_tensors(tmp_path, f"look-tiny-fc-{pair}-h-0.1-seed-{i}-0001")[0] for i in (0, 1)]
        means.append(np.mean([float(look["whole numbers"][2] / look["whole numbers"][0]) for look in looks]))  # tr D, d
    for row, mean in zip(rows(out, "rule − fixed"), means, strict=True):
        ratio = math.sqrt(means[0] * means[1]) / mean
        assert [float(cell) for cell in row[3:6]] == pytest.approx(
            [0.1, 0.1 * ratio, 0.1 / ratio], rel=6e-3
        )  # 3 digits
    before = parts(tmp_path)
    assert run(main, arguments)[1] == out
    assert parts(tmp_path) == before


def test_the_rule_is_kept_within_an_architecture_or_over_all():
    arms = {
        Cell(name, pair): {"fixed": SimpleNamespace(mean_eigenvalue=mean)}
        for (name, pair), mean in zip(
            itertools.product(("tiny-fc", "small-fc"), ("3-5", "4-9")), (1, 4, 9, 36), strict=True
        )
    }
    assert Rule().scale(Cell("small-fc", "3-5"), arms) == pytest.approx(18)
    assert Rule(over="all").scale(Cell("small-fc", "3-5"), arms) == pytest.approx(6)


def arm(h, means, errors):
    early = [SimpleNamespace(spectrum=SimpleNamespace(mean=mean)) for mean in means]
    return SimpleNamespace(h=h, early=early, errors=errors)


def test_powers_and_differences_of_arms():
    def cell(h, s, scale):
        return {
            name: arm(rate, [scale * rate**s, 2 * scale * rate**s], [rate, 3 * rate])
            for name, rate in (("fixed", 0.1), ("rule", h), ("reverse", 0.01 / h))
        }

    members = [cell(0.3, -0.7, 1.0), cell(0.05, -0.7, 9.0)]
    assert powers(members) == pytest.approx([-0.7, -0.7])
    assert all(
        math.isnan(s) for s in powers([{name: arm(0.1, [1.0, 2.0], [1.0, 1.0]) for name in ("rule", "reverse")}])
    )
    found = mean_difference(members, "rule")
    assert found.mean == pytest.approx((0.4 - 0.1) / 2)  # 2 (h − 0.1) each
    assert found.error == pytest.approx(math.hypot(0.2, 0.05) / 2)  # the two seeds differ by 2 (h − 0.1)
    assert geometric_mean([1, 4]) == pytest.approx(2)
    with pytest.raises(ArithmeticError, match="zero for a pair"):
        geometric_mean([1.0, 0.0])


def test_rank_correlations_are_scipys_and_intervals_say_what_is_known():
    generator = np.random.default_rng(0)
    x, y = generator.integers(0, 5, (2, 4, 9)).astype(float)
    expected = [scipy.stats.spearmanr(a, b).statistic for a, b in zip(x, y, strict=True)]
    assert spearman(x, y) == pytest.approx(expected)
    assert np.isnan(spearman(np.ones(4), np.arange(4)))
    grid = torch.from_numpy(generator.normal(size=(3, 6, 4)))
    same = correlate(grid, grid.exp(), inner=False, seed=0)
    assert same.value == pytest.approx(spearman(grid.mean(-1).flatten().numpy(), grid.exp().mean(-1).flatten().numpy()))
    between = torch.arange(3.0).double()[:, None, None] * 100  # groups apart: all of it lies between them
    noise = torch.from_numpy(generator.normal(size=(3, 6, 4)))
    whole, inner = (correlate(grid + between, noise + between, way, 0) for way in (False, True))
    assert whole.low > 0.6
    assert inner.low < inner.value < inner.high < whole.value
    assert inner.high - inner.low > 0.3


def test_histograms_count_every_eigenvalue_in_their_range():
    values = torch.tensor([2.0, 1.9, 1e-3, 1e-12, 0.0], dtype=torch.float64)
    spectrum = NoiseSpectrum(values, 9, 6, 3.9, 0.1, True, 0.0, True, "gram", 1.0, 1)
    edges = bins([spectrum])
    assert edges[-1] >= 2.0 > edges[-2]
    counts = count_eigenvalues(spectrum, edges)
    assert counts[-1] == 2
    assert counts.sum() == 3  # one lies below the bins and one is zero; the threshold is not what ends them


def test_columns_tell_clipped_from_exact():
    values = np.array([2.0, 1.0, 0.05, 0, 0])
    spectrum = NoiseSpectrum(torch.from_numpy(values[:3]), 5, 4, 3.05, 0.3, True, 0.0, True, "gram", 1.0, 1)
    clipped = np.maximum(values, 0.3)
    expected = [values.mean(), values.std(), 0.3, clipped.mean(), clipped.std(), 2, 40]
    assert [read(spectrum) for read in SPECTRUM.values()] == pytest.approx(expected)


def test_spectra_come_back_from_tensors():
    values = torch.tensor([2.0, 1.0], dtype=torch.float64)
    spectrum = NoiseSpectrum(values, 5, 3, 3.5, 0.1, False, 1e-3, True, "krylov", 4.5, 7)
    again = unpack_spectrum(pack_spectrum(spectrum, "some"), "some")
    assert again == NoiseSpectrum(again.eigenvalues, 5, 3, 3.5, 0.1, False, 1e-3, True, "stored", 4.5, 7)
    assert torch.equal(again.eigenvalues, values)
    assert (again.rank, again.std, again.std_bound) == (spectrum.rank, spectrum.std, spectrum.std_bound)


def test_fully_connected_networks_see_small_images(tmp_path):
    write_cifar(tmp_path / "cifar-10-batches-bin", "cifar-10")
    write_idx(tmp_path / "mnist")
    pair = Task("cifar-10", (3, 5))
    shapes = {
        name: tuple(load_images(pair, name, True, tmp_path, 0).inputs.shape[1:]) for name in ("tiny-fc", "small-lenet")
    }
    assert shapes == {"tiny-fc": (3, 8, 8), "small-lenet": (3, 32, 32)}
    assert tuple(load_images(Task("mnist"), "small-fc", False, tmp_path, 0).inputs.shape[1:]) == (1, 7, 7)
    small, large = (load_images(pair, name, True, tmp_path, 0) for name in ("tiny-fc", "small-lenet"))
    assert_close(small.inputs[:, :, 0, 0], large.inputs[:, :, :4, :4].mean((2, 3)))
    assert {*large.targets.tolist()} == {0, 1}


def test_pairs_are_classes_by_name_or_number():
    assert [Tasks().task(pair).classes for pair in ("cat-dog", "deer-horse", "0-9")] == [(3, 5), (4, 7), (0, 9)]
    assert Tasks(data="digits").task("4-9") == Task("digits", (4, 9))


def test_fractions_end_whole_epochs():
    assert whole_epochs((0.2, 0.4, 1.0), 10) == [2, 4, 10]
    for at in ((0.25,), (1.0, 0.5), (0.5, 0.5), (0.0, 1.0), (1.5,), ()):
        with pytest.raises(ValueError, match="at must hold rising fractions"):
            whole_epochs(at, 10)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("", "subcommand"),
        ("networks --architectures resnet", "invalid choice"),
        ("networks --architectures", "architectures"),
        ("networks --data foo", "data must be one of"),
        ("networks --epochs 7", "at must hold rising fractions"),
        ("networks --seeds 0", "seeds must be at least 1"),
        ("networks --h 0", "h must be positive"),
        ("networks --norm layer", "invalid choice"),
        ("networks --device nosuch", "--device"),
        (f"networks --architectures tiny-fc {SMALL} --examples 20 --images 30 --epochs 5", "images must be at most"),
        (f"networks --architectures tiny-fc {SMALL} --examples 20 --images 1 --epochs 5", "images must be at least 2"),
        (
            "networks --architectures tiny-fc --data digits --examples 20 --images 9 --epochs 5",
            "batch_size must be at most",
        ),
        (f"networks --architectures tiny-fc {SMALL} --classes 3 11 --epochs 5", "classes must be distinct"),
        ("tasks --pairs cat-cat", "pairs must each name two classes"),
        ("tasks --pairs cat", "pairs must each name two classes"),
        ("tasks --pairs cat-dog cat-dog", "pairs must be distinct"),
        ("rule --data digits --pairs cat-dog", "pairs must each name two classes"),
        ("rule --over seeds", "invalid choice"),
        ("rule --at 0.15", "at must hold rising fractions"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, word, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says_in_one_line(run(main, arguments), word)
    assert not list(tmp_path.rglob("*.safetensors"))
