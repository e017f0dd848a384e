"""The engine alone, in one process: how dense against the kernel's zram, how fast from Python, how safe when killed."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tmem
from bench.demo.progress import progress
from bench.lib import zram
from bench.lib.kills import Kills

PAGE = 4096
_BATCH = 64
_SINGLES = 5_000
_KILLS = 10
_MEMORY = "160MiB"


@dataclass
class Shown:
    """What was stored of one kind of pages, and what came of it. Bytes and seconds."""

    name: str
    pages: bytes
    used: int = 0
    zram: int | None = None
    put_seconds: float = 0.0
    get_seconds: float = 0.0
    wrong: int = 0

    @property
    def count(self) -> int:
        """Pages."""
        return len(self.pages) // PAGE


@dataclass
class Alone:
    """All that was measured."""

    kinds: list[Shown]
    put_us: float = 0.0
    get_us: float = 0.0
    kills: Kills = field(default_factory=Kills)
    faults: list[str] = field(default_factory=list)
    no_zram: str | None = None


def measure(directory: Path, kinds: list[Shown]) -> Alone:
    """Everything, in order."""
    alone = Alone(kinds)
    arena = directory / "engine"
    with tmem.open(memory=_MEMORY, arena=arena) as store:
        for shown in kinds:
            progress(f"the engine alone: storing {shown.count:,} pages of {shown.name}, and getting them back")
            _store_and_fetch(store, shown)
        alone.put_us, alone.get_us = _time_single_pages(store, kinds[0])
        alone.faults += store.check()
    for shown in kinds:
        progress(f"storing the {shown.name} in zram, to compare")
        try:
            shown.zram = zram.memory_for([shown.pages])
        except zram.NoZramError as reason:
            alone.no_zram = str(reason)
    for n in range(_KILLS):
        progress(f"killing a writer in mid-put: {n + 1} of {_KILLS}")
        alone.kills.kill(arena, attended=n % 2 == 0)
    alone.faults += alone.kills.faults
    wrong = sum(shown.wrong for shown in kinds)
    if wrong:
        alone.faults.append(f"{wrong} pages did not come back as they were")
    return alone


def _store_and_fetch(store: tmem.Store, shown: Shown) -> None:
    """Put all pages, then get them all and compare, in batches. What the empty store takes is the first kind's."""
    before = store.stats()["used_bytes"] if store.pools() else 0
    pool = store.pool(shown.name)
    source = memoryview(shown.pages)
    for first, piece in _batches(source):
        begun = time.perf_counter()
        outcomes = pool.put_range(1, first, piece)
        shown.put_seconds += time.perf_counter() - begun
        shown.wrong += sum(outcome.refused for outcome in outcomes)
    shown.used = store.stats()["used_bytes"] - before
    buffer = bytearray(_BATCH * PAGE)
    for first, piece in _batches(source):
        into = memoryview(buffer)[: len(piece)]
        begun = time.perf_counter()
        pool.get_range(1, first, len(piece) // PAGE, into)
        shown.get_seconds += time.perf_counter() - begun
        if into != piece:
            shown.wrong += sum(into[at : at + PAGE] != piece[at : at + PAGE] for at in range(0, len(piece), PAGE))


def _batches(source: memoryview) -> Iterator[tuple[int, memoryview]]:
    step = _BATCH * PAGE
    for at in range(0, len(source), step):
        yield at // PAGE, source[at : at + step]


def _time_single_pages(store: tmem.Store, shown: Shown) -> tuple[float, float]:
    """Median microseconds of a put and a get of one page at random places."""
    pool = store.pool(shown.name)
    puts, gets = [], []
    for index in random.Random(1).choices(range(shown.count), k=_SINGLES):
        page = shown.pages[index * PAGE : (index + 1) * PAGE]
        begun = time.perf_counter_ns()
        pool.put(1, {index: page})
        put = time.perf_counter_ns()
        got = pool.get(1, [index])
        gets.append(time.perf_counter_ns() - put)
        puts.append(put - begun)
        shown.wrong += got[index] != page
    return statistics.median(puts) / 1000, statistics.median(gets) / 1000
