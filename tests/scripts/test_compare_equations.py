"""Stochastic flows from the command line of scripts.compare."""

import torch

from flows.engines.storage import load_tensors
from scripts import compare
from tests.scripts.running import says_in_one_line

NET = "net --architecture mlp --examples 20 --width 0.1 --h 0.125 --steps 3 --batch-size 5 --sampling subset"


def test_coupled_and_in_law(tmp_path, run):
    said = f"{NET} --descent sgd --flows gradient sde-1 sde-2 --runs 3"
    found = {}
    for name, coupling in (("paths", "--coupled"), ("both", "--coupled --laws"), ("laws", "--no-coupled")):
        status, out, _ = run(compare.main, f"{said} {coupling} --out {tmp_path / name}")
        assert status == 0
        assert ("‖∇f‖²" in out) == (name != "paths")
        assert "error of a law" not in out
        found[name] = load_tensors(tmp_path / name, "comparison")[0]
    paths, both, laws = found.values()
    assert not torch.equal(both["flow.1.losses"], both["flow.2.losses"])
    for part in ("errors", "one_step", "integration", "losses"):
        assert torch.equal(both[f"flow.1.{part}"], paths[f"flow.1.{part}"])
    for part in ("difference", "standard_error", "integration"):
        assert torch.equal(both[f"flow.1.weak.0.{part}"], laws[f"flow.1.weak.0.{part}"])
    assert not any("weak" in name for name in paths)


def test_momentum_and_its_equation(tmp_path, run):
    said = f"{NET} --descent sgd-scaled-heavy-ball --friction 1 --flows momentum-sde-1 momentum-sde-2 --runs 2"
    status, out, _ = run(compare.main, f"{said} --coupled --out {tmp_path}")
    assert status == 0
    assert "ScaledStochasticHeavyBall" in out


def test_what_does_not_fit_is_one_line(tmp_path, run):
    said = f"--flows sde-1 --steps 2 --out {tmp_path}"
    assert_one_line = {
        f"rosenbrock --h 0.01 {said}": "needs examples",
        f"{NET} --descent gd --coupled {said}": "one mini-batch a step",
        f"{NET} --descent sgd --coupled --dt 0.05 {said}": "power of two",
        f"{NET} --descent sgd-heavy-ball --coupled {said}": "one mini-batch a step",
    }
    for arguments, word in assert_one_line.items():
        says_in_one_line(run(compare.main, arguments), word)
