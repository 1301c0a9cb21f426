"""scripts.curl: both sides of Stokes' theorem agree, and only order 2 has none."""

import re

import pytest

from scripts.curl import main


def test_work_around_the_loop_is_the_curl_inside(tmp_path, run):
    code, out, _ = run(main, f"--out {tmp_path / 'curl.png'} --orders 1 2 3 4")
    assert code == 0
    rows = [re.split(r"\s+", line.strip()) for line in out.splitlines() if re.match(r"\s+\d", line)]
    work, inside = ([float(row[i]) for row in rows] for i in (1, 2))
    assert work == pytest.approx(inside, rel=1e-9, abs=1e-13)
    assert max(map(abs, work[:2])) < 1e-13
    assert min(map(abs, work[2:])) > 1e-3
    assert (tmp_path / "curl.png").stat().st_size > 10_000


def test_an_order_out_of_range_is_one_line(tmp_path, run):
    code, _, err = run(main, f"--out {tmp_path / 'curl.png'} --orders 13")
    assert code == 2
    assert "order must be at most 12" in err
