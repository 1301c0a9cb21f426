"""Networks as a script's ground: presets for every name, data by every name, options, bad input in one line."""

import json
import re

import pytest
import torch

from landscapes import DeepLinearChain, FiniteSum, LinearRegression, QuadraticSum
from nets import ARCHITECTURES, GhostBatchLandscape, HolomorphicNetworkLandscape, NetworkLandscape, WrongDerivativeError
from nets.data import DATA_SETS
from scripts.compare import main
from scripts.lab.grounds import RegressionGround
from scripts.lab.network import NetGround
from scripts.lab.presets import DEFAULT, LAPTOP, PAPER, PRESETS, preset_of
from scripts.lab.starts import gentle_rate, largest_curvature
from tests.nets.data_files import real_root, write_idx

FOLDERS = {"mnist": "mnist", "fashion-mnist": "fashion_mnist", "cifar-10": "cifar-10-batches-bin"}


def test_presets_are_of_known_networks_for_both_sizes_on_known_data():
    assert set(LAPTOP) == set(PAPER) <= set(ARCHITECTURES)
    for presets in PRESETS.values():
        assert {preset.data for preset in presets.values()} <= set(DATA_SETS)
    for preset in PAPER.values():
        assert (preset.width, preset.examples) == (1.0, None)


def test_a_network_without_presets_runs_on_the_default():
    assert preset_of("laptop", "no such preset") == DEFAULT
    whole = preset_of("paper", "no such preset")
    assert (whole.data, whole.examples, whole.width) == (DEFAULT.data, None, 1.0)
    assert preset_of("paper", "lenet") == PAPER["lenet"]


def test_a_default_preset_takes_its_rate_from_the_curvature(tmp_path, run, monkeypatch):
    for size in PRESETS:
        monkeypatch.delitem(PRESETS[size], "mlp")
    status, out, _ = run(main, f"net --architecture mlp --examples 50 --steps 1 --out {tmp_path}")
    assert status == 0
    landscape, theta = NetGround(architecture="mlp", examples=50).build(0, torch.float64, "cpu")
    rate = float(re.search(r"h = (\S+), 1 steps", out)[1])
    assert rate == pytest.approx(0.5 / largest_curvature(landscape, theta), rel=0.02)


DEEP = {"all-cnn-bn", "resnet-18", "resnet-20", "resnet-56", "wide-resnet-16-4", "wide-resnet-28-10"}
BY_CURVATURE = [pytest.param(name, marks=pytest.mark.soak) if name in DEEP else name for name in ARCHITECTURES]


def laptop_ground(name):
    folder = FOLDERS.get(preset_of("laptop", name).data.removesuffix("-7x7"))
    return NetGround(architecture=name, root=real_root(folder) if folder else None)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_laptop_preset_builds_its_landscape(name):
    preset = preset_of("laptop", name)
    landscape, theta = laptop_ground(name).build(0, torch.float32, "cpu")
    assert landscape.size == preset.examples // (preset.ghost_size or 1)
    assert isinstance(landscape, GhostBatchLandscape) == (preset.ghost_size is not None)
    assert theta.shape == (landscape.dimension,)
    assert landscape.grad(theta).isfinite().all()


@pytest.mark.filterwarnings("ignore")  # kinks
@pytest.mark.parametrize("name", BY_CURVATURE)
def test_the_rate_of_every_laptop_preset_suits_its_curvature(name):
    landscape, theta = laptop_ground(name).build(0, torch.float32, "cpu")
    preset = preset_of("laptop", name)
    rate = gentle_rate(landscape, theta) if preset.h is None else preset.h
    # as presets.py says, to ARPACK's percents
    assert 0.13 < rate * largest_curvature(landscape, theta) < 0.85


def test_options_change_the_preset():
    ground = NetGround(
        architecture="mlp", data="breast-cancer", examples="all", width=0.25, activation="sine", norm="group"
    )
    landscape, _ = ground.build(0, torch.float64, "cpu")
    assert landscape.size == 456
    assert landscape.dimension == 30 * 8 + 8 + 2 * 8 + 8 * 2 + 2
    few, _ = NetGround(architecture="mlp", examples=50, classes=(3, 8)).build(0, torch.float64, "cpu")
    assert few.size == 50
    assert sorted(set(few._examples.targets.tolist())) == [0, 1]


def test_labels_can_be_random_or_noisy():
    true, random, noisy = (
        NetGround(labels=labels, label_noise=noise).load(0).targets
        for labels, noise in (("true", 0.0), ("random", 0.0), ("true", 0.2))
    )
    assert int((true != noisy).sum()) == 60
    assert 240 < int((true != random).sum()) < 300


def test_a_presets_number_gives_way_to_what_there_is():
    assert NetGround(architecture="mlp", classes=(0, 1)).build(0, torch.float32, "cpu")[0].size == 288
    with pytest.raises(ValueError, match=r"limit.*288"):
        NetGround(architecture="mlp", classes=(0, 1), examples=300).build(0, torch.float32, "cpu")


def test_the_table_names_the_ghost_batches_there_are(tmp_path, run):
    arguments = "net --architecture small-fc --data digits --examples 20 --ghost-size 1000 --steps 1 --flows gradient"
    status, out, _ = run(main, f"{arguments} --out {tmp_path}")
    assert status == 0
    assert "a mean over 1 ghost batches of 20" in out


