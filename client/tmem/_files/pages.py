"""The pages of a cached file in the store, read and written so that the store can do no harm.

Nothing here raises, and nothing takes longer than `patience`: a store that is away, slow or closed answers as one that
has no pages and takes none. A store in this process cannot hang and is called directly; any other in another thread,
so that a reader need not wait until its call gives up. Offered pages wait in a queue of bounded bytes, and go out in
batches from one thread at a time.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from tmem._files.cache_health import CacheHealth
from tmem._model.errors import TmemError, UnavailableError, UnknownPoolError
from tmem._runtime.background import Workers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from tmem._files.stats import FileCounters
    from tmem._pool import Pool

_QUEUED_BYTES = 8 << 20
_BATCH_BYTES = 1 << 20
_OPEN_SECONDS = 1.0

_ASKERS = Workers("tmem-ask", threads=8, backlog=64)
_PUTTERS = Workers("tmem-put", threads=2, backlog=256)


class _Call:
    """A call in another thread, and what came of it."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._done = threading.Event()
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self._work()
        except Exception as error:
            self.error = error
        finally:
            self._done.set()

    def wait(self, seconds: float) -> bool:
        return self._done.wait(seconds)


class FileStore:
    """The pool of one cached file. Safe to use from many threads."""

    def __init__(
        self,
        open_pool: Callable[[], Pool],
        *,
        patience: float,
        direct: bool,
        counters: FileCounters,
        health: CacheHealth,
    ) -> None:
        """Opens the pool, unless the store is away. A pool that cannot be used for this raises here."""
        self._open_pool = open_pool
        self._patience = patience
        self._direct = direct
        self._counters = counters
        self.health = health
        self._pool: Pool | None = None
        self._asked: tuple[bytes, Sequence[int]] = (b"", (0,))
        self._queue: deque[tuple[bytes, int, bytes]] = deque()
        self._queued_bytes = 0
        self._draining = False
        self._queue_lock = threading.Lock()
        self._queue_changed = threading.Condition(self._queue_lock)
        self._open()

    @property
    def page_size(self) -> int | None:
        """Bytes a page; None where the store is not to be used now."""
        pool = self._pool
        if pool is not None and self.health.admits():
            return pool.page_size
        if self.health.probe_due():
            _ASKERS.submit(self._probe)
        return None

    def get(self, oid: bytes, indices: Sequence[int], *, waited_for: bool = True) -> dict[int, bytes]:
        """What the store has of these pages, as far as it says so in time.

        Only what a read waits for is compared with the reads of the file that one waits for.
        """
        pool = self._pool
        if pool is None or not self.health.admits():
            return {}
        if waited_for:
            self._asked = oid, indices
        found: dict[int, bytes] = {}
        # A call that was given up on goes on, and fills what nobody looks at any more.
        call = _Call(lambda: found.update(self._ask(pool, oid, indices, waited_for)))
        if self._direct:
            call.run()
        elif not _ASKERS.submit(call.run) or not call.wait(self._patience):
            self._failed(None)
            return {}
        return found if call.error is None else {}

    def offer(self, oid: bytes, pages: Mapping[int, bytes]) -> None:
        """Put pages when there is time, or drop them."""
        size = sum(map(len, pages.values()))
        with self._queue_lock:
            if self._pool is None or not self.health.admits() or self._queued_bytes + size > _QUEUED_BYTES:
                self._counters.add(puts_dropped=len(pages))
                return
            self._queue.extend((oid, index, page) for index, page in pages.items())
            self._queued_bytes += size
            if self._draining:
                return
            self._draining = _PUTTERS.submit(self._drain)
            if not self._draining:
                self._drop()

    def close(self) -> None:
        """Wait briefly for puts in flight."""
        with self._queue_lock:
            self._queue_changed.wait_for(lambda: not self._draining, self._patience)

    def _open(self) -> None:
        call = _Call(self._adopt)
        if self._direct:
            call.run()
        elif not _ASKERS.submit(call.run) or not call.wait(_OPEN_SECONDS):
            self._failed(None)
            return
        if isinstance(call.error, UnavailableError):
            self._failed(None)
        elif call.error is not None:
            raise call.error

    def _adopt(self) -> None:
        self._pool = self._open_pool()

    def _ask(self, pool: Pool, oid: bytes, indices: Sequence[int], timed: bool) -> dict[int, bytes]:
        begun = time.perf_counter()
        try:
            pages = pool.get(oid, indices)
        except TmemError as error:
            self._failed(error)
            raise
        if timed:
            self.health.answered(time.perf_counter() - begun)
        return pages

    def _probe(self) -> None:
        """Open the pool where that is still to be done, and ask what was asked last."""
        try:
            if self._pool is None:
                self._adopt()
            if self._pool is not None:
                self._ask(self._pool, *self._asked, timed=True)
        except (TmemError, ValueError):
            # Of a pool that came to be meanwhile and cannot be used: as good as away.
            return

    def _failed(self, error: TmemError | None) -> None:
        self._counters.add(store_failures=1)
        if isinstance(error, UnknownPoolError):
            self._pool = None
        self.health.failed()

    def _drain(self) -> None:
        while True:
            with self._queue_lock:
                oid, batch = self._take()
                if not batch:
                    self._draining = False
                    self._queue_changed.notify_all()
                    return
            self._put(oid, batch)

    def _take(self) -> tuple[bytes, dict[int, bytes]]:
        batch: dict[int, bytes] = {}
        size = 0
        oid = self._queue[0][0] if self._queue else b""
        while self._queue and self._queue[0][0] == oid and size < _BATCH_BYTES:
            _, index, page = self._queue.popleft()
            batch[index] = page
            size += len(page)
            self._queued_bytes -= len(page)
        return oid, batch

    def _put(self, oid: bytes, batch: dict[int, bytes]) -> None:
        pool = self._pool
        if pool is None or not self.health.admits():
            self._counters.add(puts_dropped=len(batch))
            return
        try:
            outcomes = pool.put(oid, batch)
        except (TmemError, ValueError) as error:
            self._counters.add(puts_dropped=len(batch))
            self._failed(error if isinstance(error, TmemError) else None)
            return
        stored = sum(map(bool, outcomes.values()))
        self._counters.add(puts=stored, puts_refused=len(batch) - stored)

    def _drop(self) -> None:
        self._counters.add(puts_dropped=len(self._queue))
        self._queue.clear()
        self._queued_bytes = 0
