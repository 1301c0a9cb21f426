"""The error of data files; messages name the content found, the content expected and the remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

ANEW = "delete it and download it again, or give root= a folder that holds an intact copy"


class DataError(ValueError):
    """A data file is missing, damaged, hostile or unreachable; the message names the file and the remedy."""


def damage_error(where: object, found: str, expected: str) -> DataError:
    """The error for a file at ``where`` whose content violates its format."""
    return DataError(f"{where}: found {found}, expected {expected}; {ANEW}")


@contextmanager
def report_damage(where: object, expected: str) -> Iterator[None]:
    """A context that turns any exception into a DataError naming the file at ``where``.

    Decoders raise many types for hostile bytes (zlib.error, struct.error, SyntaxError, RecursionError, ...), so every
    Exception is caught and raised again as DataError.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        text = str(error).strip() or "no message"
        raise damage_error(where, f"unreadable content ({type(error).__name__}: {text})", expected) from error
