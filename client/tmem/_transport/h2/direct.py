"""An `Exchange` stream for threads, on a connection of its own that the calling thread itself writes and reads.

gRPC for Python hands each message to other threads and back, which costs more than all else of a small call. Here a
command is a write and a read. Everything else of a server goes over gRPC; so does what finds the stream busy, and
all of it where a connection like this cannot be had (`available`).

A connection that nobody has used for a while is closed by a thread that looks after it; so no server waits long for an
answer to a ping. A command that is late, or whose thread was interrupted, takes the connection with it: its reply goes
nowhere. Where none can be made nothing was sent, and gRPC is left to say why.
"""

from __future__ import annotations

import os
import socket
import ssl
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tmem._protocol import exchange
from tmem._protocol.exchange import IDLE
from tmem._protocol.messages import DEADLINE_EXCEEDED, INTERNAL, UNAVAILABLE, Failure
from tmem._transport.channel import KEEPALIVE, KEEPALIVE_TIMEOUT
from tmem._transport.h2.framing import Http2Call
from tmem._transport.in_flight import WINDOW

if TYPE_CHECKING:
    from collections.abc import Iterable

    from google.protobuf.message import Message

    from tmem._transport.tls import Security

_READ_BYTES = 1 << 18
_WRITE_BYTES = 1 << 16
_GATHERS = hasattr(socket.socket, "sendmsg")
_GRACE = 0.5
"""Seconds after the deadline in which what is there already is still read: a reply in time is not late."""
_LATE = Failure(DEADLINE_EXCEEDED, "deadline exceeded")


def available(security: Security) -> bool:
    """Whether connections like this may be made: not with credentials that gRPC alone can read."""
    if os.environ.get("TMEM_TRANSPORT") == "grpc":
        return False
    return security.credentials is None or security.context is not None


class Exchange:
    """A stream to a server, opened when it is used."""

    def __init__(self, target: str, security: Security, timeout: float) -> None:
        self._target = target
        self._security = security
        self._timeout = timeout
        self._lock = threading.Lock()
        self._user: object = None
        self._open: _Line | None = None
        self._closed = False
        self._supported = True

    def carry_out(self, method: str, request: Message) -> Any:
        """The response, or a Failure; None where the call is to be made in another way."""
        replies = self.carry_out_all(method, (request,))
        return replies and replies[0]

    def carry_out_all(self, method: str, requests: Iterable[Message]) -> list[Any] | None:
        """Responses and Failures, in the order of the requests; several are in flight at once."""
        if not self._supported:
            return None
        turn = object()
        try:
            if not self._take(turn):
                return None
            line = self._line()
            if line is None:
                return None
            if isinstance(line, Failure):
                return [line for _ in requests]
            replies = line.exchange(method, requests)
            self._supported = not line.unfit
            return replies
        finally:
            if self._user is turn:
                self._user = None

    def close(self) -> None:
        """Abort what is in flight."""
        self._closed = True
        line = self._open
        if line is None:
            return
        line.interrupt()
        self._close_unused(line)

    def leave(self) -> None:
        """In a forked child: the connection is the parent's, who alone ends it."""
        if self._open is not None:
            self._open.leave()

    def _take(self, turn: object) -> bool:
        """Whether it is this turn's now. Giving it back is to set `_user`, which no signal can come between."""
        with self._lock:
            if self._user is None:
                self._user = turn
        return self._user is turn

    def _close_unused(self, line: _Line, idle: float = -1.0) -> None:
        turn = object()
        try:
            if self._take(turn) and line.idle() > idle:
                line.close()
        finally:
            if self._user is turn:
                self._user = None

    def _line(self) -> _Line | Failure | None:
        line = self._open
        if line is None or not line.usable():
            self._security.renew()
            try:
                line = self._open = _Line(self._target, self._security, self._timeout)
            except TimeoutError:
                return _LATE
            except OSError:
                return None
            if line.unfit:
                self._supported = False
                return None
            threading.Thread(target=self._watch, args=(line,), name="tmem-exchange", daemon=True).start()
            if self._closed:
                line.interrupt()
        return line

    def _watch(self, line: _Line) -> None:
        while not line.closed.wait(IDLE / 2):
            if line.idle() > IDLE:
                self._close_unused(line, IDLE)


