"""The interface of a store, which the engine's store and the null store implement.

A pool's methods may be called from any thread, and may block; the store's `run` and `call` make long calls in a thread.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar

from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Sequence

T = TypeVar("T")

STORED = (pb.PUT_OUTCOME_STORED, pb.PUT_OUTCOME_REPLACED)
"""Outcomes of a put that stored the page."""
_REFUSED = "PUT_OUTCOME_REFUSED_"
REFUSALS = tuple(name.removeprefix(_REFUSED).lower() for name, _ in pb.PutOutcome.items() if name.startswith(_REFUSED))
"""Why a page may be refused."""
_DEFAULT_ALLOCATOR = {"persistent": "zsmalloc", "ephemeral": "zbud"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """The settings of a pool, as the engine reads them. Messages have the same field names."""

    kind: str
    codec: str = "lz4"
    allocator: str = ""
    page_size: int = 4096
    quota: int = 0
    weight: int = 1
    shared: bool = False
    inclusive: bool = False
    max_zpage: int = 0
    owner: str = ""

    def __post_init__(self) -> None:
        if not self.allocator:
            object.__setattr__(self, "allocator", _DEFAULT_ALLOCATOR.get(self.kind, "zsmalloc"))

    @property
    def keeps(self) -> bool:
        """Whether a get leaves the page in the pool."""
        return self.kind == "persistent" or self.shared or self.inclusive

    @property
    def family(self) -> str:
        """The codec without its number."""
        return self.codec.partition(":")[0]


class Batch(NamedTuple):
    """Pages of one object to store. `lengths` is None for raw pages, else the lengths of LZ4 blocks."""

    oid: bytes
    indices: Sequence[int]
    lengths: list[int] | None
    pages: bytes


class Fetched(NamedTuple):
    """The result of a fetch: one byte per page (0 miss, 1 hit, 2 corrupt), and the rest for each hit."""

    found: bytes
    lengths: list[int]
    checksums: list[int]
    stamps: list[int]
    pages: bytes


Scanned: TypeAlias = list[tuple[bytes, list[int], list[int]]]
"""Pages of a pool: oid, indices and stamps. An object may appear in several parts."""


class StorePool(Protocol):
    """A pool."""

    @property
    def id(self) -> int:
        """Never 0, and never reused in the same arena."""

    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> str:
        """The client that it belongs to, which never changes."""

    @property
    def page_size(self) -> int: ...
    @property
    def keeps(self) -> bool:
        """Whether a get leaves the page in the pool."""

    @property
    def family(self) -> str:
        """Its codec without its number: lz4, lz4hc, zstd or raw."""

    def put(self, batch: Batch) -> bytes:
        """Store pages; returns one `PutOutcome` per page. An invalid block is a `ValueError`, and nothing is stored."""

    def fetch(self, oid: bytes, indices: Sequence[int], lz4: bool) -> Fetched: ...
    def flush_if(self, oid: bytes, stamps: dict[int, int]) -> int:
        """Remove fetched pages unless they were replaced; returns how many."""

    def scan(self, cursor: bytes, limit: int) -> tuple[Scanned, bytes]:
        """About `limit` pages after the cursor (empty to begin), and the next cursor (empty at the end)."""

    def has(self, oid: bytes, first: int, count: int) -> bytes: ...
    def flush(self, oid: bytes, indices: Sequence[int]) -> int: ...
    def flush_object(self, oid: bytes) -> int: ...
    def destroy(self) -> int: ...
    def freeze(self) -> None: ...
    def thaw(self) -> None: ...
    def frozen(self) -> bool: ...
    def set_quota(self, size: int) -> None: ...
    def set_weight(self, weight: int) -> None: ...
    def reserve(self) -> int:
        """Bytes of footprint that are guaranteed to it."""

    def set_reserve(self, size: int) -> None: ...
    def settings(self) -> PoolSettings: ...
    def stats(self) -> dict[str, Any]: ...


Pem: TypeAlias = tuple[bytes, bytes, bytes | None]
"""A certificate, its key, and the authorities for clients."""


class CertificateSource(Protocol):
    """Certificates of a port, from files that may change. Called by any thread."""

    def first(self) -> Pem:
        """The certificates to start with."""

    def renewed(self) -> Pem | None:
        """Changed and usable certificates, if there are any."""

    def refused(self, why: str) -> None:
        """The new certificates could not be used after all."""


@dataclass(frozen=True, slots=True)
class BlockExport:
    """An object of a pool as a block device. `allow` None lets anybody in; a draining one lets no new client in."""

    pool: StorePool
    oid: bytes
    size: int
    draining: bool
    multi_conn: bool
    allow: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class ExportClient:
    """A connection that has an export open."""

    address: str
    tls: bool
    identity: str


@dataclass(frozen=True, slots=True)
class ExportStatus:
    """A served export: its clients, and what passed through it."""

    clients: Sequence[ExportClient]
    counters: dict[str, int]
    size: int = 0
    draining: bool = False


GatewayRefusal: TypeAlias = "Callable[[str, str, str, bool, bool], str]"
"""Why a client's gateway may not have a pool; empty if it may.

