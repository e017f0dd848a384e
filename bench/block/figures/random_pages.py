"""Requests of 4 KiB at random places.

Pages that fio makes against a device that keeps them as they are, and real
pages against one that compresses them as well.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from bench.block import fio
from bench.block.disks import NbdkitMemory, NbdkitZstd, TmemExport
from bench.block.fio import Found, Job
from bench.block.setting import COMPRESSIBLE, MADE, SIZE, AnyDisk, Setting, Sides, compared, cost, figures, sides
from bench.block.wire import Connection
from bench.lib.corpus import PAGE
from bench.lib.figures import Figure
from bench.rpc.turns import in_turn

_DEPTHS = (1, 32)
_DISTINCT = 16 << 20


def made(setting: Setting) -> Iterator[Figure]:
    """Compressible pages that fio makes."""
    with sides(NbdkitMemory, SIZE) as both:
        for disk in both.all:
            fio.run(disk.uri, Job("write", 1 << 20, 4, SIZE, compressible=COMPRESSIBLE))
        for rw in ("read", "write"):
            for depth in _DEPTHS:
                job = Job(f"rand{rw}", PAGE, depth, SIZE, setting.seconds, compressible=COMPRESSIBLE)
                yield from compared(setting, both, f"random.{rw}.depth{depth}", job, MADE, _run)


def polling(setting: Setting) -> Iterator[Figure]:
    """One request at a time where a connection looks for the next one a while, against where it sleeps at once."""
    with TmemExport(SIZE) as polls, TmemExport(SIZE, poll=0) as sleeps:
        asleep = f"{sleeps.name} --nbd-poll=0"
        both = {polls.name: polls, asleep: sleeps}
        for disk in both.values():
            fio.run(disk.uri, Job("write", 1 << 20, 4, SIZE, compressible=COMPRESSIBLE))
        for rw in ("read", "write"):
            job = Job(f"rand{rw}", PAGE, 1, SIZE, setting.seconds, compressible=COMPRESSIBLE)
            runs = {name: partial(cost, disk, job, _run) for name, disk in both.items()}
            yield from figures(f"polling.{rw}.depth1", job, in_turn(runs, setting.pairs), polls.name, asleep, MADE)


def _run(disk: AnyDisk, job: Job) -> Found:
    return fio.run(disk.uri, job)


def real(setting: Setting) -> Iterator[Figure]:
    """Pages of a real file system."""
    pages = setting.image.pages(_DISTINCT)

    def write(disk: AnyDisk, job: Job) -> Found:
        return fio.run_with_pages(disk.uri, job, pages)

    with sides(NbdkitZstd, setting.image.size) as both:
        load(setting, both)
        for rw in ("read", "write"):
            for depth in _DEPTHS:
                job = Job(f"rand{rw}", PAGE, depth, setting.image.size, setting.seconds)
                work = write if rw == "write" else _run
                yield from compared(setting, both, f"real.{rw}.depth{depth}", job, setting.image.what, work)


def load(setting: Setting, both: Sides) -> None:
    """Write the image into both."""
    for disk in both.all:
        with Connection(str(disk.socket), disk.export) as connection:
            connection.write_all(setting.image.pieces())
