"""One gRPC call of streams on an HTTP/2 connection of its own, as bytes in and bytes out. No socket, no clock.

`send` takes a message, `outgoing` gives the bytes that may go now, `receive` takes what came; `replies` are the whole
messages among it. Once `over` is set the call is at its end and says why; `leaving` says that the peer wants no further
message. The peer's flow control is kept; what may come is bounded by the length of a message.
"""

from __future__ import annotations

import struct
from collections import deque
from typing import TYPE_CHECKING
from urllib.parse import unquote

from tmem._protocol.messages import INTERNAL, MESSAGE_BYTES, UNAVAILABLE, UNIMPLEMENTED, Failure
from tmem._transport.h2 import headers

if TYPE_CHECKING:
    from typing_extensions import Buffer

_DATA, _HEADERS, _RESET, _SETTINGS, _PUSH, _PING, _GOAWAY, _WINDOW, _CONTINUATION = 0, 1, 3, 4, 5, 6, 7, 8, 9
_END_STREAM = _ACK = 1
_END_HEADERS, _PADDED, _PRIORITY = 4, 8, 32
_TABLE_SIZE, _ENABLE_PUSH, _INITIAL_WINDOW, _FRAME_SIZE = 1, 2, 4, 5

_STREAM = 1
_HEADER = 9
_PREFIX = 5
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_FIRST_WINDOW, _FIRST_FRAME_SIZE = 65535, 16384
_OUR_WINDOW = 8 << 20
_MOST_HEADERS = 1 << 16
_CODES = {7: UNAVAILABLE, 8: 1, 11: 8}
"""gRPC's codes for those of RST_STREAM; the others are INTERNAL."""


