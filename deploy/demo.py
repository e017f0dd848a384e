"""Keeps a daemon busy with a bit of everything, so that dashboards have something to show: the profile `demo`.

python demo.py [ADDRESS] [--rounds N]: without `--rounds` it goes on until it is stopped.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import time
from typing import TYPE_CHECKING

import tmem

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 4096
FILES = 200
FILE_PAGES = 64


def main() -> None:
    """Use the daemon, round by round."""
    parser = argparse.ArgumentParser(description="Keep a tmem daemon busy.")
    parser.add_argument("address", nargs="?", default="127.0.0.1:7717", help="HOST:PORT (%(default)s)")
    parser.add_argument("--rounds", type=int, help="stop after so many; a round takes some 50 ms (endless)")
    given = parser.parse_args()
    rng = random.Random(7717)
    with tmem.connect(given.address) as store:
        swap = store.pool("demo-swap", quota="64MiB")
        cache = store.pool("demo-cache", kind="ephemeral", shared=True, quota="16MiB")
        scratch = store.pool("demo-scratch", kind="ephemeral", allocator="zsmalloc", codec="zstd", quota="8MiB")
        pages = list(_pages(rng))
        for number in range(given.rounds) if given.rounds else itertools.count():
            _swap(swap, rng, pages, number)
            _cache(cache, rng, pages)
            scratch.put(number % 500, {index: rng.choice(pages) for index in range(32)})
            scratch.get(rng.randrange(500), range(16))
            if number % 50 == 49:
                store.compact()
            if not given.rounds:
                time.sleep(0.05)  # a demonstration, not a benchmark: leave the machine to others


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


def _pages(rng: random.Random) -> Iterator[bytes]:
    """Pages that shrink well, badly and not at all, and same-filled ones."""
    words = [word.encode() for word in (tmem.__doc__ or "").split()]
    for share in (*range(0, 100, 4), 100):
        noise = os.urandom(PAGE * share // 100)
        yield (noise + b" ".join(rng.choices(words, k=PAGE)))[:PAGE]
    yield bytes(PAGE)


if __name__ == "__main__":
    main()
