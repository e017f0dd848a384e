"""Store and pool of a server, sans-io: every operation as steps that a driver carries out (see `operations`)."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from tmem._model import checks
from tmem._model.errors import ClosedError, CorruptPageError, DeniedError, UnavailableError, UnknownPoolError
from tmem._model.outcome import UNAVAILABLE
from tmem._protocol import messages
from tmem._protocol.operations import Steps, call
from tmem._protocol.session import Session, batches
from tmem_proto.v1 import admin_pb2 as admin
from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from typing_extensions import Buffer

    from tmem._model.checks import Page
    from tmem._model.oid import Oid
    from tmem._model.settings import PoolSettings
    from tmem._protocol.connection import ServerState
    from tmem._protocol.messages import Got

_PERSISTENT = "persistent"


class RemotePool:
    """The operations of one pool."""

    def __init__(self, server: ServerState, session: Session) -> None:
        self.server = server
        self.session = session

    @property
    def name(self) -> str:
        return self.session.name

    @property
    def page_size(self) -> int:
        return self.session.settings.page_size

    def put(self, oid: Oid, pages: dict[int, Buffer]) -> Steps[bytes]:
        indices, views = checks.pages(pages, self.page_size)
        return (yield from self._put(oid, indices, views, self._pack))

    def put_range(self, oid: Oid, first: int, buffer: Buffer) -> Steps[bytes]:
        indices, views = checks.page_range(first, buffer, self.page_size)
        return (yield from self._put(oid, indices, views, self._pack))

    def put_lz4(self, oid: Oid, blocks: dict[int, Buffer]) -> Steps[bytes]:
        indices = [checks.number(index, "index") for index in blocks]
        views = [checks.view(block, "block") for block in blocks.values()]
        for index, block in zip(indices, views, strict=True):
            messages.check_block(index, block, self.page_size)
        return (yield from self._put(oid, indices, views, partial(messages.put_lz4_request, page_size=self.page_size)))

    def get(self, oid: Oid, indices: Iterable[int], exclusive: bool = False) -> Steps[dict[int, bytes]]:
        wanted = checks.index_list(indices)
        pages: dict[int, bytes] = {}
        corrupt: list[int] = []
        for part, got in (yield from self._get(checks.oid_bytes(oid), wanted, checks.flag(exclusive, "exclusive"))):
            pages.update([(part[at], page) for at, page in got.pages])
            corrupt += [part[at] for at in got.corrupt]
        self._complain(pages, corrupt)
        return pages

    def get_range(
        self, oid: Oid, first: int, count: int, into: Buffer | None = None, exclusive: bool = False
    ) -> Steps[tuple[Any, bytes]]:
        wanted = checks.span(first, count)
        size = self.page_size
        buffer = bytearray(len(wanted) * size) if into is None else into
        view = checks.target(buffer, len(wanted) * size)
        mask = bytearray(len(wanted))
        corrupt: list[int] = []
        parts = yield from self._get(checks.oid_bytes(oid), wanted, checks.flag(exclusive, "exclusive"))
        for part, got in parts:
            start = part[0] - wanted.start
            for at, page in got.pages:
                view[(start + at) * size : (start + at + 1) * size] = page
                mask[start + at] = 1
            corrupt += [part[at] for at in got.corrupt]
        if into is not None:
            _clear_misses(view, mask, size)
        if corrupt:
            hits = {wanted[at]: bytes(view[at * size : (at + 1) * size]) for at, hit in enumerate(mask) if hit}
            self._complain(hits, corrupt)
        return buffer, bytes(mask)

    def has(self, oid: Oid, first: int, count: int) -> Steps[bytes]:
        wanted = checks.span(first, count)
        key = checks.oid_bytes(oid)
        makers = [
            partial(pb.HasRequest, oid=key, first=part[0], count=len(part))
            for part in batches(wanted, messages.HAS_PAGES)
        ]
        try:
            replies = yield from self.session.run("Has", makers, in_order=True)
        except UnavailableError as error:
            self._answer_misses(len(wanted), error)
            return bytes(len(wanted))
        return b"".join(reply.held for reply in replies)

    def flush(self, oid: Oid, indices: Iterable[int]) -> Steps[int]:
        key, wanted = checks.oid_bytes(oid), checks.index_list(indices)
        makers = [partial(pb.FlushRequest, oid=key, indices=part) for part in batches(wanted, self.session.flush_batch)]
        return (yield from self._flush("Flush", makers, key, wanted))

    def flush_object(self, oid: Oid) -> Steps[int]:
        key = checks.oid_bytes(oid)
        return (yield from self._flush("FlushObject", [partial(pb.FlushObjectRequest, oid=key)], key, None))

    def destroy(self) -> Steps[int]:
        yield from self.session.open()
        reply = yield from self._admin(
            "DestroyPool", admin.DestroyPoolRequest(name=self.name, pool_id=self.session.pool_id)
        )
        self.session.gone = True
        dropped: int = reply.dropped
        return dropped

    def freeze(self) -> Steps[None]:
        yield from self._admin("Freeze", admin.FreezeRequest(pool=self.name, pool_id=self.session.pool_id))

    def thaw(self) -> Steps[None]:
        yield from self._admin("Thaw", admin.ThawRequest(pool=self.name, pool_id=self.session.pool_id))

    def frozen(self) -> Steps[bool]:
        frozen: bool = (yield from self._pool()).frozen
        return frozen

    def set_quota(self, size: int) -> Steps[None]:
        quota = checks.number(size, "quota", high=2**64 - 1)
        request = admin.SetQuotaRequest(pool=self.name, quota=quota, pool_id=self.session.pool_id)
        yield from self._admin("SetQuota", request)

    def set_weight(self, weight: int) -> Steps[None]:
        share = checks.number(weight, "weight", low=1)
        request = admin.SetWeightRequest(pool=self.name, weight=share, pool_id=self.session.pool_id)
        yield from self._admin("SetWeight", request)

    def settings(self) -> Steps[dict[str, Any]]:
        return messages.settings_dict((yield from self._pool()).settings)

    def stats(self) -> Steps[dict[str, Any]]:
        stats = (yield from self._pool()).stats
        names = admin.SizeClass.DESCRIPTOR.fields_by_name
        classes = [{name: getattr(entry, name) for name in names} for entry in stats.classes]
        return {**stats.values, "size_histogram": list(stats.size_histogram), "classes": classes}

    def _put(
        self,
        oid: Oid,
        indices: Sequence[int],
        views: Sequence[Page],
        request: Callable[[bytes, Sequence[int], Sequence[Page]], pb.PutRequest],
    ) -> Steps[bytes]:
        key, size = checks.oid_bytes(oid), self.session.batch
        parts = list(zip(batches(indices, size), batches(views, size), strict=True))
        try:
            replies = yield from self.session.run(
                "Put", [partial(request, key, *part) for part in parts], mutation=True, in_order=self._light
            )
        except UnavailableError:
            if not self.server.forgiving:
                raise
            self.session.owe(key, indices)
            self.server.counters.add("refused_unavailable", len(indices))
            return bytes([UNAVAILABLE]) * len(indices)
        return b"".join(messages.put_codes(reply, len(part)) for reply, (part, _) in zip(replies, parts, strict=True))

    @property
    def _light(self) -> bool:
        """Whether the server has so little to do for a batch that it does it at once: it compresses nothing."""
        codec = self.session.settings.codec
        return self.server.options.encoding == "lz4" and not codec.startswith(("lz4hc", "zstd"))

    def _pack(self, oid: bytes, indices: Sequence[int], views: Sequence[Page]) -> pb.PutRequest:
        return messages.put_request(oid, indices, views, self.server.options.encoding)

    def _get(self, oid: bytes, wanted: Sequence[int], exclusive: bool) -> Steps[list[tuple[Sequence[int], Got]]]:
        """What came of each batch. Pages taken out are acknowledged once they are here and sound."""
        parts = batches(wanted, self.session.batch)
        accept = self.server.options.encoding
        try:
            makers = [partial(messages.get_request, oid, part, accept, exclusive) for part in parts]
            replies = yield from self.session.run("Get", makers, in_order=self._light and not exclusive)
        except UnavailableError as error:
            self._answer_misses(len(wanted), error)
            return []
        found = [
            (part, messages.got(reply, len(part), self.page_size)) for part, reply in zip(parts, replies, strict=True)
        ]
        sound = [
            reply.acknowledgement
            for reply, (_, got) in zip(replies, found, strict=True)
            if reply.acknowledgement and not got.corrupt
        ]
        if sound:
            yield from self._acknowledge(sound)
        return found

    def _acknowledge(self, numbers: list[int]) -> Steps[None]:
        """Whatever happens here, the pages have been got: the caller has them."""
        makers = [partial(pb.AcknowledgeRequest, acknowledgement=number) for number in numbers]
        try:
            yield from self.session.run("Acknowledge", makers, mutation=True)
        except (UnavailableError, UnknownPoolError, ClosedError):
            self.server.counters.add("acknowledgements_lost", len(numbers))

    def _flush(
        self, method: str, makers: Sequence[Callable[[], Any]], oid: bytes, indices: list[int] | None
    ) -> Steps[int]:
        try:
            replies = yield from self.session.run(method, makers, mutation=True)
        except UnavailableError:
            if not self.server.forgiving:
                raise
            self.session.owe(oid, indices)
            return 0
        return sum(reply.found for reply in replies)

    def _answer_misses(self, count: int, error: UnavailableError) -> None:
        """Answer for a server that is away; raise where a miss would be a lie, as it is of a persistent page."""
        if not self.server.forgiving or self.session.settings.kind == _PERSISTENT:
            raise error
        self.server.counters.add("missed_unavailable", count)

    def _complain(self, pages: dict[int, bytes], corrupt: list[int]) -> None:
        if corrupt:
            self.server.counters.add("corrupt_pages", len(corrupt))
            if self.session.settings.kind == _PERSISTENT:
                raise CorruptPageError(pages, corrupt)

    def _pool(self) -> Steps[admin.Pool]:
        pool: admin.Pool = (yield from self._admin("GetPool", admin.GetPoolRequest(name=self.name))).pool
        if self.session.is_other(pool.id):
            self.session.gone = True
            raise UnknownPoolError(self.name)
        return pool

    def _admin(self, method: str, request: Any) -> Steps[Any]:
        if self.session.gone and not self.server.closed:
            raise UnknownPoolError(self.name)
        try:
            return (yield from call(self.server, method, request))
        except UnknownPoolError:
            self.session.gone = True
            raise UnknownPoolError(self.name) from None


class RemoteStore:
    """The operations of one server. Handles of one pool share its session."""

    def __init__(self, server: ServerState) -> None:
        self.server = server
        self._sessions: dict[str, Session] = {}

    def pool(self, name: str, settings: PoolSettings) -> Steps[RemotePool]:
        session = Session(self.server, _name(name), messages.settings_message(settings))
        try:
            yield from session.open()
        except UnavailableError:
            if not self.server.forgiving:
                raise
        return self._adopt(session)

    def find_pool(self, name: str) -> Steps[RemotePool | None]:
        session = Session(self.server, _name(name), None)
        try:
            yield from session.open()
        except UnknownPoolError:
            return None
        return self._adopt(session)

    def pools(self) -> Steps[list[RemotePool]]:
        listed = yield from call(self.server, "ListPools", admin.ListPoolsRequest())
        found = []
        for pool in listed.pools:
            one = yield from self.find_pool(pool.name)
            if one is not None:
                found.append(one)
        return found

    def info(self) -> Steps[dict[str, Any]]:
        stats = yield from self._stats()
        return {
            "memory": stats.store["memory_bytes"],
            "shards": stats.store["shards"],
            "arena": stats.arena or None,
            "accept_threshold": stats.accept_threshold,
        }

    def stats(self) -> Steps[dict[str, int]]:
        return dict((yield from self._stats()).store)

    def compact(self) -> Steps[dict[str, int]]:
        reply = yield from call(self.server, "Compact", admin.CompactRequest())
        return {"moved_pages": reply.moved_pages, "freed_bytes": reply.freed_bytes}

    def relinquish(self, size: int) -> Steps[int]:
        request = admin.RelinquishRequest(size=checks.number(size, "size", high=2**64 - 1))
        given_back: int = (yield from call(self.server, "Relinquish", request)).given_back
        return given_back

    def resize(self, memory: int) -> Steps[None]:
        request = admin.ResizeRequest(memory=checks.number(memory, "memory", high=2**64 - 1))
        yield from call(self.server, "Resize", request)

    def check(self) -> Steps[list[str]]:
        return list((yield from call(self.server, "Check", admin.CheckRequest())).violations)

    def _stats(self) -> Steps[admin.StatsResponse]:
        """Numbers of the whole store, which a server has for administrators only."""
        stats: admin.StatsResponse = yield from call(self.server, "Stats", admin.StatsRequest())
        if not stats.store:
            raise DeniedError(f"client {stats.client!r} is not an administrator")
        return stats

    def _adopt(self, session: Session) -> RemotePool:
        """The pool of the session that is kept for its name: what is owed and in doubt is known to one alone."""
        held = self._sessions.get(session.name)
        if held is None or held.gone or held.is_other(session.pool_id):
            held = self._sessions[session.name] = session
        return RemotePool(self.server, held)


def _clear_misses(view: memoryview, mask: bytearray, size: int) -> None:
    zeros = bytes(size)
    for at, hit in enumerate(mask):
        if not hit:
            view[at * size : (at + 1) * size] = zeros


def _name(name: object) -> str:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, not {type(name).__name__}")
    return name
