r"""Statements of flows and descents about themselves: their landscapes, noise, learning rate and clock.

Engines and ``compare`` read these members, and no names of fields. The defaults are for dataclasses: everything is
found in the fields, also in the noises, flows, descents, other dataclasses, tuples, lists and dicts there.
"""

from __future__ import annotations

import dataclasses
import dis
import functools
import math
import numbers
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeVar

import torch
from torch import Tensor

from landscapes import Landscape, UnsupportedError
from landscapes.errors import check_choice
from landscapes.noise import GradientNoise

Stated = TypeVar("Stated", bound="Declared")

ChangeWhole = Callable[[Landscape], Landscape]
"""A landscape ↦ the one that takes its place."""

RATES = ("h", "lr", "learning_rate", "rate")
"""Names of a learning rate, in the order in which they are looked for."""

LIBRARIES = ("flows", "landscapes", "nets", "thalweg", "torch", "numpy", "scipy", "sympy")
"""Packages whose functions refer to no landscape of the user."""

MOMENTUM = ("heavy ball", "Nesterov")
"""The rules with one buffer, whose clocks can be converted."""


@dataclass(frozen=True)
class Clock:
    r"""The clock of a model in terms of torch.optim's learning rate lr, momentum β and dampening τ.

    ``unit`` "lr": h = lr, and a step takes the time lr. ``unit`` "√lr", for scaled momentum: h = √((1 − τ) lr), a step
    takes the time h, and the friction is μ = (1 − β)/h.

    ``rule``: the step that a descent takes or that a flow models: "gradient descent", "heavy ball", "Nesterov", or the
    name of another optimiser; None if it is not stated. Models of one rule, at one momentum, are a pair. ``free``: the
    model has no learning rate of its own and is compared at any, like gradient flow.

    Raises ValueError for another unit.
    """

    unit: str = "lr"
    rule: str | None = "gradient descent"
    momentum: float = 0.0
    dampening: float = 0.0
    free: bool = False

    def __post_init__(self) -> None:
        check_choice("unit", self.unit, ("lr", "√lr"))

    @property
    def time_scale(self) -> float:
        r"""(1 − τ)/(1 − β), inf at β = 1: the distance of ordinary momentum per unit of time, over gradient descent's.

        After 1/(1 − β) steps the buffer is (1 − τ)/(1 − β) gradients.
        """
        return math.inf if self.momentum == 1 else (1 - self.dampening) / (1 - self.momentum)

    @property
    def remembers(self) -> bool:
        """Whether the rule is known and its step depends on more than θ: every rule but gradient descent."""
        return (
            self.rule is not None
            and self.rule != "gradient descent"
            and not (self.rule in MOMENTUM and self.momentum == 0)
        )


class Declared:
    """Base of ``Flow`` and ``Descent``: members that engines and ``compare`` read, with defaults for dataclasses."""

    @property
    def declared_landscapes(self) -> tuple[Landscape, ...]:
        """Every landscape of the model, each object once, in the order of the fields; empty if there are none."""
        return landscapes_in(self)

    @property
    def declared_noise(self) -> GradientNoise | None:
        """The gradient noise of the model: the attribute ``noise`` if it is one, else the first that a field holds."""
        noise = getattr(self, "noise", None)
        return noise if isinstance(noise, GradientNoise) else next(noises_below(self), None)

    @property
    def declared_rate(self) -> float | None:
        """The learning rate: the first number among h, lr, learning_rate and rate, else that of a flow held; or None.

        Methods of these names are not numbers. None: not stated, so that ``compare`` cannot check it.
        """
        rate = named_rate(self)
        return None if rate is None else rate[1]

    @functools.cached_property
    def clock_rate(self) -> float:
        """The declared rate, where one is needed. Raises TypeError if none is declared."""
        rate = self.declared_rate
        if rate is None:
            raise TypeError(
                f"{type(self).__name__} must declare its learning rate for this: a field h, lr, learning_rate or rate "
                "that is a number, or the member declared_rate"
            )
        return rate

    @property
    def stated_landscape(self) -> Landscape:
        """The first of the declared landscapes. Raises TypeError if there is none."""
        landscape = next(iter(self.declared_landscapes), None)
        if landscape is None:
            raise TypeError(
                f"{type(self).__name__} must declare its landscape for this: a field that is a Landscape, or the "
                "member declared_landscapes"
            )
        return landscape

    @property
    def declared_clock(self) -> Clock | None:
        """The clock and the rule of the steps; None if they are not stated: ``compare`` then takes the two for a pair.

        The default is that of a flow or descent held in a field, if any.
        """
        return next((inner.declared_clock for inner in models_held(self)), None)

    def on_landscapes(self: Stated, change: ChangeWhole) -> Stated:
        """The same model with change(landscape) in place of every landscape, by which engines count oracle calls.

        Dataclasses are rebuilt by their constructor. Raises UnsupportedError if not every landscape can be replaced, as
        in a closure: the cost of a run is then not known. A model that is no dataclass overrides it.
        """
        return replace_fields(self, change)


