"""Reads of a slow file with and without a store in front: `python -m bench.files`.

The file's every read takes a millisecond longer than it would; the store is embedded, and then a daemon on loopback.
A figure is the elapsed time of one pass and the share of pages that did not wait for the storage. *Cold* is the first
pass, over an empty store; *warm* is a later one by a process that has nothing at hand.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest import mock

import tmem
from bench.lib.servers import Tmemd
from tmem._files.cached_file import CachedFile
from tmem._files.source import FileSource

PAGE = 16384
PAGES = 2000
DELAY = 0.001
SETTLE = 0.1


class SlowSource(FileSource):
    """A file on storage that takes `DELAY` for each read."""

    def read_into(self, view: memoryview, offset: int) -> int:
        time.sleep(DELAY)
        return super().read_into(view, offset)


def contents() -> bytes:
    """The file: pages that compress to about half."""
    rng = random.Random(1)
    return b"".join(rng.randbytes(PAGE // 2).ljust(PAGE, b".") for _ in range(PAGES))


def sequential() -> Iterator[int]:
    yield from range(PAGES)


def strided() -> Iterator[int]:
    yield from range(0, PAGES, 5)


def interleaved() -> Iterator[int]:
    for at in range(PAGES // 4):
        yield at
        yield PAGES // 2 + at


def scattered() -> Iterator[int]:
    rng = random.Random(1)
    for _ in range(PAGES):
        yield rng.randrange(PAGES)


def plain(path: Path, pattern: Callable[[], Iterator[int]]) -> float:
    source = SlowSource(path, None)
    page = memoryview(bytearray(PAGE))
    begun = time.perf_counter()
    for index in pattern():
        source.read_into(page, index * PAGE)
    elapsed = time.perf_counter() - begun
    source.close()
    return elapsed


def cached(file: CachedFile, pattern: Callable[[], Iterator[int]]) -> tuple[float, tmem.FileStats]:
    with file:
        begun = time.perf_counter()
        for index in pattern():
            assert len(file.read_at(index * PAGE, PAGE)) == PAGE
        return time.perf_counter() - begun, file.stats()


def measure(way: str, store: tmem.Store, path: Path) -> None:
    print(
        f"{way:<10} {'pattern':<12} {'plain s':>8} {'cold s':>8} {'hit':>5} {'warm s':>8} {'hit':>5}  read-ahead wasted"
    )
    for pattern in (sequential, strided, interleaved, scattered):
        times = [f"{plain(path, pattern):8.2f}"]
        wasted = 0
        for _ in range(2):
            elapsed, stats = cached(tmem.open_cached(path, store=store, settle=SETTLE, patience=5), pattern)
            asked = stats.pages_hit + stats.pages_missed + stats.bypassed
            times.append(f"{elapsed:8.2f} {stats.pages_hit / asked:5.0%}")
            wasted += stats.readahead_wasted
        store.find_pool("cache0").destroy()
        print(f"{'':<10} {pattern.__name__:<12} {' '.join(times)}  {wasted} pages")


def main() -> None:
    with tempfile.TemporaryDirectory() as directory, mock.patch("tmem._files.cached_file.FileSource", SlowSource):
        path = Path(directory) / "file"
        path.write_bytes(contents())
        time.sleep(2 * SETTLE)
        with tmem.open(memory="256MiB") as store:
            measure("embedded", store, path)
        with Tmemd(memory="256MiB") as running, tmem.connect(running.address) as store:
            measure("daemon", store, path)


if __name__ == "__main__":
    main()
