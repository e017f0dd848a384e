"""Saves the persistent pages of a pool to a file while the pool is in use.

The first pass scans the pool and gets what the scan saw. Each further pass scans again and gets what has another stamp,
and writes tombstones for what went, until a pass finds little to do, or enough were made. A page that is got after a
scan may be newer than its stamp; then the next scan sees a stamp that differs, and the page is got again. So every page
of the file was in the pool at some moment of the save, and a key that nobody touched meanwhile is as it was.

Kept in memory: 8 bytes a page, twice while two scans are compared, and some hundred bytes for each 65536 indices of an
object that has pages there.
"""

from __future__ import annotations

import os
import time
from array import array
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import tmem
from tmem._session import batches
from tmem.cli.pagesfile import BATCH_BYTES, Writer

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tmem._pool import Pool
    from tmem.cli.target import PoolView, Target

MOST_PASSES = 5
ENOUGH = 0.001
"""A pass that changes a smaller part of the pages than this is the last."""

_STAMP_BITS = 32
_SPAN_BITS = 16
_TOMBSTONES = 65536
_GET_BYTES = 4 << 20

Table: TypeAlias = dict[tuple[bytes, int], "array[int]"]
"""The pages of each span of an object, as index << 32 | stamp."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a save has done."""

    pages: int
    passes: int
    changed: int
    """Pages that were got again or went, after the first pass."""
    unsettled: int
    """Of these, in the last pass: about as many may have changed since."""
    corrupt: int
    bytes: int


def save(
    target: Target, view: PoolView, path: Path, progress: Callable[[int], None], passes: int = MOST_PASSES
) -> Saved:
    """Save a pool. The file appears under its name when it is whole and on the disk."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as sink:
            run = _Run(target, view, Writer(sink, _header(view)), progress)
            saved = run.passes(passes)
            sink.flush()
            os.fsync(sink.fileno())
            size = sink.tell()
        part.replace(path)
        _sync_folder(path.parent)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
    return Saved(*saved, bytes=size)


class _Run:
    """One save under way."""

    def __init__(self, target: Target, view: PoolView, writer: Writer, progress: Callable[[int], None]) -> None:
        self._target = target
        self._view = view
        self._pool: Pool = target.store.find_pool(view.name)
        self._writer = writer
        self._progress = progress
        self._corrupt: set[tuple[bytes, int]] = set()
        self._held: Table = {}

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
        """Write what is otherwise than it was written; how many pages."""
        seen = scan(self._target, self._view.name)
        changed = 0
        for key in [*seen, *(key for key in self._held if key not in seen)]:
            old, new = _by_index(self._held.get(key)), _by_index(seen.get(key))
            wanted = [index for index, stamp in new.items() if old.get(index) != stamp]
            gone = [index for index in old if index not in new]
            missed = self._get(key[0], wanted)
            for index in missed:
                del new[index]
            self._tombstones(key[0], gone + [index for index in missed if index in old])
            if missed:
                seen[key] = _packed(new)
            changed += len(wanted) + len(gone)
        self._held = seen
        return changed

    def _get(self, oid: bytes, wanted: Sequence[int]) -> list[int]:
        """Write pages; those that are not there any more."""
        missed: list[int] = []
        size = self._view.page_size
        for call in batches(wanted, _GET_BYTES // size):
            pages = self._sound(oid, call)
            found = [index for index in call if index in pages]
            missed += [index for index in call if index not in pages and (oid, index) not in self._corrupt]
            for part in batches(found, BATCH_BYTES // size):
                self._writer.pages(oid, {index: pages[index] for index in part})
            self._progress(len(call))
        return missed

    def _sound(self, oid: bytes, indices: Sequence[int]) -> dict[int, bytes]:
        """The pages that are there and sound. Damaged ones are known as such until they are replaced."""
        self._corrupt.difference_update((oid, index) for index in indices)
        try:
            return self._pool.get(oid, indices)
        except tmem.CorruptPageError as error:
            self._corrupt.update((oid, index) for index in error.indices)
            return error.pages

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
    """Stamps by index; a page that a scan saw twice has the later."""
    mask = (1 << _STAMP_BITS) - 1
    return {packed >> _STAMP_BITS: packed & mask for packed in span or ()}


def _packed(stamps: dict[int, int]) -> array[int]:
    return array("Q", (index << _STAMP_BITS | stamp for index, stamp in stamps.items()))


def _header(view: PoolView) -> dict[str, Any]:
    return {
        "pool": view.name,
        "settings": view.settings,
        "tmem": tmem.__version__,
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
