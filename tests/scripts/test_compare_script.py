import json

import pytest
import torch

from flows import Trajectory
from scripts.benchmark import BENCHMARKS, Settings, peak
from scripts.compare import main, one_line
from scripts.ground import NetGround


def run(arguments, capsys):
    try:
        status = main(arguments.split())
    except SystemExit as stop:
        status = stop.code
    said = capsys.readouterr()
    return status, said.out, said.err


def test_a_toy_leaves_table_figure_settings_and_trajectories(tmp_path, capsys):
    status, out, _ = run(f"quadratic --h 1.05 --steps 5 --rtol 1e-6 --out {tmp_path}", capsys)
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


def test_a_small_net_against_two_descents(tmp_path, capsys):
    arguments = (
        "net --architecture mlp --examples 20 --width 0.1 --h 0.1 --steps 2 --flows gradient modified-2 principal"
    )
    status, out, _ = run(f"{arguments} --descent gd sgd Adam --batch-size 5 --krylov 8 --out {tmp_path}", capsys)
    assert status == 0
    assert "real branch" in out
    assert "noise floor" in out
    for folder in ("gd", "sgd", "adam"):
        assert (tmp_path / folder / "comparison.safetensors").exists()


GROUNDS = "rosenbrock saddle double-well quartic-well cosine product two-quadratics noisy-quadratic regression".split()


@pytest.mark.parametrize("ground", GROUNDS)
def test_every_landscape_runs_from_its_own_start(ground, tmp_path, capsys):
    status, out, _ = run(f"{ground} --h 0.001 --steps 2 --flows gradient modified-3 --out {tmp_path}", capsys)
    assert status == 0
    assert "diverged" not in out


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
        ("quadratic --flows modified-9", "highest built"),
        ("quadratic --descent foo", "--descent"),
        ("rosenbrock --descent sgd", "needs examples"),
        ("rosenbrock --b 0", "b must be positive"),
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
def test_bad_input_is_one_line_and_a_status(arguments, word, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(arguments, capsys)
    assert status == 2
    assert err.count("\n") == 1
    assert err.startswith("error: ")
    assert word in err


def test_help_names_the_options(capsys):
    status, out, _ = run("net --help", capsys)
    assert status == 0
    for option in ("--h ", "--steps", "--flows", "--descent", "--device", "--dtype", "--seed", "--out", "--examples"):
        assert option in out


def test_a_box_becomes_one_line():
    assert one_line("╭─ Oops ──╮\n│ wrong   │\n│ ─────── │\n│ For full helptext, run x │\n╰──╯") == "Oops wrong"


def test_the_benchmarks_run(capsys):
    settings = Settings(repeats=3, threads=1)
    BENCHMARKS["sympy"](settings)
    out = capsys.readouterr().out
    assert "vmap(grad) / from_sympy" in out


def test_memory_is_measured_in_the_process_it_runs_in():
    class Queue(list):
        put = list.append

    queue = Queue()
    peak(300, "cpu", queue)
    assert len(queue) == 1


def test_a_network_starts_from_the_same_weights_for_a_seed():
    first, second, other = (NetGround(examples=20).build(seed, torch.float32, "cpu")[1] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
