"""Comparisons on disk: table, numbers and figure come back from one file; other parts are refused."""

import dataclasses

import pytest
import torch

from flows import (
    GradientDescent,
    GradientFlow,
    PrincipalFlow,
    StochasticGradientDescent,
    StochasticModifiedEquation,
    Trajectory,
    compare,
)
from flows.comparison import Comparison
from flows.engines.storage import FolderError, load_tensors, save_tensors
from landscapes import Quadratic, TwoQuadratics

SUM = TwoQuadratics()
STEEP = Quadratic(torch.diag(torch.tensor([2.0, 0.02], dtype=torch.float64)))
ONES = torch.ones(2, dtype=torch.float64)


def stochastic():
    flows = {"gradient": GradientFlow(SUM), "sde": StochasticModifiedEquation(SUM, 0.1, 1)}
    descent = StochasticGradientDescent(SUM, 0.1, 1)
    own = {"|θ|": lambda theta: theta.norm(dim=-1)}
    return compare(descent, flows, ONES, 4, runs=3, coupled=True, observables=own)


MADE = {
    "stochastic": stochastic,
    "complex": lambda: compare(GradientDescent(STEEP, 0.9), [PrincipalFlow(STEEP, 0.9), GradientFlow(STEEP)], ONES, 3),
    "batch": lambda: compare(GradientDescent(STEEP, 0.2), [GradientFlow(STEEP)], torch.stack([ONES, 2 * ONES]), 3),
    "a flow that cannot run": lambda: compare(
        GradientDescent(SUM, 0.1), [PrincipalFlow(SUM, 0.1, branch="complex")], ONES.to(torch.complex128), 3
    ),
}


def same(one, other):
    """Equal numbers, NaN where NaN, in every field but the landscape."""
    if isinstance(one, torch.Tensor):
        return one.dtype == other.dtype and bool(torch.equal(one.nan_to_num(7.0), other.nan_to_num(7.0)))
    if dataclasses.is_dataclass(one):
        names = [field.name for field in dataclasses.fields(one) if field.name != "landscape"]
        return all(same(getattr(one, name), getattr(other, name)) for name in names)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, tuple | list):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
def test_a_comparison_comes_back(make, tmp_path):
    saved = make()
    found = Comparison.load(saved.save(tmp_path))
    assert str(found) == str(saved)
    assert same(found, saved)
    assert found.landscape is None
    assert found.plot(tmp_path / "figure").exists()
    for name, row in saved.rows.items():
        if row.trajectory is not None:
            assert torch.equal(Trajectory.load(tmp_path / name.lower()).theta, row.trajectory.theta)
        if row.ensemble is not None:
            assert torch.equal(Trajectory.load(tmp_path / name.lower() / "laws").theta, row.ensemble.theta)


def test_laws_that_an_earlier_version_took_along_mini_batches_say_so(tmp_path):
    tensors, text = load_tensors(stochastic().save(tmp_path), "comparison")
    for row in text["rows"]:
        row.pop("ensemble")
    save_tensors(tmp_path, "comparison", tensors, text)
    found = Comparison.load(tmp_path)
    assert "laws along the descent's mini-batches" in found.rows["sde"].notes[-1]
    assert found.rows["gradient"].notes == stochastic().rows["gradient"].notes
    assert "sde: laws along the descent's mini-batches" in str(found)


def test_the_figure_of_a_loaded_comparison_lacks_the_contours_only(tmp_path, monkeypatch):
    from flows.comparison import figure

    drawn = []
    monkeypatch.setattr(figure, "save_figure", lambda drawing, path: drawn.append(drawing))
    saved = MADE["complex"]()
    saved.plot("")
    Comparison.load(saved.save(tmp_path)).plot("")
    for one, other in zip(*(f.axes for f in drawn), strict=True):
        ours, theirs = ([line.get_xydata().tolist() for line in axes.lines] for axes in (one, other))
        assert str(ours) == str(theirs)  # NaN is NaN
        assert one.get_title() == other.get_title()
    assert [len(f.axes[0].collections) > 0 for f in drawn] == [True, False]


def test_a_comparison_comes_back_from_one_file(tmp_path):
    saved = MADE["complex"]()
    saved.save(tmp_path / "all")
    (tmp_path / "one").mkdir()
    (tmp_path / "all" / "comparison.safetensors").rename(tmp_path / "one" / "comparison.safetensors")
    assert str(Comparison.load(tmp_path / "one")) == str(saved)


CHANGES = {
    "mean": lambda tensors, text: tensors.update(mean=tensors["mean"][1:]),
    "losses": lambda tensors, text: tensors.pop("descent.losses"),
    "errors": lambda tensors, text: tensors.update({"flow.0.errors": tensors["flow.0.errors"][1:]}),
    "errors of integers": lambda tensors, text: tensors.update({"flow.0.errors": tensors["flow.0.errors"].long()}),
    "one-step errors": lambda tensors, text: tensors.update({"flow.1.one_step": tensors["flow.1.errors"]}),
    "times of a run": lambda tensors, text: tensors.update(
        {"flow.0.trajectory.times": tensors["flow.0.trajectory.times"][:1]}
    ),
    "status of a run": lambda tensors, text: text["rows"][0]["run"].update(status="lost"),
    "a row": lambda tensors, text: text["rows"].pop(),
    "a name": lambda tensors, text: text.update(flows=["gradient"]),
    "runs": lambda tensors, text: text.update(runs=0),
    "notes": lambda tensors, text: text.update(notes={}),
    "laws": lambda tensors, text: text["rows"][0].update(weak=["loss", "ghost"] * 3),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_other_parts_are_refused(change, tmp_path):
    tensors, text = load_tensors(stochastic().save(tmp_path), "comparison")
    change(tensors, text)
    save_tensors(tmp_path, "comparison", tensors, text)
    with pytest.raises(FolderError, match="no readable comparison"):
        Comparison.load(tmp_path)


def test_a_folder_without_a_comparison_is_refused(tmp_path):
    with pytest.raises(FolderError, match="no readable comparison"):
        Comparison.load(tmp_path)
