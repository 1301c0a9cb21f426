"""The one error of data files: what was found, what is expected, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

ANEW = "delete it and download it again, or give root= a folder that holds a sound copy"


class DataError(ValueError):
    """A data file is missing, damaged, hostile or out of reach; the text names the file and the remedy."""


def damaged(where: object, found: str, expected: str) -> DataError:
    """The error for a file at ``where`` whose content is not what its format promises."""
    return DataError(f"{where}: found {found}, expected {expected}; {ANEW}")


@contextmanager
def blamed_on(where: object, expected: str) -> Iterator[None]:
    """Turn whatever a reader raises over the file at ``where`` into a DataError that names it.

    Decoders fed hostile bytes raise nearly anything (zlib.error, struct.error, SyntaxError, RecursionError, ...), so
    every Exception is caught; none is swallowed.
    """
    try:
        yield
    except DataError:
        raise
    except Exception as error:
        text = str(error).strip() or "no further word"
        raise damaged(where, f"what cannot be read ({type(error).__name__}: {text})", expected) from error
