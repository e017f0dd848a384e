"""Carries out the steps of operations on a gRPC channel, for tasks. Made where no loop runs; connects in the first."""

from __future__ import annotations

import asyncio
import weakref
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
import grpc.aio

from tmem._model.errors import ClosedError
from tmem._protocol import admin_ops, exchange
from tmem._protocol.lanes import OTHER_LOOP
from tmem._protocol.messages import DEADLINE_EXCEEDED, UNAVAILABLE, Failure
from tmem._protocol.operations import Replies, Send, Steps, Wait
from tmem._protocol.routing import Placement
from tmem._runtime import forks
from tmem._transport.aio_exchange import Exchange
from tmem._transport.channel import OPTIONS, calls, failure, read, watch
from tmem._transport.connections import Connections, Counted
from tmem._transport.in_flight import InFlightLimit
from tmem_proto.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from google.protobuf.message import Message

    from tmem._protocol.connection import ServerState
    from tmem._transport.tls import Security

_T = TypeVar("_T")


class _Connection(Counted):
    """A channel to one process of a server, and what is called on it."""

    def __init__(self, address: str, security: Security, timeout: float) -> None:
        super().__init__()
        self.credentials = security.credentials
        if self.credentials is None:
            self.channel = grpc.aio.insecure_channel(address, OPTIONS)
        else:
            self.channel = grpc.aio.secure_channel(address, self.credentials, OPTIONS)
        self.calls = calls(self.channel)
        self.exchange = Exchange(self.channel, timeout)


