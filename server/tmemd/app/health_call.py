"""One call of the standard health service, in hand-written HTTP/2: importing a library costs far more."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_DATA, _HEADERS, _RESET, _SETTINGS, _GOAWAY = 0, 1, 3, 4, 7
_ACK = _END_STREAM = 1
_END_HEADERS = 4
_LONGEST = 100
_STATUSES = {b"\x08\x01": "", b"\x08\x02": "NOT_SERVING"}


def check(
    send: Callable[[bytes], None], received: Iterable[bytes], address: str, service: str, secure: bool
) -> str | None:
    """The status of a service, empty for SERVING; None for an answer that only a library can explain."""
    name = service.encode()
    if len(name) > _LONGEST:
        return None
    message = b"\x0a" + _text(name) if name else b""
    # Fields of HPACK's static table, by number or with literal values.
    fields = (
        b"\x83" + (b"\x87" if secure else b"\x86"),
        b"\x04" + _text(b"/grpc.health.v1.Health/Check"),
        b"\x01" + _text(address.encode()[:_LONGEST]),
        b"\x0f\x10" + _text(b"application/grpc"),
        b"\x00" + _text(b"te") + _text(b"trailers"),
    )
    send(
        _PREFACE
        + _frame(_SETTINGS, 0, 0, b"")
        + _frame(_HEADERS, _END_HEADERS, 1, b"".join(fields))
        + _frame(_DATA, _END_STREAM, 1, struct.pack(">BI", 0, len(message)) + message)
    )
    answer = b""
    for kind, flags, stream, payload in _frames(received):
        if kind == _SETTINGS and not flags & _ACK:
            send(_frame(_SETTINGS, _ACK, 0, b""))
        elif kind == _DATA and stream == 1:
            answer += payload
            if len(answer) >= 5 and len(answer) >= 5 + int.from_bytes(answer[1:5], "big"):
                return _STATUSES.get(answer[5:])
        elif kind in (_RESET, _GOAWAY) or (stream == 1 and flags & _END_STREAM):
            return None
    raise ConnectionError("it hung up")


def _frames(received: Iterable[bytes]) -> Iterator[tuple[int, int, int, bytes]]:
    """Each frame's kind, flags, stream and payload."""
    data = b""
    for came in received:
        data += came
        while len(data) >= 9 and len(data) >= (end := 9 + int.from_bytes(data[:3], "big")):
            yield data[3], data[4], int.from_bytes(data[5:9], "big"), data[9:end]
            data = data[end:]


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return len(payload).to_bytes(3, "big") + bytes((kind, flags)) + stream.to_bytes(4, "big") + payload


def _text(value: bytes) -> bytes:
    return bytes((len(value),)) + value
