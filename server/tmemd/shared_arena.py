"""An arena for workers where none is named: a file in /dev/shm, of this process, gone with it.

Whoever dies without removing its file leaves it; the next daemon of the same user does. A file is left alone as long
as its process runs, or anybody is attached to it (design.md, section 4.2): a process id alone says nothing across
containers that share /dev/shm.
"""

from __future__ import annotations

import os
import re
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tmemd.logs import log
from tmemd.sole import ATTACHED, lock

if TYPE_CHECKING:
    from collections.abc import Iterator

_PLACE = Path("/dev/shm")
_NAME = "tmemd-{}.arena"
_PATTERN = re.compile(r"tmemd-(\d+)\.arena")


@contextmanager
def shared_arena(named: str | None) -> Iterator[str]:
    """The path of the arena: the named one, or one of our own."""
    if named is not None:
        yield named
        return
    _remove_stale()
    path = _PLACE / _NAME.format(os.getpid())
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


def _remove_stale() -> None:
    for path in _PLACE.iterdir():
        match = _PATTERN.fullmatch(path.name)
        if match is None or _runs(int(match[1])):
            continue
        with suppress(OSError):  # another user's, or in use, or gone by now
            _lock_attached(path)
            path.unlink()
            log.info("removed %s, which a daemon that died had left", path)


def _runs(process: int) -> bool:
    return process != os.getpid() and Path(f"/proc/{process}").exists()


def _lock_attached(path: Path) -> None:
    """Raise where somebody is attached."""
    descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        lock(descriptor, ATTACHED)
    finally:
        os.close(descriptor)
