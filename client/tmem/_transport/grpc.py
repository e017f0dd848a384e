"""Transports over a gRPC channel, synchronous. Imported on the first connection to a server."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

from tmem._protocol import admin_ops, export_ops
from tmem._protocol.connection import ClientStats, Link, Options
from tmem._protocol.page_ops import RemotePool, RemoteStore
from tmem._transport.runner import Driver
from tmem._transport.tls import Security

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from typing_extensions import Buffer

    from tmem._model.oid import Oid
    from tmem._model.settings import PoolSettings
    from tmem._model.sizes import Size
    from tmem._protocol.operations import Steps

_T = TypeVar("_T")


class GrpcPool:
    """A `PoolTransport`."""

    def __init__(self, pool: RemotePool, driver: Driver) -> None:
        self._pool = pool
        self._run = driver.run

    @property
    def name(self) -> str:
        return self._pool.name

    @property
    def page_size(self) -> int:
        return self._pool.page_size

    def put(self, oid: Oid, pages: dict[int, Buffer]) -> bytes:
        return self._run(self._pool.put(oid, pages))

    def put_lz4(self, oid: Oid, blocks: dict[int, Buffer]) -> bytes:
        return self._run(self._pool.put_lz4(oid, blocks))

    def put_range(self, oid: Oid, first: int, buffer: Buffer) -> bytes:
        return self._run(self._pool.put_range(oid, first, buffer))

    def get(self, oid: Oid, indices: Iterable[int], exclusive: bool = False) -> dict[int, bytes]:
        return self._run(self._pool.get(oid, indices, exclusive))

    def get_range(
        self, oid: Oid, first: int, count: int, into: Buffer | None = None, exclusive: bool = False
    ) -> tuple[Any, bytes]:
        return self._run(self._pool.get_range(oid, first, count, into, exclusive))

    def has(self, oid: Oid, first: int, count: int) -> bytes:
        return self._run(self._pool.has(oid, first, count))

    def flush(self, oid: Oid, indices: Iterable[int]) -> int:
        return self._run(self._pool.flush(oid, indices))

    def flush_object(self, oid: Oid) -> int:
        return self._run(self._pool.flush_object(oid))

    def destroy(self) -> int:
        return self._run(self._pool.destroy())

    def freeze(self) -> None:
        self._run(self._pool.freeze())

    def thaw(self) -> None:
        self._run(self._pool.thaw())

    def frozen(self) -> bool:
        return self._run(self._pool.frozen())

    def set_quota(self, size: int) -> None:
        self._run(self._pool.set_quota(size))

    def set_weight(self, weight: int) -> None:
        self._run(self._pool.set_weight(weight))

    def settings(self) -> dict[str, Any]:
        return self._run(self._pool.settings())

    def stats(self) -> dict[str, Any]:
        return self._run(self._pool.stats())


class GrpcStore:
    """A `StoreTransport`, connected when it is first used."""

    def __init__(self, target: str, options: Options, security: Security | None = None) -> None:
        self._link = Link(target, options)
        self._store = RemoteStore(self._link)
        self._driver = Driver(self._link, security or Security())
        self._run = self._driver.run

    @property
    def address(self) -> str:
        return self._link.address

    @property
    def closed(self) -> bool:
        return self._link.closed

    def client_stats(self) -> ClientStats:
        return self._link.counters.stats()

    def pool(self, name: str, settings: PoolSettings) -> GrpcPool:
        return GrpcPool(self._run(self._store.pool(name, settings)), self._driver)

    def find_pool(self, name: str) -> GrpcPool | None:
        found = self._run(self._store.find_pool(name))
        return None if found is None else GrpcPool(found, self._driver)

    def pools(self) -> Sequence[GrpcPool]:
        return [GrpcPool(pool, self._driver) for pool in self._run(self._store.pools())]

    def info(self) -> dict[str, Any]:
        return self._run(self._store.info())

    def stats(self) -> dict[str, int]:
        return self._run(self._store.stats())

    def compact(self) -> dict[str, int]:
        return self._run(self._store.compact())

    def relinquish(self, size: int) -> int:
        return self._run(self._store.relinquish(size))

    def resize(self, memory: int) -> None:
        self._run(self._store.resize(memory))

    def check(self) -> list[str]:
        return self._run(self._store.check())

    def clients(self) -> list[admin_ops.Client]:
        return self.ask(admin_ops.clients)

    def workers(self) -> list[admin_ops.Worker]:
        return self.ask(admin_ops.workers)

    def exports(self) -> list[export_ops.Export]:
        return self.ask(export_ops.exports)

    def create_export(
        self,
        name: str,
        size: Size,
        reserve: Size,
        codec: str,
        multi_conn: bool,
        allow: Sequence[str] | None,
        block_size: Size,
    ) -> export_ops.Export:
        settings = reserve, codec, multi_conn, allow, block_size
        return self.ask(lambda link: export_ops.create(link, name, size, *settings))

    def remove_export(self, name: str, force: bool) -> int:
        return self.ask(lambda link: export_ops.remove(link, name, force))

    def resize_export(self, name: str, size: Size) -> export_ops.Export:
        return self.ask(lambda link: export_ops.resize(link, name, size))

    def drain_export(self, name: str, undo: bool) -> export_ops.Export:
        return self.ask(lambda link: export_ops.drain(link, name, undo))

    def allow_export(self, name: str, clients: Sequence[str], undo: bool, anyone: bool) -> export_ops.Export:
        return self.ask(lambda link: export_ops.allow(link, name, clients, undo, anyone))

    def events(self, pool: str | None) -> Iterator[admin_ops.Event]:
        return self._driver.watch(pool)

    def ask(self, operation: Callable[[Link], Steps[_T]]) -> _T:
        """Carry out an operation of `_server`."""
        return self._run(operation(self._link))

    def close(self) -> None:
        self._driver.close()
