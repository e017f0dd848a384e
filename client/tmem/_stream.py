"""An `Exchange` stream of gRPC's for threads, where `_line` cannot be used: one command at a time.

Whoever finds it busy makes a unary call instead.

A read of a gRPC stream cannot time out. So a thread watches while the stream is open: it cancels the stream when a
command has no answer in time, and ends it when nobody has used it for a while. A stream that failed is dropped, and the
next command opens another: a reply that comes late goes nowhere.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import grpc

from tmem import _exchange
from tmem._channel import failure
from tmem._exchange import ENDED, IDLE
from tmem._wire import DEADLINE_EXCEEDED, UNIMPLEMENTED, Failure

if TYPE_CHECKING:
    from google.protobuf.message import Message


class Exchange:
    """A stream of a channel, opened when it is used."""

    def __init__(self, channel: grpc.Channel, timeout: float) -> None:
        self._method: Any = channel.stream_stream(_exchange.EXCHANGE)
        self._timeout = timeout
        self._lock = threading.Lock()
        self._user: object = None
        self._open: _Stream | None = None
        self._supported = True

    def carry_out(self, method: str, request: Message) -> Any:
        """The response, or a Failure; None where the call is to be made in another way."""
        if not self._supported:
            return None
        turn = object()
        try:
            with self._lock:
                if self._user is None:
                    self._user = turn
            if self._user is not turn:
                return None
            # A stream whose use was interrupted is no longer here for the next.
            stream, self._open = self._open, None
            if stream is None or not stream.usable():
                stream = _Stream(self._method, self._timeout)
            found = stream.exchange(method, request)
            self._open = stream
        finally:
            if self._user is turn:
                self._user = None
        if isinstance(found, Failure) and found.code == UNIMPLEMENTED:
            self._supported = False
            return None
        return found

    def leave(self) -> None:
        """In a forked child: nothing here is its own."""

    def close(self) -> None:
        """Closing the channel breaks off what is under way."""


class _Stream:
    """One stream, used by one thread at a time and watched by another."""

    def __init__(self, method: Any, timeout: float) -> None:
        self._timeout = timeout
        self._outbox: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._replies = method(iter(self._outbox.get, None))
        self._number = 0
        self._lock = threading.Lock()
        self._waiting = False
        self._since = time.monotonic()
        self._late = self._broken = False
        self._over = threading.Event()
        threading.Thread(target=self._watch, name="tmem-exchange", daemon=True).start()

    def usable(self) -> bool:
        with self._lock:
            self._since = time.monotonic()
            return not self._over.is_set() and bool(self._replies.is_active())

    def exchange(self, method: str, request: Message) -> Any:
        self._number += 1
        self._note(waiting=True)
        try:
            self._outbox.put(_exchange.command(self._number, method, request))
            reply = _exchange.read(next(self._replies))
        except StopIteration:
            self._end()
            return ENDED
        except grpc.RpcError as error:
            self._end()
            late = Failure(DEADLINE_EXCEEDED, "deadline exceeded")
            return late if self._late else _exchange.broken(failure(error))
        except BaseException:
            # Not from here: gRPC may have been left with a lock of this stream held.
            self._broken = True
            raise
        self._note(waiting=False)
        if isinstance(reply, Failure):
            self._end()
            return reply
        if reply.id != self._number:
            self._end()
            return Failure(13, f"the server answered command {self._number} as {reply.id}")
        return _exchange.answer(reply, method)

    def _note(self, waiting: bool) -> None:
        with self._lock:
            self._waiting, self._since = waiting, time.monotonic()

    def _end(self) -> None:
        self._over.set()
        self._replies.cancel()
        self._outbox.put(None)

    def _watch(self) -> None:
        while not self._over.wait(min(self._timeout, IDLE) / 4):
            if self._broken:
                self._end()
            with self._lock:
                since = time.monotonic() - self._since
                if self._waiting and since > self._timeout:
                    self._late = True
                    self._end()
                elif not self._waiting and since > IDLE:
                    self._over.set()
                    self._outbox.put(None)
