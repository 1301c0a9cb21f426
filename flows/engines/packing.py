r"""Nested states as JSON and a list of tensors, and back: exactly, and without running code of the file.

Accepted: tensors, None, bool, int, float, complex, numpy numbers (as these), str, bytes, tuples, lists, dicts, and
dataclasses and named tuples of such. A class is recorded by module and qualified name. It is found again only if the
program has imported it, and its objects are made from their fields, without a call of the class.
"""

from __future__ import annotations

import dataclasses
import math
import struct
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flows.engines.storage import FolderError
from landscapes import UnsupportedError

SPREAD = 4  # a tensor's layout is kept if it takes at most so many times the memory of its numbers


def pack(value: Any, place: str = "state") -> tuple[Any, list[Tensor]]:
    """A value as JSON with the numbers of its tensors, and these tensors; one that occurs twice is listed once.

    Raises UnsupportedError that names the type and the place of a value that is not of the accepted types.
    """
    packer = Packer()
    return packer.pack(value, place), packer.tensors


def unpack(structure: Any, tensors: Sequence[Tensor], device: torch.device | str | None = None) -> Any:
    """The value of ``pack``; tensors that were not on the CPU are moved to ``device``, if one is given.

    Raises FolderError for a structure that ``pack`` did not make, and for a class that is not imported.
    """
    try:
        return Unpacker(tensors, device).unpack(structure)
    except FolderError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise FolderError(f"the state cannot be read ({type(error).__name__}: {error}); save it again") from error


class Packer:
    """The tensors so far."""

    def __init__(self) -> None:
        self.tensors: list[Tensor] = []
        self._numbers: dict[int, int] = {}

    def pack(self, value: Any, place: str) -> Any:  # noqa: PLR0911  # one case for each type
        """A value as JSON; None, booleans, integers and strings are themselves, others a list [kind, ...]."""
        if value is None or type(value) in (bool, int, str):
            return value
        kind = type(value)
        if isinstance(value, np.generic):
            return self.pack(value.item(), place)
        if kind is float:
            return ["float", write_float(value)]
        if kind is complex:
            return ["complex", write_float(value.real), write_float(value.imag)]
        if kind is bytes:
            return ["bytes", value.hex()]
        if isinstance(value, Tensor):
            return self._pack_tensor(value, place)
        if kind in (tuple, list):
            return [kind.__name__, [self.pack(part, f"{place}[{i}]") for i, part in enumerate(value)]]
        if kind is dict:
            pairs = [[self.pack(k, f"a key of {place}"), self.pack(v, f"{place}[{k!r}]")] for k, v in value.items()]
            return ["dict", pairs]
        return self._pack_object(value, place)

    def _pack_tensor(self, tensor: Tensor, place: str) -> Any:
        if type(tensor) is not Tensor or tensor.requires_grad or tensor.layout is not torch.strided:
            raise UnsupportedError(
                f"{place} must be a dense torch.Tensor without a graph to be saved, got {type(tensor).__name__} "
                f"({tensor.layout}, requires_grad={tensor.requires_grad}); give .detach() or .to_dense()"
            )
        number = self._numbers.setdefault(id(tensor), len(self.tensors))
        if number == len(self.tensors):
            self.tensors.append(tensor)
        layout = {} if tensor.is_contiguous() or not is_compact(tensor) else {"stride": list(tensor.stride())}
        device = {} if tensor.device.type == "cpu" else {"device": str(tensor.device)}
        return ["tensor", number, {**layout, **device}]

    def _pack_object(self, value: Any, place: str) -> Any:
        kind = type(value)
        names = field_names(kind)
        if names is None or find_class(kind.__module__, kind.__qualname__) is not kind:
            raise UnsupportedError(
                f"{place} is a {kind.__module__}.{kind.__qualname__}, which cannot be saved; use tensors, numbers, "
                "strings, tuples, lists, dicts, and dataclasses or named tuples that are defined in a module"
            )
        fields = {name: self.pack(getattr(value, name), f"{place}.{name}") for name in names}
        return ["object", kind.__module__, kind.__qualname__, fields]


