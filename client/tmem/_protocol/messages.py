"""Pages to messages and back (`tmem.v1`): no socket, no clock, no state.

A call of any size becomes batches of at most 128 pages and 512 KiB of pages, so that one is compressed while those
before it are at the server. Pages go as LZ4 blocks or as they are; a block that came out as long as a page is sent as
the page itself. What cannot be read in a reply is `InternalError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import lz4.block

from tmem._model import checks, errors
from tmem._model.settings import PoolSettings
from tmem._protocol.codec import codec
from tmem_proto.v1 import tmem_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from google.protobuf.descriptor import FieldDescriptor
    from google.protobuf.message import Message

    from tmem._model.checks import Page

Wire: TypeAlias = Literal["lz4", "raw"]

BATCH_PAGES = 128
BATCH_BYTES = 1 << 19
MESSAGE_BYTES = 8 << 20
HAS_PAGES = 65536

_REFUSALS = [code for name, code in pb.PutOutcome.items() if name.startswith("PUT_OUTCOME_REFUSED_")]
# The bytes with which a put is answered unless it is stale.
_PUT_CODES = bytes([pb.PUT_OUTCOME_STORED, pb.PUT_OUTCOME_REPLACED, *_REFUSALS, *(code + 16 for code in _REFUSALS)])

# Settings of a pool for which the wire takes nothing to mean a default.
_NOT_EMPTY = {"kind", "codec", "allocator"}
_NOT_ZERO = {"page_size", "weight"}

# google.rpc.Code, as far as it is treated in some way of its own.
NOT_FOUND, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, ABORTED, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = (
    5,
    4,
    8,
    10,
    12,
    13,
    14,
)
# After these a mutation may have happened, or may yet.
AMBIGUOUS = frozenset({1, 2, DEADLINE_EXCEEDED, ABORTED, INTERNAL, UNAVAILABLE})
# The table of gRPC codes and exceptions; the others are InternalError.
_EXCEPTIONS: dict[int, Callable[[str], Exception]] = {
    3: ValueError,
    DEADLINE_EXCEEDED: errors.UnavailableError,
    NOT_FOUND: errors.UnknownPoolError,
    6: errors.MismatchError,
    7: errors.DeniedError,
    8: errors.ExhaustedError,
    9: errors.MismatchError,
    ABORTED: errors.UnavailableError,
    11: ValueError,
    12: lambda _: errors.TmemError("the server does not know this call: it is of another version"),
    UNAVAILABLE: errors.UnavailableError,
    15: lambda why: errors.ArenaError("", why),
    16: errors.DeniedError,
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A call that the server, or the way to it, failed: a google.rpc.Code and its text."""

    code: int
    details: str

    def exception(self) -> Exception:
        """What the SDK raises for it."""
        return _EXCEPTIONS.get(self.code, errors.InternalError)(self.details or f"gRPC code {self.code}")


@dataclass(frozen=True, slots=True)
class Got:
    """A batch of a get: pages by their position in the request, and the positions of those that were damaged."""

    pages: list[tuple[int, bytes]]
    corrupt: list[int]


