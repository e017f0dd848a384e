"""Commands and their answers, of which a strict client takes none that the specification does not allow.

An error that the server sent is part of an answer.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from tests.block.lib.protocol import (
    ALLOCATION,
    CHUNK_MAGIC,
    DONE,
    REQUEST_MAGIC,
    SIMPLE_REPLY_MAGIC,
    Can,
    Chunk,
    Cmd,
    Err,
    Flag,
)
from tests.block.lib.stream import BrokenError, Stream, must

if TYPE_CHECKING:
    import socket


@dataclass
class Export:
    """What a server says of an export before it is used."""

    size: int = -1
    can: Can = field(default_factory=lambda: Can(0))
    blocks: tuple[int, int, int] | None = None
    texts: dict[int, str] = field(default_factory=dict)
    contexts: dict[str, int] = field(default_factory=dict)


@dataclass
class Answer:
    """One command's answer, when it is whole."""

    error: Err = Err.OK
    data: bytes = b""
    message: str = ""
    chunks: list[int] = field(default_factory=list)
    holes: list[tuple[int, int]] = field(default_factory=list)
    extents: dict[int, list[tuple[int, int]]] = field(default_factory=dict)


class Client(Stream):
    """A connection in transmission."""

    def __init__(self, sock: socket.socket, export: Export, structured: bool) -> None:
        super().__init__(sock)
        self.export = export
        self.structured = structured
        self._cookies = iter(range(0x0123456789ABCDE0, 1 << 64))
        self._open: dict[int, _Pending] = {}
        self._whole: dict[int, Answer] = {}

    def __enter__(self) -> Client:
        return self

    def submit(self, kind: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> int:
        """Send a command, whose `length` goes as it is; its cookie."""
        cookie = next(self._cookies)
        self._open[cookie] = _Pending(kind, offset, length, flags)
        self.send(struct.pack(">IHHQQI", REQUEST_MAGIC, flags, kind, cookie, offset, length) + data)
        return cookie

    def answer(self, cookie: int) -> Answer:
        while cookie not in self._whole:
            self._receive_one()
        return self._whole.pop(cookie)

    def is_answered(self, cookie: int) -> bool:
        """Whether an answer came among those that were received."""
        return cookie in self._whole

    def command(self, kind: int, offset: int = 0, length: int = 0, flags: int = 0, data: bytes = b"") -> Answer:
        return self.answer(self.submit(kind, offset, length, flags, data))

    def read(self, offset: int, length: int, flags: int = 0) -> bytes:
        answer = self.command(Cmd.READ, offset, length, flags)
        must(answer.error == Err.OK, answer)
        return answer.data

    def write(self, offset: int, data: bytes, flags: int = 0) -> None:
        answer = self.command(Cmd.WRITE, offset, len(data), flags, data)
        must(answer.error == Err.OK, answer)

    def do(self, kind: Cmd, offset: int = 0, length: int = 0, flags: int = 0) -> None:
        answer = self.command(kind, offset, length, flags)
        must(answer.error == Err.OK, answer)

    def extents(self, offset: int, length: int, flags: int = 0) -> list[tuple[int, int]]:
        """Lengths and states of base:allocation, which must have been negotiated."""
        answer = self.command(Cmd.BLOCK_STATUS, offset, length, flags)
        must(answer.error == Err.OK, answer)
        return answer.extents[self.export.contexts[ALLOCATION]]

    def part(self) -> list[Answer]:
        """Say goodbye; what was asked before is answered, and then the server ends the connection."""
        self.send(struct.pack(">IHHQQI", REQUEST_MAGIC, 0, Cmd.DISC, 1, 0, 0))
        while self._open:
            self._receive_one()
        must(self.rest() == b"", "more after a goodbye")
        self.close()
        return list(self._whole.values())

    def _receive_one(self) -> None:
        (magic,) = struct.unpack(">I", self.receive(4))
        if magic == CHUNK_MAGIC:
            must(self.structured, "a chunk that was not agreed on")
            flags, kind, cookie, length = struct.unpack(">HHQI", self.receive(16))
            must(not flags & ~DONE, "flags of a chunk", flags)
            must(length <= 33 << 20, "a chunk of", length)
            pending = self._pending(cookie)
            pending.chunk(kind, self.receive(length), self.export)
            if flags & DONE:
                self._end(cookie, pending.whole())
            return
        must(magic == SIMPLE_REPLY_MAGIC, hex(magic))
        error, cookie = struct.unpack(">IQ", self.receive(12))
        pending = self._pending(cookie)
        must(not self.structured or pending.kind != Cmd.READ, "a simple reply to a read")
        must(not pending.begun, "a simple reply after chunks")
        pending.answer.error = _error(error)
        if not error and pending.kind == Cmd.READ:
            pending.answer.data = self.receive(pending.length)
        self._end(cookie, pending.answer)

    def _pending(self, cookie: int) -> _Pending:
        must(cookie in self._open, "an answer to nothing", hex(cookie))
        return self._open[cookie]

    def _end(self, cookie: int, answer: Answer) -> None:
        del self._open[cookie]
        self._whole[cookie] = answer


class _Pending:
    """A command on its way, and what came of its answer."""

    def __init__(self, kind: int, offset: int, length: int, flags: int) -> None:
        self.kind, self.offset, self.length, self.flags = kind, offset, length, flags
        self.answer = Answer()
        self.begun = False
        self._data = bytearray(length if kind == Cmd.READ and length <= 64 << 20 else 0)
        self._covered: list[tuple[int, int]] = []

    def chunk(self, kind: int, data: bytes, export: Export) -> None:
        self.begun = True
        self.answer.chunks.append(kind)
        match kind:
            case Chunk.NONE:
                must(not data, "a chunk of no kind with", data)
            case Chunk.DATA:
                must(len(data) > 8, "a data chunk of", len(data))
                at = self._cover(int.from_bytes(data[:8], "big"), len(data) - 8)
                self._data[at : at + len(data) - 8] = data[8:]
            case Chunk.HOLE:
                must(len(data) == 12, "a hole chunk of", len(data))
                offset, length = struct.unpack(">QI", data)
                self._cover(offset, length)
                self.answer.holes.append((offset, length))
            case Chunk.BLOCK_STATUS:
                self._status(data, export)
            case Chunk.ERROR | Chunk.ERROR_OFFSET:
                self._failed(kind, data)
            case _:
                raise BrokenError("a chunk of type", kind)

    def whole(self) -> Answer:
        """The answer after its last chunk, which must not leave anything out."""
        answer = self.answer
        if answer.error == Err.OK and self.kind == Cmd.READ:
            self._covered.sort()
            at = self.offset
            for start, end in self._covered:
                must(start == at, "bytes left out of a read, from", at, "to", start)
                at = end
            must(at == self.offset + self.length, "the end of a read left out, from", at)
            must(not self.flags & Flag.DF or len(answer.chunks) == 1, "DF, and chunks", answer.chunks)
            answer.data = bytes(self._data)
        if answer.error == Err.OK and self.kind == Cmd.BLOCK_STATUS:
            must(answer.extents, "no block status")
        return answer

    def _cover(self, offset: int, length: int) -> int:
        must(self.kind == Cmd.READ, "data for", self.kind)
        must(length > 0, "a chunk of nothing")
        inside = self.offset <= offset and offset + length <= self.offset + self.length
        must(inside, "bytes that were not asked for", offset, length)
        for start, end in self._covered:
            must(offset >= end or offset + length <= start, "bytes sent twice", offset, length)
        self._covered.append((offset, offset + length))
        return offset - self.offset

    def _status(self, data: bytes, export: Export) -> None:
        must(self.kind == Cmd.BLOCK_STATUS and len(data) >= 12 and len(data) % 8 == 4, self.kind, data)
        context = int.from_bytes(data[:4], "big")
        must(context in export.contexts.values(), "a context that was not agreed on", context)
        must(context not in self.answer.extents, "a context twice", context)
        extents = [tuple[int, int](pair) for pair in struct.iter_unpack(">II", data[4:])]
        must(all(length for length, _ in extents), "an extent of nothing", extents)
        must(sum(length for length, _ in extents[:-1]) < self.length, "extents beyond what was asked", extents)
        if self.flags & Flag.REQ_ONE:
            must(len(extents) == 1 and extents[0][0] <= self.length, "REQ_ONE, and", extents)
        self.answer.extents[context] = extents

    def _failed(self, kind: int, data: bytes) -> None:
        error, length = struct.unpack_from(">IH", data)
        must(len(data) == 6 + length + 8 * (kind == Chunk.ERROR_OFFSET), "an error chunk of", len(data))
        must(error, "an error of 0")
        self.answer.error = _error(error)
        self.answer.message = data[6 : 6 + length].decode()


def _error(error: int) -> Err:
    must(error in list(Err), "an error that NBD does not have", error)
    return Err(error)
