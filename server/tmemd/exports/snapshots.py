"""Snapshots of exports: the device as it was at one instant, while its clients go on writing.

The block server copies pages before they change into the snapshot's own pool, `.save/NAME`, which is removed with it. A
snapshot that is not used for `LEASE` seconds ends: whoever opened it is gone. A daemon removes the snapshots of one
that died.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tmem_proto.v1 import admin_pb2 as pb
from tmemd.base.errors import BusyError, SnapshotError, UnknownPoolError
from tmemd.messages import pages as messages
from tmemd.store.api import PoolSettings
from tmemd.store.names import SNAPSHOTS

if TYPE_CHECKING:
    from tmemd.exports.catalogue import Entry
    from tmemd.store.api import BlockServer, BlockSnapshot, Store

LEASE = 60
_BATCH_PAGES = 256
_UNKNOWN = "unknown snapshot: it was closed, or not used for {} seconds"


@dataclass(slots=True)
class _Open:
    """An open snapshot. `server` is its own, if exports are not served."""

    export: str
    page_size: int
    snapshot: BlockSnapshot
    server: BlockServer | None
    until: float


class Snapshots:
    """All snapshots of a store's exports. Its methods may block, except for `expire`; call them in a thread."""

    def __init__(self, store: Store, lease: float = LEASE) -> None:
        self._store = store
        self._lease = lease
        self._open: dict[int, _Open] = {}

    def clear(self) -> None:
        """Remove the snapshots of a daemon that died."""
        for pool in self._store.pools():
            if pool.name.startswith(SNAPSHOTS):
                with suppress(UnknownPoolError):
                    pool.destroy()

    def check_not_open(self, export: str) -> None:
        """Raise if this export has an open snapshot."""
        if any(one.export == export for one in list(self._open.values())):
            raise BusyError(f"export {export!r} is being saved")

    def begin(self, entry: Entry, server: BlockServer | None) -> tuple[int, float]:
        """Open a snapshot; returns its id, and for how many seconds requests were paused."""
        entry.must_be_sound()
        self.check_not_open(entry.name)
        assert entry.pool is not None
        held = entry.pool.settings()
        settings = PoolSettings(kind="persistent", codec=held.codec, page_size=held.page_size)
        with suppress(UnknownPoolError):  # left behind if the last one ended while a lock of the arena was held
            self._store.find_pool(SNAPSHOTS + entry.name).destroy()
        shadow = self._store.create_pool(SNAPSHOTS + entry.name, settings)
        own = None
        try:
            if server is None:
                server = own = self._store.block_server([], 0, None, None)
                own.serve(entry.name, replace(entry.block_export(), draining=True, multi_conn=True, allow=()))
            snapshot = server.snapshot(entry.name, shadow)
        except BaseException:
            shadow.destroy()
            if own is not None:
                own.stop(0)
            raise
        number = secrets.randbits(63) | 1
        until = time.monotonic() + self._lease
        self._open[number] = _Open(entry.name, held.page_size, snapshot, own, until)
        return number, snapshot.paused

    def scan(self, request: pb.ScanSnapshotRequest) -> pb.ScanSnapshotResponse:
        """List some of its pages."""
        indices, following = self._renew_lease(request.id).snapshot.held(request.first)
        return pb.ScanSnapshotResponse(indices=indices, next=following or 0)

    def read(self, request: pb.ReadSnapshotRequest) -> pb.ReadSnapshotResponse:
        """Read pages."""
        found = self._renew_lease(request.id)
        indices = messages.indices(request, messages.batch_limit(found.page_size, _BATCH_PAGES))
        found.snapshot.release(request.done)
        pages = messages.pages(found.snapshot.fetch(indices), True, 0)
        return pb.ReadSnapshotResponse.FromString(messages.inside(pages))

    def close(self, request: pb.CloseSnapshotRequest) -> pb.CloseSnapshotResponse:
        """End a snapshot. Raises if it had ended already."""
        self._renew_lease(request.id)
        before = self._end(request.id)
        if before:
            raise SnapshotError(f"the snapshot has ended: {before}")
        return pb.CloseSnapshotResponse()

    def end_all(self, export: str | None = None) -> None:
        """End the snapshots of an export, or all."""
        for number, one in list(self._open.items()):
            if export in (None, one.export):
                self._end(number)

    async def expire(self, number: int) -> None:
        """End a snapshot when its lease runs out."""
        while (one := self._open.get(number)) is not None:
            left = one.until - time.monotonic()
            if left <= 0:
                await self._store.call(lambda: self._end(number))
                return
            await asyncio.sleep(left)

    def _renew_lease(self, number: int) -> _Open:
        one = self._open.get(number)
        if one is None:
            raise SnapshotError(_UNKNOWN.format(self._lease))
        one.until = time.monotonic() + self._lease
        return one

    def _end(self, number: int) -> str:
        """End a snapshot; returns why it had ended already, if so."""
        one = self._open.pop(number, None)
        if one is None:
            return ""
        before = one.snapshot.end()
        if one.server is not None:
            one.server.stop(0)
        return before
