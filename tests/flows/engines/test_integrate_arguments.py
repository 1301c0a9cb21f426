"""``integrate``'s arguments out of place: typed errors that name the argument, before anything is computed."""

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import pytest
import torch

from flows import Flow, GradientFlow, PrincipalFlow, integrate
from flows.engines.methods import ADAPTIVE, FIXED
from landscapes import Landscape, Quadratic
from landscapes.errors import UnsupportedError

START = torch.ones(2, dtype=torch.float64)
TIMES = [0.0, 0.5, 1.0]


class Asked(Landscape):
    """A quadratic that knows whether it was asked anything."""

    dimension, asked = 2, False

    def loss(self, theta):
        self.asked = True
        return (theta * theta).sum(dim=-1) / 2


@dataclass
class Seeing:
    """An observer that must see nothing of a run that is refused."""

    every: int = 1
    name: str = "seeing"
    seen: int = 0

    def __call__(self, k, t, theta):
        self.seen += 1
        return {}


class NoEvery:
    name = "no every"

    def __call__(self, k, t, theta):
        return {}


class NoName:
    every = 1

    def __call__(self, k, t, theta):
        return {}


class NotCallable:
    name, every = "not callable", 1


class Returning:
    name, every = "returning", 1

    def __init__(self, value):
        self.value = value

    def __call__(self, k, t, theta):
        return self.value(k)


BAD_STARTS = {
    "list": [1.0, 1.0],
    "array": np.ones(2),
    "None": None,
    "integers": torch.ones(2, dtype=torch.int64),
    "booleans": torch.ones(2, dtype=torch.bool),
    "0-d": torch.tensor(1.0),
    "empty": torch.ones(0),
    "no members": torch.ones(0, 2),
    "NaN": torch.tensor([1.0, math.nan]),
    "infinite": torch.tensor([[1.0, 1.0], [math.inf, 1.0]]),
    "complex NaN": torch.tensor([1.0, complex(0, math.nan)]),
}
BAD_TIMES = {
    "None": None,
    "empty": [],
    "one": [0.0],
    "a number": 1.0,
    "2-D": [[0.0, 1.0]],
    "ragged": [[0.0], [1.0, 2.0]],
    "unsorted": [0.0, 2.0, 1.0],
    "repeated": [0.0, 1.0, 1.0],
    "backwards": [1.0, 0.0],
    "NaN": [0.0, math.nan, 1.0],
    "infinite": [0.0, math.inf],
    "complex": torch.tensor([0.0, 1j]),
    "strings": ["0", "1"],
    "booleans": [False, True],
}
EULER = {"method": "euler", "dt": 0.25}
BAD_SETTINGS = {
    "unknown method": ({"method": "rk45"}, "method.*'rk45'"),
    "method no string": ({"method": 4}, "method"),
    "dt missing": ({"method": "rk4"}, "dt must be given.*'rk4'"),
    "dt extra": ({"dt": 0.25}, "dt is for fixed-step"),
    "dt with scipy": ({"method": "scipy_solver", "dt": 0.25}, "dt is for fixed-step"),
    "dt not dividing": ({"method": "euler", "dt": 0.3}, "times must lie.*dt = 0.3"),
    "dt too long": ({"method": "euler", "dt": 2.0}, "times must lie.*dt = 2.0"),
    "dt zero": ({"method": "euler", "dt": 0.0}, "dt must be positive"),
    "dt negative": ({"method": "euler", "dt": -0.25}, "dt must be positive"),
    "dt NaN": ({"method": "euler", "dt": math.nan}, "dt must be positive"),
    "dt infinite": ({"method": "euler", "dt": math.inf}, "dt must be positive"),
    "dt absurd": ({"method": "euler", "dt": 1e-300}, "dt"),
    "dt string": ({"method": "euler", "dt": "0.25"}, "dt"),
    "dt bool": ({"method": "euler", "dt": True}, "dt"),
    "rtol for euler": ({**EULER, "rtol": 1e-3}, "rtol and atol have no meaning.*'euler'"),
    "atol for euler": ({**EULER, "atol": 1e-3}, "rtol and atol have no meaning.*'euler'"),
    "rtol zero": ({"rtol": 0.0}, "rtol must be positive"),
    "atol negative": ({"atol": -1e-9}, "atol must be positive"),
    "rtol NaN": ({"rtol": math.nan}, "rtol must be positive"),
    "first_step for rk4": ({"method": "rk4", "dt": 0.25, "first_step": 0.1}, "first_step is for the adaptive"),
    "first_step for scipy": ({"method": "scipy_solver", "first_step": 0.1}, "first_step is for the adaptive"),
    "first_step zero": ({"first_step": 0.0}, "first_step must be positive"),
    "first_step NaN": ({"first_step": math.nan}, "first_step must be positive"),
    "every zero": ({"every": 0}, "every must be at least 1"),
    "every fraction": ({"every": 1.5}, "every"),
    "every bool": ({"every": True}, "every"),
    "keep some": ({"keep": "some"}, "keep must be one of 'all', 'last'.*'some'"),
    "keep list": ({"keep": ["all"]}, "keep"),
    "observer without name": ({"observers": [NoName()]}, "observers.*name"),
    "observer without every": ({"observers": [NoEvery()]}, "every"),
    "observer not callable": ({"observers": [NotCallable()]}, "observers.*callable"),
    "observer every zero": ({"observers": [Seeing(every=0)]}, "every of observer 'seeing'"),
    "observers no sequence": ({"observers": Seeing()}, "observers"),
}


