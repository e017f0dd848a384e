"""The native part of the engine, written in Rust.

Every call converts its arguments, releases the GIL once while the engine works, and converts the answer. Arguments of
the wrong type raise `TypeError`, wrong values `ValueError`, both before anything is touched; what else goes wrong
raises the classes the engine was opened with.

Forking: the arena is shared memory, so parent and child both keep using it, as two attached processes would. Nothing
here holds a lock while the GIL is released.

A buffer handed to a call must not be written to by another thread until the call returns.
"""

from collections.abc import Callable, Iterable, Sequence
from os import PathLike
from typing import Any, Protocol, final, type_check_only

from typing_extensions import Buffer

__all__ = [
    "Engine",
    "EnginePool",
    "NbdServer",
    "NbdSnapshot",
    "SanGateway",
    "__version__",
    "client_name",
    "is_loopback",
    "pack",
    "set_lock_wait",
    "unpack",
]

__version__: str

_Oid = int | bytes

@type_check_only
class _Errors(Protocol):
    """The exceptions to raise, such as a module with these classes in it."""

    @property
    def ClosedError(self) -> type[Exception]:
        """Called with a message: the engine was closed."""
    @property
    def MismatchError(self) -> type[Exception]:
        """Called with a message that names the difference: the arena or pool exists with other settings."""
    @property
    def UnknownPoolError(self) -> type[Exception]:
        """Called with the pool's name: there is none, or it was destroyed."""
    @property
    def ExhaustedError(self) -> type[Exception]:
        """Called with a message: a fixed table of the arena is full."""
    @property
    def ArenaError(self) -> type[Exception]:
        """Called with path and reason: not an arena, another version, damaged, or the system refused."""
    @property
    def CorruptPageError(self) -> type[Exception]:
        """Called with the good pages (a dict by index) and a tuple of the indices of the bad ones."""
    @property
    def UnavailableError(self) -> type[Exception]:
        """Called with a message: another process holds a lock and does not let go.

        It gets two attributes: `lock`, a number as `wait_for` takes it, and `waited`, whether it was waited for as long
        as anybody waits.
        """
    @property
    def InternalError(self) -> type[Exception]:
        """Called with a message: a panic in the engine."""

def set_lock_wait(limit: float | None) -> None:
    """From now on calls of this thread wait for no lock longer than so many seconds; None is as long as anybody."""

def pack(pages: Sequence[Buffer], page_size: int) -> tuple[list[int], bytes]:
    """Pages as LZ4 blocks one after another, and the length of each; one that would not shrink is the page itself."""

def unpack(blob: Buffer, lengths: Sequence[int], checksums: Sequence[int], page_size: int) -> list[bytes | None]:
    """The pages of such blocks; None for one that does not have its checksum (CRC-32C)."""

@final
class Engine:
    """An open store. Safe to use from many threads."""

    @staticmethod
    def open(
        *,
        errors: _Errors,
        memory: int,
        accept_threshold: int,
        arena: str | PathLike[str] | None = None,
        shards: int | None = None,
        mlock: bool = False,
        huge_pages: bool = False,
        lock_wait: float | None = None,
    ) -> Engine:
        """Open a private arena, or create or attach the one at `arena`.

        Args:
            errors: The exceptions that this engine raises.
            memory: The most bytes the arena may use.
            accept_threshold: Per cent of `memory` below which a full store accepts pages again.
            arena: The file; None is a private arena.
            shards: Separately locked parts, a power of two; None chooses by `memory`.
            mlock: Keep the arena from being swapped out.
            huge_pages: Ask for transparent huge pages.
            lock_wait: Seconds that a lock is waited for which another process holds; None is 3.
        """
    @staticmethod
    def attach(path: str | PathLike[str], *, errors: _Errors, mlock: bool = False) -> Engine:
        """Attach to the arena at `path`, which exists."""
    def pool(self, name: str, settings: object) -> EnginePool:
        """Create a pool, or open the one of that name if its settings are the same.

        `settings` has each setting as an attribute, under the name that it has in `PoolSettings` of tmem.proto.
        """
    def find_pool(self, name: str) -> EnginePool | None:
        """The pool of that name, if there is one."""
    def pools(self) -> list[EnginePool]:
        """All pools."""
    def info(self) -> dict[str, Any]:
        """`memory` (bytes), `shards`, `arena` (path or None) and `accept_threshold` (per cent)."""
    def stats(self) -> dict[str, int]:
        """Counters and gauges; sizes in bytes."""
    def compact(self) -> dict[str, int]:
        """Compact every pool: `moved_pages` and `freed_bytes`."""
    def relinquish(self, size: int) -> int:
        """Evict ephemeral pages until `size` bytes are given back; returns how many were."""
    def wait_for(self, lock: int) -> None:
        """Take a lock and release it, waiting as long as anybody does: 0 is the pool table's, then the shards'."""
    def stuck(self) -> list[tuple[int, int | None]]:
        """Locks that were waited for in vain and are held still, each with the process that says it holds it."""
    def whole(self) -> None:
        """Raise `ArenaError` where a part of the arena cannot be read any more: all calls do so then."""
    def commit_reserves(self, on: bool) -> None:
        """Have the memory behind all reserves committed ahead, now and from now on, or no longer.

        Raises:
            ExhaustedError: The machine does not have it; what could be had is kept.
        """
    def resize(self, memory: int) -> None:
        """Raise the most bytes the arena may use."""
    def check(self) -> list[str]:
        """The violations of a full consistency check: empty when the arena is sound."""
    def close(self) -> None:
        """Let go of the arena. Calls under way end as usual and are not waited for; closing twice does nothing."""
    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
    def _panic(self, message: str) -> None:
        """Fail as a fault inside the engine would. For tests of what callers then see."""

