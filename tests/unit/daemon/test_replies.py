"""Replies that the daemon writes without their messages read as the messages do."""

import pytest

from tmem_proto.v1 import tmem_pb2 as pb
from tmemd.messages import pages as messages
from tmemd.messages.serialized import SerializedMessage
from tmemd.store.api import Fetched

FETCHED = Fetched(b"\1\0\1", [300, 4096], [2**32 - 1, 0], [1, 2], bytes(range(256)) * 17 + bytes(44))
LZ4 = pb.GetResponse(
    found=FETCHED.found, encoding=pb.ENCODING_LZ4, lengths=[300, 4096], checksums=[2**32 - 1, 0], pages=FETCHED.pages
)
RAW = pb.GetResponse(found=FETCHED.found, pages=FETCHED.pages)
MISSES = pb.GetResponse(found=b"\0\0", encoding=pb.ENCODING_LZ4)


@pytest.mark.parametrize(
    ("fetched", "lz4", "message"),
    [(FETCHED, True, LZ4), (FETCHED, False, RAW), (Fetched(b"\0\0", [], [], [], b""), True, MISSES)],
    ids=["lz4", "raw", "misses"],
)
@pytest.mark.parametrize("acknowledgement", [0, 2**63 + 5])
def test_a_get_reads_as_its_message(fetched: Fetched, lz4: bool, message: pb.GetResponse, acknowledgement: int) -> None:
    response = messages.pages(fetched, lz4, acknowledgement)
    expected = pb.GetResponse()
    expected.CopyFrom(message)
    expected.acknowledgement = acknowledgement
    assert pb.GetResponse.FromString(b"".join(response.parts)) == expected
    for number in (0, 1, 127, 128, 2**64 - 1):
        reply = messages.reply(number, "get", response)
        assert isinstance(reply, SerializedMessage)
        assert pb.Reply.FromString(b"".join(reply.parts)) == pb.Reply(id=number, get=expected)


def test_other_replies_are_messages() -> None:
    assert messages.reply(5, "put", pb.PutResponse(outcomes=b"\1")) == pb.Reply(
        id=5, put=pb.PutResponse(outcomes=b"\1")
    )