def fields_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass by name, the attributes of another flow or descent; none for other objects."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    return vars(value) if isinstance(value, Declared) else {}


def children(value: Any) -> Iterable[Any]:
    """The values that a collection, dataclass, flow or descent is made of, one level down; none for other objects."""
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, (tuple, list)) else fields_of(value).values()


def landscapes_in(value: Any) -> tuple[Landscape, ...]:
    """The landscapes below a value, each object once; landscapes are not entered."""
    found: dict[int, Landscape] = {}
    for child in children(value):
        if isinstance(child, Landscape):
            found[id(child)] = child
        else:
            inside = child.declared_landscapes if isinstance(child, Declared) else landscapes_in(child)
            found |= {id(landscape): landscape for landscape in inside}
    return tuple(found.values())


def noises_below(value: Any) -> Iterator[GradientNoise]:
    """The gradient noises below a value, the outermost of nested ones."""
    for child in children(value):
        if isinstance(child, GradientNoise):
            yield child
        elif isinstance(child, Declared):
            yield from () if child.declared_noise is None else (child.declared_noise,)
        elif not isinstance(child, Landscape):
            yield from noises_below(child)


def models_held(model: Declared) -> Iterator[Declared]:
    """The flows and descents directly in the fields of a model."""
    return (value for value in fields_of(model).values() if isinstance(value, Declared))


def is_number(value: Any) -> bool:
    """Whether a value is one real number, or a tensor of one; True and False are none."""
    if isinstance(value, Tensor):
        return value.numel() == 1 and not value.is_complex() and value.dtype != torch.bool
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def named_rate(model: Declared) -> tuple[str, float] | None:
    """The learning rate of a model with its name: its own, else that of a flow or descent in its fields; or None."""
    for name in RATES:
        value = getattr(model, name, None)
        if is_number(value):
            return name, float(value)  # type: ignore[arg-type]
    return next(filter(None, map(named_rate, models_held(model))), None)


def replace_landscapes(value: Any, change: ChangeWhole) -> Any:
    """A value with ``change`` of every landscape in it; the same object if it holds none.

    Raises UnsupportedError for a landscape where it cannot be replaced.
    """
    if isinstance(value, Landscape):
        return change(value)
    if isinstance(value, Declared):
        return value.on_landscapes(change)
    if isinstance(value, (dict, tuple, list)):
        return replace_items(value, change)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return replace_fields(value, change)
    if hides_landscape(value):
        raise UnsupportedError(f"a landscape inside {type(value).__name__} {value!r} cannot be replaced")
    return value


def replace_items(value: Any, change: ChangeWhole) -> Any:
    """A dict, tuple or list with every landscape in it replaced; the same object if it holds none."""
    if isinstance(value, dict):
        changed = {key: replace_landscapes(x, change) for key, x in value.items()}
        return value if all(changed[key] is x for key, x in value.items()) else changed
    parts = [replace_landscapes(x, change) for x in value]
    if all(part is x for part, x in zip(parts, value, strict=True)):
        return value
    return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)


