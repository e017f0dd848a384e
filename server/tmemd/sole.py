"""One daemon at a time serves an arena: what was asked of the one before has landed, or never will.

Epochs keep late messages apart within a run of the daemon, but what an earlier run still has in its threads knows no
later epoch. So a daemon serves only while it holds a byte of the arena's file locked (design.md, section 4.2). The lock
is an open file's, which workers inherit: the kernel lets go of it when the last process of the daemon has ended.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import struct
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

from tmemd.errors import ArenaError
from tmemd.logs import log

if TYPE_CHECKING:
    from collections.abc import Iterator

ATTACHED, SERVED = 1, 2
"""Bytes that are held locked: by all who are attached, and by the daemon that serves."""

_FLOCK = struct.Struct("hhqqi4x")
GRACE = 3.0
"""Seconds that a daemon has to end, beyond those of the calls under way."""
_EVERY = 0.05


def lock(descriptor: int, byte: int) -> None:
    """Lock a byte of an arena's file exclusively, for as long as the file is open.

    Raises:
        OSError: Somebody has it.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))


class Sole:
    """The right to serve an arena. `descriptors` are to be inherited by the daemon's other processes."""

    def __init__(self, arena: str = "", *descriptors: int) -> None:
        self.descriptors = descriptors
        self._arena = arena

    async def take(self, stopping: asyncio.Event, patience: float) -> bool:
        """Wait until no other daemon serves the arena; False where `stopping` came first.

        Raises:
            ArenaError: Another still serves it after so many seconds.
        """
        give_up_at = asyncio.get_running_loop().time() + patience
        told = False
        while not self._taken():
            if stopping.is_set():
                return False
            if not told:
                log.info("another daemon has the arena %s: waiting for its end", self._arena)
                told = True
            if asyncio.get_running_loop().time() >= give_up_at:
                raise ArenaError(self._arena, "another daemon serves it")
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), _EVERY)
        return True

    def _taken(self) -> bool:
        try:
            for descriptor in self.descriptors:
                lock(descriptor, SERVED)
        except OSError:
            return False
        return True


@contextmanager
def sole(arena: str | None) -> Iterator[Sole]:
    """The right to serve an arena, to be taken; given up at the end, and by a process that dies."""
    if arena is None:
        yield Sole()  # nobody else finds it
        return
    descriptor = os.open(arena, os.O_RDWR | os.O_CLOEXEC)
    try:
        yield Sole(arena, descriptor)
    finally:
        os.close(descriptor)
