"""A client that puts for ever: `python -m tests.lib.putter ADDRESS POOL`.

It writes to standard output what was acknowledged, and when its standard input ends, how many of its calls failed.
"""

from __future__ import annotations

import itertools
import os
import random
import select
import struct
import subprocess
import sys
import threading

import tmem
from bench.lib.kills import stamped
from tests.lib.support import PATIENCE

ACK = struct.Struct("<III")  # first index, pages, version; no pages: failed calls, 0, 0
PAGES = 512
_BATCH = 8


class Putter:
    """Such a client, in a process of its own, and what it was told is stored: the version of each page."""

    def __init__(self, address: str, pool: str) -> None:
        command = [sys.executable, "-m", "tests.lib.putter", address, pool]
        self.pool = pool
        self.versions: dict[int, int] = {}
        self.failed_calls = 0
        self._batches = 0
        self._more = threading.Condition()
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.put_more(1)

    def put_more(self, batches: int) -> None:
        """Wait for so many more acknowledgements."""
        with self._more:
            enough = self._batches + batches
            assert self._more.wait_for(lambda: self._batches >= enough, timeout=PATIENCE)

    def end(self) -> None:
        """Have it end, and take in all that it was told."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._end()

    def kill(self) -> None:
        """End it at once, and take in all that it was told."""
        self._process.kill()
        self._end()

    def _end(self) -> None:
        with self._process:
            self._reader.join(timeout=PATIENCE)
            self._process.kill()

    def verify(self, pool: tmem.Pool) -> None:
        """Every acknowledged page is there, in its acknowledged version or a later one of the same client."""
        pages = pool.get(1, self.versions)
        assert pages.keys() == self.versions.keys()
        for index, acknowledged in self.versions.items():
            _, version = struct.unpack_from("<II", pages[index])
            assert version >= acknowledged
            assert pages[index] == stamped(index, version)

    def _read(self) -> None:
        assert self._process.stdout is not None
        while len(ack := self._process.stdout.read(ACK.size)) == ACK.size:
            first, count, version = ACK.unpack(ack)
            with self._more:
                self._batches += 1
                self._more.notify_all()
            if count:
                self.versions.update(dict.fromkeys(range(first, first + count), version))
            else:
                self.failed_calls = first


def put(address: str, name: str) -> None:
    """Put batches at random places, each in a version higher than any before, until standard input ends."""
    rng = random.Random(name)
    with tmem.connect(address, timeout=PATIENCE) as store:
        pool = store.pool(name)
        for version in itertools.count(1):
            first = rng.randrange(PAGES - _BATCH)
            if all(pool.put(1, {index: stamped(index, version) for index in range(first, first + _BATCH)}).values()):
                os.write(sys.stdout.fileno(), ACK.pack(first, _BATCH, version))
            if select.select([sys.stdin], [], [], 0)[0]:
                break
        os.write(sys.stdout.fileno(), ACK.pack(store.client_stats().failed_calls, 0, 0))


if __name__ == "__main__":
    put(sys.argv[1], sys.argv[2])