class _Line:
    """One connection with one stream. Used by one thread at a time; `interrupt` by any."""

    def __init__(self, target: str, security: Security, timeout: float) -> None:
        host, _, port = target.rpartition(":")
        host = host.removeprefix("[").removesuffix("]")
        self._timeout = timeout
        self._used_at = self._moved_at = time.monotonic()
        self._whole = True
        self._number = 0
        self.closed = threading.Event()
        self._socket = socket.create_connection((host, int(port)), timeout)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if security.context is not None:
                self._socket = security.context.wrap_socket(self._socket, server_hostname=host)
        except BaseException:
            self._socket.close()
            raise
        self._call = Http2Call(target, exchange.EXCHANGE, security.context is not None)
        self._buffer = memoryview(bytearray(_READ_BYTES))
        if isinstance(self._socket, ssl.SSLSocket) and self._socket.selected_alpn_protocol() != "h2":
            self._call.unfit = True
            self.close()

    @property
    def unfit(self) -> bool:
        """Whether the server cannot be spoken to like this."""
        return self._call.unfit

    def idle(self) -> float:
        """Seconds since it was used."""
        return time.monotonic() - self._used_at

    def usable(self) -> bool:
        """Whether another command may go, as far as the server has said by now."""
        self._used_at = time.monotonic()
        if not self._whole:
            self.close()
        if self.closed.is_set():
            return False
        self._whole = False
        try:
            self._socket.settimeout(0)
            while self._read():
                pass
        except (BlockingIOError, ssl.SSLWantReadError):
            pass
        except OSError:
            self.close()
        if self._call.over or self._call.leaving or self._call.replies:
            self.close()
        self._whole = True
        return not self.closed.is_set()

    def exchange(self, method: str, requests: Iterable[Message]) -> list[Any]:
        """The responses. A failure of the connection is that of every command without a response."""
        replies: list[Any] = []
        count = 0
        first = self._number + 1
        failure: Failure | None = None
        self._whole = False
        self._moved_at = time.monotonic()
        try:
            for request in requests:
                if failure is None and count - len(replies) == WINDOW:
                    failure = self._reply(method, first + len(replies), replies)
                if failure is None:
                    self._number += 1
                    self._call.send(*exchange.command_parts(self._number, method, request))
                    failure = self._write()
                count += 1
            while len(replies) < count and failure is None:
                failure = self._reply(method, first + len(replies), replies)
        except BaseException:
            self.close()
            raise
        self._used_at = time.monotonic()
        if failure is not None:
            self.close()
            replies += [exchange.broken(failure)] * (count - len(replies))
        self._whole = True
        return replies

    def _reply(self, method: str, number: int, replies: list[Any]) -> Failure | None:
        """Take the next reply; a Failure of the connection where there is none."""
        while not self._call.replies:
            failure = self._call.over or self._wait() or self._write()
            if failure is not None:
                return failure
        reply = exchange.read(self._call.replies.popleft())
        if isinstance(reply, Failure):
            return reply
        if reply.id != number:
            return Failure(INTERNAL, f"the server answered command {number} as {reply.id}")
        replies.append(exchange.answer(reply, method))
        return None

    def _left(self) -> float:
        """Seconds until the server is late: a time-out counts from when something of a message last moved."""
        return self._moved_at + self._timeout - time.monotonic()

    def _write(self) -> Failure | None:
        """Write what the server has room for."""
        moved = self._call.moved
        out = self._call.outgoing()
        if not out:
            return None
        moving = self._call.moved > moved
        try:
            if isinstance(self._socket, ssl.SSLSocket) or not _GATHERS:
                rest = memoryview(b"".join(out))
            else:
                self._socket.settimeout(max(self._left(), 0.001))
                sent = self._socket.sendmsg(out)
                rest = memoryview(b"".join(out))[sent:] if sent < sum(map(len, out)) else memoryview(b"")
                self._moved_at = time.monotonic() if moving else self._moved_at
            while rest:
                self._socket.settimeout(max(self._left(), 0.001))
                rest = rest[self._socket.send(rest[:_WRITE_BYTES]) :]
                self._moved_at = time.monotonic() if moving else self._moved_at
        except TimeoutError:
            return _LATE
        except OSError as error:
            return Failure(UNAVAILABLE, f"the connection broke: {error}")
        return None

    def _wait(self) -> Failure | None:
        """Read something. After silence the server is asked whether it is there."""
        left = self._left()
        if left < -_GRACE:
            return _LATE
        try:
            self._socket.settimeout(max(min(left, KEEPALIVE), 0.001))
            self._read()
            return None
        except TimeoutError:
            if left <= KEEPALIVE:
                return _LATE
        except OSError as error:
            return Failure(UNAVAILABLE, f"the connection broke: {error}")
        self._call.ping()
        return self._write() or self._wait_for_life()

    def _wait_for_life(self) -> Failure | None:
        left = self._left()
        try:
            self._socket.settimeout(max(min(left, KEEPALIVE_TIMEOUT), 0.001))
            self._read()
        except TimeoutError:
            return _LATE if left <= KEEPALIVE_TIMEOUT else Failure(UNAVAILABLE, "the server does not answer a ping")
        except OSError as error:
            return Failure(UNAVAILABLE, f"the connection broke: {error}")
        return None

    def _read(self) -> int:
        """Read what has come; how many bytes it was."""
        count = self._socket.recv_into(self._buffer)
        if not count:
            raise ConnectionResetError("the server closed it")
        moved = self._call.moved
        self._call.receive(self._buffer[:count])
        if self._call.moved > moved:
            self._moved_at = time.monotonic()
        return count

    def interrupt(self) -> None:
        """Have a thread that waits here fail at once."""
        # Of the socket below TLS, whose own method lets go of TLS that another thread reads from.
        with suppress(OSError):
            socket.socket.shutdown(self._socket, socket.SHUT_RDWR)

    def close(self) -> None:
        self.closed.set()
        self._socket.close()

    def leave(self) -> None:
        """Let go of the socket, and say nothing on it."""
        self._socket.close()