class Http2Call:
    """The call. Belongs to one thread or task at a time."""

    def __init__(self, authority: str, path: str, secure: bool) -> None:
        self.replies: deque[bytes] = deque()
        self.over: Failure | None = None
        self.leaving = False
        self.unfit = False
        """The peer is none that this can speak to."""
        self.moved = 0
        """Grows with every part of a message that comes, may go, or gets room with the peer."""
        self._out: list[bytes | memoryview] = [_opening(authority, path, secure)]
        self._unsent: deque[memoryview] = deque()
        self._unsent_bytes = 0
        self._stream_window = self._connection_window = self._initial_window = _FIRST_WINDOW
        self._frame_size = _FIRST_FRAME_SIZE
        self._cut = b""
        self._data_left = self._padding_left = 0
        self._ends = False
        self._body = bytearray()
        self._unreported = 0
        self._headers: bytearray | None = None

    def send(self, head: bytes, body: bytes) -> None:
        """A message, in two parts."""
        size = len(head) + len(body)
        for part in (b"\0" + size.to_bytes(4, "big") + head, body):
            if part:
                self._unsent.append(memoryview(part))
        self._unsent_bytes += _PREFIX + size

    def ping(self) -> None:
        """Ask whether the peer is there."""
        self._out.append(_frame(_PING, 0, 0, b"tmem\0\0\0\0"))

    def outgoing(self) -> list[bytes | memoryview]:
        """What is to be written now; the rest waits for the peer."""
        while self._unsent_bytes and not self.over:
            size = min(self._unsent_bytes, self._frame_size, self._stream_window, self._connection_window)
            if size <= 0:
                break
            self._out.append(size.to_bytes(3, "big") + b"\0\0\0\0\0\1")
            self._stream_window -= size
            self._connection_window -= size
            self._unsent_bytes -= size
            self.moved += size
            self._take(size)
        out, self._out = self._out, []
        return out

    @property
    def held(self) -> bool:
        """Whether there is something to send for which the peer has no room yet."""
        return bool(self._unsent_bytes)

    def _take(self, size: int) -> None:
        while size:
            part = self._unsent.popleft()
            if len(part) > size:
                self._unsent.appendleft(part[size:])
                part = part[:size]
            self._out.append(part)
            size -= len(part)

    def receive(self, data: Buffer) -> None:
        """Bytes of the peer."""
        view = memoryview(self._cut + data if self._cut else data)
        at = 0
        try:
            while not self.over:
                if self._data_left or self._padding_left:
                    at += self._more_data(view[at:])
                    if self._data_left or self._padding_left:
                        break
                read = self._frame(view[at:])
                if not read:
                    break
                at += read
        except (ValueError, struct.error) as error:
            self._break(INTERNAL, f"the server violated HTTP/2: {error}")
        self._cut = bytes(view[at:])

    def _frame(self, view: memoryview) -> int:
        """Read a frame, or the header of one of data; how many bytes it took, 0 where it is not whole yet."""
        if len(view) < _HEADER:
            return 0
        length, kind, flags = int.from_bytes(view[:3], "big"), view[3], view[4]
        stream = int.from_bytes(view[5:9], "big") & 0x7FFFFFFF
        if kind == _DATA:
            return self._begin_data(view, length, flags, stream)
        if length > _FIRST_FRAME_SIZE:
            raise ValueError(f"a frame of {length} bytes")
        end = _HEADER + length
        if len(view) < end:
            return 0
        self._control(kind, flags, stream, bytes(view[_HEADER:end]))
        return end

    def _begin_data(self, view: memoryview, length: int, flags: int, stream: int) -> int:
        if stream != _STREAM or self._headers is not None:
            raise ValueError("data where there can be none")
        padded = bool(flags & _PADDED)
        if padded and len(view) == _HEADER:
            return 0
        padding = view[_HEADER] if padded else 0
        if padded + padding > length:
            raise ValueError("more padding than data")
        self._data_left, self._padding_left = length - padded - padding, padding
        self._ends = bool(flags & _END_STREAM)
        self._unreported += length
        if self._unreported >= _OUR_WINDOW // 2:
            for number in (0, _STREAM):
                self._out.append(_frame(_WINDOW, 0, number, self._unreported.to_bytes(4, "big")))
            self._unreported = 0
        if self._ends and length == padded:
            self._finish(None)
        return _HEADER + padded

    def _more_data(self, view: memoryview) -> int:
        size = min(self._data_left, len(view))
        self._data_left -= size
        self.moved += size
        data = view[:size]
        if not self._body:
            data = data[self._messages(data) :]
        if data:
            self._body += data
            with memoryview(self._body) as body:
                read = self._messages(body)
            del self._body[:read]
        padding = min(self._padding_left, len(view) - size)
        self._padding_left -= padding
        if self._ends and not (self._data_left or self._padding_left):
            self._finish(None)
        return size + padding

    def _messages(self, data: memoryview) -> int:
        """Take the whole messages that data begins with; how many bytes they are."""
        at = 0
        while len(data) - at >= _PREFIX:
            start = at + _PREFIX
            size = int.from_bytes(data[at + 1 : start], "big")
            if data[at]:
                raise ValueError("a compressed message")
            if size > MESSAGE_BYTES:
                raise ValueError(f"a message of {size} bytes")
            if len(data) < start + size:
                break
            at = start + size
            self.replies.append(bytes(data[start:at]))
        return at

    def _control(self, kind: int, flags: int, stream: int, body: bytes) -> None:
        if (self._headers is not None) != (kind == _CONTINUATION):
            raise ValueError("headers that do not go on")
        if kind == _HEADERS:
            self._begin_headers(flags, stream, body)
        elif kind == _CONTINUATION:
            self._more_headers(flags, body)
        elif kind == _RESET and stream == _STREAM:
            code = struct.unpack(">I", body)[0]
            self._break(_CODES.get(code, INTERNAL), f"the server reset the stream ({code})")
        elif kind == _SETTINGS and not flags & _ACK:
            self._settings(body)
        elif kind == _PING and not flags & _ACK:
            self._out.append(_frame(_PING, _ACK, 0, body))
        elif kind == _GOAWAY:
            self.leaving = True
            if struct.unpack_from(">I", body)[0] & 0x7FFFFFFF < _STREAM:
                self._break(UNAVAILABLE, "the server takes no further stream")
        elif kind == _WINDOW:
            self._widen(stream, struct.unpack(">I", body)[0] & 0x7FFFFFFF)
        elif kind == _PUSH:
            raise ValueError("a push")

    def _settings(self, body: bytes) -> None:
        for name, value in struct.iter_unpack(">HI", body):
            if name == _INITIAL_WINDOW:
                self._stream_window += value - self._initial_window
                self._initial_window = value
            elif name == _FRAME_SIZE and value >= _FIRST_FRAME_SIZE:
                self._frame_size = value
        self._out.append(_frame(_SETTINGS, _ACK, 0))

    def _widen(self, stream: int, by: int) -> None:
        if stream == 0:
            self._connection_window += by
        elif stream == _STREAM:
            self._stream_window += by
            self.moved += by

    def _begin_headers(self, flags: int, stream: int, body: bytes) -> None:
        if stream != _STREAM:
            raise ValueError(f"headers of stream {stream}")
        start = padding = 0
        if flags & _PADDED:
            start, padding = 1, body[0] if body else 0
        if flags & _PRIORITY:
            start += 5
        if start + padding > len(body):
            raise ValueError("more padding than headers")
        self._ends = bool(flags & _END_STREAM)
        self._headers = bytearray()
        self._more_headers(flags, body[start : len(body) - padding])

    def _more_headers(self, flags: int, body: bytes) -> None:
        assert self._headers is not None
        self._headers += body
        if len(self._headers) > _MOST_HEADERS:
            raise ValueError("too many headers")
        if flags & _END_HEADERS:
            block, self._headers = bytes(self._headers), None
            self._answered(headers.decode(block))

    def _answered(self, fields: dict[bytes, bytes]) -> None:
        status = fields.get(b":status", b"200")
        if status != b"200":
            self.unfit = True
            self._break(UNAVAILABLE, f"the server answered with HTTP status {status.decode(errors='replace')}")
        elif self._ends:
            self._finish(fields)

    def _finish(self, trailers: dict[bytes, bytes] | None) -> None:
        """The peer has ended the stream."""
        found = (trailers or {}).get(b"grpc-status", b"")
        if not found.isdigit():
            self.unfit = True
            self._break(UNAVAILABLE, "the server ended the stream, and did not say why")
            return
        code = int(found)
        why = unquote((trailers or {}).get(b"grpc-message", b"").decode(errors="replace"))
        self._break(code or UNAVAILABLE, why or "the server ended the stream")

    def _break(self, code: int, why: str) -> None:
        if code == UNIMPLEMENTED:
            self.unfit, code = True, UNAVAILABLE
        self.over = self.over or Failure(code, why)
        self._unsent.clear()
        self._unsent_bytes = 0


def _opening(authority: str, path: str, secure: bool) -> bytes:
    settings = {_TABLE_SIZE: 0, _ENABLE_PUSH: 0, _INITIAL_WINDOW: _OUR_WINDOW, _FRAME_SIZE: 1 << 20}
    fields = [
        (b":method", b"POST"),
        (b":scheme", b"https" if secure else b"http"),
        (b":path", path.encode()),
        (b":authority", authority.encode()),
        (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
        (b"user-agent", b"tmem-python"),
    ]
    return b"".join(
        (
            _PREFACE,
            _frame(_SETTINGS, 0, 0, b"".join(struct.pack(">HI", *setting) for setting in settings.items())),
            _frame(_WINDOW, 0, 0, (_OUR_WINDOW - _FIRST_WINDOW).to_bytes(4, "big")),
            _frame(_HEADERS, _END_HEADERS, _STREAM, headers.encode(fields)),
        )
    )


def _frame(kind: int, flags: int, stream: int, body: bytes = b"") -> bytes:
    return len(body).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + body
