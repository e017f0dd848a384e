"""Carries out the steps of operations on a gRPC channel, for threads.

What a signal handler raises may come between any two steps here, and in gRPC. Then nothing is known of the connection,
and another takes its place; a child that was forked makes its own.
"""

from __future__ import annotations

import _thread
import queue
import threading
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from tmem._model.errors import ClosedError, TmemError
from tmem._protocol import admin_ops, exchange
from tmem._protocol.messages import DEADLINE_EXCEEDED, UNAVAILABLE, Failure
from tmem._protocol.operations import Replies, Send, Steps, Wait
from tmem._protocol.routing import Placement
from tmem._runtime import forks
from tmem._transport.channel import OPTIONS, calls, failure, read, watch
from tmem._transport.connections import Connections, Counted
from tmem._transport.h2 import direct
from tmem._transport.in_flight import InFlightLimit
from tmem_proto.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from collections.abc import Iterator

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
            self.channel = grpc.insecure_channel(address, OPTIONS)
        else:
            self.channel = grpc.secure_channel(address, self.credentials, OPTIONS)
        self.calls = calls(self.channel)
        # A stream of gRPC's own would be a call in flight in every fork, and leave gRPC unusable in the child.
        self.exchange = direct.Exchange(address, security, timeout) if direct.available(security) else None

    def close(self) -> None:
        if self.exchange is not None:
            self.exchange.close()
        self.channel.close()

    def abandon(self) -> None:
        """Close what was interrupted, in a thread of its own: gRPC may have been left with a lock held."""
        threading.Thread(target=self.close, name="tmem-abandon", daemon=True).start()


