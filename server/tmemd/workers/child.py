"""A worker as its supervisor sees it: a number and a port, served by one process at a time.

A process is started once its predecessor has ended, so that the predecessor's requests have landed or never will. One
that misses its heartbeats is killed: it hangs, and its clients with it. Totals include the counts of dead processes.
"""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tmemd.base.errors import WorkerError
from tmemd.base.logs import log, stderr_descriptor
from tmemd.telemetry.counters import Counts
from tmemd.telemetry.processes import Worker
from tmemd.workers.control_channel import Control

if TYPE_CHECKING:
    from collections.abc import Callable

    from tmemd.workers.control_channel import Message

_COMMAND = (sys.executable, "-P", "-m", "tmemd.app.worker")
_TRIES = 5
"""Processes in a row that end before they serve, until this is given up."""
_LONG_LIFE = 10.0
_SHORTEST_WAIT, _LONGEST_WAIT = 0.1, 5.0
_TO_END = 5.0
"""Seconds a process has to end once it let go of the control line."""
_LISTEN = 1.0
"""Seconds between questions that a process is to answer."""


class Child:
    """One worker: call `spawn`, then `hold`, which keeps a process serving until `stop`."""

    def __init__(self, number: int, port: int, patience: int, heard: Callable[[Child, Message], None]) -> None:
        """`heard` is called with every message of a process, and with {} when it has ended.

        A process that is silent for `patience` seconds is killed; 0 disables this.
        """
        self.number = number
        self.port = port
        self._patience = patience
        self.ready = asyncio.Event()
        self._heard = heard
        self._replaced = 0
        self._process: asyncio.subprocess.Process | None = None
        self._control: Control | None = None
        self._spoke = False
        self._failure = ""
        self._inherited: tuple[int, ...] = ()
        self._stopping = asyncio.Event()
        self._past = Counts()
        self._now = Counts()
        self._asked = 0
        self._awaited: dict[int, asyncio.Event] = {}

    @property
    def worker(self) -> Worker:
        process = self._process.pid if self._process is not None and self.ready.is_set() else 0
        return Worker(self.number, self.port, process, self._replaced, self._now.sessions)

    async def spawn(self, *inherited: int) -> None:
        """Start a process, which does its imports while it waits for its settings.

        It and its replacements keep these descriptors open until they end.
        """
        self._inherited = inherited or self._inherited
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *_COMMAND,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=stderr_descriptor(),
                pass_fds=self._inherited,
            )
        self._control = await Control.over(ours)

    async def hold(self, settings: Callable[[], str]) -> None:
        """Serve with these settings, and replace processes that die.

        Raises:
            WorkerError: A process cannot serve: the first of all, or several in a row.
        """
        failed = quick = 0
        while True:
            begun = time.monotonic()
            why = await self._live(settings())
            if self._stopping.is_set():
                return
            failed = 0 if self.ready.is_set() else failed + 1
            if failed and (failed == _TRIES or not self._replaced):
                raise WorkerError(self.number, failed, why)
            quick = 0 if time.monotonic() - begun > _LONG_LIFE else quick + 1
            log.warning("worker %d died: %s; replacing it", self.number, why)
            self._replaced += 1
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), _wait_before(quick))
                return
            await self.spawn()

    async def counts(self, timeout: float = 1.0) -> Counts:
        """The counts of all its processes; the last known ones if the current process does not answer in time."""
        if self.ready.is_set():
            self._asked += 1
            asked = self._asked
            answered = self._awaited[asked] = asyncio.Event()
            self.send(count=asked)
            with suppress(TimeoutError):
                await asyncio.wait_for(answered.wait(), timeout)
            del self._awaited[asked]
        total = Counts(worker_replacements=self._replaced)
        total.add(self._past)
        total.add(self._now)
        return total

    def send(self, **message: Any) -> None:
        """Send a message to the process, if there is one."""
        if self._control is not None:
            self._control.send(**message)

    def stop(self) -> None:
        """Ask the process to stop in order; `hold` then returns."""
        self._stopping.set()
        self.send(stop=True)

    async def kill(self) -> None:
        """Kill the process, if there is one."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _live(self, settings: str) -> str:
        """Run one process from its settings to its end; returns how it ended."""
        assert self._process is not None
        assert self._control is not None
        self._failure = ""
        self.ready.clear()
        self.send(start=settings, number=self.number, port=self.port)
        listening = asyncio.create_task(self._listen(self._process))
        try:
            async for message in self._control.messages():
                self._take(message)
        finally:
            listening.cancel()
        self._control.close()
        try:
            status = await asyncio.wait_for(self._process.wait(), _TO_END)
        except TimeoutError:
            await self.kill()
            status = self._process.returncode or 0
        self._bury()
        return self._failure or _ending(status)

    async def _listen(self, process: asyncio.subprocess.Process) -> None:
        """Kill a serving process that is silent for too long.

        Only time that this process sees pass counts, check by check: if both were stopped, as in a paused container, or
        this one alone, that is not silence.
        """
        await self.ready.wait()
        silent = 0.0
        while not 0 < self._patience <= silent:
            self._spoke = False
            self.send(count=0)
            await asyncio.sleep(_LISTEN)
            silent = 0 if self._spoke or self._stopping.is_set() else silent + _LISTEN
        self._failure = f"it sent no heartbeat for {self._patience} s and was killed"
        process.kill()

    def _take(self, message: Message) -> None:
        self._spoke = True
        if "ready" in message:
            self.port = message["ready"]
            self.ready.set()
        elif "failed" in message:
            self._failure = message["failed"]
        elif "counted" in message:
            self._now = Counts.load(message["counts"])
            if answered := self._awaited.get(message["counted"]):
                answered.set()
        self._heard(self, message)

    def _bury(self) -> None:
        self._past.add(self._now, gauges=False)
        self._now = Counts()
        self._process = self._control = None
        for answered in self._awaited.values():
            answered.set()
        self._heard(self, {})


def _wait_before(quick: int) -> float:
    """Seconds to wait before the next process, after so many short lives in a row; none after the first."""
    return min(_SHORTEST_WAIT * 2.0 ** min(quick - 2, 10), _LONGEST_WAIT) if quick > 1 else 0


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
