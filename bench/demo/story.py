"""The story: a daemon, a host that swaps to it, two hosts that share it as a cache, and a kill -9 in the middle.

Every one is a process of its own and talks to the daemon through sockets.
"""

from __future__ import annotations

import re
import time
import urllib.request
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench.demo.progress import progress
from bench.demo.reader import Read
from bench.demo.swap import PAGE, POOL, Swapped
from bench.lib.child import Child
from bench.lib.servers import Tmemd

MEMORY = "256 MiB"
THREADS = 4
READERS = 2
_WORKERS = 2
_STARTS = (0, 50)


@dataclass
class Story:
    """What happened. Bytes, seconds."""

    workers: int
    swapped: Swapped
    reads: list[Read]
    away: float
    metrics: dict[str, float]
    swap_bytes: float
    resident: int
    resident_empty: int
    cpu: float
    seconds: float
    faults: list[str] = field(default_factory=list)

    @property
    def page_calls(self) -> int:
        """Pages put and got, over the network, found or not."""
        storage = sum(read.storage for read in self.reads)
        return self.swapped.pages + self.swapped.acknowledged + sum(read.asked for read in self.reads) + storage


def tell(pages: Path, files: list[str]) -> Story:
    """Let it happen, and collect the facts."""
    workers = _WORKERS if Tmemd.knows("--workers") else 1
    flags = [f"--workers={workers}"] if workers > 1 else []
    progress("starting a daemon")
    with Tmemd("--metrics=127.0.0.1:0", *flags, memory=MEMORY.replace(" ", "")) as daemon, ExitStack() as stack:
        empty, idle_cpu = daemon.resident_bytes(), daemon.cpu_seconds()
        begun = time.monotonic()
        swapper = stack.enter_context(Child("bench.demo.swap", daemon.address, pages, THREADS))
        readers = [stack.enter_context(Child("bench.demo.reader", daemon.address, *files)) for _ in range(READERS)]
        swapper.order(("out", None))
        for child, start in zip(readers, _STARTS, strict=True):
            child.order(start)
        _watch(swapper, until=0.5)
        cpu = daemon.cpu_seconds() - idle_cpu
        killed, away, started_cpu = _kill_and_restart(daemon)
        _watch(swapper, until=1.0)
        progress("swapping everything in again, and comparing each page")
        swapper.order(("in", killed))
        swapped = Swapped(**swapper.answer())
        progress("waiting for the hosts that read files")
        reads = [Read(**child.answer()) for child in readers]
        metrics = _scrape(daemon.metrics_url)
        story = Story(
            workers=workers,
            swapped=swapped,
            reads=reads,
            away=away,
            metrics=metrics,
            swap_bytes=metrics.get(f"tmem_footprint_bytes:{POOL}", 0.0),
            resident=daemon.resident_bytes(),
            resident_empty=empty,
            cpu=cpu + daemon.cpu_seconds() - started_cpu,
            seconds=time.monotonic() - begun,
        )
    story.faults += _faults(story)
    return story


def _watch(swapper: Child, until: float) -> None:
    while True:
        said = swapper.answer()
        progress(f"swapping out: {said['stored']:,} of {said['of']:,} pages; two hosts read files through the cache")
        if said["stored"] >= said["of"] * until:
            return


def _kill_and_restart(daemon: Tmemd) -> tuple[float, float, float]:
    """When it was killed, how long it was away, and what the new one had used of the processors when it was there."""
    progress("kill -9")
    killed = time.monotonic()
    daemon.kill()
    daemon.start()
    return killed, time.monotonic() - killed, daemon.cpu_seconds()


def _scrape(url: str) -> dict[str, float]:
    """The sum of each metric's samples, and the same for each pool as NAME:POOL."""
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode()
    sums: dict[str, float] = {}
    for name, labels, value in re.findall(r"^(\w+)(?:\{(.*)\})? (\S+)$", text, re.M):
        pool = re.search(r'\bpool="([^"]*)"', labels)
        for key in (name, *([f"{name}:{pool[1]}"] if pool else [])):
            sums[key] = sums.get(key, 0.0) + float(value)
    return sums


def _faults(story: Story) -> list[str]:
    swapped, wrong = story.swapped, sum(read.wrong for read in story.reads)
    checks = {
        f"{swapped.lost} acknowledged pages are lost": swapped.lost,
        f"{swapped.wrong} pages came back wrong from the swap": swapped.wrong,
        f"{wrong} pages of the cache were not the file's": wrong,
        "no page was acknowledged before the daemon was killed": not swapped.before_kill,
        "the metrics do not say how many pages are held": not story.metrics.get("tmem_pages"),
    }
    return [text for text, fault in checks.items() if fault]


def raw_bytes(story: Story) -> int:
    """What the swapped pages took in the host that is out of memory."""
    return story.swapped.acknowledged * PAGE
