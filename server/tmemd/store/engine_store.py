"""The store in an arena: the only module of the daemon that imports `tmem_engine`.

The engine's calls release the GIL. Short ones run on the event loop, long ones in a thread.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tmem_engine import Engine, NbdServer, set_lock_wait
from tmem_engine import client_name as client_name
from tmemd.base import errors
from tmemd.base.logs import RateLimitedWarning, log
from tmemd.store.api import (
    Batch,
    BlockExport,
    BlockServer,
    ExportClient,
    ExportStatus,
    Fetched,
    PoolSettings,
    Scanned,
    StoreHealth,
)
from tmemd.store.executor import StoreExecutor

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tmem_engine import EnginePool, NbdSnapshot
    from tmemd.config.settings import Config
    from tmemd.store.api import CertificateSource, GatewayRefusal, StorePool


class EngineStorePool:
    """A pool of the engine."""

    __slots__ = ("_pool", "family", "id", "keeps", "name", "owner", "page_size")

    def __init__(self, pool: EnginePool) -> None:
        self._pool = pool
        self.id = pool.id
        self.name = pool.name
        self.page_size = pool.page_size
        settings = self.settings()
        self.owner = settings.owner
        self.keeps = settings.keeps
        self.family = settings.family

    def put(self, batch: Batch) -> bytes:
        return self._pool.put_packed(batch.oid, batch.indices, batch.lengths, batch.pages)

    def fetch(self, oid: bytes, indices: Sequence[int], lz4: bool) -> Fetched:
        return Fetched(*self._pool.fetch(oid, indices, lz4))

    def flush_if(self, oid: bytes, stamps: dict[int, int]) -> int:
        """Remove fetched pages unless they were replaced; returns how many."""
        return self._pool.flush_if(oid, stamps)

    def scan(self, cursor: bytes, limit: int) -> tuple[Scanned, bytes]:
        return self._pool.scan(cursor, limit)

    def has(self, oid: bytes, first: int, count: int) -> bytes:
        return self._pool.has(oid, first, count)

    def flush(self, oid: bytes, indices: Sequence[int]) -> int:
        return self._pool.flush(oid, indices)

    def flush_object(self, oid: bytes) -> int:
        return self._pool.flush_object(oid)

    def destroy(self) -> int:
        return self._pool.destroy()

    def freeze(self) -> None:
        self._pool.freeze()

    def thaw(self) -> None:
        self._pool.thaw()

    def frozen(self) -> bool:
        return self._pool.frozen()

    def set_quota(self, size: int) -> None:
        self._pool.set_quota(size)

    def set_weight(self, weight: int) -> None:
        self._pool.set_weight(weight)

    def reserve(self) -> int:
        return self._pool.reserve()

    def set_reserve(self, size: int) -> None:
        self._pool.set_reserve(size)

    def settings(self) -> PoolSettings:
        return PoolSettings(**self._pool.settings())

    def stats(self) -> dict[str, Any]:
        return self._pool.stats()


class EngineBlockSnapshot:
    """A snapshot of an export of the engine."""

    def __init__(self, snapshot: NbdSnapshot) -> None:
        self._snapshot = snapshot
        self.paused = snapshot.paused

    def held(self, first: int) -> tuple[list[int], int | None]:
        with _snapshot_errors():
            return self._snapshot.held(first)

    def fetch(self, indices: Sequence[int]) -> Fetched:
        with _snapshot_errors():
            return Fetched(*self._snapshot.fetch(indices))

    def release(self, page: int) -> None:
        self._snapshot.release(page)

    def end(self) -> str:
        return self._snapshot.end() or ""


@contextmanager
def _snapshot_errors() -> Iterator[None]:
    """Turn the engine's error for a snapshot into ours."""
    try:
        yield
    except RuntimeError as error:
        raise errors.SnapshotError(str(error)) from error


class EngineBlockServer:
    """An NBD server of the engine."""

    def __init__(self, server: NbdServer) -> None:
        self._server = server
        self.addresses: Sequence[str] = server.addresses

    def serve(self, name: str, export: BlockExport) -> None:
        assert isinstance(export.pool, EngineStorePool)
        allow = None if export.allow is None else list(export.allow)
        served = self._server.exports().get(name)
        if served is None:
            flags = {"draining": export.draining, "multi_conn": export.multi_conn}
            self._server.add(name, export.pool._pool, export.oid, export.size, allow=allow, **flags)
            return
        if served["size"] != export.size:
            self._server.resize(name, export.size)
        self._server.allow(name, allow)
        self._server.drain(name, export.draining)

    def remove(self, name: str, force: bool) -> None:
        try:
            self._server.remove(name, force=force)
        except RuntimeError as error:
            clients = error.args[0]
            raise errors.BusyError(f"export {name!r} is in use by {clients} client{'s' * (clients > 1)}") from error

    def snapshot(self, name: str, shadow: StorePool) -> EngineBlockSnapshot:
        assert isinstance(shadow, EngineStorePool)
        try:
            return EngineBlockSnapshot(self._server.snapshot(name, shadow._pool))
        except ValueError as error:
            raise errors.BusyError(str(error)) from error

    def resize(self, name: str, size: int) -> None:
        self._server.resize(name, size)

    def hold(self, name: str) -> None:
        self._server.drain(name, True)

    def status(self) -> dict[str, ExportStatus]:
        return {name: _status(**each) for name, each in self._server.exports().items()}

    def counters(self) -> dict[str, int]:
        return self._server.counters()

    def stop(self, grace: float) -> bool:
        return self._server.stop(grace)


