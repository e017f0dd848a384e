"""An end to streams of which nothing is heard, or that the daemon no longer has time for."""

from __future__ import annotations

import asyncio


class IdleTimer:
    """Cancels the task it is made in when it rests for so many seconds; `ended` then says so."""

    def __init__(self, seconds: float) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.ended = False
        self.at_work = False
        """Whether the stream has a command, which is to be answered."""
        self._busy = False
        self._seconds = seconds
        self._task = task
        self._loop = asyncio.get_running_loop()
        self._heard_at = self._loop.time()
        self._timer = self._loop.call_later(seconds, self._look)

    def begin(self) -> None:
        """A command has come."""
        self.at_work = self._busy = True

    def done(self) -> None:
        """It was carried out, and the reply is on its way to a client that may not read it."""
        self._busy = False
        self._heard_at = self._loop.time()

    def rest(self) -> None:
        """The reply is gone."""
        self.at_work = False
        self._heard_at = self._loop.time()

    def end(self) -> None:
        """Cancel the task now, unless it is at work."""
        if not self.at_work:
            self.ended = True
            self._task.cancel()

    def close(self) -> None:
        self._timer.cancel()

    def _look(self) -> None:
        now = self._loop.time()
        left = self._seconds if self._busy else self._heard_at + self._seconds - now
        if left > 0:
            self._timer = self._loop.call_later(left, self._look)
        else:
            self.ended = True
            self._task.cancel()
