"""The table of stiff flows: its columns are what the runs took, and what is printed is what is returned."""

import math

import pytest
import torch

from flows import GradientFlow, integrate
from landscapes import Rosenbrock
from scripts.stiff import StiffRow, StiffSettings, main, print_cheapest, stiff_table

FAST = {"rtols": (1e-2, 1e-4), "max_steps": 60}


def test_a_table_of_a_stiff_valley(capsys):
    valley, theta0 = Rosenbrock(b=1e4), torch.tensor([0.0, 0.5], dtype=torch.float64)
    rows = stiff_table("valley", valley, theta0, 0.02, ["scipy_solver", "exprb43"], StiffSettings(**FAST))
    printed = capsys.readouterr().out
    assert all(str(row) in printed for row in rows)
    run = integrate(GradientFlow(valley), theta0, [0.0, 0.02], method="exprb43", rtol=1e-4, atol=1e-6)
    end = integrate(GradientFlow(valley), theta0, [0.0, 0.02], method="scipy_solver", rtol=1e-11, atol=1e-12).theta[-1]
    ours = rows[1]
    assert (ours.method, ours.gradients, ours.products) == ("exprb43", run.cost["grad"], run.cost["hvp"])
    assert ours.equivalents == run.cost["grad"] + 2.2 * run.cost["hvp"]
    assert ours.error == pytest.approx(float((run.theta[-1] - end).norm() / end.norm()), rel=1e-3)
    explicit = [row for row in rows if row.method == "dopri5"]
    assert len(explicit) == 1  # no second rung after one that failed
    assert math.isnan(explicit[0].error)
    assert "max_steps" in explicit[0].status
    (fixed,) = (row for row in rows if row.method == "rk4")
    sharpness = max(float(torch.linalg.matrix_norm(valley.hessian(theta), 2)) for theta in (theta0, end))
    assert fixed.gradients == 4 * math.ceil(0.02 * sharpness / 2.785)
    assert fixed.status.startswith("not run")


def test_rk4_runs_where_its_steps_are_few():
    valley, theta0 = Rosenbrock(b=10.0), torch.tensor([0.0, 0.5], dtype=torch.float64)
    rows = stiff_table("valley", valley, theta0, 0.5, ["dopri5", "exprb43"], StiffSettings(**FAST))
    assert {row.method for row in rows} == {"exprb43", "dopri5", "bosh3", "rk4"}
    assert rows[-1].status == "finished"
    assert rows[-1].error < 0.05


def test_the_cheapest_run_within_an_error(capsys):
    rows = [
        StiffRow("a", "", 5e-3, 100, 10, "finished"),
        StiffRow("a", "", 5e-4, 200, 0, "finished"),
        StiffRow("a", "", 5e-5, 150, 0, "finished"),
        StiffRow("b", "", math.nan, 1, 0, "gave up"),
    ]
    print_cheapest(rows)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "within 1e-02, as gradients: a 122, b –"
    assert lines[1] == "within 1e-03, as gradients: a 150, b –"
    assert lines[2] == "within 1e-04, as gradients: a 150, b –"
    assert lines[3] == "within 1e-05, as gradients: a –, b –"


def test_the_command(capsys):
    fast = "--only valley --stiffness 1e3 --valley-time 0.01 --rtols 1e-2 1e-4 --max-steps 60"
    assert main(fast.split()) == 0
    printed = capsys.readouterr().out
    assert "Rosenbrock's valley, b = 1000, t = 0.01" in printed
    assert printed.count("within") == 4
