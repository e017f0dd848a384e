"""Registers services so that malformed messages are the client's error, and replies may be serialized already.

gRPC itself answers malformed messages with UNKNOWN, like errors of the server.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message import DecodeError

from tmemd.messages.serialized import SerializedMessage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from grpc import aio

    Handlers = Mapping[str, grpc.RpcMethodHandler[Any, Any]]


@dataclass(frozen=True, slots=True)
class Malformed:
    """Stands in for a message that cannot be decoded."""

    why: str


def check_readable(request: object) -> None:
    """Raise ValueError for a malformed request."""
    if isinstance(request, Malformed):
        raise ValueError(request.why)


class Registrar:
    """The server as generated code sees it when it adds a service."""

    def __init__(self, server: aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _: Sequence[object]) -> None:
        """Generated code adds the same methods twice; the registered ones suffice."""

    def add_registered_method_handlers(self, service: str, handlers: Handlers) -> None:
        lenient = {name: _lenient(handler) for name, handler in handlers.items()}
        self._server.add_registered_method_handlers(service, lenient)


def _lenient(handler: Any) -> Any:
    options: dict[str, Any] = {
        "request_deserializer": _reader(handler.request_deserializer),
        "response_serializer": _writer(handler.response_serializer),
    }
    if handler.unary_unary:
        return grpc.unary_unary_rpc_method_handler(handler.unary_unary, **options)
    if handler.unary_stream:
        return grpc.unary_stream_rpc_method_handler(handler.unary_stream, **options)
    return grpc.stream_stream_rpc_method_handler(handler.stream_stream, **options)


def _reader(parse: Callable[[bytes], object]) -> Callable[[bytes], object]:
    def read(data: bytes) -> object:
        try:
            return parse(data)
        except DecodeError as error:
            return Malformed(str(error))

    return read


def _writer(serialize: Callable[[Any], bytes]) -> Callable[[Any], bytes]:
    def write(message: Any) -> bytes:
        return b"".join(message.parts) if isinstance(message, SerializedMessage) else serialize(message)

    return write
