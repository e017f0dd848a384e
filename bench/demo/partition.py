"""A host whose kernel swaps to a block device: pages of 4 KiB to an export of the daemon and back, each compared.

A process of its own: `python -m bench.demo.partition SOCKET PAGES`, PAGES a file. It begins when it is told
anything, and goes round until it is told again; then it says what came of it.
"""

from __future__ import annotations

import random
import select
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bench.block.wire import PAGE, Connection
from bench.lib.child import orders, reply

EXPORT = "swap0"
_BATCH = 64


@dataclass
class Partition:
    """Pages swapped out and in again, how many of these were wrong, and median microseconds of one."""

    out: int = 0
    wrong: int = 0
    out_us: float = 0.0
    in_us: float = 0.0


@dataclass
class _Host:
    connection: Connection
    pages: bytes
    outs: list[float] = field(default_factory=list)
    ins: list[float] = field(default_factory=list)
    wrong: int = 0

    def go_round(self) -> None:
        """Some pages out and in again, until there is another order."""
        rng, count = random.Random(3), len(self.pages) // PAGE
        while not self.ins or not select.select([sys.stdin], [], [], 0)[0]:
            slots = rng.sample(range(count), k=min(_BATCH, count))
            for slot in slots:
                begun = time.perf_counter()
                self.connection.write(slot * PAGE, self._page(slot))
                self.outs.append(time.perf_counter() - begun)
            for slot in slots:
                begun = time.perf_counter()
                page = self.connection.read(slot * PAGE, PAGE)
                self.ins.append(time.perf_counter() - begun)
                self.wrong += page != self._page(slot)

    def found(self) -> Partition:
        """What came of it."""
        out_us, in_us = (statistics.median(times) * 1e6 for times in (self.outs, self.ins))
        return Partition(len(self.outs), self.wrong, out_us, in_us)

    def _page(self, slot: int) -> bytes:
        return self.pages[slot * PAGE : (slot + 1) * PAGE]


def _main(path: str, pages: str) -> None:
    with Connection(path, EXPORT) as connection:
        host = _Host(connection, Path(pages).read_bytes())
        told: Any = orders()
        next(told)
        host.go_round()
        next(told)
        reply(asdict(host.found()))


if __name__ == "__main__":
    _main(sys.argv[1], sys.argv[2])
