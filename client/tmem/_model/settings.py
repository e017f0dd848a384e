"""What a pool or an export is made with: one object, passed whole from the public face to the wire.

The fields, their defaults and their documentation stand here alone. `Store.pool` and `Store.create_export` take them as
keyword arguments, in which sizes may have units, and show them with the help of `_model.keywords`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict, Unpack

from tmem._model.sizes import Size, parse_size

Kind: TypeAlias = Literal["persistent", "ephemeral"]
Allocator: TypeAlias = Literal["zsmalloc", "zbud"]

DEFAULT_ALLOCATOR: dict[str, Allocator] = {"persistent": "zsmalloc", "ephemeral": "zbud"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How a pool keeps its pages.

    Attributes:
        kind: `"persistent"`: a page that was stored stays until it is flushed. `"ephemeral"`: the store may forget a
            page at any time, and a get takes the page out unless the pool is `shared` or `inclusive`.
        codec: `"lz4"`, `"lz4:ACCELERATION"` (1 to 65537), `"lz4hc"`, `"lz4hc:LEVEL"` (3 to 12: smaller LZ4 blocks, slow
            to make), `"zstd"`, `"zstd:LEVEL"` (-7 to 19) or `"raw"`.
        allocator: `"zsmalloc"` (densest) or `"zbud"` (evicts whole frames). The default is zsmalloc for persistent
            pools and zbud for ephemeral ones.
        page_size: Bytes per page: 4096, 8192, 16384, 32768, 65536, 131072 or 262144.
        quota: The most memory the pool may use, in bytes of footprint; 0 or None is no quota.
        weight: Share of the memory relative to other ephemeral pools, at least 1. A server may replace a weight of 1
            by the one that it is configured to give this client's new pools.
        shared: An ephemeral pool used by many clients: a get keeps the page.
        inclusive: An ephemeral pool of one client in which a get keeps the page all the same.
        max_zpage: Refuse pages that compress to more bytes than this; 0 refuses none.
        owner: The client the pool belongs to, at most 64 bytes of UTF-8; on a server this client, if empty.
    """

    kind: Kind = "persistent"
    codec: str = "lz4"
    allocator: Allocator
    page_size: int = 4096
    quota: int = 0
    weight: int = 1
    shared: bool = False
    inclusive: bool = False
    max_zpage: int = 0
    owner: str = ""


class PoolOptions(TypedDict, total=False):
    """`PoolSettings` as a caller gives them."""

    kind: Kind
    codec: str
    allocator: Allocator | None
    page_size: Size
    quota: Size | None
    weight: int
    shared: bool
    inclusive: bool
    max_zpage: Size
    owner: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSpec:
    """A block device to be made.

    Attributes:
        name: As its clients open it.
        size: Bytes of the device.
        reserve: Memory that is set aside for it.
        codec: As of a pool.
        multi_conn: Let several connections have it open at once; else a second client is refused, which keeps two hosts
            from swapping to one device.
        allow: Names of the clients that may open it: those in their certificates, `local` or `network`; `*` is anybody
            whom the address lets in. None: the server's default, which is the creator, administrators and `local` where
            clients have certificates, else anybody.
        block_size: Bytes that are compressed together, and read and written as a whole: a power of two from 4096 to
            262144. Larger ones are denser; a request for a part of one costs as much as the whole.
    """

    name: str
    size: int
    reserve: int = 0
    codec: str = "lz4"
    multi_conn: bool = False
    allow: Sequence[str] | None = None
    block_size: int = 4096


class ExportOptions(TypedDict, total=False):
    """`ExportSpec` as a caller gives it, beside name and size."""

    reserve: Size
    codec: str
    multi_conn: bool
    allow: Sequence[str] | None
    block_size: Size


def pool_settings(**options: Unpack[PoolOptions]) -> PoolSettings:
    """Settings from what a caller gives: defaults filled in, sizes as bytes."""
    given: dict[str, Any] = {"quota": 0, **options}
    if given["quota"] is None:
        given["quota"] = 0
    kind = given.get("kind", "persistent")
    given["allocator"] = given.get("allocator") or DEFAULT_ALLOCATOR.get(kind, "zsmalloc")
    return PoolSettings(**_in_bytes(given, "page_size", "quota", "max_zpage"))


def export_spec(name: str, size: Size, **options: Unpack[ExportOptions]) -> ExportSpec:
    """The export that a caller describes: defaults filled in, sizes as bytes."""
    return ExportSpec(**_in_bytes({"name": name, "size": size, **options}, "size", "reserve", "block_size"))


def _in_bytes(options: dict[str, Any], *sizes: str) -> dict[str, Any]:
    return {**options, **{name: parse_size(options[name], name) for name in sizes if name in options}}
