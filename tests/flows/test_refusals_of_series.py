"""Series, order fits, ladders, settings of torch.optim and laws: values that they cannot use, refused by name."""

import math
from fractions import Fraction

import numpy as np
import pytest
import sympy
import torch

from flows import GradientDescent, ModifiedFlow, linear_sgd_at, models_of
from flows.invariants import check_order
from flows.orders import fit_order, global_order, one_step_order, settled_order
from flows.series import (
    field_expressions,
    field_terms,
    heavy_ball_multistep,
    landscape_program,
    latex_field,
    latex_landscape,
    modified_equation,
    modified_gradient_flow,
    principal_coefficient_series,
    principal_part,
    rooted_trees,
    runge_kutta,
    stability_function,
    tree,
)
from flows.series.methods import EULER
from flows.steady.passage_laws import ceiling
from flows.steady.second_moments import SecondMoments
from landscapes import LinearRegression, Quadratic, Rosenbrock
from landscapes.noise import IsotropicNoise
from tests.tensors import draw

SYMBOLS, RATE = sympy.symbols("a b"), sympy.Symbol("h")
LOSS = SYMBOLS[0] ** 2 + SYMBOLS[1] ** 4
SERIES, FIELD = modified_equation(EULER, 2), [-SYMBOLS[0], -(SYMBOLS[1] ** 3)]
START = torch.tensor([0.1, 0.2]).double()
FOUR_BITS = torch.empty(2, dtype=torch.uint4)
ODD = {
    "none": None,
    "text": "x",
    "flag": True,
    "a list": [1.0],
    "an array": np.ones(2),
    "a tensor": torch.ones(2),
    "four bits": FOUR_BITS,
    "sparse": torch.ones(2).to_sparse(),
    "an object": object(),
    "a class": int,
}


def flow_of(h):
    return ModifiedFlow(Rosenbrock(b=5.0), h, 2)


def descent_of(h):
    return GradientDescent(Rosenbrock(b=5.0), h)


CALLS = {
    "z": [lambda x: stability_function(EULER, x), lambda x: principal_part(heavy_ball_multistep(Fraction(1, 2)), x)],
    "h": [
        lambda x: modified_gradient_flow(LOSS, SYMBOLS, x, 2),
        lambda x: field_expressions(SERIES, FIELD, SYMBOLS, x),
        lambda x: landscape_program(EULER, 2, x),
    ],
    "friction": [lambda x: landscape_program(EULER, 2, 0.1, x)],
    "method": [lambda x: landscape_program(x, 2, 0.1), lambda x: modified_equation(x, 2)],
    "order": [lambda x: landscape_program(EULER, x, 0.1), rooted_trees],
    "series": [latex_field, latex_landscape, lambda x: field_terms(x, FIELD, SYMBOLS)],
    "parts": [lambda x: field_terms(SERIES, x, SYMBOLS), lambda x: field_terms(SERIES, [x, SYMBOLS[0]], SYMBOLS)],
    "stages": [lambda x: runge_kutta(x, [1]), lambda x: runge_kutta([x], [1]), lambda x: runge_kutta([[x]], [1])],
    "weights": [lambda x: runge_kutta([[0]], x), lambda x: runge_kutta([[0]], [x])],
    "children": [lambda x: tree("f", x)],
    "flow": [
        lambda x: one_step_order(x, descent_of, START, [0.02, 0.01]),
        lambda x: global_order(x, descent_of, START, [0.02, 0.01], 0.02),
        lambda x: settled_order(x, descent_of, START, [0.02, 0.01], 0.02),
        lambda x: settled_order(lambda h: x, descent_of, START, [0.02, 0.01], 0.02),
        lambda x: check_order(x, descent_of, START, 2.0),
    ],
    "descent": [lambda x: settled_order(flow_of, x, START, [0.02, 0.01], 0.02)],
    "integration": [lambda x: one_step_order(flow_of, descent_of, START, [0.02, 0.01], x)],
}
VALID_KINDS = {("flow", "a class"), ("descent", "a class"), ("integration", "none"), ("parts", "an array")}
CASES = [(name, i, kind) for name, calls in CALLS.items() for i in range(len(calls)) for kind in ODD]


@pytest.mark.parametrize(("name", "which", "kind"), [case for case in CASES if (case[0], case[2]) not in VALID_KINDS])
def test_values_of_another_kind_are_refused(name, which, kind):
    with pytest.raises((TypeError, ValueError), match=rf"\b{name}\b.* must ") as caught:
        CALLS[name][which](ODD[kind])
    assert any(f"/{package}/" in str(caught.traceback[-1].path) for package in ("flows", "landscapes"))


