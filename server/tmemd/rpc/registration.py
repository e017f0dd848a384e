"""Registers services so that bytes which are no message are answered as the client's fault, and answers may be bytes.

gRPC itself answers what cannot be read with UNKNOWN, as it does for faults of the server.
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
    """What a handler is given in place of a message that cannot be read."""

    why: str


def check_readable(request: object) -> None:
    """Raise ValueError for a request that could not be read."""
    if isinstance(request, Malformed):
        raise ValueError(request.why)


class Registrar:
    """What generated code needs of a server that it adds a service to."""

    def __init__(self, server: aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, _: Sequence[object]) -> None:
        """The same methods once more, for servers that know no registered ones."""

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
