"""Search for files under a root, and reading with limits on their size."""

from __future__ import annotations

import os
from collections.abc import Iterable
from os import PathLike
from pathlib import Path

from landscapes.errors import short_form
from nets.datasets.errors import ANEW, DataError, damage_error, report_damage

VARIABLE = "THALWEG_DATA"


def cache_folder() -> Path:
    """The folder of downloads: THALWEG_DATA if set, else the system's cache of "thalweg"."""
    named = os.environ.get(VARIABLE)
    if named:
        return folder_of(named)
    import pooch

    return Path(pooch.os_cache("thalweg"))


def folder_of(text: str | PathLike[str]) -> Path:
    """A path with ~ expanded; raise DataError if there is no such home."""
    with report_damage(text, "a folder's path"):
        return Path(text).expanduser()


def check_root(root: str | PathLike[str] | None) -> Path | None:
    """``root`` as a path; raise unless it is a folder or None."""
    if root is None:
        return None
    if not isinstance(root, (str, PathLike)):
        raise TypeError(f"root must be a folder's path or None, got {short_form(root)} of type {type(root).__name__}")
    folder = folder_of(root)
    with report_damage(folder, "a readable folder"):
        there = folder.is_dir()
    if not there:
        raise DataError(f"{folder}: found no such folder, expected root to be a folder with the data files")
    return folder


def first_file(places: Iterable[Path], names: Iterable[str]) -> Path | None:
    """The first existing file with one of these names in these folders, or None."""
    for place in places:
        for name in names:
            path = place / name
            with report_damage(path, "a readable file"):
                if path.exists():
                    return path
    return None


def missing_files_error(
    name: str, root: Path, wanted: Iterable[str], places: Iterable[Path], archive: str = ""
) -> DataError:
    """The error for files not found under ``root``."""
    looked = ", ".join(str(place) for place in places)
    other = f", nor the archive {archive} in {root}" if archive else ""
    return DataError(
        f"{root}: found no {', '.join(wanted)} for {name!r} in {looked}{other}, expected all of them; put them there, "
        f"give root= the folder that holds them, or leave root out to download them"
    )


def read_whole(path: Path, most: int) -> bytes:
    """The bytes of a regular file of at most ``most``; raise for a larger one before reading."""
    with report_damage(path, "a readable file"):
        check_regular(path)
        size = path.stat().st_size
        if size > most:
            raise size_error(path, size, most)
        with path.open("rb") as stream:
            content = stream.read(most + 1)
    if len(content) > most:  # the file has grown since, or reports a wrong size
        raise size_error(path, len(content), most)
    return content


def check_regular(path: Path) -> None:
    """Raise unless the file is regular: reading a pipe or device might not end."""
    if not path.is_file():
        raise damage_error(path, "something that is no regular file", "a regular file")


def size_error(where: object, size: int, most: int) -> DataError:
    """The error for more bytes than the format allows."""
    return DataError(f"{where}: found {size:,} bytes or more, expected at most {most:,}; {ANEW}")
