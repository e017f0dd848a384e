"""A server reached by gRPC, synchronous: the operations of `_protocol`, carried out by one driver.

Imported on the first connection to a server.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Concatenate, Generic, ParamSpec, TypeVar

from tmem._protocol import admin_ops, export_ops
from tmem._protocol.connection import ClientStats, Options, ServerState
from tmem._protocol.page_ops import RemotePool, RemoteStore
from tmem._transport.runner import Driver
from tmem._transport.tls import Security

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tmem._model.settings import PoolSettings
    from tmem._protocol.operations import Steps

_P = ParamSpec("_P")
_T = TypeVar("_T")
_R = TypeVar("_R")


class _Driven(Generic[_R]):
    """Something remote, and the driver that carries out operations on it."""

    def __init__(self, remote: _R, driver: Driver) -> None:
        self._remote = remote
        self._driver = driver


def _driven(operation: Callable[Concatenate[_R, _P], Steps[_T]]) -> Callable[Concatenate[_Driven[_R], _P], _T]:
    """The operation as a method that returns when it has been carried out."""

    def method(self: _Driven[_R], /, *args: _P.args, **kwargs: _P.kwargs) -> _T:
        return self._driver.run(operation(self._remote, *args, **kwargs))

    return method


class GrpcPool(_Driven[RemotePool]):
    """A `PoolTransport`."""

    @property
    def name(self) -> str:
        return self._remote.name

    @property
    def page_size(self) -> int:
        return self._remote.page_size

    put = _driven(RemotePool.put)
    put_lz4 = _driven(RemotePool.put_lz4)
    put_range = _driven(RemotePool.put_range)
    get = _driven(RemotePool.get)
    get_range = _driven(RemotePool.get_range)
    has = _driven(RemotePool.has)
    flush = _driven(RemotePool.flush)
    flush_object = _driven(RemotePool.flush_object)
    destroy = _driven(RemotePool.destroy)
    freeze = _driven(RemotePool.freeze)
    thaw = _driven(RemotePool.thaw)
    frozen = _driven(RemotePool.frozen)
    set_quota = _driven(RemotePool.set_quota)
    set_weight = _driven(RemotePool.set_weight)
    settings = _driven(RemotePool.settings)
    stats = _driven(RemotePool.stats)


class GrpcStore(_Driven[RemoteStore]):
    """A `StoreTransport`, connected when it is first used."""

    def __init__(self, target: str, options: Options, security: Security | None = None) -> None:
        server = ServerState(target, options)
        super().__init__(RemoteStore(server), Driver(server, security or Security()))
        self.server = GrpcServer(server, self._driver)

    @property
    def closed(self) -> bool:
        return self._remote.server.closed

    def pool(self, name: str, settings: PoolSettings) -> GrpcPool:
        return GrpcPool(self._driver.run(self._remote.pool(name, settings)), self._driver)

    def find_pool(self, name: str) -> GrpcPool | None:
        found = self._driver.run(self._remote.find_pool(name))
        return None if found is None else GrpcPool(found, self._driver)

    def pools(self) -> Sequence[GrpcPool]:
        return [GrpcPool(pool, self._driver) for pool in self._driver.run(self._remote.pools())]

    def close(self) -> None:
        self._driver.close()

    info = _driven(RemoteStore.info)
    stats = _driven(RemoteStore.stats)
    compact = _driven(RemoteStore.compact)
    relinquish = _driven(RemoteStore.relinquish)
    resize = _driven(RemoteStore.resize)
    check = _driven(RemoteStore.check)


class GrpcServer(_Driven[ServerState]):
    """The `ServerOps`."""

    @property
    def address(self) -> str:
        return self._remote.address

    def client_stats(self) -> ClientStats:
        return self._remote.counters.stats()

    def events(self, pool: str | None) -> Iterator[admin_ops.Event]:
        return self._driver.watch(pool)

    def ask(self, operation: Callable[[ServerState], Steps[_T]]) -> _T:
        return self._driver.run(operation(self._remote))

    clients = _driven(admin_ops.clients)
    workers = _driven(admin_ops.workers)
    exports = _driven(export_ops.exports)
    create_export = _driven(export_ops.create)
    remove_export = _driven(export_ops.remove)
    resize_export = _driven(export_ops.resize)
    drain_export = _driven(export_ops.drain)
    allow_export = _driven(export_ops.allow)
