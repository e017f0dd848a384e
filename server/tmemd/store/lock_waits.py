"""Copes with locks of the arena that other processes hold.

The event loop never waits for a lock: if one is held, one thread waits for it on behalf of all who need it, and then
the calls are retried from their beginning. A process that is frozen with a lock (stopped, in a debugger, in a frozen
container) so costs those who need it a bounded wait and `UnavailableError`.

`ArenaMonitor` logs problems of the arena, each once.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn, TypeVar

from tmemd.base.errors import UnavailableError
from tmemd.base.logs import log

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from tmemd.store.api import Store

T = TypeVar("T")

_ROUNDS = 1000
"""Times that a call waits for a held lock before it gives up."""
_PAUSE = 0.005
_EVERY = 1.0
"""Seconds between checks of the arena."""


class LockRetry:
    """Retries calls that found a lock held."""

    def __init__(self, store: Store, noticed: Callable[[], object]) -> None:
        """`noticed` is called when waiting for a lock was in vain."""
        self._store = store
        self._noticed = noticed
        self._waits: dict[int, asyncio.Task[None]] = {}

    async def retry(self, error: UnavailableError, call: Callable[[], Awaitable[T]]) -> T:
        """Retry a call that failed with this error.

        Raises:
            UnavailableError: The lock was not released in time.
        """
        for _ in range(_ROUNDS):
            if error.waited:
                break
            try:
                await self._until_free(error.lock)
                return await call()
            except UnavailableError as next_error:
                error = next_error
        self._noticed()
        raise error

    async def _until_free(self, lock: int) -> None:
        if lock < 0:  # among the daemon's own processes
            await asyncio.sleep(_PAUSE)
            return
        wait = self._waits.get(lock)
        if wait is None:
            wait = self._waits[lock] = asyncio.create_task(asyncio.to_thread(self._store.wait_for_lock, lock))
            wait.add_done_callback(lambda done: self._ended(lock, done))
        await asyncio.shield(wait)

    def _ended(self, lock: int, wait: asyncio.Task[None]) -> None:
        del self._waits[lock]
        if not wait.cancelled():
            wait.exception()  # those who wait for it raise it


class ArenaMonitor:
    """Checks the arena periodically. If a part of it cannot be read, `lost` is awaited, once."""

    def __init__(self, store: Store, lost: Callable[[], Awaitable[None]]) -> None:
        self._store = store
        self._lost = lost
        self._held: dict[str, str] = {}
        self._task: asyncio.Task[NoReturn] | None = None

    def start(self) -> None:
        self._task = asyncio.create_task(self._watch())

    def stop(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def check(self) -> str:
        """Log what has changed; returns why the store is lost, if it is."""
        held, lost = self._store.health()
        for what in held.keys() - self._held.keys():
            log.warning(
                "%s holds %s and makes no progress: calls that need it fail with UNAVAILABLE, requests to exports wait",
                held[what],
                what,
            )
        for what in self._held.keys() - held.keys():
            log.info("%s is free again", what)
        self._held = held
        return lost

    async def _watch(self) -> NoReturn:
        told = False
        while True:
            lost = self.check()
            if lost and not told:
                told = True
                log.error("%s", lost)
                await self._lost()
            await asyncio.sleep(_EVERY)
