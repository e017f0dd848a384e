"""Runs long calls in a few threads.

A call that has begun is never abandoned: its caller may be cancelled, but `Work.ended` is done only when the call is,
for those who must wait for that. A call that is still queued when its caller is cancelled is dropped with all it holds.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tmemd.base.errors import LimitError
from tmemd.base.logs import RateLimitedWarning

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class _Job(Generic[T]):
    """A call that can be dropped while it is queued."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.call: Callable[[], T] | None = call

    def __call__(self) -> T:
        assert self.call is not None
        return self.call()


class Work(Generic[T]):
    """A call in a thread, or queued for one."""

    def __init__(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> None:
        self._job = _Job(call)
        self._thread = threads.submit(self._job)
        self.ended: asyncio.Future[T] = asyncio.wrap_future(self._thread)

    async def result(self) -> T:
        """The result. If its caller is cancelled, a call that has not begun is dropped."""
        try:
            return await asyncio.shield(self.ended)
        except asyncio.CancelledError:
            if self._thread.cancel():
                self._job.call = None
            raise


class StoreExecutor:
    """Base of stores: makes long calls in its own threads."""

    def __init__(self, threads: int, most_waiting: int, most_of_client: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tmemd")
        self._most = threads + most_waiting
        self._most_of_client = threads + most_of_client
        self._in_flight = 0
        self._of_client: Counter[str] = Counter()
        self._limit = RateLimitedWarning(f"{most_waiting} long calls wait for a thread, which is the limit")

    def run(self, call: Callable[[], T], client: str | None = None) -> Work[T]:
        """Make a long call in a thread, for a client or the daemon itself.

        Raises:
            LimitError: Too many calls are queued, in total or of the client.
        """
        if self._in_flight >= self._most:
            self._limit.warn()
            raise LimitError("the daemon is busy: too many long calls are queued")
        if client is not None and self._of_client[client] >= self._most_of_client:
            raise LimitError(f"too many long calls of client {client!r} are queued")
        work = Work(self._threads, call)
        self._begun(client)
        work.ended.add_done_callback(partial(self._done, client))
        return work

    async def call(self, call: Callable[[], T], client: str | None = None) -> T:
        """Make a long call and wait for it."""
        return await self.run(call, client).result()

    def close(self) -> None:
        """Wait for calls in threads."""
        self._threads.shutdown()

    def _begun(self, client: str | None) -> None:
        self._in_flight += 1
        if client is not None:
            self._of_client[client] += 1

    def _done(self, client: str | None, future: asyncio.Future[Any]) -> None:
        """Retrieve the exception of a call whose caller is gone, so that the loop does not complain."""
        self._in_flight -= 1
        if client is not None:
            self._of_client[client] -= 1
            if not self._of_client[client]:
                del self._of_client[client]
        if not future.cancelled():
            future.exception()
