"""Requests and replies of the wire, without any socket."""

from __future__ import annotations

import google_crc32c
import lz4.block
import pytest

import tmem
from tests.lib.support import PAGE, noise, page
from tmem._model.outcome import OUTCOMES
from tmem._protocol import messages
from tmem_proto.v1 import tmem_pb2 as pb

OID = b"o" * 24


def views(*pages: bytes) -> list[memoryview]:
    return [memoryview(page) for page in pages]


@pytest.mark.parametrize(
    ("page_size", "limit", "most"),
    [(4096, 256, 128), (4096, 0, 128), (4096, 64, 64), (8192, 256, 64), (65536, 256, 8), (262144, 256, 2)],
)
def test_a_batch_has_128_pages_and_half_a_mebibyte_at_most(page_size: int, limit: int, most: int) -> None:
    assert messages.batch_pages(page_size, limit) == most


def test_raw_pages_go_one_after_another() -> None:
    request = messages.put_request(OID, [7, 9], views(page(7), page(9)), "raw")
    assert (request.oid, list(request.indices), request.encoding) == (OID, [7, 9], pb.ENCODING_RAW)
    assert (request.pages, list(request.lengths)) == (page(7) + page(9), [])


def test_lz4_sends_what_does_not_compress_as_it_is() -> None:
    request = messages.put_request(OID, [7, 8], views(page(7), noise(8)), "lz4")
    first, second = request.lengths
    assert request.encoding == pb.ENCODING_LZ4
    assert first < PAGE == second
    assert lz4.block.decompress(request.pages[:first], uncompressed_size=PAGE) == page(7)
    assert request.pages[first:] == noise(8)


def test_a_block_as_long_as_a_page_is_sent_as_the_page() -> None:
    block = lz4.block.compress(noise(1), store_size=False)
    assert len(block) > PAGE
    request = messages.put_lz4_request(OID, [7], views(block), PAGE)
    assert (list(request.lengths), request.pages) == ([PAGE], noise(1))


@pytest.mark.parametrize(
    ("sent", "reason", "flushed"),
    [
        (pb.PUT_OUTCOME_REFUSED_QUOTA, "quota", False),
        (pb.PUT_OUTCOME_REFUSED_FROZEN + 16, "frozen", True),
        (pb.PUT_OUTCOME_REFUSED_POOR_COMPRESSION, "poor_compression", False),
        (pb.PUT_OUTCOME_REFUSED_MEMORY + 16, "memory", True),
        (pb.PUT_OUTCOME_REFUSED_NO_SPACE, "no_space", False),
    ],
)
def test_outcomes_of_a_put(sent: int, reason: str, flushed: bool) -> None:
    reply = pb.PutResponse(outcomes=bytes([pb.PUT_OUTCOME_STORED, pb.PUT_OUTCOME_REPLACED, sent]))
    stored, replaced, refused = (OUTCOMES[code] for code in messages.put_codes(reply, 3))
    assert (stored.stored, stored.replaced, replaced.replaced) == (True, False, True)
    assert (refused.stored, refused.reason, refused.old_flushed) == (False, reason, flushed)


@pytest.mark.parametrize("outcomes", [b"", b"\1", b"\1\1\1", b"\0\1", b"\1\x0f", b"\1\xff"])
def test_outcomes_that_make_no_sense_are_an_error(outcomes: bytes) -> None:
    with pytest.raises(tmem.InternalError, match="a put of 2 pages"):
        messages.put_codes(pb.PutResponse(outcomes=outcomes), 2)


def test_pages_of_a_reply_are_placed_by_what_was_found() -> None:
    reply = pb.GetResponse(found=b"\0\1\2\1", pages=page(1) + page(3))
    assert messages.got(reply, 4, PAGE) == messages.Got([(1, page(1)), (3, page(3))], [2])


def test_blocks_of_a_reply_are_decoded_and_verified() -> None:
    block = lz4.block.compress(page(0), store_size=False)
    sums = [google_crc32c.value(page(0)), google_crc32c.value(noise(1)), 0]
    lengths = [len(block), PAGE, len(block)]
    reply = pb.GetResponse(
        found=b"\1\1\1", encoding=pb.ENCODING_LZ4, lengths=lengths, pages=block + noise(1) + block, checksums=sums
    )
    assert messages.got(reply, 3, PAGE) == messages.Got([(0, page(0)), (1, noise(1))], [2])


def test_a_block_that_does_not_decode_is_corrupt() -> None:
    reply = pb.GetResponse(found=b"\1", encoding=pb.ENCODING_LZ4, lengths=[9], pages=b"\xff" * 9, checksums=[0])
    assert messages.got(reply, 1, PAGE) == messages.Got([], [0])


@pytest.mark.parametrize(
    "reply",
    [
        pb.GetResponse(found=b"\1", pages=page(0)),
        pb.GetResponse(found=b"\1\1", pages=page(0)),
        pb.GetResponse(found=b"\1\0", encoding=pb.ENCODING_LZ4, lengths=[5], pages=b"1234", checksums=[0]),
        pb.GetResponse(found=b"\1\0", encoding=pb.ENCODING_LZ4, lengths=[4], pages=b"1234"),
    ],
)
def test_a_reply_that_does_not_add_up_is_an_error(reply: pb.GetResponse) -> None:
    with pytest.raises(tmem.InternalError):
        messages.got(reply, 2, PAGE)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (3, ValueError),
        (4, tmem.UnavailableError),
        (5, tmem.UnknownPoolError),
        (7, tmem.DeniedError),
        (8, tmem.ExhaustedError),
        (9, tmem.MismatchError),
        (13, tmem.InternalError),
        (14, tmem.UnavailableError),
        (15, tmem.ArenaError),
        (99, tmem.InternalError),
    ],
)
def test_codes_of_grpc_are_errors_of_the_sdk(code: int, error: type[Exception]) -> None:
    raised = messages.Failure(code, "why").exception()
    assert type(raised) is error
    assert "why" in str(raised)
