"""Threads for long calls, of which there are few.

A call in a thread is never abandoned: its caller may be cancelled, but `run` hands out the future that ends with the
work, so that whoever must know waits for that.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from tmemd.errors import LimitError
from tmemd.logs import Seldom

if TYPE_CHECKING:
    from collections.abc import Callable

T = TypeVar("T")


class Threaded:
    """What makes long calls in threads of its own."""

    def __init__(self, threads: int, most_waiting: int) -> None:
        self._threads = ThreadPoolExecutor(threads, thread_name_prefix="tmemd")
        self._most = threads + most_waiting
        self._under_way = 0
        self._limit = Seldom(f"{most_waiting} long calls wait for a thread, which is the limit")

    def run(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """Make a long call in a thread. Await it through `asyncio.shield`, as the work goes on without its caller.

        Raises:
            LimitError: Many wait already; the call is not made.
        """
        if self._under_way >= self._most:
            self._limit.warn()
            raise LimitError("the daemon is busy: too many long calls wait already")
        future = asyncio.get_running_loop().run_in_executor(self._threads, call)
        self._under_way += 1
        future.add_done_callback(self._done)
        return future

    async def call(self, call: Callable[[], T]) -> T:
        """Make a long call and wait for it."""
        return await asyncio.shield(self.run(call))

    def close(self) -> None:
        """Wait for the calls in threads."""
        self._threads.shutdown()

    def _done(self, future: asyncio.Future[Any]) -> None:
        """A failure whose caller went away is nobody's: do not have the loop complain."""
        self._under_way -= 1
        if not future.cancelled():
            future.exception()
