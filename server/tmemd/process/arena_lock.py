"""Lets one daemon at a time serve an arena: requests to its predecessor have landed by then, or never will.

Epochs fence off late messages within one run of the daemon, but threads of an earlier run know no later epoch. So a
daemon serves only while it holds a lock on a byte of the arena's file (design.md, section 4.2). The lock belongs to an
open file description, which workers inherit: the kernel releases it when the last process of the daemon has ended.

A daemon that stops announces how many seconds that may take by locking as many further bytes, so that the next one
waits long enough, whatever its own settings are.
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
"""Bytes locked by everyone who is attached, and by the daemon that serves."""
_STOPPING = 16
"""The first of the bytes that announce the seconds to stop. Not adjacent to the others, as the kernel merges
neighbouring locks."""

_OWNERS = 1 << 32
"""Every attached process holds one byte from here on."""
_LAYOUT = 5
_VERSION_AT = 8
"""Where the layout's version lies in the arena."""

_FLOCK = struct.Struct("hhqqi4x")
GRACE = 3.0
"""Seconds that a daemon has to stop, beyond those of calls in flight."""
_LEEWAY = 2.0
"""Seconds added to what a stopping daemon announces: to be killed, to free much memory."""
_EVERY = 0.05


def lock(descriptor: int, byte: int, count: int = 1) -> None:
    """Lock bytes of an arena's file exclusively, for as long as the file is open.

    Raises:
        OSError: Somebody else holds one of them.
    """
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, count, 0))


def is_older(arena: str | None) -> bool:
    """Whether the arena has an earlier layout, and may be served by an earlier daemon."""
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
    """The seconds announced by a stopping daemon; 0 if none is stopping."""
    asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _STOPPING, _OWNERS - _STOPPING, 0)
    kind, _, first, count, _ = _FLOCK.unpack(fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, asked))
    return count if (kind, first) == (fcntl.F_WRLCK, _STOPPING) else 0


class ArenaLock:
    """The right to serve an arena. The daemon's other processes must inherit `descriptors`."""

    def __init__(self, arena: str = "", *descriptors: int) -> None:
        self.descriptors = descriptors
        self._arena = arena

    async def acquire(self, stopping: asyncio.Event, patience: float) -> bool:
        """Wait until no other daemon serves the arena; False if `stopping` was set first.

        Raises:
            ArenaError: Another still serves it after `patience` seconds, or after those that it announced.
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
        """Announce that this daemon is stopping, which may take so many seconds."""
        with suppress(OSError):  # then the next daemon waits as long as its own settings say
            for descriptor in self.descriptors:
                lock(descriptor, _STOPPING, math.ceil(seconds + _LEEWAY))

    def _tell(self, takes: int) -> None:
        within = f", which takes up to {takes} s" if takes else ""
        log.info("another daemon is serving arena %s: waiting for it to stop%s", self._arena, within)

    def _acquired(self) -> bool:
        try:
            for descriptor in self.descriptors:
                lock(descriptor, SERVED)
        except OSError:
            return False
        return True


@contextmanager
def arena_lock(arena: str | None) -> Iterator[ArenaLock]:
    """A lock on an arena, to be acquired; released at the end, or when the process dies."""
    if arena is None:
        yield ArenaLock()  # nobody else finds it
        return
    descriptor = open_arena(arena, os.O_RDWR)
    try:
        yield ArenaLock(arena, descriptor)
    finally:
        os.close(descriptor)
