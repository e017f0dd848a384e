"""Decides what clients may do with pools, over gRPC and, through a gateway, over NBD.

- A pool belongs to the client that created it, or without an owner to the administrators, who may do everything.
- Others may only open it, if it is shared and their `shared` patterns match its name.
- The quotas of a client's pools never add up to more than the client's quota: creating pools and changing quotas is
  serialized among all the daemon's processes.

`Rules` states who may open what, as data; the NBD server asks for the outcome. A violation is a `DeniedError` that
reveals no more than the client itself has said.
"""

from __future__ import annotations

import fcntl
import os
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tmemd.base.arena_file import open_arena
from tmemd.base.errors import (
    DeniedError,
    LimitError,
    OtherPoolError,
    PoolExistsError,
    UnavailableError,
    UnknownPoolError,
)
from tmemd.config.clients import UNNAMED
from tmemd.store.names import is_reserved, is_the_daemons

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tmemd.config.clients import Clients
    from tmemd.config.settings import Config
    from tmemd.security.identity import Client
    from tmemd.store.api import PoolSettings, Store, StorePool


@dataclass(frozen=True, slots=True)
class Rules:
    """Who may open which pool."""

    administrators: frozenset[str]
    clients: Clients

    def own(self, client: str, owner: str) -> bool:
        return client in self.administrators or client == owner

    def may_open(self, client: str, pool: str, owner: str, shared: bool) -> bool:
        return self.own(client, owner) or (shared and self.clients.get(client, UNNAMED).may_share(pool))


