"""The one way in which a file that a user names is written.

What is at the name stays whole until the new content is: that goes to an exclusive temporary file of mode 0600 in the
same folder, to the disk, and then by a rename to the name. Whatever ends the command before takes the temporary file
away. A symlink stays: what it points to is replaced, in its folder. What is no regular file (a device, a pipe) is
written in place, and never replaced. `-` is standard output.

An owner and a mode that were there are kept. Where they cannot be, nobody gets a right that he had not.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import click

from tmem.cli.base.failures import Failed, Misused
from tmem.cli.base.interrupts import leftovers
from tmem.cli.base.text import printable

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import BinaryIO

STANDARD = "-"
PRIVATE = 0o600
BY_UMASK = 0o666
"""Modes of a new file: for its owner alone, or by the user's umask."""

STANDARD_OUTPUT = "standard output"
_ACL = "system.posix_acl_access"
_UNSYNCABLE = (errno.EINVAL, errno.EROFS, errno.ENOTSUP)


class Sink:
    """Accepts bytes. Errors are `OSError` with the name that the user gave."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file = file
        self._name = name
        self.written = 0

    def write(self, data: bytes | memoryview) -> None:
        """All of it."""
        left = memoryview(data)
        self.written += len(left)
        with _named(self._name):
            while left:
                left = left[self._file.write(left) :]


def is_standard(name: str) -> bool:
    """Whether the name means standard output: `-`, or the system's name for it."""
    if name == STANDARD:
        return True
    try:
        return os.path.samestat(os.stat(name), os.fstat(sys.stdout.fileno()))
    except (OSError, ValueError):
        return False


def replaces(name: str) -> bool:
    """Whether writing would replace something: the contents of a file or of a disk."""
    if is_standard(name):
        return False
    found = _look(name)
    return found is not None and (stat.S_ISREG(found.st_mode) or stat.S_ISBLK(found.st_mode))


@contextmanager
def writing(name: str, mode: int) -> Iterator[Sink]:
    """Write a file under a name: it is replaced if the block succeeds, and left as it was otherwise."""
    if is_standard(name):
        with _standard() as sink:
            yield sink
        return
    if not name or name.endswith(os.sep):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    before = _look(name)
    if before is not None and stat.S_ISDIR(before.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), name)
    in_place = before is not None and not stat.S_ISREG(before.st_mode)
    with _in_place(name) if in_place else _replacing(name, before, mode) as sink:
        yield sink


@contextmanager
def _standard() -> Iterator[Sink]:
    if sys.stdout.isatty():
        raise Misused("refusing to write binary data to a terminal: name a file, or use a pipe")
    yield Sink(sys.stdout.buffer, STANDARD_OUTPUT)
    with _named(STANDARD_OUTPUT):
        sys.stdout.buffer.flush()


@contextmanager
def _in_place(name: str) -> Iterator[Sink]:
    """Open what is there, without creating or truncating anything."""
    with _named(name):
        handle = os.open(name, os.O_WRONLY | _flags("O_NOCTTY", "O_BINARY"))
    with open(handle, "wb", buffering=0) as file:
        yield Sink(file, name)
        with _named(name):
            _flush(handle)


@contextmanager
def _replacing(name: str, before: os.stat_result | None, mode: int) -> Iterator[Sink]:
    path = Path(os.path.realpath(name) if os.path.islink(name) else name)
    part = path.with_name(f".tmem-{secrets.token_hex(8)}")
    leftovers.add(str(part))
    try:
        with _created(name, part) as file:
            yield Sink(file, name)
            with _named(name):
                if os.name == "posix":
                    _entitle(file.fileno(), path, before, mode)
                os.fsync(file.fileno())
        with _named(name):
            part.replace(path)
            sync(path.parent)
        if before is not None and before.st_nlink > 1:
            click.echo(f"tmem: {printable(name)} had other hard links, which keep the old contents", err=True)
    except BaseException:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    finally:
        leftovers.discard(str(part))


def _flush(handle: int) -> None:
    """To the disk, if it is one."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _UNSYNCABLE:
            raise


def _created(name: str, part: Path) -> BinaryIO:
    try:
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _flags("O_NOFOLLOW", "O_BINARY"), 0o600)
    except OSError as error:
        raise Failed(f"{name}: cannot create a file in {part.parent}: {error.strerror}") from error
    return open(handle, "wb", buffering=0)


def _entitle(handle: int, path: Path, before: os.stat_result | None, mode: int) -> None:
    """Give a file the mode of a new one, or owner, group, mode and access list of the one that it replaces.

    Rights of a group that cannot be kept are cut down to those of everybody.
    """
    if before is None:
        os.fchmod(handle, mode & ~_umask())
        return
    mode = stat.S_IMODE(before.st_mode) & 0o777
    for owner, group in ((before.st_uid, before.st_gid), (-1, before.st_gid)):
        with suppress(PermissionError):
            os.fchown(handle, owner, group)
            break
    if os.fstat(handle).st_gid != before.st_gid:
        mode &= 0o707 | (mode & 0o007) << 3
    with suppress(OSError):
        listed = os.getxattr(path, _ACL)
        mode &= 0o707  # with a list these bits are its mask, and not the group's
        os.fchmod(handle, mode)
        os.setxattr(handle, _ACL, listed)
        return
    os.fchmod(handle, mode)


def _look(name: str) -> os.stat_result | None:
    """The status of a name, following its symlink; None if nothing is there."""
    with _named(name):
        try:
            return os.stat(name)
        except FileNotFoundError:
            return None


def _flags(*names: str) -> int:
    """Flags of `os.open`, those that the system has."""
    return sum(getattr(os, name, 0) for name in names)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sync(folder: Path) -> None:
    """Sync the names in a folder to disk, if it can be read."""
    with suppress(PermissionError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Let errors carry the name that the user gave, not that of a temporary file."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, name or None) from error
