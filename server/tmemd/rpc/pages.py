"""The service `tmem.v1.Tmem`: pages.

Everything here runs on the event loop. Nothing is awaited between checking a session's epoch and starting the engine's
work, and `Session.new_epoch` waits for work in threads: so no mutation of an older epoch lands after a newer one began.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from grpc.aio import EOF

from tmem_proto.v1 import tmem_pb2 as pb
from tmem_proto.v1.tmem_pb2_grpc import TmemServicer
from tmemd.base.errors import LimitError, OtherPoolError, UnavailableError, UnknownPoolError
from tmemd.messages import pages as messages
from tmemd.messages.serialized import SerializedMessage
from tmemd.messages.settings import settings_from, settings_to
from tmemd.rpc import call_cost
from tmemd.rpc.handler import explain, fail, identify, rpc
from tmemd.rpc.idle_streams import IdleTimer
from tmemd.rpc.registration import Malformed
from tmemd.rpc.sessions import ExclusiveGet, Session
from tmemd.security.pool_rights import check_not_the_daemons
from tmemd.store.names import EXPORTS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from grpc.aio import ServicerContext

    from tmemd.rpc.service_context import ServiceContext
    from tmemd.security.identity import Client
    from tmemd.store.api import StorePool

T = TypeVar("T")

Unacknowledged = list[tuple[Session, int]]
"""The exclusive gets of an Exchange stream, acknowledged by its next mutation."""

_STREAMED = {field.name: f"Exchange.{field.name}" for field in pb.Command.DESCRIPTOR.oneofs_by_name["body"].fields}
"""The name under which a command of a stream is counted."""
_ENCODINGS = {pb.ENCODING_RAW: "raw", pb.ENCODING_LZ4: "lz4"}


class TmemService(TmemServicer):
    """Serves the pages of a store."""

    def __init__(self, service: ServiceContext, unused: Callable[[str], Awaitable[None]]) -> None:
        """`unused` raises for an export in use."""
        self._unused = unused
        self.counts = service.counts
        self.identities = service.identities
        self.injections = service.injections
        self.lock_retry = service.lock_retry
        self._store = service.store
        self._config = service.config
        self._rights = service.rights
        self._sessions = service.sessions
        self._operations: dict[str, Callable[[Any, Client, Unacknowledged], Awaitable[Any]]] = {
            "put": self._put,
            "get": self._get,
            "acknowledge": self._acknowledge,
            "has": self._has,
            "flush": self._flush,
            "flush_object": self._flush_object,
        }
        self._streams: set[IdleTimer] = set()
        self._ending = False

    def end_streams(self) -> None:
        """End every stream now, or after the reply to its current command. Commands not yet read are dropped."""
        self._ending = True
        for stream in tuple(self._streams):
            stream.end()

    @rpc
    async def OpenPool(self, request: pb.OpenPoolRequest, client: Client) -> pb.OpenPoolResponse:  # noqa: N802
        if request.pool_id:
            _check_id(self._rights.find(client, request.name), request.pool_id)
        settings = settings_from(request.settings) if request.HasField("settings") else None
        pool = self._rights.open(client, request.name, settings)
        _check_id(pool, request.pool_id)
        session = self._sessions.open(client, pool)
        return pb.OpenPoolResponse(
            session=pb.Session(id=session.id, epoch=session.epoch),
            settings=settings_to(pool.settings()),
            batch_limit=self._limit(session),
            pool_id=pool.id,
            flush_limit=messages.FLUSH_MOST,
        )

    @rpc
    async def NewEpoch(self, request: pb.NewEpochRequest, client: Client) -> pb.NewEpochResponse:  # noqa: N802
        return pb.NewEpochResponse(epoch=await self._sessions.find(request.session_id, client).new_epoch())

    @rpc
    async def Put(self, request: pb.PutRequest, client: Client) -> pb.PutResponse:  # noqa: N802
        return await self._put(request, client, [])

    @rpc
    async def Get(  # type: ignore[override]  # noqa: N802
        self, request: pb.GetRequest, client: Client
    ) -> SerializedMessage:
        return await self._get(request, client, [])

    @rpc
    async def Acknowledge(self, request: pb.AcknowledgeRequest, client: Client) -> pb.AcknowledgeResponse:  # noqa: N802
        return await self._acknowledge(request, client, [])

    @rpc
    async def Has(self, request: pb.HasRequest, client: Client) -> pb.HasResponse:  # noqa: N802
        return await self._has(request, client, [])

    @rpc
    async def Flush(self, request: pb.FlushRequest, client: Client) -> pb.FlushResponse:  # noqa: N802
        return await self._flush(request, client, [])

    @rpc
    async def FlushObject(self, request: pb.FlushObjectRequest, client: Client) -> pb.FlushResponse:  # noqa: N802
        return await self._flush_object(request, client, [])

    async def Exchange(  # type: ignore[override]  # noqa: N802
        self, _: AsyncIterator[pb.Command], context: ServicerContext[Any, Any]
    ) -> None:
        """Carry out commands one after another, through the context, which is faster than a generator.

        The next command is read once the previous reply is sent: flow control slows down a client that does not read
        its replies, or sends faster than the daemon works. A silent stream ends.
        """
        client = await identify(self, "Exchange", context)
        try:
            with self.identities.call_limits.of(client.name):
                await self._exchange(context, client)
        except LimitError as error:
            await fail(self, "Exchange", context, error)

    async def _exchange(self, context: ServicerContext[Any, Any], client: Client) -> None:
        idle = IdleTimer(self._config.exchange_idle)
        held: Unacknowledged = []
        self._streams.add(idle)
        try:
            while not self._ending:
                command = await context.read()
                if command is EOF:
                    return
                if isinstance(command, Malformed):
                    await fail(self, "Exchange", context, ValueError(command.why))
                idle.begin()
                reply = await self._command(command, client, held)
                idle.done()
                await context.write(reply)
                idle.rest()
        except asyncio.CancelledError:
            if not idle.ended:
                raise
        finally:
            self._streams.discard(idle)
            idle.close()

    async def _command(self, command: pb.Command, client: Client, held: Unacknowledged) -> pb.Reply | SerializedMessage:
        start, known = time.perf_counter(), len(held)
        body = command.WhichOneof("body")
        try:
            if self.injections.active:
                reply = await self.injections.around(
                    f"Exchange.{body}", lambda: self._carry_out_with_retry(body, command, client, held)
                )
            else:
                reply = await self._carry_out_with_retry(body, command, client, held)
            code = "OK"
        except Exception as error:
            del held[known:]  # the client does not receive the pages of this command
            status, text = explain(f"Exchange {body}", error)
            code = status.name
            reply = pb.Reply(id=command.id, code=status.value[0], error=text)
        self.counts.answered(_STREAMED.get(body or "", "Exchange"), code, time.perf_counter() - start)
        return reply

    async def _carry_out_with_retry(
        self, body: str | None, command: pb.Command, client: Client, held: Unacknowledged
    ) -> pb.Reply | SerializedMessage:
        """`_carry_out`, retried if a lock was held."""
        try:
            return await self._carry_out(body, command, client, held)
        except UnavailableError as error:
            return await self.lock_retry.retry(error, lambda: self._carry_out(body, command, client, held))

    async def _carry_out(
        self, body: str | None, command: pb.Command, client: Client, held: Unacknowledged
    ) -> pb.Reply | SerializedMessage:
        if body is None:
            raise ValueError("the command has no body known to this server")
        operation = self._operations[body]
        return messages.reply(command.id, body, await operation(getattr(command, body), client, held))

    async def _put(self, request: pb.PutRequest, client: Client, held: Unacknowledged) -> pb.PutResponse:
        session = self._sessions.find(request.session.id, client)
        pool = session.pool
        batch = messages.batch(request, pool.page_size, self._limit(session))
        await self._check_unused(session)
        if self._drop(session, request.session):
            return messages.stale_put(len(batch.indices))
        self.counts.bytes_in[_ENCODINGS[request.encoding]] += len(batch.pages)
        short = call_cost.of_put(batch, pool) <= self._config.inline_bytes
        return pb.PutResponse(outcomes=await self._mutate(session, held, lambda: pool.put(batch), short))

    async def _get(self, request: pb.GetRequest, client: Client, held: Unacknowledged) -> SerializedMessage:
        session = self._sessions.find(request.session.id, client)
        pool = session.pool
        lz4, oid, indices = (
            messages.wants_lz4(request),
            messages.oid(request.oid),
            messages.indices(request, self._limit(session)),
        )
        if request.exclusive:
            check_not_the_daemons(pool.name)
            await self._check_unused(session)
        if call_cost.of_get(len(indices), pool, lz4) <= self._config.inline_bytes:
            fetched = pool.fetch(oid, indices, lz4)
        else:
            fetched = await self._store.call(lambda: pool.fetch(oid, indices, lz4), client.name)
        self.counts.bytes_out["lz4" if lz4 else "raw"] += len(fetched.pages)
        acknowledgement = 0
        if request.exclusive and pool.keeps and fetched.stamps:
            stamps = dict(zip(messages.positions(fetched.found, indices), fetched.stamps, strict=True))
            acknowledgement = session.await_acknowledgement(ExclusiveGet(oid, stamps))
            held.append((session, acknowledgement))
        return messages.pages(fetched, lz4, acknowledgement)

    async def _acknowledge(
        self, request: pb.AcknowledgeRequest, client: Client, held: Unacknowledged
    ) -> pb.AcknowledgeResponse:
        session = self._sessions.find(request.session.id, client)
        await self._check_unused(session)
        if self._drop(session, request.session):
            return pb.AcknowledgeResponse(stale=True)
        get = session.release(request.acknowledgement)
        if get is None:
            return pb.AcknowledgeResponse()
        freed = await self._mutate(session, held, lambda: session.pool.flush_if(get.oid, get.stamps), True)
        return pb.AcknowledgeResponse(freed=freed)

    async def _has(self, request: pb.HasRequest, client: Client, _: Unacknowledged) -> pb.HasResponse:
        session = self._sessions.find(request.session.id, client)
        oid, first, count = messages.oid(request.oid), request.first, request.count
        if count > messages.HAS_MOST:
            raise ValueError(f"count is {count}; it must be at most {messages.HAS_MOST}")
        return pb.HasResponse(held=session.pool.has(oid, first, count))

    async def _flush(self, request: pb.FlushRequest, client: Client, held: Unacknowledged) -> pb.FlushResponse:
        session = self._sessions.find(request.session.id, client)
        oid, indices = messages.oid(request.oid), messages.indices(request, messages.FLUSH_MOST)
        await self._check_unused(session)
        if self._drop(session, request.session):
            return pb.FlushResponse(stale=True)
        short = len(indices) <= call_cost.SHORT_FLUSH
        return pb.FlushResponse(
            found=await self._mutate(session, held, lambda: session.pool.flush(oid, indices), short)
        )

    async def _flush_object(
        self, request: pb.FlushObjectRequest, client: Client, held: Unacknowledged
    ) -> pb.FlushResponse:
        session = self._sessions.find(request.session.id, client)
        oid = messages.oid(request.oid)
        await self._check_unused(session)
        if self._drop(session, request.session):
            return pb.FlushResponse(stale=True)
        return pb.FlushResponse(
            found=await self._mutate(session, held, lambda: session.pool.flush_object(oid), short=False)
        )

    async def _mutate(self, session: Session, held: Unacknowledged, call: Callable[[], T], short: bool) -> T:
        """Change a pool, in this turn of the event loop or in a thread that the session tracks.

        Pages of the stream's earlier exclusive gets are removed first: the client has gone on, so it has them.
        """
        _release_all(held)
        if short:
            return call()
        work = self._store.run(call, session.client)
        session.track(work.ended)
        return await work.result()

    async def _check_unused(self, session: Session) -> None:
        """Raise if the pool belongs to an export that is open or being saved: only its clients may change it then."""
        if session.pool.name.startswith(EXPORTS):
            await self._unused(session.pool.name.removeprefix(EXPORTS))

    def _drop(self, session: Session, given: pb.Session) -> bool:
        """Whether a mutation is stale; counts it if so."""
        check_not_the_daemons(session.pool.name)
        stale = session.is_stale(given.epoch)
        self.counts.late_messages += stale
        return stale

    def _limit(self, session: Session) -> int:
        return messages.batch_limit(session.pool.page_size, self._config.batch_pages)


def _check_id(pool: StorePool, number: int) -> None:
    if number not in (0, pool.id):
        raise OtherPoolError(pool.name, number)


def _release_all(held: Unacknowledged) -> None:
    for session, number in held:
        get = session.release(number)
        if get is not None:
            with suppress(UnknownPoolError):  # destroyed since, and its pages with it
                session.pool.flush_if(get.oid, get.stamps)
    held.clear()
