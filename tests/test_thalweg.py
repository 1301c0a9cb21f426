"""The package that puts the others under one name."""

import importlib
import runpy
import sys

import pytest

import thalweg
from scripts import STOPPED
from thalweg.__main__ import experiments, main


@pytest.mark.parametrize("name", ["flows", "landscapes", "nets"])
def test_thalweg_holds_the_public_names_of(name):
    package, own = importlib.import_module(name), importlib.import_module(f"thalweg.{name}")
    assert getattr(thalweg, name) is own
    assert own.__all__ == package.__all__
    assert all(getattr(own, public) is getattr(package, public) for public in package.__all__)


def test_the_experiments_are_found_without_an_import(capsys):
    found = experiments()
    assert "compare" in found
    assert "lab" not in found
    assert found["gallery"].endswith("contours, critical points, gradient descent and gradient flow")
    assert main([]) == 0
    assert "principal-flow" in capsys.readouterr().out


def test_an_unknown_experiment_is_refused_in_one_line(capsys):
    assert main(["compares"]) == 2
    message = capsys.readouterr().err
    assert message.startswith("thalweg: EXPERIMENT must be one of benchmark, compare, ")
    assert message.endswith(", got 'compares'\n")


def test_ctrl_c_while_an_experiment_is_imported_is_one_line_and_130(capsys, monkeypatch):
    def run_module(*arguments, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(runpy, "run_module", run_module)
    monkeypatch.setattr(sys, "argv", ["thalweg"])
    assert main(["orders"]) == 130
    assert capsys.readouterr() == ("", f"{STOPPED}\n")
