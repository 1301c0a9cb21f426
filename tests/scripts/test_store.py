"""Training in segments on disk: an interrupted segment is run again, finished ones are not."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows import GradientDescent
from flows.engines.configuration import versions
from flows.engines.storage import FolderError
from flows.observers import Loss
from landscapes import Rosenbrock
from scripts.lab.store import Store, VersionWarning, descend_in_segments

VALLEY = Rosenbrock(b=5.0)
START = torch.tensor([-0.4, 0.6], dtype=torch.float64)


class Stopping(Loss):
    """A loss whose sight of the seventh step is the user's interrupt."""

    calls = 0

    def __call__(self, k, t, theta):
        type(self).calls += 1
        if type(self).calls == 7:
            raise KeyboardInterrupt
        return super().__call__(k, t, theta)


def test_an_interrupted_segment_is_run_again(tmp_path):
    descent = GradientDescent(VALLEY, 0.02)
    with pytest.raises(KeyboardInterrupt):
        descend_in_segments(Store(tmp_path, {}), "training", descent, START, 9, 3, [Stopping(VALLEY)], every=1)
    again = descend_in_segments(Store(tmp_path, {}), "training", descent, START, 9, 3, [Stopping(VALLEY)], every=1)
    whole = descend_in_segments(
        Store(tmp_path / "whole", {}), "training", descent, START, 9, 9, [Loss(VALLEY)], every=1
    )
    torch.testing.assert_close(again["theta"], whole["theta"])
    assert len(again["theta"]) == 10


def compute(value=1.0):
    return lambda: {"x": torch.full((3,), value)}


def refuse():
    raise AssertionError("computed again")


def test_a_finished_part_is_read_and_not_computed(tmp_path):
    Store(tmp_path, {"a": 1}).part("p", compute())
    assert torch.equal(Store(tmp_path, {"a": 1}).part("p", refuse)["x"], torch.ones(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["configuration.json", "p.safetensors"]


def test_another_configuration_is_refused(tmp_path):
    Store(tmp_path, {"a": 1, "b": 2})
    for other in ({"a": 1, "b": 3}, {"a": 1}, {"a": 1, "b": 2, "c": 3}):
        with pytest.raises(FolderError, match=r"holds results made with other [bc]; name another folder"):
            Store(tmp_path, other)


def of_version(folder, version):
    """Write a version of thalweg into the folder's configuration."""
    file = folder / "configuration.json"
    said = json.loads(file.read_text())
    assert said["versions"] == versions()
    said["versions"]["thalweg"] = version
    file.write_text(json.dumps(said))


def test_another_version_is_warned_of_and_not_gone_on_with(tmp_path):
    Store(tmp_path, {"a": 1}).part("p", compute())
    of_version(tmp_path, "0.0.7")
    with pytest.warns(VersionWarning, match=r"holds results of thalweg 0\.0\.7, this is"):
        store = Store(tmp_path, {"a": 1})
    assert torch.equal(store.part("p", refuse)["x"], torch.ones(3))
    with pytest.raises(FolderError, match=r"lacks q, and holds results of thalweg 0\.0\.7.*name another folder"):
        store.part("q", refuse)
    assert json.loads((tmp_path / "configuration.json").read_text())["versions"]["thalweg"] == "0.0.7"


def test_a_damaged_part_is_refused_by_its_file(tmp_path):
    store = Store(tmp_path, {})
    store.part("p", compute())
    path = tmp_path / "p.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(FolderError, match=r"p\.safetensors' is damaged; remove it to compute it again.*checksum"):
        store.part("p", refuse)
    path.unlink()
    assert torch.equal(store.part("p", compute(2.0))["x"], torch.full((3,), 2.0))


def test_a_part_of_format_1_without_its_text_was_interrupted_and_is_computed(tmp_path):
    from safetensors.torch import save_file

    save_file({"x": torch.zeros(3)}, tmp_path / "p.safetensors")
    assert torch.equal(Store(tmp_path, {}).part("p", compute())["x"], torch.ones(3))


@pytest.mark.parametrize("text", ["", "[]", '{"a"'])
def test_a_damaged_configuration_is_refused(text, tmp_path):
    (tmp_path / "configuration.json").write_text(text)
    with pytest.raises(FolderError, match=r"configuration\.json.*name another folder, or remove this one"):
        Store(tmp_path, {})


OPEN = """
import sys
from pathlib import Path
from scripts.lab.store import Store
try:
    Store(Path(sys.argv[1]), {})
except ValueError as error:
    print(error)
"""


def test_a_second_process_is_refused_for_the_life_of_a_store(tmp_path):
    def other_process():
        command = [sys.executable, "-c", OPEN, str(tmp_path)]
        root = Path(__file__).parents[2]
        return subprocess.run(command, cwd=root, capture_output=True, text=True, check=True).stdout

    store = Store(tmp_path, {})
    store.part("p", compute())
    assert "is being written by process" in other_process()
    del store
    assert other_process() == ""
