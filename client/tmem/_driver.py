"""Carries out the steps of operations on a gRPC channel, for threads."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from tmem import _exchange, _line, _server, _stream
from tmem._channel import OPTIONS, WINDOW, calls, failure, watch
from tmem._errors import ClosedError
from tmem._placement import Placement
from tmem._present import Present, Used
from tmem._steps import Replies, Send, Steps, Wait
from tmem._wire import UNAVAILABLE, Failure
from tmem_proto.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from collections.abc import Iterator

    from google.protobuf.message import Message

    from tmem._link import Link
    from tmem._tls import Security

_T = TypeVar("_T")


class _Connection(Used):
    """A channel to one process of a server, and what is called on it."""

    def __init__(self, address: str, security: Security, timeout: float) -> None:
        super().__init__()
        self.credentials = security.credentials
        if self.credentials is None:
            self.channel = grpc.insecure_channel(address, OPTIONS)
        else:
            self.channel = grpc.secure_channel(address, self.credentials, OPTIONS)
        self.calls = calls(self.channel)
        self.exchange: _line.Exchange | _stream.Exchange
        if _line.available(security):
            self.exchange = _line.Exchange(address, security, timeout)
        else:
            self.exchange = _stream.Exchange(self.channel, timeout)

    def close(self) -> None:
        self.exchange.close()
        self.channel.close()


class Driver:
    """Carries out steps. Safe to use from many threads."""

    def __init__(self, link: Link, security: Security) -> None:
        self._link = link
        self._timeout = link.options.timeout
        self._security = security
        self._doubted = False
        self._placement = Placement(link.address)
        self._placing = threading.Lock()
        self._present = Present(self._connect(link.address))
        self._closed = threading.Event()

    def run(self, steps: Steps[_T]) -> _T:
        try:
            step = next(steps)
            while True:
                step = steps.send(self._carry_out(step))
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            steps.close()

    def watch(self, pool: str | None) -> Iterator[_server.Event]:
        """Events from now on, as they come. No deadline: it ends with the iterator, the connection or the store."""
        request = _server.watch_request(pool)
        self._link.admit()
        self._place()
        connection = self._present.begin()
        stream = watch(connection.channel)(request)
        stream.initial_metadata()  # waits until the watch has begun, or failed
        return self._events(stream, connection)

    def _events(self, stream: Any, connection: _Connection) -> Iterator[_server.Event]:
        try:
            for message in stream:
                yield _server.event(message)
        except grpc.RpcError as error:
            raise self._failed(failure(error)).exception() from None
        finally:
            stream.cancel()
            self._close(self._present.done(connection))

    def close(self) -> None:
        self._link.closed = True
        self._closed.set()
        for connection in self._present.all():
            connection.close()

    def _close(self, connections: list[_Connection]) -> None:
        for connection in connections:
            connection.close()

    def _connect(self, address: str) -> _Connection:
        return _Connection(address, self._security, self._timeout)

    def _carry_out(self, step: Send | Wait) -> Replies:
        if isinstance(step, Wait):
            self._closed.wait(step.seconds)
            return []
        try:
            nobody = self._place()
            if nobody:
                return [nobody for _ in step.requests]
            connection = self._present.begin()
            try:
                if step.single:
                    return [self._one(connection, step)]
                return self._many(connection, step)
            finally:
                self._close(self._present.done(connection))
        except ValueError:
            # gRPC's own word for a channel that was closed meanwhile.
            if self._link.closed:
                raise ClosedError("the store is closed") from None
            raise

    def _place(self) -> Failure | None:
        """Where that is due, connect with renewed certificates, and ask which of the server's processes to use."""
        if not (self._placement.due or self._doubted):
            return None
        with self._placing:
            if self._doubted:
                self._renew()
            return self._ask_for_place() if self._placement.due else None

    def _renew(self) -> None:
        """A connection cannot be had, perhaps because of its certificates: take another if those on disk are new."""
        self._doubted = False
        self._security.renew()
        if self._present.connection.credentials is not self._security.credentials:
            self._close(self._present.move(self._connect(self._placement.address)))

    def _ask_for_place(self) -> Failure | None:
        placement, present = self._placement, self._present.connection
        before = placement.address
        home = present if before == placement.home else self._connect(placement.home)
        nobody = placement.answered(self._unary(home, "ListWorkers", admin.ListWorkersRequest()))
        now = present
        if placement.address != before:
            now = home if placement.address == placement.home else self._connect(placement.address)
        if home not in (present, now):
            home.close()
        self._close(self._present.move(now))
        return nobody

    def _one(self, connection: _Connection, step: Send) -> Any:
        (request,) = step.requests
        if _exchange.suits(step.method, request):
            answer = connection.exchange.carry_out(step.method, request)
            if answer is not None:
                return self._failed(answer) if isinstance(answer, Failure) else answer
        return self._unary(connection, step.method, request)

    def _unary(self, connection: _Connection, method: str, request: Message) -> Any:
        try:
            return connection.calls[method](request, timeout=self._timeout)
        except grpc.RpcError as error:
            return self._failed(failure(error))

    def _many(self, connection: _Connection, step: Send) -> Replies:
        """Several calls on their way at once, their requests made meanwhile."""
        if step.in_order and isinstance(connection.exchange, _line.Exchange):
            answers = connection.exchange.carry_out_all(step.method, step.requests)
            if answers is not None:
                return [self._failed(answer) if isinstance(answer, Failure) else answer for answer in answers]
        call = connection.calls[step.method]
        replies: Replies = []
        flying: deque[Any] = deque()
        try:
            for request in step.requests:
                if len(flying) == WINDOW:
                    replies.append(self._landed(flying.popleft()))
                flying.append(call.future(request, timeout=self._timeout))
            while flying:
                replies.append(self._landed(flying.popleft()))
        finally:
            for flight in flying:
                flight.cancel()
        return replies

    def _landed(self, flight: Any) -> Any:
        try:
            return flight.result()
        except grpc.FutureCancelledError:
            raise ClosedError("the store is closed") from None
        except grpc.RpcError as error:
            return self._failed(failure(error))

    def _failed(self, found: Failure) -> Failure:
        if self._link.closed:
            raise ClosedError("the store is closed") from None
        self._placement.failed(found)
        self._doubted |= found.code == UNAVAILABLE
        return found
