"""What a server has beside its store: clients, workers, events, scans, injected faults. Sans-io, as `page_ops` is.

Store has `clients`, `workers` and `events`; the rest is for the command `tmem`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmem._model import errors
from tmem._protocol.operations import Steps, call
from tmem_proto.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tmem._protocol.connection import ServerState
    from tmem_proto.v1 import tmem_pb2 as pb

_EVENT_KIND = "EVENT_KIND_"


@dataclass(frozen=True, slots=True)
class Client:
    """A client of a server: one that its configuration names, that owns pools, or that has sessions.

    Attributes:
        name: Its identity.
        quota: Bytes that the quotas of its pools may come to; 0 is no quota.
        weight: Of its new pools.
        administrator: Whether it may care for the pools of others.
        pools: How many it owns.
        pages: That these hold.
        footprint_bytes: That these take.
        sessions: It has open with the worker that answers.
    """

    name: str
    quota: int
    weight: int
    administrator: bool
    pools: int
    pages: int
    footprint_bytes: int
    sessions: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A process of a server. All serve the same pools.

    Attributes:
        number: From 0 on.
        port: On the server's host.
        process: Its process id there.
        replaced: Times that it was replaced after it had died.
        suggested: Whether the server would have this client use it.
    """

    number: int
    port: int
    process: int
    replaced: int
    suggested: bool


@dataclass(frozen=True, slots=True)
class Event:
    """Something that happened in a store.

    Attributes:
        time: Seconds since 1970, UTC.
        kind: `"evicted"`, `"refused"`, `"recovered"`, `"corrupt"`, `"pool_created"`, `"pool_destroyed"`,
            `"pool_frozen"`, `"pool_thawed"`, `"worker_replaced"`, of exports `"export_resized"`, `"export_drained"`,
            `"export_undrained"`, `"export_attached"`, `"export_detached"`, `"export_refused"`, or `"missed"` where
            `count` events were dropped as they were read too slowly.
        pool: Empty where it concerns the whole store. An export's is `export/NAME`, made and destroyed with it.
        client: Owner of the pool.
        cause: Of evictions and refusals.
        count: Pages; shards where recovered; of exports clients, or the bytes they have by now.
    """

    time: float
    kind: str
    pool: str
    client: str
    cause: str
    count: int


@dataclass(frozen=True, slots=True)
class Scanned:
    """Pages of one object that a pool holds. A stamp changes whenever its page does."""

    oid: bytes
    indices: Sequence[int]
    stamps: Sequence[int]


def clients(server: ServerState) -> Steps[list[Client]]:
    """All clients."""
    reply = yield from call(server, "ListClients", admin.ListClientsRequest())
    names = Client.__slots__
    return [Client(**{name: getattr(client, name) for name in names}) for client in reply.clients]


def workers(server: ServerState) -> Steps[list[Worker]]:
    """All processes that serve."""
    reply = yield from call(server, "ListWorkers", admin.ListWorkersRequest())
    return [
        Worker(worker.number, worker.port, worker.process, worker.replaced, worker.port == reply.suggested_port)
        for worker in reply.workers
    ]


def status(server: ServerState) -> Steps[admin.StatsResponse]:
    """The store's numbers and the server's own, its version, and who it takes this client for."""
    reply: admin.StatsResponse = yield from call(server, "Stats", admin.StatsRequest())
    return reply


def pools(server: ServerState) -> Steps[list[admin.Pool]]:
    """All pools with their settings and numbers, by one call and without sessions."""
    return list((yield from call(server, "ListPools", admin.ListPoolsRequest())).pools)


def pool(server: ServerState, name: str) -> Steps[admin.Pool]:
    """One pool with its settings and numbers."""
    try:
        found: admin.Pool = (yield from call(server, "GetPool", admin.GetPoolRequest(name=name))).pool
    except errors.UnknownPoolError:
        raise errors.UnknownPoolError(name) from None
    return found


def create_pool(server: ServerState, name: str, settings: pb.PoolSettings) -> Steps[admin.Pool]:
    """A new pool; `MismatchError` where there is one of the name, whatever its settings."""
    request = admin.CreatePoolRequest(name=name, settings=settings)
    made: admin.Pool = (yield from call(server, "CreatePool", request)).pool
    return made


def freeze_client(server: ServerState, name: str, frozen: bool) -> Steps[None]:
    """Freeze or thaw all pools of a client."""
    request = (admin.FreezeRequest if frozen else admin.ThawRequest)(client=name)
    yield from call(server, "Freeze" if frozen else "Thaw", request)


def scan(server: ServerState, name: str, cursor: bytes) -> Steps[tuple[list[Scanned], bytes]]:
    """Some pages that a pool holds, and the cursor for more: empty at the end, as it is to begin with."""
    reply = yield from call(server, "Scan", admin.ScanRequest(pool=name, cursor=cursor))
    for part in reply.objects:
        if len(part.indices) != len(part.stamps):
            raise errors.InternalError(f"the server sent {len(part.stamps)} stamps for {len(part.indices)} pages")
    return [Scanned(part.oid, part.indices, part.stamps) for part in reply.objects], reply.cursor


def inject(server: ServerState, injections: Iterable[admin.Injection]) -> Steps[list[admin.Injection]]:
    """Delay or fail calls in place of what was done to them before, which is returned."""
    return list((yield from call(server, "Inject", admin.InjectRequest(injections=injections))).before)


def watch_request(pool: str | None) -> admin.WatchRequest:
    """To watch a pool, or all that happens."""
    if pool is not None and not isinstance(pool, str):
        raise TypeError(f"pool must be a str, not {type(pool).__name__}")
    return admin.WatchRequest(pool=pool or "")


def event(message: admin.Event) -> Event:
    """One of a watch."""
    names = admin.EventKind.DESCRIPTOR.values_by_number
    known: Any = names.get(message.kind)
    kind = known.name.removeprefix(_EVENT_KIND).lower() if known else f"kind_{message.kind}"
    return Event(message.time, kind, message.pool, message.client, message.cause, message.count)


def settings_of(found: admin.Pool) -> dict[str, Any]:
    """The settings of a pool by name."""
    return {field.name: getattr(found.settings, field.name) for field in found.settings.DESCRIPTOR.fields}


def stats_of(found: admin.Pool) -> dict[str, Any]:
    """What `Pool.stats` gives."""
    names = admin.SizeClass.DESCRIPTOR.fields_by_name
    classes = [{name: getattr(entry, name) for name in names} for entry in found.stats.classes]
    return {
        **dict(sorted(found.stats.values.items())),
        "size_histogram": list(found.stats.size_histogram),
        "classes": classes,
    }
