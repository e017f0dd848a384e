"""Reads of one file through the store.

The invariant: **a page is kept under an identity only if the file had these bytes whenever it had the identity.** It is
read from the file while the identity is settled (see `identity`), and kept only if the file still has the
identity afterwards: what changed the file before the read was stamped otherwise, and so is whatever changes it later.
So a page that was kept is right for ever, in the store, in this process, and in a put that comes late.

A read asks for the file's identity first. What it finds under that identity are bytes the file had at that moment; what
it reads from the file itself are bytes of a later one. Where the file changes between the two, the whole is read from
the file, which is what an ordinary read does.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from tmem._files.identity import Identity, SettledRule
from tmem._files.page_cache import Content, Fetch, PageCache
from tmem._files.readahead import Streams
from tmem._model.checks import MAX_INDEX
from tmem._runtime.background import Workers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tmem._files.pages import FileStore
    from tmem._files.source import Source
    from tmem._files.stats import FileCounters

DEFAULT_PAGE_SIZE = 16384
_PIECE = 1 << 20
_READERS = Workers("tmem-readahead", threads=4, backlog=64)


class FileReader:
    """Reads by position. Safe to use from many threads."""

    def __init__(
        self, source: Source, store: FileStore, *, settled: SettledRule, readahead: int, counters: FileCounters
    ) -> None:
        self._source = source
        self._store = store
        self._settled = settled
        self._counters = counters
        self._streams = Streams(readahead // (store.page_size or DEFAULT_PAGE_SIZE))
        self._cache = PageCache(2 * readahead + 2 * _PIECE, counters, self._streams)
        self._known: tuple[Identity, bytes] | None = None

    def fill(self, view: memoryview, offset: int) -> int:
        """Fill `view` from `offset` on; fewer bytes only where the file ends."""
        done = 0
        while done < len(view):
            at = offset + done
            piece = view[done : done + _PIECE - at % _PIECE]
            count = self._piece(piece, at)
            done += count
            if count < len(piece):
                break
        self._counters.add(reads=1, bytes_read=done)
        return done

    def size(self) -> int:
        """Bytes of the file now."""
        return self._source.identify().size

    def close(self) -> None:
        """Drop the cached pages."""
        self._store.close()
        self._cache.drop()

    def _piece(self, view: memoryview, offset: int) -> int:
        identity = self._source.identify()
        oid = self._oid(identity)
        page_size = self._store.page_size
        if page_size is None or not self._cacheable(identity, page_size):
            self._counters.add(bypassed=1)
            return self._plain(view, offset)
        view = view[: max(0, identity.size - offset)]
        if view and not self._assemble(view, offset, Content(oid, identity.size, page_size), identity):
            return self._plain(view, offset)
        return len(view)

    def _cacheable(self, identity: Identity, page_size: int) -> bool:
        # A size of 0 is also what files say that are made up as they are read.
        fits = 0 < identity.size <= (MAX_INDEX + 1) * page_size
        return fits and self._source.origin.cacheable and self._settled(identity)

    def _oid(self, identity: Identity) -> bytes:
        known = self._known
        if known is not None and known[0] == identity:
            return known[1]
        if known is not None:
            self._counters.add(stale_identities=1)
        oid = self._source.origin.oid(identity)
        self._known = identity, oid
        return oid

    def _assemble(self, view: memoryview, offset: int, content: Content, identity: Identity) -> bool:
        """Fill `view` from pages of this content. False where the file turned out to have another one."""
        size = content.page_size
        wanted = range(offset // size, (offset + len(view) - 1) // size + 1)
        mine, fetched = Fetch(content, [], ahead=False), dict[int, bytes]()
        try:
            pages, pending = self._cache.claim(mine, wanted)
            hits = len(pages)
            self._read_ahead(wanted, content, identity)
            if mine.indices:
                fetched, from_store = self._fetch(content, identity, mine.indices, waited_for=True)
                hits += from_store
        finally:
            if mine.indices:
                self._cache.finish(mine, fetched)
        pages |= fetched
        for fetch in pending:
            fetch.done.wait()
            pages.update((index, fetch.pages[index]) for index in wanted if index in fetch.pages)
        self._counters.add(pages_hit=hits, pages_missed=len(wanted) - hits)
        if not all(index in pages for index in wanted):
            return False
        for index in wanted:
            start = index * size - offset
            page = memoryview(pages[index])[max(0, -start) : len(view) - start]
            view[max(0, start) : max(0, start) + len(page)] = page
        return True

    def _fetch(
        self, content: Content, identity: Identity, indices: Sequence[int], *, waited_for: bool
    ) -> tuple[dict[int, bytes], int]:
        """These pages, as far as they can be had, and how many of them came from the store."""
        pages = self._store.get(content.oid, indices, waited_for=waited_for)
        hits = len(pages)
        self._counters.add(bytes_saved=hits * content.page_size)
        missing = [index for index in indices if index not in pages]
        if missing:
            fresh = self._load(content, identity, missing, waited_for)
            if fresh:
                self._store.offer(content.oid, fresh)
                pages |= fresh
        return pages, hits

    def _load(self, content: Content, identity: Identity, indices: Sequence[int], waited_for: bool) -> dict[int, bytes]:
        """These pages from the file; none where it has another identity afterwards."""
        size = content.page_size
        pages: dict[int, bytes] = {}
        for run in _runs(indices):
            buffer = memoryview(bytearray(len(run) * size))
            start = run[0] * size
            there = min(len(buffer), content.size - start)
            if self._read(buffer[:there], start, waited_for) < there:
                break
            for at, index in enumerate(run):
                pages[index] = bytes(buffer[at * size : (at + 1) * size])
        return pages if self._source.identify() == identity else {}

    def _plain(self, view: memoryview, offset: int) -> int:
        return self._read(view, offset, True)

    def _read(self, view: memoryview, offset: int, waited_for: bool) -> int:
        begun = time.perf_counter()
        count = self._source.read_into(view, offset)
        if waited_for:
            self._store.health.disk_read(time.perf_counter() - begun)
        self._counters.add(disk_reads=1, disk_bytes=count)
        return count

    def _read_ahead(self, wanted: range, content: Content, identity: Identity) -> None:
        end = -(-content.size // content.page_size)
        advised = self._streams.advise(wanted.start, len(wanted), end)
        if advised:
            _READERS.submit(lambda: self._fetch_ahead(sorted(advised), content, identity))

    def _fetch_ahead(self, indices: Sequence[int], content: Content, identity: Identity) -> None:
        fetch = self._cache.claim_ahead(content, indices)
        if fetch is None:
            return
        pages: Mapping[int, bytes] = {}
        try:
            pages, _ = self._fetch(content, identity, fetch.indices, waited_for=False)
        except (OSError, ValueError):
            # Whoever needs these bytes will read them, and see the error that concerns them.
            return
        finally:
            self._cache.finish(fetch, pages)


def _runs(indices: Sequence[int]) -> Iterator[list[int]]:
    """Neighbouring pages together, at most a piece of them; the indices are in order."""
    run: list[int] = []
    for index in indices:
        if run and index != run[-1] + 1:
            yield run
            run = []
        run.append(index)
    if run:
        yield run
