import re
from pathlib import Path

import torch

from flows import descend
from flows.invariants import check_order

README = Path(__file__).parents[1] / "README.md"
PAGE = README.parent / "docs" / "modified_equations.md"
RUNS = README.parent / "docs" / "runs.md"


def test_the_code_in_the_readme_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    assert len(blocks) == 7
    names: dict = {}
    for block in blocks:
        exec(block, names)
    printed = capsys.readouterr().out
    assert printed.count("Flows against GradientDescent") == 3
    assert "\n4 1242\n" in printed  # the README's comments say so
    assert names["seen"].observations["stability scaled eigenvalues"][1].shape == (6, 3)
    assert (tmp_path / "results/valley.png").stat().st_size > 10_000
    assert (tmp_path / "results/valley/comparison.safetensors").exists()
    assert names["path"].shape == (3, 2)
    assert torch.equal(names["second"].theta[-1], descend(names["sgd"], names["theta0"], 20).theta[-1])
    flow, valley = names["UphillGradient"], names["valley"]
    # of second order, as the README says: one-step errors fall as h³
    ladder = [1e-3 / 2**k for k in range(4)]
    check_order(lambda h: flow(valley, h), lambda h: names["GradientDescent"](valley, h), names["theta0"], 3, ladder)


def test_the_code_on_the_page_of_modified_equations_runs(capsys):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    names: dict = {}
    exec(block, names)
    lines = capsys.readouterr().out.splitlines()
    assert len(names["series"].terms) == 80  # the page's comments say so
    assert r"\tfrac{1}{12} D^{3}f[\nabla f, \nabla f]" in lines[0]
    assert len(lines) == 4


def test_the_code_on_the_page_of_runs_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    for block in re.findall(r"```python\n(.*?)```", RUNS.read_text(), flags=re.DOTALL):
        exec(block, names)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["True", "True"]  # the page's comments say so
    assert lines[2] == "diverged False"
    assert lines[4].startswith("stopped tensor(")
    crossing = names["run"].events["loss below 1"]
    assert crossing.states.shape == (1, 2)
    assert abs(float(names["valley"].loss(crossing.states[0])) - 1) < 1e-9
