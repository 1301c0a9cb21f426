"""Version 0.1 keeps its promises: its code runs, its calls and attributes are there, its folders are read.

blocks.md, signatures.json, methods.json and folders/ were recorded at commit 6507207 and never change. A name that goes
or changes is a line of CHANGELOG.md under "Changed or removed" that holds it in backticks, and is then exempt.
"""

import ast
import importlib
import inspect
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from flows import GradientDescent, GradientFlow, ModifiedFlow, PrincipalFlow, Trajectory, compare, descend, integrate
from flows.comparison import Comparison
from flows.engines.storage import load_tensors
from flows.observers import Loss, TopEigenpairs
from landscapes import Quadratic, Rosenbrock
from scripts.lab.store import Store
from scripts.stochastic.__main__ import main

HERE = Path(__file__).parent
CHANGED = set(re.findall(r"`([^`]+)`", (HERE.parents[1] / "CHANGELOG.md").read_text().partition("## Changed or")[2]))
SIGNATURES = json.loads((HERE / "signatures.json").read_text())
METHODS = json.loads((HERE / "methods.json").read_text())
NAMED_IN_THE_DOCS = [
    "flows.series.program",
    "flows.series.latex",
    "flows.series.expressions.principal_part",
    "flows.invariants.asymmetry",
    "flows.MinibatchPath",
    "flows.ensembles.expectation",
    "flows.ensembles.weak_order",
    "flows.observers.TopEigenpairs",
    "flows.strategies",
    "landscapes.noise",
    "landscapes.krylov",
    "nets.data",
]