@final
class EnginePool:
    """A pool of an engine. Safe to use from many threads.

    Puts answer with one byte a page, in the order the pages were given: a `PutOutcome` of the wire protocol, plus 16
    for a refusal that flushed an older page.
    """

    @property
    def name(self) -> str:
        """The pool's name."""
    @property
    def id(self) -> int:
        """Never 0, and never another pool's of the same arena."""
    @property
    def page_size(self) -> int:
        """Bytes a page."""
    def put(self, oid: _Oid, pages: dict[int, Buffer]) -> bytes:
        """Store pages of `page_size` bytes by index."""
    def put_lz4(self, oid: _Oid, blocks: dict[int, Buffer]) -> bytes:
        """Store pages given as LZ4 blocks by index."""
    def put_packed(self, oid: _Oid, indices: Iterable[int], lengths: list[int] | None, blob: Buffer) -> bytes:
        """Store pages that lie one after another in a blob: LZ4 blocks; one as long as a page is the page itself.

        Without `lengths` all are pages.
        """
    def put_range(self, oid: _Oid, first: int, buffer: Buffer) -> bytes:
        """Store the pages of a C-contiguous buffer at `first` and the indices after it. The buffer is not copied."""
    def get(self, oid: _Oid, indices: Iterable[int], exclusive: bool = False) -> dict[int, bytes]:
        """The pages that are there, decompressed straight into new `bytes`; `exclusive` takes them out."""
    def get_range(
        self, oid: _Oid, first: int, count: int, into: Buffer | None = None, exclusive: bool = False
    ) -> tuple[Any, bytes]:
        """The pages from `first` in one buffer, `into` or a new bytearray, and a mask of one byte a page: 1 is a hit.

        Misses are zeros in the buffer. `into` is writable, C-contiguous and `count * page_size` bytes long.
        """
    def fetch(
        self, oid: _Oid, indices: Iterable[int], lz4: bool = False
    ) -> tuple[bytes, list[int], list[int], list[int], bytes]:
        """Pages for a user far away: what became of each, the hits' lengths, checksums and stamps, and their bytes.

        What became of a page is a byte: 0 a miss, 1 a hit, 2 corrupt (persistent pools only). With `lz4` pages that are
        stored so, or shrink at once, come as LZ4 blocks that are not verified: the checksum (CRC-32C of the page) is
        for the user to do that. What is a page long is the page itself. Only a private ephemeral pool gives its pages
        up by this; `flush_if` with the stamps removes those of other pools once the user has them.
        """
    def flush_if(self, oid: _Oid, stamps: dict[int, int]) -> int:
        """Remove fetched pages, by index and stamp, unless they were replaced since; returns the number found."""
    def scan(self, cursor: bytes, limit: int) -> tuple[list[tuple[bytes, list[int], list[int]]], bytes]:
        """About `limit` keys after the cursor (empty at first), and the next cursor, empty at the end.

        Keys come as oid, indices and stamps. A page that is there from the first call to the last is given, once.
        """
    def has(self, oid: _Oid, first: int, count: int) -> bytes:
        """Which pages are there: one byte a page, 1 or 0."""
    def flush(self, oid: _Oid, indices: Iterable[int]) -> int:
        """Remove pages; returns the number found."""
    def flush_object(self, oid: _Oid) -> int:
        """Remove every page of an object; returns the number found."""
    def destroy(self) -> int:
        """Remove the pool; returns the number of pages it had."""
    def freeze(self) -> None:
        """Turn puts into flushes of their keys."""
    def thaw(self) -> None:
        """End a freeze."""
    def frozen(self) -> bool:
        """Whether the pool is frozen."""
    def set_quota(self, size: int) -> None:
        """Set the quota in bytes of footprint; 0 is none."""
    def reserve(self) -> int:
        """Bytes of footprint the pool is sure of; 0 where it has no reserve."""
    def set_reserve(self, size: int) -> None:
        """Keep so many bytes of memory for this pool, or refuse with the numbers; for persistent pools."""
    def set_weight(self, weight: int) -> None:
        """Set the weight, at least 1."""
    def settings(self) -> dict[str, Any]:
        """The settings by name; quota and weight are the current ones."""
    def stats(self) -> dict[str, Any]:
        """Counters and gauges; `size_histogram` has 64 buckets of compressed sizes, `classes` a dict a size class."""

