"""Keeps a daemon busy with a bit of everything, so that dashboards have something to show: the profile `demo`.

python demo.py [ADDRESS] [--tls FOLDER] [--rounds N]: without `--rounds` it goes on until it is stopped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING

import tmem

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
FILES = 75
FILE_PAGES = 64
ROUNDS_A_SECOND = 20


def main() -> None:
    """Use the daemon, round by round."""
    parser = argparse.ArgumentParser(description="Keep a tmem daemon busy.")
    parser.add_argument("address", nargs="?", default="127.0.0.1:7717", help="HOST:PORT (%(default)s)")
    parser.add_argument("--rounds", type=int, help="stop after so many; a round takes some 50 ms (endless)")
    parser.add_argument("--tls", type=Path, metavar="FOLDER", help="of ca.pem, demo.pem and demo.key (plain text)")
    given = parser.parse_args()
    with tmem.connect(given.address, tls=_tls(given.tls)) as store:
        for _ in rounds(store) if given.rounds is None else itertools.islice(rounds(store), given.rounds):
            if given.rounds is None:
                time.sleep(1 / ROUNDS_A_SECOND)  # a demonstration, not a benchmark: leave the machine to others


def rounds(store: tmem.Store) -> Iterator[None]:
    """Use a store, a round each time."""
    rng = random.Random(7717)
    swap = store.pool("demo-swap", quota="64MiB")
    cache = store.pool("demo-cache", kind="ephemeral", shared=True, quota="16MiB")
    scratch = store.pool("demo-scratch", kind="ephemeral", allocator="zsmalloc", codec="zstd", quota="8MiB")
    pages = list(_pages(rng))
    for number in itertools.count():
        _swap(swap, rng, pages, number)
        _cache(cache, rng, pages)
        _scratch(scratch, rng, pages, number)
        yield


def _tls(folder: Path | None) -> tmem.Tls | None:
    if folder is None:
        return None
    return tmem.Tls(ca=folder / "ca.pem", cert=folder / "demo.pem", key=folder / "demo.key")


def _swap(pool: tmem.Pool, rng: random.Random, pages: list[bytes], number: int) -> None:
    """Swap 64 pages out, some older ones in, and free the oldest; every hundredth round into a frozen pool."""
    if number % 100 == 99:
        pool.freeze()
    pool.put(number % 200, {index: rng.choice(pages) for index in range(64)})
    pool.thaw()
    pool.get(max(0, number - rng.randrange(60)) % 200, range(64))
    pool.flush((number + 140) % 200, range(48))
    if number % 10 == 9:
        pool.flush_object((number + 130) % 200)


def _cache(pool: tmem.Pool, rng: random.Random, pages: list[bytes]) -> None:
    """Read files, a few of them far more often than the rest; what is not cached is put."""
    number = min(int(rng.paretovariate(0.9)), FILES)
    found = pool.get(number, range(FILE_PAGES))
    missing = [index for index in range(FILE_PAGES) if index not in found]
    if missing:
        pool.put(number, {index: pages[(number + index) % len(pages)] for index in missing})


def _scratch(pool: tmem.Pool, rng: random.Random, pages: list[bytes], number: int) -> None:
    """Write the same files over and over, and now and then a new one, for which an old one gives way."""
    pool.put(number % 50, {index: rng.choice(pages) for index in range(32)})
    pool.get(rng.randrange(60), range(16))
    if number % 8 == 0:
        pool.put(1000 + number, {0: rng.choice(pages)})


def _pages(rng: random.Random) -> Iterator[bytes]:
    """Pages that shrink well, badly and not at all, and same-filled ones."""
    words = [word.encode() for word in (tmem.__doc__ or "").split()]
    for share in (*range(0, 100, 4), 100):
        noise = os.urandom(PAGE * share // 100)
        yield (noise + b" ".join(rng.choices(words, k=PAGE)))[:PAGE]
    yield bytes(PAGE)


if __name__ == "__main__":
    main()
