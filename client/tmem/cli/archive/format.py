"""The file format `tmem-pages-1`: the pages of a pool (docs/save-format.md).

    file    = magic record*            all numbers little-endian
    record  = kind u8, length u32, payload, crc u32       the CRC-32C is of kind, length and payload
    'H'     = JSON: the pool                              the first record
    'P'     = oid 24 bytes, count u32, count * (index u32, length u32, checksum u32), blocks
    'T'     = oid 24 bytes, count u32, count * index u32
    'E'     = records u64, pages u64, tombstones u64      the last record, and the end of the file

A later record wins over an earlier one. What is cut, changed, or followed by anything is a `PagesFileError` that names
the file, the place and the fault. A reader holds one record at a time, of at most `LARGEST` bytes, and of pages
that are as long together.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TypeAlias

import google_crc32c
import lz4.block

import tmem
from tmem_proto.limits import PAGE_SIZES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MAGIC = b"tmem-pages-1\n\0\0\0"
_ANY_FORMAT = b"tmem-pages-"
LARGEST = 8 << 20
BATCH_BYTES = 1 << 20
"""The most bytes of pages in a record that this writes."""

_HEAD, _CRC = struct.Struct("<cI"), struct.Struct("<I")
_OBJECT, _PAGE, _END = struct.Struct("<24sI"), struct.Struct("<III"), struct.Struct("<QQQ")


class SupportsWrite(Protocol):
    """Accepts bytes, always all of them."""

    def write(self, data: bytes, /) -> object: ...


class PagesFileError(tmem.TmemError):
    """The file is no file of saved pages, or incomplete."""


@dataclass(frozen=True, slots=True)
class Pages:
    """Pages of one object, still compressed."""

    oid: bytes
    entries: Sequence[tuple[int, int, int]]
    blocks: bytes

    def decoded(self, page_size: int) -> dict[int, bytes]:
        """The pages by index. Raises ValueError if one fails its checksum."""
        pages, start = {}, 0
        for index, length, checksum in self.entries:
            page = _page(self.blocks[start : start + length], page_size)
            if len(page) != page_size or google_crc32c.value(page) != checksum:
                raise ValueError(f"page {index} of object {self.oid.hex()} fails its checksum")
            pages[index], start = page, start + length
        return pages


@dataclass(frozen=True, slots=True)
class Tombstones:
    """Pages of one object that no longer exist."""

    oid: bytes
    indices: Sequence[int]


@dataclass(frozen=True, slots=True)
class Totals:
    """Totals of a complete file: records before the end, and the pages and tombstones in them."""

    records: int
    pages: int
    tombstones: int


Record: TypeAlias = Pages | Tombstones


class Writer:
    """Writes a file from its beginning."""

    def __init__(self, sink: SupportsWrite, header: Mapping[str, Any]) -> None:
        self._sink = sink
        self._records = self._pages = self._tombstones = 0
        sink.write(MAGIC)
        self._write(b"H", json.dumps(dict(header), ensure_ascii=False).encode())

    def pages(self, oid: bytes, pages: Mapping[int, bytes]) -> None:
        """Pages of one object, at most `BATCH_BYTES`."""
        entries, blocks = [], []
        for index, page in pages.items():
            block: bytes = lz4.block.compress(page, store_size=False)
            blocks.append(block if len(block) < len(page) else page)
            entries.append(_PAGE.pack(index, len(blocks[-1]), google_crc32c.value(page)))
        self._pages += len(entries)
        self._write(b"P", b"".join((_OBJECT.pack(oid, len(entries)), *entries, *blocks)))

    def tombstones(self, oid: bytes, indices: Sequence[int]) -> None:
        """Removed pages of one object, at most a megabyte of indices."""
        self._tombstones += len(indices)
        self._write(b"T", _OBJECT.pack(oid, len(indices)) + struct.pack(f"<{len(indices)}I", *indices))

    def end(self) -> Totals:
        """Write the end of the file."""
        totals = Totals(self._records, self._pages, self._tombstones)
        self._write(b"E", _END.pack(totals.records, totals.pages, totals.tombstones))
        return totals

    def _write(self, kind: bytes, payload: bytes) -> None:
        head = _HEAD.pack(kind, len(payload))
        crc = google_crc32c.extend(google_crc32c.value(head), payload)
        self._sink.write(b"".join((head, payload, _CRC.pack(crc))))
        self._records += 1


class Reader:
    """Reads a file; `records` can be iterated repeatedly and checks everything each time.

    After a `check`, `furthest` is the highest index of a page, and `foreign` whether one is of an object other than 0.
    """

    def __init__(self, source: BinaryIO, name: str) -> None:
        self._source = source
        self._name = name
        self._totals = Totals(0, 0, 0)
        self.furthest = -1
        self.foreign = False
        if self._start() != b"H":
            raise self._fault("the header is missing")
        self.header = self._header()

    @property
    def page_size(self) -> int:
        """Bytes per page."""
        return int(self.header["settings"]["page_size"])

    def check(self) -> Totals:
        """Read and check the whole file; its totals."""
        for record in self.records():
            if isinstance(record, Pages) and record.entries:
                self.furthest = max(self.furthest, *(index for index, _, _ in record.entries))
                self.foreign = self.foreign or any(record.oid)
        return self._totals

    def records(self) -> Iterator[Record]:
        """The records between header and end."""
        self._start()
        records = pages = tombstones = 0
        while True:
            records += 1
            match self._read():
                case b"P":
                    batch = self._pages()
                    pages += len(batch.entries)
                    yield batch
                case b"T":
                    gone = self._tombstones()
                    tombstones += len(gone.indices)
                    yield gone
                case b"E":
                    self._totals = Totals(records, pages, tombstones)
                    self._end(self._totals)
                    return
                case kind:
                    raise self._fault(f"unknown record kind {kind!r}: a newer tmem may have written the file")

    def _start(self) -> bytes:
        self._source.seek(0)
        self._at = 0
        magic = self._source.read(len(MAGIC))
        if magic != MAGIC:
            if magic.startswith(_ANY_FORMAT):
                raise self._fault(
                    "it is of another format than tmem-pages-1: it takes the tmem that wrote it, or a newer"
                )
            raise self._fault("this is not a file of saved pages (tmem-pages-1)")
        return self._read()

    def _read(self) -> bytes:
        """Read and check a record; its kind."""
        self._at = self._source.tell()
        head = self._exactly(_HEAD.size)
        kind: bytes
        kind, length = _HEAD.unpack(head)
        if length > LARGEST:
            raise self._fault(f"a record of {length} bytes exceeds the limit")
        self._payload = self._exactly(length)
        (crc,) = _CRC.unpack(self._exactly(_CRC.size))
        if google_crc32c.extend(google_crc32c.value(head), self._payload) != crc:
            raise self._fault("a record fails its checksum")
        return kind

    def _exactly(self, count: int) -> bytes:
        found = self._source.read(count)
        if len(found) != count:
            raise self._fault("the file is truncated")
        return found

    def _header(self) -> dict[str, Any]:
        try:
            header = json.loads(self._payload)
            fits = header["settings"]["page_size"] in PAGE_SIZES and isinstance(header["pool"], str)
        except (ValueError, KeyError, TypeError, RecursionError):
            fits = False
        if not fits:
            raise self._fault("the header does not describe a pool")
        return dict(header)

    def _pages(self) -> Pages:
        oid, count = self._object()
        if count * self.page_size > LARGEST:
            raise self._fault(f"a record of {count} pages exceeds the limit")
        blocks = _OBJECT.size + count * _PAGE.size
        if blocks > len(self._payload):
            raise self._fault("a record is too short for its number of pages")
        entries = list(_PAGE.iter_unpack(self._payload[_OBJECT.size : blocks]))
        lengths = [length for _, length, _ in entries]
        if sum(lengths) != len(self._payload) - blocks or (
            lengths and not 0 < min(lengths) <= max(lengths) <= self.page_size
        ):
            raise self._fault("a record's lengths do not match its blocks")
        return Pages(oid, entries, self._payload[blocks:])

    def _tombstones(self) -> Tombstones:
        oid, count = self._object()
        if len(self._payload) != _OBJECT.size + 4 * count:
            raise self._fault("a record's length does not match its number of tombstones")
        return Tombstones(oid, struct.unpack_from(f"<{count}I", self._payload, _OBJECT.size))

    def _object(self) -> tuple[bytes, int]:
        if len(self._payload) < _OBJECT.size:
            raise self._fault("a record is too short to name an object")
        oid, count = _OBJECT.unpack_from(self._payload)
        return oid, count

    def _end(self, found: Totals) -> None:
        if len(self._payload) != _END.size or Totals(*_END.unpack(self._payload)) != found:
            raise self._fault("the totals at the end do not match: records are missing or duplicated")
        if self._source.read(1):
            raise self._fault("there is data after the end")

    def _fault(self, why: str) -> PagesFileError:
        return PagesFileError(f"{self._name}, at byte {self._at:,}: {why}")


def _page(block: bytes, page_size: int) -> bytes:
    if len(block) == page_size:
        return block
    try:
        page: bytes = lz4.block.decompress(block, uncompressed_size=page_size)
    except (lz4.block.LZ4BlockError, ValueError):
        return b""
    return page