def test_batch_norm_means_ghost_batches_with_the_rest_left_out():
    landscape, _ = NetGround(architecture="mlp", norm="batch", examples=50, ghost_size=15).build(
        0, torch.float64, "cpu"
    )
    assert isinstance(landscape, GhostBatchLandscape)
    assert (landscape.size, landscape.ghost_batches.shape) == (3, (3, 15))
    whole, _ = NetGround(architecture="mlp", norm="batch", examples=50).build(0, torch.float64, "cpu")
    assert whole.size == 1


def test_holomorphic_runs_are_complex(tmp_path, run):
    ground = NetGround(architecture="lenet", examples=20, width=0.2, holomorphic=True)
    assert isinstance(ground.build(0, torch.float64, "cpu")[0], HolomorphicNetworkLandscape)
    status, out, _ = run(
        main, f"net --examples 20 --width 0.2 --holomorphic --h 2 --steps 2 --flows principal --out {tmp_path}"
    )
    assert status == 0
    assert "real branch" not in out
    assert json.loads((tmp_path / "settings.json").read_text())["ground"]["holomorphic"] is True


def test_a_net_runs_on_its_preset_and_says_what_it_is(tmp_path, run):
    arguments = f"net --architecture tiny-fc --root {tmp_path} --steps 2 --descent gd sgd --out {tmp_path / 'out'}"
    write_idx(tmp_path / "mnist", train=500)
    status, out, _ = run(main, arguments)
    assert status == 0
    assert "tiny-fc on mnist-7x7, 917 parameters, a mean over 4 ghost batches of 50: h = 0.1, 2 steps" in out
    settings = json.loads((tmp_path / "out" / "gd" / "settings.json").read_text())
    assert settings["network"]["data"] == "mnist-7x7"
    assert (settings["network"]["examples"], settings["network"]["ghost_size"]) == (200, 50)
    assert settings["models"]["modified-2"] == {"class": "ModifiedFlow", "h": 0.1, "order": 2}
    assert (settings["h"], settings["steps"], settings["batch_size"]) == (0.1, 2, 1)
    assert settings["flows"] == ["gradient", "modified-2"]


def test_a_toys_h_comes_from_its_curvature(tmp_path, run):
    status, out, _ = run(main, f"rosenbrock --steps 2 --flows gradient --out {tmp_path}")
    assert status == 0
    # λ is 200 at the start (0, ½) and 1001.6 at the minimum (1, 1): ½/1001.6
    assert "Rosenbrock, 2 parameters: h = 0.0005, 2 steps" in out


def test_a_flat_start_does_not_make_h_large():
    flat = DeepLinearChain(8)
    h = gentle_rate(flat, torch.tensor(flat.start, dtype=torch.float64))
    sharpest = max(float(torch.linalg.eigvalsh(flat.hessian(p.position)).abs().max()) for p in flat.critical_points())
    assert 0.4 < h * sharpest < 0.6
    zero = QuadraticSum(torch.zeros(2, 3, 3), torch.ones(2, 3))
    assert gentle_rate(zero, torch.ones(3)) == 1.0


def test_many_weights_have_their_curvature_by_products(normal):
    features = normal(1, 40, 100)
    landscape = LinearRegression(features, normal(2, 40))
    largest = float(torch.linalg.eigvalsh(features.T @ features / 40)[-1])
    assert gentle_rate(landscape, torch.zeros(100, dtype=torch.float64)) == pytest.approx(0.5 / largest, rel=0.05)


@pytest.mark.parametrize("data", ["digits", "shwartz-ziv", "mnist-7x7"])
def test_regression_on_any_data(data):
    root = real_root("mnist") if data == "mnist-7x7" else None
    landscape, theta = RegressionGround(data=data, root=root, examples=40).build(0, torch.float64, "cpu")
    assert isinstance(landscape, FiniteSum)
    assert landscape.size == 40
    assert landscape.grad(theta).isfinite().all()


def test_fused_layers_would_be_caught_in_a_script_too():
    landscape = NetworkLandscape(
        torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.LayerNorm(6), torch.nn.Tanh(), torch.nn.Linear(6, 2)),
        lambda out, y: (out - y).square().sum(-1),
        torch.randn(5, 4),
        torch.zeros(5, 2),
    )
    with pytest.raises(WrongDerivativeError, match="LayerNorm"):
        landscape.third(landscape.theta0, landscape.theta0, landscape.theta0)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("--architecture nosuch", "architecture must be one of 'mlp'"),
        ("--data nosuch", "data must be one of"),
        (f"--data mnist --root {'a' * 300}", "unreadable content"),
        ("--data mnist --root /nosuch", "no such folder"),
        ("--root .", "root must be None for 'digits'"),
        ("--preset huge", "--preset"),
        ("--norm bacth", "norm must be one of"),
        ("--pooling mean", "pooling"),
        ("--architecture mlp --pooling max", "pooling must be left out for 'mlp'"),
        ("--classes 3 12", "classes"),
        ("--label-noise 1.5", "fraction must lie in [0, 1]"),
        ("--examples 5", "limit"),
        ("--examples some", "--examples"),
        ("--width -1", "width"),
        ("--norm batch --ghost-size 0", "ghost_size"),
        ("--ghost-size -5", "ghost_size"),
        ("--width 1e30", "error"),
        ("--flows principal --krylov 0", "krylov"),
        ("--descent SparseAdam", "error"),
        ("--norm batch --holomorphic", "--holomorphic needs"),
        ("--activation relu --holomorphic", "complex theta"),
        ("--data breast-cancer", "input_shape"),
        ("--chunk-size 0", "chunk_size"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, word, tmp_path, run, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(main, f"net {arguments} --steps 1")
    assert status == 2
    errors = [line for line in err.splitlines() if not line.startswith("note: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: ")
    assert word in errors[0]
