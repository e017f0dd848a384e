"""What the services ask of a store: the surface that the engine's store and the null store share.

The methods of a pool may be called from any thread, and take as long as they take; `run` and `call` of the store make a
long call in a thread.
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
"""Outcomes of a put that kept the page."""
_REFUSED = "PUT_OUTCOME_REFUSED_"
REFUSALS = tuple(name.removeprefix(_REFUSED).lower() for name, _ in pb.PutOutcome.items() if name.startswith(_REFUSED))
"""Why a page may be refused."""
_DEFAULT_ALLOCATOR = {"persistent": "zsmalloc", "ephemeral": "zbud"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """What a pool is made with, as the engine reads it. The messages take its fields by their names."""

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
    """Pages of one object to store. `lengths` is None where they are pages, else they are blocks of these lengths."""

    oid: bytes
    indices: Sequence[int]
    lengths: list[int] | None
    pages: bytes


class Fetched(NamedTuple):
    """What a fetch found: a byte for each page (0 miss, 1 hit, 2 corrupt), and of each hit the rest."""

    found: bytes
    lengths: list[int]
    checksums: list[int]
    stamps: list[int]
    pages: bytes


Scanned: TypeAlias = list[tuple[bytes, list[int], list[int]]]
"""Pages that a pool holds: oid, indices and stamps. An object may be there in several parts."""


class StorePool(Protocol):
    """A pool."""

    @property
    def id(self) -> int:
        """Never 0, and never another pool's of the same arena."""

    @property
    def name(self) -> str: ...
    @property
    def owner(self) -> str:
        """The client whose pool it is, for as long as it is."""

    @property
    def page_size(self) -> int: ...
    @property
    def keeps(self) -> bool:
        """Whether a get leaves the page in the pool."""

    @property
    def family(self) -> str:
        """Its codec without its number: lz4, lz4hc, zstd or raw."""

    def put(self, batch: Batch) -> bytes:
        """A `PutOutcome` for each page. A block that is no page is a `ValueError`, and nothing was stored."""

    def fetch(self, oid: bytes, indices: Sequence[int], lz4: bool) -> Fetched: ...
    def flush_if(self, oid: bytes, stamps: dict[int, int]) -> int:
        """Remove fetched pages unless they were replaced; the number removed."""

    def scan(self, cursor: bytes, limit: int) -> tuple[Scanned, bytes]:
        """About `limit` pages after the cursor (empty at first), and the next cursor, empty at the end."""

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
        """Bytes of footprint that it is sure of."""

    def set_reserve(self, size: int) -> None: ...
    def settings(self) -> PoolSettings: ...
    def stats(self) -> dict[str, Any]: ...


Pem: TypeAlias = tuple[bytes, bytes, bytes | None]
"""A certificate, its key, and the certificates that vouch for clients."""


class CertificateSource(Protocol):
    """TLS of a port, from files that may change. Called by any thread."""

    def first(self) -> Pem:
        """What they say to begin with."""

    def renewed(self) -> Pem | None:
        """What they say now, where that has changed and can be used."""

    def refused(self, why: str) -> None:
        """What they say cannot be used after all."""


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
    """An export that is served: who has it open, and what passed through it."""

    clients: Sequence[ExportClient]
    counters: dict[str, int]
    size: int = 0
    draining: bool = False


GatewayRefusal: TypeAlias = "Callable[[str, str, str, bool, bool], str]"
"""Why a client's gateway may not have a pool; empty if it may.

Called by any thread, with the client's name, the pool's, its owner, whether it is shared, and would have to be made."""


class BlockSnapshot(Protocol):
    """The pages of an export as they were at one instant. A `SnapshotError` once it has ended."""

    @property
    def paused(self) -> float:
        """Seconds for which requests were held up as it began."""

    def held(self, first: int) -> tuple[list[int], int | None]:
        """Some of the pages from `first` on that it has, and where to go on, None at the end."""

    def fetch(self, indices: Sequence[int]) -> Fetched:
        """Pages, as LZ4 blocks."""

    def release(self, page: int) -> None:
        """Pages below are no more asked for."""

    def end(self) -> str:
        """End it; why it had ended before, if so."""


class BlockServer(Protocol):
    """Serves pools' objects as block devices, in threads of its own. Its calls may wait: they are for a thread."""

    @property
    def addresses(self) -> Sequence[str]: ...
    def serve(self, name: str, export: BlockExport) -> None:
        """Serve an export, or serve it so from now on; connections of clients it no longer allows have then ended.

        For as long as it is served it has the same pool, and `multi_conn` stays.
        """

    def remove(self, name: str, force: bool) -> None:
        """Serve an export no more; a `BusyError` while it is open, unless forced."""

    def snapshot(self, name: str, shadow: StorePool) -> BlockSnapshot:
        """An export as it is now; `shadow`, an empty pool, keeps what changes, and goes with the snapshot."""

    def resize(self, name: str, size: int) -> None:
        """Be of another size from now on. Shrinking may be refused with a `ValueError`."""

    def hold(self, name: str) -> None:
        """Let no new client in until `serve` says otherwise."""

    def status(self) -> dict[str, ExportStatus]:
        """Every export that is served, by name."""

    def counters(self) -> dict[str, int]:
        """Of all connections, as `NbdServer` has them."""

    def stop(self, grace: float) -> bool:
        """Stop; whether every connection came to its end within so many seconds."""


T_co = TypeVar("T_co", covariant=True)


class Work(Protocol[T_co]):
    """A long call that is to be made in a thread."""

    @property
    def ended(self) -> asyncio.Future[Any]:
        """Done once nothing of the call happens any more. Not to be cancelled."""

    async def result(self) -> T_co:
        """What came of it. Where its caller is cancelled, a call that has not begun never does."""


class StoreHealth(NamedTuple):
    """What is wrong with a store: locks that others hold for long, each with its holder; why it is lost, or nothing."""

    held: dict[str, str]
    lost: str


class Store(Protocol):
    """The daemon's store."""

    def never_wait_for_locks(self) -> None:
        """Calls of this thread wait for no lock from now on: they raise an `UnavailableError` at once."""

    def wait_for_lock(self, lock: int) -> None:
        """Wait until the lock of an `UnavailableError` is free.

        Raises:
            UnavailableError: It was not, in time.
        """

    def health(self) -> StoreHealth:
        """What is wrong with it; waits for nothing."""

    def run(self, call: Callable[[], T], client: str | None = None) -> Work[T]:
        """Make a long call in a thread, for a client or the daemon itself."""

    async def call(self, call: Callable[[], T], client: str | None = None) -> T:
        """Make a long call and wait for it."""

    def open_pool(self, name: str, settings: PoolSettings) -> StorePool: ...
    def find_pool(self, name: str) -> StorePool: ...
    def create_pool(self, name: str, settings: PoolSettings) -> StorePool: ...
    def pools(self) -> Sequence[StorePool]:
        """All pools; one that is destroyed meanwhile is left out."""

    def block_server(
        self, listen: Sequence[str], poll: int, tls: CertificateSource | None, refuse: GatewayRefusal | None
    ) -> BlockServer:
        """Serve block devices on these addresses, each connection polling for so many microseconds; TLS is for TCP.

        With `refuse`, gateways have the pools of the store that it lets them have.
        """

    def info(self) -> dict[str, Any]: ...
    def stats(self) -> dict[str, int]: ...
    def compact(self) -> dict[str, int]: ...
    def relinquish(self, size: int) -> int: ...
    def resize(self, memory: int) -> None: ...
    def check(self) -> list[str]: ...
    def close(self) -> None:
        """Wait for the calls in threads, then let go of what the store has."""
