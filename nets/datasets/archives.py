"""Reading members of archives into memory, with checks against members that point outside the archive."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from nets.datasets.errors import ANEW, DataError, damage_error, report_damage
from nets.datasets.files import check_regular, size_error

# allowance for headers, padding and other members of an unpacked archive
SLACK = 16 * 2**20


class Readable(Protocol):
    """A binary stream."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes; none at the end."""


class Bounded:
    """A stream limited to ``most`` bytes, so that a decompression bomb cannot fill the memory."""

    def __init__(self, stream: Readable, most: int, where: object) -> None:
        self.stream, self.most, self.where = stream, most, where
        self.given = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; raise once more than ``most`` have been read."""
        content = self.stream.read(min(size, self.most + 1 - self.given))
        self.given += len(content)
        if self.given > self.most:
            raise size_error(f"{self.where} unpacked", self.given, self.most)
        return content


def check_member_name(archive: Path, name: str) -> str:
    """Return ``name`` without a leading "./"; raise if it is absolute or leads outside the archive."""
    path = PurePosixPath(name)
    # on Windows backslashes, colons and zero bytes would lead to other files
    foreign = "\\" in name or ":" in name or "\0" in name
    if path.is_absolute() or ".." in path.parts or foreign:
        raise DataError(f"{archive}: found member {name!r}, expected names inside the archive; never unpack it, {ANEW}")
    return str(path)


def member_kind_error(archive: Path, name: str, kind: str) -> DataError:
    """The error for a member that is neither a file nor a folder."""
    return DataError(f"{archive}: found member {name!r}, {kind}, expected files and folders; never unpack it, {ANEW}")


def read_tar(archive: Path, most: dict[str, int]) -> dict[str, bytes]:
    """The members named in ``most`` of a tar.gz, each of at most that many bytes, in one pass; others are skipped."""
    found: dict[str, bytes] = {}
    with report_damage(archive, "a readable file"):
        check_regular(archive)
    with report_damage(archive, "a tar.gz archive"), gzip.open(archive, "rb") as unpacked:
        bounded = Bounded(unpacked, sum(most.values()) + SLACK, archive)
        # "r|" reads forward only, so that no header can cause a loop
        with tarfile.open(fileobj=bounded, mode="r|") as members:  # type: ignore[call-overload]
            for member in members:
                name = check_member_name(archive, member.name)
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise member_kind_error(archive, name, "a link, a device or a sparse file")
                if name in most and member.isreg():
                    if name in found:
                        raise damage_error(archive, f"member {name!r} twice", "one of each name")
                    found[name] = read_tar_member(archive, members, member, most[name])
        while bounded.read(2**20):  # to the end, where gz checks its checksum
            pass
    absent = [name for name in most if name not in found]
    if absent:
        raise damage_error(archive, f"no member {', '.join(absent)}", "all of them")
    return found


def read_tar_member(archive: Path, members: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """The bytes of the current member of the stream."""
    where = f"{archive}, member {member.name!r}"
    if not 0 <= member.size <= most:
        raise size_error(where, member.size, most)
    stream = members.extractfile(member)
    content = stream.read() if stream is not None else b""
    if len(content) != member.size:
        raise damage_error(where, f"{len(content):,} bytes", f"the {member.size:,} of its header")
    return content


def list_zip(archive: Path, members: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by name, folders with a trailing slash; raise if one is a link or leads outside."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in members.infolist():
        # orig_filename, as zipfile cuts filename at a zero byte
        name = check_member_name(archive, info.orig_filename) + ("/" if info.is_dir() else "")
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise member_kind_error(archive, name, "a link or a device")
        if name in found:
            raise damage_error(archive, f"member {name!r} twice", "one of each name")
        found[name] = info
    return found


def read_zip_member(archive: Path, members: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """The bytes of a member, with its checksum verified; raise if they are more than ``most``."""
    where = f"{archive}, member {info.filename!r}"
    with report_damage(where, "a sound member"):
        if info.file_size > most:
            raise size_error(where, info.file_size, most)
        with members.open(info) as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise size_error(where, len(content), most)
    return content
