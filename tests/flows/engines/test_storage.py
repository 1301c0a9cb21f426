"""Files of format 2: every bit is checked, links, pipes and devices are refused, a failed write leaves the old file."""

import errno
import hashlib
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from flows import Status, Trajectory
from flows.comparison import Comparison
from flows.engines import storage
from flows.engines.storage import FolderError, load_tensors, save_tensors, writable_folder, write_text
from landscapes import UnsupportedError

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and limits of POSIX")
TENSORS = {"x": torch.arange(3.0), "z": torch.ones(2, dtype=torch.complex128), "flag": torch.tensor(True)}


def small_run(value=1.0):
    theta = torch.full((2, 1), value, dtype=torch.float64)
    return Trajectory(torch.arange(2).double(), theta, Status("finished", f"run {value}"), torch.tensor(True))


def saved(folder, stem="x", tensors=TENSORS, text=None):
    save_tensors(folder, stem, tensors, {"k": 1, "θ": "“so”"} if text is None else text)
    return folder / f"{stem}.safetensors"


def test_every_flipped_bit_is_refused(tmp_path):
    path = small_run().save(tmp_path) / "trajectory.safetensors"
    content = path.read_bytes()
    assert len(content) < 2000
    taken = []
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        try:
            Trajectory.load(tmp_path)
            taken.append(bit)
        except FolderError:
            pass
    assert taken == []
    path.write_bytes(content)
    Trajectory.load(tmp_path)


def test_every_truncation_and_every_appended_byte_is_refused(tmp_path):
    path = small_run().save(tmp_path) / "trajectory.safetensors"
    content = path.read_bytes()
    for other in (*(content[:n] for n in range(len(content))), content + b"\0", content + b" ", content + content):
        path.write_bytes(other)
        with pytest.raises(FolderError, match="no readable trajectory"):
            Trajectory.load(tmp_path)


def test_the_file_is_one_that_safetensors_reads_and_its_checksum_can_be_recomputed(tmp_path):
    path = saved(tmp_path)
    with safe_open(path, "pt") as file:
        assert torch.equal(file.get_tensor("x"), TENSORS["x"])
        assert file.get_tensor("z").shape == (2, 2)
        metadata = file.metadata()
    assert set(metadata) == {"thalweg", "sha256"}
    assert json.loads(metadata["thalweg"])["format"] == 2
    zeroed = path.read_bytes().replace(metadata["sha256"].encode(), b"0" * 64)
    assert hashlib.sha256(zeroed).hexdigest() == metadata["sha256"]


@given(names=st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=4, unique=True), text=st.text())
def test_any_name_and_text_comes_back(names, text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("names")
    names = [name.encode("utf-8", "replace").decode() for name in names if name != "__metadata__"]
    tensors = {name: torch.full((2,), float(i)) for i, name in enumerate(dict.fromkeys(names))}
    tensors['"sha256":"'] = torch.zeros(1)
    save_tensors(folder, "x", tensors, {"text": text, '"sha256":"': '","sha256":"' + "0" * 64})
    back, said = load_tensors(folder, "x")
    assert said["text"] == text
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensors[name]) for name in tensors)


DTYPES = "float16 bfloat16 float32 float64 complex64 complex128 bool uint8 int8 int16 int32 int64".split()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0, 3), (5,), (2, 3)], ids=str)
def test_any_dtype_and_shape_comes_back(dtype, shape, tmp_path):
    tensor = (torch.rand(shape) * 3).to(getattr(torch, dtype))
    tensors = {"a": tensor, "b": tensor.mT if tensor.ndim == 2 else tensor, "c": torch.ones(3, dtype=torch.bool)}
    back = load_tensors(saved(tmp_path, tensors=tensors).parent, "x")[0]
    for name, value in tensors.items():
        assert (back[name].dtype, back[name].shape) == (value.dtype, value.shape)
        assert torch.equal(back[name], value)
        assert back[name].data_ptr() % back[name].element_size() == 0


def test_a_tensor_of_two_names_is_stored_once(tmp_path):
    big = torch.arange(1000.0)
    sizes = [saved(tmp_path, tensors=t).stat().st_size for t in ({"a": big}, {"a": big, "b": big}, {"a": big[::2]})]
    assert sizes[1] - sizes[0] < 100
    assert sizes[2] < sizes[0] - 1900
    back = load_tensors(saved(tmp_path, tensors={"a": big, "b": big, "part": big[3:5]}).parent, "x")[0]
    assert torch.equal(back["b"], big)
    assert torch.equal(back["part"], big[3:5])


def test_sparse_tensors_are_refused(tmp_path):
    with pytest.raises(UnsupportedError, match=r"'x' must be dense"):
        save_tensors(tmp_path, "x", {"x": torch.eye(2).to_sparse()}, {})


