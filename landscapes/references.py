r"""Entries of a registry by reference, "package.module:Name": the form of Python's entry points, import and all.

A member whose file is its own takes one line of its registry in this form, and no import beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from operator import attrgetter
from typing import TypeVar

Member = TypeVar("Member", bound=Callable[..., object])


def resolve_reference(entry: str | Member, package: str | None = None) -> Member:
    """The member that a reference names, imported; an entry that is a member itself is returned unchanged.

    A module that begins with a dot is relative to ``package``: ".plateau:Plateau". Raises ImportError, AttributeError
    or ValueError, naming the reference, if it names nothing.
    """
    if not isinstance(entry, str):
        return entry
    module, _, name = entry.partition(":")
    if not name:
        raise ValueError(f"a reference must be 'package.module:Name', got {entry!r}")
    try:
        return attrgetter(name)(import_module(module, package))
    except (ImportError, AttributeError) as error:
        raise type(error)(f"in the reference {entry!r}: {error}") from error


def resolve_references(entries: Mapping[str, str | Member], package: str | None = None) -> dict[str, Member]:
    """Name → member of every entry, in the same order."""
    return {name: resolve_reference(entry, package) for name, entry in entries.items()}
