"""Makes calls ahead of their turn, because latency dominates small ones."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

AHEAD = 8
"""Calls in flight at once, each of at most a megabyte of pages."""

Job = TypeVar("Job")
Result = TypeVar("Result")


def prefetch(jobs: Iterable[Job], work: Callable[[Job], Result]) -> Iterator[tuple[Job, Result]]:
    """The jobs with their results, in order, while the next ones are in flight."""
    with ThreadPoolExecutor(AHEAD) as threads:
        in_flight: deque[tuple[Job, Future[Result]]] = deque()
        try:
            for job in jobs:
                in_flight.append((job, threads.submit(work, job)))
                if len(in_flight) == AHEAD:
                    first, future = in_flight.popleft()
                    yield first, future.result()
            while in_flight:
                first, future = in_flight.popleft()
                yield first, future.result()
        finally:
            for _, future in in_flight:
                future.cancel()
