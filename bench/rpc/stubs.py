"""The protocol's own stubs as a client: what a call costs without the SDK."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from typing import Self

import grpc

from tmem_proto.v1 import tmem_pb2 as pb
from tmem_proto.v1.tmem_pb2_grpc import TmemStub

OID = bytes(range(24))
_OPTIONS = [("grpc.use_local_subchannel_pool", 1)]


class Stubs:
    """One connection, with a pool that both sides know. Closed by its `with` block."""

    def __init__(self, address: str) -> None:
        self._channel = grpc.insecure_channel(address, _OPTIONS)
        self.tmem = TmemStub(self._channel)
        self._session = pb.Session()

    def open(self, name: str, kind: str = "persistent") -> None:
        """Open a pool for the requests to come."""
        request = pb.OpenPoolRequest(name=name, settings=pb.PoolSettings(kind=kind))
        self._session = self.tmem.OpenPool(request, wait_for_ready=True, timeout=30).session

    def get_request(self, index: int) -> pb.GetRequest:
        """One page, as the SDK asks for it."""
        return pb.GetRequest(session=self._session, oid=OID, indices=[index], accept=pb.ENCODING_LZ4)

    def get(self, index: int) -> pb.GetResponse:
        """One page by a unary call."""
        return self.tmem.Get(self.get_request(index), timeout=30)

    def put(self, index: int, page: bytes) -> bytes:
        """Store one page; its outcome."""
        request = pb.PutRequest(session=self._session, oid=OID, indices=[index], pages=page)
        return self.tmem.Put(request, timeout=30).outcomes

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()


class Stream:
    """One Exchange stream, a command at a time. Ended by its `with` block."""

    def __init__(self, stubs: Stubs) -> None:
        self._stubs = stubs
        self._commands: queue.SimpleQueue[pb.Command | None] = queue.SimpleQueue()
        self._replies = stubs.tmem.Exchange(self._sent())
        self._number = 0

    def get(self, index: int) -> pb.GetResponse:
        """One page."""
        self._number += 1
        self._commands.put(pb.Command(id=self._number, get=self._stubs.get_request(index)))
        reply = next(self._replies)
        if reply.code or reply.id != self._number:
            raise RuntimeError(f"the stream answered: {reply.error or reply}")
        return reply.get

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._commands.put(None)
        self._replies.cancel()

    def _sent(self) -> Iterator[pb.Command]:
        while (command := self._commands.get()) is not None:
            yield command
