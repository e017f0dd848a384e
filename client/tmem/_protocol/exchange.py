"""Commands of an `Exchange` stream and their replies. No socket.

A stream takes about two thirds of the time of a unary call, and carries out one command at a time. So it carries calls
of one batch; the batches of a large call go as unary calls, side by side. Exclusive gets are unary too: on a stream the
next mutation would acknowledge them, whoever sent it, before their pages were found to be sound.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from google.protobuf.message import DecodeError

from tmem._protocol.messages import INTERNAL, UNAVAILABLE, Failure
from tmem_proto.v1 import tmem_pb2 as pb
from tmem_proto.varint import varint

if TYPE_CHECKING:
    from google.protobuf.message import Message

EXCHANGE = "/tmem.v1.Tmem/Exchange"
IDLE = 1.0
"""Seconds after which a stream that nobody uses is ended: to the server it is a call in flight."""

ENDED = Failure(UNAVAILABLE, "the server ended the stream")

_BROKEN = frozenset({1, 2, 13})  # CANCELLED, UNKNOWN, INTERNAL

_SHORT = 64
"""Pages of a command that shares its stream: one with more would hold up those behind it."""

_FIELDS = {"Put": "put", "Get": "get", "Flush": "flush", "FlushObject": "flush_object", "Has": "has"}
_BYTES_FIELD = 2
# What stands before the body of a command: its field's number, and that bytes of some length follow.
_TAGS = {
    method: bytes([pb.Command.DESCRIPTOR.fields_by_name[field].number << 3 | _BYTES_FIELD])
    for method, field in _FIELDS.items()
}


def suits(method: str, request: Any) -> bool:
    """Whether a call may go as a command."""
    return method in _FIELDS and not (method == "Get" and request.exclusive)


def is_short(method: str, request: Any) -> bool:
    """Whether a call may go as a command among others."""
    return suits(method, request) and method != "FlushObject" and (method == "Has" or len(request.indices) <= _SHORT)


def command(number: int, method: str, request: Message) -> bytes:
    """A `Command`, serialized: as a message it would hold a copy of the request, pages and all."""
    return b"".join(command_parts(number, method, request))


def command_parts(number: int, method: str, request: Message) -> tuple[bytes, bytes]:
    """The same, what stands before the request and the request itself."""
    body = request.SerializeToString()
    return b"\x08" + varint(number) + _TAGS[method] + varint(len(body)), body


def read(message: bytes) -> pb.Reply | Failure:
    """A `Reply` as it came."""
    try:
        return pb.Reply.FromString(message)
    except DecodeError:
        return Failure(INTERNAL, "the server sent a reply that cannot be read")


def answer(reply: pb.Reply, method: str) -> Any:
    """The response in a reply to a command, or its Failure."""
    if reply.code:
        return Failure(reply.code, reply.error)
    if reply.WhichOneof("body") != _FIELDS[method]:
        return Failure(INTERNAL, f"the server answered {method} with {reply.WhichOneof('body')}")
    return getattr(reply, _FIELDS[method])


def broken(why: Failure) -> Failure:
    """What a stream that failed means for its commands. gRPC has several names for a connection that broke."""
    return Failure(UNAVAILABLE, why.details) if why.code in _BROKEN else why