def _status(clients: list[dict[str, Any]], **rest: Any) -> ExportStatus:
    return ExportStatus(clients=[ExportClient(**client) for client in clients], **rest)


def memory_of(arena: str) -> int | None:
    """The memory of an arena; None if it cannot be read."""
    try:
        engine = Engine.attach(arena, errors=errors)
    except errors.TmemdError:
        return None
    memory: int = engine.info()["memory"]
    engine.close()
    return memory


class EngineStore(StoreExecutor):
    """A store in an arena."""

    def __init__(self, config: Config) -> None:
        self._engine = Engine.open(
            errors=errors,
            memory=config.memory,
            accept_threshold=config.accept_threshold,
            arena=config.arena,
            shards=config.shards,
            mlock=config.mlock,
            huge_pages=config.huge_pages,
        )
        try:
            self._engine.commit_reserves(config.commit_reserves)
        except errors.ExhaustedError as error:
            # Stored pages must be served, even if the machine lacks memory.
            log.warning("commit_reserves: %s", error)
        self._nbd: dict[str, Any] = {
            "connections": config.nbd_connections,
            "client_connections": config.nbd_client_connections,
            "handshakes": config.nbd_handshakes,
            "handshake_timeout": config.nbd_handshake_timeout,
            "buffers": config.nbd_buffers,
            "insecure": config.insecure,
        }
        super().__init__(config.threads, config.max_waiting, config.max_client_waiting)

    def open_pool(self, name: str, settings: PoolSettings) -> EngineStorePool:
        return EngineStorePool(self._engine.pool(name, settings))

    def find_pool(self, name: str) -> EngineStorePool:
        pool = self._engine.find_pool(name)
        if pool is None:
            raise errors.UnknownPoolError(name)
        return EngineStorePool(pool)

    def create_pool(self, name: str, settings: PoolSettings) -> EngineStorePool:
        if self._engine.find_pool(name) is not None:
            raise errors.PoolExistsError(name)
        return self.open_pool(name, settings)

    def pools(self) -> list[EngineStorePool]:
        """All pools, except those destroyed meanwhile."""
        found = []
        for pool in self._engine.pools():
            try:
                found.append(EngineStorePool(pool))
            except errors.UnknownPoolError:
                continue
        return found

    def block_server(
        self, listen: Sequence[str], poll: int, tls: CertificateSource | None, refuse: GatewayRefusal | None
    ) -> BlockServer:
        pem = None if tls is None else tls.first()
        warning = RateLimitedWarning("an NBD client was turned away")

        def turned_away(address: str, why: str) -> None:
            warning.warn(f"{address}: {why}")

        try:
            server = NbdServer(
                list(listen), poll_microseconds=poll, tls=pem, renewal=tls, turned_away=turned_away, **self._nbd
            )
            if refuse is not None:
                server.serve_caches(self._engine, refuse)
            return EngineBlockServer(server)
        except OSError as error:
            raise errors.ConfigError(f"cannot serve NBD on {', '.join(listen)}: {error}") from error

    def never_wait_for_locks(self) -> None:
        set_lock_wait(0)

    def wait_for_lock(self, lock: int) -> None:
        self._engine.wait_for(lock)

    def health(self) -> StoreHealth:
        held = {
            f"the lock of shard {lock - 1}" if lock else "the lock of the pool table": (
                "another process" if process is None else f"process {process}"
            )
            for lock, process in self._engine.stuck()
        }
        try:
            self._engine.whole()
        except errors.ArenaError as error:
            return StoreHealth(held, str(error))
        return StoreHealth(held, "")

    def info(self) -> dict[str, Any]:
        return self._engine.info()

    def stats(self) -> dict[str, int]:
        return self._engine.stats()

    def compact(self) -> dict[str, int]:
        return self._engine.compact()

    def relinquish(self, size: int) -> int:
        return self._engine.relinquish(size)

    def resize(self, memory: int) -> None:
        self._engine.resize(memory)

    def check(self) -> list[str]:
        return self._engine.check()

    def close(self) -> None:
        """Wait for calls in threads, then close the arena."""
        super().close()
        self._engine.close()
