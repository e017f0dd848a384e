"""Writers killed with kill -9 in mid-put, and the proof that nothing they were told is stored was lost.

The writer's side is `python -m bench.lib.kills ARENA SEED`: it puts batches of pages that say their index and
version, and writes to standard output what was acknowledged.
"""

from __future__ import annotations

import functools
import os
import random
import signal
import struct
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import tmem

PAGE = 4096
_PAGES = 4096
_BATCH = 32
_POOL = "written"
_ACK = struct.Struct("<III")  # first index, pages, version
_STAMP = struct.Struct("<II")  # index, version
_ROOT = Path(__file__).resolve().parents[2]
_WARM_UP = 0.05
_WORDS = b"page object handle pool frame arena zpage slot shard cluster oid index codec class buddy chunk".split()


def stamped(index: int, version: int) -> bytes:
    """The page of an index in a version, said at its start, middle and end; the length it compresses to varies."""
    stamp = _STAMP.pack(index, version)
    text = _filler((index + version) % 64)
    half = PAGE // 2 - _STAMP.size
    return stamp + text[:half] + stamp + text[half : 2 * half - _STAMP.size] + stamp


@functools.cache
def _filler(seed: int) -> bytes:
    rng = random.Random(seed)
    text = b" ".join(rng.choices(_WORDS, k=96)) + rng.randbytes(rng.randrange(3000))
    return text.ljust(PAGE, b"\0")[:PAGE]


@dataclass
class Kills:
    """Kills so far and what was found after them."""

    count: int = 0
    acknowledged: int = 0
    verified: int = 0
    lost: int = 0
    recovered: int = 0
    violations: int = 0
    faults: list[str] = field(default_factory=list)
    _versions: dict[int, int] = field(default_factory=dict)

    def kill(self, arena: Path, *, attended: bool) -> None:
        """Start a writer and kill it at a random instant, with this process attached too or not; then verify all."""
        store = tmem.connect(f"shm://{arena}") if attended else None
        try:
            acks = _write_until_killed(arena, self.count)
            self._take(acks)
            if store is not None:
                self._verify(store)
        finally:
            if store is not None:
                store.close()
        with tmem.connect(f"shm://{arena}") as again:
            self._verify(again)
            violations = again.check()
            self.violations += len(violations)
            self.faults += violations
            self.recovered = again.stats()["recoveries"]
        self.count += 1

    def _take(self, acks: bytes) -> None:
        whole = len(acks) // _ACK.size * _ACK.size
        for first, count, version in _ACK.iter_unpack(acks[:whole]):
            self.acknowledged += count
            self._versions.update(dict.fromkeys(range(first, first + count), version))

    def _verify(self, store: tmem.Store) -> None:
        """Every acknowledged page is there, in its acknowledged version or one that was put after it."""
        pool = store.find_pool(_POOL)
        pages = pool.get(1, self._versions)
        for index, version in self._versions.items():
            page = pages.get(index)
            self.verified += 1
            if page is None or not _is_version_from(page, index, version):
                self.lost += 1
                self.faults.append(f"page {index} of version {version} is {'gone' if page is None else 'wrong'}")


def _is_version_from(page: bytes, index: int, version: int) -> bool:
    at, have = _STAMP.unpack_from(page)
    return at == index and have >= version and page == stamped(index, have)


def _write_until_killed(arena: Path, seed: int) -> bytes:
    """What a writer had acknowledged when it was killed."""
    command = [sys.executable, "-m", "bench.lib.kills", str(arena), str(seed)]
    with subprocess.Popen(command, cwd=_ROOT, stdout=subprocess.PIPE, start_new_session=True) as writer:
        try:
            assert writer.stdout is not None
            begun = writer.stdout.read(_ACK.size)
            time.sleep(_WARM_UP + random.Random(seed).random() * 0.2)
            writer.send_signal(signal.SIGKILL)
            acks = begun + writer.stdout.read()
        finally:
            writer.kill()
    if writer.returncode != -signal.SIGKILL or not acks:
        raise RuntimeError(f"a writer ended by itself with status {writer.returncode}")
    return acks


def write(arena: str, seed: int) -> NoReturn:
    """Put batches at random places for ever, each in a version higher than any before."""
    rng = random.Random(seed)
    pool = tmem.connect(f"shm://{arena}").pool(_POOL)
    version = seed * 1_000_000
    while True:
        version += 1
        first = rng.randrange(_PAGES - _BATCH)
        outcomes = pool.put_range(1, first, b"".join(stamped(first + n, version) for n in range(_BATCH)))
        if all(outcomes):
            os.write(sys.stdout.fileno(), _ACK.pack(first, _BATCH, version))


if __name__ == "__main__":
    write(sys.argv[1], int(sys.argv[2]))
