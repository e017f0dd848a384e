"""Sequential requests of 1 MiB; and two connections against one."""

from __future__ import annotations

import time
from collections.abc import Iterator

import tmem
from bench.block import fio
from bench.block.disks import NbdkitMemory
from bench.block.fio import Found, Job
from bench.block.setting import (
    COMPRESSIBLE,
    MADE,
    SIZE,
    AnyDisk,
    Cost,
    Setting,
    Sides,
    against,
    compared,
    cost,
    sides,
)
from bench.block.wire import Connection
from bench.lib.corpus import PAGE
from bench.lib.figures import Figure
from bench.rpc.turns import in_turn

_MIB = 1 << 20
_DEPTH = 4
_ENGINE = "the engine's own put, one thread"


def sequential(setting: Setting) -> Iterator[Figure]:
    """Reads and writes against a device that does not compress; writes also against all that one core can compress."""
    with sides(NbdkitMemory, SIZE) as both:
        _fill(both)
        for rw in ("read", "write"):
            job = Job(rw, _MIB, _DEPTH, SIZE, setting.seconds, compressible=COMPRESSIBLE)
            yield from compared(setting, both, f"sequential.{rw}", job, MADE, _run)
        with Connection(str(both.ours.socket), both.ours.export) as connection:
            pages = connection.read(0, 32 * _MIB)
        runs = {"tmemd": lambda: _run(both.ours, job).bytes_per_second / 1e6, _ENGINE: lambda: _engine(pages)}
        yield from against("sequential.write.limit", "MB/s", in_turn(runs, setting.pairs), "tmemd", _ENGINE, MADE)


def connections(setting: Setting) -> Iterator[Figure]:
    """Two connections against one, on the clock and by what the threads of the connections could do with a core each.

    On the clock two cores have the client to carry too; the same of the peer says what they give to anybody.
    """
    with sides(NbdkitMemory, SIZE) as both:
        _fill(both)
        for rw in ("read", "write"):
            for depth in (1, 16):
                for disk in both.all:
                    name = f"connections.{rw}.depth{depth}" + ("" if disk is both.ours else ".limit")
                    yield from _two(setting, disk, name, rw, depth)


def _two(setting: Setting, disk: AnyDisk, name: str, rw: str, depth: int) -> Iterator[Figure]:
    def with_connections(count: int) -> Cost:
        job = Job(f"rand{rw}", PAGE, depth, SIZE, setting.seconds, jobs=count, compressible=COMPRESSIBLE)
        return cost(disk, job, _run)

    two, one = f"{disk.name}, two", f"{disk.name}, one connection"
    taken = in_turn({two: lambda: with_connections(2), one: lambda: with_connections(1)}, setting.pairs)
    on_the_clock = {name: [each.found.iops for each in runs] for name, runs in taken.items()}
    yield from against(f"{name}.clock", "IOPS", on_the_clock, two, one, MADE)
    if depth == 1:
        return
    by_time = {name: [count / each.cpu_us * 1e6 for each in taken[name]] for name, count in ((two, 2), (one, 1))}
    yield from against(name, "requests/s of a core each", by_time, two, one, MADE)


def _fill(both: Sides) -> None:
    for disk in both.all:
        fio.run(disk.uri, Job("write", _MIB, _DEPTH, SIZE, compressible=COMPRESSIBLE))


def _run(disk: AnyDisk, job: Job) -> Found:
    return fio.run(disk.uri, job)


def _engine(pages: bytes) -> float:
    """The same pages into an engine in this process, as many a call, in MB/s. It replaces what is there already."""
    with tmem.open(memory="128MiB") as store:
        pool = store.pool("limit", kind="persistent")
        for _ in range(2):
            begun = time.perf_counter()
            for at in range(0, len(pages), _MIB):
                pool.put_range(1, at // PAGE, memoryview(pages)[at : at + _MIB])
            taken = time.perf_counter() - begun
        return len(pages) / taken / 1e6
