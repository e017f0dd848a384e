"""What a run measures with, and the disks that it compares."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

from tests.bench.block.disks import Disk, NbdkitMemory, TmemExport
from tests.bench.block.fio import Found, Job
from tests.bench.block.image import Image
from tests.bench.figures import Figure
from tests.bench.rpc.setting import say
from tests.bench.rpc.turns import in_turn, ratio

K = TypeVar("K")

SIZE = 512 << 20
COMPRESSIBLE = 50
MADE = f"fio, {COMPRESSIBLE} % compressible"
AnyDisk = Disk | TmemExport


@dataclass(frozen=True)
class Setting:
    """How often, for how long, and images of real pages: one to read and write, a large one to hold."""

    pairs: int
    seconds: float
    quick: bool
    image: Image
    large: Image


@dataclass(frozen=True)
class Sides:
    """Ours and the peer, both running; the peer is absent where this machine does not have it."""

    ours: TmemExport
    peer: NbdkitMemory | None

    @property
    def all(self) -> list[AnyDisk]:
        """Who there is."""
        return [self.ours] if self.peer is None else [self.ours, self.peer]


@contextmanager
def sides(kind: type[NbdkitMemory], size: int, codec: str = "lz4") -> Iterator[Sides]:
    """An export of ours, and a peer of that kind of the same size."""
    with ExitStack() as stack:
        ours = stack.enter_context(TmemExport(size, codec))
        reason = kind.missing()
        if reason is not None:
            say(f"{kind.name}: skipped, {reason}")
        yield Sides(ours, stack.enter_context(kind(size)) if reason is None else None)


def compared(
    setting: Setting, both: Sides, name: str, job: Job, corpus: str, work: Callable[[AnyDisk, Job], Found]
) -> Iterator[Figure]:
    """A job on both in turns: the latency of a request where one is under way, else how much there was in a second."""
    runs = {disk.name: partial(work, disk, job) for disk in both.all}
    found = in_turn(runs, setting.pairs)
    peer = both.peer.name if both.peer else ""
    yield from against(name, unit_of(job), values(job, found), both.ours.name, peer, corpus)


def unit_of(job: Job) -> str:
    """Of the figure of a job."""
    return "MB/s" if job.block > 1 << 16 else "us" if job.depth == 1 and job.jobs == 1 else "IOPS"


def values(job: Job, found: Mapping[K, Sequence[Found]]) -> dict[K, list[float]]:
    """The figures of a job, of each that did it."""
    pick: dict[str, Callable[[Found], float]] = {
        "MB/s": lambda each: each.bytes_per_second / 1e6,
        "us": lambda each: each.median_us,
        "IOPS": lambda each: each.iops,
    }
    return {name: [pick[unit_of(job)](each) for each in runs] for name, runs in found.items()}


def against(
    name: str, unit: str, found: Mapping[str, Sequence[float]], ours: str, peer: str, corpus: str
) -> Iterator[Figure]:
    """Ours against the peer, in turns; nothing where there is no peer."""
    if peer not in found:
        say(f"{name}: ours {statistics.median(found[ours]):,.1f} {unit}; there is no peer")
        return
    mine, theirs = found[ours], found[peer]
    yield Figure(name, statistics.median(mine), unit, peer, statistics.median(theirs), ratio(mine, theirs), corpus)
