"""Ensembles and weak orders on disk: all of their results come back, and what is damaged is refused."""

import dataclasses

import pytest
import torch

from flows import StochasticGradientDescent, StochasticModifiedEquation
from flows.engines.storage import FolderError, load_tensors, save_tensors
from flows.ensembles import Ensemble, Observable, WeakOrderStudy, ensemble, weak_order
from flows.ensembles.quantiles import Quantiles
from flows.ensembles.statistics import Histogram, Statistic
from landscapes import TwoQuadratics, UnsupportedError

SUM = TwoQuadratics()
START = torch.tensor([0.5, -0.3], dtype=torch.float64)


def square(theta):
    return theta.square().sum(dim=-1)


OBSERVABLES = {
    "θ": Observable(lambda theta: theta, [Quantiles([0.1, 0.5, 0.9], size=16)]),
    "square": Observable(square, [Histogram([0.0, 0.5, 1.0])]),
}


def example(paths=50):
    flow = StochasticModifiedEquation(SUM, 0.1, 1)
    return ensemble(flow, START, [0.0, 0.1, 0.2], paths=paths, seed=2, dt=0.05, observables=OBSERVABLES, block=20)


def study():
    return weak_order(
        lambda h: StochasticModifiedEquation(SUM, h, 1),
        lambda h: StochasticGradientDescent(SUM, h, 1),
        START,
        0.4,
        [0.2, 0.1],
        paths=20,
        seed=1,
        observables={"square": square, "θ": lambda theta: theta},
    )


def test_an_ensemble_comes_back_whole(tmp_path):
    saved = example()
    found = Ensemble.load(saved.save(tmp_path))
    assert str(found) == str(saved)
    assert (tmp_path / "table.txt").read_text() == f"{saved}\n"
    for name in ("mean", "standard_error", "covariance", "covariance_error", "quantiles"):
        ours, theirs = getattr(saved, name), getattr(found, name)
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(theirs[key], ours[key]) for key in ours), name
    (low, high), (again_low, again_high) = saved.quantile_intervals()["θ"], found.quantile_intervals()["θ"]
    assert torch.equal(low, again_low)
    assert torch.equal(high, again_high)
    for ours, theirs in zip(saved.histograms["square"], found.histograms["square"], strict=True):
        assert torch.equal(ours.seen, theirs.seen)
        assert torch.equal(ours.bounds, theirs.bounds)
        assert all(map(torch.equal, ours.interval(), theirs.interval()))
    assert (found.paths, found.cost, found.notes, found.status.sentence) == (
        saved.paths,
        saved.cost,
        saved.notes,
        saved.status.sentence,
    )
    assert torch.equal(found.counts, saved.counts)
    assert torch.equal(found.diverged, saved.diverged)
    assert found.configuration == dict(saved.configuration)
    assert found.configuration["settings"]["seed"] == 2


