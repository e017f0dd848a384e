"""Transports over a gRPC channel, synchronous. Imported on the first connection to a server."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any, TypeVar

import grpc

from tmem import _server
from tmem._channel import OPTIONS, WINDOW, calls, failure, watch
from tmem._errors import ClosedError
from tmem._link import ClientStats, Link, Options
from tmem._remote import RemotePool, RemoteStore
from tmem._steps import Replies, Send, Steps, Wait

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from google.protobuf.message import Message
    from typing_extensions import Buffer

    from tmem._oid import Oid
    from tmem._settings import PoolSettings

_T = TypeVar("_T")


class _Driver:
    """Carries out steps on a channel. Safe to use from many threads."""

    def __init__(self, link: Link, credentials: grpc.ChannelCredentials | None) -> None:
        self._link = link
        self._timeout = link.options.timeout
        if credentials is None:
            self._channel = grpc.insecure_channel(link.address, OPTIONS)
        else:
            self._channel = grpc.secure_channel(link.address, credentials, OPTIONS)
        self._calls = calls(self._channel)
        self._closed = threading.Event()

    def run(self, steps: Steps[_T]) -> _T:
        try:
            step = next(steps)
            while True:
                step = steps.send(self._carry_out(step))
        except StopIteration as end:
            result: _T = end.value
            return result
        finally:
            steps.close()

    def watch(self, pool: str | None) -> Iterator[_server.Event]:
        """Events as they come. A stream has no deadline; it ends with the iterator, the connection or the store."""
        request = _server.watch_request(pool)
        self._link.admit()
        stream = watch(self._channel)(request)
        try:
            for message in stream:
                yield _server.event(message)
        except grpc.RpcError as error:
            raise self._failed(error).exception() from None
        finally:
            stream.cancel()

    def close(self) -> None:
        self._link.closed = True
        self._closed.set()
        self._channel.close()

    def _carry_out(self, step: Send | Wait) -> Replies:
        if isinstance(step, Wait):
            self._closed.wait(step.seconds)
            return []
        try:
            if step.single:
                return [self._one(step)]
            return self._many(step)
        except ValueError:
            # gRPC's own word for a channel that was closed meanwhile.
            if self._link.closed:
                raise ClosedError("the store is closed") from None
            raise

    def _one(self, step: Send) -> Any:
        (request,) = step.requests
        try:
            return self._calls[step.method](request, timeout=self._timeout)
        except grpc.RpcError as error:
            return self._failed(error)

    def _many(self, step: Send) -> Replies:
        """Several calls on their way at once, their requests made meanwhile."""
        replies: Replies = []
        flying: deque[Any] = deque()
        try:
            for request in step.requests:
                if len(flying) == WINDOW:
                    replies.append(self._landed(flying.popleft()))
                flying.append(self._take_off(step.method, request))
            while flying:
                replies.append(self._landed(flying.popleft()))
        finally:
            for flight in flying:
                flight.cancel()
        return replies

    def _take_off(self, method: str, request: Message) -> Any:
        return self._calls[method].future(request, timeout=self._timeout)

    def _landed(self, flight: Any) -> Any:
        try:
            return flight.result()
        except grpc.FutureCancelledError:
            raise ClosedError("the store is closed") from None
        except grpc.RpcError as error:
            return self._failed(error)

    def _failed(self, error: grpc.RpcError) -> Any:
        if self._link.closed:
            raise ClosedError("the store is closed") from None
        return failure(error)


class GrpcPool:
    """A `PoolTransport`."""

    def __init__(self, pool: RemotePool, driver: _Driver) -> None:
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

    def __init__(self, target: str, options: Options, credentials: grpc.ChannelCredentials | None = None) -> None:
        self._link = Link(target, options)
        self._store = RemoteStore(self._link)
        self._driver = _Driver(self._link, credentials)
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

    def clients(self) -> list[_server.Client]:
        return self.ask(_server.clients)

    def workers(self) -> list[_server.Worker]:
        return self.ask(_server.workers)

    def events(self, pool: str | None) -> Iterator[_server.Event]:
        return self._driver.watch(pool)

    def ask(self, operation: Callable[[Link], Steps[_T]]) -> _T:
        """Carry out an operation of `_server`."""
        return self._run(operation(self._link))

    def close(self) -> None:
        self._driver.close()
