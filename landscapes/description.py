r"""``describe``: any value as JSON that identifies it, for the configuration of a run.

Numbers, strings, lists and mappings are themselves; tensors of up to ``SHOWN`` numbers are given by value, larger ones
by shape, dtype and SHA-256; objects by class and parameters, modules by their architecture, functions by name. A class
registers a form of its own with ``describe.register``.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import math
import types
import weakref
from collections.abc import Mapping, Sequence, Set
from contextvars import ContextVar
from fractions import Fraction
from pathlib import PurePath
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

SHOWN = 16  # largest number of entries of a tensor that is given by value
DEEPEST = 20  # objects inside objects: beyond, the class only

_depth: ContextVar[int] = ContextVar("depth of the current description", default=0)


@functools.singledispatch
def describe(value: Any) -> Any:
    """The value as JSON; of an object {"class": its name, parameter: its description, ...}."""
    return describe_object(value)


def describe_object(value: Any, *without: str) -> dict[str, Any]:
    """{"class": name, parameter: description, ...}: a dataclass's fields, else the attributes without underscore.

    ``without``: names of parameters that are left out.
    """
    described: dict[str, Any] = {"class": name_of(type(value))}
    depth = _depth.get()
    if depth >= DEEPEST:
        return described
    token = _depth.set(depth + 1)
    try:
        return described | {name: describe(part) for name, part in parameters_of(value).items() if name not in without}
    finally:
        _depth.reset(token)


def parameters_of(value: Any) -> dict[str, Any]:
    """The fields of a dataclass or named tuple, or the attributes of an object that are neither private nor cached."""
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, tuple):
        return {name: getattr(value, name) for name in getattr(type(value), "_fields", ())}
    kept = {name: part for name, part in getattr(value, "__dict__", {}).items() if not name.startswith("_")}
    return {name: part for name, part in kept.items() if not is_cached(type(value), name)}


def is_cached(kind: type, name: str) -> bool:
    """Whether an attribute of a class's objects is a cached property."""
    return any(isinstance(vars(base).get(name), functools.cached_property) for base in kind.__mro__)


def name_of(value: Any) -> str:
    """Module and qualified name of a class or function."""
    return f"{value.__module__}.{value.__qualname__}"


@describe.register
def _(value: None) -> None:
    return value


@describe.register(str)
@describe.register(bool)
@describe.register(int)
def _describe_itself(value: Any) -> Any:
    return value


@describe.register
def _(value: float) -> float | str:
    return float(value) if math.isfinite(value) else str(float(value))


@describe.register
def _(value: complex) -> dict[str, Any]:
    return {"complex": [describe(value.real), describe(value.imag)]}


@describe.register
def _(value: bytes) -> dict[str, Any]:
    return {"bytes": len(value), "sha256": hashlib.sha256(value).hexdigest()}


@describe.register
def _(value: np.generic) -> Any:
    plain = value.item()
    return str(value) if isinstance(plain, np.generic) else describe(plain)  # extended precision has no Python type


@describe.register
def _(value: np.ndarray) -> dict[str, Any]:
    if value.size <= SHOWN or value.dtype.hasobject:
        return {"array": describe(value.tolist()), "dtype": str(value.dtype)}
    found = hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return {"shape": list(value.shape), "dtype": str(value.dtype), "sha256": found}


@describe.register
def _(value: Tensor) -> dict[str, Any]:
    kind = {"dtype": str(value.dtype).removeprefix("torch."), "device": str(value.device)}
    if value.layout is torch.strided and value.numel() <= SHOWN:
        return {"tensor": describe(value.detach().cpu().tolist()), **kind}
    return {"shape": list(value.shape), **kind, "sha256": digest(value)}


@describe.register
def _(value: Mapping) -> dict[str, Any]:
    return {key if isinstance(key, str) else str(key): describe(part) for key, part in value.items()}


@describe.register(list)
@describe.register(range)
@describe.register(tuple)
def _describe_sequence(value: Sequence[Any]) -> Any:
    return describe_object(value) if getattr(value, "_fields", None) else [describe(part) for part in value]


@describe.register
def _(value: Set) -> list[Any]:
    return sorted((describe(part) for part in value), key=str)


@describe.register
def _(value: torch.nn.Module) -> dict[str, Any]:
    return {"class": name_of(type(value)), "module": repr(value)}


@describe.register(torch.dtype)
@describe.register(torch.device)
def _describe_kind(value: torch.dtype | torch.device) -> str:
    return str(value).removeprefix("torch.")


@describe.register
def _(value: sympy.Basic) -> str:
    return str(value)


@describe.register
def _(value: type) -> str:
    return name_of(value)


@describe.register
def _(value: functools.partial) -> dict[str, Any]:
    return {"partial": describe(value.func), "args": describe(value.args), "keywords": describe(value.keywords)}


@describe.register
def _(value: types.MethodType) -> dict[str, Any]:
    return {"method": value.__func__.__qualname__, "of": describe(value.__self__)}


@describe.register
def _(value: types.FunctionType) -> Any:
    """Its name; of a local function or lambda also the constants and the variables outside that it uses."""
    if "<" not in value.__qualname__:
        return name_of(value)
    names = value.__code__.co_freevars
    cells = [cell.cell_contents for cell in value.__closure__ or () if cell != types.CellType()]
    constants = [c for c in value.__code__.co_consts if isinstance(c, (bool, int, float, complex, str, tuple))]
    return {
        "function": name_of(value),
        "calls": list(value.__code__.co_names),
        "constants": describe(constants),
        "defaults": describe([*(value.__defaults__ or ()), value.__kwdefaults__ or {}]),
        "variables": {
            name: name_of(part) if isinstance(part, types.FunctionType) else describe(part)
            for name, part in zip(names, cells, strict=False)
        },
    }


@describe.register(Fraction)
@describe.register(PurePath)
def _describe_text(value: Fraction | PurePath) -> str:
    return str(value)


@describe.register
def _(value: enum.Enum) -> str:
    return f"{name_of(type(value))}.{value.name}"


@describe.register
def _(value: types.BuiltinFunctionType) -> str:
    return f"{value.__module__}.{value.__qualname__}"


def digest(value: Tensor) -> str:
    """SHA-256 of a tensor's numbers in order, remembered until the tensor changes or goes: data sets are large."""
    version = None if value.is_inference() else value._version
    known = _digests.get(id(value))
    if known is not None and version is not None and known[:2] == (version, value.data_ptr()):
        return known[2]
    plain = value.detach().resolve_conj().resolve_neg()
    plain = (plain.to_dense() if plain.layout is not torch.strided else plain).cpu().contiguous()
    found = hashlib.sha256(plain.reshape(-1).view(torch.uint8).numpy().data).hexdigest()
    if version is not None and value.layout is torch.strided:
        if id(value) not in _digests:
            weakref.finalize(value, _digests.pop, id(value), None)
        _digests[id(value)] = (version, value.data_ptr(), found)
    return found


_digests: dict[int, tuple[int, int, str]] = {}
