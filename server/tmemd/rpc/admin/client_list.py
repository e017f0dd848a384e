"""Lists clients: those that are configured, own pools, or have sessions."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from tmem_proto.v1 import admin_pb2 as pb
from tmemd.base.errors import UnknownPoolError
from tmemd.config.clients import UNNAMED

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tmemd.config.settings import Config
    from tmemd.store.api import StorePool


def clients(config: Config, pools: Iterable[StorePool], sessions: Counter[str]) -> list[pb.Client]:
    """Every client and what it has, by name. Visits every pool."""
    owned = _owned(pools)
    names = config.clients.keys() | config.administrators | owned.keys() | sessions.keys()
    found = []
    for name in sorted(names):
        settings, has = config.clients.get(name, UNNAMED), owned.get(name, Counter())
        found.append(
            pb.Client(
                name=name,
                quota=settings.quota,
                weight=settings.weight,
                administrator=name in config.administrators,
                sessions=sessions[name],
                **has,
            )
        )
    return found


def _owned(pools: Iterable[StorePool]) -> dict[str, Counter[str]]:
    owned: dict[str, Counter[str]] = {}
    for pool in pools:
        with suppress(UnknownPoolError):  # destroyed since
            owner, stats = pool.settings().owner, pool.stats()
            if owner:
                has = owned.setdefault(owner, Counter())
                has.update(pools=1, pages=stats["pages"], footprint_bytes=stats["footprint_bytes"])
    return owned
