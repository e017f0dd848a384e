"""Converts messages to the store's arguments and back. Invalid ones are a `ValueError`, before anything is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

from tmem_proto.v1 import admin_pb2
from tmem_proto.v1 import tmem_pb2 as pb
from tmem_proto.varint import varint
from tmemd.messages.serialized import SerializedMessage
from tmemd.store.api import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message

    from tmemd.store.api import Fetched

OID_BYTES = 24
HAS_MOST = 65536
FLUSH_MOST = 8192
"""Most indices of a flush: they fit into the smallest `max_message`."""
BATCH_BYTES = 2 << 20
"""Most bytes of decoded pages in a batch: with headers they fit into gRPC's default message of 4 MiB."""

_BYTES_FIELD = 2


def _tag(field: FieldDescriptor) -> bytes:
    return bytes([field.number << 3 | _BYTES_FIELD])


# Tags of fields of bytes; a varint with the length follows.
_SNAPSHOT_PAGES = _tag(admin_pb2.ReadSnapshotResponse.DESCRIPTOR.fields_by_name["pages"])
_PAGES = _tag(pb.GetResponse.DESCRIPTOR.fields_by_name["pages"])
_BODIES = {field.name: _tag(field) for field in pb.Reply.DESCRIPTOR.oneofs_by_name["body"].fields}

_M = TypeVar("_M", "pb.PutRequest", "pb.GetRequest", "pb.FlushRequest", "admin_pb2.ReadSnapshotRequest")


def batch_limit(page_size: int, batch_pages: int) -> int:
    """The most pages that a batch may have."""
    return min(batch_pages, BATCH_BYTES // page_size)


def oid(given: bytes) -> bytes:
    if len(given) != OID_BYTES:
        raise ValueError(f"oid is {len(given)} bytes long; it must be {OID_BYTES}")
    return given


def indices(request: _M, limit: int) -> list[int]:
    """The indices of a batch, at most `limit` and all different."""
    found = list(request.indices)
    if len(found) > limit:
        raise ValueError(f"the batch has {len(found)} pages; at most {limit} are taken")
    if len(set(found)) != len(found):
        raise ValueError("an index appears twice")
    return found


def batch(request: pb.PutRequest, page_size: int, limit: int) -> Batch:
    """The pages of a put."""
    chosen = indices(request, limit)
    size = len(request.pages)
    if request.encoding == pb.ENCODING_RAW:
        if request.lengths:
            raise ValueError("raw pages have no lengths")
        if size != len(chosen) * page_size:
            raise ValueError(f"{len(chosen)} pages of {page_size} bytes are not {size} bytes")
        return Batch(oid(request.oid), chosen, None, request.pages)
    if request.encoding != pb.ENCODING_LZ4:
        raise ValueError(f"unknown encoding {request.encoding}")
    lengths = list(request.lengths)
    if len(lengths) != len(chosen):
        raise ValueError(f"there are {len(lengths)} lengths for {len(chosen)} pages")
    if sum(lengths) != size:
        raise ValueError(f"the lengths sum to {sum(lengths)}; there are {size} bytes")
    if lengths and not 0 < min(lengths) <= max(lengths) <= page_size:
        raise ValueError(f"a length is not 1 to {page_size}")
    return Batch(oid(request.oid), chosen, lengths, request.pages)


def stale_put(count: int) -> pb.PutResponse:
    return pb.PutResponse(outcomes=bytes([pb.PUT_OUTCOME_STALE]) * count)


def pages(fetched: Fetched, lz4: bool, acknowledgement: int) -> SerializedMessage:
    """A `GetResponse`."""
    head = pb.GetResponse(found=fetched.found, acknowledgement=acknowledgement)
    if lz4:
        head.encoding = pb.ENCODING_LZ4
        head.lengths.extend(fetched.lengths)
        head.checksums.extend(fetched.checksums)
    if not fetched.pages:
        return SerializedMessage((head.SerializeToString(),))
    return SerializedMessage((head.SerializeToString(), _PAGES, varint(len(fetched.pages)), fetched.pages))


def inside(message: SerializedMessage) -> bytes:
    """A `ReadSnapshotResponse` of a `GetResponse`."""
    return b"".join((_SNAPSHOT_PAGES, varint(sum(map(len, message.parts))), *message.parts))


def reply(number: int, body: str, response: Message | SerializedMessage) -> pb.Reply | SerializedMessage:
    """The reply to command `number`."""
    if not isinstance(response, SerializedMessage):
        return pb.Reply(id=number, **{body: response})  # type: ignore[arg-type]
    head = b"\x08" + varint(number) if number else b""
    return SerializedMessage((head, _BODIES[body], varint(sum(map(len, response.parts))), *response.parts))


def wants_lz4(request: pb.GetRequest) -> bool:
    if request.accept not in (pb.ENCODING_RAW, pb.ENCODING_LZ4):
        raise ValueError(f"unknown encoding {request.accept}")
    return request.accept == pb.ENCODING_LZ4


def positions(found: bytes, chosen: Sequence[int]) -> list[int]:
    """The indices of the hits."""
    return [index for index, outcome in zip(chosen, found, strict=True) if outcome == pb.GET_OUTCOME_HIT]
