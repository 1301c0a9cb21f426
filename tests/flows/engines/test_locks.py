"""The lock of a folder: one process, any number of its saves, gone with it; files of the user's are left alone."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.engines.locks import NAME, FolderLock
from flows.engines.storage import FolderError

posix = pytest.mark.skipif(os.name != "posix", reason="links, pipes and forks of POSIX")
ROOT = Path(__file__).parents[3]
TRY = """
import sys
from flows.engines.locks import FolderLock
from flows.engines.storage import FolderError
try:
    FolderLock(sys.argv[1])
except FolderError as error:
    print(error)
"""


def other_process(folder):
    """The words of another process that asks for the lock: none if it got it."""
    command = [sys.executable, "-c", TRY, str(folder)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_another_process_is_refused_by_the_number_of_the_first(tmp_path):
    with FolderLock(tmp_path):
        said = other_process(tmp_path)
    assert f"is being written by process {os.getpid()} on " in said
    assert "name another folder" in said
    assert other_process(tmp_path) == ""
    assert list(tmp_path.iterdir()) == []


def test_nested_locks_of_one_process_end_with_the_last(tmp_path):
    outer = FolderLock(tmp_path)
    with FolderLock(tmp_path / ".." / tmp_path.name):
        pass
    outer.release()
    outer.release()
    assert not (tmp_path / NAME).exists()
    inner = FolderLock(tmp_path)
    assert (tmp_path / NAME).exists()
    del inner
    gc.collect()
    assert not (tmp_path / NAME).exists()


def test_a_file_of_the_users_is_left_as_it_is(tmp_path):
    (tmp_path / NAME).write_text("mine")
    with FolderLock(tmp_path):
        assert (tmp_path / NAME).read_text() == "mine"
    assert (tmp_path / NAME).read_text() == "mine"


def test_a_lock_left_by_a_killed_process_is_free(tmp_path):
    (tmp_path / NAME).write_text("thalweg: process 1 on nowhere\n")
    with FolderLock(tmp_path):
        assert f"process {os.getpid()} on " in (tmp_path / NAME).read_text()


@posix
def test_a_planted_link_or_pipe_is_refused(tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("mine")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / NAME).symlink_to(victim)
    with pytest.raises(FolderError, match="cannot be written"):
        FolderLock(folder)
    assert victim.read_text() == "mine"
    (folder / NAME).unlink()
    os.mkfifo(folder / NAME)
    with pytest.raises(FolderError, match="no regular file; remove it"):
        FolderLock(folder)


@posix
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads
def test_a_forked_process_does_not_hold_the_lock(tmp_path):
    lock = FolderLock(tmp_path)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            FolderLock(tmp_path)
            os.write(writer, b"taken")
        except FolderError:
            os.write(writer, b"refused")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reader, 10) == b"refused"
    assert (tmp_path / NAME).exists()
    lock.release()
    assert other_process(tmp_path) == ""


def test_a_folder_that_was_removed_meanwhile_is_locked_anew(tmp_path):
    folder = tmp_path / "folder"
    first = FolderLock(folder)
    (folder / NAME).unlink()
    folder.rmdir()
    second = FolderLock(folder)
    assert (folder / NAME).exists()
    first.release()
    assert "is being written by" in other_process(folder)
    second.release()
    assert not (folder / NAME).exists()
