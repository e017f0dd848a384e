"""The processes that serve one arena, as each of them knows them. A daemon without workers is its own only one."""

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
    """A process that serves, and the sessions it had when it last said so. Process 0: it is just being replaced."""

    number: int
    port: int
    process: int
    replaced: int = 0
    sessions: int = 0


class Workers:
    """All workers, what they have counted together, and which of them a new client should use."""

    def __init__(self, counts: Counts) -> None:
        """This process alone, with its counts."""
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
        """There is this process only, on a port."""
        self.told((Worker(0, port, os.getpid()),))

    def told(self, workers: Sequence[Worker]) -> None:
        """These there are now, says the supervisor."""
        self.all = workers
        self._sent.clear()

    def suggest(self) -> Worker:
        """The worker with the fewest sessions, those just sent to it counted; in turn among equals."""
        self._turn += 1
        chosen = min([worker for worker in self.all if worker.process] or self.all, key=self._rank)
        self._sent[chosen.number] += 1
        return chosen

    async def counts(self) -> Counts:
        """What all have counted together since the daemon started, the dead included."""
        return self._own if self.ask is None else await self.ask()

    def _rank(self, worker: Worker) -> tuple[int, int]:
        return worker.sessions + self._sent[worker.number], (worker.number - self._turn) % len(self.all)
