"""Arguments of ensembles, expectations, weak errors and statistics that are refused, each by name."""

import math

import pytest
import torch

from flows import StochasticGradientDescent, StochasticModifiedEquation
from flows.ensembles import (
    Ensemble,
    Expectation,
    Histogram,
    Moments,
    Observable,
    Quantiles,
    WeakErrors,
    WeakOrderStudy,
    ensemble,
    expectation,
    weak_errors,
    weak_order,
)
from flows.ensembles.statistics import MOST
from landscapes import TwoQuadratics

SUM = TwoQuadratics()
START = torch.tensor([0.5, -0.3], dtype=torch.float64)
SDE, SGD = StochasticModifiedEquation(SUM, 0.1, 1), StochasticGradientDescent(SUM, 0.1, 1)
COMMON = {"theta0": START, "paths": 4, "seed": 0, "observables": {"θ": lambda theta: theta}, "block": 2}
OTHER = [True, "x", b"x", None, math.nan, math.inf, 1.5, 1j, object(), [], {}, torch.tensor(1.0)]
COUNTS = [0, -1, MOST + 1, 10**12, 2**70, *OTHER]
CALLS = {
    "ensemble of a flow": (ensemble, {"model": SDE, "times_or_steps": [0.0, 0.1, 0.2], "dt": 0.05, **COMMON}),
    "ensemble of a descent": (ensemble, {"model": SGD, "times_or_steps": 3, **COMMON}),
    "expectation": (expectation, {"flow": SDE, "times": [0.0, 0.1], "dt": 0.05, **COMMON}),
    "weak errors": (weak_errors, {"flow": SDE, "descent": SGD, "steps": 2, **COMMON}),
    "weak order": (
        weak_order,
        {
            "flow": lambda h: StochasticModifiedEquation(SUM, h, 1),
            "descent": lambda h: StochasticGradientDescent(SUM, h, 1),
            "time": 0.4,
            "ladder": [0.2, 0.1],
            **COMMON,
        },
    ),
}
REFUSED = {
    "ensemble of a flow": {"paths": COUNTS, "every": [0, -1, *OTHER], "seed": [-1, 2**63, *OTHER]},
    "ensemble of a descent": {"paths": COUNTS, "times_or_steps": COUNTS, "every": [0, -1, *OTHER]},
    "expectation": {"paths": [1, *COUNTS], "every": [0, -1, *OTHER], "dt": [0.0, -1.0, "x", None, True]},
    "weak errors": {
        "paths": [1, *COUNTS],
        "steps": COUNTS,
        "substeps": COUNTS,
        "every": [0, -1, *OTHER],
        "reference": [0, True, "x", math.nan, [], {}],
        "block": [0, -1, 1.5, True, "x"],
    },
    "weak order": {
        "paths": [1, *COUNTS],
        "seed": [-1, *OTHER],
        "flow": OTHER,
        "descent": OTHER,
        "ladder": [3, "x", None, [], [0.1], [0.1, "x"], [0.1, True], math.nan, torch.tensor(1.0), {0.1: 1, 0.2: 2}],
        "time": [0.0, -1.0, 10**12, "x", None, True, math.nan],
        "reference": [0, "x", []],
    },
}
CASES = [(call, name, value) for call, cases in REFUSED.items() for name, values in cases.items() for value in values]


@pytest.mark.parametrize("call", CALLS)
def test_the_calls_as_they_stand_are_accepted(call):
    function, arguments = CALLS[call]
    function(**arguments)


@pytest.mark.parametrize(("call", "name", "value"), CASES, ids=lambda x: str(x)[:20])
def test_an_argument_is_refused_by_its_name(call, name, value):
    function, arguments = CALLS[call]
    with pytest.raises((ValueError, TypeError)) as caught:
        function(**{**arguments, name: value})
    said = {"times_or_steps": "steps", "time": "time"}.get(name, name)
    assert said in str(caught.value)
    assert "/flows/" in str(caught.traceback[-1].path) or "/landscapes/" in str(caught.traceback[-1].path)


@pytest.mark.parametrize("statistic", [Moments(), Quantiles([0.5]), Histogram([0.0, 1.0])])
@pytest.mark.parametrize("other", [0, None, "x", [], torch.ones(2)])
def test_only_equal_kinds_merge(statistic, other):
    with pytest.raises(TypeError, match=f"other must be a {type(statistic).__name__}"):
        statistic.merge(other)


@pytest.mark.parametrize("values", [0, None, "x", b"x", 1j, object(), {}, torch.tensor(1.0), ["x", "y"], [True, 1.0]])
def test_statistics_take_real_numbers(values):
    with pytest.raises(TypeError, match="edges must be a"):
        Histogram(values)
    with pytest.raises(TypeError, match="probabilities must be a"):
        Quantiles(values)
    if not isinstance(values, (list, dict)):
        with pytest.raises(TypeError, match="statistics must be"):
            Observable(lambda theta: theta, [values] if isinstance(values, str) else values)
    with pytest.raises(ValueError, match=f"size must be at most {MOST}"):
        Quantiles([0.5], size=10**12)


def test_results_are_refused_field_by_field():
    found = weak_errors(**CALLS["weak errors"][1])
    fields = {name: getattr(found, name) for name in WeakErrors.__dataclass_fields__}
    for name in ("mean", "difference", "standard_error", "integration", "integration_error"):
        for value, error in ((None, TypeError), ([], TypeError), ({"θ": torch.ones(9)}, ValueError)):
            with pytest.raises(error, match=name):
                WeakErrors(**{**fields, name: value})
            if name in Expectation.__dataclass_fields__:
                less = {key: fields[key] for key in Expectation.__dataclass_fields__}
                with pytest.raises(error, match=name):
                    Expectation(**{**less, name: value})
    study = weak_order(**CALLS["weak order"][1])
    fields = {name: getattr(study, name) for name in WeakOrderStudy.__dataclass_fields__}
    for name in ("ladder", "rungs", "observables", "confidence", "settings", "configuration", "name"):
        with pytest.raises(TypeError, match=name):
            WeakOrderStudy(**{**fields, name: None})
    for asked in (found.largest, study.largest, study.order):
        with pytest.raises(ValueError, match="name must be one of 'θ', got 'x'"):
            asked("x")
        with pytest.raises(TypeError, match="name must be a string"):
            asked([])
    law: Ensemble = ensemble(**CALLS["ensemble of a descent"][1])
    with pytest.raises(TypeError, match="kind must be a class"):
        law.series("Moments")
