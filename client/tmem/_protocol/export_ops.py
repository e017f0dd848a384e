"""Exports of a server: block devices over NBD, as its administrators see them. Sans-io, as `page_ops` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tmem._model import errors
from tmem._model.sizes import parse_size
from tmem._protocol.operations import Steps, call
from tmem_proto.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from tmem._model.settings import ExportSpec
    from tmem._model.sizes import Size
    from tmem._protocol.connection import ServerState


_PAGE = 4096
_LARGEST_BLOCK = 262144


@dataclass(frozen=True, slots=True)
class ExportClient:
    """A connection that has an export open.

    Attributes:
        address: `unix`, or address and port.
        tls: Whether it is encrypted.
        identity: The name in its certificate; empty where it showed none.
    """

    address: str
    tls: bool
    identity: str


@dataclass(frozen=True, slots=True)
class Export:
    """A block device that a server exports over NBD: the pages of a persistent pool of its own.

    Attributes:
        name: As clients open it.
        size: Bytes of the device.
        reserve: Bytes of memory that it is sure of; 0 is none.
        codec: Of its pool.
        pages: It holds.
        footprint_bytes: That these take.
        draining: Whether it lets no new client in.
        multi_conn: Whether several connections may have it open at once.
        allowed: Names of the clients that may open it; None lets anybody in whom the address lets in.
        block_size: Bytes that are compressed together: a page of its pool.
        clients: That have it open.
        counters: What passed through it since the server started: `reads`, `read_bytes`, `writes`, `written_bytes`,
            `trims`, `trimmed_bytes`, `others`, `errors`, `no_space`, `io_errors`, `attached`, `refused`.
        damaged: Why the server cannot read its record, if it cannot: it is not served until it is resized.
    """

    name: str
    size: int
    reserve: int
    codec: str
    pages: int
    footprint_bytes: int
    draining: bool
    multi_conn: bool
    allowed: Sequence[str] | None
    block_size: int
    clients: Sequence[ExportClient]
    counters: Mapping[str, int]
    damaged: str = ""


def exports(server: ServerState) -> Steps[list[Export]]:
    """All exports."""
    return (yield from listing(server))[0]


def listing(server: ServerState) -> Steps[tuple[list[Export], list[str]]]:
    """All exports, and where they are served: nowhere, if the server has no NBD."""
    reply = yield from call(server, "ListExports", admin.ListExportsRequest())
    return [_export(one) for one in reply.exports], list(reply.addresses)


def create(server: ServerState, spec: ExportSpec) -> Steps[Export]:
    """A new export."""
    request = admin.CreateExportRequest(
        name=spec.name,
        size=spec.size,
        reserve=spec.reserve,
        codec=spec.codec,
        multi_conn=spec.multi_conn,
        allowed=None if spec.allow is None else admin.Allowed(clients=names(spec.allow)),
        block_size=_block_size(spec.block_size),
    )
    return _export((yield from _of(server, spec.name, "CreateExport", request)).export)


def remove(server: ServerState, name: str, force: bool) -> Steps[int]:
    """Remove an export and what it holds; the pages it had."""
    request = admin.RemoveExportRequest(name=name, force=force)
    dropped: int = (yield from _of(server, name, "RemoveExport", request)).dropped
    return dropped


def resize(server: ServerState, name: str, size: Size) -> Steps[Export]:
    """Another size for an export."""
    request = admin.ResizeExportRequest(name=name, size=parse_size(size, "size"))
    return _export((yield from _of(server, name, "ResizeExport", request)).export)


def drain(server: ServerState, name: str, undo: bool) -> Steps[Export]:
    """Let no new client of an export in, or let them in again."""
    request = admin.DrainExportRequest(name=name, undo=undo)
    return _export((yield from _of(server, name, "DrainExport", request)).export)


def allow(server: ServerState, name: str, clients: Sequence[str], undo: bool, anyone: bool) -> Steps[Export]:
    """Say who may open an export."""
    request = admin.AllowExportRequest(name=name, clients=names(clients), undo=undo, anyone=anyone)
    return _export((yield from _of(server, name, "AllowExport", request)).export)


def names(clients: Sequence[str]) -> list[str]:
    """Names of clients; one text is no list of them."""
    if isinstance(clients, str) or not all(isinstance(name, str) for name in clients):
        raise TypeError(f"clients must be names in a list, not {clients!r}")
    return list(clients)


def _of(server: ServerState, name: str, method: str, request: Any) -> Steps[Any]:
    try:
        return (yield from call(server, method, request))
    except errors.UnknownPoolError:
        raise errors.UnknownExportError(name) from None


def _block_size(size: int) -> int:
    """As the server takes it, which says what is allowed; a field of the message has room for no more than this."""
    if not 0 < size <= _LARGEST_BLOCK:
        raise ValueError(f"block_size is {size} bytes; it must be a power of two from {_PAGE} to {_LARGEST_BLOCK}")
    return size


def _export(message: admin.Export) -> Export:
    clients = [ExportClient(one.address, one.tls, one.identity) for one in message.clients]
    return Export(
        name=message.name,
        size=message.size,
        reserve=message.reserve,
        codec=message.codec,
        pages=message.pages,
        footprint_bytes=message.footprint_bytes,
        draining=message.draining,
        multi_conn=message.multi_conn,
        allowed=list(message.allowed.clients) if message.HasField("allowed") else None,
        block_size=message.block_size or _PAGE,
        clients=clients,
        counters=dict(message.counters),
        damaged=message.damaged,
    )
