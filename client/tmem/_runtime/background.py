"""A few threads of this process for work that nobody waits for, or not for long. Bounded: what is too much is refused.

The threads are daemons, so that a store which hangs does not keep a program from ending; at exit what is queued is
dropped and what runs is waited for a moment. A forked child starts with threads of its own and an empty queue.
"""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from typing import TYPE_CHECKING

from tmem._runtime import forks

if TYPE_CHECKING:
    from collections.abc import Callable

_EXIT_SECONDS = 2.0


class Workers:
    """At most `threads` threads, started as they are needed, and `backlog` jobs that wait for one. For module level."""

    def __init__(self, name: str, threads: int, backlog: int) -> None:
        self._name = name
        self._most = threads
        self._backlog = backlog
        self.reset_after_fork()
        forks.register(self)
        atexit.register(self._stop)

    def submit(self, job: Callable[[], object]) -> bool:
        """Have a job run, which raises nothing; False where there is too much to do already."""
        with self._lock:
            if self._stopping or len(self._jobs) >= self._backlog:
                return False
            self._jobs.append(job)
            if len(self._jobs) > self._idle and len(self._threads) < self._most:
                thread = threading.Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._changed.notify()
        return True

    def reset_after_fork(self) -> None:
        """No threads, nothing to do: at first, and in a child that was forked."""
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._jobs: deque[Callable[[], object]] = deque()
        self._threads: list[threading.Thread] = []
        self._idle = 0
        self._stopping = False

    def _work(self) -> None:
        while True:
            with self._lock:
                self._idle += 1
                while not self._jobs and not self._stopping:
                    self._changed.wait()
                self._idle -= 1
                if self._stopping:
                    return
                job = self._jobs.popleft()
            job()
            del job

    def _stop(self) -> None:
        with self._lock:
            self._stopping = True
            self._jobs.clear()
            self._changed.notify_all()
        end = time.monotonic() + _EXIT_SECONDS
        for thread in self._threads:
            thread.join(max(0.0, end - time.monotonic()))