def test_an_unknown_format_is_refused_by_a_sentence(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(storage, "FORMAT", 3)
        saved(tmp_path)
    with pytest.raises(FolderError, match=r"has format 3, this version reads 1 and 2; use the version"):
        load_tensors(tmp_path, "x")


def old_pair(folder, stem="x"):
    """A pair of format 1."""
    save_file({"x": torch.zeros(3)}, folder / f"{stem}.safetensors")
    (folder / f"{stem}.json").write_text(json.dumps({"format": 1, "complex": [], "k": 0}))


def test_a_save_over_format_1_removes_its_text(tmp_path):
    old_pair(tmp_path)
    assert load_tensors(tmp_path, "x")[1]["k"] == 0
    saved(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert load_tensors(tmp_path, "x")[1]["k"] == 1


def test_a_text_of_format_1_beside_format_2_is_ignored(tmp_path):
    saved(tmp_path)
    for text in ('{"format": 1, "complex": [], "k": 5}', "no JSON"):
        (tmp_path / "x.json").write_text(text)
        assert load_tensors(tmp_path, "x")[1]["k"] == 1


def test_a_damaged_file_beside_a_text_of_format_1_is_refused(tmp_path):
    path = saved(tmp_path)
    (tmp_path / "x.json").write_text('{"format": 1, "complex": [], "k": 5}')
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 3):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(FolderError):
            load_tensors(tmp_path, "x")


def test_a_file_of_the_users_with_the_old_name_stays(tmp_path):
    (tmp_path / "x.json").write_text('{"mine": true}')
    (tmp_path / ".writable").write_text("mine")
    saved(tmp_path)
    writable_folder(tmp_path)
    assert (tmp_path / "x.json").read_text() == '{"mine": true}'
    assert (tmp_path / ".writable").read_text() == "mine"


@posix
@pytest.mark.parametrize("name", ["x.safetensors", "x.json", "x.json.part", "x.safetensors.part", "table.txt"])
def test_a_planted_link_is_never_written_through(name, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).symlink_to(victim)
    saved(folder)
    write_text(folder / "table.txt", "a table")
    assert victim.read_text() == "mine"
    assert load_tensors(folder, "x")[1]["k"] == 1
    assert not (folder / "x.safetensors").is_symlink()
    assert (folder / "table.txt").read_text() == "a table"


@posix
def test_a_link_is_not_read(tmp_path):
    whole = saved(tmp_path)
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "x.safetensors").symlink_to(whole)
    with pytest.raises(FolderError, match="is a symbolic link"):
        load_tensors(folder, "x")


def in_time(call, seconds=20):
    """The error of a call that must end; fails if it does not."""
    found = []

    def run():
        try:
            call()
        except FolderError as error:
            found.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive()
    assert found


@posix
@pytest.mark.parametrize("stem", ["safetensors", "json"])
def test_a_pipe_is_refused_without_waiting(stem, tmp_path):
    if stem == "json":
        old_pair(tmp_path)
        (tmp_path / "x.json").unlink()
    os.mkfifo(tmp_path / f"x.{stem}")
    in_time(lambda: load_tensors(tmp_path, "x"))


@posix
def test_a_save_over_a_pipe_replaces_it(tmp_path):
    os.mkfifo(tmp_path / "x.safetensors")
    os.mkfifo(tmp_path / "x.json")
    saved(tmp_path)
    assert load_tensors(tmp_path, "x")[1]["k"] == 1


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="no devices")
def test_a_device_is_refused(tmp_path):
    with pytest.raises(OSError, match="no regular file"):
        storage.read_file(Path("/dev/zero"))


def test_a_folder_in_place_of_the_file_is_refused(tmp_path):
    (tmp_path / "x.safetensors").mkdir()
    with pytest.raises(FolderError, match="no readable x"):
        load_tensors(tmp_path, "x")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(step, tmp_path, monkeypatch):
    saved(tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(storage.os, step, full)
        with pytest.raises(FolderError, match="No space left on device"):
            save_tensors(tmp_path, "x", TENSORS, {"k": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert load_tensors(tmp_path, "x")[1]["k"] == 1


def test_an_interrupted_write_leaves_no_file(tmp_path, monkeypatch):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(storage.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path)
    assert list(tmp_path.iterdir()) == []


LIMITED = """
import resource, signal, sys, torch
from flows.engines.storage import FolderError, save_tensors
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_tensors(sys.argv[1], "x", {"x": torch.zeros(10_000)}, {"k": 2})
except FolderError as error:
    print("refused:", error)
"""


@posix
def test_a_full_disk_leaves_the_old_file(tmp_path):
    saved(tmp_path)
    answer = subprocess.run([sys.executable, "-c", LIMITED, tmp_path], capture_output=True, text=True, check=True)
    assert answer.stdout.startswith("refused: folder")
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]
    assert load_tensors(tmp_path, "x")[1]["k"] == 1


@posix
def test_files_have_the_rights_that_the_umask_gives(tmp_path):
    (tmp_path / "plain").touch()
    assert saved(tmp_path).stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_unserialisable_texts_are_refused_before_anything_is_written(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        save_tensors(tmp_path, "x", TENSORS, {"k": object()})
    assert list(tmp_path.iterdir()) == []


def test_a_comparison_whose_runs_are_of_another_save_is_not_mixed(tmp_path):
    old = Path(__file__).parents[2] / "compat" / "format1" / "comparison"
    first = Comparison.load(old)
    first.save(tmp_path)
    small_run().save(tmp_path / "gradient")  # a part of another save, read alone only
    assert str(Comparison.load(tmp_path)) == str(first)
