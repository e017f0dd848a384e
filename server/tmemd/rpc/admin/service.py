"""The service `tmem.v1.TmemAdmin`: administration of the store, its pools and exports."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeVar

from google.protobuf.message import Message

from tmem_proto.v1 import admin_pb2 as pb
from tmem_proto.v1.admin_pb2_grpc import TmemAdminServicer
from tmemd import __version__
from tmemd.base.errors import UnknownPoolError
from tmemd.config.faults import Injection
from tmemd.exports.catalogue import MOST_ALLOWED
from tmemd.messages.settings import settings_from, settings_to
from tmemd.rpc.admin.client_list import clients
from tmemd.rpc.handler import fail, identify, rpc
from tmemd.rpc.registration import check_readable

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator

    from grpc.aio import ServicerContext

    from tmemd.config.settings import Config
    from tmemd.exports.manager import ExportManager
    from tmemd.rpc.service_context import ServiceContext
    from tmemd.security.identity import Client
    from tmemd.store.api import StorePool
    from tmemd.telemetry.event_watchers import EventBroadcaster
    from tmemd.telemetry.processes import Workers

M = TypeVar("M", bound=Message)

SCAN_PAGES = 8192
"""Pages in a response, or a few more: about 400 KiB at most, if every page belongs to another object."""


class AdminService(TmemAdminServicer):
    """Serves administrative calls. Long ones run in a thread."""

    def __init__(
        self, service: ServiceContext, workers: Workers, events: EventBroadcaster, exports: ExportManager
    ) -> None:
        self.counts = service.counts
        self.identities = service.identities
        self.injections = service.injections
        self.lock_retry = service.lock_retry
        self._store = service.store
        self._rights = service.rights
        self._sessions = service.sessions
        self._config = service.config
        self._workers = workers
        self._events = events
        self._exports = exports

    def reconfigure(self, config: Config) -> None:
        self._config = config

    @rpc
    async def ListPools(self, _: pb.ListPoolsRequest, client: Client) -> pb.ListPoolsResponse:  # noqa: N802
        return await self._store.call(
            lambda: pb.ListPoolsResponse(pools=_pools(self._rights.visible(client))), client.name
        )

    @rpc
    async def GetPool(self, request: pb.GetPoolRequest, client: Client) -> pb.GetPoolResponse:  # noqa: N802
        pool = self._rights.find(client, request.name)
        return await self._store.call(lambda: pb.GetPoolResponse(pool=_pool(pool)), client.name)

    @rpc
    async def CreatePool(self, request: pb.CreatePoolRequest, client: Client) -> pb.CreatePoolResponse:  # noqa: N802
        pool = self._rights.create(client, request.name, settings_from(request.settings))
        return pb.CreatePoolResponse(pool=_pool(pool))

    @rpc
    async def DestroyPool(self, request: pb.DestroyPoolRequest, client: Client) -> pb.DestroyPoolResponse:  # noqa: N802
        pool = self._rights.own(client, request.name, request.pool_id, destroy=True)
        return pb.DestroyPoolResponse(dropped=await self._store.call(pool.destroy, client.name))

    @rpc
    async def Freeze(self, request: pb.FreezeRequest, client: Client) -> pb.FreezeResponse:  # noqa: N802
        pools = self._chosen(request, client)
        await self._store.call(lambda: _each(pools, lambda pool: pool.freeze()), client.name)
        return pb.FreezeResponse()

    @rpc
    async def Thaw(self, request: pb.ThawRequest, client: Client) -> pb.ThawResponse:  # noqa: N802
        pools = self._chosen(request, client)
        await self._store.call(lambda: _each(pools, lambda pool: pool.thaw()), client.name)
        return pb.ThawResponse()

    @rpc
    async def SetQuota(self, request: pb.SetQuotaRequest, client: Client) -> pb.SetQuotaResponse:  # noqa: N802
        self._rights.set_quota(client, request.pool, request.quota, request.pool_id)
        return pb.SetQuotaResponse()

    @rpc
    async def SetWeight(self, request: pb.SetWeightRequest, client: Client) -> pb.SetWeightResponse:  # noqa: N802
        self._rights.set_weight(client, request.pool, request.weight, request.pool_id)
        return pb.SetWeightResponse()

    @rpc
    async def Relinquish(self, request: pb.RelinquishRequest, client: Client) -> pb.RelinquishResponse:  # noqa: N802
        client.must_administer()
        given_back = await self._store.call(lambda: self._store.relinquish(request.size), client.name)
        return pb.RelinquishResponse(given_back=given_back)

    @rpc
    async def Resize(self, request: pb.ResizeRequest, client: Client) -> pb.ResizeResponse:  # noqa: N802
        client.must_administer()
        await self._store.call(lambda: self._store.resize(request.memory), client.name)
        return pb.ResizeResponse()

    @rpc
    async def Compact(self, _: pb.CompactRequest, client: Client) -> pb.CompactResponse:  # noqa: N802
        client.must_administer()
        return pb.CompactResponse(**await self._store.call(self._store.compact, client.name))

    @rpc
    async def Check(self, _: pb.CheckRequest, client: Client) -> pb.CheckResponse:  # noqa: N802
        client.must_administer()
        return pb.CheckResponse(violations=await self._store.call(self._store.check, client.name))

    @rpc
    async def Scan(self, request: pb.ScanRequest, client: Client) -> pb.ScanResponse:  # noqa: N802
        pool = self._rights.own(client, request.pool, look=True)
        objects, cursor = await self._store.call(lambda: pool.scan(request.cursor, SCAN_PAGES), client.name)
        parts = (pb.ScannedObject(oid=oid, indices=indices, stamps=stamps) for oid, indices, stamps in objects)
        return pb.ScanResponse(objects=parts, cursor=cursor)

    async def Watch(  # noqa: N802
        self, request: pb.WatchRequest, context: ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.Event]:
        """Stream events until the client leaves, the pool is destroyed, or the daemon stops."""
        client = await identify(self, "Watch", context)
        try:
            check_readable(request)
            with self.identities.call_limits.of(client.name):
                async with self._events.watching(client, self._watched(client, request.pool)) as watcher:
                    await context.send_initial_metadata(())
                    while (event := await watcher.next()) is not None:
                        yield event
        except Exception as error:
            await fail(self, "Watch", context, error)
        self.counts.answered("Watch", "OK", 0.0)

    @rpc
    async def Inject(self, request: pb.InjectRequest, client: Client) -> pb.InjectResponse:  # noqa: N802
        client.must_administer()
        before = self.injections.replace(tuple(map(Injection.of, request.injections)))
        return pb.InjectResponse(before=map(Injection.message, before))

    @rpc
    async def Stats(self, _: pb.StatsRequest, client: Client) -> pb.StatsResponse:  # noqa: N802
        about = pb.StatsResponse(version=__version__, client=client.name, administrator=client.administrator)
        if client.administrator:
            about.MergeFrom(await self._of_the_store())
        return about

    @rpc
    async def ListClients(self, _: pb.ListClientsRequest, client: Client) -> pb.ListClientsResponse:  # noqa: N802
        client.must_administer()
        pools, sessions = self._store.pools, self._sessions.by_client()
        return await self._store.call(
            lambda: pb.ListClientsResponse(clients=clients(self._config, pools(), sessions)), client.name
        )

    async def _of_the_store(self) -> pb.StatsResponse:
        info = self._store.info()
        return pb.StatsResponse(
            store=await self._store.call(self._store.stats),
            daemon=await self._daemon(),
            arena=info["arena"] or "",
            accept_threshold=info["accept_threshold"],
        )

    @rpc
    async def ListWorkers(self, _: pb.ListWorkersRequest, client: Client) -> pb.ListWorkersResponse:  # noqa: N802
        workers = [pb.Worker(number=each.number, port=each.port) for each in self._workers.all]
        if client.administrator:
            for shown, each in zip(workers, self._workers.all, strict=True):
                shown.process, shown.replaced = each.process, each.replaced
        return pb.ListWorkersResponse(workers=workers, suggested_port=self._workers.suggest().port)

    @rpc
    async def CreateExport(self, request: pb.CreateExportRequest, client: Client) -> pb.CreateExportResponse:  # noqa: N802
        if not request.HasField("allowed") and self._config.tls_client_ca is not None:
            request.allowed.clients.extend(self._by_default(client))
        return await self._of_exports("CreateExport", request, client, pb.CreateExportResponse)

    @rpc
    async def ListExports(self, request: pb.ListExportsRequest, client: Client) -> pb.ListExportsResponse:  # noqa: N802
        return await self._of_exports("ListExports", request, client, pb.ListExportsResponse)

    @rpc
    async def RemoveExport(self, request: pb.RemoveExportRequest, client: Client) -> pb.RemoveExportResponse:  # noqa: N802
        return await self._of_exports("RemoveExport", request, client, pb.RemoveExportResponse)

    @rpc
    async def ResizeExport(self, request: pb.ResizeExportRequest, client: Client) -> pb.ResizeExportResponse:  # noqa: N802
        return await self._of_exports("ResizeExport", request, client, pb.ResizeExportResponse)

    @rpc
    async def DrainExport(self, request: pb.DrainExportRequest, client: Client) -> pb.DrainExportResponse:  # noqa: N802
        return await self._of_exports("DrainExport", request, client, pb.DrainExportResponse)

    @rpc
    async def AllowExport(self, request: pb.AllowExportRequest, client: Client) -> pb.AllowExportResponse:  # noqa: N802
        return await self._of_exports("AllowExport", request, client, pb.AllowExportResponse)

    @rpc
    async def OpenSnapshot(self, request: pb.OpenSnapshotRequest, client: Client) -> pb.OpenSnapshotResponse:  # noqa: N802
        return await self._of_exports("OpenSnapshot", request, client, pb.OpenSnapshotResponse)

    @rpc
    async def ScanSnapshot(self, request: pb.ScanSnapshotRequest, client: Client) -> pb.ScanSnapshotResponse:  # noqa: N802
        return await self._of_exports("ScanSnapshot", request, client, pb.ScanSnapshotResponse)

    @rpc
    async def ReadSnapshot(self, request: pb.ReadSnapshotRequest, client: Client) -> pb.ReadSnapshotResponse:  # noqa: N802
        return await self._of_exports("ReadSnapshot", request, client, pb.ReadSnapshotResponse)

    @rpc
    async def CloseSnapshot(self, request: pb.CloseSnapshotRequest, client: Client) -> pb.CloseSnapshotResponse:  # noqa: N802
        return await self._of_exports("CloseSnapshot", request, client, pb.CloseSnapshotResponse)

    async def _of_exports(self, method: str, request: Message, client: Client, response: type[M]) -> M:
        """Let the worker that manages exports answer."""
        client.must_administer()
        answer = self._workers.first or self._exports.answer
        return response.FromString(await answer(method, request.SerializeToString()))

    def _by_default(self, creator: Client) -> list[str]:
        """Who may open an export by default, if clients are identified by certificates.

        Clients of a Unix socket are `local`: its folder let them in.
        """
        local = ["local"] if any(address.startswith("unix:") for address in self._config.nbd) else []
        return list(dict.fromkeys((creator.name, *local, *sorted(self._config.administrators))))[:MOST_ALLOWED]

    def _chosen(self, request: pb.FreezeRequest | pb.ThawRequest, client: Client) -> list[StorePool]:
        if bool(request.pool) == bool(request.client):
            raise ValueError("name either a pool or a client")
        if request.pool:
            return [self._rights.own(client, request.pool, request.pool_id)]
        return self._rights.owned(client, request.client)

    def _watched(self, client: Client, name: str) -> StorePool | None:
        if name:
            return self._rights.own(client, name, look=True)
        client.must_administer()
        return None

    async def _daemon(self) -> dict[str, int]:
        counts = await self._workers.counts()
        return {
            "sessions": counts.sessions,
            "late_messages": counts.late_messages,
            "received_bytes": counts.bytes_in.total(),
            "sent_bytes": counts.bytes_out.total(),
            "calls": counts.calls.total(),
        }


def _each(pools: Iterable[StorePool], work: Callable[[StorePool], None]) -> None:
    """Apply `work` to each pool, except those destroyed meanwhile."""
    for pool in pools:
        with suppress(UnknownPoolError):
            work(pool)


def _pools(pools: Iterable[StorePool]) -> Iterator[pb.Pool]:
    for pool in pools:
        with suppress(UnknownPoolError):
            yield _pool(pool)


def _pool(pool: StorePool) -> pb.Pool:
    stats: dict[str, Any] = pool.stats()
    classes = [pb.SizeClass(**fields) for fields in stats.pop("classes")]
    histogram = stats.pop("size_histogram")
    return pb.Pool(
        name=pool.name,
        settings=settings_to(pool.settings()),
        frozen=pool.frozen(),
        id=pool.id,
        stats=pb.PoolStats(values=stats, size_histogram=histogram, classes=classes),
    )
