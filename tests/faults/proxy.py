"""A TCP proxy that misbehaves on order: holds what clients send, lets it arrive after they have gone, cuts replies."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from typing import TYPE_CHECKING, Any, TypeVar

from tests.lib.support import PATIENCE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

T = TypeVar("T")

_PREFACE, _HEADER = 24, 9
_DATA, _HEADERS = 0, 1  # types of frames


class _Frames:
    """Follows HTTP/2 frames (RFC 9113, section 4.1) and counts those of some types that are not empty."""

    def __init__(self, kinds: set[int], preface: int = 0) -> None:
        self._kinds = kinds
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
            found += header[3] in self._kinds and end > self._skip + _HEADER
            del self._kept[:end]
            self._skip = 0
        return found


class _Connection:
    """One client's connection, and the one to the server that stands for it."""

    def __init__(self, proxy: Proxy, down: asyncio.StreamWriter, up: asyncio.StreamWriter) -> None:
        self._proxy = proxy
        self._down = down
        self._up = up
        self._kept: list[bytes] | None = None
        self._diverted = False
        self._caught = False
        self._gone = False
        self._answered = asyncio.Event()
        self._messages = _Frames({_DATA}, _PREFACE)
        self._answers = _Frames({_DATA, _HEADERS})

    async def upward(self, reader: asyncio.StreamReader) -> None:
        """From the client to the server; what is held arrives even when the client has gone."""
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                ended = self._messages.ended(data)
                if self._kept is None:
                    self._up.write(data)
                    continue
                self._kept.append(data)
                if ended and self._diverted:
                    self._caught = True
                    self.sever()
        self._gone = True
        if self._kept is None:
            self._up.close()

    async def downward(self, reader: asyncio.StreamReader) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                if self._answers.ended(data):
                    self._answered.set()
                allowed = self._proxy.allowance(len(data))
                self._down.write(data[:allowed])
                if allowed < len(data):
                    await self._down.drain()
                    self._up.transport.abort()
                    break
        self._answered.set()
        self._down.close()

    def hold(self) -> None:
        if self._kept is None:
            self._kept = []

    def divert(self) -> None:
        self.hold()
        self._diverted = True

    def sever(self) -> None:
        """The client sees its connection reset; the server does not."""
        self._down.transport.abort()

    async def release(self) -> None:
        """Let what is held arrive. What was diverted is waited for until it is answered."""
        if self._kept is None:
            return
        kept, self._kept = self._kept, None
        self._answered.clear()
        self._up.write(b"".join(kept))
        if self._gone:
            if self._caught:
                await self._answered.wait()
            self._up.close()

    def abort(self) -> None:
        self._down.transport.abort()
        self._up.transport.abort()


class Proxy:
    """Stands between clients and the server at `target`; its methods may be called from any thread."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._loop = asyncio.new_event_loop()
        self._open: set[_Connection] = set()
        self._replies: int | None = None
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server = self._call(lambda: asyncio.start_server(self._accept, "127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def hold(self) -> None:
        """From now on nothing that the present connections send arrives. New connections are not affected."""
        self._each(_Connection.hold)

    def divert(self) -> None:
        """Hold as `hold` does, and cut each of these connections for its client as soon as a message of its is held."""
        self._each(_Connection.divert)

    def sever(self) -> None:
        """Cut the present connections for their clients; what is held is still on its way."""
        self._each(_Connection.sever)

    def release(self) -> None:
        """Let what is held arrive. Done when the server has answered what was diverted."""
        self._call(self._release)

    def cut_replies_after(self, count: int) -> None:
        """Let `count` bytes more of replies pass, then cut that connection, once."""
        self._replies = count

    def close(self) -> None:
        self._call(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    # --- on the loop ---

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
            connection.abort()

    async def _release(self) -> None:
        await asyncio.gather(*(connection.release() for connection in self._open))

    async def _close(self) -> None:
        self._server.close()
        for connection in self._open:
            connection.abort()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        await asyncio.gather(*others, return_exceptions=True)

    def _each(self, change: Callable[[_Connection], None]) -> None:
        async def done() -> None:
            for connection in list(self._open):
                change(connection)

        self._call(done)

    def _call(self, make: Callable[[], Coroutine[Any, Any, T]]) -> T:
        async def made() -> T:
            return await make()

        return asyncio.run_coroutine_threadsafe(made(), self._loop).result(PATIENCE)


@contextlib.contextmanager
def proxy(target: str) -> Iterator[Proxy]:
    """A proxy that is gone when the block ends."""
    running = Proxy(target)
    try:
        yield running
    finally:
        running.close()
