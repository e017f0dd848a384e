"""What a run measures with, and the disks that it compares."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

from bench.block.disks import Disk, NbdkitMemory, TmemExport
from bench.block.fio import Found, Job
from bench.block.image import Image
from bench.lib.corpus import PAGE
from bench.lib.figures import Figure
from bench.rpc.setting import say
from bench.rpc.turns import in_turn, ratio

SIZE = 512 << 20
COMPRESSIBLE = 50
MADE = f"fio, {COMPRESSIBLE} % compressible"
AnyDisk = Disk | TmemExport


@dataclass(frozen=True)
class Setting:
    """How often, for how long, and an image of real pages to read and write."""

    pairs: int
    seconds: float
    quick: bool
    image: Image


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
def sides(kind: type[NbdkitMemory], size: int, codec: str = "lz4", block: int = PAGE) -> Iterator[Sides]:
    """An export of ours, and a peer of that kind of the same size."""
    with ExitStack() as stack:
        ours = stack.enter_context(TmemExport(size, codec, block=block))
        reason = kind.missing()
        if reason is not None:
            say(f"{kind.name}: skipped, {reason}")
        yield Sides(ours, stack.enter_context(kind(size)) if reason is None else None)


def compared(
    setting: Setting, both: Sides, name: str, job: Job, corpus: str, work: Callable[[AnyDisk, Job], Found]
) -> Iterator[Figure]:
    """A job on both in turns: the latency of a request where one is under way, else how much there was in a second.

    And what a request costs the server's processors, which does not depend on what else the machine does.
    """
    found = in_turn({disk.name: partial(cost, disk, job, work) for disk in both.all}, setting.pairs)
    yield from figures(name, job, found, both.ours.name, both.peer.name if both.peer else "", corpus)


def figures(
    name: str, job: Job, found: Mapping[str, Sequence[Cost]], ours: str, peer: str, corpus: str
) -> Iterator[Figure]:
    """Those of a job: its speed, and its cost."""
    pick, unit = _PICKS["rate" if job.block > PAGE else "latency" if job.depth == 1 else "requests"]
    speeds = {disk: [pick(each.found) for each in runs] for disk, runs in found.items()}
    yield from against(name, unit, speeds, ours, peer, corpus)
    costs = {disk: [each.cpu_us for each in runs] for disk, runs in found.items()}
    yield from against(f"{name}.cpu", "CPU us/request", costs, ours, peer, corpus)


_PICKS: dict[str, tuple[Callable[[Found], float], str]] = {
    "rate": (lambda found: found.bytes_per_second / 1e6, "MB/s"),
    "latency": (lambda found: found.median_us, "us"),
    "requests": (lambda found: found.iops, "IOPS"),
}


@dataclass(frozen=True)
class Cost:
    """What fio found, and what the server's processors did for a request, in microseconds."""

    found: Found
    cpu_us: float


def cost(disk: AnyDisk, job: Job, work: Callable[[AnyDisk, Job], Found]) -> Cost:
    """Do it once."""
    before = disk.cpu_seconds()
    found = work(disk, job)
    return Cost(found, (disk.cpu_seconds() - before) / found.requests * 1e6)


def against(
    name: str, unit: str, found: Mapping[str, Sequence[float]], ours: str, peer: str, corpus: str
) -> Iterator[Figure]:
    """Ours against the peer, in turns; nothing where there is no peer."""
    if peer not in found:
        say(f"{name}: ours {statistics.median(found[ours]):,.1f} {unit}; there is no peer")
        return
    mine, theirs = found[ours], found[peer]
    yield Figure(name, statistics.median(mine), unit, peer, statistics.median(theirs), ratio(mine, theirs), corpus)
