"""Manages exports: block devices over NBD on the pools of the catalogue. One process of an arena does: worker 0.

Requests are a method name and bytes, and so are replies, because they may come from another worker over the control
channel. Calls run one after another. Each changes the catalogue, and the block server follows; it is asked first only
where it may refuse: when an export shrinks or is removed. `start` cleans up after interrupted changes, then serves all
exports.
"""

from __future__ import annotations

import asyncio
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from tmem_proto.v1 import admin_pb2 as pb
from tmemd.base.errors import BusyError
from tmemd.exports.catalogue import OID, Catalogue, ExportSpec, check_allowed, check_size
from tmemd.exports.reconcile import reconcile
from tmemd.exports.snapshots import LEASE, Snapshots
from tmemd.store.api import ExportStatus

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tmemd.exports.catalogue import Entry
    from tmemd.store.api import BlockServer, CertificateSource, GatewayRefusal, Store

_NOBODY = ExportStatus((), {})
_LOOK_PAGES = 1 << 20
EVERYBODY = "*"
"""Stands for anybody in a list of clients. No client has this name."""


class ExportManager:
    """All exports, and the block server if there is one."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._catalogue = Catalogue(store)
        self._snapshots = Snapshots(store)
        self._server: BlockServer | None = None
        self._lock = asyncio.Lock()
        self._calls: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "CreateExport": (pb.CreateExportRequest, self._create),
            "ListExports": (pb.ListExportsRequest, self._list),
            "RemoveExport": (pb.RemoveExportRequest, self._remove),
            "ResizeExport": (pb.ResizeExportRequest, self._resize),
            "DrainExport": (pb.DrainExportRequest, self._drain),
            "AllowExport": (pb.AllowExportRequest, self._allow),
            "OpenSnapshot": (pb.OpenSnapshotRequest, self._open_snapshot),
            "CloseSnapshot": (pb.CloseSnapshotRequest, self._snapshots.close),
        }
        self._readings: dict[str, tuple[Any, Callable[[Any], Any]]] = {
            "ScanSnapshot": (pb.ScanSnapshotRequest, self._snapshots.scan),
            "ReadSnapshot": (pb.ReadSnapshotRequest, self._snapshots.read),
            "CheckUnused": (pb.RemoveExportRequest, self._check_unused),
        }
        self._expiring: set[asyncio.Task[None]] = set()

    @property
    def addresses(self) -> Sequence[str]:
        return self._server.addresses if self._server is not None else ()

    async def start(
        self,
        listen: Sequence[str],
        poll: int,
        tls: CertificateSource | None = None,
        refuse: GatewayRefusal | None = None,
    ) -> None:
        """Clean up after interrupted changes; serve on these addresses, if any."""
        await self._store.call(self._catalogue.clean_up)
        await self._store.call(self._snapshots.clear)
        if listen:
            await self._store.call(lambda: self._serve(self._store.block_server(listen, poll, tls, refuse)))

    async def answer(self, method: str, request: bytes) -> bytes:
        """Carry out a call."""
        if method in self._readings:
            kind, carry_out = self._readings[method]
            return await self._store.call(lambda: carry_out(kind.FromString(request)).SerializeToString())
        kind, carry_out = self._calls[method]
        async with self._lock:
            answer = await self._store.call(lambda: carry_out(kind.FromString(request)))
        if isinstance(answer, pb.OpenSnapshotResponse):
            expiring = asyncio.create_task(self._snapshots.expire(answer.id))
            self._expiring.add(expiring)
            expiring.add_done_callback(self._expiring.discard)
        return bytes(answer.SerializeToString())

    def status(self) -> dict[str, ExportStatus]:
        """Every served export, by name: its clients and counters."""
        return {} if self._server is None else self._server.status()

    def counters(self) -> dict[str, int]:
        """Counters of all connections; empty if none are served."""
        return {} if self._server is None else self._server.counters()

    async def stop(self, grace: float) -> bool:
        """Stop serving; returns whether every client's requests finished in time."""
        for expiring in self._expiring:
            expiring.cancel()
        await asyncio.to_thread(self._snapshots.end_all)
        server = self._server
        return server is None or await asyncio.to_thread(server.stop, grace)

    def close(self) -> None:
        """Stop at once, so that the arena can be closed."""
        self._snapshots.end_all()
        if self._server is not None:
            self._server.stop(0)

    def _serve(self, server: BlockServer) -> None:
        self._server = server
        reconcile(self._catalogue, server)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Have the block server follow the catalogue, whatever became of the change."""
        try:
            yield
        finally:
            if self._server is not None:
                reconcile(self._catalogue, self._server)

    def _create(self, request: pb.CreateExportRequest) -> pb.CreateExportResponse:
        spec = _spec(request)
        with self._changing():
            entry = self._catalogue.create(spec)
        return pb.CreateExportResponse(export=_shown(entry, _NOBODY))

    def _list(self, _: pb.ListExportsRequest) -> pb.ListExportsResponse:
        status = self.status()
        shown = [_shown(entry, status.get(entry.name, _NOBODY)) for entry in self._catalogue.entries()]
        return pb.ListExportsResponse(exports=shown, addresses=self.addresses)

    def _remove(self, request: pb.RemoveExportRequest) -> pb.RemoveExportResponse:
        entry = self._catalogue.find(request.name)
        if not request.force:
            self._snapshots.check_not_open(entry.name)
        self._snapshots.end_all(entry.name)
        with self._changing():
            if self._server is not None and entry.name in self.status():
                self._server.remove(entry.name, request.force)
            return pb.RemoveExportResponse(dropped=self._catalogue.remove(entry.name))

    def _resize(self, request: pb.ResizeExportRequest) -> pb.ResizeExportResponse:
        check_size(request.size)
        entry = self._catalogue.find(request.name)
        change = self._shrink if request.size < entry.size else self._grow
        if entry.damaged:
            change = self._renew
        with self._changing():
            entry = change(entry, request.size)
        return pb.ResizeExportResponse(export=self._show(entry))

    def _renew(self, entry: Entry, size: int) -> Entry:
        """Replace a damaged record: the export gets that size, and nobody may open it yet."""
        if entry.pool is None:
            entry.must_be_sound()
        _must_be_empty(entry, size)
        return self._catalogue.change(entry, size=size, draining=False)

    def _grow(self, entry: Entry, size: int) -> Entry:
        return entry if size == entry.size else self._catalogue.change(entry, size=size)

    def _shrink(self, entry: Entry, size: int) -> Entry:
        """Shrink, if nothing is stored beyond the new end and no client is connected."""
        self._snapshots.check_not_open(entry.name)
        if self._server is not None:
            self._server.hold(entry.name)
            if self.status()[entry.name].clients:
                raise BusyError(f"export {entry.name!r} is in use: it can only grow until its clients are gone")
        _must_be_empty(entry, size)
        if self._server is not None:
            self._server.resize(entry.name, size)
        return self._catalogue.change(entry, size=size)

    def _drain(self, request: pb.DrainExportRequest) -> pb.DrainExportResponse:
        entry = self._catalogue.find(request.name)
        entry.must_be_sound()
        draining = not request.undo
        with self._changing():
            if entry.draining != draining:
                entry = self._catalogue.change(entry, draining=draining)
        return pb.DrainExportResponse(export=self._show(entry))

    def _allow(self, request: pb.AllowExportRequest) -> pb.AllowExportResponse:
        entry = self._catalogue.find(request.name)
        entry.must_be_sound()
        allow = _allowed(entry, request)
        with self._changing():
            if allow != entry.allow:
                entry = self._catalogue.change(entry, allow=allow)
        return pb.AllowExportResponse(export=self._show(entry))

    def _open_snapshot(self, request: pb.OpenSnapshotRequest) -> pb.OpenSnapshotResponse:
        entry = self._catalogue.find(request.export)
        number, paused = self._snapshots.begin(entry, self._server)
        return pb.OpenSnapshotResponse(id=number, export=self._show(entry), paused=paused, lease_seconds=LEASE)

    def _check_unused(self, request: pb.RemoveExportRequest) -> pb.RemoveExportResponse:
        """Raise if an export is open or being saved: then nobody else may change its pages."""
        clients = len(self.status().get(request.name, _NOBODY).clients)
        if clients:
            raise BusyError(
                f"export {request.name!r} is in use by {clients} client{'s' * (clients > 1)}, who alone may change it"
            )
        self._snapshots.check_not_open(request.name)
        return pb.RemoveExportResponse()

    def _show(self, entry: Entry) -> pb.Export:
        return _shown(entry, self.status().get(entry.name, _NOBODY))


def _spec(request: pb.CreateExportRequest) -> ExportSpec:
    """The export that a request asks for, defaults filled in."""
    given = {field.name: value for field, value in request.ListFields() if field.name != "allowed"}
    allow = tuple(dict.fromkeys(request.allowed.clients)) if request.HasField("allowed") else None
    if allow and EVERYBODY in allow:
        _must_be_alone(allow)
        allow = None
    return ExportSpec(**{"name": "", "size": 0, **given}, allow=allow)


def _must_be_alone(named: Sequence[str]) -> None:
    """Raise if others are named besides everybody."""
    if [name for name in named if name != EVERYBODY]:
        raise ValueError(f"{EVERYBODY!r} means anyone: name it alone, or name the clients that may open the export")


def _allowed(entry: Entry, request: pb.AllowExportRequest) -> tuple[str, ...] | None:
    """Who may open an export after the request."""
    if bool(request.clients) == request.anyone:
        raise ValueError("either name the clients that may open the export, or say that anyone may")
    anyone = request.anyone or EVERYBODY in request.clients
    if anyone and request.undo:
        raise ValueError("anyone and undo exclude each other: name the clients that may open the export")
    if anyone:
        _must_be_alone(request.clients)
        return None
    if not request.undo:
        allow = tuple(dict.fromkeys((*(entry.allow or ()), *request.clients)))
        check_allowed(allow)
        return allow
    if entry.allow is None:
        raise ValueError(f"anyone may open export {entry.name!r}: first name the clients that may")
    return tuple(name for name in entry.allow if name not in request.clients)


def _must_be_empty(entry: Entry, size: int) -> None:
    """Raise if anything is stored beyond the first `size` bytes."""
    assert entry.pool is not None
    block = entry.pool.page_size
    last, inside = divmod(size, block)
    if inside and (rest := entry.pool.fetch(OID, [last], False).pages[inside:]).strip(b"\0"):
        raise _holds(entry, size, size + len(rest) - len(rest.lstrip(b"\0")))
    first, cursor = last + bool(inside), b""
    while True:
        scanned, cursor = entry.pool.scan(cursor, _LOOK_PAGES)
        beyond = [index for _, indices, _ in scanned for index in indices if first <= index]
        if beyond:
            raise _holds(entry, size, min(beyond) * block)
        if not cursor:
            return


def _holds(entry: Entry, size: int, at: int) -> BusyError:
    return BusyError(f"export {entry.name!r} holds data beyond {size} bytes, at {at} for one: trim it first")


def _shown(entry: Entry, status: ExportStatus) -> pb.Export:
    if entry.pool is None:
        return pb.Export(name=entry.name, damaged=entry.damaged, draining=entry.draining, allowed=pb.Allowed())
    stats = entry.pool.stats()
    return pb.Export(
        name=entry.name,
        size=entry.size,
        reserve=entry.pool.reserve(),
        codec=entry.pool.settings().codec,
        pages=stats["pages"],
        footprint_bytes=stats["footprint_bytes"],
        draining=entry.draining,
        clients=[pb.ExportClient(address=one.address, tls=one.tls, identity=one.identity) for one in status.clients],
        counters=status.counters,
        multi_conn=entry.multi_conn,
        allowed=None if entry.allow is None else pb.Allowed(clients=entry.allow),
        block_size=entry.pool.page_size,
        damaged=entry.damaged,
    )
