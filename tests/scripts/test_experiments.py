"""Every experiment of every family: its name, its question, its options; a new one is in here by its registry line."""

import dataclasses
import importlib
import json

import pytest

from landscapes.references import resolve_reference
from scripts.lab.command_line import DTYPES
from scripts.lab.experiment import Common

FAMILIES = ("principal_flow", "stochastic", "noise_spectrum", "regularisation")
MAIN = {family: importlib.import_module(f"scripts.{family}.__main__") for family in FAMILIES}
EVERY = [(family, name) for family, module in MAIN.items() for name in module.EXPERIMENTS]
every = pytest.mark.parametrize(("family", "name"), EVERY, ids=[f"{family} {name}" for family, name in EVERY])


@every
def test_an_experiment_goes_by_its_own_name_and_says_what_its_results_depend_on(family, name):
    kind = resolve_reference(MAIN[family].EXPERIMENTS[name], MAIN[family].__package__)
    assert issubclass(kind, Common)
    experiment = kind()
    assert experiment.name == name
    assert json.loads(json.dumps(experiment.configuration(), default=str))["experiment"] == name
    with pytest.raises(dataclasses.FrozenInstanceError):
        experiment.seed = 1


@every
def test_help_begins_with_the_question_and_has_every_option(family, name, run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "1000")
    kind = resolve_reference(MAIN[family].EXPERIMENTS[name], MAIN[family].__package__)
    status, out, _ = run(MAIN[family].main, f"{name} --help")
    assert status == 0
    assert kind.__doc__.splitlines()[0][:60] in out
    for field in dataclasses.fields(kind):  # a field that is options itself has them in the help, not its own name
        if dataclasses.is_dataclass(getattr(kind(), field.name)):
            continue
        assert f"--{field.name.replace('_', '-')}" in out


@every
def test_a_bad_option_is_one_line_and_a_status(family, name, run):
    status, out, err = run(MAIN[family].main, f"{name} --dtype float{len(DTYPES)}")
    assert (status, out) == (2, "")
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_a_familys_help_names_its_experiments(family, run):
    status, out, _ = run(MAIN[family].main, "--help")
    assert status == 0
    assert f"python -m scripts.{family}" in out
    assert all(name in out for name in MAIN[family].EXPERIMENTS)
