"""What a command works on, a server or an arena, with the same calls for both; a server needs no sessions for them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import tmem
from tmem._protocol import admin_ops, messages

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tmem._model.settings import PoolSettings
    from tmem._protocol.connection import ServerState
    from tmem._protocol.operations import Steps
    from tmem_proto.v1 import admin_pb2 as admin

T = TypeVar("T")

_SCAN_PAGES = 65536


@dataclass(frozen=True, slots=True)
class PoolView:
    """A pool at one moment."""

    name: str
    settings: dict[str, Any]
    frozen: bool
    stats: dict[str, Any]

    @property
    def page_size(self) -> int:
        return int(self.settings["page_size"])

    @property
    def whole(self) -> int:
        """Bytes of its pages, uncompressed."""
        return int(self.stats["pages"]) * self.page_size

    def as_dict(self) -> dict[str, Any]:
        return {"name": self.name, "frozen": self.frozen, "settings": self.settings, "stats": self.stats}


@dataclass(frozen=True, slots=True)
class Status:
    """A store at one moment. `store` is empty where the client may not know, `daemon` where there is no server too."""

    store: dict[str, int]
    arena: str | None
    accept_threshold: int
    version: str
    daemon: dict[str, int] = field(default_factory=dict)
    client: str = ""
    administrator: bool = True


class Target:
    """A store, behind a server or not."""

    def __init__(self, store: tmem.Store, address: str) -> None:
        self.store = store
        self.address = address

    @property
    def served(self) -> bool:
        """Whether there is a server."""
        return self.store._server is not None

    def ask(self, operation: Callable[[ServerState], Steps[T]]) -> T:
        """Carry out an operation that only a server has."""
        server = self.store._server
        if server is None:
            raise tmem.TmemError(f"{self.address} is a local arena; this needs a server (--server HOST:PORT)")
        return server.ask(operation)

    def probe(self) -> None:
        """Raise `UnavailableError` where nothing answers. Any answer will do, one that denies as well."""
        if not self.served:
            return
        try:
            self.ask(admin_ops.workers)
        except tmem.UnavailableError:
            raise
        except tmem.TmemError:
            return

    def pools(self) -> list[PoolView]:
        if self.served:
            return sorted(map(_view, self.ask(admin_ops.pools)), key=lambda pool: pool.name)
        return sorted(map(_opened, self.store.pools()), key=lambda pool: pool.name)

    def pool(self, name: str) -> PoolView:
        if self.served:
            return _view(self.ask(lambda server: admin_ops.pool(server, name)))
        return _opened(self.store.find_pool(name))

    def create(self, name: str, settings: PoolSettings) -> PoolView:
        """A new pool; `MismatchError` where there is one of the name."""
        if self.served:
            message = messages.settings_message(settings)
            return _view(self.ask(lambda server: admin_ops.create_pool(server, name, message)))
        if any(pool.name == name for pool in self.store.pools()):
            raise tmem.MismatchError(f"pool {name!r} already exists")
        return _opened(tmem.Pool(self.store._transport.pool(name, settings)))

    def scan(self, name: str) -> Iterator[admin_ops.Scanned]:
        """All pages of a pool with their stamps, part by part, while it is in use."""
        cursor = b""
        while True:
            parts, cursor = self._scan(name, cursor)
            yield from parts
            if not cursor:
                return

    def status(self) -> Status:
        """How the store is. The server tells an administrator all of it, others its version and who they are."""
        if self.served:
            found = self.ask(admin_ops.status)
            return Status(
                store=dict(found.store),
                arena=found.arena or None,
                accept_threshold=found.accept_threshold,
                version=found.version,
                daemon=dict(found.daemon),
                client=found.client,
                administrator=found.administrator,
            )
        info = self.store._transport.info()
        stats = self.store._transport.stats()
        return Status(stats, info["arena"], info["accept_threshold"], tmem.__version__)

    def _scan(self, name: str, cursor: bytes) -> tuple[list[admin_ops.Scanned], bytes]:
        if self.served:
            return self.ask(lambda server: admin_ops.scan(server, name, cursor))
        engine_pool: Any = self.store.find_pool(name)._transport
        parts, cursor = engine_pool.scan(cursor, _SCAN_PAGES)
        return [admin_ops.Scanned(*part) for part in parts], cursor


def _view(found: admin.Pool) -> PoolView:
    return PoolView(found.name, admin_ops.settings_of(found), found.frozen, admin_ops.stats_of(found))


def _opened(pool: tmem.Pool) -> PoolView:
    return PoolView(pool.name, pool._transport.settings(), pool.frozen, pool._transport.stats())
