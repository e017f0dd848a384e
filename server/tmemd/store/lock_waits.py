"""Locks of the arena that other processes hold, as the daemon lives with them.

The event loop waits for none: what it does itself is tried once, and where a lock is held a thread waits for that lock,
one thread for all who need it; then the call is carried out anew, from its beginning. A process that is frozen with a
lock (stopped, in a debugger, in a frozen container) so costs those who need it a bounded wait, and `UnavailableError`.

`ArenaMonitor` says what is wrong with the arena, once for each time that it happens.
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
"""Times that a call finds a lock held, and waits for it, until it is given up."""
_PAUSE = 0.005
_EVERY = 1.0
"""Seconds between looks at the arena."""


class LockRetry:
    """Carries calls out anew for which a lock was held."""

    def __init__(self, store: Store, noticed: Callable[[], object]) -> None:
        """`noticed` is called when a lock was waited for in vain."""
        self._store = store
        self._noticed = noticed
        self._waits: dict[int, asyncio.Task[None]] = {}

    async def retry(self, error: UnavailableError, call: Callable[[], Awaitable[T]]) -> T:
        """What comes of a call that failed with this error.

        Raises:
            UnavailableError: The lock was not to be had in time.
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
        if lock < 0:  # of the daemon's own processes among themselves
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
    """Looks at the arena now and then. Where a part of it cannot be read, `lost` is awaited, once."""

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
        """Say what is new; why the store is lost, if it is."""
        held, lost = self._store.health()
        for what in held.keys() - self._held.keys():
            log.warning(
                "%s holds %s and does not go on: calls that need it answer UNAVAILABLE, and requests to exports wait",
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
