"""A file as the pages of an object: `tmem.oid(NAME)`, its page `n` at index `n`, and its label at the last index.

The label is a page of JSON with the true length and the CRC-32C of all bytes. It goes first when a file is replaced and
comes last when it was stored, so that a file that is there in part is never taken for whole; two that write one name at
once are found out by the checksum. In a private ephemeral pool a get takes the file out, as gets there do.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, BinaryIO

import google_crc32c

import tmem
from tmem._model.oid import oid
from tmem._model.outcome import Outcomes
from tmem._protocol.session import batches

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tmem._pool import Pool

LABEL_INDEX = 2**32 - 1
CHUNK = 4 << 20
_FORMAT = 1


class StoredError(tmem.TmemError):
    """A file cannot be stored, or a stored file is incomplete."""


class RefusedError(StoredError):
    """The store refused a page, by `reason`; nothing of the file is kept."""

    def __init__(self, name: str, page: int, reason: str) -> None:
        super().__init__(f"page {page} of {name!r} was refused")
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Label:
    """What is stored of a file besides its pages."""

    name: str
    length: int
    crc32c: int

    def pages(self, page_size: int) -> int:
        return -(-self.length // page_size)


def remove_file(pool: Pool, name: str) -> int:
    """Remove the file of this name; how many pages it had."""
    return pool.flush_object(oid(name))


def put_file(pool: Pool, name: str, source: BinaryIO, done: Callable[[int], None]) -> Label:
    """Store a file under a name that must be free. On any error nothing of it is left."""
    key = oid(name)
    try:
        label = _put_pages(pool, name, source, done)
        page = json.dumps({"tmem-file": _FORMAT, **asdict(label)}).encode()
        if len(page) > pool.page_size:
            raise ValueError(
                f"the name is {len(name)} characters long, too long to fit in a page with the rest of the label"
            )
        _require(name, LABEL_INDEX, pool.put_range(key, LABEL_INDEX, page.ljust(pool.page_size)))
    except BaseException:
        pool.flush_object(key)
        raise
    return label


def read_label(pool: Pool, name: str) -> Label | None:
    """The label of a file, if there is one."""
    page = pool.get(oid(name), [LABEL_INDEX]).get(LABEL_INDEX)
    if page is None:
        return None
    try:
        found = json.loads(page)
        if found.pop("tmem-file") != _FORMAT:
            raise ValueError("of another version")
        label = Label(**found)
        if not (isinstance(label.length, int) and isinstance(label.crc32c, int) and label.length >= 0):
            raise ValueError("of other types")
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
        raise StoredError(f"object {name!r} of pool {pool.name!r} was not stored by `tmem put`") from None
    return label


def file_chunks(pool: Pool, name: str, label: Label) -> Iterator[bytes]:
    """The bytes of a file in order. Raises if a page is missing, or at the end if the checksum differs."""
    key, size, crc = oid(name), pool.page_size, 0
    for part in batches(range(label.pages(size)), CHUNK // size):
        buffer, mask = pool.get_range(key, part[0], len(part))
        missing = mask.count(0)
        if missing:
            why = "evicted, or flushed" if pool.settings.kind == "ephemeral" else "flushed"
            raise StoredError(
                f"{name!r} is incomplete: {missing} of its pages {part[0]} to {part[-1]} are gone ({why} since the put)"
            )
        chunk = bytes(memoryview(buffer)[: label.length - part[0] * size])
        crc = google_crc32c.extend(crc, chunk)
        yield chunk
    if crc != label.crc32c:
        raise StoredError(f"{name!r} fails its checksum: somebody wrote to it meanwhile")


def _put_pages(pool: Pool, name: str, source: BinaryIO, done: Callable[[int], None]) -> Label:
    key, size = oid(name), pool.page_size
    length = crc = index = 0
    while chunk := _read(source, CHUNK):
        length += len(chunk)
        crc = google_crc32c.extend(crc, chunk)
        pages = -(-len(chunk) // size)
        if index + pages > LABEL_INDEX:
            raise StoredError(f"{name!r} is too long for an object of {size}-byte pages")
        _require(name, index, pool.put_range(key, index, chunk.ljust(pages * size, b"\0")))
        index += pages
        done(pages)
    return Label(name, length, crc)


def _read(source: BinaryIO, size: int) -> bytes:
    """So many bytes, or all that remain: one read of a pipe may give fewer."""
    parts, left = [], size
    while left and (part := source.read(left)):
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _require(name: str, first: int, outcomes: Outcomes) -> None:
    if not outcomes.all_stored:
        at = next(at for at, outcome in enumerate(outcomes) if not outcome)
        raise RefusedError(name, first + at, str(outcomes[at].reason))
