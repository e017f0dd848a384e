"""The format tmem-pages-1: what was written is read, what is cut or changed is noticed, and the document is true."""

import io
import re
import struct
from pathlib import Path

import google_crc32c
import pytest

from tests.lib.support import noise, page
from tmem.cli.archive.format import LARGEST, MAGIC, Pages, PagesFileError, Reader, Tombstones, Writer

OID, OTHER = bytes(range(24)), bytes(24)
HEADER = {"pool": "p", "settings": {"page_size": 4096}}
DOCUMENT = Path(__file__).parents[3] / "docs" / "save-format.md"


def written() -> bytes:
    sink = io.BytesIO()
    writer = Writer(sink, HEADER)
    writer.pages(OID, {7: page(7), 2**32 - 1: noise(1)})
    writer.tombstones(OTHER, [1, 2**32 - 1])
    writer.pages(OID, {7: bytes(4096)})
    writer.end()
    return sink.getvalue()


def read(data: bytes) -> Reader:
    return Reader(io.BytesIO(data), "saved")


def record(kind: bytes, payload: bytes) -> bytes:
    head = kind + struct.pack("<I", len(payload))
    return head + payload + struct.pack("<I", google_crc32c.value(head + payload))


def test_what_was_written_is_read_in_its_order() -> None:
    reader = read(written())
    assert reader.header == HEADER
    first, gone, last = reader.records()
    assert isinstance(first, Pages)
    assert first.decoded(4096) == {7: page(7), 2**32 - 1: noise(1)}
    assert gone == Tombstones(OTHER, (1, 2**32 - 1))
    assert isinstance(last, Pages)
    assert last.decoded(4096) == {7: bytes(4096)}
    totals = reader.check()
    assert (totals.records, totals.pages, totals.tombstones) == (4, 3, 2)


def test_pages_are_compressed() -> None:
    assert len(written()) < 3 * 4096


def test_a_file_that_is_cut_anywhere_is_noticed() -> None:
    whole = written()
    for length in range(0, len(whole), 7):
        with pytest.raises(PagesFileError, match=r"saved, at byte [\d,]+: "):
            read(whole[:length]).check()


def test_a_byte_that_changed_anywhere_is_noticed() -> None:
    whole = written()
    for at in range(0, len(whole), 5):
        with pytest.raises(PagesFileError, match="saved"):
            read(whole[:at] + bytes([whole[at] ^ 0x10]) + whole[at + 1 :]).check()


def _records() -> list[bytes]:
    whole, at, found = written(), len(MAGIC), []
    while at < len(whole):
        length = 9 + struct.unpack_from("<I", whole, at + 1)[0]
        found.append(whole[at : at + length])
        at += length
    return found


@pytest.mark.parametrize("which", [1, 2, 3])
def test_a_missing_or_duplicated_record_is_noticed(which: int) -> None:
    records = _records()
    for others in (records[:which] + records[which + 1 :], [*records[:which], records[which], *records[which:]]):
        with pytest.raises(PagesFileError, match="missing or duplicated"):
            read(MAGIC + b"".join(others)).check()


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not a file of saved pages"),
        (b"#!/bin/sh\n" * 9, "not a file of saved pages"),
        (MAGIC + record(b"E", bytes(24)), "the header is missing"),
        (MAGIC + record(b"H", b"[" * 100_000), "does not describe a pool"),
        (MAGIC + record(b"H", b'{"pool": "p", "settings": {"page_size": 512}}'), "does not describe a pool"),
        (b"tmem-pages-2" + MAGIC[12:], "of another format than tmem-pages-1"),
        (MAGIC + record(b"H", b"[]"), "does not describe a pool"),
        (MAGIC + record(b"H", b'{"pool": "p", "settings": {"page_size": 4095}}'), "does not describe a pool"),
        (written() + b"x", "data after the end"),
        (MAGIC + struct.pack("<cI", b"H", LARGEST + 1), "exceeds the limit"),
    ],
)
def test_what_is_not_a_saved_file_is_reported(data: bytes, why: str) -> None:
    with pytest.raises(PagesFileError, match=why):
        read(data).check()


@pytest.mark.parametrize(
    ("kind", "payload", "why"),
    [
        (b"P", bytes(20), "too short to name an object"),
        (b"P", OID + struct.pack("<I", 2**32 - 1), "exceeds the limit"),
        (b"P", OID + struct.pack("<I", LARGEST // 4096 + 1), "exceeds the limit"),
        (b"P", OID + struct.pack("<I", LARGEST // 4096), "too short for its number"),
        (b"P", OID + struct.pack("<IIII", 1, 7, 5, 0) + b"1234", "lengths do not match"),
        (b"P", OID + struct.pack("<IIII", 1, 7, 5000, 0) + bytes(5000), "lengths do not match"),
        (b"P", OID + struct.pack("<IIII", 1, 7, 0, 0), "lengths do not match"),
        (b"T", OID + struct.pack("<II", 2, 7), "does not match its number of tombstones"),
        (b"X", b"", "unknown record kind"),
    ],
)
def test_an_inconsistent_record_is_reported(kind: bytes, payload: bytes, why: str) -> None:
    with pytest.raises(PagesFileError, match=why):
        read(MAGIC + _records()[0] + record(kind, payload)).check()


@pytest.mark.parametrize("block", [b"\xff" * 50, bytes(4096), b"\x00"])
def test_a_page_that_is_not_what_its_checksum_says_is_not_given_out(block: bytes) -> None:
    batch = Pages(OID, [(7, len(block), google_crc32c.value(page(7)))], block)
    with pytest.raises(ValueError, match=f"page 7 of object {OID.hex()}"):
        batch.decoded(4096)


def test_the_bytes_in_the_document_are_such_a_file() -> None:
    dump = "".join(re.findall(r"^    ((?:[0-9a-f]{2} ?)+)", DOCUMENT.read_text(), re.MULTILINE))
    reader = read(bytes.fromhex(dump))
    assert reader.header["pool"] == "demo"
    pages, gone = reader.records()
    assert isinstance(pages, Pages)
    assert pages.decoded(4096) == {7: b"tmem" * 1024}
    assert gone == Tombstones((1).to_bytes(24, "big"), (8,))
    assert reader.check().records == 3
