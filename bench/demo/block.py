"""The block front at work: hosts boot from one image on a slow SAN, first without help, then through gateways.

While they do so the second time another host swaps to an export of the same daemon. Every one is a process of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from bench.block.disks import NbdDaemon
from bench.block.san import hosts, traces
from bench.block.san.hosts import Outcome, Plan
from bench.block.san.volume import DELAY
from bench.demo.partition import EXPORT, Partition
from bench.demo.progress import progress
from bench.lib.child import Child

HOSTS = 4
_TOUCHED = 16 << 20
_SEED = 5


@dataclass
class Block:
    """What happened, with and without gateways, and to the host that swapped."""

    plan: Plan
    without: Outcome
    through: Outcome
    swap: Partition
    faults: list[str] = field(default_factory=list)


def show(image: Path, swapped: Path) -> Block:
    """Let it happen: `image` is what the hosts boot from, `swapped` the pages that are swapped out and in."""
    arguments = (image.stat().st_size, _TOUCHED, _SEED)
    apart = len(traces.boot(*arguments)) * DELAY
    plan = Plan(image, "boot", arguments, hosts=HOSTS, apart=apart, flags=hosts.SHARED)
    progress(f"{HOSTS} hosts boot from a slow SAN, without a cache")
    without = hosts.run(plan, cached=False)
    swaps: list[Partition] = []

    @contextmanager
    def swapping(daemon: NbdDaemon) -> Iterator[None]:
        daemon.create(EXPORT, swapped.stat().st_size)
        with Child("bench.demo.partition", daemon.socket, swapped) as child:
            child.order(None)
            yield
            child.order("enough")
            swaps.append(Partition(**child.answer()))

    progress(f"{HOSTS} hosts boot through gateways, and another one swaps")
    through = hosts.run(plan, cached=True, beside=swapping)
    block = Block(plan, without, through, swaps[0])
    if swaps[0].wrong:
        block.faults.append(f"{swaps[0].wrong} pages came back wrong from the swap export")
    return block