@pytest.mark.parametrize("flag", [FOUR_BITS, torch.ones(2), 1, None], ids=lambda x: type(x).__name__)
def test_flags_are_refused(flag):
    for write in (latex_field, latex_landscape):
        with pytest.raises(TypeError, match="aligned must be True or False"):
            write(SERIES, aligned=flag)
    with pytest.raises(TypeError, match="nesterov must be True or False"):
        models_of(torch.optim.SGD, lr=0.1, momentum=0.5, nesterov=flag)


@pytest.mark.parametrize("number", [10**9, 2**63, 10**400])
def test_huge_orders_are_refused_with_the_bound(number):
    for call, bound in (
        (lambda: rooted_trees(number), 16),
        (lambda: modified_equation(EULER, number), 16),
        (lambda: landscape_program(EULER, number, 0.1), 16),
        (lambda: modified_gradient_flow(LOSS, SYMBOLS, RATE, number), 16),
        (lambda: principal_coefficient_series(EULER, number), 100),
    ):
        with pytest.raises(ValueError, match=f"order must be at most {bound}, got"):
            call()


@pytest.mark.parametrize("time", [1e9, 1e300])
def test_long_times_of_orders_are_refused_with_the_bound(time):
    for measure in (global_order, settled_order):
        with pytest.raises(ValueError, match="time must be at most 100,000,000 steps of every rung"):
            measure(flow_of, descent_of, START, [0.02, 0.01], time)
    with pytest.raises(ValueError, match="time must be at most 100,000,000 steps of every rung"):
        global_order(flow_of, descent_of, START, [0.02, 5e-324], 0.02)


VALID = {
    "ladder": [0.08, 0.04, 0.02],
    "errors": [0.64, 0.16, 0.04],
    "uncertainties": [0.0, 0.0, 0.0],
    "window": [0, 1, 2],
}
WRONG = {
    "ladder": [[0.08, 0.04], [0.08, 0.04, 0.04], [0.08, 0.04, -1.0], [0.08, 0.04, math.nan], [0.02, 0.04, 0.08]],
    "errors": [[0.64, 0.16], [0.64, 0.16, 0.0], [0.64, 0.16, math.nan], [0.64, 0.16, -1.0]],
    "uncertainties": [[0.0], [0.0, 0.0, -1.0], [0.0, 0.0, math.inf]],
    "window": [[0, 1], [0, 1, 3], [0, 2, 1], [0.0, 1.0, 2.0], [-1, 0, 1], []],
}
WRONG = {name: [*values, *(x for kind, x in ODD.items() if kind != "a list")] for name, values in WRONG.items()}


@pytest.mark.parametrize(("name", "which"), [(name, i) for name, values in WRONG.items() for i in range(len(values))])
def test_numbers_of_a_fit_are_refused(name, which):
    assert math.isclose(fit_order(**VALID).order, 2)
    with pytest.raises((TypeError, ValueError), match=f"{name if which else name.rstrip('s')}.* must|must be as many"):
        fit_order(**VALID | {name: WRONG[name][which]})


SETTINGS = [None, math.nan, "x", [0.1], torch.ones(2), FOUR_BITS, torch.ones(1).to_sparse(), 10**400]


@pytest.mark.parametrize("value", SETTINGS, ids=lambda x: type(x).__name__)
@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay"])
def test_settings_of_sgd_are_refused(name, value):
    assert models_of(torch.optim.SGD, lr=torch.tensor(0.1)).matches
    with pytest.raises((TypeError, ValueError), match=f"({name}|settings) must"):
        models_of(torch.optim.SGD, **{"lr": 0.1, "momentum": 0.5, name: value})


def test_rates_whose_square_overflows_are_refused():
    quadratic, regression = Quadratic(torch.eye(2).double()), LinearRegression(draw(0, 6, 2), draw(1, 6))
    noise = IsotropicNoise(0.5, 2)
    with pytest.raises(ValueError, match=r"h must be at most 1\.341e\+154"):
        linear_sgd_at(quadratic, torch.zeros(2).double(), 1e300, noise)
    assert linear_sgd_at(quadratic, torch.zeros(2).double(), 1, noise).matrix.shape == (2, 2)
    with pytest.raises(ValueError, match=r"rate must be at most 1\.341e\+154"):
        SecondMoments(regression).descent(START, -1e300, 0.5, 3)
    with pytest.raises(ValueError, match="h must have a power 2 that float64 holds"):
        landscape_program(EULER, 3, 1e300)


def test_starts_beyond_the_resolution_of_1_end():
    with pytest.raises(ValueError, match="potential must rise by"):
        ceiling(np.zeros_like, 0.1, 1e300)
