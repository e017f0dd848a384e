"""A pool: pages by object and index. Put, get and flush are the only verbs; flush removes, it never writes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeVar, cast, overload

from tmem._model.outcome import OUTCOMES, Outcome, Outcomes
from tmem._model.settings import PoolSettings
from tmem._model.sizes import Size, parse_size

if TYPE_CHECKING:
    from collections.abc import Iterable

    from typing_extensions import Buffer

    from tmem._model.oid import Oid
    from tmem._model.stats import PoolStats
    from tmem._transport.api import PoolTransport

_Target = TypeVar("_Target", bound="Buffer")
_outcome = OUTCOMES.__getitem__


class Pool:
    """A named set of pages, from `Store.pool`. Safe to use from many threads.

    Pages are addressed by `oid` (an int below 2**192, up to 24 bytes, or `tmem.oid("any text")`) and `index` (0 to
    2**32 - 1). A call handles any number of pages of one object and releases the GIL once; a buffer given to it must
    not be written to by another thread meanwhile. Every method raises `ClosedError` once the store is closed,
    `UnknownPoolError` once the pool is destroyed, and `ValueError` or `TypeError`, before anything is touched, for
    arguments that make no sense: a page of the wrong length, an oid or index out of range.
    """

    __slots__ = ("_transport",)

    def __init__(self, transport: PoolTransport) -> None:
        self._transport = transport

    def put(self, oid: Oid, pages: Mapping[int, Buffer]) -> dict[int, Outcome]:
        """Store pages, each of `page_size` bytes, in place of whatever was there.

        A page that is refused leaves no older one behind: its index misses from then on.

        Returns:
            What became of each page, by index.
        """
        batch = pages if type(pages) is dict else as_dict(pages)
        codes = self._transport.put(oid, batch)
        return dict(zip(batch, map(_outcome, codes), strict=True))

    def put_lz4(self, oid: Oid, blocks: Mapping[int, Buffer]) -> dict[int, Outcome]:
        """Store pages that are compressed already, as LZ4 blocks (the plain block format, without a size in front).

        A block is checked to decode to one page, and kept as it is where the pool's codec is lz4.

        Returns:
            What became of each page, by index.

        Raises:
            ValueError: A block does not decode to `page_size` bytes; nothing of the batch was stored.
        """
        batch = blocks if type(blocks) is dict else as_dict(blocks)
        codes = self._transport.put_lz4(oid, batch)
        return dict(zip(batch, map(_outcome, codes), strict=True))

    def put_range(self, oid: Oid, first: int, buffer: Buffer) -> Outcomes:
        """Store the pages of `buffer` at indices `first`, `first + 1`, and so on.

        Args:
            oid: The object.
            first: The index of the first page.
            buffer: Any C-contiguous buffer (bytes, bytearray, memoryview, mmap, array); it is not copied in Python. Its
                length in bytes is a multiple of `page_size`.

        Returns:
            What became of each page, as one sequence with a summary.
        """
        return Outcomes(first, self._transport.put_range(oid, first, buffer))

    def get(self, oid: Oid, indices: Iterable[int], *, exclusive: bool = False) -> dict[int, bytes]:
        """The pages of `indices` that the store has; the others were misses.

        A private ephemeral pool that is not `inclusive` gives each page away: it is gone from the store afterwards.

        Args:
            oid: The object.
            indices: Page indices in any order.
            exclusive: Take the pages out of the store whatever the pool's kind.

        Raises:
            CorruptPageError: Persistent pages failed their checksum (an ephemeral one is a miss).
        """
        return self._transport.get(oid, indices, exclusive)

    @overload
    def get_range(
        self, oid: Oid, first: int, count: int, into: None = None, *, exclusive: bool = False
    ) -> tuple[bytearray, bytes]: ...
    @overload
    def get_range(
        self, oid: Oid, first: int, count: int, into: _Target, *, exclusive: bool = False
    ) -> tuple[_Target, bytes]: ...
    def get_range(
        self, oid: Oid, first: int, count: int, into: Buffer | None = None, *, exclusive: bool = False
    ) -> tuple[Buffer, bytes]:
        """The `count` pages from `first`, in one buffer.

        Args:
            oid: The object.
            first: The index of the first page.
            count: The number of pages.
            into: A writable C-contiguous buffer of `count * page_size` bytes to fill; None makes a bytearray.
            exclusive: Take the pages out of the store whatever the pool's kind.

        Returns:
            The buffer, zeros where a page was a miss, and the mask: one byte a page, 1 for a hit and 0 for a miss.

        Raises:
            CorruptPageError: Persistent pages failed their checksum (an ephemeral one is a miss).
        """
        return self._transport.get_range(oid, first, count, into, exclusive)

    def has(self, oid: Oid, first: int, count: int) -> bytes:
        """Which of the `count` pages from `first` the store has: one byte a page, 1 or 0. Takes no page out."""
        return self._transport.has(oid, first, count)

    def flush(self, oid: Oid, indices: Iterable[int]) -> int:
        """Remove pages. Returns the number found; all of `indices` miss from then on."""
        return self._transport.flush(oid, indices)

    def flush_object(self, oid: Oid) -> int:
        """Remove every page of an object. Returns the number found."""
        return self._transport.flush_object(oid)

    def destroy(self) -> int:
        """Remove the pool with all its pages. Returns the number of pages; the name is free again."""
        return self._transport.destroy()

    def freeze(self) -> None:
        """Freeze the pool: puts only flush their keys and are refused as `"frozen"`; gets and flushes still work."""
        self._transport.freeze()

    def thaw(self) -> None:
        """End a freeze."""
        self._transport.thaw()

    @property
    def frozen(self) -> bool:
        """Whether the pool is frozen."""
        return self._transport.frozen()

    @property
    def name(self) -> str:
        """The name of the pool."""
        return self._transport.name

    @property
    def page_size(self) -> int:
        """Bytes per page."""
        return self._transport.page_size

    @property
    def settings(self) -> PoolSettings:
        """The settings of the pool, with its quota and weight as they are now."""
        return PoolSettings(**self._transport.settings())

    @property
    def quota(self) -> int:
        """The most memory the pool may use, in bytes of footprint; 0 is no quota. Set it with a size or None."""
        return self.settings.quota

    @quota.setter
    def quota(self, size: Size | None) -> None:
        self._transport.set_quota(0 if size is None else parse_size(size, "quota"))

    @property
    def weight(self) -> int:
        """Share of the memory relative to other ephemeral pools, at least 1. Can be set."""
        return self.settings.weight

    @weight.setter
    def weight(self, weight: int) -> None:
        self._transport.set_weight(weight)

    def stats(self) -> PoolStats:
        """Counters and gauges of the pool; sizes in bytes, totals since the pool was created."""
        return cast("PoolStats", self._transport.stats())

    def __repr__(self) -> str:
        return f"<tmem.Pool {self.name!r} page_size={self.page_size}>"


def as_dict(pages: Mapping[int, Buffer]) -> dict[int, Buffer]:
    """The batch as a dict of its own."""
    if not isinstance(pages, Mapping):
        raise TypeError(f"pages must be a mapping of index to page, not {type(pages).__name__}")
    return dict(pages)
