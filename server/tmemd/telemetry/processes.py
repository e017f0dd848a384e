"""The worker processes of an arena, as each of them knows them. Without workers the daemon is the only one."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Sequence

    from tmemd.telemetry.counters import Counts


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker, with the sessions that it last reported. Process 0: it is being replaced."""

    number: int
    port: int
    process: int
    replaced: int = 0
    sessions: int = 0


class Workers:
    """All workers, their total counts, and which of them a new client should use."""

    def __init__(self, counts: Counts) -> None:
        """Start with this process alone, and its counts."""
        self.all: Sequence[Worker] = (Worker(0, 0, os.getpid()),)
        self.ask: Callable[[], Awaitable[Counts]] | None = None
        """Asks the supervisor what all have counted."""
        self.first: Callable[[str, bytes], Awaitable[bytes]] | None = None
        """Has worker 0 answer a call; None where this is the one."""
        self._own = counts
        self._sent: Counter[int] = Counter()
        self._turn = 0
        counts.workers = 1

    def alone(self, port: int) -> None:
        """This process, on this port, is the only one."""
        self.told((Worker(0, port, os.getpid()),))

    def told(self, workers: Sequence[Worker]) -> None:
        """Take over the supervisor's list of workers."""
        self.all = workers
        self._sent.clear()

    def suggest(self) -> Worker:
        """The worker with the fewest sessions, counting clients just sent to it; round robin among equals."""
        self._turn += 1
        chosen = min([worker for worker in self.all if worker.process] or self.all, key=self._rank)
        self._sent[chosen.number] += 1
        return chosen

    async def counts(self) -> Counts:
        """The counts of all workers since the daemon started, including dead ones."""
        return self._own if self.ask is None else await self.ask()

    def _rank(self, worker: Worker) -> tuple[int, int]:
        return worker.sessions + self._sent[worker.number], (worker.number - self._turn) % len(self.all)