@type_check_only
class _Renewal(Protocol):
    """TLS of a port, from files that may change."""

    def renewed(self) -> tuple[bytes, bytes, bytes | None] | None:
        """What TLS is to use from now on; None for no change."""
    def refused(self, why: str) -> None:
        """What `renewed` said cannot be used; TLS goes on as it was."""

def client_name(certificate: bytes) -> str:
    """The name of the client whose verified certificate this is, in DER; a `ValueError` says why it has none.

    The NBD server names its clients by it too.
    """

@final
class NbdServer:
    """Serves objects of pools as block devices over NBD, by threads of its own that need no GIL.

    It keeps the arena attached until it is stopped. Errors: `KeyError` for an export that is not served, `ValueError`
    for what makes no sense, `RuntimeError` with the number of clients for an export in use, `OSError` for an address.
    """

    def __new__(
        cls,
        listen: list[str],
        *,
        connections: int = 512,
        client_connections: int = 256,
        handshakes: int = 64,
        handshake_timeout: float = 10.0,
        buffers: int = ...,
        poll_microseconds: int = 0,
        tls: tuple[bytes, bytes, bytes | None] | None = None,
        insecure: bool = False,
        renewal: _Renewal | None = None,
        turned_away: Callable[[str, str], None] | None = None,
    ) -> NbdServer:
        """Listen on `unix:PATH` and `tcp:HOST:PORT`. A connection polls so long before it sleeps.

        `connections` may have an export open at once, of one client `client_connections`; before that as many as
        `handshakes`, each for so many seconds, the oldest making room. Large requests hold `buffers` bytes.

        `tls` is certificate, key and who vouches for clients, in PEM: TCP clients must then begin TLS. `renewal` is
        asked before each handshake, by any thread, whether that has changed. `turned_away` is called by any thread with
        the address of a client that was turned away, and why.
        """
    @property
    def addresses(self) -> list[str]:
        """Where it listens, ports that were 0 as they became."""
    def add(
        self,
        name: str,
        pool: EnginePool,
        oid: _Oid,
        size: int,
        *,
        draining: bool = False,
        multi_conn: bool = False,
        allow: list[str] | None = None,
    ) -> None:
        """Serve an object as an export of `size` bytes, to one connection at a time unless it is `multi_conn`.

        One that is draining lets no client in; one that names clients none but these.
        """
    def serve_caches(self, engine: Engine, refusal: Callable[[str, str, str, bool, bool], str]) -> None:
        """Serve the engine's ephemeral pools to gateways, under `cache/`.

        `refusal` is called by any thread: with a client's name, a pool's, its owner, whether it is shared, and whether
        it would have to be made. It says why not; nothing if the client may.
        """
    def remove(self, name: str, *, force: bool = False) -> None:
        """Serve it no more; clients that have it open are cut off, or are the reason to refuse."""
    def snapshot(self, name: str, shadow: EnginePool) -> NbdSnapshot:
        """Its blocks as they are now: requests wait for those under way, and go on.

        What of them changes is kept in `shadow`, an empty pool of the same page size, which goes with the snapshot.
        """
    def resize(self, name: str, size: int) -> None:
        """Be of another size from now on."""
    def drain(self, name: str, draining: bool) -> None:
        """Let no new client in, or let them in again."""
    def allow(self, name: str, allow: list[str] | None) -> None:
        """Let clients of these names in, or any; connections of others have ended when it returns."""
    def exports(self) -> dict[str, dict[str, Any]]:
        """Of each export by name: `size`, `draining`, `clients` (`address`, `tls`, `identity`) and `counters`."""
    def counters(self) -> dict[str, int]:
        """Of the server: `connections`, `connected`, `turned_away`, `not_opened`, `broken`."""
    def stop(self, grace: float) -> bool:
        """Stop: no new connections, those there finish what was received; whether they did in `grace` seconds."""

