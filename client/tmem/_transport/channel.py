"""The gRPC channel: its options, and its calls by name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError
from google.protobuf.message_factory import GetMessageClass

from tmem._protocol.messages import INTERNAL, MESSAGE_BYTES, UNAVAILABLE, Failure
from tmem_proto.v1 import admin_pb2, tmem_pb2

if TYPE_CHECKING:
    import grpc.aio

KEEPALIVE, KEEPALIVE_TIMEOUT = 30.0, 10.0
"""Seconds of silence during a call after which the server is asked whether it is there, and has to say so."""

# A ping after 30 s of silence while a call is in flight, so that a dead peer is found whatever the deadline;
# none on an idle connection, where a server may take it for abuse. Each channel has a connection of its own.
# No proxy of the environment: it is meant for the web, and knows no way to a server on this network or machine.
OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MESSAGE_BYTES),
    ("grpc.max_receive_message_length", MESSAGE_BYTES),
    ("grpc.keepalive_time_ms", int(KEEPALIVE * 1000)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT * 1000)),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_retries", 0),
    ("grpc.enable_http_proxy", 0),
)

# glibc gives the end of its heap back to the kernel when more is free there than twice the largest block that was
# mapped by itself and freed: at first less than a batch, which then costs hundreds of page faults a call. This teaches
# it to keep up to 16 MiB; nothing of the block is touched, and other C libraries do not care.
_LARGEST_BLOCK = 8 << 20
bytes(_LARGEST_BLOCK)

_REMOVED = "Stream removed"

_WATCH = "Watch"
_METHODS = {
    method.name: (f"/{service.full_name}/{method.name}", GetMessageClass(method.output_type))
    for file in (tmem_pb2, admin_pb2)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
}


def calls(channel: grpc.Channel | grpc.aio.Channel) -> dict[str, Any]:
    """The unary calls of both services by their name, of bytes.

    Messages are not left to gRPC, which takes whatever a signal handler raises meanwhile for a message that is no use.
    """
    return {name: channel.unary_unary(path) for name, (path, _) in _METHODS.items()}


def watch(channel: grpc.Channel | grpc.aio.Channel) -> Any:
    """The call that streams events: a request and events, as bytes."""
    return channel.unary_stream(_METHODS[_WATCH][0])


def read(method: str, message: bytes) -> Any:
    """The response of a call, or a Failure where it cannot be read."""
    try:
        return _METHODS[method][1].FromString(message)
    except DecodeError:
        return Failure(INTERNAL, f"the server sent a response to {method} that cannot be read")


def failure(error: grpc.RpcError) -> Failure:
    """What a failed call says.

    A server that stops breaks off what it has not begun as CANCELLED, which nobody here asked for; and gRPC has a name
    of its own for a connection that broke before a status came. Both mean that the server is away.
    """
    code: grpc.StatusCode = error.code()
    details = error.details() or code.name.lower().replace("_", " ")
    broken_off = code is grpc.StatusCode.CANCELLED or (code is grpc.StatusCode.UNKNOWN and details == _REMOVED)
    return Failure(UNAVAILABLE if broken_off else code.value[0], details)
