"""Every flow, descent and observer class of the library has a row in the catalogue, and every row a class."""

import dataclasses
import importlib
import inspect
import pkgutil

import pytest

import flows
from flows import Descent, Flow
from flows.catalogue.descents import DESCENTS
from flows.catalogue.flows import FLOWS
from flows.catalogue.observers import OBSERVERS
from tests.flows.catalogue.cases import ROWS

# The observers by which an ensemble and a comparison are fed, given to no user.
NO_MODELS = {"Watch", "Steps"}
REMEDY = "has no row in flows/catalogue; docs/extending.md shows one"


def library_classes():
    """Every public class that a module of ``flows`` defines."""
    for module in pkgutil.walk_packages(flows.__path__, "flows."):
        if not module.name.endswith("__main__"):
            members = vars(importlib.import_module(module.name)).values()
            yield from (c for c in members if inspect.isclass(c) and c.__module__ == module.name)


CLASSES = [c for c in library_classes() if not c.__name__.startswith("_") and c.__name__ not in NO_MODELS]


def is_concrete(kind):
    """Not abstract, and a dataclass itself or without subclasses: bases are neither."""
    own = "__dataclass_params__" in vars(kind)
    return not inspect.isabstract(kind) and (own or not kind.__subclasses__())


def observes(kind):
    """Whether instances are called with (k, t, θ), as observers are."""
    call = vars(kind).get("__call__")
    return call is not None and list(inspect.signature(call).parameters)[:4] == ["self", "k", "t", "theta"]


def missing(base, rows, classes):
    """Concrete subclasses of ``base`` without a row of their own."""
    known = {row.kind for row in rows.values()}
    return [c.__name__ for c in classes if issubclass(c, base) and is_concrete(c) and c not in known]


@pytest.mark.parametrize(("base", "rows"), [(Flow, FLOWS), (Descent, DESCENTS)], ids=["flow", "descent"])
def test_every_class_has_a_row(base, rows):
    found = missing(base, rows, CLASSES)
    assert found == [], f"{found} {REMEDY}"
    assert len(rows) == len([c for c in CLASSES if issubclass(c, base) and is_concrete(c)])


def test_every_observer_has_a_row():
    found = [c for c in CLASSES if observes(c) and not inspect.isabstract(c) and not getattr(c, "_is_protocol", False)]
    known = {row.kind for row in OBSERVERS.values()}
    assert [c.__name__ for c in found if c not in known] == [], REMEDY
    assert len(found) == len(OBSERVERS)


def test_a_class_without_a_row_is_seen():
    gone = {name: row for name, row in FLOWS.items() if name != "EpochFlow"}
    assert missing(Flow, gone, CLASSES) == ["EpochFlow"]

    @dataclasses.dataclass(frozen=True)
    class NewDescent(Descent):
        def step(self, state, k, generator):
            return state

    assert missing(Descent, DESCENTS, [*CLASSES, NewDescent]) == ["NewDescent"]


@pytest.mark.parametrize("rows", [FLOWS, DESCENTS, OBSERVERS], ids=["flows", "descents", "observers"])
def test_rows_have_the_names_of_their_classes_and_no_empty_fields(rows):
    for name, row in rows.items():
        assert name == row.name == row.kind.__name__
        empty = [f.name for f in dataclasses.fields(row) if getattr(row, f.name) == "" and f.name in FILLED]
        assert empty == [], name


FILLED = {"valid", "source", "state", "rate", "clock", "about", "needs"}


@pytest.mark.parametrize("name", ROWS)
def test_an_example_is_of_the_class_of_its_row(name, toy):
    row, example = ROWS[name]
    assert type(example.build(toy, 0.1)) is row.kind


def test_a_flow_says_its_orders_or_why_it_has_none():
    for row in FLOWS.values():
        assert (row.descent is None) == (row.local is None) == (row.whole is None) == bool(row.reason), row.name
