r"""Files on disk, each whole or not at all: tensors with a text in one safetensors file, never pickle.

Format 2 is one file ``stem``.safetensors. Its metadata has two entries: ``thalweg``, the text as JSON with "format": 2,
and ``sha256``, the SHA-256 of the file in which the 64 digits of this entry are zeros: every changed, missing or
additional bit is seen. Complex tensors are stored as pairs of reals, and names of one tensor share its data.

A file is written under a unique temporary name in the same folder, flushed to the disk and renamed. Links are replaced
and never followed; only regular files are read. Format 1, a pair ``stem``.safetensors and ``stem``.json without a
checksum, is read and no longer written.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
import stat
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from landscapes import UnsupportedError
from landscapes.errors import short_form

FORMAT = 2
FORMATS = (1, 2)
"""The formats that this version reads."""
TEXT, DIGEST = "thalweg", "sha256"
# In the text and in names of tensors quotes have a backslash before them: this occurs in the entry of the digest only.
MARK = f'"{DIGEST}":"'.encode()
DIGITS = 64
PART = re.compile(r"\.thalweg-[0-9a-f]{16}\.part")
"""Temporary names."""
CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
NOFOLLOW = getattr(os, "O_NOFOLLOW", 0)
READ = os.O_RDONLY | NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)


class FolderError(ValueError):
    """A folder cannot be written or read; the message names the folder and the cause."""


class UnfinishedError(FolderError):
    """An interrupted save of format 1: the tensors are there, their text is not."""


def save_tensors(folder: str | os.PathLike[str], stem: str, tensors: Mapping[str, Tensor], text: dict) -> Path:
    """Write ``stem``.safetensors into ``folder`` (made if needed) and return the folder.

    ``text`` must be JSON. Afterwards the ``stem``.json of an older save is removed. Raises FolderError where the folder
    cannot be written, and UnsupportedError for tensors that are sparse or of a dtype without a form on disk.
    """
    path = writable_folder(folder)
    content = encode(tensors, text)
    place = digest_place(content)
    view = memoryview(content)
    replace_file(path / f"{stem}.safetensors", view[:place], digest_of(content, place), view[place + DIGITS :])
    remove_text(path / f"{stem}.json")
    return path


def load_tensors(folder: str | os.PathLike[str], stem: str) -> tuple[dict[str, Tensor], dict]:
    """Read the file of ``save_tensors``, on the CPU; FolderError names the folder and the fault.

    Raises UnfinishedError, a FolderError, if an older version was interrupted while it saved.
    """
    path = Path(folder)
    try:
        content = read_file(path / f"{stem}.safetensors")
        header = header_of(content)
        if "__metadata__" in header:
            text, formats = json.loads(header["__metadata__"][TEXT]), FORMATS[1:]
        elif os.path.lexists(path / f"{stem}.json"):
            text, formats = json.loads(read_file(path / f"{stem}.json")), FORMATS[:1]
        else:
            raise UnfinishedError(f"folder {str(path)!r} holds {stem}.safetensors without its {stem}.json; save again")
        version = text["format"]
    except UnfinishedError:
        raise
    except Exception as error:
        raise read_error(path, stem, error) from error
    if type(version) is not int or version not in formats:
        known = " and ".join(map(str, FORMATS))
        raise FolderError(
            f"{stem} in folder {str(path)!r} has format {version!r}, this version reads {known}; use the version of "
            "thalweg that wrote it"
        )
    try:
        if version > 1:
            check_digest(content)
        return restore(load(content), text), text
    except Exception as error:
        raise read_error(path, stem, error) from error


def encode(tensors: Mapping[str, Tensor], text: dict) -> bytes:
    """A file of format 2 whose digest is zeros."""
    stored: dict[str, Tensor] = {}
    first: dict[tuple, str] = {}
    same: dict[str, str] = {}
    memories: set[int] = set()
    for name, tensor in tensors.items():
        place = identity(tensor)
        if first.setdefault(place, name) != name:
            same[name] = first[place]
            continue
        real = as_stored(name, tensor)
        memory = real.untyped_storage().data_ptr()
        # safetensors refuses tensors that share memory, and parts of a larger one
        shares = memory in memories or real.untyped_storage().nbytes() != real.nbytes
        stored[name] = real.clone() if shares else real
        memories.add(memory)
    complex_names = [name for name in stored if tensors[name].is_complex()]
    description = json.dumps({**text, "format": FORMAT, "complex": complex_names, "same": same})
    try:
        return save(stored, {TEXT: description, DIGEST: "0" * DIGITS})
    except (SafetensorError, KeyError) as error:
        raise UnsupportedError(f"tensors have a dtype that safetensors cannot write ({error}); convert them") from error


def identity(tensor: Tensor) -> tuple:
    """Equal for tensors that are the same numbers in memory."""
    if tensor.layout is not torch.strided or tensor.numel() == 0:
        return (id(tensor),)
    flags = (tensor.dtype, tensor.device, tensor.is_conj(), tensor.is_neg())
    return (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), *flags)


def as_stored(name: str, tensor: Tensor) -> Tensor:
    """The tensor as contiguous reals on the CPU."""
    if tensor.layout is not torch.strided:
        raise UnsupportedError(f"tensor {name!r} must be dense to be saved, got {tensor.layout}; use to_dense()")
    plain = tensor.detach().resolve_conj().resolve_neg()
    return (torch.view_as_real(plain) if plain.is_complex() else plain).cpu().contiguous()


def restore(tensors: dict[str, Tensor], text: dict) -> dict[str, Tensor]:
    """The tensors under all of their names, complex ones from their pairs."""
    for name in text["complex"]:
        # A file aligns to 8 bytes only; torch computes on complex128 with instructions that fault unless to 16.
        tensors[name] = torch.view_as_complex(tensors[name].clone())
    return tensors | {name: tensors[other] for name, other in text.get("same", {}).items()}


def header_of(content: bytes) -> dict[str, Any]:
    """The JSON object at the beginning of a safetensors file."""
    header = json.loads(content[8 : 8 + header_length(content)])
    if not isinstance(header, dict):
        raise ValueError("the header is no JSON object")
    return header


def header_length(content: bytes) -> int:
    """The length in bytes of the header, which begins at byte 8."""
    length = int.from_bytes(content[:8], "little")
    if len(content) < 8 or length > len(content) - 8:
        raise ValueError("the file ends inside its header")
    return length


def digest_place(content: bytes) -> int:
    """The place of the digest's digits; ValueError unless there is exactly one."""
    end = 8 + header_length(content)
    place = content.find(MARK, 8, end)
    if place < 0 or content.find(MARK, place + 1, end) >= 0:
        raise ValueError("the header has no checksum")
    return place + len(MARK)