class Unpacker:
    """Values of JSON with tensors."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device | str | None):
        self._tensors = tensors
        self._device = device

    def unpack(self, structure: Any) -> Any:
        """The value of a packed one."""
        if not isinstance(structure, list):
            if structure is None or type(structure) in (bool, int, str):
                return structure
            raise ValueError(f"no packed value is a {type(structure).__name__}")
        kind, *parts = structure
        return getattr(self, READERS[kind])(*parts)

    def read_float(self, text: str) -> float:
        """The float of ``write_float``."""
        return struct.unpack(">d", bytes.fromhex(text[4:]))[0] if text.startswith("nan ") else float.fromhex(text)

    def read_complex(self, real: str, imag: str) -> complex:
        """A complex number from its parts."""
        return complex(self.read_float(real), self.read_float(imag))

    def read_bytes(self, text: str) -> bytes:
        """Bytes from hexadecimal digits."""
        return bytes.fromhex(text)

    def read_list(self, parts: list[Any]) -> list[Any]:
        """A list."""
        return [self.unpack(part) for part in parts]

    def read_tuple(self, parts: list[Any]) -> tuple[Any, ...]:
        """A tuple."""
        return tuple(self.unpack(part) for part in parts)

    def read_dict(self, pairs: list[list[Any]]) -> dict[Any, Any]:
        """A dict in its order."""
        return {self.unpack(key): self.unpack(part) for key, part in pairs}

    def read_tensor(self, number: int, how: dict[str, Any]) -> Tensor:
        """A tensor, in its memory layout."""
        if number < 0:
            raise IndexError(f"no tensor has the number {number}")
        tensor = self._tensors[number]
        if "stride" in how:
            layout = torch.empty_strided(tensor.shape, how["stride"], dtype=tensor.dtype, device=tensor.device)
            tensor = layout.copy_(tensor)
        return tensor.to(self._device) if "device" in how and self._device is not None else tensor

    def read_object(self, module: str, name: str, fields: dict[str, Any]) -> Any:
        """A dataclass or named tuple from its fields. Raises FolderError if its class is not found."""
        kind = find_class(module, name)
        if kind is None:
            raise FolderError(
                f"the state holds a {module}.{name}, which is not imported; import the module {module} first"
            )
        if field_names(kind) != list(fields):
            raise FolderError(
                f"the state holds a {module}.{name} with the fields {', '.join(fields)}, but that class is no "
                "dataclass or named tuple with just these; import the version of the module that saved it"
            )
        values = {field: self.unpack(part) for field, part in fields.items()}
        if issubclass(kind, tuple):
            return tuple.__new__(kind, values.values())
        made = object.__new__(kind)
        for field, part in values.items():
            object.__setattr__(made, field, part)
        return made


READERS = {kind: f"read_{kind}" for kind in ("float", "complex", "bytes", "list", "tuple", "dict", "tensor", "object")}


def write_float(value: float) -> str:
    """A float in hexadecimal, NaN by its bits."""
    return f"nan {struct.pack('>d', value).hex()}" if math.isnan(value) else value.hex()


def is_compact(tensor: Tensor) -> bool:
    """Whether entries lie at places of their own, in little more memory than they need."""
    steps = sorted((step, size) for step, size in zip(tensor.stride(), tensor.shape, strict=True) if size > 1)
    reach = 0  # the place of the last entry along the dimensions so far
    for step, size in steps:
        if step <= reach:
            return False
        reach += step * (size - 1)
    return reach + 1 <= SPREAD * tensor.numel()


def field_names(kind: type) -> list[str] | None:
    """The names of a dataclass's or named tuple's fields; None for other classes."""
    if dataclasses.is_dataclass(kind):
        return [field.name for field in dataclasses.fields(kind)]
    fields = getattr(kind, "_fields", None) if issubclass(kind, tuple) else None
    return list(fields) if isinstance(fields, tuple) else None


def find_class(module: str, name: str) -> type | None:
    """The class of a qualified name in a module that is imported; None if there is none."""
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = None if found is None else vars(found).get(part)
    return found if isinstance(found, type) else None
