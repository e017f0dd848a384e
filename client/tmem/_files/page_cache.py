"""The pages of one file that this process caches or is fetching: each is fetched once.

Pages belong to one content of the file; when it changes, all of them go. A *fetch* brings some pages and is made by one
thread; others that want them wait for it. Whoever begins a fetch ends it before it waits for another one, so that
no two wait for each other.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from tmem._files.readahead import Streams
    from tmem._files.stats import FileCounters


@dataclass(frozen=True, slots=True)
class Content:
    """What a file's bytes were at some moment, as pages."""

    oid: bytes
    size: int
    page_size: int


@dataclass(eq=False, slots=True)
class Fetch:
    """Pages being fetched. `pages` is what came of it, once it is `done`."""

    content: Content
    indices: list[int]
    ahead: bool
    asked_for: set[int] = field(default_factory=set)
    pages: Mapping[int, bytes] = field(default_factory=dict)
    done: threading.Event = field(default_factory=threading.Event)


@dataclass(slots=True)
class _Page:
    data: bytes
    unused: bool
    """Fetched ahead and not asked for yet."""


class PageCache:
    """A bounded number of bytes of pages. Safe to use from many threads."""

    def __init__(self, capacity: int, counters: FileCounters, streams: Streams) -> None:
        self._capacity = capacity
        self._counters = counters
        self._streams = streams
        self._lock = threading.Lock()
        self._content: Content | None = None
        self._pages: OrderedDict[int, _Page] = OrderedDict()
        self._fetches: dict[int, Fetch] = {}

    def claim(self, mine: Fetch, indices: Iterable[int]) -> tuple[dict[int, bytes], list[Fetch]]:
        """Which of these pages are cached, and the fetches that bring some; `mine` is to get the rest."""
        content = mine.content
        ready: dict[int, bytes] = {}
        pending: list[Fetch] = []
        used = 0
        with self._lock:
            self._switch_to(content)
            for index in indices:
                page = self._pages.get(index)
                if page is not None:
                    used += page.unused
                    page.unused = False
                    self._pages.move_to_end(index)
                    ready[index] = page.data
                elif (fetch := self._fetches.get(index)) is None:
                    mine.indices.append(index)
                    self._fetches[index] = mine
                else:
                    fetch.asked_for.add(index)
                    if fetch not in pending:
                        pending.append(fetch)
        self._report(used=used)
        return ready, pending

    def claim_ahead(self, content: Content, indices: Iterable[int]) -> Fetch | None:
        """A fetch for those of these pages that are neither cached nor being fetched."""
        fetch = Fetch(content, [], ahead=True)
        with self._lock:
            if content != self._content:
                return None
            for index in indices:
                if index not in self._pages and index not in self._fetches:
                    fetch.indices.append(index)
                    self._fetches[index] = fetch
        return fetch if fetch.indices else None

    def finish(self, fetch: Fetch, pages: Mapping[int, bytes]) -> None:
        """End a fetch with what it fetched, which is nothing where it failed."""
        wasted = 0
        with self._lock:
            for index in fetch.indices:
                if self._fetches.get(index) is fetch:
                    del self._fetches[index]
            if fetch.content == self._content:
                for index, page in pages.items():
                    self._pages[index] = _Page(page, fetch.ahead and index not in fetch.asked_for)
                most = max(1, self._capacity // fetch.content.page_size)
                while len(self._pages) > most:
                    wasted += self._pages.popitem(last=False)[1].unused
            used = len(fetch.asked_for & pages.keys()) if fetch.ahead else 0
            if fetch.ahead and fetch.content != self._content:
                wasted += len(pages) - used
        fetch.pages = pages
        fetch.done.set()
        if fetch.ahead:
            self._counters.add(readahead_pages=len(pages))
        self._report(used, wasted)

    def drop(self) -> None:
        """Drop every page."""
        with self._lock:
            wasted = self._clear()
        self._report(wasted=wasted)

    def _switch_to(self, content: Content) -> None:
        if content != self._content:
            wasted = self._clear()
            self._fetches.clear()
            self._content = content
            self._counters.add(readahead_wasted=wasted)

    def _clear(self) -> int:
        wasted = sum(page.unused for page in self._pages.values())
        self._pages.clear()
        return wasted

    def _report(self, used: int = 0, wasted: int = 0) -> None:
        if used or wasted:
            self._counters.add(readahead_used=used, readahead_wasted=wasted)
            self._streams.judge(used, wasted)
