"""Snapshots of a server's exports: the pages of one as they were at one instant. Sans-io, as `export_ops` is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tmem._protocol import messages
from tmem._protocol.operations import Steps, call
from tmem_proto.v1 import admin_pb2 as admin

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tmem._protocol.connection import ServerState


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A snapshot that is open.

    Attributes:
        id: Its number.
        page_size: Bytes of a page.
        paused: Seconds for which the requests of the export's clients were held up.
    """

    id: int
    page_size: int
    paused: float


def begin(server: ServerState, export: str) -> Steps[Snapshot]:
    """A snapshot of an export, as it is now."""
    reply = yield from call(server, "OpenSnapshot", admin.OpenSnapshotRequest(export=export))
    return Snapshot(reply.id, reply.export.block_size, reply.paused)


def scan(server: ServerState, snapshot: Snapshot, first: int) -> Steps[tuple[Sequence[int], int]]:
    """Some of the pages that it has, from `first` on, and where to go on: 0 at the end."""
    reply = yield from call(server, "ScanSnapshot", admin.ScanSnapshotRequest(id=snapshot.id, first=first))
    return reply.indices, reply.next


def read(server: ServerState, snapshot: Snapshot, indices: Sequence[int], done: int) -> Steps[messages.Got]:
    """Pages of it, by their position in `indices`. Those below `done` are not asked for again."""
    request = admin.ReadSnapshotRequest(id=snapshot.id, indices=indices, done=done)
    reply = yield from call(server, "ReadSnapshot", request)
    return messages.got(reply.pages, len(indices), snapshot.page_size)


def close(server: ServerState, snapshot: Snapshot) -> Steps[None]:
    """End it; an error where it had ended before, and is no image of one instant."""
    yield from call(server, "CloseSnapshot", admin.CloseSnapshotRequest(id=snapshot.id))
