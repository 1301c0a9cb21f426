"""The wheel, installed with its dependencies into a fresh environment outside the checkout: run by `make wheel`."""

import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ["flows", "landscapes", "nets", "scripts", "thalweg"]
FILES = ["pyproject.toml", "setup.py", "README.md", "LICENSE"]
NAMES = (
    "benchmark compare curl curvature gallery modified-equation noise-spectrum orders principal-flow regularisation "
)
NAMES += "stiff stochastic"
TYPED = """\
import thalweg
from flows import GradientDescent, GradientFlow, compare
from flows.observers import Loss
from landscapes import Rosenbrock
from nets import MLP
from thalweg.scripts.lab.store import Store

valley = Rosenbrock()
flow = thalweg.flows.GradientFlow(valley)
reveal_type(flow)
reveal_type(compare)
reveal_type(Loss(valley).every)
reveal_type(thalweg.__version__)
"""
WRONG = "\nGradientDescent(valley, h='small')\n"

pytestmark = pytest.mark.wheel


@pytest.fixture(scope="module")
def outside(tmp_path_factory):
    """A folder outside the checkout; ``run(*command)`` there, in an environment that holds the wheel alone."""
    place = tmp_path_factory.mktemp("wheel")
    for package in PACKAGES:  # a copy: the checkout's build/ may hold files that are gone
        shutil.copytree(ROOT / package, place / "source" / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in FILES:
        shutil.copy(ROOT / name, place / "source")
    work = place / "work"
    work.mkdir()
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
    python = place / "fresh" / ("Scripts" if os.name == "nt" else "bin") / "python"

    def run(*command, status=0):
        command = (
            [str(python), *command[1:]] if command[0] == "python" else [str(python.parent / command[0]), *command[1:]]
        )
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + done.stderr

    subprocess.run([sys.executable, "-m", "venv", place / "fresh"], check=True)
    pip = ["python", "-m", "pip", "--quiet"]
    run(*pip, "wheel", "--no-deps", "--wheel-dir", str(place), str(place / "source"))
    (wheel,) = place.glob("*.whl")
    run(*pip, "install", "--constraint", str(ROOT / "constraints.txt"), str(wheel), "mypy")
    run.folder = work
    return run


def test_the_wheel_holds_what_it_says(outside):
    code = """
import importlib.metadata, importlib.util, json, thalweg, flows, landscapes, nets
print(json.dumps({
    "same": thalweg.flows.compare is flows.compare and thalweg.nets.MLP is nets.MLP,
    "version": [thalweg.__version__, importlib.metadata.version("thalweg")],
    "files": [thalweg.__file__, flows.__file__],
    "strangers": [name for name in ("scripts", "tests") if importlib.util.find_spec(name)],
}))"""
    answer = json.loads(outside("python", "-c", code).splitlines()[-1])
    assert answer["same"]
    assert answer["version"][0] == answer["version"][1]
    assert all("site-packages" in file for file in answer["files"])
    assert answer["strangers"] == []


def test_the_experiments_are_listed(outside):
    listed = outside("python", "-m", "thalweg")
    assert re.findall(r"^  (\S+) +\S", listed, flags=re.MULTILINE) == NAMES.split()
    assert "EXPERIMENT must be one of benchmark, compare" in outside("thalweg", "comparison", status=2)


def test_every_experiment_starts(outside):
    names = [name for name in NAMES.split() if name != "benchmark"]  # its psutil is in the extra "bench"
    with ThreadPoolExecutor(2) as pool:
        usages = list(pool.map(lambda name: outside("thalweg", name, "--help"), names))
    for name, usage in zip(names, usages, strict=True):
        assert f"usage: python -m thalweg.scripts.{name.replace('-', '_')}" in usage
    assert "pip install 'thalweg[bench]'" in outside("thalweg", "benchmark", "--help", status=1)


def test_an_experiment_runs(outside):
    options = ["quadratic", "--h", "0.9", "--steps", "6", "--threads", "1", "--out", "results/quadratic"]
    printed = outside("thalweg", "compare", *options)
    assert "Flows against GradientDescent: 6 steps" in printed
    assert (outside.folder / "results/quadratic/comparison.png").stat().st_size > 10_000
    options = ["--orders", "1", "--ladder", "0.25", "0.125", "--paths", "200", "--out", "results/weak"]
    assert "weak order" in outside("python", "-m", "thalweg.scripts.stochastic", "weak-order", *options)


def test_mypy_sees_the_types(outside):
    (outside.folder / "typed.py").write_text(TYPED)
    said = outside("python", "-m", "mypy", "--strict", "typed.py")
    assert 'Revealed type is "flows.models.gradient.GradientFlow"' in said
    assert '-> flows.comparison.result.Comparison"' in said
    assert 'Revealed type is "int"' in said.replace("builtins.", "")
    (outside.folder / "wrong.py").write_text(TYPED + WRONG)
    assert 'incompatible type "str"; expected "float"' in outside("python", "-m", "mypy", "wrong.py", status=1)
