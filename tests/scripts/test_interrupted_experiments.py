"""Every experiment interrupted: one line and 130; afterwards the same command gives the same result, bit for bit."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure

from flows.engines.storage import load_tensors, save_tensors
from flows.orders.ladder import STATUSES
from scripts import STOPPED, orders
from scripts.principal_flow import edge, one_step, toys
from scripts.principal_flow.networks import LAPTOP
from tests.scripts.interrupting import contents, interrupt_at
from tests.scripts.running import parts, says_in_one_line
from tests.scripts.test_experiments import EVERY

MLP = "--architecture mlp --examples 12 --width 0.05 --threads 1"
EDGE = "--network mlp --data digits --examples 20 --width 0.01 --h 0.5 --steps 6 --every 1 --threads 1"
DIGITS = "--data digits --batch-size 10 --dtype float64 --threads 1 --examples 20 --images 12 --epochs 2"
FAMILIES = {
    "principal_flow": {
        "quadratics": "--threads 1",
        "valleys": "--threads 1",
        "saddles": "--threads 1",
        "escape": "--threads 1",
        "one-step": "--data digits --examples 10 --width 0.05 --points 1 2 --rtol 1e-2 --threads 1",
        "spectrum": "--width 0.03 --examples 20 --steps 2 --start 1 --window 1 --threads 1",
        "edge": EDGE,
        "drift": EDGE,
        "learning-rates": "--architecture mlp --examples 20 --test-examples 20 --epochs 1 --sharpness-every 1 "
        "--dtype float64 --rates 0.2 0.3 --powers 0.5 --batch-sizes 10 --seeds 1 --width 0.1 --threads 1",
    },
    "stochastic": {
        "weak-order": "--noises multiplicative --orders 1 --ladder 0.25 0.125 --paths 20 --threads 1",
        "svag": f"{MLP} --levels 1 2 --network-levels 1 --paths 100 --runs 3 --equation-runs 3 --steps 3 "
        "--network-steps 3 --substeps 1 --network-batch-size 4",
        "escape": "--paths 50 --temperatures 0.2 --horizon 12 --h 0.25 --threads 1",
        "accuracy": "--architecture mlp --examples 12 --width 0.1 --steps 4 --looks 2 --seeds 2 --dtype float64 "
        "--threads 1",
        "validity": f"{MLP} --scaled 0.5 0.25 --batches 2 --seeds 1 --second-seeds 1 --second-above 0.4 --runs 3 "
        "--sgd-runs 3 --steps 2",
        "linear-scaling": f"{MLP} --paths 100 --runs 3 --equation-runs 3 --looks 1 --steps 4 --coarse 2 "
        "--toy-factors 8 --scaled 0.1 --factors 1 2 --batch-size 4",
        "sampling": f"{MLP} --paths 100 --runs 3 --substeps 1 --network-substeps 1 --steps 2 --toy-batch-sizes 16 "
        "--batch-sizes 6 --equation-batch-size 6",
    },
    "noise_spectrum": {
        "networks": f"--architectures tiny-fc --classes 3 5 8 --at 0.5 1 --seeds 1 {DIGITS}",
        "tasks": f"--architectures tiny-fc --pairs 3-5 4-9 --seeds 1 {DIGITS}",
        "rule": f"--architectures tiny-fc --pairs 3-5 4-9 --at 0.5 --seeds 1 {DIGITS}",
    },
    "regularisation": {
        "full-batch": f"{MLP} --rate 0.2 --steps 2 --slowdown 2 --ladder 1 0.5 --dtype float32",
        "mini-batch": f"{MLP} --rate 0.2 --batches 2 --epochs 1 --runs 3 --slowdown 2 --ladder 1 0.5",
    },
}
ALONE = {
    "orders": "rosenbrock --rungs 3 --largest 0.2 --flows gradient modified-2 --threads 1",
    "compare": "quadratic --h 0.5 --steps 3 --rtol 1e-4 --flows gradient modified-2 --threads 1",
}
COMMANDS = {f"{family} {name}": options for family, members in FAMILIES.items() for name, options in members.items()}
COMMANDS |= ALONE
TEN = ("orders", "principal_flow edge", "stochastic svag")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """Less than the options can say: few toys, few rungs, no pixels."""
    monkeypatch.setattr(one_step, "LADDER", (0.5,))
    monkeypatch.setattr(edge, "SUBSTEPS", 2)
    monkeypatch.setitem(LAPTOP, "mlp", dataclasses.replace(LAPTOP["mlp"], window=4, studied=2, substeps=1, modes=2))
    for name, cases in toys.CASES.items():
        monkeypatch.setitem(toys.CASES, name, [dataclasses.replace(case, steps=2) for case in cases[:1]])
    monkeypatch.setattr(Figure, "savefig", lambda self, *arguments, **options: None)


@pytest.fixture
def command(monkeypatch, tmp_path, run):
    """``command(name, place, n)``: the experiment into the folder of that place, interrupted at the n-th call."""

    def run_in(name, place, n=0):
        (tmp_path / place).mkdir(exist_ok=True)
        monkeypatch.chdir(tmp_path / place)  # the same --out each time, which is in the settings on disk
        script, _, experiment = name.partition(" ")
        main = importlib.import_module(f"scripts.{script}.__main__" if experiment else f"scripts.{script}").main
        with interrupt_at(n) as calls:
            said = run(main, f"{experiment} {COMMANDS[name]} --out out")
        return *said, contents(tmp_path / place), calls.count

    return run_in


def test_the_table_of_commands_has_every_experiment():
    assert {f"{family} {name}" for family, name in EVERY} == set(COMMANDS) - set(ALONE)


@pytest.mark.parametrize("name", COMMANDS)
def test_an_experiment_interrupted_three_times_gives_the_undisturbed_result(name, command):
    status, out, _, whole, calls = command(name, "whole")
    assert status == 0
    assert "table.txt" in {Path(path).name for path in whole}
    for share in (1 / 8, 1 / 4, 3 / 8):
        status, _, err, *_ = command(name, "interrupted", max(1, int(share * calls)))
        assert (status, err.splitlines()[-1:]) == (130, [STOPPED])
    status, again, _, found, _ = command(name, "interrupted")
    assert (status, again) == (0, out)
    assert found == whole


@pytest.mark.parametrize("name", TEN)
def test_an_experiment_interrupted_at_any_of_ten_places_gives_the_undisturbed_result(name, command):
    _, out, _, whole, calls = command(name, "whole")
    for place in range(1, 11):
        status, _, err, *_ = command(name, f"at-{place}", place * calls // 11)
        assert (status, err) == (130, f"{STOPPED}\n")
        status, again, _, found, _ = command(name, f"at-{place}")
        assert (status, again) == (0, out)
        assert found == whole


# Ctrl-C in the process of the command itself, after its second part is on disk.
AFTER_TWO_PARTS = """
import os, runpy, signal, sys
from scripts.lab import store

