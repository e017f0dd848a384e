"""The demo: real pages of this machine through the Python API, and how dense, how fast and how safe that was.

`python -m tests.bench.demo` takes less than a minute, leaves nothing behind, and fails if anything is not as it should.
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import tmem
from tests.bench import corpus, ending, machine, zram
from tests.bench.kills import Kills
from tests.bench.live import LiveProcess

PAGE = 4096
_BATCH = 64
_MEGABYTES = 64
_SINGLES = 10_000
_KILLS = 20
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
class Report:
    """All that the screen shows."""

    kinds: list[Shown]
    put_us: float = 0.0
    get_us: float = 0.0
    kills: Kills = field(default_factory=Kills)
    faults: list[str] = field(default_factory=list)
    no_zram: str | None = None


def collect() -> list[Shown]:
    """Pages of shared libraries, and of the memory of live processes."""
    limit = _MEGABYTES * 1_000_000
    makers = {"libraries": corpus.libraries, "heaps": corpus.heaps}
    kinds = []
    for name, pages in makers.items():
        _progress(f"reading {name} of this machine")
        kinds.append(Shown(name, b"".join(pages(limit))))
    return kinds


def store_and_fetch(store: tmem.Store, shown: Shown) -> None:
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


def time_single_pages(store: tmem.Store, shown: Shown) -> tuple[float, float]:
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


def run(directory: Path) -> Report:
    """Everything, in order."""
    report = Report(collect())
    arena = directory / "arena"
    with tmem.open(memory=_MEMORY, arena=arena) as store:
        for shown in report.kinds:
            _progress(f"storing {shown.count:,} pages of {shown.name}, and getting them back")
            store_and_fetch(store, shown)
        _progress("timing single pages")
        report.put_us, report.get_us = time_single_pages(store, report.kinds[0])
        report.faults += store.check()
    for shown in report.kinds:
        _progress(f"storing the {shown.name} in zram, to compare")
        try:
            shown.zram = zram.memory_for([shown.pages])
        except zram.NoZramError as reason:
            report.no_zram = str(reason)
    for n in range(_KILLS):
        _progress(f"killing a writer in mid-put: {n + 1} of {_KILLS}")
        report.kills.kill(arena, attended=n % 2 == 0)
    report.faults += report.kills.faults
    wrong = sum(shown.wrong for shown in report.kinds)
    if wrong:
        report.faults.append(f"{wrong} pages did not come back as they were")
    return report


# --- the screen ---


def screen(report: Report) -> str:
    """The report as text."""
    libraries, heaps = report.kinds
    pages = sum(shown.count for shown in report.kinds)
    lines = [
        f"tmem on {machine.in_words()}",
        "",
        f"{pages:,} real pages of 4 KiB: {libraries.count:,} of shared libraries, {heaps.count:,} of the memory of",
        f'{len(LiveProcess.KINDS)} live Python processes, through tmem.open(memory="{_MEMORY}", arena=...)',
        "",
        *_dense(report),
        "",
        *_fast(report),
        "",
        *_safe(report, pages),
    ]
    return "\n".join(lines)


def _row(label: str, cells: list[str], note: str = "") -> str:
    return f"  {label:<38}{''.join(f'{cell:>13}' for cell in cells)}   {note}".rstrip()


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _dense(report: Report) -> list[str]:
    kinds = report.kinds
    lines = [
        _row("How dense", [shown.name for shown in kinds]),
        _row("as they are", [_mib(len(shown.pages)) for shown in kinds]),
    ]
    theirs = [shown.zram for shown in kinds if shown.zram is not None]
    if len(theirs) == len(kinds):
        lines.append(_row("in the kernel's zram, lz4", [_mib(size) for size in theirs]))
    else:
        lines.append(_row("in the kernel's zram, lz4", ["-" for _ in kinds], f"({report.no_zram})"))
    smaller = [f"{len(shown.pages) / shown.used:.2f} times" for shown in kinds]
    return [
        *lines,
        _row("in tmem, all metadata counted", [_mib(shown.used) for shown in kinds]),
        _row("smaller than they are", smaller),
    ]


def _fast(report: Report) -> list[str]:
    kinds = report.kinds

    def speed(seconds: list[float]) -> tuple[list[str], list[str]]:
        pairs = list(zip(kinds, seconds, strict=True))
        rates = [f"{len(shown.pages) / taken / 1e9:.2f} GB/s" for shown, taken in pairs]
        return rates, [f"{taken / shown.count * 1e6:.1f} us" for shown, taken in pairs]

    puts, put_pages = speed([shown.put_seconds for shown in kinds])
    gets, get_pages = speed([shown.get_seconds for shown in kinds])
    return [
        _row("How fast, from Python, one thread", [shown.name for shown in kinds]),
        _row("put, 64 pages a call", puts),
        _row("a page", put_pages),
        _row("get, 64 pages a call", gets),
        _row("a page", get_pages),
        _row("one page a call, median: put", [f"{report.put_us:.1f} us"]),
        _row("one page a call, median: get", [f"{report.get_us:.1f} us"]),
    ]


def _safe(report: Report, pages: int) -> list[str]:
    kills = report.kills
    right = pages - sum(shown.wrong for shown in report.kinds)
    return [
        "How safe",
        f"  {right:>9,} of {pages:,} pages came back byte for byte",
        f"  {kills.count:>9,} writers killed with kill -9 in mid-put, half of them with another process attached",
        f"  {kills.acknowledged:>9,} pages acknowledged before they died",
        f"  {kills.verified:>9,} times one of them was verified after reattaching",
        f"  {kills.lost:>9,} were lost or stale",
        f"  {kills.recovered:>9,} shards were caught in mid-change, and rebuilt",
        f"  {kills.violations:>9,} violations found by check(), after every kill",
        "",
        *report.faults[:10],
        "All is well." if not report.faults else f"{len(report.faults)} FAULTS",
    ]


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\x1b[K{text} ...")
        sys.stderr.flush()


def main() -> int:
    """Run the demo; 0 when all was as it should be."""
    shm = Path("/dev/shm")
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tmem-demo-", dir=shm if shm.is_dir() else None) as directory:
        report = run(Path(directory))
    if sys.stderr.isatty():
        sys.stderr.write("\r\x1b[K")
    sys.stdout.write(f"{screen(report)}  ({time.monotonic() - begun:.0f} s)\n")
    return 1 if report.faults else 0


if __name__ == "__main__":
    ending.run(main)
