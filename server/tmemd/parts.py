"""What the services of one daemon share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tmemd.access import Access
    from tmemd.config import Config
    from tmemd.counts import Counts
    from tmemd.identity import Identities
    from tmemd.inject import Injections
    from tmemd.locks import Patience
    from tmemd.sessions import Sessions
    from tmemd.surface import Store


@dataclass(frozen=True, slots=True)
class Parts:
    """Each is one for the whole daemon, and lives as long as it does."""

    config: Config
    store: Store
    counts: Counts
    identities: Identities
    injections: Injections
    access: Access
    sessions: Sessions
    patience: Patience
