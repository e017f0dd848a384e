"""One daemon at a time serves an arena: what was asked of the one before has landed, or never will.

Epochs keep late messages apart within a run of the daemon, but what an earlier run still has in its threads knows no
later epoch. So a daemon serves only while it holds a byte of the arena's file locked (design.md, section 4.2). The lock
is an open file's, which workers inherit: the kernel lets go of it when the last process of the daemon has ended.

One that stops says how long that may take, so that the next waits as long, whatever its own settings are: it locks as
many bytes more as it has seconds.
"""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tmemd.base.arena_file import open_arena
from tmemd.base.errors import ArenaError
from tmemd.base.logs import log

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTACHED, SERVED = 1, 2
"""Bytes that are held locked: by all who are attached, and by the daemon that serves."""
_STOPPING = 16
"""The first of as many bytes as the daemon that serves has seconds to stop, held by one that is stopping. Apart from
the others, for the kernel makes one lock of neighbours."""

_OWNERS = 1 << 32
"""Each process that is attached holds a byte from here on."""
_LAYOUT = 5
_VERSION_AT = 8
"""What the path of an arena without a name begins with, which this process was handed."""

_FLOCK = struct.Struct("hhqqi4x")
GRACE = 3.0
"""Seconds that a daemon has to end, beyond those of the calls under way."""
_LEEWAY = 2.0
"""Seconds that a daemon has beyond what it said: to be killed, to let go of much memory."""
_EVERY = 0.05


def lock(descriptor: int, byte: int, count: int = 1) -> None:
    """Lock bytes of an arena's file exclusively, for as long as the file is open.

    Raises:
        OSError: Somebody has one of them.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, count, 0))


def is_older(arena: str | None) -> bool:
    """Whether there is an arena of an earlier layout, which its daemon may be serving."""
    if arena is None:
        return False
    try:
        descriptor = open_arena(arena, os.O_RDONLY)
    except OSError:
        return False
    try:
        version = os.pread(descriptor, 4, _VERSION_AT)
    except OSError:
        return False
    finally:
        os.close(descriptor)
    return len(version) == 4 and int.from_bytes(version, "little") < _LAYOUT


def _seconds_to_stop(descriptor: int) -> int:
    """What another daemon said it may take to stop; 0 where none is stopping."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _STOPPING, _OWNERS - _STOPPING, 0)
    kind, _, first, count, _ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return count if (kind, first) == (fcntl.F_WRLCK, _STOPPING) else 0


class ArenaLock:
    """The right to serve an arena. `descriptors` are to be inherited by the daemon's other processes."""

    def __init__(self, arena: str = "", *descriptors: int) -> None:
        self.descriptors = descriptors
        self._arena = arena

    async def acquire(self, stopping: asyncio.Event, patience: float) -> bool:
        """Wait until no other daemon serves the arena; False where `stopping` came first.

        Raises:
            ArenaError: Another still serves it after so many seconds, or after as many as it said it takes to stop.
        """
        begun = asyncio.get_running_loop().time()
        told = -1
        while not self._acquired():
            if stopping.is_set():
                return False
            takes = max(map(_seconds_to_stop, self.descriptors), default=0)
            if told < takes:
                self._tell(takes)
                told, begun = takes, asyncio.get_running_loop().time()
            if asyncio.get_running_loop().time() - begun >= max(patience, takes):
                raise ArenaError(self._arena, "another daemon serves it")
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _EVERY)
        return True

    def announce_stop(self, seconds: float) -> None:
        """Say that this daemon is stopping, and that it may take so long."""
        with suppress(OSError):  # then the next waits as long as it would itself
            for descriptor in self.descriptors:
                lock(descriptor, _STOPPING, math.ceil(seconds + _LEEWAY))

    def _tell(self, takes: int) -> None:
        within = f", within {takes} s as it says" if takes else ""
        log.info("another daemon has the arena %s: waiting for its end%s", self._arena, within)

    def _acquired(self) -> bool:
        try:
            for descriptor in self.descriptors:
                lock(descriptor, SERVED)
        except OSError:
            return False
        return True


@contextmanager
def arena_lock(arena: str | None) -> Iterator[ArenaLock]:
    """The right to serve an arena, to be taken; given up at the end, and by a process that dies."""
    if arena is None:
        yield ArenaLock()  # nobody else finds it
        return
    descriptor = open_arena(arena, os.O_RDWR)
    try:
        yield ArenaLock(arena, descriptor)
    finally:
        os.close(descriptor)