def refused(match, flow=None, theta0=START, times=TIMES, **settings):
    """The call raises our own typed error, and nothing was computed or shown before."""
    landscape, seeing = Asked(), Seeing()
    settings.setdefault("observers", [seeing])
    with pytest.raises((TypeError, ValueError), match=match) as caught:
        integrate(flow or GradientFlow(landscape), theta0, times, **settings)
    assert type(caught.value).__module__ in ("builtins", "landscapes.errors")
    assert any(str(entry.path).startswith(ROOT) for entry in caught.traceback[-1:]), "raised by a library of others"
    assert not landscape.asked
    assert seeing.seen == 0


ROOT = __file__.rsplit("/tests/", 1)[0]


@pytest.mark.parametrize("theta0", BAD_STARTS.values(), ids=BAD_STARTS)
def test_starts(theta0):
    refused("theta0", theta0=theta0)


@pytest.mark.parametrize("times", BAD_TIMES.values(), ids=BAD_TIMES)
@pytest.mark.parametrize("setting", [{}, EULER], ids=["adaptive", "fixed"])
def test_times(times, setting):
    refused("times", times=times, **setting)


@pytest.mark.parametrize(("settings", "match"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_settings(settings, match):
    refused(match, **settings)


@pytest.mark.parametrize("method", [m for m in FIXED if "adams" not in m])
def test_fixed_steps_take_no_tolerances(method):
    refused("no meaning", method=method, dt=0.25, rtol=1e-3)
    refused("dt must be given", method=method)


@pytest.mark.parametrize("method", [*ADAPTIVE, "scipy_solver", "exprb43"])
def test_adaptive_methods_take_no_step(method):
    refused("dt is for fixed-step", method=method, dt=0.25)


def test_times_off_the_grid_are_named():
    with pytest.raises(ValueError, match=r"times must lie.*; 0\.55 does not"):
        integrate(GradientFlow(Asked()), START, [0.0, 0.5, 0.55], method="euler", dt=0.25)
    sloppy = torch.tensor([0.0, 0.1, 0.2]).double()  # off by float32's rounding: 1e-9 relative is asked for
    with pytest.raises(ValueError, match="times must lie"):
        integrate(GradientFlow(Asked()), START, sloppy, method="euler", dt=0.1)
    close = [0.0, 0.1 * (1 + 1e-11), 0.2]
    run = integrate(GradientFlow(Asked()), START, close, method="euler", dt=0.1)
    assert run.times.tolist() == close


@pytest.mark.parametrize(
    "flow", [None, 3, Asked(), lambda t, x: -x, GradientFlow], ids=["None", "number", "object", "function", "class"]
)
def test_what_is_no_flow(flow):
    with pytest.raises(TypeError, match="flow must be a Flow"):
        integrate(flow, START, TIMES)


@pytest.mark.parametrize("setting", [{}, EULER, {"method": "scipy_solver"}], ids=["adaptive", "fixed", "scipy"])
@pytest.mark.parametrize("shape", [(3,), (1,), (4, 3)], ids=str)
def test_a_dimension_that_is_not_the_landscapes(shape, setting):
    with pytest.raises(ValueError, match=r"theta.*\(\.\.\., 2\)"):
        integrate(GradientFlow(Quadratic(torch.eye(2))), torch.ones(shape), TIMES, **setting)


class Wrong(Flow):
    """A user's velocity of another shape, dtype or type."""

    def __init__(self, change):
        self.change = change

    def velocity(self, t, state):
        return self.change(state)


WRONG = {
    "short": lambda x: x[..., :1],
    "summed": lambda x: x.sum(),
    "batched": lambda x: x[None],
    "float32": lambda x: x.float(),
    "complex": lambda x: x + 0j,
    "integers": lambda x: x.long(),
    "None": lambda x: None,
    "array": lambda x: x.numpy(),
}


@pytest.mark.parametrize("setting", [{}, EULER, {"method": "scipy_solver"}], ids=["adaptive", "fixed", "scipy"])
@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_a_velocity_of_the_wrong_kind(change, setting):
    with pytest.raises(TypeError, match=r"velocity of Wrong must have the shape and dtype of the state, \(2,\)"):
        integrate(Wrong(change), START, TIMES, **setting)


def test_scipy_refuses_complex_states():
    flow = PrincipalFlow(Quadratic(torch.eye(2)), 0.1)
    refused("scipy_solver.*dopri5", flow=flow, method="scipy_solver")
    with pytest.raises(UnsupportedError):
        integrate(GradientFlow(Quadratic(torch.eye(2))), START + 0j, TIMES, method="scipy_solver")


def test_other_precisions_name_their_tolerances():
    with pytest.raises(ValueError, match="rtol and atol must be given"):
        integrate(GradientFlow(Quadratic(torch.eye(2))), START.to(torch.bfloat16), TIMES)


@pytest.mark.parametrize("value", [lambda k: None, lambda k: torch.ones(2), lambda k: {"a": torch.ones(k + 1)}])
def test_observers_that_return_something_else(value):
    with pytest.raises((TypeError, ValueError), match="observer 'returning'"):
        integrate(GradientFlow(Quadratic(torch.eye(2))), START, TIMES, observers=[Returning(value)])


def test_two_observers_of_one_name_do_not_mix():
    pair = [Returning(lambda k: {"a": torch.zeros(1)}), Returning(lambda k: {"a": torch.ones(1)})]
    with pytest.raises(ValueError, match="'a'"):
        integrate(GradientFlow(Quadratic(torch.eye(2))), START, TIMES, observers=pair)


def test_numbers_of_other_libraries_are_refused_at_the_boundary():
    with pytest.raises(TypeError, match="rtol must be a positive real number"):
        integrate(GradientFlow(Quadratic(torch.eye(2))), torch.zeros(2), [0.0, 0.1], rtol=Fraction(1, 4))
