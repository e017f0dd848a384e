"""Bytes to and from a server. What breaks a rule is a `BrokenError`, the end of the connection an `EndedError`."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from tests.lib.support import PATIENCE as PATIENCE

if TYPE_CHECKING:
    from types import TracebackType


class BrokenError(AssertionError):
    """The server broke the protocol."""


class EndedError(ConnectionError):
    """The server ended the connection."""


def must(rule: object, *seen: object) -> None:
    if not rule:
        raise BrokenError(*seen)


def connect(address: str, timeout: float = PATIENCE) -> socket.socket:
    """A socket to `unix:PATH` or `tcp:HOST:PORT`."""
    kind, _, place = address.partition(":")
    if kind == "tcp":
        host, _, port = place.rpartition(":")
        made = socket.create_connection((host.strip("[]"), int(port)), timeout)
        made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return made
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(timeout)
    try:
        made.connect(place)
    except OSError:
        made.close()
        raise
    return made


class Stream:
    """Bytes to and from the server."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock

    def send(self, data: bytes) -> None:
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            raise EndedError("while it was written to") from None

    def receive(self, size: int) -> bytes:
        buffer = bytearray(size)
        view, at = memoryview(buffer), 0
        while at < size:
            try:
                count = self.sock.recv_into(view[at:])
            except ConnectionResetError:
                count = 0
            if not count:
                raise EndedError(f"after {at} of {size} bytes: {bytes(buffer[:at])!r}")
            at += count
        return bytes(buffer)

    def rest(self, most: int = 1 << 20) -> bytes:
        """All that still comes until the server ends the connection, which it must."""
        kept = bytearray()
        try:
            while data := self.sock.recv(65536):
                kept += data
                must(len(kept) <= most, "the server talks on")
        except ConnectionResetError:
            pass
        return bytes(kept)

    def close(self) -> None:
        self.sock.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
