"""The standard service `grpc.channelz.v1.Channelz`: gRPC's own view of connections, streams and calls.

For administrators only: it shows the addresses and certificates of all clients.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import grpc
from google.protobuf.message_factory import GetMessageClass
from grpc_channelz.v1 import channelz_pb2
from grpc_channelz.v1.channelz import aio

from tmemd.rpc.handler import fail, identify

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from grpc.aio import Server, ServicerContext

    from tmemd.rpc.service_context import ServiceContext

_SERVICE: Any = channelz_pb2.DESCRIPTOR.services_by_name["Channelz"]
SERVICE_NAME: str = _SERVICE.full_name


class Channelz:
    """Relays gRPC's own answers to administrators."""

    def __init__(self, service: ServiceContext) -> None:
        self.counts = service.counts
        self.identities = service.identities
        self.injections = service.injections
        self.lock_retry = service.lock_retry

    def add_to(self, server: Server) -> None:
        """Serve it."""
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                self._guarded(method.name),
                request_deserializer=GetMessageClass(method.input_type).FromString,
                response_serializer=GetMessageClass(method.output_type).SerializeToString,
            )
            for method in _SERVICE.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE_NAME, handlers),))

    def _guarded(self, name: str) -> Callable[[Any, ServicerContext[Any, Any]], Awaitable[Any]]:
        method, answer = f"Channelz.{name}", getattr(aio.ChannelzServicer, name)

        async def guarded(request: Any, context: ServicerContext[Any, Any]) -> Any:
            client = await identify(self, method, context)
            try:
                client.must_administer()
            except Exception as error:
                await fail(self, method, context, error)
            return await answer(request, context)

        return guarded
