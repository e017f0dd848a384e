"""A server that does nothing: `grpc.aio` on uvloop, handlers that give back a prepared reply.

`python -m bench.rpc.empty PORT FILE`: the reply to every get is the GetResponse in FILE. It is what gRPC and
Python cost by themselves, with tmemd's messages and options, and streams read and written as tmemd does.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import uvloop
from grpc import aio

from bench.lib.servers import Server
from tmem_proto.v1 import tmem_pb2 as pb
from tmem_proto.v1.tmem_pb2_grpc import TmemServicer, add_TmemServicer_to_server

_EXPERIMENTS = "-event_engine_client,-event_engine_listener"
_OPTIONS = [
    ("grpc.max_receive_message_length", 4 << 20),
    ("grpc.max_send_message_length", -1),
    ("grpc.so_reuseport", 0),
]


class Empty(Server):
    """The empty server, as a process."""

    name = "an empty grpc.aio handler"
    program = sys.executable
    client = "grpc"

    def __init__(self, reply: Path) -> None:
        super().__init__()
        self._reply = reply

    def command(self) -> list[str]:
        serve = [sys.executable, "-m", "bench.rpc.empty", str(self.port), str(self._reply)]
        return ["env", f"GRPC_EXPERIMENTS={_EXPERIMENTS}", *serve]


class _Service(TmemServicer):
    def __init__(self, reply: pb.GetResponse) -> None:
        self._reply = reply

    async def Get(self, request: pb.GetRequest, context: Any) -> pb.GetResponse:  # noqa: N802, ARG002
        return self._reply

    async def Exchange(self, _: AsyncIterator[pb.Command], context: Any) -> None:  # type: ignore[override]  # noqa: N802
        while (command := await context.read()) is not aio.EOF:
            await context.write(pb.Reply(id=command.id, get=self._reply))


async def _serve(port: int, reply: pb.GetResponse) -> None:
    server = aio.server(options=_OPTIONS)
    add_TmemServicer_to_server(_Service(reply), server)  # type: ignore[abstract]  # the other calls are not made
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    uvloop.run(_serve(int(sys.argv[1]), pb.GetResponse.FromString(Path(sys.argv[2]).read_bytes())))
