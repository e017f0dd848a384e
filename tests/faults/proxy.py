"""A TCP proxy that misbehaves on order: holds what clients send, lets it arrive after they have gone, cuts replies."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator

T = TypeVar("T")

_PREFACE, _HEADER = 24, 9
_DATA, _HEADERS = 0, 1


class _Frames:
    """Follows HTTP/2 frames (RFC 9113, section 4.1) and counts those of one type that are not empty."""

    def __init__(self, kind: int, preface: int = 0) -> None:
        self._kind = kind
        self._kept = bytearray()
        self._skip = preface

    def ended(self, data: bytes) -> int:
        """How many end in what came now."""
        self._kept += data
        found = 0
        while len(self._kept) >= self._skip + _HEADER:
            header = self._kept[self._skip : self._skip + _HEADER]
            end = self._skip + _HEADER + int.from_bytes(header[:3], "big")
            if len(self._kept) < end:
                break
            found += header[3] == self._kind and end > self._skip + _HEADER
            del self._kept[:end]
            self._skip = 0
        return found


class _Connection:
    """One client's connection, and the one to the server that stands for it."""

    def __init__(self, proxy: Proxy, down: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        self.proxy = proxy
        self.down = down
        self.up = up
        self.diverted = False
        self._severed = False
        self._answered = asyncio.Event()
        self._messages = _Frames(_DATA, _PREFACE)
        self._answers = _Frames(_HEADERS)

    async def upward(self, reader: asyncio.StreamReader) -> None:
        """From the client to the server; what is held arrives even when the client has gone."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._messages.ended(data) and self.diverted:
                    self.sever()
                if await self.proxy.passing(self):
                    self._answered.clear()
                self.up.write(data)
        if not (self._severed and self.diverted):
            self.up.close()

    async def downward(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._answers.ended(data):
                    self._answered.set()
                allowed = self.proxy.allowance(len(data))
                self.down.write(data[:allowed])
                if allowed < len(data):
                    await self.down.drain()
                    self.up.transport.abort()
                    break
        self._answered.set()
        self.down.close()

    def divert(self) -> None:
        self.diverted = True

    def sever(self) -> None:
        """The client sees its connection reset; the server does not."""
        self._severed = True
        self.down.transport.abort()

    async def settled(self) -> None:
        """A diverted message was answered; the connection is done with."""
        if self._severed and self.diverted:
            await self._answered.wait()
            self.up.close()


class Proxy:
    """Stands between clients and the server at `target`; its methods may be called from any thread."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._loop = asyncio.new_event_loop()
        self._open: set[_Connection] = set()
        self._held: dict[_Connection, asyncio.Event] = {}
        self._replies: int | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(lambda: asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def hold(self) -> None:
        """From now on nothing that the present connections send arrives. New connections are not affected."""
        self._do(lambda: self._held.update((connection, asyncio.Event()) for connection in self._open))

    def divert(self) -> None:
        """Hold as `hold` does, and cut each of these connections for its client as soon as a message of its is held."""
        self.hold()
        self._do(lambda: self._each(_Connection.divert, self._held))

    def sever(self) -> None:
        """Cut the present connections for their clients; what is held is still on its way."""
        self._do(lambda: self._each(_Connection.sever, self._open))

    def release(self) -> None:
        """Let what is held arrive. Done when the server has answered what was diverted."""
        self._call(self._release)

    def cut_replies_after(self, count: int) -> None:
        """Let `count` bytes more of replies pass, then cut that connection, once."""
        self._do(lambda: setattr(self, "_replies", count))

    def close(self) -> None:
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- on the loop ---

    @staticmethod
    def _each(change: Callable[[_Connection], None], connections: Iterable[_Connection]) -> None:
        for connection in list(connections):
            change(connection)

    async def passing(self, connection: _Connection) -> bool:
        """Wait while the connection is held; whether it was."""
        held = self._held.get(connection)
        if held is not None:
            await held.wait()
        return held is not None

    def allowance(self, size: int) -> int:
        """How many of `size` bytes of replies may pass."""
        if self._replies is None:
            return size
        allowed = min(size, self._replies)
        self._replies = None if allowed < size else self._replies - allowed
        return allowed

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back, up = await asyncio.open_connection(*self._target)
        except OSError:
            writer.transport.abort()
            return
        connection = _Connection(self, writer, up)
        self._open.add(connection)
        try:
            await asyncio.gather(connection.upward(reader), connection.downward(back))
        finally:
            self._open.discard(connection)
            self._held.pop(connection, None)

    async def _release(self) -> None:
        held, self._held = self._held, {}
        for event in held.values():
            event.set()
        await asyncio.sleep(0)  # what is held goes on its way
        await asyncio.gather(*(connection.settled() for connection in held))

    async def _close(self) -> None:
        self._server.close()
        for connection in list(self._open):
            connection.down.transport.abort()
            connection.up.transport.abort()
        for held in self._held.values():
            held.set()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    def _call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def made() -> T:
            return await make()

        return asyncio.run_coroutine_threadsafe(made(), self._loop).result(30)

    def _do(self, change: Callable[[], object]) -> None:
        async def done() -> None:
            change()

        self._call(done)


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy that is gone when the block ends."""
    running = Proxy(target)
    try:
        yield running
    finally:
        running.close()