class PoolRights:
    """Finds, creates and limits pools on behalf of clients.

    `visible`, `owned` and `refuse_gateway` may be called from any thread.
    """

    def __init__(self, store: Store, config: Config) -> None:
        self._store = store
        self.reconfigure(config)
        arena = store.info()["arena"]
        self._file = None if arena is None else open_arena(arena, os.O_RDONLY)

    def reconfigure(self, config: Config) -> None:
        self._rules = Rules(config.administrators, config.clients)

    def refuse_gateway(self, client: str, pool: str, owner: str, shared: bool, made: bool) -> str:
        """Why a gateway may not have a pool, or have it `made`; empty if it may."""
        if is_reserved(pool):
            return f"pool {pool!r} belongs to the daemon"
        if made and client not in self._rules.administrators:
            return (
                f"pool {pool!r} does not exist, and client {client!r} may not have it created: run `tmem pool create`"
            )
        if self._rules.may_open(client, pool, owner, shared):
            return ""
        return f"client {client!r} may not use pool {pool!r}"

    def open(self, client: Client, name: str, settings: PoolSettings | None) -> StorePool:
        """Open a pool; with settings, create it if it does not exist."""
        if settings is None:
            return self.find(client, name)
        _check_free(name)
        with self._exclusively():
            try:
                held = self.find(client, name).settings()
            except UnknownPoolError:
                return self._make(client, name, settings)
            return self._store.open_pool(name, self._as_the_pool_has_them(settings, held))

    def create(self, client: Client, name: str, settings: PoolSettings) -> StorePool:
        """Create a pool."""
        _check_free(name)
        with self._exclusively():
            try:
                self._store.find_pool(name)
            except UnknownPoolError:
                return self._make(client, name, settings)
            raise PoolExistsError(name)

    def find(self, client: Client, name: str) -> StorePool:
        """A pool that the client may open."""
        pool = self._store.find_pool(name)
        if not self._may_open(client, pool, pool.settings()):
            raise DeniedError(f"client {client.name!r} may not open pool {name!r}")
        return pool

    def own(
        self, client: Client, name: str, number: int = 0, *, destroy: bool = False, look: bool = False
    ) -> StorePool:
        """A pool that the client may manage, destroy or look at; with a number, the one with that id.

        Pools of the daemon can only be looked at.
        """
        if not look:
            check_not_the_daemons(name)
        pool = self._store.find_pool(name)
        if not self._rules.own(client.name, pool.settings().owner):
            raise DeniedError(f"pool {name!r} does not belong to client {client.name!r}")
        if number not in (0, pool.id):
            raise OtherPoolError(name, number)
        if destroy:
            _check_free(name)
        return pool

    def visible(self, client: Client) -> list[StorePool]:
        """All pools that the client may open."""
        return [pool for pool, settings in self._all() if self._may_open(client, pool, settings)]

    def owned(self, client: Client, owner: str) -> list[StorePool]:
        """All pools of an owner: the client itself, or for an administrator any."""
        if not client.administrator and owner != client.name:
            raise DeniedError(f"client {client.name!r} may not manage pools of {owner!r}")
        return [pool for pool, settings in self._all() if settings.owner == owner]

    def set_quota(self, client: Client, name: str, quota: int, number: int = 0) -> None:
        """Limit a pool; 0 is all that is left of its owner's quota."""
        with self._exclusively():
            pool = self.own(client, name, number)
            pool.set_quota(self._quota_of_one(pool.settings().owner, quota, but=name))

    def set_weight(self, client: Client, name: str, weight: int, number: int = 0) -> None:
        pool = self.own(client, name, number)
        self._check_weight(client, weight)
        pool.set_weight(weight)

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)

    def _make(self, client: Client, name: str, settings: PoolSettings) -> StorePool:
        owner = settings.owner or client.name
        if owner != client.name and not client.administrator:
            raise DeniedError(f"client {client.name!r} may not create pools for {owner!r}")
        weight = settings.weight or self._rules.clients.get(owner, UNNAMED).weight
        self._check_weight(client, weight)
        quota = self._quota_of_one(owner, settings.quota)
        return self._store.create_pool(name, replace(settings, owner=owner, weight=weight, quota=quota))

    def _as_the_pool_has_them(self, settings: PoolSettings, held: PoolSettings) -> PoolSettings:
        """Settings to open an existing pool with: what is left to the daemon is as the pool has it."""
        limited = held.owner in self._rules.clients
        return replace(
            settings,
            owner=settings.owner or held.owner,
            weight=settings.weight or (held.weight if limited else UNNAMED.weight),
            quota=settings.quota or (held.quota if limited else 0),
        )

    def _quota_of_one(self, owner: str, quota: int, but: str | None = None) -> int:
        """The quota of one pool: as asked for, if the owner's quota has that much left."""
        whole = self._rules.clients.get(owner, UNNAMED).quota
        if not whole:
            return quota
        quotas = {pool.name: its.quota for pool, its in self._all() if its.owner == owner and pool.name != but}
        for name, other in quotas.items():
            if not other:
                raise LimitError(f"client {owner!r} has a quota, and pool {name!r} of it has none: give it one first")
        left = max(whole - sum(quotas.values()), 0)
        if not left or quota > left:
            raise LimitError(
                f"client {owner!r} has a quota of {whole} bytes, of which its other pools have {sum(quotas.values())}: "
                f"{left} are left, {quota or 'some'} were asked for"
            )
        return quota or left

    def _check_weight(self, client: Client, weight: int) -> None:
        most = self._rules.clients.get(client.name, UNNAMED).weight
        if weight > most and not client.administrator:
            raise DeniedError(f"client {client.name!r} may give its pools a weight of at most {most}, not {weight}")

    def _may_open(self, client: Client, pool: StorePool, settings: PoolSettings) -> bool:
        return self._rules.may_open(client.name, pool.name, settings.owner, settings.shared)

    def _all(self) -> Iterator[tuple[StorePool, PoolSettings]]:
        for pool in self._store.pools():
            with suppress(UnknownPoolError):  # destroyed since
                yield pool, pool.settings()

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        """Exclude others from creating pools and changing quotas, also in other processes of the arena."""
        if self._file is None:
            yield
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            held = UnavailableError("another process of the arena makes a pool or changes a quota, and does not end")
            held.waited = False
            raise held from None
        try:
            yield
        finally:
            fcntl.flock(self._file, fcntl.LOCK_UN)


def _check_free(name: str) -> None:
    check_not_the_daemons(name)
    if is_reserved(name):
        raise DeniedError(f"pool {name!r} belongs to an export: such pools are created with exports")


def check_not_the_daemons(name: str) -> None:
    """Raise DeniedError for a pool that only the daemon may change."""
    if is_the_daemons(name):
        raise DeniedError(f"pool {name!r} belongs to the daemon: nobody else may change it")
