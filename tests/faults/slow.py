"""A TCP proxy that carries so many bytes a second each way, over all its connections, and buffers next to none."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PIECE = 8192
_BUFFER = 16384


class _Way:
    """One direction: what passes waits for its turn."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._lock = threading.Lock()
        self._free_at = 0.0

    def pass_through(self, size: int) -> None:
        with self._lock:
            begun = max(self._free_at, time.monotonic())
            self._free_at = begun + size / self._rate
        time.sleep(max(self._free_at - time.monotonic(), 0))


def _carry(source: socket.socket, target: socket.socket, way: _Way) -> None:
    with suppress(OSError):
        while data := source.recv(_PIECE):
            way.pass_through(len(data))
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


@contextmanager
def slow(target: str, rate: float) -> Iterator[str]:
    """The address of such a proxy before the server at `target`."""
    host, _, port = target.rpartition(":")
    up, down = _Way(rate), _Way(rate)
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
    listener.bind(("127.0.0.1", 0))
    listener.listen()
    opened: list[socket.socket] = []

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER)
                far = socket.socket()
                far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                far.connect((host, int(port)))
                opened.extend((near, far))
                threading.Thread(target=_carry, args=(near, far, up), daemon=True).start()
                threading.Thread(target=_carry, args=(far, near, down), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        for each in (listener, *opened):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
