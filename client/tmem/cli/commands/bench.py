"""`tmem bench`: how fast a server puts and gets pages for this client, and how small it keeps them."""

from __future__ import annotations

import os
import secrets
import sys
import time
from dataclasses import asdict, dataclass
from itertools import chain, cycle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from tmem.cli.base import text
from tmem.cli.base.failures import Failed, remedy
from tmem.cli.base.output import Column
from tmem.cli.base.session import Leaf, Session, pass_session

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tmem._pool import Pool

_PAGE = 4096
_COLUMNS = (
    Column("ENCODING"),
    Column(""),
    Column("PAGES/s", right=True),
    Column("MiB/s", right=True, rank=1),
    Column("p50", right=True),
    Column("p99", right=True),
    Column("max", right=True),
)


@dataclass(frozen=True, slots=True)
class Timed:
    """One way of one operation: the seconds are of a batch."""

    encoding: str
    operation: str
    pages_per_second: float
    p50_seconds: float
    p99_seconds: float
    max_seconds: float


@click.command("bench", cls=Leaf)
@click.option("--pages", type=click.IntRange(min=1, max=2**24), default=8192, show_default=True, metavar="N")
@click.option("--batch", type=click.IntRange(min=1, max=65536), default=64, show_default=True, help="Pages per call.")
@click.option("--codec", default="lz4", show_default=True, help="Codec of the pool.")
@click.option(
    "--from",
    "source",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Take the data from this file.",
)
@pass_session
def bench(session: Session, pages: int, batch: int, codec: str, source: Path | None) -> None:
    """Measure puts and gets of batches of pages in both encodings, and verify every page.

    The data is that of FILE, or of this Python's own files. The pool that it creates is removed afterwards.
    """
    whole = real_bytes(pages, source)
    encodings = ("lz4", "raw") if session.target.served else ("shm",)
    timed: list[Timed] = []
    with session.output.progress("measuring", 2 * len(encodings) * pages) as done:
        for encoding in encodings:
            found, stats = _measure(session, encoding, codec, whole, batch, done)
            timed += found
    ratios = {name: len(whole) / stats[name] for name in ("payload_bytes", "footprint_bytes") if stats[name]}
    if session.output.as_json:
        session.output.document(
            {"pages": pages, "batch": batch, "codec": codec, "ratios": ratios, "timed": [asdict(one) for one in timed]}
        )
        return
    session.output.say(f"{text.quantity(pages, 'page')} of {_PAGE} bytes, {batch} per call, one call at a time")
    session.output.table(_COLUMNS, [_row(one) for one in timed])
    session.output.say(
        f"compressed to {text.size(stats['payload_bytes'])}, ratio {text.ratio(len(whole), stats['payload_bytes'])}; "
        f"footprint {text.size(stats['footprint_bytes'])}, ratio {text.ratio(len(whole), stats['footprint_bytes'])}"
    )


def real_bytes(pages: int, source: Path | None) -> bytes:
    """So many pages of real bytes, repeated if there are too few."""
    size = pages * _PAGE
    found = bytearray()
    for data in cycle(_chunks(source)):
        found += data[: size - len(found)]
        if len(found) == size:
            return bytes(found)
    raise Failed(f"{source or 'this Python'} does not hold a whole page")


def _chunks(source: Path | None) -> Iterator[bytes]:
    """The files' bytes, whole pages of them."""
    folder = Path(os.__file__).parent
    files = chain(sorted(folder.glob("*.py")), sorted(folder.glob("lib-dynload/*.so")), [Path(sys.executable)])
    for path in [source] if source else files:
        data = path.read_bytes()
        if len(data) >= _PAGE:
            yield data[: len(data) // _PAGE * _PAGE]


def _measure(
    session: Session, encoding: str, codec: str, whole: bytes, batch: int, done: Callable[[int], None]
) -> tuple[list[Timed], dict[str, Any]]:
    store = session.connection(encoding)
    pool = store.pool(f"tmem-bench-{secrets.token_hex(4)}", codec=codec)
    try:
        return [
            _timed(encoding, "put", _put_all(pool, whole, batch, done), len(whole)),
            _timed(encoding, "get", _get_all(pool, whole, batch, done), len(whole)),
        ], dict(pool.stats())
    finally:
        pool.destroy()


def _put_all(pool: Pool, whole: bytes, batch: int, done: Callable[[int], None]) -> list[float]:
    view, times = memoryview(whole), []
    for at in range(0, len(whole), batch * _PAGE):
        start = time.perf_counter()
        outcomes = pool.put_range(1, at // _PAGE, view[at : at + batch * _PAGE])
        times.append(time.perf_counter() - start)
        if not outcomes.all_stored:
            reason = next(iter(outcomes.reasons))
            raise Failed(f"pages were refused: {remedy(reason, pool.name)}; fewer --pages may fit")
        done(len(outcomes))
    return times


def _get_all(pool: Pool, whole: bytes, batch: int, done: Callable[[int], None]) -> list[float]:
    times, into = [], bytearray(batch * _PAGE)
    for at in range(0, len(whole), batch * _PAGE):
        count = min(batch, (len(whole) - at) // _PAGE)
        target = memoryview(into)[: count * _PAGE]
        start = time.perf_counter()
        _, mask = pool.get_range(1, at // _PAGE, count, target)
        times.append(time.perf_counter() - start)
        if mask.count(1) != count or target != memoryview(whole)[at : at + count * _PAGE]:
            raise Failed(f"pages {at // _PAGE} to {at // _PAGE + count - 1} came back different from what was put")
        done(count)
    return times


def _timed(encoding: str, operation: str, times: list[float], size: int) -> Timed:
    ordered = sorted(times)
    p99 = ordered[min(len(ordered) - 1, len(ordered) * 99 // 100)]
    return Timed(encoding, operation, size // _PAGE / sum(times), ordered[len(ordered) // 2], p99, ordered[-1])


def _row(one: Timed) -> list[str]:
    return [
        one.encoding,
        one.operation,
        text.count(one.pages_per_second),
        f"{one.pages_per_second * _PAGE / (1 << 20):,.0f}",
        *(text.duration(seconds) for seconds in (one.p50_seconds, one.p99_seconds, one.max_seconds)),
    ]


COMMANDS = (bench,)