def test_statistics_that_came_back_go_on(tmp_path):
    found = Ensemble.load(example().save(tmp_path)).statistics["θ"][-1]
    ours = example().statistics["θ"][-1]
    more = torch.randn(10, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for one, other in zip(found, ours, strict=True):
        assert type(one) is type(other)
        assert one.add(more).count == 60
    assert torch.equal(found[0].add(more).covariance, ours[0].add(more).covariance)
    assert torch.equal(found[1].add(more).values, ours[1].add(more).values)


@dataclasses.dataclass(frozen=True)
class Largest(Statistic):
    """A statistic of the user's."""

    most: float = 0.0
    n: int = 0

    @property
    def count(self):
        return self.n

    def add(self, samples):
        return Largest(max(self.most, float(samples.max())), self.n + len(samples))

    def merge(self, other):
        return Largest(max(self.most, other.most), self.n + other.n)


def of_statistic(statistic):
    flow = StochasticModifiedEquation(SUM, 0.1, 1)
    seen = {"square": Observable(square, [statistic])}
    return ensemble(flow, START, [0.0, 0.1], paths=10, seed=2, dt=0.05, observables=seen)


def test_a_statistic_of_the_users_comes_back(tmp_path):
    saved = of_statistic(Largest())
    assert Ensemble.load(saved.save(tmp_path)).series(Largest) == saved.series(Largest)


def test_a_statistic_that_no_module_defines_is_refused_by_name(tmp_path):
    class Local(Largest):
        def add(self, samples):
            return Local(0.0, self.n + len(samples))

    with pytest.raises(UnsupportedError, match=r"statistics\['square'\]\[0\]\[1\] is a .*Local, which cannot be saved"):
        of_statistic(Local()).save(tmp_path)


def test_a_study_comes_back(tmp_path):
    saved = study()
    found = WeakOrderStudy.load(saved.save(tmp_path))
    assert str(found) == str(saved)
    assert found.settings == saved.settings
    assert found.configuration == dict(saved.configuration)
    for one, other in zip(found.rungs, saved.rungs, strict=True):
        assert (one.paths, one.diverged, one.cost) == (other.paths, other.diverged, other.cost)
        for name in ("mean", "difference", "standard_error", "integration", "integration_error"):
            assert all(torch.equal(getattr(one, name)[key], value) for key, value in getattr(other, name).items())
    assert found.plot(tmp_path / "figure").exists()


def test_a_study_of_format_1_has_no_numbers_of_its_rungs_and_is_read(tmp_path):
    tensors, text = load_tensors(study().save(tmp_path), "weak_order")
    for key in ("rungs", "confidence", "configuration"):
        text.pop(key)
    save_tensors(tmp_path, "weak_order", tensors, text)
    assert str(WeakOrderStudy.load(tmp_path)) == str(study())


CHANGES = {
    "times": lambda tensors, text: tensors.update(times=tensors["times"][:-1]),
    "times that decrease": lambda tensors, text: tensors.update(times=-tensors["times"]),
    "no statistic": lambda tensors, text: tensors.pop("statistic.3"),
    "no status": lambda tensors, text: text.pop("status"),
    "paths": lambda tensors, text: text.update(paths=0),
    "diverged": lambda tensors, text: tensors.update(diverged=tensors["diverged"].double()),
    "statistics": lambda tensors, text: text.update(statistics=["dict", [["x", ["list", [3, 4, 5]]]]]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_ensemble_of_other_parts_is_refused(change, tmp_path):
    tensors, text = load_tensors(example(10).save(tmp_path), "ensemble")
    change(tensors, text)
    save_tensors(tmp_path, "ensemble", tensors, text)
    with pytest.raises(FolderError):
        Ensemble.load(tmp_path)


STUDY_CHANGES = {
    "no rung": lambda tensors, text: text["ladder"].pop(),
    "times": lambda tensors, text: tensors.update({"0.times": tensors["0.times"][:-1]}),
    "h": lambda tensors, text: text.update(ladder=[-1.0, 0.1]),
    "no observable": lambda tensors, text: text["observables"].append("ghost"),
    "paths": lambda tensors, text: text["rungs"][0].update(paths="many"),
}


@pytest.mark.parametrize("change", STUDY_CHANGES.values(), ids=STUDY_CHANGES)
def test_a_study_of_other_parts_is_refused(change, tmp_path):
    tensors, text = load_tensors(study().save(tmp_path), "weak_order")
    change(tensors, text)
    save_tensors(tmp_path, "weak_order", tensors, text)
    with pytest.raises(FolderError):
        WeakOrderStudy.load(tmp_path)


def test_an_ensemble_of_format_1_is_refused_by_a_sentence(tmp_path):
    from safetensors.torch import save_file

    save_file({"times": torch.zeros(1)}, tmp_path / "ensemble.safetensors")
    (tmp_path / "ensemble.json").write_text('{"format": 1, "complex": []}')
    with pytest.raises(FolderError, match=r"means and errors without the statistics; read its tensors"):
        Ensemble.load(tmp_path)
