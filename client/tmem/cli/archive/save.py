"""Saves the persistent pages of a pool to a file while the pool is in use. Exports have `snapshots` for it.

The first pass scans the pool and gets what the scan saw. Each further pass scans again and gets what has another stamp,
and writes tombstones for what went, until a pass finds little to do, or enough were made. A page that is got after a
scan may be newer than its stamp; then the next scan sees a stamp that differs, and the page is got again. So every page
of the file was in the pool at some moment of the save, and a key that nobody touched meanwhile is as it was.

Kept in memory: 8 bytes a page, twice while two scans are compared, and some hundred bytes for each 65536 indices of an
object that has pages there.
"""

from __future__ import annotations

import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import tmem
from tmem._protocol.session import batches
from tmem.cli.archive import snapshots
from tmem.cli.archive.exports import described
from tmem.cli.archive.format import BATCH_BYTES, Writer
from tmem.cli.base.output_file import PRIVATE, writing
from tmem.cli.base.prefetch import prefetch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tmem._pool import Pool
    from tmem.cli.base.target import PoolView, Target

MOST_PASSES = 5
ENOUGH = 0.001
"""The last pass is one that changes a smaller share of the pages than this."""

_STAMP_BITS = 32
_SPAN_BITS = 16
_TOMBSTONES = 65536

Table: TypeAlias = dict[tuple[bytes, int], "array[int]"]
"""The pages of each span of an object, as index << 32 | stamp."""


@dataclass(frozen=True, slots=True)
class Saved:
    """The result of a save."""

    pages: int
    passes: int
    changed: int
    """Pages fetched again or removed after the first pass."""
    unsettled: int
    """Of these, those of the last pass: about as many may have changed since."""
    corrupt: int
    bytes: int
    paused: float | None
    """Seconds for which clients of an export were paused; None if the file is not an image of one instant."""


def save(
    target: Target, view: PoolView, path: str | Path, progress: Callable[[int], None], passes: int = MOST_PASSES
) -> Saved:
    """Save a pool. The file appears under its name once it is complete and on disk; a new one has mode 0600."""
    with writing(str(path), PRIVATE) as sink, snapshots.opened(target, view.name) as snapshot:
        writer = Writer(sink, _header(target, view))
        if snapshot is None:
            saved = _Run(target, view, writer, progress).passes(passes)
        else:
            pages, corrupt = snapshots.write(target, snapshot, writer, progress)
            writer.end()
            saved = pages, 1, 0, 0, corrupt
    return Saved(*saved, bytes=sink.written, paused=snapshot.paused if snapshot else None)


class _Run:
    """A save in progress."""

    def __init__(self, target: Target, view: PoolView, writer: Writer, progress: Callable[[int], None]) -> None:
        self._target = target
        self._view = view
        self._pool: Pool = target.store.find_pool(view.name)
        self._writer = writer
        self._progress = progress
        self._corrupt: set[tuple[bytes, int]] = set()
        self._held: Table = {}
        self._batch = BATCH_BYTES // view.page_size

    def passes(self, most: int) -> tuple[int, int, int, int, int]:
        changed = now = 0
        for number in range(1, most + 1):
            now = self._pass()
            if number > 1:
                changed += now
                if now <= ENOUGH * self._count():
                    break
        self._writer.end()
        return self._count() - len(self._corrupt), number, changed, now if number > 1 else 0, len(self._corrupt)

    def _pass(self) -> int:
        """Write the pages that changed since they were written; how many."""
        seen = scan(self._target, self._view.name)
        # A scan is of whatever pool has the name: it was this one if that is there still, for then it always was.
        self._pool.has(0, 0, 1)
        missed: dict[tuple[bytes, int], list[int]] = {}
        changed = 0
        calls = ((key, call) for key in seen for call in batches(self._wanted(key, seen), self._batch))
        for (key, call), (pages, corrupt) in prefetch(calls, self._fetch):
            changed += len(call)
            gone = self._write(key[0], call, pages, corrupt)
            if gone:
                missed.setdefault(key, []).extend(gone)
        changed += self._forget(seen, missed)
        self._held = seen
        return changed

    def _wanted(self, key: tuple[bytes, int], seen: Table) -> list[int]:
        old = _by_index(self._held.get(key))
        return [index for index, stamp in _by_index(seen[key]).items() if old.get(index) != stamp]

    def _fetch(self, job: tuple[tuple[bytes, int], Sequence[int]]) -> tuple[dict[int, bytes], Sequence[int]]:
        """The pages found, and the indices of damaged ones. Runs in a thread."""
        (oid, _), call = job
        try:
            return self._pool.get(oid, call), ()
        except tmem.CorruptPageError as error:
            return error.pages, error.indices

    def _write(self, oid: bytes, call: Sequence[int], pages: dict[int, bytes], corrupt: Sequence[int]) -> list[int]:
        """Write the pages of one call; those that are gone. Damaged ones are remembered until replaced."""
        self._corrupt.difference_update((oid, index) for index in call)
        self._corrupt.update((oid, index) for index in corrupt)
        if pages:
            self._writer.pages(oid, pages)
        self._progress(len(call))
        return [] if len(pages) == len(call) else [index for index in call if index not in {*pages, *corrupt}]

    def _forget(self, seen: Table, missed: dict[tuple[bytes, int], list[int]]) -> int:
        """Write tombstones for written pages that are gone; how many were gone by the scan."""
        count = 0
        for key in {**self._held, **missed}:
            old, new = _by_index(self._held.get(key)), _by_index(seen.get(key))
            gone = [index for index in old if index not in new]
            count += len(gone)
            for index in missed.get(key, ()):
                del new[index]
                if index in old:
                    gone.append(index)
            if key in missed:
                seen[key] = _packed(new)
            self._tombstones(key[0], gone)
        return count

    def _tombstones(self, oid: bytes, gone: Sequence[int]) -> None:
        self._corrupt.difference_update((oid, index) for index in gone)
        for part in batches(gone, _TOMBSTONES):
            self._writer.tombstones(oid, part)

    def _count(self) -> int:
        return sum(map(len, self._held.values()))


def scan(target: Target, name: str) -> Table:
    """All pages of a pool with their stamps, in one pass."""
    found: Table = {}
    for part in target.scan(name):
        for index, stamp in zip(part.indices, part.stamps, strict=True):
            key = part.oid, index >> _SPAN_BITS
            span = found.get(key)
            if span is None:
                span = found[key] = array("Q")
            span.append(index << _STAMP_BITS | stamp)
    return found


def _by_index(span: array[int] | None) -> dict[int, int]:
    """Stamps by index; of a page that a scan saw twice, the later one."""
    mask = (1 << _STAMP_BITS) - 1
    return {packed >> _STAMP_BITS: packed & mask for packed in span or ()}


def _packed(stamps: dict[int, int]) -> array[int]:
    return array("Q", (index << _STAMP_BITS | stamp for index, stamp in stamps.items()))


def _header(target: Target, view: PoolView) -> dict[str, Any]:
    header = {
        "pool": view.name,
        "settings": view.settings,
        "tmem": tmem.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    export = described(target, view.name)
    return header if export is None else header | {"export": export}
