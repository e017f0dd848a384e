"""The composition root: builds the daemon's parts, starts them, and stops them in order."""

from __future__ import annotations

import asyncio
import signal
from typing import TYPE_CHECKING, Any

from grpc import aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from tmem_proto.v1 import admin_pb2, admin_pb2_grpc, tmem_pb2, tmem_pb2_grpc
from tmemd.base.errors import ConfigError, TmemdError
from tmemd.base.logs import log, log_to_stderr
from tmemd.base.os_errors import why_unbound
from tmemd.base.parsers import join_address, split_address
from tmemd.base.signals import on_signals
from tmemd.base.startup import unserved_status
from tmemd.config.faults import Injections
from tmemd.exports.manager import ExportManager
from tmemd.process.arena_lock import GRACE, arena_lock, is_older
from tmemd.process.low_memory import be_io_flusher, lock_memory
from tmemd.process.malloc import keep_freed_memory
from tmemd.process.reload import Reload, resize
from tmemd.process.systemd import notify
from tmemd.rpc.admin.service import AdminService
from tmemd.rpc.channelz import SERVICE_NAME as CHANNELZ
from tmemd.rpc.channelz import Channelz
from tmemd.rpc.pages import TmemService
from tmemd.rpc.registration import Registrar
from tmemd.rpc.service_context import ServiceContext
from tmemd.rpc.sessions import Sessions
from tmemd.security.certificates import certificates
from tmemd.security.identity import Identities
from tmemd.security.pool_rights import PoolRights
from tmemd.store.compaction import Compactor
from tmemd.store.engine_store import EngineStore, client_name
from tmemd.store.lock_waits import ArenaMonitor, LockRetry
from tmemd.store.null_store import NullStore
from tmemd.telemetry.counters import Counts
from tmemd.telemetry.event_watchers import EventBroadcaster
from tmemd.telemetry.processes import Workers

if TYPE_CHECKING:
    from collections.abc import Callable

    from tmemd.config.settings import Config
    from tmemd.store.api import Store

SERVICES = tuple(
    file.services_by_name[name].full_name
    for file, name in ((tmem_pb2.DESCRIPTOR, "Tmem"), (admin_pb2.DESCRIPTOR, "TmemAdmin"))
)

NBD = "nbd"
"""The health service that says whether exports are served."""

STORES: dict[str, Callable[[Config], Store]] = {"arena": EngineStore, "null": NullStore}


