"""Restores a pool from a file: the whole file is checked first, then each page again before it is put."""

from __future__ import annotations

from collections import Counter, deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import tmem
from tmem._model.settings import PoolSettings, pool_settings
from tmem.cli.archive import exports
from tmem.cli.archive.format import Pages, PagesFileError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tmem._pool import Pool
    from tmem.cli.archive.format import Reader, Record
    from tmem.cli.base.target import Target

LANES = 8
"""Records in flight at once, each of at most a megabyte of pages if `tmem save` wrote it."""


@dataclass(frozen=True, slots=True)
class Restored:
    """The result of a restore."""

    pool: str
    made: bool
    """Whether the pool is new."""
    put: int
    refused: dict[str, int]


@contextmanager
def destination(
    target: Target, reader: Reader, name: str, merge: bool, remark: Callable[[str], None]
) -> Iterator[tuple[Pool, bool]]:
    """The pool to restore to, and whether it is new: a pool, or an export's by its pool's name."""
    if name.startswith(exports.PREFIX):
        with exports.restored(target, reader, name.removeprefix(exports.PREFIX), merge, remark) as found:
            yield found
        return
    yield _pool_for(target, reader, name, merge)


def _pool_for(target: Target, reader: Reader, name: str, merge: bool) -> tuple[Pool, bool]:
    """The pool of that name, created with the saved settings if missing; and whether it was."""
    try:
        view = target.pool(name)
    except tmem.UnknownPoolError:
        _make(target, name, _settings(reader))
        return target.store.find_pool(name), True
    if view.settings["kind"] != "persistent":
        raise tmem.MismatchError(f"pool {name!r} is ephemeral and may lose pages: restore under another name with --as")
    if view.frozen:
        raise tmem.MismatchError(
            f"pool {name!r} is frozen, so nothing was written: thaw it with `tmem pool thaw {name}`"
        )
    if view.page_size != reader.page_size:
        raise tmem.MismatchError(
            f"pool {name!r} has pages of {view.page_size} bytes, the file of {reader.page_size}: restore under another "
            "name with --as"
        )
    if view.stats["pages"] and not merge:
        raise tmem.MismatchError(
            f"pool {name!r} holds {view.stats['pages']:,} pages: restore under another name with "
            "--as, or overwrite its pages with --merge"
        )
    return target.store.find_pool(name), False


def restore(reader: Reader, pool: Pool, made: bool, progress: Callable[[int], None]) -> Restored:
    """Put every page of the file; later records win."""
    refused: Counter[str] = Counter()
    put = 0
    for count, reasons in _in_lanes(reader, pool):
        refused.update(reasons)
        put += count
        progress(count)
    return Restored(pool.name, made, put - refused.total(), dict(refused))


def _in_lanes(reader: Reader, pool: Pool) -> Iterator[tuple[int, list[str]]]:
    """Apply records concurrently, those of one object in order; the pages and refusals of each."""
    lanes = [ThreadPoolExecutor(1) for _ in range(LANES)]
    in_flight: deque[Future[tuple[int, list[str]]]] = deque()
    try:
        for record in reader.records():
            in_flight.append(lanes[hash(record.oid) % LANES].submit(_apply, reader, pool, record))
            if len(in_flight) == LANES:
                yield in_flight.popleft().result()
        while in_flight:
            yield in_flight.popleft().result()
    finally:
        for lane in lanes:
            lane.shutdown(cancel_futures=True)


def _apply(reader: Reader, pool: Pool, record: Record) -> tuple[int, list[str]]:
    """Apply a record; its number of pages, and the reasons of refusals."""
    if not isinstance(record, Pages):
        pool.flush(record.oid, record.indices)
        return 0, []
    try:
        pages = record.decoded(reader.page_size)
    except ValueError as error:
        raise PagesFileError(f"{error}: the file was written from damaged memory") from None
    outcomes = pool.put(record.oid, pages).values()
    return len(outcomes), [str(outcome.reason) for outcome in outcomes if not outcome]


def _settings(reader: Reader) -> PoolSettings:
    saved: dict[str, Any] = reader.header["settings"]
    known = {name: saved[name] for name in PoolSettings.__slots__ if name in saved}
    missing = sorted(set(PoolSettings.__slots__) - known.keys())
    if missing:
        raise PagesFileError(f"the header lacks the settings {', '.join(missing)}")
    kind = pool_settings()
    for setting, value in known.items():
        if type(value) is not type(getattr(kind, setting)):
            raise PagesFileError(f"the header's setting {setting} is {value!r}")
    if known["kind"] != "persistent":
        raise PagesFileError("the header describes an ephemeral pool")
    return PoolSettings(**known)


def _make(target: Target, name: str, settings: PoolSettings) -> None:
    """Create the pool, owned by the caller if the caller may not name its former owner."""
    try:
        target.create(name, settings)
    except tmem.DeniedError:
        target.create(name, replace(settings, owner=""))
