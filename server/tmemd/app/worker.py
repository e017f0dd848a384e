"""A worker: the process `python -m tmemd.app.worker` that a supervisor starts, with the control channel as its stdin.

It serves like a single daemon, on its own port and an arena that others use too. It ends with its supervisor: the
kernel kills it when the supervisor dies, and it exits at the end of the control channel.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import os
import signal
import socket
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, NoReturn

import uvloop

import tmemd.process.grpc_polling  # noqa: F401 - before anything that imports gRPC
from tmemd.app.daemon import Daemon
from tmemd.base.errors import TmemdError
from tmemd.base.logs import log, log_to_stderr
from tmemd.base.parsers import join_address, split_address
from tmemd.base.signals import on_signals
from tmemd.base.startup import IGNORED, ignore
from tmemd.config.settings import restore
from tmemd.telemetry.counters import Counts
from tmemd.telemetry.processes import Worker
from tmemd.workers.control_channel import Control
from tmemd.workers.relay import carry_out, reply_of, request_of

if TYPE_CHECKING:
    from tmemd.config.settings import Config
    from tmemd.workers.control_channel import Message

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Serve until told to stop; the exit status."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # A terminal sends the last two to all processes; the supervisor acts on them.
    ignore(*IGNORED, signal.SIGINT, signal.SIGHUP)
    return uvloop.run(_work(socket.socket(fileno=os.dup(0))))


async def _work(end: socket.socket) -> int:
    control = await Control.over(end)
    start = await control.receive()
    if start is None:
        return 1
    stopping = on_signals(signal.SIGTERM)
    try:
        config = _config(start["start"], start["port"])
        log_to_stderr(f"tmemd worker {start['number']}", config.log_format, config.log_level)
        daemon = Daemon(config, first=start["number"] == 0)
        await daemon.start()
    except (TmemdError, ValueError, OSError) as error:
        control.send(failed=str(error))
        control.close()
        return 2
    supervised = _Supervised(control, daemon, stopping, first=start["number"] == 0)
    control.send(ready=daemon.port)
    obeying = asyncio.create_task(supervised.obey())
    await stopping.wait()
    await daemon.stop()
    obeying.cancel()
    control.close()
    return 0


def _config(settings: str, port: int) -> Config:
    config = restore(settings)
    host, _ = split_address(config.listen)
    return replace(config, listen=join_address(host, port), metrics=None)


class _Supervised:
    """A daemon and the control channel to its supervisor."""

    def __init__(self, control: Control, daemon: Daemon, stopping: asyncio.Event, first: bool) -> None:
        self._control = control
        self._daemon = daemon
        self._stopping = stopping
        self._numbers = itertools.count()
        self._totals: dict[int, asyncio.Future[Counts]] = {}
        self._calls: dict[int, asyncio.Future[Message]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        daemon.workers.ask = self._total
        if not first:
            daemon.workers.first = self._call

    async def obey(self) -> NoReturn:
        async for message in self._control.messages():
            self._take(message)
        log.error("the supervisor is gone")
        os._exit(1)

    def _take(self, message: Message) -> None:
        if "count" in message:
            self._control.send(counted=message["count"], counts=self._daemon.counted().dump())
        elif "workers" in message:
            self._daemon.workers.told([Worker(**fields) for fields in message["workers"]])
        elif "total" in message:
            if (waiting := self._totals.get(message["total"])) and not waiting.done():
                waiting.set_result(Counts.load(message["counts"]))
        elif "answer" in message:
            if (called := self._calls.get(message["answer"])) and not called.done():
                called.set_result(message)
        elif "carry" in message:
            task = asyncio.create_task(self._carry(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif "settle" in message:
            self._daemon.settle(_config(message["settle"], self._daemon.port))
        elif "stop" in message:
            self._stopping.set()

    async def _carry(self, message: Message) -> None:
        answer = await carry_out(self._daemon.exports.answer, message)
        self._control.send(carried=message["carry"], **answer)

    async def _call(self, method: str, request: bytes) -> bytes:
        number = next(self._numbers)
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._calls[number] = answer
        self._control.send(call=number, **request_of(method, request))
        try:
            return reply_of(await answer)
        finally:
            del self._calls[number]

    async def _total(self) -> Counts:
        number = next(self._numbers)
        answer: asyncio.Future[Counts] = asyncio.get_running_loop().create_future()
        self._totals[number] = answer
        self._control.send(total=number)
        try:
            return await answer
        finally:
            del self._totals[number]


if __name__ == "__main__":
    sys.exit(main())
