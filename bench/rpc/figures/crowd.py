"""Many clients at once: whether one of them waits longer than its share of the machine makes it.

The child's side is `python -m bench.rpc.figures.crowd ADDRESS CLIENTS`: so many connections of the asynchronous SDK in
one process. Told a number of calls it makes that many with each at once, and answers with how long each took.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import sys
import time
from collections.abc import Iterator
from functools import partial

import tmem
import tmem.aio
from bench.lib.child import Child, obey
from bench.lib.figures import Figure
from bench.lib.servers import Tmemd
from bench.rpc.setting import Setting, against
from bench.rpc.turns import in_turn

_CLIENTS = 200
_PROCESSES = 4
_FEW_CLIENTS = 8
_FEW_PROCESSES = 2
_FEW_CALLS = 200
_PAGES = 1024
_BATCH = 16
_ALONE_CALLS = 1600
_CROWD_CALLS = 40
_POOL = "crowd"


def measure(setting: Setting) -> Iterator[Figure]:
    """The 99th percentile with all at once, against one client's times the number of clients a core has to serve."""
    with Tmemd() as daemon, contextlib.ExitStack() as stack:
        _fill(setting, daemon)
        alone = _clients(stack, daemon, 1, 1)
        crowd = _clients(stack, daemon, _CLIENTS, _PROCESSES)
        runs = {
            "alone": partial(_p99_ms, alone, setting.scaled(_ALONE_CALLS)),
            "crowd": partial(_p99_ms, crowd, setting.scaled(_CROWD_CALLS)),
        }
        in_turn(runs, 1)
        taken = in_turn(runs, max(setting.pairs - 2, 3))
    share = _CLIENTS / len(os.sched_getaffinity(0))
    peer = f"1 client x {_CLIENTS} / cores"
    theirs = [p99 * share for p99 in taken["alone"]]
    yield against(setting, "crowd.get16", "ms, 99th percentile", taken["crowd"], peer, theirs)


def workers(setting: Setting) -> Iterator[Figure]:
    """What two workers serve to some clients, against one."""
    with Tmemd("--workers=2") as two, Tmemd() as one, contextlib.ExitStack() as stack:
        runs = {}
        for name, daemon in (("two", two), ("one", one)):
            _fill(setting, daemon)
            clients = _clients(stack, daemon, _FEW_CLIENTS, _FEW_PROCESSES)
            runs[name] = partial(_pages_per_second, clients, setting.scaled(_FEW_CALLS))
        in_turn(runs, 1)
        taken = in_turn(runs, setting.pairs)
    yield against(setting, "workers.get16", "pages/s", taken["two"], "one worker", taken["one"])


def _fill(setting: Setting, daemon: Tmemd) -> None:
    with tmem.connect(daemon.address) as store:
        pool = store.pool(_POOL, kind="persistent")
        if not all(pool.put_range(1, 0, setting.pages.range(0, _PAGES))):
            raise RuntimeError("the pages were not stored")


def _clients(stack: contextlib.ExitStack, daemon: Tmemd, count: int, processes: int) -> list[Child]:
    """So many clients, in so many processes."""
    each = count // processes
    return [stack.enter_context(Child("bench.rpc.figures.crowd", daemon.address, each)) for _ in range(processes)]


def _pages_per_second(clients: list[Child], calls: int) -> float:
    begun = time.perf_counter()
    for child in clients:
        child.order(calls)
    made = sum(len(child.answer()) for child in clients)
    return made * _BATCH / (time.perf_counter() - begun)


def _p99_ms(clients: list[Child], calls: int) -> float:
    for child in clients:
        child.order(calls)
    taken = sorted(milliseconds for child in clients for milliseconds in child.answer())
    return float(taken[len(taken) * 99 // 100])


# --- the child's side ---


async def _connect(address: str) -> tmem.aio.AsyncPool:
    return await tmem.aio.connect(address, timeout=60).find_pool(_POOL)


async def _calls(pool: tmem.aio.AsyncPool, count: int) -> list[float]:
    times = []
    for _ in range(count):
        first = random.randrange(_PAGES - _BATCH)
        begun = time.perf_counter()
        pages = await pool.get(1, range(first, first + _BATCH))
        times.append((time.perf_counter() - begun) * 1000)
        if len(pages) != _BATCH:
            raise RuntimeError(f"{_BATCH - len(pages)} pages were missed")
    return times


async def _all(pools: list[tmem.aio.AsyncPool], count: int) -> list[float]:
    """The calls of all clients, once each has the stream open that it had closed for want of use."""
    await asyncio.gather(*(_calls(pool, 1) for pool in pools))
    each = await asyncio.gather(*(_calls(pool, count) for pool in pools))
    return [milliseconds for times in each for milliseconds in times]


def _main(address: str, clients: int) -> None:
    with asyncio.Runner() as runner:
        pools = [runner.run(_connect(address)) for _ in range(clients)]
        obey(lambda calls: runner.run(_all(pools, calls)))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
