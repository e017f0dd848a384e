"""The byte examples of docs/protocol.md are what the messages they stand for look like on the wire."""

import re
from pathlib import Path

import google_crc32c
import lz4.block

from tmem_proto.v1 import tmem_pb2 as pb

DOC = Path(__file__).parents[3] / "docs" / "protocol.md"
ZEROS = bytes(4096)
BLOCK: bytes = lz4.block.compress(ZEROS, store_size=False)
OID = bytes(range(24))
SESSION = pb.Session(id=0x1122334455667788, epoch=2)
LZ4 = pb.ENCODING_LZ4
MESSAGES = [
    pb.OpenPoolRequest(name="fs0", settings=pb.PoolSettings(kind="ephemeral")),
    pb.PutRequest(session=SESSION, oid=OID, indices=[7], encoding=LZ4, lengths=[len(BLOCK)], pages=BLOCK),
    pb.PutResponse(outcomes=b"\1"),
    pb.GetRequest(session=SESSION, oid=OID, indices=[7, 8], accept=LZ4),
    pb.GetResponse(found=b"\1\0", encoding=LZ4, lengths=[len(BLOCK)], pages=BLOCK, checksums=[0x98F94189]),
    pb.Command(id=300, flush=pb.FlushRequest(session=SESSION, oid=OID, indices=[7])),
    pb.Reply(id=300, flush=pb.FlushResponse(found=1)),
]


def test_the_examples_are_the_bytes_of_their_messages() -> None:
    shown = re.findall(r"^(\w+) +([0-9a-f]+)$", DOC.read_text(), re.MULTILINE)
    assert shown == [(type(message).__name__, message.SerializeToString().hex()) for message in MESSAGES]


def test_the_page_of_the_examples_is_as_said() -> None:
    assert len(BLOCK) == 26
    assert lz4.block.decompress(BLOCK, uncompressed_size=4096) == ZEROS
    assert google_crc32c.value(ZEROS) == 0x98F94189


def test_every_outcome_is_in_the_text() -> None:
    text = DOC.read_text()
    refused = [number for name, number in pb.PutOutcome.items() if "REFUSED" in name]
    assert "| 4 to 14 |" in text
    assert "| 20 to 30 |" in text
    assert set(refused) <= set(range(4, 15))
