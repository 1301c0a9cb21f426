"""scripts.stochastic weak-order: orders and closed forms printed, rungs kept on disk, bad options said in a line."""

import re

from scripts.stochastic.__main__ import main
from tests.scripts.running import says_in_one_line

SMALL = "weak-order --noises multiplicative --orders 2 --ladder 0.25 0.125 --paths 2000 --threads 1"


def test_orders_beside_closed_forms(tmp_path, run):
    status, out, _ = run(main, f"{SMALL} --out {tmp_path}")
    assert status == 0
    measured = [float(x) for x in re.findall(r"(?:loss|θ₁|θ₁²): (\d\.\d+) \[", out)]
    rows = re.findall(r"^multiplicative.*  (\d\.\d{3})  +(\d+\.\d)$", out, re.MULTILINE)
    assert len(measured) == len(rows) == 3
    for slope, (exact, off) in zip(measured, rows, strict=True):
        assert abs(slope - float(exact)) < 0.2
        assert float(off) < 5
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_rungs_are_kept_and_added_to(tmp_path, run):
    assert run(main, f"{SMALL} --out {tmp_path}")[0] == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("multiplicative-2-*.safetensors")}
    more = SMALL.replace("0.25 0.125", "0.25 0.125 0.0625")
    status, out, _ = run(main, f"{more} --out {tmp_path}")
    assert status == 0
    assert "0.0625" in out
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert len(list(tmp_path.glob("multiplicative-2-*.safetensors"))) == 3


def test_bad_options_are_one_line(tmp_path, run):
    for options, word in {
        "--ladder 0.3 0.2": "whole number of steps",
        "--ladder 0.25": "at least two",
        "--paths 1": "paths",
        "--orders 3": "order",
        "--batch-size 0": "batch_size",
    }.items():
        says_in_one_line(run(main, f"weak-order {options} --out {tmp_path / 'x'}"), word)
