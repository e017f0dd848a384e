"""The pages of one file that this process has at hand, and those on their way to it: each is fetched once.

Pages belong to one content of the file; when it changes, all of them go. A *flight* is the fetching of some pages by
one thread; others that want them wait for it. Whoever begins a flight ends it before it waits for another one, so that
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
class Flight:
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


class Window:
    """A bounded number of bytes of pages. Safe to use from many threads."""

    def __init__(self, capacity: int, counters: FileCounters, streams: Streams) -> None:
        self._capacity = capacity
        self._counters = counters
        self._streams = streams
        self._lock = threading.Lock()
        self._content: Content | None = None
        self._pages: OrderedDict[int, _Page] = OrderedDict()
        self._flights: dict[int, Flight] = {}

    def claim(self, mine: Flight, indices: Iterable[int]) -> tuple[dict[int, bytes], list[Flight]]:
        """What is at hand of these pages, and the flights that bring some; the rest is for `mine`, which is to land."""
        content = mine.content
        ready: dict[int, bytes] = {}
        coming: list[Flight] = []
        used = 0
        with self._lock:
            self._turn_to(content)
            for index in indices:
                page = self._pages.get(index)
                if page is not None:
                    used += page.unused
                    page.unused = False
                    self._pages.move_to_end(index)
                    ready[index] = page.data
                elif (flight := self._flights.get(index)) is None:
                    mine.indices.append(index)
                    self._flights[index] = mine
                else:
                    flight.asked_for.add(index)
                    if flight not in coming:
                        coming.append(flight)
        self._judge(used=used)
        return ready, coming

    def claim_ahead(self, content: Content, indices: Iterable[int]) -> Flight | None:
        """A flight for those of these pages that are neither at hand nor on their way."""
        flight = Flight(content, [], ahead=True)
        with self._lock:
            if content != self._content:
                return None
            for index in indices:
                if index not in self._pages and index not in self._flights:
                    flight.indices.append(index)
                    self._flights[index] = flight
        return flight if flight.indices else None

    def land(self, flight: Flight, pages: Mapping[int, bytes]) -> None:
        """End a flight with what it fetched, which is nothing where it failed."""
        wasted = 0
        with self._lock:
            for index in flight.indices:
                if self._flights.get(index) is flight:
                    del self._flights[index]
            if flight.content == self._content:
                for index, page in pages.items():
                    self._pages[index] = _Page(page, flight.ahead and index not in flight.asked_for)
                most = max(1, self._capacity // flight.content.page_size)
                while len(self._pages) > most:
                    wasted += self._pages.popitem(last=False)[1].unused
            used = len(flight.asked_for & pages.keys()) if flight.ahead else 0
            if flight.ahead and flight.content != self._content:
                wasted += len(pages) - used
        flight.pages = pages
        flight.done.set()
        if flight.ahead:
            self._counters.add(readahead_pages=len(pages))
        self._judge(used, wasted)

    def drop(self) -> None:
        """Let go of every page."""
        with self._lock:
            wasted = self._clear()
        self._judge(wasted=wasted)

    def _turn_to(self, content: Content) -> None:
        if content != self._content:
            wasted = self._clear()
            self._flights.clear()
            self._content = content
            self._counters.add(readahead_wasted=wasted)

    def _clear(self) -> int:
        wasted = sum(page.unused for page in self._pages.values())
        self._pages.clear()
        return wasted

    def _judge(self, used: int = 0, wasted: int = 0) -> None:
        if used or wasted:
            self._counters.add(readahead_used=used, readahead_wasted=wasted)
            self._streams.judge(used, wasted)
