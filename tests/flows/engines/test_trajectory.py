"""Trajectory on disk and Status: what is written comes back bit for bit, what is broken says so by FolderError."""

import dataclasses
import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from flows import GradientFlow, PrincipalFlow, Status, Trajectory, integrate
from flows.engines.endings import KINDS
from flows.engines.storage import FolderError, save_tensors
from flows.engines.trajectory import parts_of
from flows.observers import Loss
from landscapes import Quadratic

FORMAT_1 = Path(__file__).parents[2] / "compat" / "format1" / "descent"
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
ODD = [0.0, -0.0, 5e-324, 1e-40, float("nan"), float("inf"), -float("inf"), 1 / 3]


def same_bits(one, other):
    """Equal dtype, shape and bits: NaN equals NaN, −0 is not 0."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    if one.is_complex():
        return same_bits(torch.view_as_real(one), torch.view_as_real(other))
    return one.contiguous().numpy().tobytes() == other.contiguous().numpy().tobytes()


def same(one, other):
    assert same_bits(one.times, other.times)
    assert same_bits(one.theta, other.theta)
    assert same_bits(one.alive, other.alive)
    assert (one.status, one.status.sentence) == (other.status, other.status.sentence)
    assert (dict(one.cost), one.notes) == (dict(other.cost), other.notes)
    assert list(one.observations) == list(other.observations)
    for name, (times, values) in one.observations.items():
        assert same_bits(times, other.observations[name][0])
        assert same_bits(values, other.observations[name][1])
    return True


def example(dtype=torch.float64, batch=(2, 3), kind="diverged", observations=None):
    generator = torch.Generator().manual_seed(0)
    times = torch.rand(4, generator=generator, dtype=torch.float64).cumsum(0)
    theta = torch.randn(4, *batch, 2, generator=generator, dtype=dtype)
    alive = torch.rand(batch, generator=generator) > 0.4
    status = Status(kind, "member 3 left — θ₀ = (1, 2); “try” a smaller h\n| and so on")
    cost = {"evaluations": 7, "grad": 1 / 3, "hvp": 1e300}
    return Trajectory(times, theta, status, alive, cost, observations or {}, ("first", "θ: second"))


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", KINDS)
def test_round_trip(tmp_path, dtype, batch, kind):
    seen = {
        "loss": (torch.arange(4.0).double(), torch.rand(4, *batch)),
        "a name/with: everything .times": (torch.zeros(1).double(), torch.rand(1, 2, dtype=dtype)),
        "counts": (torch.arange(2.0).double(), torch.tensor([1, 2**62])),
        "never": (torch.zeros(0, dtype=torch.float64), torch.zeros(0, 3)),
    }
    run = example(dtype, batch, kind, seen)
    folder = tmp_path / "deep" / "folder"
    assert run.save(folder) == folder
    assert same(run, Trajectory.load(folder))
    assert same(run, Trajectory.load(str(folder)))
    example(batch=(), kind="finished").save(folder)  # over it
    assert Trajectory.load(folder).status == "finished"


@given(values=st.lists(st.sampled_from(ODD) | st.floats(), min_size=2, max_size=6))
def test_round_trip_of_every_number(tmp_path_factory, values):
    numbers = torch.tensor(values, dtype=torch.float64)[:, None]
    times, theta = torch.arange(len(values)).double(), torch.where(numbers.isfinite(), numbers, -0.0)
    run = Trajectory(times, theta, Status("finished", ""), torch.tensor(True), observations={"x": (times, numbers)})
    folder = tmp_path_factory.mktemp("number")
    assert same(run, Trajectory.load(run.save(folder)))


def test_views_conjugates_and_shared_memory(tmp_path):
    z = torch.randn(6, 2, 4, dtype=torch.complex128, generator=torch.Generator().manual_seed(1))
    part = z.conj()[::2].mT
    seen = {"imag": (torch.arange(3.0).double(), part.imag), "twice": (torch.arange(3.0).double(), part)}
    run = Trajectory(
        torch.arange(3.0).double(), part, Status("finished", ""), torch.ones(4, dtype=torch.bool), {}, seen
    )
    back = Trajectory.load(run.save(tmp_path))
    assert torch.equal(back.theta, part)
    assert torch.equal(back.observations["imag"][1], part.imag)


@pytest.mark.parametrize("count", range(1, 5))
def test_complex_states_are_aligned_as_torch_computes_on_them(tmp_path, count):
    # a file aligns to 8 bytes: complex128 states read as they lie there made torch's kernels fault at half the lengths
    theta = torch.complex(torch.arange(2.0 * count).double(), torch.ones(2 * count).double()).reshape(count, 2)
    run = Trajectory(torch.arange(count).double(), theta, Status("finished", ""), torch.tensor(True))
    back = Trajectory.load(run.save(tmp_path)).theta
    assert back.data_ptr() % back.element_size() == 0
    assert torch.isclose(back, theta).all()


def test_a_real_run_comes_back(tmp_path, device):
    quadratic = Quadratic(torch.diag(torch.tensor([2.0, 0.02], dtype=torch.float64)))
    theta0 = torch.ones(3, 2, dtype=torch.float64, device=device)
    run = integrate(PrincipalFlow(quadratic, 0.9), theta0, [0.0, 0.9, 1.8], observers=[Loss(quadratic)])
    back = Trajectory.load(run.save(tmp_path))
    assert torch.equal(back.theta, run.theta.cpu())
    assert torch.equal(back.observations["loss"][1], run.observations["loss"][1].cpu())
    assert (back.status, back.status.sentence, dict(back.cost)) == (run.status, run.status.sentence, dict(run.cost))


def test_nothing_is_pickled(tmp_path):
    example().save(tmp_path)
    (path,) = tmp_path.iterdir()
    with pytest.raises(Exception), path.open("rb") as file:  # noqa: B017, PT011  # any failure will do
        pickle.load(file)
    with safe_open(path, "pt") as file:
        text = json.loads(file.metadata()["thalweg"])
    assert (text["format"], text["status"]) == (2, "diverged")


@pytest.mark.parametrize("below", ["", "further/down"])
def test_a_file_in_the_way(tmp_path, below):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(FolderError, match=r"taken.*cannot be written.*name another"):
        example().save(tmp_path / "taken" / below)
    assert (tmp_path / "taken").read_text() == "mine"


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / "trajectory.safetensors").mkdir()
    with pytest.raises(FolderError, match="cannot be written"):
        example().save(tmp_path)


def test_folder_errors_are_value_errors(tmp_path):
    assert issubclass(FolderError, ValueError)
    with pytest.raises(ValueError, match=r"no readable trajectory.*give a folder"):
        Trajectory.load(tmp_path / "nowhere")


def without(key):
    return lambda text: {k: v for k, v in text.items() if k != key}


EDITS = {
    "no JSON object": lambda text: [],
    "other format": lambda text: {**text, "format": 99},
    "unknown status": lambda text: {**text, "status": "lost"},
    "observation that is not there": lambda text: {**text, "observations": ["loss", "ghost"]},
    "complex that is not there": lambda text: {**text, "complex": ["ghost"]},
    "complex that is real": lambda text: {**text, "complex": ["times"]},
    **{
        f"no {key}": without(key)
        for key in ("format", "complex", "status", "sentence", "cost", "observations", "notes")
    },
}


def old_folder(tmp_path):
    """A folder of format 1, whose text can be edited."""
    return Path(shutil.copytree(FORMAT_1, tmp_path / "run"))


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_description(tmp_path, edit):
    folder = old_folder(tmp_path)
    path = folder / "trajectory.json"
    path.write_text(json.dumps(edit(json.loads(path.read_text()))))
    with pytest.raises(FolderError, match="run"):
        Trajectory.load(folder)


RUN = example()
FIELDS = {
    "times of integers": {"times": torch.arange(4)},
    "times that are no tensor": {"times": [0.0, 1.0, 2.0, 3.0]},
    "times in two dimensions": {"times": torch.zeros(4, 1).double()},
    "times in another number": {"times": torch.tensor([99.0]).double()},
    "times that decrease": {"times": torch.tensor([0.0, 2.0, 1.0, 3.0]).double()},
    "times that are NaN": {"times": torch.tensor([0.0, torch.nan, 1.0, 3.0]).double()},
    "times that are infinite": {"times": torch.tensor([0.0, 1.0, 2.0, torch.inf]).double()},
    "theta of integers": {"theta": torch.zeros(4, 2, 3, 2, dtype=torch.int64)},
    "theta without a dimension": {"theta": torch.zeros(4)},
    "theta in another number": {"theta": torch.zeros(5, 2, 3, 2)},
    "status that is a string": {"status": "finished"},
    "alive of numbers": {"alive": torch.ones(2, 3)},
    "alive of another shape": {"alive": torch.ones(3, 2, dtype=torch.bool)},
    "cost that is NaN": {"cost": {"grad": float("nan")}},
    "cost below zero": {"cost": {"grad": -1}},
    "cost that is a truth": {"cost": {"grad": True}},
    "cost that is no mapping": {"cost": [1]},
    "cost without a name": {"cost": {3: 1}},
    "observations that are a list": {"observations": []},
    "observations without times": {"observations": {"loss": torch.ones(4)}},
    "observations in another number": {"observations": {"loss": (torch.zeros(3).double(), torch.ones(4))}},
    "observations at times of float32": {"observations": {"loss": (torch.zeros(4), torch.ones(4))}},
    "notes that are one string": {"notes": "first"},
    "notes of numbers": {"notes": (1, 2)},
    "observer_costs that are no mapping": {"observer_costs": {"loss": 3}},
    "configuration that is a list": {"configuration": []},
}


@pytest.mark.parametrize("change", FIELDS.values(), ids=FIELDS)
def test_a_field_of_another_form_is_refused(change):
    (name,) = change
    with pytest.raises((TypeError, ValueError), match=name):
        dataclasses.replace(RUN, **change)


UNWRITABLE = {"times that are no tensor", "cost without a name", "notes that are one string"}


@pytest.mark.parametrize("change", [change for name, change in FIELDS.items() if name not in UNWRITABLE])
def test_a_field_of_another_form_is_refused_on_load(change, tmp_path):
    parts = {**{f.name: getattr(RUN, f.name) for f in dataclasses.fields(RUN)}, **change}
    try:
        tensors, text = parts_of(SimpleNamespace(**parts))
    except (AttributeError, TypeError, ValueError):
        return  # no such file can be written
    save_tensors(tmp_path, "trajectory", tensors, text)
    with pytest.raises(FolderError, match=rf"no readable trajectory.*{next(iter(change))}"):
        Trajectory.load(tmp_path)


def test_theta_that_is_not_finite_is_refused_on_load(tmp_path):
    theta = torch.full((4, 2, 3, 2), torch.nan)
    with pytest.raises(FolderError, match="theta must be finite"):
        Trajectory.load(dataclasses.replace(RUN, theta=theta).save(tmp_path))


def test_a_run_that_keeps_its_last_state_and_repeated_times_are_taken():
    dataclasses.replace(RUN, times=RUN.times[-1:], theta=RUN.theta[-1:])
    dataclasses.replace(RUN, times=torch.zeros(4).double())


BREAKS = {
    "half the tensors": lambda folder: halve(folder / "trajectory.safetensors"),
    "no tensors": lambda folder: (folder / "trajectory.safetensors").unlink(),
    "empty tensors": lambda folder: (folder / "trajectory.safetensors").write_bytes(b""),
    "pickle": lambda folder: (folder / "trajectory.safetensors").write_bytes(pickle.dumps([1, 2])),
    "others' tensors": lambda folder: swap(folder / "trajectory.safetensors"),
}


def halve(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def swap(path):
    from safetensors.torch import save_file

    save_file({"weights": torch.ones(2)}, path)


OLD_BREAKS = {
    "half a JSON": lambda folder: halve(folder / "trajectory.json"),
    "no JSON": lambda folder: (folder / "trajectory.json").unlink(),
    "not UTF-8": lambda folder: (folder / "trajectory.json").write_bytes(b"\xff\xfe{}"),
    **BREAKS,
}


@pytest.mark.parametrize("damage", OLD_BREAKS.values(), ids=OLD_BREAKS)
def test_a_damaged_folder_of_format_1(tmp_path, damage):
    folder = old_folder(tmp_path)
    Trajectory.load(folder)
    damage(folder)
    with pytest.raises(FolderError, match="run"):
        Trajectory.load(folder)


@pytest.mark.parametrize("damage", BREAKS.values(), ids=BREAKS)
def test_a_damaged_folder(tmp_path, damage):
    folder = example().save(tmp_path / "run")
    damage(folder)
    with pytest.raises(FolderError, match="run"):
        Trajectory.load(folder)


def test_a_trajectory_is_frozen():
    run = integrate(GradientFlow(Quadratic(torch.eye(2))), torch.ones(2), [0.0, 0.1])
    with pytest.raises(AttributeError):
        run.theta = None


@pytest.mark.parametrize("kind", KINDS)
def test_a_status_is_its_kind_with_a_sentence(kind):
    status = Status(kind, "what happened")
    assert status == kind
    assert isinstance(status, str)
    assert f"{status}" == kind
    assert {status: 1}[kind] == 1
    assert status.sentence == "what happened"
    assert kind in repr(status)
    assert "what happened" in repr(status)


@pytest.mark.parametrize("kind", ["", "done", "Finished", "finished ", None, 3])
def test_unknown_kinds_are_refused(kind):
    with pytest.raises(ValueError, match="kind must be one of finished, diverged"):
        Status(kind, "what happened")


def test_states_in_blocks_are_those_that_came(monkeypatch):
    from flows.engines import recorder

    monkeypatch.setattr(recorder, "BLOCK", 3)
    for count, shape in ((1, (2,)), (3, ()), (7, (2, 5))):
        came = [torch.full(shape, float(i)) for i in range(count)]
        states = recorder.States()
        for i, state in enumerate(came):
            states.append(float(i), state)
            state.add_(100)  # what the engine does with its own afterwards
        assert torch.equal(states.stack(), torch.stack(came) - 100)
    monkeypatch.setattr(recorder, "NUMBERS", 4)
    wide = recorder.States()
    for i in range(2):
        wide.append(float(i), torch.ones(10))  # wider than a block is meant for: one each
    assert wide.stack().shape == (2, 10)
