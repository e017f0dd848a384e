"""The control channel between the supervisor and a worker: JSON objects, one per line, over a socket pair.

| from | message | means |
|---|---|---|
| supervisor | `start`: the settings, as a TOML file; `number`, `port` | serve with these; sent first, once |
| supervisor | `workers`: all of them | when one starts, ends, or its sessions change |
| supervisor | `count`: a number | report your counts |
| supervisor | `total`: its number; `counts` | the answer to `total` |
| supervisor | `settle`: the settings | apply these; only live settings differ |
| supervisor | `stop`: true | stop in order |
| supervisor | `carry`: a number; `method`, `request` | for worker 0: answer this call |
| supervisor | `answer`: its number; `reply`, or `code` and `why` | the answer to `call` |
| worker | `ready`: the port | calls are answered |
| worker | `failed`: why | it cannot serve, and ends |
| worker | `counted`: its number; `counts` | the answer to `count` |
| worker | `total`: a number | report the counts of all |
| worker | `call`: a number; `method`, `request` | let worker 0 answer this call |
| worker | `carried`: its number; `reply`, or `code` and `why` | the answer to `carry` |

Either end sees the other's death as the end of the channel. A worker then exits: none outlives its supervisor.
"""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import socket
    from collections.abc import AsyncIterator

_LONGEST = 16 << 20

Message = dict[str, Any]


class Control:
    """One end of the channel."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Control:
        return cls(*await asyncio.open_unix_connection(sock=end, limit=_LONGEST))

    def send(self, **message: Any) -> None:
        """Send a message, unless the other end is gone."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps(message, separators=(",", ":")).encode() + b"\n")

    async def receive(self) -> Message | None:
        """The next message; None at the end of the channel."""
        try:
            line = await self._reader.readline()
        except (ConnectionError, ValueError):
            return None
        if not line.endswith(b"\n"):
            return None
        message: Message = json.loads(line)
        return message

    async def messages(self) -> AsyncIterator[Message]:
        """All messages, up to the end of the channel."""
        while (message := await self.receive()) is not None:
            yield message

    def close(self) -> None:
        self._writer.close()
