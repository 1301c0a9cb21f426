"""Saves over saves, killed at a random microsecond, and two writers at once: every load is wholly one run."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from flows import Trajectory
from flows.engines import locks
from flows.engines.storage import FolderError

from .saving import KINDS, run_of

pytestmark = pytest.mark.skipif(os.name != "posix", reason="kills of POSIX")
ROOT = Path(__file__).parents[3]
KILLS = 20  # of each kind
SECONDS = 2.0  # of two writers


def start(folder, *arguments):
    """A saving process, after its imports."""
    command = [sys.executable, "-m", "tests.flows.engines.saving", str(folder), *map(str, arguments)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    return process


def fork(folder, kind, first):
    """A forked process that saves, which spares the imports."""
    child = os.fork()
    if child == 0:
        try:
            for value in range(first, first + 10**6):
                KINDS[kind][0](value).save(folder)
        finally:
            os._exit(1)
    return child


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # a fork beside threads
@pytest.mark.parametrize("kind", KINDS)
def test_a_killed_save_leaves_one_whole_run(kind, tmp_path):
    make, load, values_of = KINDS[kind]
    make(0).save(tmp_path)
    generator, moved = random.Random(0), 0
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a forked process has no threads
    try:
        for i in range(KILLS):
            child = fork(tmp_path, kind, 1000 * (i + 1))
            time.sleep(generator.uniform(0, 0.05))
            os.kill(child, 9)
            os.waitpid(child, 0)
            values = values_of(load(tmp_path))
            assert len(values) == 1
            moved += values != {0.0}
    finally:
        torch.set_num_threads(threads)
    assert moved > 0


def test_two_writers_never_mix(tmp_path):
    run_of(0).save(tmp_path)
    writers = [start(tmp_path, "trajectory", first, 2) for first in (1, 2)]
    seen = set()
    try:
        until = time.monotonic() + SECONDS
        while time.monotonic() < until:
            (value,) = KINDS["trajectory"][2](Trajectory.load(tmp_path))
            seen.add(value)
    finally:
        said = []
        for writer in writers:
            writer.kill()
            said.append(writer.communicate()[0])
    assert said == ["", ""]
    assert {value % 2 for value in seen if value} == {0.0, 1.0}


def test_a_second_process_is_refused_and_told_who_writes(tmp_path):
    process = start(tmp_path, "trajectory")
    refusals = set()
    try:
        until = time.monotonic() + 20
        while not refusals and time.monotonic() < until:
            try:
                run_of(10**8).save(tmp_path)
            except FolderError as error:
                refusals.add(str(error))
    finally:
        process.kill()
        process.communicate()
    (refusal,) = refusals
    assert f"is being written by process {process.pid} on " in refusal
    run_of(10**9).save(tmp_path)  # the lock went with its process
    assert KINDS["trajectory"][2](Trajectory.load(tmp_path)) == {1e9}


def test_leftovers_of_killed_processes_are_removed_after_an_hour(tmp_path):
    old, young, other = (tmp_path / n for n in (f".thalweg-{'0' * 16}.part", f".thalweg-{'1' * 16}.part", ".mine.part"))
    for path in (old, young, other):
        path.touch()
    past = time.time() - locks.ABANDONED - 1
    for path in (old, other):
        os.utime(path, (past, past))
    run_of(1).save(tmp_path)
    assert (old.exists(), young.exists(), other.exists()) == (False, True, True)
