"""The parts of a daemon that its services share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmemd.config.faults import Injections
    from tmemd.config.settings import Config
    from tmemd.rpc.sessions import Sessions
    from tmemd.security.identity import Identities
    from tmemd.security.pool_rights import PoolRights
    from tmemd.store.api import Store
    from tmemd.store.lock_waits import LockRetry
    from tmemd.telemetry.counters import Counts


@dataclass(frozen=True, slots=True)
class ServiceContext:
    """One of each per daemon, for its whole life."""

    config: Config
    store: Store
    counts: Counts
    identities: Identities
    injections: Injections
    rights: PoolRights
    sessions: Sessions
    lock_retry: LockRetry
