"""Time from the exec of a daemon on an arena that holds 2 GiB to its first served get: `python -m tests.bench.restart`.

After a clean stop, and after `kill -9` while clients put. One JSON line for each.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc

import tmem
from tests.daemon import OID, Client, Daemon
from tests.support import run

if TYPE_CHECKING:
    from collections.abc import Iterator

HELD = 2 << 30
_BATCH = 256
_POOL = "held"


def lines(held: int = HELD, rounds: int = 3) -> Iterator[dict[str, Any]]:
    """The medians of some restarts of each kind, on an arena in /dev/shm that is gone afterwards."""
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="tmem-restart-") as place:
        arena = Path(place) / "arena"
        pages = _fill(arena, held)
        flags = (f"--arena={arena}", f"--memory={held * 3 // 2}")
        for name, end in (("clean", _stop), ("killed", _kill)):
            took = []
            for _ in range(rounds):
                end(flags)
                took.append(_first_get(flags))
            yield {
                "name": f"restart.{name}",
                "value": round(statistics.median(took), 3),
                "unit": "s",
                "worst": round(max(took), 3),
                "rounds": rounds,
                "held_bytes": held,
                "held_pages": pages,
            }


def _fill(arena: Path, held: int) -> int:
    """Put pages of about half their size until the arena takes `held` bytes; how many there are."""
    batch, pages = run(0, _BATCH), 0
    with tmem.open(memory=held * 3 // 2, arena=arena) as store:
        pool = store.pool(_POOL)
        while store.stats()["used_bytes"] < held:
            for _ in range(16):
                assert pool.put_range(OID, pages, batch).all_stored
                pages += _BATCH
    return pages


def _first_get(flags: tuple[str, ...]) -> float:
    """Seconds until a daemon that is started now has served a get."""
    with _daemon(flags) as (running, begun):
        client = Client(running.address)
        client.open(_POOL)
        assert client.get([0, 1]).keys() == {0, 1}
        took = time.perf_counter() - begun
        client.close()
        assert running.stop() == 0
    return took


def _stop(flags: tuple[str, ...]) -> None:
    with _daemon(flags) as (running, _):
        assert running.stop() == 0


def _kill(flags: tuple[str, ...]) -> None:
    """Kill a daemon that writers keep at work."""
    with _daemon(flags) as (running, _):
        busy = threading.Barrier(5)
        writers = [threading.Thread(target=_write, args=(running.address, at, busy)) for at in range(4)]
        for writer in writers:
            writer.start()
        busy.wait()
        running.kill()
        for writer in writers:
            writer.join()


def _write(address: str, at: int, busy: threading.Barrier) -> None:
    """Put the same pages over and over until the daemon is gone."""
    client = Client(address)
    client.open(_POOL)
    page = run(0, 1)
    pages = dict.fromkeys(range(at * 64, at * 64 + 64), page)
    client.put(pages)
    busy.wait()
    with suppress(grpc.RpcError):
        while True:
            client.put(pages)
    client.close()


@contextmanager
def _daemon(flags: tuple[str, ...]) -> Iterator[tuple[Daemon, float]]:
    begun = time.perf_counter()
    running = Daemon(*flags, memory=flags[-1].partition("=")[2])
    try:
        yield running, begun
    finally:
        with suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if running.process.poll() is None:
                running.kill()


if __name__ == "__main__":
    for line in lines(int(os.environ.get("TMEM_RESTART_BYTES", HELD))):
        json.dump(line, sys.stdout)
        print(flush=True)