Called by any thread, with the client's name, the pool's, its owner, whether it is shared, and would have to be made."""


class BlockSnapshot(Protocol):
    """The pages of an export at one instant. Raises `SnapshotError` once it has ended."""

    @property
    def paused(self) -> float:
        """Seconds for which requests were paused at the beginning."""

    def held(self, first: int) -> tuple[list[int], int | None]:
        """Some of its pages from `first` on, and where to continue; None at the end."""

    def fetch(self, indices: Sequence[int]) -> Fetched:
        """Read pages, as LZ4 blocks."""

    def release(self, page: int) -> None:
        """Pages below this one are no longer needed."""

    def end(self) -> str:
        """End it; returns why it had ended already, if so."""


class BlockServer(Protocol):
    """Serves objects of pools as block devices, in its own threads. Its methods may block; call them in a thread."""

    @property
    def addresses(self) -> Sequence[str]: ...
    def serve(self, name: str, export: BlockExport) -> None:
        """Start to serve an export, or change how it is served; disconnects clients that it no longer allows.

        While it is served its pool and `multi_conn` stay the same.
        """

    def remove(self, name: str, force: bool) -> None:
        """Stop serving an export. Raises `BusyError` while it is open, unless forced."""

    def snapshot(self, name: str, shadow: StorePool) -> BlockSnapshot:
        """Take a snapshot. `shadow`, an empty pool, keeps the pages that change; it is destroyed with the snapshot."""

    def resize(self, name: str, size: int) -> None:
        """Resize an export. Shrinking may be refused with a `ValueError`."""

    def hold(self, name: str) -> None:
        """Let no new client in until the next `serve`."""

    def status(self) -> dict[str, ExportStatus]:
        """Every export that is served, by name."""

    def counters(self) -> dict[str, int]:
        """Counters of all connections, as `NbdServer` names them."""

    def stop(self, grace: float) -> bool:
        """Stop; returns whether every connection ended within so many seconds."""


T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    """A long call in a thread."""

    @property
    def ended(self) -> asyncio.Future[Any]:
        """Done once the call has completely ended. Not to be cancelled."""

    async def result(self) -> T_co:
        """The result. If its caller is cancelled, a call that has not begun is dropped."""


class StoreHealth(NamedTuple):
    """A store's problems: locks held for long, each with its holder; and why it is lost, if it is."""

    held: dict[str, str]
    lost: str


class Store(Protocol):
    """The daemon's store."""

    def never_wait_for_locks(self) -> None:
        """From now on calls of this thread raise `UnavailableError` at once instead of waiting for a lock."""

    def wait_for_lock(self, lock: int) -> None:
        """Wait until the lock of an `UnavailableError` is free.

        Raises:
            UnavailableError: It was not released in time.
        """

    def health(self) -> StoreHealth:
        """Its problems; never waits."""

    def run(self, call: Callable[[], T], client: str | None = None) -> Work[T]:
        """Make a long call in a thread, for a client or the daemon itself."""

    async def call(self, call: Callable[[], T], client: str | None = None) -> T:
        """Make a long call and wait for it."""

    def open_pool(self, name: str, settings: PoolSettings) -> StorePool: ...
    def find_pool(self, name: str) -> StorePool: ...
    def create_pool(self, name: str, settings: PoolSettings) -> StorePool: ...
    def pools(self) -> Sequence[StorePool]:
        """All pools, except those destroyed meanwhile."""

    def block_server(
        self, listen: Sequence[str], poll: int, tls: CertificateSource | None, refuse: GatewayRefusal | None
    ) -> BlockServer:
        """Serve block devices on these addresses, each connection polling for so many microseconds; TLS is for TCP.

        With `refuse`, gateways may use the pools that it does not refuse.
        """

    def info(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, int]: ...
    def compact(self) -> dict[str, int]: ...
    def relinquish(self, size: int) -> int: ...
    def resize(self, memory: int) -> None: ...
    def check(self) -> list[str]: ...
    def close(self) -> None:
        """Wait for calls in threads, then release all resources."""
