"""Every observer of the catalogue: the names that it records, its cost and its needs, as its row says."""

import tempfile

import pytest
import torch

from flows import GradientDescent, Trajectory, descend
from flows.catalogue.observers import OBSERVERS
from landscapes import Cosine, UnsupportedError
from tests.flows.catalogue.cases import RIPPLES, THETA0

every = pytest.mark.parametrize("name", OBSERVERS)


@pytest.fixture(autouse=True)
def _folders(tmp_path, monkeypatch):
    """The folders that examples make lie in the test's own."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))


@every
def test_an_observer_records_the_names_of_its_row(name, tmp_path):
    row = OBSERVERS[name]
    run = descend(GradientDescent(RIPPLES, 0.1), THETA0, 3, observers=[row.build(RIPPLES, 0.1)])
    assert tuple(run.observations) == row.records
    run.save(tmp_path / "run")
    assert tuple(Trajectory.load(tmp_path / "run").observations) == row.records


@every
def test_an_observation_costs_what_the_row_says(name, normal):
    row = OBSERVERS[name]
    observer = row.build(RIPPLES, 0.1)
    observer(0, 0.0, normal(3, 2))
    counts = getattr(observer, "counts", None)
    if counts is None:
        assert str(row.cost) == "none"
        return
    for kind, figure in (("loss", row.cost.losses), ("grad", row.cost.gradients), ("hvp", row.cost.hvps)):
        assert counts[kind] > 0 if figure is None else counts[kind] == figure, kind


@every
def test_an_observer_refuses_complex_theta_if_the_row_says_so(name):
    row, theta = OBSERVERS[name], torch.tensor([0.3 + 0.1j, 0.2], dtype=torch.complex128)
    observer = row.build(Cosine(frequency=1.0, dimension=2), 0.1)
    if row.real:
        with pytest.raises(UnsupportedError):
            observer(0, 0.0, theta)
    else:
        observer(0, 0.0, theta)