def batch_pages(page_size: int, limit: int = BATCH_PAGES) -> int:
    """The most pages of that size in one request, to a server that takes `limit`."""
    return max(1, min(BATCH_PAGES, limit or BATCH_PAGES, BATCH_BYTES // page_size))


def put_request(oid: bytes, indices: Sequence[int], pages: Sequence[Page], encoding: Wire) -> pb.PutRequest:
    """A batch of pages; all have the same length."""
    if encoding == "raw":
        return pb.PutRequest(oid=oid, indices=indices, encoding=pb.ENCODING_RAW, pages=b"".join(pages))
    lengths, blob = codec().pack(pages, len(pages[0])) if pages else ([], b"")
    return _lz4_request(oid, indices, lengths, blob)


def put_lz4_request(oid: bytes, indices: Sequence[int], blocks: Sequence[memoryview], page_size: int) -> pb.PutRequest:
    """A batch of pages that are LZ4 blocks already."""
    shorter = [_shorter(block, page_size) for block in blocks]
    return _lz4_request(oid, indices, list(map(len, shorter)), b"".join(shorter))


def check_block(index: int, block: memoryview, page_size: int) -> None:
    """Raise ValueError unless the block decodes to a page."""
    try:
        size = len(lz4.block.decompress(block, uncompressed_size=page_size))
    except (lz4.block.LZ4BlockError, ValueError) as error:
        raise ValueError(f"block {index} is not an LZ4 block of {page_size} bytes: {error}") from None
    if size != page_size:
        raise ValueError(f"block {index} decodes to {size} bytes; the pool's pages are {page_size}")


def put_codes(reply: pb.PutResponse, count: int) -> bytes:
    """One code of an `Outcome` a page."""
    if len(reply.outcomes) != count or reply.outcomes.translate(None, _PUT_CODES):
        raise errors.InternalError(f"the server answered a put of {count} pages with {reply.outcomes.hex()}")
    return reply.outcomes


def is_stale(reply: Message) -> bool:
    """Whether the server dropped the mutation because it is of an older epoch."""
    if isinstance(reply, pb.PutResponse):
        return pb.PUT_OUTCOME_STALE in reply.outcomes
    return bool(getattr(reply, "stale", False))


def get_request(oid: bytes, indices: Sequence[int], accept: Wire, exclusive: bool) -> pb.GetRequest:
    """A batch of a get."""
    encoding = pb.ENCODING_LZ4 if accept == "lz4" else pb.ENCODING_RAW
    return pb.GetRequest(oid=oid, indices=indices, accept=encoding, exclusive=exclusive)


def got(reply: pb.GetResponse, count: int, page_size: int) -> Got:
    """The pages of a reply to a get of `count` pages."""
    found = reply.found
    hits: Sequence[int] = range(len(found))
    corrupt: list[int] = []
    if found.count(pb.GET_OUTCOME_HIT) != len(found):
        hits = [at for at, outcome in enumerate(found) if outcome == pb.GET_OUTCOME_HIT]
        corrupt = [at for at, outcome in enumerate(found) if outcome == pb.GET_OUTCOME_CORRUPT]
    if len(found) != count:
        raise errors.InternalError(f"the server answered a get of {count} pages with {len(found)}")
    # Each look at a field of bytes copies it.
    whole = reply.pages
    if reply.encoding != pb.ENCODING_RAW:
        return _decoded(reply, whole, hits, corrupt, page_size)
    if len(whole) != len(hits) * page_size:
        raise errors.InternalError(f"the server sent {len(whole)} bytes for {len(hits)} pages")
    return Got([(at, whole[n * page_size : (n + 1) * page_size]) for n, at in enumerate(hits)], corrupt)


def settings_message(settings: PoolSettings) -> pb.PoolSettings:
    """Settings, for OpenPool. What the wire takes for a default, such as an empty codec, is refused here."""
    given = {field.name: _setting(field, getattr(settings, field.name)) for field in pb.PoolSettings.DESCRIPTOR.fields}
    if given["weight"] == 1:
        # The usual weight is left to the server, which may have another for this client's pools.
        given["weight"] = 0
    return pb.PoolSettings(**given)


def _setting(field: FieldDescriptor, value: Any) -> Any:
    if field.type == field.TYPE_BOOL:
        return checks.flag(value, field.name)
    if field.type != field.TYPE_STRING:
        high = 2**64 - 1 if field.type == field.TYPE_UINT64 else checks.MAX_INDEX
        return checks.number(value, field.name, low=field.name in _NOT_ZERO, high=high)
    if not isinstance(value, str):
        raise TypeError(f"{field.name} must be a str, not {type(value).__name__}")
    if not value and field.name in _NOT_EMPTY:
        raise ValueError("kind, codec and allocator cannot be empty")
    return value


def settings_dict(message: pb.PoolSettings) -> dict[str, Any]:
    """The fields of `PoolSettings`."""
    return {name: getattr(message, name) for name in PoolSettings.__slots__}


def _lz4_request(oid: bytes, indices: Sequence[int], lengths: list[int], blob: bytes) -> pb.PutRequest:
    return pb.PutRequest(oid=oid, indices=indices, encoding=pb.ENCODING_LZ4, lengths=lengths, pages=blob)


def _shorter(block: memoryview, page_size: int) -> bytes:
    if len(block) < page_size:
        return bytes(block)
    page: bytes = lz4.block.decompress(block, uncompressed_size=page_size)
    return page


def _decoded(reply: pb.GetResponse, whole: bytes, hits: Sequence[int], corrupt: list[int], page_size: int) -> Got:
    lengths, checksums = list(reply.lengths), list(reply.checksums)
    if not len(lengths) == len(checksums) == len(hits) or sum(lengths) != len(whole):
        raise errors.InternalError(f"the server sent {len(lengths)} blocks for {len(hits)} pages")
    pages = []
    for at, page in zip(hits, codec().unpack(whole, lengths, checksums, page_size), strict=True):
        if page is None:
            corrupt.append(at)
        else:
            pages.append((at, page))
    return Got(pages, sorted(corrupt))
