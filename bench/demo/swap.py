"""A host that has run out of memory: it swaps pages out to a daemon, as the kernel's frontswap did, and back in.

A process of its own: `python -m bench.demo.swap ADDRESS PAGES THREADS`, PAGES a file. It says how far it is; told
when the daemon was killed it swaps everything in again, compares each page, and says what came of it.
"""

from __future__ import annotations

import statistics
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tmem
from bench.lib.child import orders, reply

PAGE = 4096
POOL = "swap0"
_AREA = 0
_STEP = 128


@dataclass
class Swapped:
    """What came of all pages. Times in microseconds."""

    pages: int
    acknowledged: int
    before_kill: int
    refused: int
    lost: int
    wrong: int
    store_median: float
    store_p99: float
    load_median: float
    load_p99: float
    longest_seconds: float
    retries: int
    new_epochs: int


class _Host:
    def __init__(self, address: str, pages: bytes, threads: int) -> None:
        self._store = tmem.connect(address, timeout=20)
        self._swap = tmem.Frontswap(self._store.pool(POOL, kind="persistent"))
        self._swap.init(_AREA)
        self._pages = pages
        self._workers = ThreadPoolExecutor(threads)
        self._kept: dict[int, float] = {}
        self._stored: list[float] = []
        self._loaded: list[float] = []
        self._lock = threading.Lock()
        self.count = len(pages) // PAGE

    def page(self, offset: int) -> bytes:
        return self._pages[offset * PAGE : (offset + 1) * PAGE]

    def swap_out(self) -> None:
        """Store every page by itself, several at once."""
        for done, _ in enumerate(self._workers.map(self._out, range(self.count)), 1):
            if done % _STEP == 0 or done == self.count:
                reply({"stored": done, "of": self.count})

    def _out(self, offset: int) -> None:
        begun = time.perf_counter()
        kept = self._swap.store(_AREA, offset, self.page(offset))
        now = time.monotonic()
        with self._lock:
            self._stored.append(time.perf_counter() - begun)
            if kept:
                self._kept[offset] = now

    def swap_in(self, killed_at: float) -> Swapped:
        """Load every acknowledged page and compare it."""
        verdicts = list(self._workers.map(self._in, self._kept))
        stats = self._store.client_stats()
        return Swapped(
            pages=self.count,
            acknowledged=len(self._kept),
            before_kill=sum(at < killed_at for at in self._kept.values()),
            refused=self.count - len(self._kept),
            lost=verdicts.count("lost"),
            wrong=verdicts.count("wrong"),
            store_median=statistics.median(self._stored) * 1e6,
            store_p99=_p99(self._stored) * 1e6,
            load_median=statistics.median(self._loaded) * 1e6,
            load_p99=_p99(self._loaded) * 1e6,
            longest_seconds=max(self._stored),
            retries=stats.retries,
            new_epochs=stats.new_epochs,
        )

    def _in(self, offset: int) -> str:
        begun = time.perf_counter()
        try:
            page = self._swap.load(_AREA, offset)
        except (tmem.LostPageError, tmem.CorruptPageError):
            return "lost"
        taken = time.perf_counter() - begun
        with self._lock:
            self._loaded.append(taken)
        return "right" if page == self.page(offset) else "wrong"


def _p99(times: list[float]) -> float:
    return sorted(times)[len(times) * 99 // 100]


def _main(address: str, path: str, threads: int) -> None:
    host = _Host(address, Path(path).read_bytes(), threads)
    work: dict[str, Any] = {"out": lambda _: host.swap_out(), "in": lambda at: reply(asdict(host.swap_in(at)))}
    for what, argument in orders():
        work[what](argument)


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2], int(sys.argv[3]))