def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a host: the rule by which listeners need TLS."""

@final
class NbdSnapshot:
    """An export's blocks as they were at one instant. It ends when it is let go.

    `RuntimeError`, with the reason, once it has ended: for want of memory for what it must keep, for one.
    """

    @property
    def paused(self) -> float:
        """Seconds for which requests were held up as it began."""
    def held(self, first: int) -> tuple[list[int], int | None]:
        """Some of the pages from `first` on that it has, and where to go on; None at the end."""
    def fetch(self, indices: Sequence[int]) -> tuple[bytes, list[int], list[int], list[int], bytes]:
        """As `EnginePool.fetch`, with LZ4 blocks."""
    def release(self, page: int) -> None:
        """Pages below are no more asked for."""
    def end(self) -> str | None:
        """End it, and give back what was kept; why it had ended before, if so."""

@final
class SanGateway:
    """A volume on a SAN, served over NBD with reads from a cache where it has them. Runs from when it is made.

    `OSError` where the system refuses, `ValueError` for arguments that make no sense.
    """

    def __new__(
        cls,
        backing: str,
        server: str,
        pool: str,
        listen: Sequence[str],
        *,
        page_size: int,
        shared_object: bytes | None,
        state: str | PathLike[str] | None,
        key: str,
        trust: bool,
        max_delay: float,
        scan: int,
        readahead: int,
        readahead_memory: int,
        threads: int,
        tls: tuple[str | PathLike[str], tuple[str | PathLike[str], str | PathLike[str]] | None] | None = None,
        san_timeout: float = 60.0,
        own_tls: tuple[str | PathLike[str], str | PathLike[str], str | PathLike[str] | None] | None = None,
        insecure: bool = False,
        metrics: str | None = None,
        buffers: int = ...,
    ) -> SanGateway:
        """Serve `backing`, a path or `nbd://...`, at each address of `listen`; cache in `pool` of the server.

        With `shared_object`, 24 bytes that name the content, the volume is read-only; without, it is this gateway's
        alone, and `state` is where the token of a clean stop is kept under `key`. `max_delay` is in seconds, sizes are
        in bytes. `tls` is the file of the authority that vouches for the server, and those of this client's certificate
        and key; they are read anew for each connection. A command to
        an `nbd://` backing fails after `san_timeout` seconds, however often it was tried.

        `own_tls` is the files of this server's certificate and key and of who vouches for clients: TCP listeners then
        have TLS. Without it, and unless `insecure`, they must be on loopback; so must `metrics`, HOST:PORT for
        Prometheus. Requests of all clients hold at most `buffers` bytes. Descriptors 0 to 2 are opened if they are not.
        """
    @property
    def addresses(self) -> list[str]:
        """Where it listens."""
    @property
    def size(self) -> int:
        """Bytes of the volume."""
    @property
    def warm(self) -> bool:
        """Whether what was cached before a clean stop is used."""
    @property
    def cache_down(self) -> str | None:
        """Why the cache is not used; None while it is."""
    @property
    def san_down(self) -> str | None:
        """Why the SAN does not answer; None while it does."""
    @property
    def metrics(self) -> str | None:
        """Where metrics are served, as HOST:PORT."""
    @staticmethod
    def say(line: str, error: bool) -> None:
        """Write a line to standard output or error, dropped where nobody takes it: it never waits long."""
    def wait_cache(self, seconds: float) -> bool:
        """Wait until the cache is used; whether it is."""
    def stop(self, detach: bool = True, grace: float = 30.0) -> bool:
        """Stop. With `detach` what is under way ends and is made durable; whether a token for a warm start was left."""
