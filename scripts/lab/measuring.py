r"""Measurements of the benchmarks: ratios of alternating runs, and the growth of a process's peak memory."""

from __future__ import annotations

import multiprocessing
import signal
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

try:
    import psutil
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("the benchmarks need psutil: pip install 'thalweg[bench]'") from error

Program = Callable[[], object]
LONGEST_WAIT = 3600  # seconds for a separate process


@dataclass(frozen=True)
class Measuring:
    """Options of a measurement."""

    repeats: int = 15
    """Interleaved repeats of each pair of programs."""
    device: str = "cpu"
    """Device of the networks and toys."""
    threads: int = 2
    """Threads of torch on the CPU."""


def seconds(program: Program, device: str) -> float:
    """Wall time of one run."""
    start = time.perf_counter()
    program()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def ratio(name: str, ours: Program, theirs: Program, settings: Measuring, target: str) -> None:
    """Print the median ratio of alternating repeats, and the quartiles."""
    for program in (ours, theirs):
        program()
    ratios = [seconds(ours, settings.device) / seconds(theirs, settings.device) for _ in range(settings.repeats)]
    low, _, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    print(f"{name}: {statistics.median(ratios):.3f} (quartiles {low:.3f} … {high:.3f}); target {target}", flush=True)


def in_its_own_process(function: Callable[..., None], *arguments: Any) -> Any:
    """The value that ``function(*arguments, queue)`` puts on the queue in a fresh process; RuntimeError if none."""
    context = multiprocessing.get_context("spawn")  # a forked child starts with the parent's memory and threads
    queue = context.SimpleQueue()
    process = context.Process(target=without_interrupts, args=(function, *arguments, queue))
    process.start()
    try:
        process.join(LONGEST_WAIT)
    finally:
        process.kill()  # one that has not ended: after the wait, or where this process is interrupted
    if process.exitcode != 0 or queue.empty():
        raise RuntimeError(f"the measuring process ended without a result, exit code {process.exitcode}")
    return queue.get()


def without_interrupts(function: Callable[..., None], *arguments: Any) -> None:
    """The function with Ctrl-C ignored, which is meant for the process that waits for this one."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    function(*arguments)


def growth(program: Program, device: str) -> float:
    """Growth of this process's peak memory over its present memory while ``program`` runs, in MiB."""
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        program()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = psutil.Process().memory_info().rss
    program()
    return (peak_bytes() - before) / 2**20


def peak_bytes() -> int:
    """The peak memory of this process."""
    status = Path("/proc/self/status")
    if status.exists():  # getrusage of a forked child starts at the peak of its parent
        return next(int(line.split()[1]) * 1024 for line in status.read_text().splitlines() if "VmHWM" in line)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
