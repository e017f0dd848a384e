"""How long a daemon is away: from the start of its process until the first page is served, with all that it held.

The child's side is `python -m bench.rpc.figures.restart ADDRESS`: it puts pages for ever, so that the daemon is
killed in the middle of changes.
"""

from __future__ import annotations

import random
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

import tmem
from bench.lib.child import Child, reply
from bench.lib.figures import Figure
from bench.lib.servers import Tmemd
from bench.rpc.clients import BATCH, Tmem
from bench.rpc.setting import Setting, say

_GIB_PAGES = (1 << 30) // 4096
_TIMES = 3


def measure(setting: Setting) -> Iterator[Figure]:
    """The slowest of some restarts each: stopped in order, and killed while a client puts pages."""
    count = int(setting.gib * _GIB_PAGES)
    with Tmemd(memory=str(count * 4096 + (256 << 20))) as daemon:
        say(f"  filling a daemon with {setting.gib:g} GiB of pages")
        client = Tmem(daemon.address)
        for first in range(0, count, 1024):
            if not client.put_large(first, setting.pages.range(first, min(1024, count - first))):
                raise RuntimeError("not all pages were stored")
        client.close()
        ends: dict[str, Callable[[], None]] = {
            "restart.clean": daemon.stop,
            "restart.killed": lambda: _kill_at_work(daemon),
        }
        for name, end in ends.items():
            taken = []
            for _ in range(_TIMES):
                end()
                taken.append(_until_served(setting, daemon, random.randrange(count)))
            yield Figure(name, max(taken), f"s, {setting.gib:g} GiB held", "none", 0.0, max(taken), setting.pages.name)


def _until_served(setting: Setting, daemon: Tmemd, number: int) -> float:
    begun = time.monotonic()
    daemon.start()
    client = Tmem(daemon.address)
    page = client.get([number])
    seconds = time.monotonic() - begun
    client.close()
    if page != setting.pages.batch(number, 1):
        raise RuntimeError(f"page {number} was lost")
    return seconds


def _kill_at_work(daemon: Tmemd) -> None:
    with Child("bench.rpc.figures.restart", daemon.address) as writer:
        for _ in range(20):
            writer.answer()
        daemon.kill()


def _write(address: str) -> NoReturn:
    rng = random.Random()
    page = rng.randbytes(3000).ljust(4096, b"\0")
    with tmem.connect(address) as store:
        pool = store.pool("writer", kind="persistent", quota="64MiB")
        while True:
            pool.put(1, dict.fromkeys(rng.sample(range(8192), BATCH), page))
            reply(BATCH)


if __name__ == "__main__":
    _write(sys.argv[1])
