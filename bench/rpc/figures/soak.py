"""Whether the daemon grows with the calls it has answered: its resident memory early and late.

The child's side is `python -m bench.rpc.figures.soak ADDRESS SEED`: told a number of calls it makes that many, a mix of
everything over Exchange streams with many commands under way, some as unary calls, and with new connections and
sessions now and then. Its pages are of one set, and all of them have been put and replaced some times before the first
call counts, so that what the store holds stays about the same. Commands are encoded once for each connection: the
client would otherwise cost as much as the daemon, and the soak take twice as long.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
import time
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING

from grpc import aio

import tmem
from bench.lib.child import Child, obey
from bench.lib.figures import Figure
from bench.lib.kills import stamped
from bench.lib.servers import Tmemd
from bench.rpc.setting import Setting, say
from tmem_proto.v1 import tmem_pb2 as pb
from tmem_proto.v1.tmem_pb2_grpc import TmemStub

if TYPE_CHECKING:
    from tmem_proto.v1.tmem_pb2_grpc import TmemAsyncStub

_EARLY = 100_000
_STEP = 20_000
_SAY = 100_000
_CLIENTS = 2
_POOL = "soak"
_PAGES = 4096
_FILLS = 16
_BATCH = 16
_UNDER_WAY = 256
_PER_STREAM = 2000
_UNARY = 40
_ENCODED = 10_000
_EXCHANGE = "/tmem.v1.Tmem/Exchange"


def measure(setting: Setting) -> Iterator[Figure]:
    """After all calls against after the first hundred thousand."""
    early = min(_EARLY, setting.calls // 2)
    with Tmemd(memory="256MiB") as daemon, contextlib.ExitStack() as stack:
        for seed in range(_CLIENTS):
            _Work(seed).fill(daemon.address)
        clients = [
            stack.enter_context(Child("bench.rpc.figures.soak", daemon.address, seed)) for seed in range(_CLIENTS)
        ]
        begun, made = time.monotonic(), _make(daemon, clients, 0, early, time.monotonic())
        before = daemon.resident_bytes()
        made = _make(daemon, clients, made, setting.calls, begun)
        after = daemon.resident_bytes()
    say(f"  {made:,} calls, {made / (time.monotonic() - begun):,.0f} a second")
    peer, mib = f"after {early:,} calls", 1 << 20
    name = "soak.memory"
    yield Figure(name, after / mib, f"MiB after {made:,}", peer, before / mib, after / before, setting.pages.name)


def _make(daemon: Tmemd, clients: list[Child], made: int, wanted: int, begun: float) -> int:
    said = made // _SAY
    while made < wanted:
        for child in clients:
            child.order(min(_STEP, wanted - made) // len(clients))
        made += sum(child.answer() for child in clients)
        if made // _SAY > said:
            said = made // _SAY
            seconds, resident = time.monotonic() - begun, daemon.resident_bytes() / (1 << 20)
            say(f"  {made:,} calls, {seconds:.0f} s, {resident:.1f} MiB resident")
    return made


# --- the child's side ---


class _Work:
    """Commands of one client, on an object of its own."""

    def __init__(self, seed: int) -> None:
        self._rng = random.Random(seed)
        self._oid = seed.to_bytes(24, "big")
        self._pages = [stamped(index, seed) for index in range(256)]

    def fill(self, address: str) -> None:
        """Put pages at random until what is held, and the room left by what was replaced, no longer grow."""
        with tmem.connect(address) as store:
            pool = store.pool(_POOL)
            for _ in range(_FILLS * _PAGES // _BATCH):
                pool.put(self._oid, {index: self._page() for index in self._rng.sample(range(_PAGES), _BATCH)})

    def _page(self) -> bytes:
        return self._pages[self._rng.randrange(len(self._pages))]

    def encoded(self, session: pb.Session) -> list[bytes]:
        """Commands of a session without their numbers."""
        return [self.command(session).SerializeToString() for _ in range(_ENCODED)]

    def command(self, session: pb.Session) -> pb.Command:
        """One without a number: puts and gets above all."""
        rng, oid = self._rng, self._oid
        choice, index = rng.random(), rng.randrange(_PAGES)
        if choice < 0.45:
            return pb.Command(get=pb.GetRequest(session=session, oid=oid, indices=[index]))
        if choice < 0.90:
            return pb.Command(put=pb.PutRequest(session=session, oid=oid, indices=[index], pages=self._page()))
        if choice < 0.95:
            return pb.Command(has=pb.HasRequest(session=session, oid=oid, first=index, count=64))
        return pb.Command(flush=pb.FlushRequest(session=session, oid=oid, indices=[index]))


async def _calls(address: str, work: _Work, wanted: int) -> int:
    """Connect, open the pool, and go on until that many were answered; the number of calls."""
    made = 0
    while made < wanted:
        async with aio.insecure_channel(address, [("grpc.use_local_subchannel_pool", 1)]) as channel:
            stub = TmemStub(channel)
            settings = pb.PoolSettings(kind="persistent")
            opened = await stub.OpenPool(pb.OpenPoolRequest(name=_POOL, settings=settings))
            made += 1
            encoded = work.encoded(opened.session)
            for _ in range(5):
                count = min(_PER_STREAM, max(wanted - made, 1))
                await _stream(channel, encoded, count)
                await _unary(stub, work, opened.session)
                made += count + _UNARY
                if made >= wanted:
                    break
    return made


async def _stream(channel: aio.Channel, encoded: list[bytes], count: int) -> None:
    room = asyncio.Semaphore(_UNDER_WAY)

    async def commands() -> AsyncIterator[bytes]:
        for number in range(count):
            await room.acquire()
            # Messages joined are one message.
            yield pb.Command(id=number).SerializeToString() + encoded[number % _ENCODED]

    number = 0
    exchange: aio.StreamStreamMultiCallable[bytes, pb.Reply]
    exchange = channel.stream_stream(_EXCHANGE, response_deserializer=pb.Reply.FromString)
    async for reply in exchange(commands()):
        if reply.id != number or reply.code:
            raise RuntimeError(f"reply {number} is {reply.id}: {reply.error}")
        number += 1
        room.release()
    if number != count:
        raise RuntimeError(f"{number} of {count} commands were answered")


async def _unary(stub: TmemAsyncStub, work: _Work, session: pb.Session) -> None:
    for _ in range(_UNARY):
        command = work.command(session)
        match command.WhichOneof("body"):
            case "get":
                await stub.Get(command.get)
            case "put":
                await stub.Put(command.put)
            case "has":
                await stub.Has(command.has)
            case "flush":
                await stub.Flush(command.flush)


def _main(address: str, seed: int) -> None:
    import uvloop

    work = _Work(seed)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        obey(lambda wanted: runner.run(_calls(address, work, wanted)))


if __name__ == "__main__":
    _main(sys.argv[1], int(sys.argv[2]))
