"""What the demo has found, as text for a terminal."""

from __future__ import annotations

from bench.block.san.volume import DELAY
from bench.demo.block import HOSTS, Block
from bench.demo.engine import PAGE, Alone
from bench.demo.story import MEMORY, THREADS, Story, raw_bytes
from bench.lib import machine
from bench.lib.live import LiveProcess

_LABEL, _VALUE = 44, 14


def screen(story: Story, block: Block, alone: Alone, faults: list[str]) -> str:
    """The whole of it."""
    serving = f"{story.workers} workers" if story.workers > 1 else "one process"
    live = len(LiveProcess.KINDS)
    parts = [
        [f"tmem on {machine.in_words()}"],
        [
            f"A daemon of {serving} with {MEMORY} to give, and three clients, each a process of its own,",
            f"over TCP on loopback. Real pages of 4 KiB: memory of {live} live processes, and this machine's files.",
        ],
        _swap(story),
        _cache(story),
        _crash(story),
        _cost(story),
        _block(block),
        _engine(alone),
        [*faults[:10], f"{len(faults)} FAULTS" if faults else "All is well."],
    ]
    return "\n\n".join("\n".join(part) for part in parts)


def _head(text: str, note: str = "") -> str:
    return f"{text:<{_LABEL + 2}}{note}".rstrip()


def _row(label: str, value: str, note: str = "") -> str:
    return f"  {label:<{_LABEL}}{value:>{_VALUE}}  {note}".rstrip()


def _mib(size: float) -> str:
    return f"{size / (1 << 20):.1f} MiB"


def _us(microseconds: float) -> str:
    return f"{microseconds:,.0f} us" if microseconds < 10_000 else f"{microseconds / 1000:,.0f} ms"


def _swap(story: Story) -> list[str]:
    swapped, raw = story.swapped, raw_bytes(story)
    return [
        _head("A host runs out of memory, and swaps", f"tmem.Frontswap, a page a call, {THREADS} threads"),
        _row("swapped out", f"{swapped.acknowledged:,}", f"of {swapped.pages:,} pages, {_mib(raw)}"),
        _row(
            "memory that they take now", _mib(story.swap_bytes), f"{raw / max(story.swap_bytes, 1):.2f} times smaller"
        ),
        _row("out: median", _us(swapped.store_median), f"99 of 100 within {_us(swapped.store_p99)}"),
        _row("in: median", _us(swapped.load_median), f"99 of 100 within {_us(swapped.load_p99)}"),
    ]


def _cache(story: Story) -> list[str]:
    asked = sum(read.asked for read in story.reads)
    cached = sum(read.cached for read in story.reads)
    return [
        _head("Two hosts read the same files", "tmem.Cleancache, one shared cache, nobody warms it"),
        _row("pages read by both", f"{asked:,}", f"{_mib(asked * PAGE)}: each host reads every page once"),
        _row(
            "reads that storage was spared", f"{cached:,}", f"{cached / asked:.0%}; 50 % is all there is for two hosts"
        ),
        _row("read from storage", f"{asked - cached:,}", "and put, so that the other host finds them"),
    ]


def _crash(story: Story) -> list[str]:
    swapped = story.swapped
    wrong = swapped.wrong + sum(read.wrong for read in story.reads)
    return [
        _head("In the middle of it the daemon is killed", "kill -9, every process of it; then started again"),
        _row("away for", f"{story.away:.2f} s", "until it takes calls again, all its pages with it"),
        _row("pages it had acknowledged before", f"{swapped.before_kill:,}"),
        _row("of these lost", f"{swapped.lost:,}", "every page was swapped in again and compared"),
        _row("pages that came back wrong or stale", f"{wrong:,}", "swap and cache"),
        _row("longest that a client waited", f"{swapped.longest_seconds:.2f} s", "it went on by itself, with no error"),
    ]


def _cost(story: Story) -> list[str]:
    metrics = story.metrics
    empty = _mib(story.resident_empty)
    held, used = metrics["tmem_uncompressed_bytes"], metrics["tmem_used_bytes"]
    return [
        _head("What it costs", "/metrics, and the kernel's accounts of the daemon"),
        _row("pages held now", f"{metrics['tmem_pages']:,.0f}", f"{_mib(held)} of pages"),
        _row("memory they take, all metadata counted", _mib(used), f"{held / max(used, 1):.2f} times smaller"),
        _row("memory of the daemon, arena included", _mib(story.resident), f"{empty} of it when empty: Python"),
        _row("processor time of the daemon", _us(story.cpu / story.page_calls * 1e6), "for each page put or asked for"),
    ]


def _block(block: Block) -> list[str]:
    without, through, swap = block.without, block.through, block.swap
    spared = 1 - through.served.reads / without.served.reads
    spared_bytes = 1 - through.served.read_bytes / without.served.read_bytes
    return [
        _head(f"{HOSTS} hosts boot one image of a slow SAN", f"tmem san on each, a pool they share; {through.san}"),
        _row(
            "reads that the SAN had to serve",
            f"{through.served.reads:,}",
            f"{without.served.reads:,} without: {spared:.0%} spared",
        ),
        _row(
            "the same in bytes",
            _mib(through.served.read_bytes),
            f"{_mib(without.served.read_bytes)} without: {spared_bytes:.0%} spared",
        ),
        _row(
            "a host boots in, on average",
            f"{through.seconds:.2f} s",
            f"{without.seconds:.2f} s without; a read of the SAN takes {DELAY * 1000:.0f} ms",
        ),
        _row("a read: median", _us(through.median_read * 1e6), f"{_us(without.median_read * 1e6)} without"),
        _row(
            "pages that a fifth host swapped meanwhile",
            f"{swap.out:,}",
            f"out {_us(swap.out_us)}, in {_us(swap.in_us)}: median, over NBD",
        ),
        _row("blocks and pages that came back wrong", f"{swap.wrong}", "each was compared"),
    ]


def _engine(alone: Alone) -> list[str]:
    kills = alone.kills
    lines = [_head("The engine alone, in one process", "64 pages a call, one thread")]
    for shown in alone.kinds:
        size = len(shown.pages)
        dense = f"{size / shown.used:.2f} times"
        theirs = f"zram: {size / shown.zram:.2f}" if shown.zram else f"zram: {alone.no_zram}"
        put, get = (seconds / shown.count * 1e6 for seconds in (shown.put_seconds, shown.get_seconds))
        times = f"put {put:.1f}, get {get:.1f} us a page"
        lines.append(_row(f"smaller: {shown.name}", dense, f"{theirs}; {times}"))
    return [
        *lines,
        _row("one page a call: get", f"{alone.get_us:.1f} us", f"put {alone.put_us:.1f} us; median, random places"),
        _row(
            "writers killed in mid-put", f"{kills.count}", f"{kills.acknowledged:,} pages acknowledged before they died"
        ),
        _row("lost or stale", f"{kills.lost}", f"{kills.violations} violations found by check()"),
    ]
