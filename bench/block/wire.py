"""The NBD protocol as far as the measurements and the demo speak it: fixed newstyle, simple replies. Big-endian."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections import deque
from collections.abc import Iterable
from enum import IntEnum, IntFlag
from typing import Self

PAGE = 4096
GREETING = struct.Struct(">8sQH")
OPTION = struct.Struct(">QII")
OPTION_REPLY = struct.Struct(">QIII")
EXPORT = struct.Struct(">HQH")
REQUEST = struct.Struct(">IHHQQI")
REPLY = struct.Struct(">IIQ")

MAGIC = b"NBDMAGIC"
OPTION_MAGIC = 0x49484156454F5054
OPTION_REPLY_MAGIC = 0x3E889045565A9
REQUEST_MAGIC = 0x25609513
REPLY_MAGIC = 0x67446698
NEWSTYLE_NO_ZEROES = 0b11

ACK, SERVER, INFO, UNSUPPORTED = 1, 2, 3, (1 << 31) + 1


class Option(IntEnum):
    """Of the handshake."""

    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    INFO = 6
    GO = 7


class Command(IntEnum):
    """Of the transmission."""

    READ = 0
    WRITE = 1
    DISCONNECT = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6


class Flag(IntFlag):
    """What an export can do."""

    HAS_FLAGS = 1
    SEND_FLUSH = 1 << 2
    SEND_FUA = 1 << 3
    SEND_TRIM = 1 << 5
    SEND_WRITE_ZEROES = 1 << 6
    CAN_MULTI_CONN = 1 << 8


class Connection:
    """A connection to an export at a Unix socket. Each call waits for its answer; `write_all` keeps many under way."""

    def __init__(self, path: str, export: str = "", timeout: float | None = 60) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout)
            self._socket.connect(path)
            self.size = self._open(export)
        except BaseException:
            self._socket.close()
            raise
        self._cookie = 0

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the device."""
        self._send(Command.READ, offset, length)
        self._finish()
        return self._take(length)

    def write(self, offset: int, data: bytes) -> None:
        """Write, and wait until it is acknowledged."""
        self._send(Command.WRITE, offset, len(data), data)
        self._finish()

    def write_all(self, pieces: Iterable[tuple[int, bytes]], depth: int = 8) -> None:
        """Write many pieces, `depth` of them under way at once."""
        under_way: deque[int] = deque()
        for offset, data in pieces:
            if len(under_way) == depth:
                self._finish()
                under_way.popleft()
            self._send(Command.WRITE, offset, len(data), data)
            under_way.append(offset)
        for _ in under_way:
            self._finish()

    def close(self) -> None:
        """Say that this was all."""
        with contextlib.suppress(OSError):
            self._send(Command.DISCONNECT, 0, 0)
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _open(self, export: str) -> int:
        magic, _, flags = GREETING.unpack(self._take(GREETING.size))
        if magic != MAGIC or not flags & 1:
            raise ConnectionError("whoever listens there does not speak NBD")
        name = export.encode()
        data = struct.pack(f">I{len(name)}sH", len(name), name, 0)
        self._socket.sendall(
            struct.pack(">I", NEWSTYLE_NO_ZEROES) + OPTION.pack(OPTION_MAGIC, Option.GO, len(data)) + data
        )
        size = 0
        while True:
            _, _, kind, length = OPTION_REPLY.unpack(self._take(OPTION_REPLY.size))
            said = self._take(length)
            if kind == ACK:
                return size
            if kind != INFO:
                raise ConnectionError(
                    f"the export {export!r} was refused: {said.decode(errors='replace') or hex(kind)}"
                )
            if said[:2] == bytes(2):
                size = EXPORT.unpack(said)[1]

    def _send(self, command: Command, offset: int, length: int, data: bytes = b"") -> None:
        self._cookie += 1
        self._socket.sendall(REQUEST.pack(REQUEST_MAGIC, 0, command, self._cookie, offset, length) + data)

    def _finish(self) -> None:
        magic, error, _ = REPLY.unpack(self._take(REPLY.size))
        if magic != REPLY_MAGIC:
            raise ConnectionError("that is no simple reply")
        if error:
            raise OSError(error, "the server answered with an error")

    def _take(self, length: int) -> bytes:
        buffer = bytearray(length)
        view = memoryview(buffer)
        while view:
            count = self._socket.recv_into(view)
            if not count:
                raise ConnectionError("the server has closed the connection")
            view = view[count:]
        return bytes(buffer)