def replace_fields(value: Any, change: ChangeWhole) -> Any:
    """A dataclass with every landscape in its fields replaced; the same object if it holds none."""
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        raise UnsupportedError(f"{type(value).__name__} is not a dataclass: override on_landscapes")
    given = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
    every = {name: replace_landscapes(x, change) for name, x in given.items()}
    changed = {name: x for name, x in every.items() if x is not given[name]}
    copy: Any = value
    if changed:
        try:
            copy = dataclasses.replace(value, **changed)
        except (TypeError, ValueError) as error:  # a constructor of another signature, or that takes one class only
            raise UnsupportedError(f"{type(value).__name__} cannot be rebuilt: {error}") from error
    if any(map(hides_landscape, functions_of(type(value)))):
        raise UnsupportedError(f"the methods of {type(value).__name__} refer to a landscape outside its fields")
    derived = [getattr(copy, f.name) for f in dataclasses.fields(copy) if not f.init]
    before = {id(landscape) for landscape in landscapes_in(value)}
    if any(id(landscape) in before for landscape in landscapes_in(derived)):
        raise UnsupportedError(f"{type(value).__name__} holds a landscape that its constructor does not take")
    return copy


def closure_of(function: FunctionType) -> Iterator[Any]:
    """The values that a function refers to in its closure."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:  # not assigned yet
            continue


@functools.lru_cache(maxsize=4096)
def global_names(code: CodeType) -> tuple[str, ...]:
    """The names that a function's code, and the functions defined inside it, look up in their module."""
    own = {step.argval for step in dis.get_instructions(code) if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
    inner = (global_names(constant) for constant in code.co_consts if isinstance(constant, CodeType))
    return tuple(sorted(own.union(*inner)))


def globals_of(function: FunctionType) -> Iterator[Any]:
    """The values that a function refers to by a name of its module, or as an attribute of a module."""
    for name in global_names(function.__code__):
        value = function.__globals__.get(name)
        if not isinstance(value, ModuleType):
            yield value
        elif not is_library(value.__name__):
            yield from (vars(value).get(attribute) for attribute in function.__code__.co_names)


def is_library(module: str | None) -> bool:
    """Whether a module is of a package that holds no landscape of the user: Python's own, this one, or its needs."""
    root = (module or "").partition(".")[0]
    return root in LIBRARIES or root in sys.stdlib_module_names - {"__main__"}


METHODS = (staticmethod, classmethod)


def functions_of(kind: type) -> Iterator[FunctionType]:
    """The methods and properties of a class, those of the library's own classes aside."""
    for cls in kind.__mro__:
        for member in () if is_library(cls.__module__) else vars(cls).values():
            function = member
            for wrapper, name in ((property, "fget"), (functools.cached_property, "func"), (METHODS, "__func__")):
                function = getattr(member, name) if isinstance(member, wrapper) else function
            if isinstance(function, FunctionType):
                yield function


def references_of(value: Any) -> Iterable[Any]:
    """The values that a function, or an object of a class that is not the library's, refers to, one level down."""
    if isinstance(value, FunctionType):
        return () if is_library(value.__module__) else (*closure_of(value), *globals_of(value))
    if isinstance(value, MethodType):
        return (value.__self__, value.__func__)
    if isinstance(value, functools.partial):
        return (value.func, *value.args, *value.keywords.values())
    if isinstance(value, (type, ModuleType)):
        return ()
    if isinstance(value, (GradientNoise, Declared)):
        return vars(value).values()
    own = () if is_library(type(value).__module__) else getattr(value, "__dict__", {}).values()
    return (*children(value), *own)


def hides_landscape(value: Any, entered: dict[int, Any] | None = None) -> bool:
    """Whether a function or another object refers to a landscape: by a closure, a name of its module or attributes."""
    entered = {} if entered is None else entered
    if id(value) in entered:
        return False
    if isinstance(value, Landscape):
        return True
    entered[id(value)] = value  # kept, so that no other object has this id meanwhile
    return any(hides_landscape(x, entered) for x in references_of(value))
