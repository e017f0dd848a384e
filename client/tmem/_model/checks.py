"""Checks of arguments before anything is sent. Rules and messages are those of the engine's bindings."""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING, Any, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

Page: TypeAlias = bytes | memoryview

MAX_INDEX = 2**32 - 1
_OID_BYTES = 24


def oid_bytes(oid: object) -> bytes:
    """The 24 bytes of an oid."""
    if isinstance(oid, bytes):
        if len(oid) > _OID_BYTES:
            raise ValueError(f"oid is {len(oid)} bytes long; at most {_OID_BYTES}")
        return oid.ljust(_OID_BYTES, b"\0")
    if not isinstance(oid, int):
        raise TypeError(f"oid must be an int or bytes, not {_kind(oid)}; tmem.oid(text) makes one of any text")
    try:
        return oid.to_bytes(_OID_BYTES, "big")
    except OverflowError:
        raise ValueError("oid is out of range; it must be 0 to 2**192 - 1") from None


def number(value: object, name: str, low: int = 0, high: int = MAX_INDEX) -> int:
    """An int from `low` to `high`."""
    try:
        found = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name} must be an int, not {_kind(value)}") from None
    if not low <= found <= high:
        raise ValueError(f"{name} is {found}; it must be {low} to {high}")
    return found


def index_list(indices: Iterable[int]) -> list[int]:
    """Each index once, in the order they were given."""
    if isinstance(indices, int):
        raise TypeError("indices must be an iterable of ints, not an int")
    return list(dict.fromkeys(_numbers(indices)))


def span(first: object, count: object) -> range:
    """The indices of a range that ends within the object."""
    start, length = number(first, "first"), number(count, "count")
    if start + length > MAX_INDEX + 1:
        raise ValueError(f"the range of {length} pages from {start} ends beyond index {MAX_INDEX}")
    return range(start, start + length)


def flag(value: object, name: str) -> bool:
    """A bool, and nothing that is merely truthy."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be a bool, not {_kind(value)}")
    return value


def view(buffer: object, name: str) -> memoryview:
    """The bytes of a C-contiguous buffer, not copied."""
    try:
        whole = memoryview(cast("Buffer", buffer))
    except TypeError:
        raise TypeError(f"{name} must be bytes or a buffer, not {_kind(buffer)}") from None
    if not whole.c_contiguous:
        raise ValueError(f"{name} is not C-contiguous")
    return whole if whole.ndim == 1 and whole.format == "B" else _flat(whole)


def pages(batch: dict[int, Buffer], page_size: int) -> tuple[list[int], Sequence[Page]]:
    """Indices and pages of a put, each page as long as it must be."""
    indices = _numbers(batch)
    found: list[Any] = list(batch.values())
    if set(map(type, found)) != {bytes}:
        found = [view(page, "page") for page in found]
    if set(map(len, found)) - {page_size}:
        index, page = next(pair for pair in zip(indices, found, strict=True) if len(pair[1]) != page_size)
        raise ValueError(f"page {index} is {len(page)} bytes long; the pool's pages are {page_size}")
    return indices, found


def range_of(first: int, buffer: object, page_size: int) -> range:
    """The indices of a buffer put from `first` on."""
    size = len(view(buffer, "buffer"))
    count, rest = divmod(size, page_size)
    if rest:
        raise ValueError(f"buffer is {size} bytes long, which is not a multiple of the page size {page_size}")
    return span(first, count)


def page_range(first: int, buffer: object, page_size: int) -> tuple[range, list[memoryview]]:
    """Indices and pages of a buffer put from `first` on."""
    wanted = range_of(first, buffer, page_size)
    whole = view(buffer, "buffer")
    return wanted, [whole[at : at + page_size] for at in range(0, len(whole), page_size)]


def target(into: object, size: int) -> memoryview:
    """A writable buffer of `size` bytes."""
    whole = view(into, "into")
    if whole.readonly:
        raise ValueError("into is read-only")
    if len(whole) != size:
        raise ValueError(f"into is {len(whole)} bytes long; the range takes {size}")
    return whole


def _numbers(indices: Iterable[int]) -> list[int]:
    """All of them checked: at once where they are plain ints, as they mostly are."""
    given = list(indices)
    if set(map(type, given)) == {int} and min(given) >= 0 and max(given) <= MAX_INDEX:
        return given
    return [number(index, "index") for index in given]


def _flat(whole: memoryview) -> memoryview:
    return whole.cast("B") if whole.nbytes else memoryview(bytearray())


def _kind(value: object) -> str:
    return type(value).__name__
