"""Reading archives member by member, never onto the disk, and refusing those with members that point elsewhere."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import Protocol

from nets.datasets.errors import ANEW, DataError, blamed_on, damaged
from nets.datasets.files import check_regular, oversized

# what an unpacked archive may hold beside the files wanted: headers, padding, lists of names
SLACK = 16 * 2**20


class Readable(Protocol):
    """Anything that gives bytes."""

    def read(self, size: int, /) -> bytes:
        """At most ``size`` bytes, none at the end."""


class Bounded:
    """A stream that gives no more than ``most`` bytes, so that a bomb cannot fill the memory of whoever unpacks it."""

    def __init__(self, stream: Readable, most: int, where: object) -> None:
        self.stream, self.most, self.where = stream, most, where
        self.given = 0

    def read(self, size: int) -> bytes:
        """At most ``size`` bytes; raise once more than ``most`` have been asked for and had."""
        content = self.stream.read(min(size, self.most + 1 - self.given))
        self.given += len(content)
        if self.given > self.most:
            raise oversized(f"{self.where} unpacked", self.given, self.most)
        return content


def refuse_stray(archive: Path, name: str) -> str:
    """``name`` without a leading "./"; raise where a member's name is absolute or climbs out of the archive."""
    path = PurePosixPath(name)
    foreign = "\\" in name or ":" in name or "\0" in name
    if path.is_absolute() or ".." in path.parts or foreign:
        raise DataError(f"{archive}: found member {name!r}, expected names inside the archive; never unpack it, {ANEW}")
    return str(path)


def refuse_kind(archive: Path, name: str, kind: str) -> DataError:
    """The error for a member that is neither file nor folder."""
    return DataError(f"{archive}: found member {name!r}, {kind}, expected files and folders; never unpack it, {ANEW}")


def read_tar(archive: Path, most: dict[str, int]) -> dict[str, bytes]:
    """The members named in ``most`` of a tar.gz, each of at most that many bytes, in one pass; the rest is skipped."""
    found: dict[str, bytes] = {}
    with blamed_on(archive, "a readable file"):
        check_regular(archive)
    with blamed_on(archive, "a tar.gz archive"), gzip.open(archive, "rb") as unpacked:
        bounded = Bounded(unpacked, sum(most.values()) + SLACK, archive)
        # "r|" reads forward only: no header can send the reader back and round in a loop
        with tarfile.open(fileobj=bounded, mode="r|") as members:  # type: ignore[call-overload]
            for member in members:
                name = refuse_stray(archive, member.name)
                if not (member.isreg() or member.isdir()) or member.issparse():
                    raise refuse_kind(archive, name, "a link, a device or a sparse file")
                if name in most and member.isreg():
                    if name in found:
                        raise damaged(archive, f"member {name!r} twice", "one of each name")
                    found[name] = read_tar_member(archive, members, member, most[name])
        while bounded.read(2**20):  # to the end, where gz keeps its checksum
            pass
    absent = [name for name in most if name not in found]
    if absent:
        raise damaged(archive, f"no member {', '.join(absent)}", "all of them")
    return found


def read_tar_member(archive: Path, members: tarfile.TarFile, member: tarfile.TarInfo, most: int) -> bytes:
    """The bytes of the member the stream stands at."""
    where = f"{archive}, member {member.name!r}"
    if not 0 <= member.size <= most:
        raise oversized(where, member.size, most)
    stream = members.extractfile(member)
    content = stream.read() if stream is not None else b""
    if len(content) != member.size:
        raise damaged(where, f"{len(content):,} bytes", f"the {member.size:,} that its header promises")
    return content


def list_zip(archive: Path, members: zipfile.ZipFile) -> dict[str, zipfile.ZipInfo]:
    """Members by name, folders with a slash at the end; raise where one is a link or strays outside."""
    found: dict[str, zipfile.ZipInfo] = {}
    for info in members.infolist():
        # zipfile cuts a name at a zero byte: judge the name as it is written
        name = refuse_stray(archive, info.orig_filename) + ("/" if info.is_dir() else "")
        mode = info.external_attr >> 16
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            raise refuse_kind(archive, name, "a link or a device")
        if name in found:
            raise damaged(archive, f"member {name!r} twice", "one of each name")
        found[name] = info
    return found


def read_zip_member(archive: Path, members: zipfile.ZipFile, info: zipfile.ZipInfo, most: int) -> bytes:
    """The bytes of a member, its checksum checked; one that unpacks to more than ``most`` is refused."""
    where = f"{archive}, member {info.filename!r}"
    with blamed_on(where, "a sound member"):
        if info.file_size > most:
            raise oversized(where, info.file_size, most)
        with members.open(info) as stream:
            content = stream.read(most + 1)
        if len(content) > most:
            raise oversized(where, len(content), most)
    return content
