r"""Entries of a registry by reference, "package.module:Name": the form of Python's entry points, import and all.

A member whose file is its own takes one line of its registry in this form, and no import beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pkgutil import resolve_name
from typing import TypeVar

Member = TypeVar("Member", bound=Callable[..., object])


def resolve_reference(entry: str | Member) -> Member:
    """The member that a reference names, imported; a member itself as it is.

    Raises ImportError, AttributeError or ValueError for a reference that names nothing.
    """
    return resolve_name(entry) if isinstance(entry, str) else entry


def resolve_references(entries: Mapping[str, str | Member]) -> dict[str, Member]:
    """Name → member of every entry, in the same order."""
    return {name: resolve_reference(entry) for name, entry in entries.items()}
