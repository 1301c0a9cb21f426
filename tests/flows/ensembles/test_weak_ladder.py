"""What a ladder of weak errors says: rungs that count, flags in the table, and rungs that share no path."""

import pytest
import torch

from flows import NoisyGradientDescent, NoisyModifiedEquation
from flows.ensembles import WeakErrors, WeakOrderStudy, weak_errors, weak_order
from landscapes import NoisyQuadratic
from landscapes.noise import MinibatchNoise

LADDER = (0.4, 0.2, 0.1)


def rung(error, bar, left, diverged=0):
    columns = [torch.tensor([[0.0], [value]], dtype=torch.float64) for value in (error, bar, left, 0.0)]
    mean = {"x": columns[0]}
    return WeakErrors(
        torch.tensor([0.0, 1.0], dtype=torch.float64), 10, mean, *({"x": column} for column in columns), diverged
    )


def test_rungs_within_their_error_do_not_count():
    errors = [rung(0.16, 1e-3, 0.0), rung(0.04, 1e-3, 0.0), rung(0.02, 0.011, 0.0, diverged=3)]
    study = WeakOrderStudy("flow", LADDER, tuple(errors), ("x",))
    assert study.order("x").rungs == 2
    assert study.order("x").order == pytest.approx(2)
    marked = [line for line in str(study).splitlines() if "zero within its error" in line]
    assert len(marked) == 1
    assert marked[0].split()[1] == "0.1"
    assert "3 runs diverged" in str(study)


def test_rungs_where_integration_counts_are_flagged():
    errors = [rung(0.16, 1e-3, 0.0), rung(0.04, 1e-3, 0.0041), rung(0.01, 1e-4, -0.0009)]
    said = str(WeakOrderStudy("flow", LADDER, tuple(errors), ("x",))).splitlines()
    marked = [line for line in said if "integration error" in line]
    assert len(marked) == 1
    assert "10.2%" in marked[0]
    assert any("9.0%" in line for line in said)


def test_rungs_share_no_path():
    """Each has the ladder's seed plus its number: errors of rungs are independent, as the fit takes them to be."""
    bowl = NoisyQuadratic(torch.eye(2, dtype=torch.float64), 4, seed=0)
    noise, start = MinibatchNoise(bowl, 2), torch.tensor([1.0, -0.7], dtype=torch.float64)

    def flow(h):
        return NoisyModifiedEquation(bowl, h, noise)

    def descent(h):
        return NoisyGradientDescent(bowl, h, noise)

    options = {"paths": 6, "observables": {"θ": lambda theta: theta}, "coupled": True}
    study = weak_order(flow, descent, start, 0.5, (0.25, 0.125), seed=7, **options)
    for i, h in enumerate((0.25, 0.125)):
        expected = weak_errors(flow(h), descent(h), start, round(0.5 / h), seed=7 + i, **options)
        assert torch.equal(study.rungs[i].difference["θ"], expected.difference["θ"])
