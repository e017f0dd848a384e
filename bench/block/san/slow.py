"""A slow SAN, where nbdkit is absent: an NBD server of one image that takes its time for each read.

A process of its own: `python -m bench.block.san.slow SOCKET IMAGE DELAY COUNTS`, the delay in seconds. Reads wait
side by side, as they do in an array of many disks. When it ends it writes what it has served to COUNTS, as JSON.
"""

from __future__ import annotations

import asyncio
import json
import mmap
import signal
import struct
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.block.wire import (
    ACK,
    EXPORT,
    GREETING,
    INFO,
    MAGIC,
    NEWSTYLE_NO_ZEROES,
    OPTION,
    OPTION_MAGIC,
    OPTION_REPLY,
    OPTION_REPLY_MAGIC,
    REPLY,
    REPLY_MAGIC,
    REQUEST,
    SERVER,
    UNSUPPORTED,
    Command,
    Flag,
    Option,
)

_FLAGS = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.CAN_MULTI_CONN
_INVALID = 22


@dataclass
class Served:
    """Requests of all connections, and the bytes that were read and written."""

    reads: int = 0
    read_bytes: int = 0
    writes: int = 0
    written_bytes: int = 0


class _Export:
    def __init__(self, image: Path, delay: float) -> None:
        with image.open("r+b") as file:
            self.data = mmap.mmap(file.fileno(), 0)
        self.delay = delay
        self.served = Served()

    async def carry_out(self, command: int, offset: int, length: int, payload: bytes) -> bytes:
        """What is to be read; nothing for any other command."""
        if offset + length > len(self.data):
            raise ValueError("beyond the end")
        if command == Command.READ:
            self.served.reads += 1
            self.served.read_bytes += length
            await asyncio.sleep(self.delay)
            return self.data[offset : offset + length]
        if command == Command.WRITE:
            self.served.writes += 1
            self.served.written_bytes += length
            self.data[offset : offset + length] = payload
        elif command in (Command.TRIM, Command.WRITE_ZEROES):
            self.data[offset : offset + length] = bytes(length)
        return b""


class _Client:
    """A connection: its handshake, then its commands, each answered when it is done."""

    def __init__(self, export: _Export, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._export, self._reader, self._writer = export, reader, writer
        self._running: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        try:
            if await self._handshake():
                await self._commands()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writer.close()

    async def _handshake(self) -> bool:
        self._writer.write(GREETING.pack(MAGIC, OPTION_MAGIC, NEWSTYLE_NO_ZEROES))
        await self._reader.readexactly(4)
        while True:
            _, option, length = OPTION.unpack(await self._reader.readexactly(OPTION.size))
            await self._reader.readexactly(length)
            about = struct.pack(">QH", len(self._export.data), _FLAGS)
            if option == Option.EXPORT_NAME:
                self._writer.write(about)
                return True
            if option in (Option.INFO, Option.GO):
                self._answer(option, INFO, EXPORT.pack(0, len(self._export.data), _FLAGS))
            elif option == Option.LIST:
                self._answer(option, SERVER, bytes(4))
            known = option in (Option.INFO, Option.GO, Option.LIST, Option.ABORT)
            self._answer(option, ACK if known else UNSUPPORTED)
            if option in (Option.GO, Option.ABORT):
                return bool(option == Option.GO)

    def _answer(self, option: int, kind: int, data: bytes = b"") -> None:
        self._writer.write(OPTION_REPLY.pack(OPTION_REPLY_MAGIC, option, kind, len(data)) + data)

    async def _commands(self) -> None:
        while True:
            _, _, command, cookie, offset, length = REQUEST.unpack(await self._reader.readexactly(REQUEST.size))
            if command == Command.DISCONNECT:
                return
            payload = await self._reader.readexactly(length) if command == Command.WRITE else b""
            task = asyncio.create_task(self._one(command, cookie, offset, length, payload))
            self._running.add(task)
            task.add_done_callback(self._running.discard)

    async def _one(self, command: int, cookie: int, offset: int, length: int, payload: bytes) -> None:
        error, data = 0, b""
        try:
            data = await self._export.carry_out(command, offset, length, payload)
        except ValueError:
            error = _INVALID
        self._writer.write(REPLY.pack(REPLY_MAGIC, error, cookie) + data)


async def _serve(path: str, image: Path, delay: float, counts: Path) -> None:
    export, over = _Export(image, delay), asyncio.Event()
    for ends in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(ends, over.set)

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await _Client(export, reader, writer).serve()

    await asyncio.start_unix_server(connected, path)
    await over.wait()
    counts.write_text(json.dumps(asdict(export.served)))


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], Path(sys.argv[2]), float(sys.argv[3]), Path(sys.argv[4])))
