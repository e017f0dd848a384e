"""Threads for long calls, of which there are few.

A call that was begun in a thread is never abandoned: its caller may be cancelled, but `Work.ended` is done only when
the thread is, so that whoever must know waits for that. One that still waits for a thread when its caller is cancelled
is dropped with all it holds: callers that come and go leave nothing behind.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from tmemd.errors import LimitError
from tmemd.logs import Seldom

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class _Job(Generic[T]):
    """A call that can be dropped while it waits in the executor's queue."""

    def __init__(self, call: Callable[[], T]) -> None:
        self.call: Callable[[], T] | None = call

    def __call__(self) -> T:
        assert self.call is not None
        return self.call()


class Work(Generic[T]):
    """A call in a thread, or waiting for one."""

    def __init__(self, threads: ThreadPoolExecutor, call: Callable[[], T]) -> None:
        self._job = _Job(call)
        self._thread = threads.submit(self._job)
        self.ended: asyncio.Future[T] = asyncio.wrap_future(self._thread)

    async def result(self) -> T:
        """What came of it. Where its caller is cancelled, a call that has not begun never does."""
        try:
            return await asyncio.shield(self.ended)
        except asyncio.CancelledError:
            if self._thread.cancel():
                self._job.call = None
            raise


class Threaded:
    """What makes long calls in threads of its own."""

    def __init__(self, threads: int, most_waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tmemd")
        self._most = threads + most_waiting
        self._under_way = 0
        self._limit = Seldom(f"{most_waiting} long calls wait for a thread, which is the limit")

    def run(self, call: Callable[[], T]) -> Work[T]:
        """Make a long call in a thread.

        Raises:
            LimitError: Many wait already; the call is not made.
        """
        if self._under_way >= self._most:
            self._limit.warn()
            raise LimitError("the daemon is busy: too many long calls wait already")
        work = Work(self._threads, call)
        self._under_way += 1
        work.ended.add_done_callback(self._done)
        return work

    async def call(self, call: Callable[[], T]) -> T:
        """Make a long call and wait for it."""
        return await self.run(call).result()

    def close(self) -> None:
        """Wait for the calls in threads."""
        self._threads.shutdown()

    def _done(self, future: asyncio.Future[Any]) -> None:
        """A failure whose caller went away is nobody's: do not have the loop complain."""
        self._under_way -= 1
        if not future.cancelled():
            future.exception()
