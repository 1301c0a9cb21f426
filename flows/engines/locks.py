r"""One writer a folder: a lock of the operating system, which ends with its process, on ``folder``/.lock.

The lock is the process's: its threads and nested saves share it, processes forked from it do not hold it. The file
holds the process's number and host for the error of another one, and goes with the lock; a file of the user's of that
name is locked and otherwise left alone.
"""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

from flows.engines.storage import NOFOLLOW, PART, FolderError, writable_folder, write_error

if sys.platform == "win32":  # pragma: no cover
    import msvcrt
else:
    import fcntl

NAME = ".lock"
OPEN = os.O_RDWR | os.O_CREAT | NOFOLLOW | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0)
OURS = b"thalweg: "
UNKNOWN = "another process"
NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP}
ABANDONED = 3600.0  # seconds after which a temporary file is that of a killed process


class UnlockedWarning(UserWarning):
    """The file system has no locks: nothing refuses a second writer."""


class FolderLock:
    r"""The right to write into a folder (made if needed), from construction to ``release`` or the end of ``with``.

    Raises FolderError where another process has it, or the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        self.folder = writable_folder(folder)
        self._finalizer = weakref.finalize(self, release, acquire(self.folder))

    def release(self) -> None:
        """Give the right back; nothing if that was done."""
        self._finalizer()

    def __enter__(self) -> FolderLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


class HeldLock:
    """A lock that this process holds, ``users`` times."""

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self.descriptor = descriptor
        self.users = 1


_guard = threading.Lock()
_locks: dict[str, HeldLock] = {}


def acquire(folder: Path) -> HeldLock:
    """The lock of a folder, new or shared with the rest of this process. Raises FolderError."""
    key = os.path.realpath(folder)
    with _guard:
        held = _locks.get(key)
        if held is not None and is_same(held.descriptor, held.path):
            held.users += 1
            return held
        held = _locks[key] = HeldLock(Path(key) / NAME, lock_file(folder))
    remove_leftovers(folder)
    return held


def release(held: HeldLock) -> None:
    """End one use of a lock; the last one ends the lock."""
    with _guard:
        held.users -= 1
        key = str(held.path.parent)
        if held.users or held.descriptor < 0:
            return
        if _locks.get(key) is held:
            del _locks[key]
        # The file goes first: who opens it in between sees, once it has the lock, that it is no longer the folder's.
        if is_same(held.descriptor, held.path) and content_of(held.descriptor).startswith(OURS):
            try:
                held.path.unlink(missing_ok=True)
            except OSError:  # open files cannot be removed on Windows
                pass
        os.close(held.descriptor)


def lock_file(folder: Path) -> int:
    """A descriptor of the folder's locked file. Raises FolderError."""
    path = folder / NAME
    while True:
        try:
            descriptor = os.open(path, OPEN, 0o666)
        except OSError as error:
            raise write_error(folder, error) from error
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FolderError(f"folder {str(folder)!r} cannot be locked: its {NAME} is no regular file; remove it")
            lock_descriptor(folder, descriptor)
            if is_same(descriptor, path):
                sign(descriptor)
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed the file meanwhile


def lock_descriptor(folder: Path, descriptor: int) -> None:
    """Lock an open file without waiting. Raises FolderError where another process has the lock."""
    try:
        if sys.platform == "win32":  # pragma: no cover
            os.lseek(descriptor, 1 << 30, os.SEEK_SET)  # beyond the text, which others read
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            warnings.warn(
                f"folder {str(folder)!r} is on a file system without locks: write to it from one process only",
                UnlockedWarning,
                stacklevel=2,
            )
            return
        holder = holder_of(descriptor)
        raise FolderError(
            f"folder {str(folder)!r} is being written by {holder}; wait until it ends, or name another folder"
        ) from error


def holder_of(descriptor: int) -> str:
    """The process that the text of a locked file names; waits a moment for a lock that is just being signed."""
    for _ in range(20):
        text = content_of(descriptor)
        if text.startswith(OURS):
            return text.removeprefix(OURS).decode(errors="replace").strip()
        if text:
            break
        time.sleep(0.005)
    return UNKNOWN


def sign(descriptor: int) -> None:
    """Write the process into the locked file, unless it holds a text of someone else."""
    if content_of(descriptor).startswith(OURS) or not content_of(descriptor):
        try:
            os.ftruncate(descriptor, 0)
            os.lseek(descriptor, 0, os.SEEK_SET)
            os.write(descriptor, OURS + f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        except OSError:  # a full disk: the lock holds without its text
            pass


def content_of(descriptor: int) -> bytes:
    """The beginning of an open file."""
    try:
        os.lseek(descriptor, 0, os.SEEK_SET)
        return os.read(descriptor, 300)
    except OSError:
        return b""


def is_same(descriptor: int, path: Path) -> bool:
    """Whether an open file is still the one at that path."""
    try:
        found, own = os.lstat(path), os.fstat(descriptor)
    except OSError:
        return False
    return (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino)


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if PART.fullmatch(entry.name)]
    for entry in found:
        try:
            if time.time() - entry.stat(follow_symlinks=False).st_mtime > ABANDONED:
                os.unlink(entry.path)
        except OSError:  # gone meanwhile
            pass


def forget_locks() -> None:
    """In a forked process: close the parent's descriptors, which keeps its locks and does not share them."""
    global _guard  # noqa: PLW0603  # a thread of the parent may hold the old one
    _guard = threading.Lock()
    for held in _locks.values():
        os.close(held.descriptor)
        held.descriptor = -1
    _locks.clear()


if sys.platform != "win32":
    os.register_at_fork(after_in_child=forget_locks)
