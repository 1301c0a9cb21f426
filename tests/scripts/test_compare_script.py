import json

import pytest
import torch

from flows import Trajectory
from landscapes import LANDSCAPES
from scripts import compare
from scripts.benchmark import BENCHMARKS, BenchmarkSettings, put_peak
from scripts.lab.command_line import one_line
from scripts.lab.grounds import GROUNDS
from scripts.lab.network import NetGround
from tests.scripts.running import says_in_one_line


def test_a_toy_leaves_table_figure_settings_and_trajectories(tmp_path, run):
    status, out, _ = run(compare.main, f"quadratic --h 1.05 --steps 5 --rtol 1e-6 --out {tmp_path}")
    assert status == 0
    assert "principal" in out
    assert "outside its series: |hλ| = 2.1" in out
    assert (tmp_path / "comparison.png").stat().st_size > 10_000
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert settings["h"] == 1.05
    assert settings["landscape"] == "QuadraticGround"
    # Rosca et al. 2023: gradient descent after five steps
    paper = torch.tensor([0.5636785, -0.17986367], dtype=torch.float64)
    for folder in ("gradientdescent", "principal"):
        end = Trajectory.load(tmp_path / folder).theta[-1]
        assert torch.allclose(end.real, paper, atol=1e-5)
    assert not torch.allclose(Trajectory.load(tmp_path / "gradient").theta[-1], paper, atol=1e-1)


def test_a_small_net_against_two_descents(tmp_path, run):
    arguments = (
        "net --architecture mlp --examples 20 --width 0.1 --h 0.1 --steps 2 --flows gradient modified-2 principal"
    )
    status, out, _ = run(compare.main, f"{arguments} --descent gd sgd Adam --batch-size 5 --krylov 8 --out {tmp_path}")
    assert status == 0
    assert "real branch" in out
    assert "noise floor" in out
    for folder in ("gd", "sgd", "adam"):
        assert (tmp_path / folder / "comparison.safetensors").exists()


def test_every_toy_has_a_subcommand():
    assert set(LANDSCAPES) < set(GROUNDS)


@pytest.mark.parametrize("ground", sorted(GROUNDS.keys() - {"net"}))
def test_every_landscape_runs_from_its_own_start(ground, tmp_path, run):
    status, out, _ = run(compare.main, f"{ground} --h 0.001 --steps 2 --flows gradient modified-3 --out {tmp_path}")
    assert status == 0
    assert "diverged" not in out


@pytest.mark.parametrize(
    ("arguments", "class_name", "options", "dimension"),
    [
        ("quadratic --eigenvalues 3 2 1", "QuadraticGround", {"eigenvalues": [3.0, 2.0, 1.0]}, 3),
        ("rosenbrock --a 0.5 --b 20", "RosenbrockGround", {"toy": {"a": 0.5, "b": 20.0}}, 2),
        ("double-well --tilt 0.1", "DoubleWellGround", {"toy": {"tilt": 0.1, "dimension": 2}}, 2),
        ("tilted-double-well", "DoubleWellGround", {"toy": {"tilt": 0.2, "dimension": 2}}, 2),
        ("quartic-well --S 2 --Q 3", "QuarticWellGround", {"toy": {"S": 2.0, "Q": 3.0}}, 1),
        ("himmelblau", "HimmelblauGround", {"toy": {}}, 2),
        ("catapult --width 3", "CatapultModelGround", {"toy": {"width": 3, "y": 0.0, "x": 1.0}}, 6),
        (
            "matrix-factorisation --singular-values 3 1 --rank 1",
            "MatrixFactorisationGround",
            {"singular_values": [3.0, 1.0], "rank": 1},
            4,
        ),
        ("spherical-quotient --eigenvalues 1 2 4", "SphericalQuotientGround", {"eigenvalues": [1.0, 2.0, 4.0]}, 3),
    ],
)
def test_options_of_a_landscape_are_taken_and_recorded(arguments, class_name, options, dimension, tmp_path, run):
    status, _, _ = run(compare.main, f"{arguments} --h 0.01 --steps 1 --flows gradient --out {tmp_path}")
    assert status == 0
    settings = json.loads((tmp_path / "settings.json").read_text())
    assert (settings["landscape"], settings["ground"]) == (class_name, options)
    assert Trajectory.load(tmp_path / "gradientdescent").theta.shape == (2, dimension)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ("", "subcommand"),
        ("nosuch", "nosuch"),
        ("quadratic --nosuch 3", "--nosuch"),
        ("quadratic --h abc", "--h"),
        ("quadratic --h -1", "h must be positive"),
        ("quadratic --h nan", "h must be positive and finite"),
        ("quadratic --steps 0", "steps"),
        ("quadratic --steps 2.5", "--steps"),
        ("quadratic --flows foo", "--flows"),
        ("quadratic --flows modified-0", "order"),
        ("quadratic --flows modified-13", "highest implemented"),
        ("quadratic --descent foo", "--descent"),
        ("rosenbrock --descent sgd", "needs examples"),
        ("rosenbrock --b 0", "b must be positive"),
        ("barrier-valley --amplitude 1", "amplitude must be below"),
        ("deep-linear-chain --depth 1", "depth must be at least 2"),
        ("deep-linear-chain --depth 2.5", "--depth"),
        ("matrix-factorisation --rank 3", "rank must be at most"),
        ("spherical-quotient --eigenvalues 1", "d >= 2"),
        ("quadratic --device nosuch", "--device"),
        ("quadratic --method foo", "method"),
        ("quadratic --method rk4", "dt must be given"),
        ("quadratic --theta0 1 2 3", "--theta0"),
        ("quadratic --threads 0", "threads"),
        ("quadratic --seed -1", "seed"),
        ("net --examples 3", "limit"),
        ("net --activation foo", "activation"),
        ("quadratic --out /dev/null/x", "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_a_status(arguments, word, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    says_in_one_line(run(compare.main, arguments), word)


def test_help_names_the_options(run):
    status, out, _ = run(compare.main, "net --help")
    assert status == 0
    for option in ("--h ", "--steps", "--flows", "--descent", "--device", "--dtype", "--seed", "--out", "--examples"):
        assert option in out


def test_help_of_a_toy_gives_its_formula_and_explains_its_options(run):
    status, out, _ = run(compare.main, "barrier-valley --help")
    assert status == 0
    assert "½ s x² + ½ k y²" in out
    for option in ("--across", "Curvature k of the walls", "--frequency", "distance of barriers is 2π/ω"):
        assert option in out
    assert "two wells along x" in " ".join(run(compare.main, "--help")[1].replace("│", " ").split())


def test_a_box_becomes_one_line():
    assert one_line("╭─ Oops ──╮\n│ wrong   │\n│ ─────── │\n│ For full helptext, run x │\n╰──╯") == "Oops wrong"


def test_the_benchmarks_run(capsys):
    settings = BenchmarkSettings(repeats=3, threads=1)
    BENCHMARKS["sympy"](settings)
    out = capsys.readouterr().out
    assert "vmap(grad) / from_sympy" in out


def test_memory_is_measured_in_the_process_it_runs_in():
    class Queue(list):
        put = list.append

    queue = Queue()
    put_peak(300, "cpu", queue)
    assert len(queue) == 1


def test_a_network_starts_from_the_same_weights_for_a_seed():
    first, second, other = (NetGround(examples=20).build(seed, torch.float32, "cpu")[1] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