written, save = [], store.save_tensors

def save_and_stop(*part):
    save(*part)
    written.append(part)
    if len(written) == 2:
        os.kill(os.getpid(), signal.SIGINT)

store.save_tensors = save_and_stop
sys.argv = sys.argv[1:]
runpy.run_module(f"scripts.{sys.argv[0]}", run_name="__main__", alter_sys=True)
"""


def test_a_process_ends_with_one_line_and_130_and_keeps_its_parts(tmp_path, run):
    arguments = f"{COMMANDS['orders']} --out {tmp_path / 'out'}"
    ended = subprocess.run(
        [sys.executable, "-c", AFTER_TWO_PARTS, "orders", *arguments.split()],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"{STOPPED}\n")
    first = parts(tmp_path / "out")
    assert len(first) == 2
    assert run(orders.main, arguments)[0] == 0
    assert {name: time for name, time in parts(tmp_path / "out").items() if name in first} == first


# Ctrl-C while the modules of the command are still being imported.
WHILE_IMPORTING = """
import os, runpy, signal, sys

class Stop:
    def find_spec(self, name, path, target=None):
        if name == "flows.engines":
            os.kill(os.getpid(), signal.SIGINT)

sys.meta_path.insert(0, Stop())
sys.argv = ["-m", "quadratic"]
runpy.run_module("scripts.orders", run_name="__main__", alter_sys=True)
"""


def test_a_process_that_still_imports_ends_so_too():
    ended = subprocess.run(
        [sys.executable, "-c", WHILE_IMPORTING],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", f"{STOPPED}\n")


def test_a_rung_that_an_early_version_stored_as_interrupted_is_refused(tmp_path, run):
    arguments = f"{COMMANDS['orders']} --out {tmp_path}"
    assert run(orders.main, arguments)[0] == 0
    name = sorted(parts(tmp_path))[0]
    tensors, _ = load_tensors(tmp_path, name)
    status = torch.tensor(STATUSES.index("interrupted"))
    save_tensors(tmp_path, name, {**tensors, "status": status}, {})
    says_in_one_line(run(orders.main, arguments), f"{name}.safetensors' holds a rung that was interrupted; remove it")