class Daemon:
    """One daemon on one store. `stop` reports NOT_SERVING, lets calls in flight finish, and closes the arena."""

    def __init__(self, config: Config, first: bool = True) -> None:
        """`first`: whether this process of the arena serves the exports."""
        keep_freed_memory()
        if config.lock_memory:
            lock_memory()
        if config.io_flusher:
            be_io_flusher()
        self._config = config
        self._draining = False
        self.counts = Counts()
        self.workers = Workers(self.counts)
        self._certificates = certificates(config)
        self._store = STORES[config.store](config)
        self._compactor = Compactor(self._store, config.compact_every)
        self._monitor = ArenaMonitor(self._store, self._lost)
        self._events = EventBroadcaster(self._store, self.workers, config, self._counted_by_all)
        self._first = first
        self.exports = ExportManager(self._store)
        self._health = health.aio.HealthServicer()
        self._server = _server(config)
        self._rights = PoolRights(self._store, config)
        self._service = service = ServiceContext(
            config=config,
            store=self._store,
            counts=self.counts,
            identities=Identities(config, client_name),
            injections=Injections(config.inject),
            rights=self._rights,
            sessions=Sessions(config, self.counts),
            lock_retry=LockRetry(self._store, self._monitor.check),
        )
        self._pages = TmemService(service, self._must_be_unused)
        self._admin = admin = AdminService(service, self.workers, self._events, self.exports)
        methods: Any = Registrar(self._server)
        tmem_pb2_grpc.add_TmemServicer_to_server(self._pages, methods)
        admin_pb2_grpc.add_TmemAdminServicer_to_server(admin, methods)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        Channelz(service).add_to(self._server)
        shown = (*SERVICES, health.SERVICE_NAME, reflection.SERVICE_NAME, CHANNELZ)
        reflection.enable_server_reflection(shown, self._server)
        self._exposition: Any = None
        self.port = 0
        self.address = ""
        self.metrics_url: str | None = None

    @property
    def arena(self) -> str | None:
        """The arena's file, if it has one."""
        arena: str | None = self._store.info()["arena"]
        return arena

    async def _must_be_unused(self, export: str) -> None:
        """Raise if an export is in use, as the process that serves exports knows."""
        answer = self.workers.first or self.exports.answer
        await answer("CheckUnused", admin_pb2.RemoveExportRequest(name=export).SerializeToString())

    async def start(self) -> None:
        """Serve calls, then metrics, whose imports wait until calls are answered."""
        self._store.never_wait_for_locks()
        host, _ = split_address(self._config.listen)
        credentials = None if self._certificates is None else self._certificates.credentials()
        try:
            if credentials is None:
                self.port = self._server.add_insecure_port(self._config.listen)
            else:
                self.port = self._server.add_secure_port(self._config.listen, credentials)
        except RuntimeError as error:
            why = why_unbound(self._config.listen)
            raise ConfigError(f"cannot listen on {self._config.listen} (the setting listen): {why}") from error
        self.address = join_address(host, self.port)
        self.workers.alone(self.port)
        if self._first:
            tls, refuse = certificates(self._config), self._rights.refuse_gateway
            await self.exports.start(self._config.nbd, self._config.nbd_poll, tls, refuse)
        await self._tell(health_pb2.HealthCheckResponse.SERVING)
        await self._server.start()
        self._compactor.start()
        self._monitor.start()
        if self._config.metrics is not None:
            self.metrics_url, self._exposition = await asyncio.to_thread(self._expose)

    async def _tell(self, status: Any) -> None:
        for service in ("", *SERVICES, *([NBD] if self.exports.addresses else [])):
            await self._health.set(service, status)

    async def _lost(self) -> None:
        await self._tell(health_pb2.HealthCheckResponse.NOT_SERVING)

    def _expose(self) -> tuple[str, Any]:
        from tmemd.telemetry.collector import expose

        return expose(self._store, self.counted, self._config, client_name, self._unready)

    def _unready(self) -> str:
        if self._draining:
            return "stopping"
        try:
            return self._store.health().lost
        except TmemdError as error:
            return str(error)

    async def reconfigure(self, config: Config) -> Config:
        """Apply new settings, which may differ in those of `reload.LIVE`; returns what is in force."""
        config = await resize(self._store, self._config, config)
        self.settle(config)
        return config

    def settle(self, config: Config) -> None:
        """As `reconfigure`, except for the memory."""
        self._config = config
        log_to_stderr(style=config.log_format, level=config.log_level)
        self._rights.reconfigure(config)
        self._service.identities.reconfigure(config)
        self._service.sessions.reconfigure(config)
        self._admin.reconfigure(config)
        if self._exposition is not None:
            from tmemd.telemetry.collector import readers

            self._exposition.readers = readers(config)

    def counted(self) -> Counts:
        """What this process has counted, including its exports."""
        self.counts.take_exports(self.exports.status(), self.exports.counters())
        return self.counts

    async def _counted_by_all(self) -> Counts:
        await asyncio.to_thread(self.counted)
        return await self.workers.counts()

    async def stop(self) -> None:
        self._draining = True
        await self._health.enter_graceful_shutdown()
        self._events.close()
        self._monitor.stop()
        await self._compactor.stop()
        stopped = asyncio.ensure_future(self._server.stop(self._config.drain))
        # Connections learn first, so that no client opens another stream here.
        await asyncio.sleep(0)
        self._pages.end_streams()
        await asyncio.gather(stopped, self.exports.stop(self._config.drain))
        self.close()

    def close(self) -> None:
        if self._exposition is not None:
            self._exposition.shutdown()
            self._exposition.server_close()
        self._rights.close()
        self.exports.close()
        self._store.close()


async def serve(config: Config, announce: Callable[[Daemon], None], read: Callable[[], Config]) -> int:
    """Serve until SIGTERM or SIGINT; the exit status. `announce` is called once calls are answered.

    `read` reloads the configuration.
    """
    reload = Reload(config, read)
    stopping = on_signals(signal.SIGTERM, signal.SIGINT, reload=reload)
    await asyncio.sleep(0)
    if stopping.is_set():
        return unserved_status(stopping.signum)
    with arena_lock(config.arena if is_older(config.arena) else None) as earlier:
        if not await earlier.acquire(stopping, config.drain + GRACE):
            return unserved_status(stopping.signum)
    daemon = Daemon(config)
    with arena_lock(daemon.arena) as right:
        try:
            if not await right.acquire(stopping, config.drain + GRACE):
                daemon.close()
                log.info("stopped before serving: %s", stopping.why)
                return unserved_status(stopping.signum)
            await daemon.start()
        except BaseException:
            daemon.close()
            raise
        announce(daemon)
        reload.begin(daemon.reconfigure)
        await stopping.wait()
        reload.end()
        drain = reload.config.drain
        log.info("stopping: %s; calls in flight have %d s", stopping.why, drain)
        notify("STOPPING=1")
        right.announce_stop(drain + GRACE)
        await daemon.stop()
        log.info("stopped")
    return 0


def _server(config: Config) -> aio.Server:
    options = [
        ("grpc.max_receive_message_length", config.max_message),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", config.max_streams),
        ("grpc.so_reuseport", 0),
        ("grpc.keepalive_time_ms", config.keepalive * 1000),
        ("grpc.keepalive_timeout_ms", config.keepalive_timeout * 1000),
        ("grpc.http2.ping_timeout_ms", config.keepalive_timeout * 1000),
        ("grpc.server_handshake_timeout_ms", config.keepalive_timeout * 1000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.http2.min_ping_interval_without_data_ms", config.ping_interval * 1000),
        ("grpc.max_connection_idle_ms", config.connection_idle * 1000),
        ("grpc.enable_channelz", 1),
    ]
    return aio.server(options=options, maximum_concurrent_rpcs=config.max_calls)
