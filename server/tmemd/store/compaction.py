"""Compacts in the background, so that unused memory is returned without being asked for.

Replaced and flushed pages leave holes that only pages of the same size can fill. When holes reach an eighth of the
footprint, pages are moved together. What is left then cannot be freed: the next compaction waits for a sixteenth more.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from tmemd.base.errors import LimitError
from tmemd.base.logs import RateLimitedErrors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tmemd.store.api import Store

THRESHOLD, STEP = 1 / 8, 1 / 16
SMALLEST = 1 << 20
"""Bytes of footprint below which compaction gains nothing."""


def unused_part(stats: Mapping[str, int]) -> float:
    """The share of the footprint that holds no page."""
    footprint = stats["footprint_bytes"]
    if footprint < SMALLEST:
        return 0.0
    return 1 - (stats["payload_bytes"] + stats["slot_header_bytes"]) / footprint


class Compactor:
    """Compacts periodically; 0 disables it."""

    def __init__(self, store: Store, seconds: int) -> None:
        self._store = store
        self._seconds = seconds
        self._left = 0.0
        self._faults = RateLimitedErrors()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._seconds:
            self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Returns once no compaction is running."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self._store.call(self._compact_if_worth_it)
            except LimitError:
                continue  # more urgent work comes first
            except Exception as error:
                self._faults.log("cannot compact the store", error)

    def _compact_if_worth_it(self) -> None:
        now = unused_part(self._store.stats())
        self._left = min(self._left, now)
        if now >= max(THRESHOLD, self._left + STEP):
            self._store.compact()
            self._left = unused_part(self._store.stats())