class Driver:
    """Carries out steps, for any number of tasks."""

    def __init__(self, server: ServerState, security: Security) -> None:
        self.server = server
        self._timeout = server.options.timeout
        self._security = security
        self._doubted = False
        self._placement = Placement(server.address)
        self._placing = asyncio.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._opened: Connections[_Connection] | None = None
        self._lasting = object()
        weakref.finalize(self, forks.LONG_LIVED.discard, self._lasting)
        forks.register(self)

    @property
    def _connections(self) -> Connections[_Connection]:
        """Made in the event loop that is the first to use it, and for no other."""
        running = asyncio.get_running_loop()
        if self._loop is None:
            forks.check()
            forks.LONG_LIVED.add(self._lasting)
            self._opened = Connections(self._connect(self._placement.address))
            self._loop = running
        elif self._loop is not running or self._opened is None:
            raise RuntimeError(OTHER_LOOP)
        return self._opened

    def reset_after_fork(self) -> None:
        """In a child that was forked: gRPC's event loop is the parent's."""
        forks.leak(self._opened)
        self._opened = None

    async def run(self, steps: Steps[_T]) -> _T:
        try:
            step = next(steps)
            while True:
                step = steps.send(await self._carry_out(step))
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            steps.close()

    async def watch(self, pool: str | None) -> AsyncIterator[admin_ops.Event]:
        request = admin_ops.watch_request(pool).SerializeToString()
        self.server.admit()
        await self._place()
        connection = self._connections.acquire()
        stream: Any = watch(connection.channel)(request)
        with suppress(grpc.RpcError):  # which reading tells
            await stream.initial_metadata()
        return self._events(stream, connection)

    async def _events(self, stream: Any, connection: _Connection) -> AsyncIterator[admin_ops.Event]:
        try:
            async for message in stream:
                yield admin_ops.event(admin.Event.FromString(message))
        except grpc.RpcError as error:
            raise self._failed(failure(error)).exception() from None
        except asyncio.CancelledError:
            self._unless_cancelled()
            raise
        finally:
            stream.cancel()
            await self._close(self._connections.release(connection))

    async def close(self) -> None:
        self.server.closed = True
        forks.LONG_LIVED.discard(self._lasting)
        if self._opened is not None:
            await self._close(self._opened.all())

    async def _close(self, connections: list[_Connection]) -> None:
        for connection in connections:
            await connection.channel.close()

    def _connect(self, address: str) -> _Connection:
        return _Connection(address, self._security, self._timeout)

    async def _carry_out(self, step: Send | Wait) -> Replies:
        if isinstance(step, Wait):
            await asyncio.sleep(step.seconds)
            return []
        try:
            nobody = await self._place()
            if nobody:
                return [nobody for _ in step.requests]
            connection = self._connections.acquire()
            try:
                if step.single:
                    return [await self._one(connection, step)]
                return await self._many(connection, step)
            finally:
                await self._close(self._connections.release(connection))
        except grpc.aio.UsageError:
            raise ClosedError("the store is closed") from None

    async def _place(self) -> Failure | None:
        """Where that is due, connect with renewed certificates, and ask which of the server's processes to use."""
        if not (self._placement.due or self._doubted):
            return None
        async with self._placing:
            if self._doubted:
                await self._renew()
            return await self._ask_for_place() if self._placement.due else None

    async def _renew(self) -> None:
        """A connection cannot be had, perhaps because of its certificates: take another if those on disk are new."""
        self._doubted = False
        self._security.renew()
        if self._connections.current.credentials is not self._security.credentials:
            await self._close(self._connections.replace(self._connect(self._placement.address)))

    async def _ask_for_place(self) -> Failure | None:
        placement, current = self._placement, self._connections.current
        before = placement.address
        home = current if before == placement.home else self._connect(placement.home)
        nobody = placement.answered(await self._unary(home, "ListWorkers", admin.ListWorkersRequest()))
        now = current
        if placement.address != before:
            now = home if placement.address == placement.home else self._connect(placement.address)
        if home not in (current, now):
            await home.channel.close()
        await self._close(self._connections.replace(now))
        return nobody

    async def _one(self, connection: _Connection, step: Send) -> Any:
        (request,) = step.requests
        if exchange.is_short(step.method, request):
            answer = await connection.exchange.carry_out(step.method, request)
            if answer is not None:
                return self._failed(answer) if isinstance(answer, Failure) else answer
        return await self._unary(connection, step.method, request)

    async def _unary(self, connection: _Connection, method: str, request: Message) -> Any:
        pending = connection.calls[method](request.SerializeToString(), timeout=self._timeout)
        return await self._result(method, pending)

    async def _many(self, connection: _Connection, step: Send) -> Replies:
        """Several calls in flight at once; requests are made meanwhile."""
        call = connection.calls[step.method]
        limit = InFlightLimit(self._timeout)
        replies: Replies = []
        in_flight: deque[Any] = deque()
        try:
            for request in step.requests:
                while len(in_flight) >= limit.window:
                    replies.append(await self._result(step.method, in_flight.popleft(), limit))
                in_flight.append(call(request.SerializeToString(), timeout=limit.deadline(len(in_flight))))
            while in_flight:
                replies.append(await self._result(step.method, in_flight.popleft(), limit))
        finally:
            for pending in in_flight:
                pending.cancel()
        return replies

    async def _result(self, method: str, pending: Any, limit: InFlightLimit | None = None) -> Any:
        try:
            async with asyncio.timeout(limit.remaining() if limit else None):
                message = await pending
        except grpc.RpcError as error:
            return self._failed(failure(error))
        except TimeoutError:
            return self._failed(Failure(DEADLINE_EXCEEDED, "deadline exceeded"))
        except asyncio.CancelledError:
            self._unless_cancelled()
            raise
        finally:
            pending.cancel()
        if limit:
            limit.answered()
        return read(method, message)

    def _failed(self, found: Failure) -> Failure:
        if self.server.closed:
            raise ClosedError("the store is closed") from None
        self._placement.failed(found)
        self._doubted |= found.code == UNAVAILABLE
        return found

    def _unless_cancelled(self) -> None:
        """Closing the channel cancels its calls; cancelling the task cancels the task."""
        task = asyncio.current_task()
        if self.server.closed and not (task and task.cancelling()):
            raise ClosedError("the store is closed") from None
