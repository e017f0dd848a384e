"""Frontswap: the kernel's operations on swapped-out pages, by their names and meanings, over any pool.

One object per swap area, one bit per slot. The bit says that the store has the slot's page: without it nothing is
asked, so a miss never reaches the network, and what a failed store may leave behind is never seen. As in the kernel the
caller keeps operations on one slot apart; different slots can be used by many threads at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tmem._model import checks
from tmem._model.errors import CorruptPageError, ExhaustedError, LostPageError, UnavailableError
from tmem._runtime import forks

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from typing_extensions import Buffer

    from tmem._pool import Pool

_AWAY = (UnavailableError, ExhaustedError)


class Frontswap:
    """Swap areas in a pool.

    Args:
        pool: Persistent; in writethrough mode an ephemeral one does as well. The pages of earlier runs in it are
            dropped by `init`.
        writethrough: `store` keeps the page and reports failure on purpose, so that the caller writes it to its device
            too; the store may then lose pages at will.
        exclusive: `load` takes the page out of the store, as the caller has it now.
    """

    def __init__(self, pool: Pool, *, writethrough: bool = False, exclusive: bool = False) -> None:
        if not writethrough and pool.settings.kind != "persistent":
            raise ValueError(f"pool {pool.name!r} is ephemeral; without writethrough frontswap needs a persistent one")
        self._pool = pool
        self._writethrough = writethrough
        self._exclusive = exclusive
        self._areas: dict[int, _Slots] = {}

    def init(self, area: int) -> None:
        """Initialize an area (the kernel's `type`), dropping anything it held before."""
        self._pool.flush_object(area)
        self._areas[area] = _Slots()

    def store(self, area: int, offset: int, page: Buffer) -> bool:
        """Keep the page of a slot. False: the caller must write it to its device.

        A store that fails leaves no older page of the slot behind.
        """
        slots = self._slots(area)
        had = slots.clear(checks.number(offset, "offset"))
        try:
            kept = self._pool.put(area, {offset: page})[offset].stored
        except _AWAY:
            if had:
                self._forget(area, [offset])
            return False
        if kept:
            slots.set(offset)
        return kept and not self._writethrough

    def load(self, area: int, offset: int) -> bytes | None:
        """The page of a slot; None: the caller must read its device.

        Raises:
            LostPageError: The store had the only copy and has it no longer.
            UnavailableError: The store has the only copy and is away.
        """
        slots = self._slots(area)
        if not slots.has(checks.number(offset, "offset")):
            return None
        try:
            page = self._pool.get(area, [offset], exclusive=self._exclusive).get(offset)
        except _AWAY:
            if self._writethrough:
                return None
            raise
        if page is None and not self._writethrough:
            raise LostPageError(f"page {offset} of area {area} was stored in pool {self._pool.name!r} and is gone")
        if page is None or self._exclusive:
            slots.clear(offset)
        return page

    def invalidate_page(self, area: int, offset: int) -> None:
        """The slot is free; its page is dropped."""
        if self._slots(area).clear(checks.number(offset, "offset")):
            self._forget(area, [offset])

    def invalidate_area(self, area: int) -> None:
        """The area is no longer used (swapoff); all its pages are dropped."""
        self._slots(area)
        self._pool.flush_object(area)
        self._areas.pop(area, None)

    def shrink(self, area: int, count: int) -> dict[int, bytes]:
        """Take up to `count` pages back from the store (partial swapoff), lowest slots first, by their slot.

        Raises:
            LostPageError: Some are gone; it carries the others, which are taken out.
            CorruptPageError: Some failed their checksum; it carries the others, which are taken out.
        """
        slots = self._slots(area)
        wanted = slots.first(checks.number(count, "count"))
        try:
            pages = self._pool.get(area, wanted, exclusive=True)
        except CorruptPageError as error:
            for offset in error.pages:
                slots.clear(offset)
            raise
        lost = [offset for offset in wanted if offset not in pages]
        if lost and not self._writethrough:
            for offset in pages:
                slots.clear(offset)
            raise LostPageError(f"pages {lost} of area {area} are gone from pool {self._pool.name!r}", pages)
        for offset in wanted:
            slots.clear(offset)
        return pages

    def pages(self, area: int) -> int:
        """The number of pages of an area that the store has."""
        return self._slots(area).count

    def _slots(self, area: int) -> _Slots:
        slots = self._areas.get(area)
        if slots is None:
            raise ValueError(f"area {area} is not initialized: call init first")
        return slots

    def _forget(self, area: int, offsets: Iterable[int]) -> None:
        """Drop pages that no bit speaks of any more; where the store is away they are left behind, unseen."""
        try:
            self._pool.flush(area, offsets)
        except _AWAY:
            return


class _Slots:
    """One bit per slot, as far as the highest that was ever set. Safe to use from many threads."""

    def __init__(self) -> None:
        self._bits = bytearray()
        self._lock = forks.lock()
        self.count = 0

    def has(self, offset: int) -> bool:
        at, bit = offset >> 3, 1 << (offset & 7)
        return at < len(self._bits) and bool(self._bits[at] & bit)

    def set(self, offset: int) -> None:
        at, bit = offset >> 3, 1 << (offset & 7)
        with self._lock:
            if at >= len(self._bits):
                self._bits.extend(bytes(at + 1 - len(self._bits)))
            self.count += not self._bits[at] & bit
            self._bits[at] |= bit

    def clear(self, offset: int) -> bool:
        """Whether it was set."""
        at, bit = offset >> 3, 1 << (offset & 7)
        with self._lock:
            if at >= len(self._bits) or not self._bits[at] & bit:
                return False
            self._bits[at] &= ~bit
            self.count -= 1
            return True

    def first(self, count: int) -> list[int]:
        """The lowest `count` slots that are set."""
        found: list[int] = []
        for offset in self._each():
            if len(found) == count:
                break
            found.append(offset)
        return found

    def _each(self) -> Iterator[int]:
        for at, byte in enumerate(bytes(self._bits)):
            if byte:
                yield from (8 * at + bit for bit in range(8) if byte & 1 << bit)