def found(dotted):
    """The object of a dotted name: a module, or an attribute of the longest prefix that is one."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(found(module), name)


@pytest.mark.parametrize("name", NAMED_IN_THE_DOCS)
def test_a_path_named_in_the_docs_imports(name):
    assert found(name) is not None


def test_the_code_of_the_readme_and_the_docs_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (HERE / "blocks.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    names: dict = {}
    for block in blocks:
        exec(block, names)


def parameters(call):
    """Of "(a, *, b=1)": the names that may be given by position, in order, and the source of every default."""
    arguments = ast.parse(f"def f{call}: ...").body[0].args
    positional = [a.arg for a in (*arguments.posonlyargs, *arguments.args)]
    defaults = dict(zip(reversed(positional), map(ast.unparse, reversed(arguments.defaults)), strict=False))
    for argument, default in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True):
        defaults[argument.arg] = None if default is None else ast.unparse(default)
    return positional, {name: defaults.get(name) for name in (*positional, *(a.arg for a in arguments.kwonlyargs))}


def source(default):
    return ast.unparse(ast.parse(repr(default), mode="eval"))


def broken(call, signature):
    """The parameters of a recorded call that a signature no longer takes as it did, and new ones without a default."""
    positional, defaults = parameters(call)
    now = signature.parameters
    ordered = [name for name, p in now.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    for name, default in defaults.items():
        if name not in now or (name in positional and ordered.index(name) != positional.index(name)):
            yield name
        elif default is None or default == "...":
            continue
        elif source(now[name].default) != default:
            yield f"{name}={default}"
    for name, p in now.items():
        optional = p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        if name not in defaults and not optional:
            yield f"new {name}"


def bare(parameter):
    return parameter.partition("=")[0]


@pytest.mark.parametrize("name", [name for name in SIGNATURES if name not in CHANGED])
def test_an_exported_name_is_called_and_read_as_before(name):
    now, before = found(name), SIGNATURES[name]
    if "call" in before:
        assert [p for p in broken(before["call"], inspect.signature(now)) if f"{name}.{bare(p)}" not in CHANGED] == []
    fields = getattr(now, "__dataclass_fields__", {})
    lost = [a for a in before.get("has", "").split() if not hasattr(now, a) and a not in fields]
    assert [attribute for attribute in lost if f"{name}.{attribute}" not in CHANGED] == []


@pytest.mark.parametrize("name", [name for name in METHODS if name not in CHANGED])
def test_the_methods_of_an_exported_class_are_called_as_before(name):
    for method, call in METHODS[name].items():
        if f"{name}.{method}" not in CHANGED:
            assert list(broken(call, inspect.signature(getattr(found(name), method)))) == [], method


@pytest.mark.parametrize("package", ["flows", "landscapes", "nets"])
def test_a_star_import_gives_the_names_that_it_gave(package):
    of_package = [name for name in SIGNATURES if name.rpartition(".")[0] == package and name not in CHANGED]
    assert {name.rpartition(".")[2] for name in of_package} - set(found(package).__all__) == set()


def test_a_broken_call_is_seen():
    def f(a, c, b=2, *, d=4, e): ...

    assert list(broken("(a, b=1, c=3, *, d=4)", inspect.signature(f))) == ["b", "c", "new e"]
    assert list(broken("(a, c, b=1, *, d=4, e)", inspect.signature(f))) == ["b=1"]


def test_a_saved_trajectory_is_read_and_is_what_a_run_gives_now():
    valley = Rosenbrock(b=5.0)
    theta0 = torch.tensor([[-0.4, 0.6], [0.1, 0.2]], dtype=torch.float64)
    observers = [Loss(valley, every=2), TopEigenpairs(valley, count=2, every=4)]
    now = descend(GradientDescent(valley, 0.02), theta0, 12, every=3, observers=observers)
    saved = Trajectory.load(HERE / "folders" / "trajectory")
    assert (saved.status, saved.cost, saved.observer_costs) == (now.status, now.cost, now.observer_costs)
    assert_close(saved.theta, now.theta)
    assert saved.observations.keys() == now.observations.keys()
    assert_close(saved.observations["top eigenvalues"], now.observations["top eigenvalues"])


def test_a_saved_comparison_is_read_and_is_what_compare_saves_now(tmp_path):
    folder = HERE / "folders" / "comparison"
    valley, h = Rosenbrock(), 0.002
    theta0 = Trajectory.load(folder / "gradientdescent").theta[0]
    flows = {
        "gradient": GradientFlow(valley),
        "modified-2": ModifiedFlow(valley, h, 2),
        "modified-3": ModifiedFlow(valley, h, 3),
        "principal": PrincipalFlow(valley, h),
    }
    compare(GradientDescent(valley, h), flows, theta0, 20, rtol=1e-8).save(tmp_path)
    (saved, text), (now, text_now) = (load_tensors(place, "comparison") for place in (folder, tmp_path))
    form = {"format", "complex"}  # of the file, not of the comparison
    assert {key: value for key, value in text.items() if key not in form}.items() <= text_now.items()
    assert saved.keys() <= now.keys()
    # errors at a tolerance of 1e-8, of steps that rounding may place elsewhere
    assert_close(saved, {key: now[key] for key in saved}, rtol=1e-5, atol=1e-8, equal_nan=True)
    for name in ("gradient", "modified-2", "modified-3", "principal", "gradientdescent"):
        before, after = Trajectory.load(folder / name), Trajectory.load(tmp_path / name)
        assert_close(before.theta, after.theta, rtol=1e-6, atol=1e-7)
        assert before.status == after.status


def test_folders_of_format_1_load_for_ever(tmp_path):
    shutil.copytree(HERE / "format1", tmp_path / "format1")
    folder = tmp_path / "format1"
    valley, quadratic = Rosenbrock(b=5.0), Quadratic(torch.diag(torch.tensor([2.0, 0.02], dtype=torch.float64)))
    theta0 = torch.tensor([[-0.4, 0.6], [0.1, 0.2]], dtype=torch.float64)
    observers = [Loss(valley, every=2), TopEigenpairs(valley, count=2, every=4)]
    runs = {
        "descent": descend(GradientDescent(valley, 0.02), theta0, 12, every=3, observers=observers),
        "complex": integrate(
            PrincipalFlow(quadratic, 0.9), theta0[0] ** 0, [0.0, 0.9, 1.8, 2.7], observers=[Loss(quadratic)]
        ),
    }
    for name, now in runs.items():
        saved = Trajectory.load(folder / name)
        assert_close((saved.times, saved.theta, saved.alive), (now.times, now.theta, now.alive))
        assert (saved.status, saved.cost, saved.observer_costs) == (now.status, now.cost, now.observer_costs)
        for key, pair in now.observations.items():
            # the sign of an eigenvector is a convention of the run
            one, other = (
                (x[0], x[1].abs() if key == "top gradient components" else x[1])
                for x in (saved.observations[key], pair)
            )
            assert_close(one, other, rtol=1e-6, atol=1e-9)
        saved.save(folder / name)  # over it, in the format of now
        assert [path.name for path in (folder / name).iterdir()] == ["trajectory.safetensors"]
        assert torch.equal(Trajectory.load(folder / name).theta, saved.theta)
    assert runs["complex"].theta.is_complex()


@pytest.mark.parametrize("folder", [HERE / "format1" / "comparison", HERE / "folders" / "comparison"])
def test_a_comparison_of_format_1_has_the_table_that_it_had(folder, tmp_path):
    saved = Comparison.load(folder)
    assert f"{saved}\n" == (folder / "table.txt").read_text()
    assert saved.plot(tmp_path / "figure.png").exists()
    again = Comparison.load(saved.save(tmp_path / "again"))
    assert str(again) == str(saved)


def numbers(text):
    return re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]\d+)?", text)


def test_an_experiment_goes_on_in_a_folder_of_before(tmp_path, monkeypatch):
    shutil.copytree(HERE / "folders" / "experiment", tmp_path / "out")
    before = (tmp_path / "out" / "table.txt").read_text()
    part = Store.part

    def read(store, name, compute):
        def refuse():
            raise AssertionError(f"{name} is on disk and was computed again")

        return part(store, name, refuse)

    monkeypatch.setattr(Store, "part", read)
    options = "--orders 1 --ladder 0.25 0.125 --paths 2000 --examples 2 --batch-size 2 --out".split()
    assert main(["weak-order", *options, str(tmp_path / "out")]) == 0
    assert numbers((tmp_path / "out" / "table.txt").read_text()) == numbers(before)
