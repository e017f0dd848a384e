"""The settings of a pool, as data."""

from dataclasses import dataclass
from typing import Literal, TypeAlias, TypedDict, Unpack

from tmem._model.sizes import Size, parse_size

Kind: TypeAlias = Literal["persistent", "ephemeral"]
Allocator: TypeAlias = Literal["zsmalloc", "zbud"]

DEFAULT_ALLOCATOR: dict[str, Allocator] = {"persistent": "zsmalloc", "ephemeral": "zbud"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolSettings:
    """How a pool keeps its pages.

    Attributes:
        kind: `"persistent"`: a stored page stays until it is flushed. `"ephemeral"`: the store may forget it any time.
        codec: `"lz4"`, `"lz4:ACCELERATION"` (1 to 65537), `"lz4hc"`, `"lz4hc:LEVEL"` (3 to 12: smaller LZ4 blocks, slow
            to make), `"zstd"`, `"zstd:LEVEL"` (-7 to 19) or `"raw"`.
        allocator: `"zsmalloc"` (densest) or `"zbud"` (evicts whole frames).
        page_size: Bytes a page: 4096, 8192, 16384, 32768, 65536, 131072 or 262144.
        quota: The most memory the pool may use, in bytes of footprint; 0 is no quota.
        weight: Share of the memory relative to other ephemeral pools, at least 1.
        shared: Ephemeral, used by many clients: a get keeps the page.
        inclusive: Ephemeral, of one client: a get keeps the page all the same.
        max_zpage: Pages that compress to more bytes than this are refused; 0 refuses none.
        owner: The client the pool belongs to, at most 64 bytes of UTF-8.
    """

    kind: Kind
    codec: str
    allocator: Allocator
    page_size: int
    quota: int
    weight: int
    shared: bool
    inclusive: bool
    max_zpage: int
    owner: str


class PoolOptions(TypedDict, total=False):
    """The keyword arguments of `Store.pool`, which documents them."""

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


def pool_settings(**options: Unpack[PoolOptions]) -> PoolSettings:
    """Settings from what a caller gives: defaults filled in, sizes as bytes."""
    kind = options.get("kind", "persistent")
    quota = options.get("quota")
    return PoolSettings(
        kind=kind,
        codec=options.get("codec", "lz4"),
        allocator=options.get("allocator") or DEFAULT_ALLOCATOR.get(kind, "zsmalloc"),
        page_size=parse_size(options.get("page_size", 4096), "page_size"),
        quota=0 if quota is None else parse_size(quota, "quota"),
        weight=options.get("weight", 1),
        shared=options.get("shared", False),
        inclusive=options.get("inclusive", False),
        max_zpage=parse_size(options.get("max_zpage", 0), "max_zpage"),
        owner=options.get("owner", ""),
    )
