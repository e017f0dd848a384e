"""A neighbour that attached the arena and is frozen in the middle of its work, with a shard's lock in its hand."""

from __future__ import annotations

import os
import random
import signal
import struct
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tests.lib.support import PATIENCE
from tmem_engine import Engine, EnginePool, set_lock_wait
from tmemd.base import errors

if TYPE_CHECKING:
    from collections.abc import Iterator

_WORK = """
import sys, tmem
with tmem.connect(f"shm://{sys.argv[1]}") as store:
    print("attached", flush=True)
    while True:
        store.check()
"""
_SHARDS_AT = 4096 + 1024 * 256
_DIRTY = 64
_OWNER = (1 << 30) - 1
_ADMIN_AT = 128
_PROCESSES = struct.Struct("<128Q")
_PROCESSES_AT = 200


class Neighbour:
    """Attached, and looking through the arena over and over: most of the time it holds a shard."""

    def __init__(self, arena: Path, shards: int) -> None:
        self._arena, self._shards = arena, shards
        self._process = subprocess.Popen([sys.executable, "-c", _WORK, str(arena)], stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"attached\n"
        self.pid = self._process.pid

    def freeze(self) -> int:
        """Stop it while it holds a shard, and tell which."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end:
            time.sleep(random.uniform(0, 0.003))  # in which it works
            self._process.send_signal(signal.SIGSTOP)
            while ") T " not in Path(f"/proc/{self.pid}/stat").read_text():
                os.sched_yield()
            shard = self._holds()
            if shard is not None:
                return shard
            self.go_on()
        raise AssertionError("it is never found in a shard")

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=PATIENCE)

    def _holds(self) -> int | None:
        stride = (self._arena.stat().st_size - _SHARDS_AT) // self._shards
        with self._arena.open("rb") as file:
            for shard in range(self._shards):
                file.seek(_SHARDS_AT + shard * stride)
                head = file.read(_DIRTY + 4)
                (word,), (dirty,) = struct.unpack("<I", head[:4]), struct.unpack("<I", head[-4:])
                if word & _OWNER and dirty:
                    return shard
        return None


@contextmanager
def neighbour(arena: Path, shards: int) -> Iterator[Neighbour]:
    running = Neighbour(arena, shards)
    try:
        yield running
    finally:
        running.kill()


@contextmanager
def attached(arena: Path) -> Iterator[Engine]:
    """The arena as one more process has it, which waits for no lock."""
    engine = Engine.attach(arena, errors=errors)
    set_lock_wait(0)
    try:
        yield engine
    finally:
        set_lock_wait(None)
        engine.close()


def is_held(pool: EnginePool, oid: bytes, index: int) -> bool:
    """Whether a page is in a shard whose lock is held."""
    try:
        pool.has(oid, index, 1)
    except errors.UnavailableError:
        return True
    return False


@contextmanager
def admin_held(arena: Path) -> Iterator[None]:
    """The lock of the arena's pools is this process's, which must have the arena attached."""
    with arena.open("r+b", buffering=0) as file:

        def put(word: int) -> None:
            file.seek(_ADMIN_AT)
            file.write(word.to_bytes(4, "little"))

        file.seek(_PROCESSES_AT)
        known = _PROCESSES.unpack(file.read(_PROCESSES.size))
        put(max(word >> 32 for word in known if word & 0xFFFFFFFF == os.getpid()))
        try:
            yield
        finally:
            put(0)