def digest_of(content: bytes, place: int) -> bytes:
    """The SHA-256 of the file with zeros in place of the digest."""
    view = memoryview(content)
    found = hashlib.sha256(view[:place])
    found.update(b"0" * DIGITS)
    found.update(view[place + DIGITS :])
    return found.hexdigest().encode()


def check_digest(content: bytes) -> None:
    """Raise ValueError unless the file has the checksum that it names."""
    place = digest_place(content)
    if content[place : place + DIGITS] != digest_of(content, place):
        raise ValueError("the checksum differs: the file is damaged")


def read_file(path: Path) -> bytes:
    """The bytes of a regular file; OSError for a link, a folder, a pipe or a device, without waiting for a writer."""
    if path.is_symlink():
        raise OSError(f"{path.name} is a symbolic link, which is not followed")
    descriptor = os.open(path, READ)
    with open(descriptor, "rb") as file:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(f"{path.name} is no regular file")
        return file.read()


def replace_file(path: Path, *pieces: bytes | memoryview) -> None:
    """Write a file, whole or not at all: a failure leaves the old one. A link is replaced. Raises FolderError."""
    part = path.with_name(f".thalweg-{secrets.token_hex(8)}.part")
    try:
        descriptor = os.open(part, CREATE | NOFOLLOW, 0o666)
        try:
            with open(descriptor, "wb") as file:
                for piece in pieces:
                    file.write(piece)
                file.flush()
                os.fsync(descriptor)
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        flush_folder(path.parent)
    except OSError as error:
        raise write_error(path.parent, error) from error


def flush_folder(path: Path) -> None:
    """Flush a folder's names to the disk, on systems that can."""
    if hasattr(os, "O_DIRECTORY"):
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        except OSError:  # file systems without: the rename is atomic on them all the same
            pass
        finally:
            os.close(descriptor)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Write a text file, whole or not at all; a link is replaced. Raises FolderError."""
    replace_file(Path(path), text.encode())


def remove_text(path: Path) -> None:
    """Remove the JSON file of a save of format 1; any other file of that name stays."""
    try:
        old = json.loads(read_file(path))
    except (OSError, ValueError):
        return
    if isinstance(old, dict) and old.get("format") == 1:
        path.unlink(missing_ok=True)


def writable_folder(folder: str | os.PathLike[str]) -> Path:
    """The folder, made if needed; FolderError where it cannot be written. No file in it is touched."""
    if not isinstance(folder, (str, os.PathLike)):
        raise TypeError(f"folder must be a path, got {short_form(folder)} of type {type(folder).__name__}")
    path = Path(folder)
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise write_error(path, error) from error
    return path


def write_error(path: Path, error: OSError) -> FolderError:
    """The error for a folder that cannot be written."""
    return FolderError(f"folder {str(path)!r} cannot be written ({error.strerror or error}); name another one")


def read_error(path: Path, stem: str, error: Exception) -> FolderError:
    """The error for a folder that cannot be read."""
    return FolderError(
        f"folder {str(path)!r} holds no readable {stem} ({type(error).__name__}: {error}); "
        f"give a folder that {stem} was saved to"
    )
