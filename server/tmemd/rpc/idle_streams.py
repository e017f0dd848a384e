"""Ends streams that have gone silent, or must end because the daemon stops."""

from __future__ import annotations

import asyncio


class IdleTimer:
    """Cancels the task that created it after so many idle seconds; `ended` is then set."""

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.ended = False
        self.at_work = False
        """Whether a command awaits its reply."""
        self._busy = False
        self._seconds = seconds
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._check)

    def begin(self) -> None:
        """A command has arrived."""
        self.at_work = self._busy = True

    def done(self) -> None:
        """The command is done, and its reply is being sent."""
        self._busy = False
        self._heard_at = self._loop.time()

    def rest(self) -> None:
        """The reply is sent."""
        self.at_work = False
        self._heard_at = self._loop.time()

    def end(self) -> None:
        """Cancel the task now, unless a command awaits its reply."""
        if not self.at_work:
            self.ended = True
            self._task.cancel()

    def close(self) -> None:
        self._timer.cancel()

    def _check(self) -> None:
        now = self._loop.time()
        left = self._seconds if self._busy else self._heard_at + self._seconds - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._check)
        else:
            self.ended = True
            self._task.cancel()
