"""An `Exchange` stream for tasks: any number of commands at once, their replies matched by number.

A command whose answer does not come in time fails; its reply is dropped when it comes. As it may hold up those behind
it, no further command goes on its stream. A stream that breaks fails all commands that it had: their fate is unknown.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import grpc
import grpc.aio

from tmem._protocol import exchange
from tmem._protocol.exchange import ENDED, IDLE
from tmem._protocol.messages import DEADLINE_EXCEEDED, UNIMPLEMENTED, Failure
from tmem._transport.channel import failure

if TYPE_CHECKING:
    from google.protobuf.message import Message


class Exchange:
    """The stream of a channel, opened when it is used."""

    def __init__(self, channel: grpc.aio.Channel, timeout: float) -> None:
        self._method: Any = channel.stream_stream(exchange.EXCHANGE)
        self._timeout = timeout
        self._open: _Stream | None = None
        self._supported = True

    async def carry_out(self, method: str, request: Message) -> Any:
        """The response, or a Failure; None where the call is to be made in another way."""
        if not self._supported:
            return None
        if self._open is None or self._open.over:
            self._open = _Stream(self._method(), self._timeout)
        found = await self._open.exchange(method, request)
        if isinstance(found, Failure) and found.code == UNIMPLEMENTED:
            self._supported = False
            return None
        return found


class _Stream:
    """One stream. `over` says that it takes no more commands."""

    def __init__(self, call: Any, timeout: float) -> None:
        self._call = call
        self._timeout = timeout
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._outbox: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._used_at = self._loop.time()
        self._tasks = [self._loop.create_task(self._write()), self._loop.create_task(self._read())]
        self._idle = self._loop.call_later(IDLE, self._end_idle)
        self.over = False

    async def exchange(self, method: str, request: Message) -> Any:
        number = next(self._numbers)
        done = self._waiting[number] = self._loop.create_future()
        late = self._loop.call_later(self._timeout, self._late, number)
        self._outbox.put_nowait(exchange.command(number, method, request))
        try:
            reply = await done
        finally:
            late.cancel()
            self._waiting.pop(number, None)
            self._used_at = self._loop.time()
            self._end_unused()
        return reply if isinstance(reply, Failure) else exchange.answer(reply, method)

    async def _write(self) -> None:
        try:
            while (written := await self._outbox.get()) is not None:
                await self._call.write(written)
            await self._call.done_writing()
        except (grpc.RpcError, asyncio.InvalidStateError, grpc.aio.UsageError):
            pass  # the reader knows why

    async def _read(self) -> None:
        why = ENDED
        try:
            while (message := await self._call.read()) is not grpc.aio.EOF:
                reply = exchange.read(message)
                if isinstance(reply, Failure):
                    why = exchange.broken(reply)
                    self._call.cancel()
                    break
                waiting = self._waiting.get(reply.id)
                if waiting is not None and not waiting.done():
                    waiting.set_result(reply)
        except grpc.RpcError as error:
            why = exchange.broken(failure(error))
        finally:
            self.over = True
            self._idle.cancel()
            self._outbox.put_nowait(None)
            for waiting in self._waiting.values():
                if not waiting.done():
                    waiting.set_result(why)

    def _late(self, number: int) -> None:
        waiting = self._waiting[number]
        if not waiting.done():  # its reply came, or it was cancelled, in this very turn of the loop
            self.over = True
            waiting.set_result(Failure(DEADLINE_EXCEEDED, "deadline exceeded"))

    def _end_unused(self) -> None:
        """End a stream that takes no more commands and has none."""
        if self.over and not self._waiting:
            self._idle.cancel()
            self._call.cancel()

    def _end_idle(self) -> None:
        rest = self._used_at + IDLE - self._loop.time()
        if self._waiting or rest > 0:
            self._idle = self._loop.call_later(max(rest, IDLE / 4), self._end_idle)
        else:
            self.over = True
            self._outbox.put_nowait(None)