class Driver:
    """Carries out steps. Safe to use from many threads."""

    def __init__(self, server: ServerState, security: Security) -> None:
        self._server = server
        self._timeout = server.options.timeout
        self._security = security
        self._doubted = False
        self._interrupted = False
        self._placement = Placement(server.address)
        self._placing = forks.lock()
        self._opened: Connections[_Connection] | None = None
        self._closed = threading.Event()
        forks.register(self)

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

    def watch(self, pool: str | None) -> Iterator[admin_ops.Event]:
        """Events from now on, as they come. No deadline: it ends with the iterator, the connection or the store."""
        request = admin_ops.watch_request(pool).SerializeToString()
        self._server.admit()
        forks.check()
        connections = self._connections
        self._place()
        connection = connections.acquire()
        stream = watch(connection.channel)(request)
        forks.LONG_LIVED.add(stream)
        stream.initial_metadata()  # waits until the watch has begun, or failed
        return self._events(stream, connections, connection)

    def _events(
        self, stream: Any, connections: Connections[_Connection], connection: _Connection
    ) -> Iterator[admin_ops.Event]:
        try:
            for message in stream:
                yield admin_ops.event(admin.Event.FromString(message))
        except grpc.RpcError as error:
            raise self._failed(failure(error)).exception() from None
        finally:
            # In a forked child it is not there, and the parent's.
            if stream in forks.LONG_LIVED:
                forks.LONG_LIVED.discard(stream)
                stream.cancel()
                self._close(connections.release(connection))

    def close(self) -> None:
        self._server.closed = True
        self._closed.set()
        for connection in self._opened.all() if self._opened else ():
            connection.close()

    @property
    def _connections(self) -> Connections[_Connection]:
        if self._opened is None:
            with self._placing:
                if self._opened is None:
                    self._opened = Connections(self._connect(self._placement.address))
        return self._opened

    def reset_after_fork(self) -> None:
        """In a child that was forked: the connections are the parent's."""
        opened, self._opened = self._opened, None
        self._interrupted = False
        if opened is not None:
            forks.leak(opened)
            for connection in opened.all():
                if connection.exchange is not None:
                    connection.exchange.leave()
        if not self._server.closed:
            self._closed = threading.Event()

    def _close(self, connections: list[_Connection]) -> None:
        for connection in connections:
            connection.close()

    def _connect(self, address: str) -> _Connection:
        return _Connection(address, self._security, self._timeout)

    def _carry_out(self, step: Send | Wait) -> Replies:
        if isinstance(step, Wait):
            self._closed.wait(step.seconds)
            return []
        token = object()
        try:
            forks.begin(token)
            return self._send(step)
        except TmemError:
            raise
        except RuntimeError as error:
            # An interrupted wait in gRPC ends with one about its lock.
            self._interrupted = True
            raise (error.__context__ or error) from None
        except BaseException:
            self._interrupted = True
            raise
        finally:
            forks.CALLS.discard(token)

    def _send(self, step: Send) -> Replies:
        try:
            connections = self._connections
            if self._interrupted:
                self._replace(connections)
            nobody = self._place()
            if nobody:
                return [nobody for _ in step.requests]
            connection = connections.acquire()
            try:
                if step.single:
                    return [self._one(connection, step)]
                answers = self._by_line(connection, step)
                if answers is not None:
                    return answers
                if threading.current_thread() is threading.main_thread():
                    return self._many_aside(connection, step)
                return self._many(connection, step, [])
            finally:
                self._close(connections.release(connection))
        except ValueError:
            # gRPC's own word for a channel that was closed meanwhile.
            if self._server.closed:
                raise ClosedError("the store is closed") from None
            raise

    def _replace(self, connections: Connections[_Connection]) -> None:
        """Take another connection for one that was interrupted."""
        with self._placing:
            if self._interrupted:
                retired = connections.replace(self._connect(self._placement.address))
                self._interrupted = False
                for connection in retired:
                    connection.abandon()

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
        if self._connections.current.credentials is not self._security.credentials:
            self._close(self._connections.replace(self._connect(self._placement.address)))

    def _ask_for_place(self) -> Failure | None:
        placement, current = self._placement, self._connections.current
        before = placement.address
        home = current if before == placement.home else self._connect(placement.home)
        nobody = placement.answered(self._unary(home, "ListWorkers", admin.ListWorkersRequest()))
        now = current
        if placement.address != before:
            now = home if placement.address == placement.home else self._connect(placement.address)
        if home not in (current, now):
            home.close()
        self._close(self._connections.replace(now))
        return nobody

    def _one(self, connection: _Connection, step: Send) -> Any:
        (request,) = step.requests
        if connection.exchange is not None and exchange.suits(step.method, request):
            answer = connection.exchange.carry_out(step.method, request)
            if answer is not None:
                return self._failed(answer) if isinstance(answer, Failure) else answer
        return self._unary(connection, step.method, request)

    def _unary(self, connection: _Connection, method: str, request: Message) -> Any:
        try:
            message = connection.calls[method](request.SerializeToString(), timeout=self._timeout)
        except grpc.RpcError as error:
            return self._failed(failure(error))
        return read(method, message)

    def _many_aside(self, connection: _Connection, step: Send) -> Replies:
        """As `_many`, in a thread where no signal handler runs: what it raises would leave futures of gRPC locked."""
        done: queue.SimpleQueue[tuple[Replies, BaseException | None]] = queue.SimpleQueue()
        ended: list[None] = []

        def work() -> None:
            token = object()
            try:
                forks.begin(token)
                done.put((self._many(connection, step, ended), None))
            except BaseException as error:
                done.put(([], error))
            finally:
                forks.CALLS.discard(token)

        try:
            _thread.start_new_thread(work, ())
            replies, error = done.get()
        except BaseException:
            ended.append(None)
            raise
        if error is not None:
            raise error
        return replies

    def _by_line(self, connection: _Connection, step: Send) -> Replies | None:
        if step.in_order and connection.exchange is not None:
            answers = connection.exchange.carry_out_all(step.method, step.requests)
            if answers is not None:
                return [self._failed(answer) if isinstance(answer, Failure) else answer for answer in answers]
        return None

    def _many(self, connection: _Connection, step: Send, ended: list[None]) -> Replies:
        """Several calls in flight at once; requests are made meanwhile, until `ended` has something in it."""
        call = connection.calls[step.method]
        limit = InFlightLimit(self._timeout)
        replies: Replies = []
        in_flight: deque[Any] = deque()
        try:
            for request in step.requests:
                if ended:
                    break
                while len(in_flight) >= limit.window:
                    replies.append(self._result(step.method, in_flight.popleft(), limit))
                in_flight.append(call.future(request.SerializeToString(), timeout=limit.deadline(len(in_flight))))
            while in_flight:
                replies.append(self._result(step.method, in_flight.popleft(), limit))
        finally:
            for pending in in_flight:
                pending.cancel()
        return replies

    def _result(self, method: str, pending: Any, limit: InFlightLimit) -> Any:
        try:
            message = pending.result(timeout=limit.remaining())
        except grpc.FutureTimeoutError:
            return self._failed(Failure(DEADLINE_EXCEEDED, "deadline exceeded"))
        except grpc.FutureCancelledError:
            raise ClosedError("the store is closed") from None
        except grpc.RpcError as error:
            return self._failed(failure(error))
        finally:
            pending.cancel()
        limit.answered()
        return read(method, message)

    def _failed(self, found: Failure) -> Failure:
        if self._server.closed:
            raise ClosedError("the store is closed") from None
        self._placement.failed(found)
        self._doubted |= found.code == UNAVAILABLE
        return found
